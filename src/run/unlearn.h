/* unlearn.h - the unlearning phase of a job. */
#ifndef MM_UNLEARN_H
#define MM_UNLEARN_H

#include "src/run/job.h"
#include "src/run/rehearsal.h"

struct mm_checkpoint_info;

/* Unlearns, evaluating and saving as the config says, and leaves the unlearned weights as the
 * working ones. resume: NULL, or the folder of a valid checkpoint and its info. The results are
 * filled; *reason (mm_free; NULL: none) says why the run is rejected, with MM_REJECTED. Collective.
 */
enum mm_status mm_unlearn(struct mm_job *job, const char *resume,
                          const struct mm_checkpoint_info *info, char **reason,
                          struct mm_error *err);

/* For `plan`: takes the memory of the phase from a dry arena and rehearses a loop. Returns the
 * bytes of this rank's state, of which a checkpoint takes a copy in host memory. Local. */
size_t mm_unlearn_plan(struct mm_job *job, struct mm_arena *arena, struct mm_rehearsal *loop,
                       struct mm_error *err);

#endif
