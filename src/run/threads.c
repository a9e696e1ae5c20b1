/* threads.c - see threads.h. */
#include "src/run/threads.h"

#include <omp.h>
#include <stdlib.h>
#include <unistd.h>

#include "kernels/device.h"
#include "kernels/processor.h"

/* Where a rank may run. */
struct home {
    int machine;
    bool cpus[MM_MOST_CPUS];
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
    mm_processor_cpus(mine.cpus);
    mm_comm_gather_all(comm, &mine, sizeof mine, all);
    return all;
}

/* Ranks that share this rank's machine and may run on `cpu`. */
static int ranks_on(const struct mm_comm *comm, const struct home *all, int cpu) {
    int n = 0;
    for (int r = 0; r < mm_comm_size(comm); r++)
        n += all[r].machine == mm_comm_machine(comm) && all[r].cpus[cpu];
    return n;
}

/* The variable that makes the runtime bind threads. */
static const char *binding_variable(void) {
    static const char *const names[] = {"GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_PROC_BIND",
                                        "OMP_PLACES"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (getenv(names[i]))
            return names[i];
    return NULL;
}

/* `used` CPUs have a rank, and on one of them there are `most` ranks. */
static void warn_bound(const struct mm_comm *comm, long used, int most) {
    long here = slurm_number("SLURM_CPUS_ON_NODE", sysconf(_SC_NPROCESSORS_ONLN));
    const char *name = binding_variable();
    if (mm_comm_size(comm) == 1 || mm_comm_local_size(comm) != mm_comm_size(comm))
        return;
    if (omp_get_proc_bind() != omp_proc_bind_false && name && most > 1)
        mm_log0(MM_LOG_WARN,
                "%s=%s binds the threads of %d ranks to the same cores: unset it, or give each "
                "rank cores of its own ('mpirun --map-by slot:PE=%ld')",
                name, getenv(name), most,
                here / mm_comm_size(comm) < 1 ? 1 : here / mm_comm_size(comm));
    else if (used < here)
        mm_log0(MM_LOG_WARN,
                "%d ranks may use %ld of this machine's %ld cores: try 'mpirun --bind-to none'",
                mm_comm_size(comm), used, here);
}

static void warn_alone(const struct mm_comm *comm) {
    long tasks = slurm_number("SLURM_NTASKS", 1);
    if (mm_comm_size(comm) == 1 && !mm_comm_launched() && tasks > 1)
        mm_log0(MM_LOG_WARN,
                "the Slurm job has %ld tasks, but this is one rank outside of them: 'srun "
                "--mpi=pmix mudman-mpi ...' starts a rank in each",
                tasks);
}

/* Whether the OpenMP runtime took its number of threads from OMP_NUM_THREADS: a number, or several
 * for nested regions. */
static bool runtime_took(const char *text) {
    char *rest;
    bool first = strtol(text, &rest, 10) == mm_cpu_threads();
    while (rest != text && *rest == ',') {
        text = rest + 1;
        strtol(text, &rest, 10);
    }
    return first && rest != text && rest[strspn(rest, " \t")] == '\0';
}

static void settle_number(int share) {
    const char *asked = getenv("OMP_NUM_THREADS");
    if (asked && runtime_took(asked) && mm_cpu_threads() <= MM_MOST_CPUS)
        return;
    mm_cpu_set_threads(share);
    if (asked)
        mm_log0(MM_LOG_WARN,
                "OMP_NUM_THREADS='%s' is no number of threads from 1 to %d: a rank takes %d, its "
                "share of the CPUs",
                asked, MM_MOST_CPUS, share);
}

void mm_threads_settle(struct mm_comm *comm, bool idle) {
    struct home *all = gather(comm);
    const struct home *mine = &all[mm_comm_rank(comm)];
    double share = 1e-9; /* thirds add up to a whole */
    long used = 0;
    int shared_by = 0;
    for (int cpu = 0; cpu < MM_MOST_CPUS; cpu++) {
        int ranks = ranks_on(comm, all, cpu);
        used += ranks > 0;
        shared_by = ranks > shared_by ? ranks : shared_by;
        if (mine->cpus[cpu])
            share += 1.0 / ranks;
    }
    mm_free(all);
    long most = slurm_number("SLURM_CPUS_ON_NODE", MM_MOST_CPUS) / mm_comm_local_size(comm);
    long threads = (long)share < most ? (long)share : most;
    most = slurm_number("SLURM_CPUS_PER_TASK", threads);
    threads = threads < most ? threads : most;
    settle_number(threads < 1 ? 1 : (int)threads);
    if (idle)
        warn_bound(comm, used, shared_by);
    warn_alone(comm);
}

void mm_threads_plan(int ranks) {
    bool mine[MM_MOST_CPUS];
    int cpus = 0;
    mm_processor_cpus(mine);
    for (int cpu = 0; cpu < MM_MOST_CPUS; cpu++)
        cpus += mine[cpu];
    settle_number(cpus / ranks < 1 ? 1 : cpus / ranks);
}
