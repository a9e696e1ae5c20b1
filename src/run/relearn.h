/* relearn.h - the attacks: training on held-out forget data after unlearning. */
#ifndef MM_RELEARN_H
#define MM_RELEARN_H

#include "src/run/job.h"
#include "src/run/rehearsal.h"

/* Every attack of the config, each from the working weights of now. The results are filled; *score
 * (=) the lowest forget loss of any attack that did not diverge. *reason (mm_free; NULL: none) says
 * why the run is rejected, with MM_REJECTED. Collective. */
enum mm_status mm_relearn(struct mm_job *job, double *score, char **reason, struct mm_error *err);

/* For `plan`: takes the memory of the largest attack from a dry arena, and rehearses a step of
 * each: steps [mm_config_attacks_n]. Local. */
void mm_relearn_plan(struct mm_job *job, struct mm_arena *arena, struct mm_rehearsal *steps);

#endif
