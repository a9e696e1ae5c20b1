/* memory.h - how much of this machine's memory a rank may have on the CPU. */
#ifndef MM_MEMORY_H
#define MM_MEMORY_H

#include "comm/comm.h"

/* Sets what dev's arenas may hold: this rank's share of the machine's memory, or of a control
 * group's (Slurm, containers), without what the process holds already. The kernel kills a process
 * that takes more, without a message. Call before there are arenas. Local. */
void mm_memory_limit(struct mm_device *dev, const struct mm_comm *comm);

#endif
