/* trials.c - see trials.h. */
#include "src/run/trials.h"

#include "io/files.h"
#include "io/lines.h"
#include "src/method/method.h"
#include "src/run/relearn.h"
#include "src/run/report.h"
#include "src/run/rows.h"
#include "src/run/standing.h"
#include "src/run/unlearn.h"
#include "src/run/stop.h"
#include "src/run/trial_line.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "kernels/queue.h"

struct server {
    struct mm_comm *comm;
    struct mm_job job;
    struct mm_config *base; /* borrowed */
    char *text;             /* of the config file, as it was at the start */
    struct mm_trial_base start;
    struct mm_arena *arena;
    struct mm_kept_weights pristine; /* as loaded */
    struct mm_lines lines;           /* rank 0 */
    struct mm_metrics *answers;      /* rank 0; NULL elsewhere */
    cJSON *request;                  /* the trial's line, NULL where it is no JSON */
    bool pruned;
    double begun;
};

/* -- lines ------------------------------------------------------------------------------------- */

/* The next line on every rank (mm_free), or NULL. */
static char *next_line(struct server *s) {
    const char *line = NULL;
    mm_comm_watch_end(s->comm); /* the next trial comes when it comes */
    if (mm_comm_rank(s->comm) == 0 && !mm_stop_asked())
        line = mm_lines_wait(&s->lines);
    size_t bytes = line ? strlen(line) + 1 : 0;
    mm_comm_broadcast(s->comm, 0, &bytes, sizeof bytes);
    if (!bytes)
        return NULL;
    char *copy = mm_calloc(bytes, 1);
    if (line) {
        memcpy(copy, line, bytes);
        mm_lines_take(&s->lines);
    }
    mm_comm_broadcast(s->comm, 0, copy, bytes);
    return copy;
}

/* Whether the driver gave the trial up meanwhile. Any other line waits for its turn. */
static bool prune_asked(struct server *s) {
    bool asked = false;
    const char *line;
    if (s->answers && (line = mm_lines_look(&s->lines)))
        asked = mm_trial_is_prune(line);
    if (asked)
        mm_lines_take(&s->lines);
    return mm_comm_any(s->comm, asked);
}

static void begin_answer(struct server *s, const char *event) {
    mm_metrics_begin_event(s->answers, event);
    const cJSON *id = cJSON_GetObjectItemCaseSensitive(s->request, "id");
    char *text = id ? cJSON_PrintUnformatted(id) : NULL;
    if (text)
        mm_metrics_json(s->answers, "id", text);
    cJSON_free(text);
}

static enum mm_status evaluated(void *self, const char *at, size_t passes,
                                const struct mm_evaluation *e, struct mm_error *err) {
    struct server *s = self;
    enum mm_status status = MM_OK;
    if (s->answers) {
        begin_answer(s, "eval");
        mm_report_moment(&s->job, s->answers, at, passes);
        mm_report_evaluation(&s->job, s->answers, e);
        status = mm_metrics_end(s->answers, err);
    }
    status = mm_comm_agree(s->comm, status, err);
    s->pruned = s->pruned || prune_asked(s);
    return status == MM_OK && s->pruned ? mm_fail(err, MM_REJECTED, "pruned") : status;
}

/* -- one trial --------------------------------------------------------------------------------- */

static void restore_weights(struct server *s) {
    mm_weights_restore(s->job.model, s->pristine);
}

/* What an earlier trial left in the job. */
static void forget_results(struct server *s) {
    mm_evaluation_clear(&s->job.results.after_unlearning, s->job.data.questions_n);
    mm_evaluation_clear(&s->job.results.after_relearning, s->job.data.questions_n);
    mm_job_forget_attacks(&s->job);
    s->job.results.busy = 0;
    s->job.results.kept_passes = SIZE_MAX;
    s->pruned = false;
}

static enum mm_status write_result(struct server *s, enum mm_status status, const char *reason,
                                   double score, size_t passes, struct mm_error *err) {
    struct mm_job *job = &s->job;
    double seconds = mm_now() - s->begun;
    const struct mm_evaluation *u = &job->results.after_unlearning,
                               *r = &job->results.after_relearning;
    if (!s->answers)
        return MM_OK;
    begin_answer(s, "result");
    mm_metrics_text(s->answers, "status",
                    status == MM_OK         ? "done"
                    : s->pruned             ? "pruned"
                    : status == MM_REJECTED ? "rejected"
                                            : "error");
    mm_metrics_text(s->answers, "reason", reason);
    mm_report_scores(job, s->answers, score);
    mm_metrics_number(s->answers, "forget_loss_unlearn", u->forget_loss);
    mm_metrics_number(s->answers, "retain_loss_unlearn", u->retain_loss);
    mm_metrics_number(s->answers, "forget_loss_relearn", r->forget_loss);
    mm_metrics_number(s->answers, "retain_loss_relearn", r->retain_loss);
    for (size_t i = 0; i < job->data.questions_n; i++) {
        char *key = mm_format("accuracy_%s", s->base->evaluate.multiple_choice[i].name);
        mm_metrics_number(s->answers, key, r->accuracy[i]);
        mm_free(key);
    }
    mm_report_divergence(job, s->answers);
    mm_metrics_count(s->answers, "passes", passes);
    mm_metrics_number(s->answers, "seconds", seconds);
    mm_metrics_number(s->answers, "overhead_seconds", seconds - job->results.busy);
    mm_standing_write(job, s->answers, score);
    return mm_metrics_end(s->answers, err);
}

/* Unlearns and relearns as `config` says; MM_REJECTED with *reason or as the listener said. */
static enum mm_status run(struct server *s, const struct mm_config *config, double *score,
                          char **reason, struct mm_error *err) {
    struct mm_job *job = &s->job;
    enum mm_status status = MM_OK;
    bool same_start = config->evaluate.batches == job->config->evaluate.batches;
    job->config = job->evaluator->config = config;
    if (!same_start)
        mm_evaluate(job->evaluator, &job->results.at_start);
    status = mm_unlearn(job, NULL, NULL, reason, err);
    if (status == MM_OK && mm_config_relearn_passes(config))
        status = mm_relearn(job, score, reason, err);
    return status;
}

/* A trial may evaluate more rows than the server's config, or attack with retain rows. */
static enum mm_status check_rows(const struct server *s, const struct mm_config *config,
                                 struct mm_error *err) {
    struct mm_attack_rows rows;
    enum mm_status status = mm_attack_rows(&rows, &s->job.data, config, err);
    if (status == MM_OK)
        mm_attack_rows_free(&rows);
    return status;
}

static enum mm_status trial(struct server *s, const char *line, struct mm_error *err) {
    struct mm_config config;
    double score = NAN;
    char *reason = NULL;
    size_t loops = 0, passes = 0;
    s->begun = mm_now();
    forget_results(s);
    enum mm_status status = mm_trial_parse(&s->start, line, &s->request, &config, err);
    config.model.dtype = s->base->model.dtype; /* settled */
    status = mm_comm_agree(s->comm, status, err);
    if (status == MM_OK)
        status = mm_identity_agree_config(s->comm, &config, err);
    if (status == MM_OK)
        status = mm_job_loops(&config, &loops, err);
    if (status == MM_OK)
        status = mm_job_check_attacks(&config, err);
    if (status == MM_OK)
        status = check_rows(s, &config, err);
    bool ran = status == MM_OK;
    if (ran) {
        passes = loops * mm_method_of(&config)->passes(&config) + mm_config_relearn_passes(&config);
        status = run(s, &config, &score, &reason, err);
        restore_weights(s);
    }
    enum mm_status written = MM_OK;
    if (status != MM_STOPPED)
        written = write_result(s, status,
                               reason            ? reason
                               : status == MM_OK ? ""
                                                 : err->text,
                               score, passes, err);
    if (ran && config.evaluate.batches != s->base->evaluate.batches) {
        s->job.config = s->job.evaluator->config = s->base;
        mm_evaluate(s->job.evaluator, &s->job.results.at_start);
    }
    s->job.config = s->job.evaluator->config = s->base;
    mm_config_free(&config);
    mm_free(reason);
    cJSON_Delete(s->request);
    s->request = NULL;
    written = mm_comm_agree(s->comm, written, err);
    return written != MM_OK ? written : status == MM_STOPPED ? MM_STOPPED : MM_OK;
}

/* -- the server -------------------------------------------------------------------------------- */

static enum mm_status say_ready(struct server *s, struct mm_error *err) {
    enum mm_status status = MM_OK;
    status = mm_evaluator_keep_start(s->job.evaluator, err);
    if (status != MM_OK)
        return status;
    mm_evaluate(s->job.evaluator, &s->job.results.at_start);
    if (!mm_evaluation_finite(&s->job.results.at_start, s->job.data.questions_n))
        return mm_fail(err, MM_REJECTED, "%s: the evaluation of this model is not finite",
                       s->base->model.path);
    if (s->answers) {
        mm_metrics_begin_event(s->answers, "ready");
        mm_metrics_count(s->answers, "ranks", (uint64_t)mm_comm_size(s->comm));
        mm_report_evaluation(&s->job, s->answers, &s->job.results.at_start);
        mm_standing_write_settings(&s->job, s->answers);
        status = mm_metrics_end(s->answers, err);
    }
    return mm_comm_agree(s->comm, status, err);
}

static void keep_pristine(struct server *s) {
    s->arena = mm_arena_create(s->job.dev);
    s->pristine = mm_weights_keep(s->arena, s->job.model);
}

enum mm_status mm_trials(struct mm_comm *comm, struct mm_device *dev, struct mm_config *config,
                         const char *path, char *const *overrides, size_t overrides_n,
                         struct mm_error *err) {
    struct server s = {.comm = comm, .base = config, .lines = {.fd = STDIN_FILENO}};
    size_t bytes;
    enum mm_status status = mm_comm_agree(comm, mm_file_read(path, &s.text, &bytes, err), err);
    if (status == MM_OK)
        status = mm_job_open(&s.job, comm, dev, config, MM_JOB_TRAIN, err);
    if (status != MM_OK) {
        mm_free(s.text);
        return status;
    }
    s.job.trial = true;
    s.job.listener = (struct mm_listener){.self = &s, .evaluated = evaluated};
    if (mm_comm_rank(comm) == 0)
        s.answers = mm_metrics_on(dup(STDOUT_FILENO), "standard output");
    s.start = (struct mm_trial_base){s.text, path, overrides, overrides_n};
    keep_pristine(&s);
    status = say_ready(&s, err);
    for (char *line; status == MM_OK && (line = next_line(&s)); mm_free(line))
        if (!mm_trial_is_prune(line)) /* which came when its trial had just ended */
            status = trial(&s, line, err);
    if (status == MM_OK && mm_comm_any(comm, mm_stop_asked()))
        status = mm_fail(err, MM_STOPPED, "stopped by a signal");
    mm_metrics_free(s.answers);
    mm_lines_free(&s.lines);
    mm_arena_free(s.arena);
    mm_job_close(&s.job);
    mm_free(s.text);
    return status;
}
