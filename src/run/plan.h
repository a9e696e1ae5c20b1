/* plan.h - `mudman-mpi plan`: checks everything and prints the memory of a rank by purpose. */
#ifndef MM_PLAN_H
#define MM_PLAN_H

#include "comm/comm.h"
#include "src/config/config.h"

/* For a job of `ranks` ranks (0: as many as there are now), on rank 0, which has the largest share.
 * Counts what mm_place_plan says, settling config->model.dtype; takes no memory of a GPU and trains
 * nothing. Local: one rank calls. */
enum mm_status mm_plan(struct mm_comm *comm, struct mm_config *config, int ranks,
                       struct mm_error *err);

#endif
