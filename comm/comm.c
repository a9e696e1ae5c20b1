/* comm.c - the MPI transport between CPUs.
 *
 * Reductions are not MPI's: every rank sends each owner its rows and the owner adds them in rank
 * order. The same bytes cross the network as in a ring, and the order of additions is ours. */
#include "comm/comm.h"

#include <mpi.h>
#include <stdlib.h>

struct mm_comm {
    MPI_Comm world, node;
    int rank, size, local_rank, local_size;
    float *inbox; /* what the ranks sent this owner, grown to the largest tensor once */
    size_t inbox_elements;
};

#define CHECK_MPI(call)                                                                            \
    do {                                                                                           \
        int mpi_result = (call);                                                                   \
        MM_CHECK(mpi_result == MPI_SUCCESS, "MPI error %d in %s", mpi_result, #call);              \
    } while (0)

static void abort_job(int exit_status) {
    MPI_Abort(MPI_COMM_WORLD, exit_status);
}

/* Without a launcher Open MPI starts a daemon and opens ports for a process that needs neither. */
static void prepare_singleton(void) {
    if (!getenv("OMPI_COMM_WORLD_SIZE") && !getenv("PMIX_RANK") && !getenv("PMI_RANK"))
        setenv("OMPI_MCA_ess_singleton_isolated", "1", 0);
}

struct mm_comm *mm_comm_create(int *argc, char ***argv) {
    int provided;
    prepare_singleton();
    CHECK_MPI(MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided));
    mm_set_abort_hook(abort_job);
    struct mm_comm *comm = mm_calloc(1, sizeof *comm);
    CHECK_MPI(MPI_Comm_dup(MPI_COMM_WORLD, &comm->world));
    CHECK_MPI(MPI_Comm_rank(comm->world, &comm->rank));
    CHECK_MPI(MPI_Comm_size(comm->world, &comm->size));
    CHECK_MPI(MPI_Comm_split_type(comm->world, MPI_COMM_TYPE_SHARED, comm->rank, MPI_INFO_NULL,
                                  &comm->node));
    CHECK_MPI(MPI_Comm_rank(comm->node, &comm->local_rank));
    CHECK_MPI(MPI_Comm_size(comm->node, &comm->local_size));
    return comm;
}

void mm_comm_free(struct mm_comm *comm) {
    mm_free(comm->inbox);
    CHECK_MPI(MPI_Comm_free(&comm->node));
    CHECK_MPI(MPI_Comm_free(&comm->world));
    mm_free(comm);
    mm_set_abort_hook(NULL);
    CHECK_MPI(MPI_Finalize());
}

void mm_comm_pretend(struct mm_comm *comm, int size) {
    comm->rank = 0;
    comm->size = size;
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

enum mm_status mm_comm_agree(struct mm_comm *comm, enum mm_status status, struct mm_error *err) {
    if (comm->size == 1)
        return status;
    int mine = status == MM_OK ? comm->size : comm->rank, first;
    CHECK_MPI(MPI_Allreduce(&mine, &first, 1, MPI_INT, MPI_MIN, comm->world));
    if (first == comm->size)
        return MM_OK;
    int agreed = (int)status;
    CHECK_MPI(MPI_Bcast(&agreed, 1, MPI_INT, first, comm->world));
    CHECK_MPI(MPI_Bcast(err->text, sizeof err->text, MPI_CHAR, first, comm->world));
    return (enum mm_status)agreed;
}

bool mm_comm_any(struct mm_comm *comm, bool flag) {
    int mine = flag, any = flag;
    if (comm->size > 1)
        CHECK_MPI(MPI_Allreduce(&mine, &any, 1, MPI_INT, MPI_MAX, comm->world));
    return any;
}

void mm_comm_barrier(struct mm_comm *comm) {
    CHECK_MPI(MPI_Barrier(comm->world));
}

void mm_comm_broadcast(struct mm_comm *comm, int root, void *data, size_t bytes) {
    const size_t most = 1u << 30; /* MPI counts are int */
    for (size_t done = 0; comm->size > 1 && done < bytes; done += most) {
        size_t now = bytes - done < most ? bytes - done : most;
        CHECK_MPI(MPI_Bcast((char *)data + done, (int)now, MPI_BYTE, root, comm->world));
    }
}

void mm_comm_gather_all(struct mm_comm *comm, const void *mine, size_t bytes, void *all) {
    CHECK_MPI(MPI_Allgather(mine, (int)bytes, MPI_BYTE, all, (int)bytes, MPI_BYTE, comm->world));
}

void mm_comm_sum(struct mm_comm *comm, double *values, size_t n) {
    if (comm->size == 1)
        return;
    double *all = mm_calloc(n * (size_t)comm->size, sizeof *all);
    mm_comm_gather_all(comm, values, n * sizeof *values, all);
    for (size_t i = 0; i < n; i++) {
        values[i] = all[i];
        for (int r = 1; r < comm->size; r++)
            values[i] += all[(size_t)r * n + i];
    }
    mm_free(all);
}

double mm_comm_max(struct mm_comm *comm, double value) {
    double largest = value;
    if (comm->size > 1)
        CHECK_MPI(MPI_Allreduce(&value, &largest, 1, MPI_DOUBLE, MPI_MAX, comm->world));
    return largest;
}

/* A datatype of one row, so that counts are rows and fit an int. The caller frees it. */
static MPI_Datatype row_type(size_t cols, enum mm_dtype dtype) {
    MPI_Datatype type;
    MPI_Datatype element = dtype == MM_F32 ? MPI_FLOAT : MPI_UINT16_T;
    CHECK_MPI(MPI_Type_contiguous((int)cols, element, &type));
    CHECK_MPI(MPI_Type_commit(&type));
    return type;
}

static void reserve_inbox(struct mm_comm *comm, size_t elements) {
    if (elements <= comm->inbox_elements)
        return;
    comm->inbox = mm_realloc(comm->inbox, elements * sizeof *comm->inbox);
    comm->inbox_elements = elements;
}

void mm_comm_reduce_rows(struct mm_comm *comm, struct mm_mat full, size_t rows, float *own) {
    size_t own_rows = mm_rows_of(rows, comm->size, comm->rank).count;
    size_t own_n = own_rows * full.cols;
    if (comm->size == 1) {
        if (own != full.data)
            memcpy(own, full.data, own_n * sizeof *own);
        return;
    }
    size_t c = mm_rows_block(rows, comm->size), block_n = c * full.cols;
    reserve_inbox(comm, block_n * (size_t)comm->size);
    MPI_Datatype row = row_type(full.cols, MM_F32);
    CHECK_MPI(MPI_Alltoall(full.data, (int)c, row, comm->inbox, (int)c, row, comm->world));
    CHECK_MPI(MPI_Type_free(&row));
    memcpy(own, comm->inbox, own_n * sizeof *own);
    for (int r = 1; r < comm->size; r++) {
        const float *in = comm->inbox + (size_t)r * block_n;
        for (size_t i = 0; i < own_n; i++)
            own[i] += in[i];
    }
}

void mm_comm_gather_rows(struct mm_comm *comm, const void *own, struct mm_mat full) {
    size_t row_bytes = full.cols * mm_dtype_bytes(full.dtype);
    if (comm->size == 1) {
        if (own != full.data)
            memcpy(full.data, own, full.rows * row_bytes);
        return;
    }
    int *counts = mm_calloc((size_t)comm->size, sizeof *counts);
    int *firsts = mm_calloc((size_t)comm->size, sizeof *firsts);
    for (int r = 0; r < comm->size; r++) {
        struct mm_rows block = mm_rows_of(full.rows, comm->size, r);
        counts[r] = (int)block.count;
        firsts[r] = (int)block.first;
    }
    MPI_Datatype row = row_type(full.cols, full.dtype);
    CHECK_MPI(
        MPI_Allgatherv(own, counts[comm->rank], row, full.data, counts, firsts, row, comm->world));
    CHECK_MPI(MPI_Type_free(&row));
    mm_free(counts);
    mm_free(firsts);
}
