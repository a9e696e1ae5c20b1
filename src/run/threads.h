/* threads.h - how many threads a rank computes with on the CPU. */
#ifndef MM_THREADS_H
#define MM_THREADS_H

#include "comm/comm.h"

/* Unless OMP_NUM_THREADS says it: the CPUs this rank may run on, each divided by the ranks that may
 * run on it, at most those Slurm gave (SLURM_CPUS_PER_TASK; SLURM_CPUS_ON_NODE over the ranks of
 * the machine), at least one. So ranks never get in each other's way, however they are bound.
 * idle: warn where binding leaves CPUs of a single machine to no rank. Collective. */
void mm_threads_settle(struct mm_comm *comm, bool idle);

#endif
