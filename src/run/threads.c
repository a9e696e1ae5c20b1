/* threads.c - see threads.h. */
#define _GNU_SOURCE /* CPU affinity */
#include "src/run/threads.h"

#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

#include "kernels/device.h"

/* Where a rank may run. */
struct home {
    int machine;
    cpu_set_t cpus;
};

/* A number of CPUs that Slurm set, or `otherwise`. */
static long slurm_number(const char *name, long otherwise) {
    const char *text = getenv(name);
    long n = text ? strtol(text, NULL, 10) : 0;
    return n > 0 ? n : otherwise;
}

static struct home *gather(struct mm_comm *comm) {
    struct home mine = {.machine = mm_comm_machine(comm)};
    struct home *all = mm_calloc((size_t)mm_comm_size(comm), sizeof *all);
    CPU_ZERO(&mine.cpus);
    if (sched_getaffinity(0, sizeof mine.cpus, &mine.cpus) != 0) /* more CPUs than a set has */
        CPU_SET(0, &mine.cpus);
    mm_comm_gather_all(comm, &mine, sizeof mine, all);
    return all;
}

/* Ranks that share this rank's machine and may run on `cpu`. */
static int ranks_on(const struct mm_comm *comm, const struct home *all, int cpu) {
    int n = 0;
    for (int r = 0; r < mm_comm_size(comm); r++)
        n += all[r].machine == mm_comm_machine(comm) && CPU_ISSET(cpu, &all[r].cpus);
    return n;
}

static void warn_idle(const struct mm_comm *comm, long used) {
    long here = slurm_number("SLURM_CPUS_ON_NODE", sysconf(_SC_NPROCESSORS_ONLN));
    if (mm_comm_size(comm) > 1 && mm_comm_local_size(comm) == mm_comm_size(comm) && used < here)
        mm_log0(MM_LOG_WARN,
                "%d ranks may use %ld of this machine's %ld cores: try 'mpirun --bind-to none'",
                mm_comm_size(comm), used, here);
}

void mm_threads_settle(struct mm_comm *comm, bool idle) {
    struct home *all = gather(comm);
    const struct home *mine = &all[mm_comm_rank(comm)];
    double share = 1e-9; /* thirds add up to a whole */
    long used = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        int ranks = ranks_on(comm, all, cpu);
        used += ranks > 0;
        if (CPU_ISSET(cpu, &mine->cpus))
            share += 1.0 / ranks;
    }
    mm_free(all);
    long most = slurm_number("SLURM_CPUS_ON_NODE", CPU_SETSIZE) / mm_comm_local_size(comm);
    long threads = (long)share < most ? (long)share : most;
    most = slurm_number("SLURM_CPUS_PER_TASK", threads);
    threads = threads < most ? threads : most;
    if (!getenv("OMP_NUM_THREADS"))
        mm_cpu_set_threads(threads < 1 ? 1 : (int)threads);
    if (idle)
        warn_idle(comm, used);
}
