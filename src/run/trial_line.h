/* trial_line.h - one line of the `trials` command's input: {"prune": true}, or a trial,
 * {"id": any, "overrides": {"unlearn.adv_lr": 0.01, ...}}, as a configuration. All local. */
#ifndef MM_TRIAL_LINE_H
#define MM_TRIAL_LINE_H

#include "src/config/config.h"

struct cJSON;

/* What every trial starts from, borrowed: the text of the config file, its name for messages, and
 * the overrides of the command line, which those of a line replace. */
struct mm_trial_base {
    const char *text, *path;
    char *const *overrides;
    size_t overrides_n;
};

/* Is the line {"prune": true, ...}? Any text is safe. */
bool mm_trial_is_prune(const char *line);

/* Parses `line`: *request (cJSON_Delete; NULL where the line is no JSON) and *config, which is
 * freed with mm_config_free where the result is MM_OK, and owns nothing otherwise. MM_BAD_INPUT:
 * not one JSON object, a key that a trial may not set, and what mm_config_parse says. */
enum mm_status mm_trial_parse(const struct mm_trial_base *base, const char *line,
                              struct cJSON **request, struct mm_config *config,
                              struct mm_error *err);

#endif
