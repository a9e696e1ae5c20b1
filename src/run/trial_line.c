/* trial_line.c - see trial_line.h. */
#include "src/run/trial_line.h"

#include "io/json_text.h"

#include <cjson/cJSON.h>
#include <string.h>

static cJSON *parse_line(const char *line, struct mm_error *err) {
    return mm_json_object(line, strlen(line), "", "it", err);
}

bool mm_trial_is_prune(const char *line) {
    struct mm_error unused;
    cJSON *said = parse_line(line, &unused);
    bool prune = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(said, "prune"));
    cJSON_Delete(said);
    return prune;
}

/* In "key=value" a key with '=' in it would be another. */
static bool allowed(const char *key) {
    return !strchr(key, '=') &&
           (strncmp(key, "unlearn.", 8) == 0 || strncmp(key, "relearn.", 8) == 0 ||
            strcmp(key, "evaluate.every_passes") == 0 || strcmp(key, "evaluate.batches") == 0 ||
            strcmp(key, "evaluate.kl.budget") == 0);
}

/* "key=value" for each member: JSON values are YAML values. */
static enum mm_status collect(const cJSON *overrides, char **all, size_t *n, struct mm_error *err) {
    for (const cJSON *item = overrides ? overrides->child : NULL; item; item = item->next) {
        if (!allowed(item->string))
            return mm_fail(err, MM_BAD_INPUT,
                           "%s: a trial sets keys of unlearn and relearn, evaluate.every_passes, "
                           "evaluate.batches and evaluate.kl.budget",
                           item->string);
        char *value = cJSON_PrintUnformatted(item);
        all[(*n)++] = mm_format("%s=%s", item->string, value);
        cJSON_free(value);
    }
    return MM_OK;
}

static bool is_length(const char *key, size_t n) {
    return (n == 13 && strncmp(key, "unlearn.loops", n) == 0) ||
           (n == 14 && strncmp(key, "unlearn.passes", n) == 0);
}

/* Whether the trial sets what "key=value" of the command line sets; loops and passes are one. */
static bool replaced(const char *argument, const cJSON *overrides) {
    size_t n = strcspn(argument, "=");
    for (const cJSON *item = overrides ? overrides->child : NULL; item; item = item->next) {
        size_t own = strlen(item->string);
        if ((own == n && strncmp(argument, item->string, n) == 0) ||
            (is_length(argument, n) && is_length(item->string, own)))
            return true;
    }
    return false;
}

enum mm_status mm_trial_parse(const struct mm_trial_base *base, const char *line, cJSON **request,
                              struct mm_config *config, struct mm_error *err) {
    *config = (struct mm_config){0};
    struct mm_error why;
    *request = parse_line(line, &why);
    if (!*request)
        return mm_fail(err, MM_BAD_INPUT, "the line is not a JSON object: %.900s", why.text);
    const cJSON *overrides = cJSON_GetObjectItemCaseSensitive(*request, "overrides");
    if (overrides && !cJSON_IsObject(overrides))
        return mm_fail(err, MM_BAD_INPUT, "overrides is not an object of keys and values");
    size_t own = (size_t)cJSON_GetArraySize(overrides), n = 0;
    char **all = mm_calloc(base->overrides_n + own + 1, sizeof *all);
    for (size_t i = 0; i < base->overrides_n; i++)
        if (!replaced(base->overrides[i], overrides))
            all[n++] = base->overrides[i];
    size_t kept = n;
    enum mm_status status = collect(overrides, all, &n, err);
    if (status == MM_OK)
        status = mm_config_parse(config, base->text, base->path, all, n, MM_TRIALS, err);
    while (n > kept)
        mm_free(all[--n]);
    mm_free(all);
    return status;
}
