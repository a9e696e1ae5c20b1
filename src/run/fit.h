/* fit.h - model.shard: auto. */
#ifndef MM_FIT_H
#define MM_FIT_H

#include "comm/comm.h"
#include "src/config/config.h"

/* "none" */
const char *mm_shard_name(enum mm_sharding shard);
/* Whether node differs from none and from full. Local. */
bool mm_fit_nodes(const struct mm_comm *comm);

/* Settles config->model.shard where it is auto: the first of none, node and full for which every
 * rank's device has the memory that `plan` counts, else full; node only where there are several
 * machines, and one with several ranks. That is the memory of a GPU that was free when it was
 * opened, less a tenth for CUDA and NCCL; on CPUs a rank's share of the machine's memory or of the
 * job's limit, and the address space that its own limit leaves, in which mapped files count
 * (src/run/memory.h). Errors as those of a run's inputs, on every rank. Collective; before
 * mm_comm_attach, after all that products take. */
enum mm_status mm_fit_shard(struct mm_comm *comm, const struct mm_device *dev,
                            struct mm_config *config, struct mm_error *err);

#endif
