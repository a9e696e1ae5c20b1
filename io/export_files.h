/* export_files.h - the files of a model folder that are no weights; what weights_export.c does not
 * do itself. Local. */
#ifndef MM_EXPORT_FILES_H
#define MM_EXPORT_FILES_H

#include "io/weights.h"

/* Copies what a list knows of the folder of `weights` into `folder` and says once what it left out.
 * config.json and the index are edited as mm_weights_export_begin says; `bytes` is what the tensors
 * take in the files written. MM_BAD_INPUT: config.json is not JSON, a file cannot be read;
 * MM_FAILED: disk full and the like. */
enum mm_status mm_export_files(const struct mm_weights *weights, const char *folder,
                               const enum mm_dtype *save_dtype, size_t bytes, struct mm_error *err);

#endif
