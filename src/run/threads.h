/* threads.h - how many threads a rank computes with on the CPU. */
#ifndef MM_THREADS_H
#define MM_THREADS_H

#include "comm/comm.h"

/* Unless the OpenMP runtime took a number from OMP_NUM_THREADS: the CPUs this rank may run on, each
 * divided by the ranks that may run on it, at most those Slurm gave (SLURM_CPUS_PER_TASK;
 * SLURM_CPUS_ON_NODE over the ranks of the machine), at least one. So ranks never get in each
 * other's way, however they are bound. Warnings: OMP_NUM_THREADS is no number; one rank beside the
 * tasks of a Slurm job; where `idle`, on a single machine, binding leaves CPUs to no rank or ranks
 * to the same CPUs. Collective. */
void mm_threads_settle(struct mm_comm *comm, bool idle);
/* For `plan`: as many as that gives a rank of `ranks` that all are on this machine. Local. */
void mm_threads_plan(int ranks);

#endif
