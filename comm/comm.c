/* comm.c - the job, and what its ranks do together in host memory. */
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "comm/mpi_comm.h"

#define ABORT_SECONDS 5

static void *exit_late(void *exit_status) {
    sleep(ABORT_SECONDS);
    _exit(*(int *)exit_status);
}

/* MPI was started for one thread. MPI_Abort from another, while the first may be stuck in MPI,
 * works in practice, and exit_late is there if it doesn't. Before MPI_Init and after MPI_Finalize
 * the caller's own exit has to do: the launcher sees it. */
static void abort_job(int exit_status) {
    int begun, ended;
    pthread_t thread;
    MPI_Initialized(&begun);
    MPI_Finalized(&ended);
    if (begun && !ended && pthread_create(&thread, NULL, exit_late, &exit_status) == 0)
        MPI_Abort(MPI_COMM_WORLD, exit_status);
}

bool mm_comm_launched(void) {
    return getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMIX_RANK") || getenv("PMI_RANK");
}

/* Without a launcher Open MPI starts a daemon and opens ports for a process that needs neither. */
static void prepare_singleton(void) {
    if (!mm_comm_launched())
        setenv("OMPI_MCA_ess_singleton_isolated", "1", 0);
}

/* Tasks that know nothing of each other would all write the same run folder. */
static enum mm_status check_step(struct mm_error *err) {
    const char *tasks = getenv("SLURM_STEP_NUM_TASKS");
    if (mm_comm_launched() || !tasks || atoi(tasks) <= 1)
        return MM_OK;
    return mm_fail(err, MM_BAD_INPUT,
                   "srun started %s tasks without PMIx, so that they do not find each other: use "
                   "'srun --mpi=pmix' ('srun --mpi=list' shows what there is) or mpirun",
                   tasks);
}

/* On how many ranks `flag` is set. */
static int count_ranks(const struct mm_comm *comm, bool flag) {
    int mine = flag, all;
    CHECK_MPI(MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_SUM, comm->world));
    return all;
}

/* Makes the communicator of the ranks near this one. */
static void find_near(struct mm_comm *comm) {
    const char *text = getenv("MUDMAN_NEAR_RANKS");
    int most = text ? atoi(text) : 0;
    int group = most > 0 ? comm->local_rank / most : 0;
    CHECK_MPI(MPI_Comm_split(comm->node, group, comm->local_rank, &comm->beside));
    CHECK_MPI(MPI_Comm_rank(comm->beside, &comm->near.rank));
    CHECK_MPI(MPI_Comm_size(comm->beside, &comm->near.size));
    comm->near.first = comm->rank;
    CHECK_MPI(MPI_Bcast(&comm->near.first, 1, MPI_INT, 0, comm->beside));
    comm->near.groups = count_ranks(comm, comm->near.rank == 0);
}

static void join(struct mm_comm *comm, int *argc, char ***argv) {
    int provided;
    CHECK_MPI(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided));
    mm_set_abort_hook(abort_job);
    MM_CHECK(
        provided >= MPI_THREAD_FUNNELED,
        "this MPI allows no threads (level %d), which the program has: use another build of it",
        provided);
    /* Its faults come back to CHECK_MPI, which knows the exit status; communicators inherit this.
     */
    CHECK_MPI(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    CHECK_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &comm->world));
    CHECK_MPI(MPI_Comm_rank(comm->world, &comm->rank));
    CHECK_MPI(MPI_Comm_size(comm->world, &comm->size));
    CHECK_MPI(MPI_Comm_split_type(comm->world, MPI_COMM_TYPE_SHARED, comm->rank, MPI_INFO_NULL,
                                  &comm->node));
    CHECK_MPI(MPI_Comm_rank(comm->node, &comm->local_rank));
    CHECK_MPI(MPI_Comm_size(comm->node, &comm->local_size));
    comm->machine = comm->rank;
    CHECK_MPI(MPI_Bcast(&comm->machine, 1, MPI_INT, 0, comm->node));
    find_near(comm);
    comm->machines = count_ranks(comm, comm->local_rank == 0);
    mm_comm_compare_begin(comm);
}

struct mm_comm *mm_comm_join(int *argc, char ***argv, double seconds, struct mm_error *err) {
    const char *rank = getenv("PMIX_RANK"); /* until MPI says */
    if (check_step(err) != MM_OK)
        return NULL;
    prepare_singleton();
    struct mm_comm *comm = mm_calloc(1, sizeof *comm);
    comm->watch = mm_watch_create(abort_job);
    mm_watch_name(comm->watch, rank ? atoi(rank) : 0);
    mm_comm_watch_begin(comm, seconds, "start-up", MM_UNNUMBERED);
    mm_watch_enter(comm->watch, MM_WATCHED_CONNECTION, MM_OVER_MPI, 0);
    join(comm, argc, argv);
    mm_watch_leave(comm->watch);
    mm_watch_name(comm->watch, comm->rank);
    return comm;
}

char *mm_comm_library_text(void) {
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int n;
    CHECK_MPI(MPI_Get_library_version(text, &n));
    return mm_format("%.*s", (int)strcspn(text, ",\n"), text);
}

struct mm_comm *mm_comm_create(int *argc, char ***argv) {
    struct mm_error err;
    struct mm_comm *comm = mm_comm_join(argc, argv, 0, &err);
    MM_CHECK(comm, "%s", err.text);
    return comm;
}

void mm_comm_free(struct mm_comm *comm) {
    mm_watch_detach(comm->watch);
    mm_watch_begin(comm->watch, comm->patience, "exit", MM_UNNUMBERED);
    mm_watch_enter(comm->watch, MM_WATCHED_DEPARTURE, MM_OVER_MPI, 0);
    mm_comm_compare_end(comm);
    if (comm->transport)
        comm->transport->free(comm->transport);
    mm_watch_free_device(comm->watch);
    mm_free(comm->sums);
    CHECK_MPI(MPI_Comm_free(&comm->beside));
    CHECK_MPI(MPI_Comm_free(&comm->node));
    CHECK_MPI(MPI_Comm_free(&comm->world));
    mm_set_abort_hook(NULL);
    CHECK_MPI(MPI_Finalize());
    mm_watch_leave(comm->watch);
    mm_watch_free(comm->watch);
    mm_free(comm);
}

void mm_comm_pretend(struct mm_comm *comm, int size, struct mm_links links) {
    MM_CHECK(!comm->pretends, "a plan within a plan");
    comm->real.rank = comm->rank;
    comm->real.size = comm->size;
    comm->real.machines = comm->machines;
    comm->real.near = comm->near;
    comm->real.transport = comm->transport;
    comm->real.traffic = comm->traffic;
    comm->pretends = true;
    comm->rank = 0;
    comm->size = size;
    comm->machines = (size + links.per_machine - 1) / links.per_machine;
    comm->near.rank = comm->near.first = 0;
    comm->near.size = size < links.per_machine ? size : links.per_machine;
    comm->near.groups = comm->machines;
    comm->transport = NULL;
    comm->traffic = (struct mm_traffic){0};
    comm->links = links;
}

void mm_comm_pretend_end(struct mm_comm *comm) {
    if (comm->transport)
        comm->transport->free(comm->transport);
    comm->pretends = false;
    comm->rank = comm->real.rank;
    comm->size = comm->real.size;
    comm->machines = comm->real.machines;
    comm->near = comm->real.near;
    comm->transport = comm->real.transport;
    comm->traffic = comm->real.traffic;
}

int mm_comm_rank(const struct mm_comm *comm) {
    return comm->rank;
}

int mm_comm_size(const struct mm_comm *comm) {
    return comm->size;
}

int mm_comm_local_rank(const struct mm_comm *comm) {
    return comm->local_rank;
}

int mm_comm_local_size(const struct mm_comm *comm) {
    return comm->local_size;
}

int mm_comm_machine(const struct mm_comm *comm) {
    return comm->machine;
}

int mm_comm_machines(const struct mm_comm *comm) {
    return comm->machines;
}

struct mm_near mm_comm_near(const struct mm_comm *comm) {
    return comm->near;
}

struct mm_watch *mm_comm_watch(struct mm_comm *comm) {
    return comm->watch;
}

void mm_comm_watch_begin(struct mm_comm *comm, double seconds, const char *what, size_t number) {
    comm->patience = seconds;
    mm_comm_tell_traffic(comm, what, number);
    mm_watch_begin(comm->watch, seconds, what, number);
}

void mm_comm_watch_end(struct mm_comm *comm) {
    mm_watch_end(comm->watch);
}

void mm_comm_pass(struct mm_comm *comm) {
    mm_watch_pass(comm->watch);
}

/* -- collectives, each under the watchdog's eyes ------------------------------------------------
 */

/* False: there is nothing to do, for there is no other rank, or this is a plan. Else `leave`
 * follows.
 */
static bool enter(struct mm_comm *comm, enum mm_watched kind, size_t bytes) {
    mm_comm_enter(comm, (struct mm_call){.kind = kind, .bytes = bytes});
    bool alone = comm->size == 1 || comm->pretends;
    if (alone)
        mm_watch_leave(comm->watch);
    return !alone;
}

static void leave(struct mm_comm *comm) {
    mm_watch_leave(comm->watch);
}

/* MPI counts are int. */
static int count_of(size_t n) {
    MM_CHECK(n <= INT_MAX, "%zu elements in one message of MPI", n);
    return (int)n;
}

enum mm_status mm_comm_agree_with(struct mm_comm *comm, enum mm_status status, int *value,
                                  struct mm_error *err) {
    int mine[2] = {status == MM_OK ? -comm->size : -comm->rank, *value}, largest[2];
    int agreed = (int)status;
    if (!enter(comm, MM_WATCHED_AGREEMENT, 0))
        return status;
    CHECK_MPI(MPI_Allreduce(mine, largest, 2, MPI_INT, MPI_MAX, comm->world));
    int first = -largest[0];
    *value = largest[1];
    if (first < comm->size) {
        CHECK_MPI(MPI_Bcast(&agreed, 1, MPI_INT, first, comm->world));
        CHECK_MPI(MPI_Bcast(err->text, sizeof err->text, MPI_CHAR, first, comm->world));
    }
    leave(comm);
    return first < comm->size ? (enum mm_status)agreed : MM_OK;
}

enum mm_status mm_comm_agree(struct mm_comm *comm, enum mm_status status, struct mm_error *err) {
    int nothing = 0;
    return mm_comm_agree_with(comm, status, &nothing, err);
}

bool mm_comm_any(struct mm_comm *comm, bool flag) {
    int mine = flag, any = flag;
    if (!enter(comm, MM_WATCHED_AGREEMENT, 0))
        return flag;
    CHECK_MPI(MPI_Allreduce(&mine, &any, 1, MPI_INT, MPI_MAX, comm->world));
    leave(comm);
    return any;
}

void mm_comm_barrier(struct mm_comm *comm) {
    if (!enter(comm, MM_WATCHED_BARRIER, 0))
        return;
    CHECK_MPI(MPI_Barrier(comm->world));
    leave(comm);
}

void mm_comm_broadcast(struct mm_comm *comm, int root, void *data, size_t bytes) {
    const size_t most = 1u << 30; /* MPI counts are int */
    mm_comm_enter(comm,
                  (struct mm_call){.kind = MM_WATCHED_BROADCAST, .bytes = bytes, .root = root});
    for (size_t done = 0; comm->size > 1 && !comm->pretends && done < bytes; done += most) {
        size_t now = bytes - done < most ? bytes - done : most;
        CHECK_MPI(MPI_Bcast((char *)data + done, (int)now, MPI_BYTE, root, comm->world));
    }
    leave(comm);
}

void mm_comm_gather_all(struct mm_comm *comm, const void *mine, size_t bytes, void *all) {
    if (!enter(comm, MM_WATCHED_GATHER, bytes * (size_t)comm->size)) {
        if (!comm->pretends)
            memcpy(all, mine, bytes);
        return;
    }
    int n = count_of(bytes);
    CHECK_MPI(MPI_Allgather(mine, n, MPI_BYTE, all, n, MPI_BYTE, comm->world));
    leave(comm);
}

void mm_comm_sum_unwatched(struct mm_comm *comm, double *values, size_t n) {
    size_t size = (size_t)comm->size;
    if (n * size > comm->sums_n) {
        comm->sums = mm_realloc(comm->sums, n * size * sizeof *comm->sums);
        comm->sums_n = n * size;
    }
    int count = count_of(n);
    CHECK_MPI(MPI_Allgather(values, count, MPI_DOUBLE, comm->sums, count, MPI_DOUBLE, comm->world));
    for (size_t i = 0; i < n; i++) {
        values[i] = comm->sums[i];
        for (size_t r = 1; r < size; r++)
            values[i] += comm->sums[r * n + i];
    }
}

void mm_comm_sum(struct mm_comm *comm, double *values, size_t n) {
    if (!enter(comm, MM_WATCHED_SUM, n * sizeof *values))
        return;
    mm_comm_sum_unwatched(comm, values, n);
    leave(comm);
}

double mm_comm_max(struct mm_comm *comm, double value) {
    double largest = value;
    if (!enter(comm, MM_WATCHED_MAXIMUM, sizeof value))
        return value;
    CHECK_MPI(MPI_Allreduce(&value, &largest, 1, MPI_DOUBLE, MPI_MAX, comm->world));
    leave(comm);
    return largest;
}
