/* transport.c - the section of comm.h on the memory of a device: which transport it is, the
 * tickets, and the transport of one rank. */
#include <stdio.h>

#include "comm/mpi_comm.h"
#include "kernels/ops.h"
#include "kernels/queue.h"

/* -- one rank: nothing to send ----------------------------------------------------------------- */

struct alone {
    struct mm_transport base;
    struct mm_device *dev;
};

static void alone_sum(struct mm_transport *base, const struct mm_numbers *numbers, size_t parts,
                      uint64_t watched) {
    (void)base;
    (void)numbers;
    (void)parts;
    (void)watched;
}

static void alone_reduce(struct mm_transport *base, mm_ticket ticket,
                         const struct mm_reduction *tensors, size_t n, uint64_t watched) {
    struct mm_device *dev = ((struct alone *)base)->dev;
    (void)ticket;
    (void)watched;
    for (size_t i = 0; i < n; i++) {
        struct mm_mat full = mm_mat_rows(tensors[i].full, 0, tensors[i].rows);
        struct mm_mat own = mm_mat(tensors[i].own, MM_F32, full.rows, full.cols);
        if (tensors[i].add)
            dev->ops->add(dev, own, own, full);
        else if (own.data != full.data)
            dev->queue->copy(dev, own.data, full.data, full.rows * full.cols * sizeof(float));
    }
}

static void alone_gather(struct mm_transport *base, mm_ticket ticket, const struct mm_mat *tensors,
                         size_t n, enum mm_among among, uint64_t watched) {
    (void)base;
    (void)among;
    (void)ticket;
    (void)tensors;
    (void)n;
    (void)watched;
}

static void alone_wait(struct mm_transport *base, mm_ticket ticket) {
    (void)base;
    (void)ticket;
}

static void alone_free(struct mm_transport *base) {
    mm_free(base);
}

static struct mm_transport *transport_alone(struct mm_device *dev) {
    struct alone *t = mm_calloc(1, sizeof *t);
    t->base = (struct mm_transport){
        .name = "one rank",
        .records = true,
        .sum = alone_sum,
        .reduce = alone_reduce,
        .gather = alone_gather,
        .wait = alone_wait,
        .free = alone_free,
    };
    t->dev = dev;
    return &t->base;
}

/* -- the choice -------------------------------------------------------------------------------- */

static struct mm_transport *choose(struct mm_comm *comm, struct mm_device *dev,
                                   enum mm_transport_choice transport, struct mm_error *err) {
    struct mm_transport *chosen = NULL;
    bool gpu = dev->asynchronous;
    if (dev->dry)
        return mm_transport_dry(comm, dev, transport);
    if (transport == MM_TRANSPORT_NCCL && !gpu) {
        mm_fail(err, MM_BAD_INPUT, "NCCL is a transport between GPUs, and the device is %s",
                dev->name);
        return NULL;
    }
    if (comm->size == 1 && transport != MM_TRANSPORT_NCCL)
        return transport_alone(dev);
    if (gpu && transport != MM_TRANSPORT_STAGED) {
        chosen = mm_transport_nccl(comm, dev, err);
        if (chosen || transport == MM_TRANSPORT_NCCL)
            return chosen;
        mm_log0(MM_LOG_WARN, "GPUs exchange data over MPI, through host memory, not over NCCL: %s",
                err->text);
    }
    return mm_transport_mpi(comm, dev);
}

static struct mm_transport *attached(const struct mm_comm *comm) {
    MM_CHECK(comm->transport, "no device is attached");
    return comm->transport;
}

enum mm_status mm_comm_attach(struct mm_comm *comm, struct mm_device *dev,
                              enum mm_transport_choice transport, enum mm_dtype reduce_dtype,
                              struct mm_error *err) {
    MM_CHECK(!comm->transport, "attached twice");
    comm->transport = choose(comm, dev, transport, err);
    if (!comm->transport)
        return MM_BAD_INPUT;
    mm_comm_reduce_as(comm, reduce_dtype);
    mm_watch_attach(comm->watch, dev, comm->transport->work);
    return MM_OK;
}

const char *mm_comm_transport_name(const struct mm_comm *comm) {
    return attached(comm)->name;
}

void mm_comm_reduce_as(struct mm_comm *comm, enum mm_dtype reduce_dtype) {
    MM_CHECK(reduce_dtype == MM_F32 || reduce_dtype == MM_BF16, "reductions as %s",
             mm_dtype_name(reduce_dtype));
    attached(comm)->reduce_dtype = reduce_dtype;
}

size_t mm_comm_room_bytes(const struct mm_comm *comm) {
    return attached(comm)->room_bytes;
}

bool mm_comm_records(const struct mm_comm *comm) {
    return attached(comm)->records;
}

/* -- the functions ----------------------------------------------------------------------------- */

static uint64_t enter(struct mm_comm *comm, enum mm_watched kind, size_t bytes, uint64_t shape) {
    return mm_comm_enter(comm,
                         (struct mm_call){.kind = kind,
                                          .over = attached(comm)->work ? MM_OVER_NCCL : MM_OVER_MPI,
                                          .bytes = bytes,
                                          .shape = shape});
}

static mm_ticket take_ticket(struct mm_comm *comm) {
    mm_ticket ticket = 0;
    while (ticket < MM_BUCKETS && comm->started >> ticket & 1)
        ticket++;
    MM_CHECK(ticket < MM_BUCKETS, "more than %d buckets were not waited for", MM_BUCKETS);
    comm->started |= (uint64_t)1 << ticket;
    return ticket;
}

void mm_comm_sum_later(struct mm_comm *comm, double *values, size_t n) {
    if (comm->size == 1)
        return;
    MM_CHECK(comm->waiting_n < MM_NUMBERS, "more numbers than a sum has room for");
    comm->waiting[comm->waiting_n++] = (struct mm_numbers){values, n};
}

void mm_comm_sum_waiting(struct mm_comm *comm) {
    struct mm_transport *transport = attached(comm);
    size_t parts = comm->waiting_n;
    if (!parts)
        return;
    uint64_t watched =
        enter(comm, MM_WATCHED_SUM, mm_numbers_n(comm->waiting, parts) * sizeof(double), 0);
    transport->sum(transport, comm->waiting, parts, watched);
    comm->waiting_n = 0;
    mm_watch_leave(comm->watch);
}

void mm_comm_sum_device(struct mm_comm *comm, double *values, size_t n) {
    mm_comm_sum_later(comm, values, n);
    mm_comm_sum_waiting(comm);
}

mm_ticket mm_comm_reduce_rows(struct mm_comm *comm, const struct mm_reduction *tensors, size_t n) {
    struct mm_transport *transport = attached(comm);
    mm_ticket ticket = take_ticket(comm);
    size_t bytes = 0;
    uint64_t shape = n;
    for (size_t i = 0; i < n; i++) {
        struct mm_mat full = tensors[i].full;
        size_t padded = mm_rows_block(tensors[i].rows, comm->size) * (size_t)comm->size;
        MM_CHECK(full.dtype == MM_F32 && full.ld == full.cols && full.rows == padded,
                 "a reduction of %zu rows with a padded matrix of %zu", tensors[i].rows, full.rows);
        bytes += full.rows * full.cols * mm_dtype_bytes(transport->reduce_dtype);
        shape = mm_shape_add(shape, tensors[i].rows, full.cols,
                             mm_dtype_bytes(transport->reduce_dtype));
    }
    uint64_t watched = enter(comm, MM_WATCHED_REDUCTION, bytes, shape);
    transport->reduce(transport, ticket, tensors, n, watched);
    mm_watch_leave(comm->watch);
    return ticket;
}

static mm_ticket gather_among(struct mm_comm *comm, const struct mm_mat *tensors, size_t n,
                              enum mm_among among) {
    struct mm_transport *transport = attached(comm);
    mm_ticket ticket = take_ticket(comm);
    size_t bytes = 0;
    uint64_t shape = n;
    for (size_t i = 0; i < n; i++) {
        MM_CHECK(tensors[i].ld == tensors[i].cols, "a matrix that isn't contiguous");
        bytes += tensors[i].rows * tensors[i].cols * mm_dtype_bytes(tensors[i].dtype);
        shape =
            mm_shape_add(shape, tensors[i].rows, tensors[i].cols, mm_dtype_bytes(tensors[i].dtype));
    }
    enum mm_watched kind = among == MM_AMONG_ALL ? MM_WATCHED_GATHER : MM_WATCHED_NEAR_GATHER;
    uint64_t watched = enter(comm, kind, bytes, shape);
    transport->gather(transport, ticket, tensors, n, among, watched);
    mm_watch_leave(comm->watch);
    return ticket;
}

mm_ticket mm_comm_gather_rows(struct mm_comm *comm, const struct mm_mat *tensors, size_t n) {
    return gather_among(comm, tensors, n, MM_AMONG_ALL);
}

mm_ticket mm_comm_gather_near(struct mm_comm *comm, const struct mm_mat *tensors, size_t n) {
    return gather_among(comm, tensors, n, MM_AMONG_NEAR);
}

void mm_comm_near_begin(struct mm_comm *comm) {
    struct mm_transport *transport = attached(comm);
    if (transport->near_begin)
        transport->near_begin(transport);
}

void mm_comm_wait(struct mm_comm *comm, mm_ticket ticket) {
    struct mm_transport *transport = attached(comm);
    MM_CHECK(ticket >= 0 && ticket < MM_BUCKETS && comm->started >> ticket & 1,
             "no bucket of ticket %d was started", ticket);
    transport->wait(transport, ticket);
    comm->started &= ~((uint64_t)1 << ticket);
}
