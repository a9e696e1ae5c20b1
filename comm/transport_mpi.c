/* transport_mpi.c - buckets over MPI: between CPUs, or "staged" between GPUs, which go through host
 * memory, so that MPI never sees a device's pointer.
 *
 * MPI may add in any order, so its reductions are not used. Instead every rank sends each owner its
 * rows, and the owner adds them in rank order. As many bytes cross the network as in a ring. The
 * cost: an owner needs room for the rows of all ranks, of which it takes some at a time. */
#include <stdio.h>

#include "comm/mpi_comm.h"
#include "comm/rooms.h"
#include "kernels/queue.h"

/* Host memory, grown to the most that was asked for. */
struct buffer {
    void *data;
    size_t bytes;
};

struct over_mpi {
    struct mm_transport base;
    struct mm_comm *comm;
    struct mm_device *dev;
    bool staged;
    struct buffer outbox, inbox;   /* of reductions */
    struct buffer stage;           /* what is on the device, pinned */
    struct buffer numbers;         /* of a sum, one behind the other */
    int *counts, *firsts, *places; /* rows of each rank */
};

static void *reserve(struct over_mpi *t, struct buffer *buffer, size_t bytes) {
    if (bytes > buffer->bytes) {
        mm_free(buffer->data);
        buffer->data = mm_calloc(bytes, 1);
        t->base.room_bytes += bytes - buffer->bytes;
        buffer->bytes = bytes;
    }
    return buffer->data;
}

/* The last upload from the stage may still be under way. What comes next is always a download of
 * `src`: it follows the upload, and waits. */
static void *reserve_stage(struct over_mpi *t, const void *src, size_t bytes) {
    if (bytes > t->stage.bytes) {
        void *bigger = t->dev->queue->pinned_alloc(t->dev, bytes);
        if (t->stage.data) {
            t->dev->queue->download(t->dev, bigger, src, 1);
            t->dev->queue->pinned_free(t->dev, t->stage.data);
        }
        t->base.room_bytes += bytes - t->stage.bytes;
        t->stage = (struct buffer){bigger, bytes};
    }
    return t->stage.data;
}

/* A datatype of one row, so that counts are rows and fit an int. The caller frees it. */
static MPI_Datatype row_type(size_t cols, enum mm_dtype dtype) {
    MPI_Datatype type;
    MPI_Datatype element = dtype == MM_F32 ? MPI_FLOAT : MPI_UINT16_T;
    CHECK_MPI(MPI_Type_contiguous((int)cols, element, &type));
    CHECK_MPI(MPI_Type_commit(&type));
    return type;
}

/* own = (`add`: +=) sum of the ranks' parts, n elements each, part r at element r·step of `parts`
 */
static void add_in_rank_order(float *own, const void *parts, enum mm_dtype dtype, size_t step,
                              size_t n, int ranks, bool add) {
    const float *exact = parts;
    const uint16_t *rounded = parts;
    for (int r = 0; r < ranks; r++) {
        size_t first = (size_t)r * step;
        for (size_t i = 0; i < n; i++) {
            float part = dtype == MM_F32 ? exact[first + i] : mm_f32_from_bf16(rounded[first + i]);
            own[i] = r == 0 && !add ? part : own[i] + part;
        }
    }
}

size_t mm_inbox_bytes = (size_t)64 << 20;

/* Sends rows p ... p + n - 1 of each rank's block of c rows to their owner: in [ranks, n rows]. */
static void exchange(struct over_mpi *t, const void *out, void *in, size_t c, size_t p, size_t n,
                     MPI_Datatype row) {
    for (int r = 0; r < t->comm->size; r++) {
        t->counts[r] = (int)n;
        t->firsts[r] = (int)((size_t)r * c + p);
        t->places[r] = (int)((size_t)r * n);
    }
    CHECK_MPI(MPI_Alltoallv(out, t->counts, t->firsts, row, in, t->counts, t->places, row,
                            t->comm->world));
}

/* `full` in host memory, of which the padding may be anything. */
static void reduce_in_host(struct over_mpi *t, const float *full, const struct mm_reduction *r,
                           float *own) {
    int size = t->comm->size;
    size_t rows = r->rows, cols = r->full.cols;
    size_t c = mm_rows_block(rows, size), own_rows = mm_rows_of(rows, size, t->comm->rank).count;
    enum mm_dtype dtype = t->base.reduce_dtype;
    size_t most = mm_mpi_rows_at_once(r, size, dtype), outbox = mm_mpi_outbox(r, size, dtype);
    const void *out = full;
    if (outbox) {
        mm_convert(reserve(t, &t->outbox, outbox), dtype, full, MM_F32, rows * cols);
        out = t->outbox.data;
    }
    void *in = reserve(t, &t->inbox, mm_mpi_inbox(r, size, dtype));
    MPI_Datatype row = row_type(cols, dtype);
    for (size_t p = 0, n; p < c; p += n) {
        n = c - p < most ? c - p : most;
        exchange(t, out, in, c, p, n, row);
        size_t mine = own_rows > p ? own_rows - p : 0;
        add_in_rank_order(own + p * cols, in, dtype, n * cols, (mine < n ? mine : n) * cols,
                          r->ranks ? r->ranks : size, r->add);
    }
    CHECK_MPI(MPI_Type_free(&row));
}

static void mpi_reduce(struct mm_transport *base, mm_ticket ticket,
                       const struct mm_reduction *tensors, size_t n, uint64_t watched) {
    struct over_mpi *t = (struct over_mpi *)base;
    (void)ticket;
    (void)watched;
    for (const struct mm_reduction *r = tensors; r < tensors + n; r++) {
        size_t row_bytes = r->full.cols * sizeof(float);
        if (!t->staged) {
            reduce_in_host(t, r->full.data, r, r->own);
            continue;
        }
        size_t own_bytes = mm_rows_of(r->rows, t->comm->size, t->comm->rank).count * row_bytes;
        float *stage =
            reserve_stage(t, r->full.data, mm_stage_of_reduction(r, t->comm->size, t->comm->rank));
        float *own = stage + r->full.rows * r->full.cols;
        t->dev->queue->download(t->dev, stage, r->full.data, r->rows * row_bytes);
        if (r->add && own_bytes)
            t->dev->queue->download(t->dev, own, r->own, own_bytes);
        reduce_in_host(t, stage, r, own);
        if (own_bytes)
            t->dev->queue->upload_later(t->dev, r->own, own, own_bytes);
    }
}

/* Who gathers. */
struct group {
    MPI_Comm mpi;
    int rank, size;
};

static struct group group_of(const struct mm_comm *comm, enum mm_among among) {
    return among == MM_AMONG_ALL ? (struct group){comm->world, comm->rank, comm->size}
                                 : (struct group){comm->beside, comm->near.rank, comm->near.size};
}

/* Every rank's rows to `full` in host memory, where this rank's are. */
static void gather_in_host(struct over_mpi *t, struct group group, void *full,
                           const struct mm_mat *shape) {
    for (int r = 0; r < group.size; r++) {
        struct mm_rows block = mm_rows_of(shape->rows, group.size, r);
        t->counts[r] = (int)block.count;
        t->firsts[r] = (int)block.first;
    }
    MPI_Datatype row = row_type(shape->cols, shape->dtype);
    CHECK_MPI(MPI_Allgatherv(MPI_IN_PLACE, 0, row, full, t->counts, t->firsts, row, group.mpi));
    CHECK_MPI(MPI_Type_free(&row));
}

static void mpi_gather(struct mm_transport *base, mm_ticket ticket, const struct mm_mat *tensors,
                       size_t n, enum mm_among among, uint64_t watched) {
    struct over_mpi *t = (struct over_mpi *)base;
    struct group group = group_of(t->comm, among);
    (void)ticket;
    (void)watched;
    for (const struct mm_mat *m = tensors; m < tensors + n; m++) {
        if (!t->staged) {
            gather_in_host(t, group, m->data, m);
            continue;
        }
        size_t row_bytes = m->cols * mm_dtype_bytes(m->dtype);
        struct mm_rows mine = mm_rows_of(m->rows, group.size, group.rank);
        char *stage = reserve_stage(t, m->data, mm_stage_of_gather(m));
        size_t first = mine.count ? mine.first * row_bytes : 0; /* without rows: only to wait */
        size_t bytes = mine.count ? mine.count * row_bytes : m->rows * row_bytes;
        t->dev->queue->download(t->dev, stage + first, (char *)m->data + first, bytes);
        gather_in_host(t, group, stage, m);
        t->dev->queue->upload_later(t->dev, m->data, stage, m->rows * row_bytes);
    }
}

static void mpi_sum(struct mm_transport *base, const struct mm_numbers *numbers, size_t parts,
                    uint64_t watched) {
    struct over_mpi *t = (struct over_mpi *)base;
    const struct mm_queue *queue = t->dev->queue;
    size_t n = mm_numbers_n(numbers, parts), bytes = mm_numbers_bytes(n, 1), at = 0;
    (void)watched;
    double *host =
        t->staged ? reserve_stage(t, numbers[0].values, bytes) : reserve(t, &t->numbers, bytes);
    for (size_t i = 0; i < parts; at += numbers[i++].n)
        queue->download(t->dev, host + at, numbers[i].values, numbers[i].n * sizeof *host);
    mm_comm_sum_unwatched(t->comm, host, n);
    at = 0;
    for (size_t i = 0; i < parts; at += numbers[i++].n)
        queue->upload_later(t->dev, numbers[i].values, host + at, numbers[i].n * sizeof *host);
}

/* All was done when the bucket was started. */
static void mpi_wait(struct mm_transport *base, mm_ticket ticket) {
    (void)base;
    (void)ticket;
}

static void mpi_free(struct mm_transport *base) {
    struct over_mpi *t = (struct over_mpi *)base;
    mm_free(t->outbox.data);
    mm_free(t->inbox.data);
    mm_free(t->numbers.data);
    if (t->stage.data)
        t->dev->queue->pinned_free(t->dev, t->stage.data);
    mm_free(t->counts);
    mm_free(t->firsts);
    mm_free(t->places);
    mm_free(t);
}

struct mm_transport *mm_transport_mpi(struct mm_comm *comm, struct mm_device *dev) {
    struct over_mpi *t = mm_calloc(1, sizeof *t);
    t->base = (struct mm_transport){
        .sum = mpi_sum,
        .reduce = mpi_reduce,
        .gather = mpi_gather,
        .wait = mpi_wait,
        .free = mpi_free,
    };
    t->comm = comm;
    t->dev = dev;
    t->staged = dev->asynchronous;
    snprintf(t->base.name, sizeof t->base.name, "MPI%s",
             t->staged ? ", staged through host memory" : "");
    t->counts = mm_calloc((size_t)comm->size, sizeof *t->counts);
    t->firsts = mm_calloc((size_t)comm->size, sizeof *t->firsts);
    t->places = mm_calloc((size_t)comm->size, sizeof *t->places);
    return &t->base;
}
