/* memory.h - how much of this machine's memory a rank may have on the CPU, and how much it has. */
#ifndef MM_MEMORY_H
#define MM_MEMORY_H

#include "comm/comm.h"

/* Sets what dev's arenas may hold: this rank's share of the machine's memory, or of a control
 * group's (Slurm, containers), without what the process holds already. The kernel kills a process
 * that takes more, without a message. Call before there are arenas. Local. */
void mm_memory_limit(struct mm_device *dev, const struct mm_comm *comm);

/* This rank's share of that memory, whatever holds it now; SIZE_MAX: not known. Local. */
size_t mm_memory_share(const struct mm_comm *comm);
/* What this process holds of it now, files among it. Local. */
size_t mm_memory_resident(void);
/* Address space that a limit (ulimit -v) leaves to what this process will hold, beside that of a
 * thread that saves and of libraries; SIZE_MAX: no limit. Local. */
size_t mm_memory_space(void);

#endif
