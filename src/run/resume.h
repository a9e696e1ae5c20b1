/* resume.h - what a resume looks at before it opens a job. */
#ifndef MM_RESUME_H
#define MM_RESUME_H

#include "src/config/config.h"

/* Where the model or a token file is not where the checkpoint's config has it, takes the place that
 * config.yaml in the run folder has, as an earlier resume may have been told. What is there is
 * compared later. MM_BAD_INPUT if it is in neither place: the text names the key and the override
 * that says where it is. Local. */
enum mm_status mm_resume_find_inputs(struct mm_config *config, const char *run_dir,
                                     struct mm_error *err);

/* Warns of each key in config.yaml of the run folder that differs from `config`, that of the
 * checkpoint with the overrides: a resume does not go by the file. Local; for rank 0. */
void mm_resume_warn_edited(const char *run_dir, const struct mm_config *config,
                           char *const *overrides, size_t overrides_n);

#endif
