/* resume.h - what a resume looks at before it opens a job. */
#ifndef MM_RESUME_H
#define MM_RESUME_H

#include "src/config/config.h"

/* MM_BAD_INPUT if the model or a file of the config is not where it was: the text names the key and
 * the override that says where it is now. Local. */
enum mm_status mm_resume_check_inputs(const struct mm_config *config, struct mm_error *err);

/* Warns of each key in config.yaml of the run folder that differs from `config`, that of the
 * checkpoint with the overrides: a resume does not go by the file. Local; for rank 0. */
void mm_resume_warn_edited(const char *run_dir, const struct mm_config *config,
                           char *const *overrides, size_t overrides_n);

#endif
