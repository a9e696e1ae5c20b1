/* export.h - the unlearned model as a Hugging Face folder, output.dir/model. */
#ifndef MM_EXPORT_H
#define MM_EXPORT_H

#include "src/parallel/shard.h"
#include "src/run/job.h"

/* Writes the model with w, the unlearned weights of all ranks in a vector over the shard, in place
 * of the stored ones: not the working weights, which are w rounded to the model's dtype. Every rank
 * writes its own rows. MM_FAILED on every rank where the disk is full or read-only. Collective. */
enum mm_status mm_export(const struct mm_job *job, const struct mm_shard *shard, struct mm_vector w,
                         struct mm_error *err);

#endif
