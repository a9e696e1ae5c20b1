/* standing.c - see standing.h. */
#include "src/run/standing.h"

#include "io/files.h"
#include "src/config/decisive.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* -- what there is to say ------------------------------------------------------------------------
 */

/* The keys that decide results, whichever way the number of loops was given. The caller frees. */
static char *settings(const struct mm_job *job) {
    struct mm_config c = *job->config;
    struct mm_error unused;
    size_t loops;
    bool unlearns = c.unlearn.loops != MM_ABSENT || c.unlearn.passes != MM_ABSENT;
    if (unlearns && mm_job_loops(&c, &loops, &unused) == MM_OK) {
        c.unlearn.loops = loops;
        c.unlearn.passes = MM_ABSENT;
    }
    return mm_config_lines(&c, MM_KEYS_DECISIVE);
}

/* The inputs of the losses of an evaluation. */
static const char *evaluated_forget(const struct mm_job *job) {
    return job->config->data.forget_evaluation ? "data.forget_evaluation"
                                               : "data.forget_validation";
}
static const char *evaluated_retain(const struct mm_job *job) {
    return job->config->data.forget_evaluation ? "data.retain_evaluation"
                                               : "data.retain_validation";
}

static const char *hash_of(const struct mm_job *job, const char *name) {
    const struct mm_input *input = mm_identity_find(&job->identity, name);
    return input ? input->hash : "none";
}

/* All that decides what an evaluation of given weights gives. The caller frees. */
static char *evaluation_text(const struct mm_job *job) {
    const struct mm_config *c = job->config;
    char *text =
        mm_format("%zu batches of %zu sequences of %zu, forget %s, retain %s", c->evaluate.batches,
                  c->data.batch_size, c->data.context_length, hash_of(job, evaluated_forget(job)),
                  hash_of(job, evaluated_retain(job)));
    if (c->evaluate.kl.file) {
        char *before = text;
        text = mm_format("%s, kl of %zu rows of %s", before, c->evaluate.kl.rows,
                         hash_of(job, "evaluate.kl.file"));
        mm_free(before);
    }
    for (size_t i = 0; i < job->data.questions_n; i++) {
        const struct mm_multiple_choice *q = &c->evaluate.multiple_choice[i];
        char *name = mm_format("evaluate.multiple_choice.%s", q->name), *before = text;
        text =
            mm_format("%s, %s at %.17g: %s", before, q->name, q->temperature, hash_of(job, name));
        mm_free(before);
        mm_free(name);
    }
    return text;
}

static void add_hash(cJSON *to, const char *name, char *text) {
    char hash[33];
    mm_bytes_hash(text, strlen(text), hash);
    cJSON_AddStringToObject(to, name, hash);
    mm_free(text);
}

cJSON *mm_standing_hashes(const struct mm_job *job) {
    cJSON *all = cJSON_CreateObject();
    cJSON_AddStringToObject(all, "program", mm_version);
    add_hash(all, "config", settings(job));
    add_hash(all, "evaluation", evaluation_text(job));
    for (size_t i = 0; i < job->identity.n; i++)
        cJSON_AddStringToObject(all, job->identity.inputs[i].name, job->identity.inputs[i].hash);
    return all;
}

static const char *stored_text(const cJSON *stored, const char *name) {
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(stored, name));
}

/* -- lines ------------------------------------------------------------------------------------- */

/* Writes the object as a field, and frees it. */
static void write_object(struct mm_metrics *to, const char *key, cJSON *object) {
    char *text = cJSON_PrintUnformatted(object);
    MM_CHECK(text, "out of memory");
    mm_metrics_json(to, key, text);
    cJSON_free(text);
    cJSON_Delete(object);
}

static cJSON *attack_of(const struct mm_job *job, double score) {
    size_t i = mm_job_scored(job, score);
    if (i == SIZE_MAX)
        return cJSON_CreateNull();
    struct mm_attack how = mm_config_attack(job->config, i);
    cJSON *attack = cJSON_CreateObject();
    cJSON_AddStringToObject(attack, "name", how.name ? how.name : "relearn");
    cJSON_AddStringToObject(attack, "optimizer", how.optimizer == MM_ADAMW ? "adamw" : "sgd");
    cJSON_AddNumberToObject(attack, "lr", how.lr);
    cJSON_AddNumberToObject(attack, "passes", (double)how.passes);
    cJSON_AddBoolToObject(attack, "with_retain", how.with_retain);
    cJSON_AddNumberToObject(attack, "lora_rank", (double)how.lora_rank);
    cJSON_AddStringToObject(attack, "state_dtype",
                            how.state_dtype == MM_DTYPE_BF16 ? "bfloat16" : "float32");
    return attack;
}

void mm_standing_write(const struct mm_job *job, struct mm_metrics *to, double score) {
    const struct mm_config *c = job->config;
    cJSON *evaluation = cJSON_CreateObject();
    write_object(to, "attack_of_score", attack_of(job, score));
    cJSON_AddStringToObject(evaluation, "forget", evaluated_forget(job));
    cJSON_AddStringToObject(evaluation, "retain", evaluated_retain(job));
    cJSON_AddNumberToObject(evaluation, "batches", (double)c->evaluate.batches);
    cJSON *questions = cJSON_AddArrayToObject(evaluation, "multiple_choice");
    for (size_t i = 0; i < job->data.questions_n; i++)
        cJSON_AddItemToArray(questions, cJSON_CreateString(c->evaluate.multiple_choice[i].name));
    write_object(to, "evaluation", evaluation);
    write_object(to, "identity", mm_standing_hashes(job));
}

void mm_standing_write_settings(const struct mm_job *job, struct mm_metrics *to) {
    cJSON *all = cJSON_CreateObject();
    char *lines = settings(job), *rest = lines;
    for (char *line; (line = strsep(&rest, "\n")) && *line;) {
        char *value = strchr(line, ':'); /* no key has one */
        *value = '\0';
        cJSON_AddStringToObject(all, line, value + 2);
    }
    mm_free(lines);
    write_object(to, "settings", all);
    write_object(to, "identity", mm_standing_hashes(job));
}

void mm_standing_print(const struct mm_job *job) {
    static const char *const names[] = {"config.json", "weights", "evaluation"};
    cJSON *all = mm_standing_hashes(job);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        printf("hash %s %s\n", names[i], stored_text(all, names[i]));
    cJSON_Delete(all);
}

/* -- a checkpoint's ------------------------------------------------------------------------------
 */

/* What the finished loops were made from, beside the weights. */
static const char *const decides_loops[] = {"config.json", "data.retain", "data.forget",
                                            "evaluate.kl.file"};

static bool decides(const char *name) {
    for (size_t i = 0; i < sizeof decides_loops / sizeof *decides_loops; i++)
        if (strcmp(decides_loops[i], name) == 0)
            return true;
    return strcmp(name, "weights") == 0;
}

enum mm_status mm_standing_check_input(const struct mm_job *job, const char *folder,
                                       const char *name, const char *hash, struct mm_error *err) {
    const struct mm_input *input = mm_identity_find(&job->identity, name);
    bool own_key = strncmp(name, "data.", 5) == 0 || strncmp(name, "evaluate.", 9) == 0;
    const char *key = own_key ? name : "model.path";
    if (!input || strcmp(hash, input->hash) == 0)
        return MM_OK;
    return mm_fail(err, MM_BAD_INPUT,
                   "%s: made from another %s than %s (hash %s, not %s): put back what it was made "
                   "from, or say where that is: %s=PATH",
                   folder, name, input->path, hash, input->hash, key);
}

/* What may change between loops and attack, or between one version and the next. */
static void warn_changed(const struct mm_job *job, const char *folder, const cJSON *stored) {
    const char *program = stored_text(stored, "program");
    if (program && strcmp(program, mm_version) != 0)
        mm_log0(MM_LOG_WARN, "%s: written by version %s of the program, and this is %s", folder,
                program, mm_version);
    for (size_t i = 0; i < job->identity.n; i++) {
        const struct mm_input *input = &job->identity.inputs[i];
        const char *hash = stored_text(stored, input->name);
        if (hash && !decides(input->name) && strcmp(hash, input->hash) != 0)
            mm_log0(MM_LOG_WARN, "%s: %s was another file then than %s is now (hash %s, not %s)",
                    folder, input->name, input->path, hash, input->hash);
    }
}

enum mm_status mm_standing_check(const struct mm_job *job, const char *folder, const cJSON *stored,
                                 bool *evaluates_otherwise, struct mm_error *err) {
    enum mm_status status = MM_OK;
    *evaluates_otherwise = false;
    if (!cJSON_IsObject(stored)) {
        mm_log0(MM_LOG_WARN,
                "%s: of an older version, without hashes of config.json and the data, which are "
                "therefore not compared",
                folder);
        return MM_OK;
    }
    for (size_t i = 0; i < sizeof decides_loops / sizeof *decides_loops && status == MM_OK; i++) {
        const char *hash = stored_text(stored, decides_loops[i]);
        if (hash)
            status = mm_standing_check_input(job, folder, decides_loops[i], hash, err);
    }
    if (status != MM_OK)
        return status;
    warn_changed(job, folder, stored);
    cJSON *now = mm_standing_hashes(job);
    const char *before = stored_text(stored, "evaluation"), *here = stored_text(now, "evaluation");
    *evaluates_otherwise = before && strcmp(before, here) != 0;
    cJSON_Delete(now);
    if (*evaluates_otherwise)
        mm_log0(MM_LOG_WARN,
                "%s: evaluated otherwise than this resume does: the losses at the "
                "start are measured anew",
                folder);
    return MM_OK;
}
