/* saving.c - binding, saving and loading the state of a run; see saving.h. */
#include "src/run/saving.h"

#include "io/json_text.h"
#include "src/run/standing.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <string.h>

struct mm_saving mm_saving_create(struct mm_job *job, const struct mm_state_list *state,
                                  struct mm_stopwatch *stopwatch) {
    const struct mm_config *c = job->config;
    struct mm_saving s = {.job = job, .stopwatch = stopwatch};
    if (job->trial)
        return s;
    s.copy = mm_state_copy_create(state, job->dev);
    s.saver = mm_saver_create(job->comm, c->output.dir, c->checkpoint.keep);
    mm_saver_heed(s.saver, job->owner);
    return s;
}

void mm_saving_free(struct mm_saving *s) {
    mm_state_copy_free(&s->copy);
    mm_saver_free(s->saver);
    *s = (struct mm_saving){0};
}

/* -- what a checkpoint says beside the state -----------------------------------------------------
 */

/* With the digits that give the same double back: cJSON settles for 15 that come close. */
static cJSON *exact_number(double value) {
    char *text = isfinite(value) ? mm_format("%.17g", value) : mm_strdup("null");
    cJSON *number = cJSON_CreateRaw(text);
    mm_free(text);
    return number;
}

static void add_losses(cJSON *to, const char *key, const struct mm_evaluation *e) {
    cJSON *pair = cJSON_AddArrayToObject(to, key);
    cJSON_AddItemToArray(pair, exact_number(e->forget_loss));
    cJSON_AddItemToArray(pair, exact_number(e->retain_loss));
    cJSON_AddItemToArray(pair, exact_number(e->forget_answer_probability));
    cJSON_AddItemToArray(pair, exact_number(e->kl));
}

static void get_losses(const cJSON *from, const char *key, struct mm_evaluation *e) {
    const cJSON *pair = cJSON_GetObjectItemCaseSensitive(from, key);
    double *const fields[] = {&e->forget_loss, &e->retain_loss, &e->forget_answer_probability,
                              &e->kl}; /* an older version has the first two */
    for (int i = 0; i < 4; i++) {
        const cJSON *value = cJSON_GetArrayItem(pair, i);
        *fields[i] = cJSON_IsNumber(value) ? value->valuedouble : NAN;
    }
}

/* The losses a resumed run cannot measure again, and what they stand on. */
static char *extra_text(const struct mm_saving *s) {
    const struct mm_job *job = s->job;
    cJSON *extra = cJSON_CreateObject();
    add_losses(extra, "start", &job->results.at_start);
    add_losses(extra, "unlearn", &job->results.after_unlearning);
    if (!isnan(job->config->evaluate.kl.budget)) {
        cJSON_AddNumberToObject(extra, "kept", (double)s->kept);
        cJSON_AddBoolToObject(extra, "ended", s->ended);
    }
    cJSON_AddItemToObject(extra, "identity", mm_standing_hashes(job));
    char *printed = cJSON_PrintUnformatted(extra), *text = mm_strdup(printed);
    cJSON_free(printed);
    cJSON_Delete(extra);
    return text;
}

/* -- saving --------------------------------------------------------------------------------------
 */

/* What checkpoint.on_error says of a save of `loops` loops that ended with `status`. */
static enum mm_status judge(const struct mm_saving *s, size_t loops, enum mm_status status,
                            const struct mm_error *err) {
    bool stop = status == MM_BAD_INPUT || s->job->config->checkpoint.on_error == MM_ON_ERROR_STOP;
    if (status == MM_OK || stop) /* bad: the folder is another job's now */
        return status;
    mm_log0(MM_LOG_WARN, "no checkpoint after loop %zu, going on: %s", loops, err->text);
    return MM_OK;
}

static enum mm_status take_further(struct mm_saving *s,
                                   enum mm_status (*further)(struct mm_saver *, struct mm_error *),
                                   struct mm_error *err) {
    struct mm_error fault;
    enum mm_status status = further(s->saver, &fault);
    if (!mm_saver_busy(s->saver))
        mm_stopwatch_saved(s->stopwatch, mm_now() - s->began);
    if (status != MM_OK)
        *err = fault;
    return judge(s, s->loops, status, &fault);
}

static bool busy(const struct mm_saving *s) {
    return s->saver && mm_saver_busy(s->saver);
}

enum mm_status mm_saving_go_on(struct mm_saving *s, struct mm_error *err) {
    return busy(s) ? take_further(s, mm_saver_poll, err) : MM_OK;
}

enum mm_status mm_saving_wait(struct mm_saving *s, struct mm_error *err) {
    if (!busy(s))
        return MM_OK;
    mm_job_watch_files(s->job, "checkpoint after loop", s->loops);
    return take_further(s, mm_saver_wait, err);
}

enum mm_status mm_saving_start(struct mm_saving *s, size_t loops, struct mm_error *err) {
    struct mm_job *job = s->job;
    struct mm_checkpoint_info info = {
        .loops = loops, .retain_cursor = loops, .forget_cursor = loops};
    if (!s->saver)
        return MM_OK;
    enum mm_status status = mm_saving_wait(s, err);
    if (status != MM_OK)
        return status;
    mm_job_watch_files(job, "checkpoint after loop", loops);
    s->began = mm_now();
    if (job->metrics)
        status = mm_metrics_flush(job->metrics, &info.metrics_bytes, err);
    status = mm_comm_agree(job->comm, status, err);
    if (status != MM_OK)
        return judge(s, loops, status, err);
    memcpy(info.weights_hash, mm_identity_find(&job->identity, "weights")->hash,
           sizeof info.weights_hash);
    info.config = mm_config_yaml(job->config);
    info.extra = extra_text(s);
    mm_state_save(&s->copy);
    s->loops = loops;
    status = mm_saver_start(s->saver, &s->copy.state, &info, job->metrics, err);
    return judge(s, loops, status, err);
}

enum mm_status mm_saving_end(struct mm_saving *s, enum mm_status status, struct mm_error *err) {
    struct mm_error fault = {""};
    enum mm_status saved = mm_saving_wait(s, &fault);
    if (saved != MM_OK && status != MM_OK)
        mm_log0(MM_LOG_WARN, "no checkpoint after loop %zu: %s", s->loops, fault.text);
    else if (saved != MM_OK)
        *err = fault;
    return status != MM_OK ? status : saved;
}

/* Checkpoints of before 2026-11-27 hold the hash of the weights' files. Rank 0 speaks for all:
 * their copies are the same. Collective. */
static enum mm_status check_weights(const struct mm_job *job, const char *folder, const char *hash,
                                    struct mm_error *err) {
    enum mm_status status = mm_standing_check_input(job, folder, "weights", hash, err);
    char files[33] = "";
    if (status != MM_OK && mm_comm_rank(job->comm) == 0)
        mm_weights_hash_files(job->weights, files);
    bool older = mm_comm_any(job->comm, strcmp(hash, files) == 0);
    return older ? MM_OK : status;
}

/* Whether the checkpoint is one of this job, and the losses it tells, unless they come from another
 * evaluation. */
static enum mm_status take_extra(struct mm_saving *s, const char *folder,
                                 const struct mm_checkpoint_info *info, struct mm_error *err) {
    struct mm_job *job = s->job;
    bool any = *info->extra;
    cJSON *extra =
        any ? mm_json_object(info->extra, strlen(info->extra), folder, "'extra'", err) : NULL;
    if (any && !extra)
        return MM_BAD_INPUT;
    const cJSON *stored = cJSON_GetObjectItemCaseSensitive(extra, "identity");
    enum mm_status status = check_weights(job, folder, info->weights_hash, err);
    if (status == MM_OK)
        status = mm_standing_check(job, folder, stored, &s->start_unknown, err);
    if (status == MM_OK && !s->start_unknown) {
        get_losses(extra, "start", &job->results.at_start);
        get_losses(extra, "unlearn", &job->results.after_unlearning);
    }
    const cJSON *kept = cJSON_GetObjectItemCaseSensitive(extra, "kept");
    s->kept = cJSON_IsNumber(kept) && kept->valuedouble > 0 ? (size_t)kept->valuedouble : 0;
    s->ended = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(extra, "ended"));
    cJSON_Delete(extra);
    return status;
}

enum mm_status mm_saving_load(struct mm_saving *s, const char *folder,
                              const struct mm_checkpoint_info *info, size_t most,
                              struct mm_error *err) {
    enum mm_status status = take_extra(s, folder, info, err);
    if (status == MM_OK && info->loops > most)
        status = mm_fail(err, MM_BAD_INPUT, "%s: has %zu loops, more than the %zu asked for",
                         folder, info->loops, most);
    if (status == MM_OK)
        status = mm_checkpoint_read(s->job->comm, folder, &s->copy.state, err);
    if (status != MM_OK)
        return status;
    mm_state_restore(&s->copy);
    mm_log0(MM_LOG_INFO, "resuming from %s: %zu of %zu loops done", folder, info->loops, most);
    return MM_OK;
}
