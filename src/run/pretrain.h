/* pretrain.h - `mudman-mpi pretrain`: AdamW from random weights to output.dir/model. */
#ifndef MM_PRETRAIN_H
#define MM_PRETRAIN_H

#include "comm/comm.h"
#include "src/config/config.h"

/* Collective. MM_REJECTED if the loss stops being finite. */
enum mm_status mm_pretrain(struct mm_comm *comm, struct mm_device *dev,
                           const struct mm_config *config, struct mm_error *err);

#endif
