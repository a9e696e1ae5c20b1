/* plan.h - `mudman-mpi plan`: checks everything; prints the memory of a rank by purpose, and what
 * ranks send each other in a loop and in a step of relearning; predicts how long those take. */
#ifndef MM_PLAN_H
#define MM_PLAN_H

#include "comm/comm.h"
#include "src/config/config.h"

/* For a job of `ranks` ranks (0: as many as there are now), on rank 0, which has the largest share.
 * Counts what mm_place_plan says, settling config->model.dtype; takes no memory of a GPU and trains
 * nothing. machine: see mm_machine_read; NULL: no times. Local: one rank calls. */
enum mm_status mm_plan(struct mm_comm *comm, struct mm_config *config, int ranks,
                       const char *machine, struct mm_error *err);

/* Bytes that a rank of this job will hold at most: of its device's memory, and on the CPU of
 * address space, beyond what this process has now, for that and for the files that it maps. */
struct mm_plan_need {
    size_t memory, space;
};

/* For a config whose model.shard is not auto, of the rank with the largest share. Errors as those
 * of a run's inputs. Local. */
enum mm_status mm_plan_peak(struct mm_comm *comm, const struct mm_config *config, bool cuda,
                            struct mm_plan_need *need, struct mm_error *err);

#endif
