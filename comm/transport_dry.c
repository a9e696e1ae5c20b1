/* transport_dry.c - buckets that are not sent: for plans, on a dry device (kernels/dry.h), whose
 * clock moves on as if they were.
 *
 * A ring of R ranks on N machines takes S bytes, in R - 1 steps of which N - 1 wait for a network:
 *
 *   seconds = start + (R - N)·hop + (N - 1)·hop_across + S·(R - 1)/R / rate
 *   rate    = inside, on one machine; else across - loss·log2(N), or inside where that is less
 *
 * as the model is by which NCCL chooses (NVIDIA/nccl, its file graph/tuning). A bucket counts as
 * one message. Sums are the same ring with the links' figures for small messages. Where the
 * transport works beside the device, a bucket begins when the device has come to it and the one
 * before is done, and the device waits at mm_comm_wait; else at once. What the transports take for
 * messages is counted, too. */
#include <math.h>
#include <stdio.h>

#include "comm/mpi_comm.h"
#include "comm/rooms.h"
#include "kernels/dry.h"

struct dry_transport {
    struct mm_transport base;
    const struct mm_comm *comm;
    bool nccl, staged;                            /* neither: over MPI from host memory */
    size_t outbox, inbox, padded, numbers, stage; /* bytes of each buffer */
    struct mm_clock *clock;
    double free_at; /* s: the network */
    double done[MM_BUCKETS];
    enum mm_spent kind[MM_BUCKETS];
};

static double larger(double a, double b) {
    return a > b ? a : b;
}

static double rate_of(const struct mm_links *l, int machines) {
    double across = l->across - l->loss * log2(machines);
    return machines == 1 || l->inside < across ? l->inside : across;
}

static double ring_seconds(const struct mm_comm *comm, enum mm_among among, struct mm_hops hops,
                           double bytes) {
    const struct mm_links *l = &comm->links;
    bool all = among == MM_AMONG_ALL;
    int machines = all ? comm->machines : 1;
    double R = all ? comm->size : comm->near.size, N = machines, rate = rate_of(l, machines);
    if (R < 2)
        return 0;
    return hops.start + (R - N) * hops.inside + (N - 1) * hops.across +
           (rate > 0 ? bytes * (R - 1) / R / rate : 0);
}

/* -- room -------------------------------------------------------------------------------------- */

/* A buffer of so many bytes is asked for. What it has outgrown goes, but over NCCL, where
 * recordings know it. */
static void grow(struct dry_transport *t, size_t *buffer, size_t bytes) {
    if (bytes <= *buffer)
        return;
    t->base.room_bytes += t->nccl ? bytes : bytes - *buffer;
    *buffer = bytes;
}

static void take_room_of_reductions(struct dry_transport *t, const struct mm_reduction *tensors,
                                    size_t n) {
    int size = t->comm->size, rank = t->comm->rank;
    enum mm_dtype dtype = t->base.reduce_dtype;
    if (t->nccl) {
        grow(t, &t->inbox, mm_nccl_inbox(tensors, n, size, rank));
        grow(t, &t->outbox, mm_nccl_outbox(tensors, n, size, dtype));
    }
    for (size_t i = 0; i < n && !t->nccl && size > 1; i++) {
        grow(t, &t->outbox, mm_mpi_outbox(&tensors[i], size, dtype));
        grow(t, &t->inbox, mm_mpi_inbox(&tensors[i], size, dtype));
        if (t->staged)
            grow(t, &t->stage, mm_stage_of_reduction(&tensors[i], size, rank));
    }
}

static void take_room_of_gathers(struct dry_transport *t, const struct mm_mat *tensors, size_t n,
                                 enum mm_among among) {
    int size = among == MM_AMONG_ALL ? t->comm->size : t->comm->near.size;
    if (t->nccl)
        grow(t, &t->padded, mm_nccl_room(tensors, n, size));
    for (size_t i = 0; i < n && t->staged && t->comm->size > 1; i++)
        grow(t, &t->stage, mm_stage_of_gather(&tensors[i]));
}

static void take_room_of_sum(struct dry_transport *t, size_t n) {
    int size = t->comm->size;
    if (t->nccl)
        grow(t, &t->numbers, mm_numbers_bytes(n, size));
    else if (size > 1)
        grow(t, t->staged ? &t->stage : &t->numbers, mm_numbers_bytes(n, 1));
}

/* -- time -------------------------------------------------------------------------------------- */

/* From the moment that the device comes to it. */
static double begin(struct dry_transport *t, enum mm_among among, struct mm_hops hops,
                    double bytes) {
    double seconds = ring_seconds(t->comm, among, hops, bytes);
    t->free_at = larger(t->free_at, t->clock->now) + seconds;
    t->clock->between_ranks += seconds;
    return t->free_at;
}

static void wait_until(struct dry_transport *t, double done, enum mm_spent on) {
    if (done > t->clock->now)
        mm_clock_spend(t->clock, on, done - t->clock->now);
}

static void start(struct dry_transport *t, mm_ticket ticket, enum mm_among among, double bytes,
                  enum mm_spent on) {
    t->done[ticket] = begin(t, among, t->comm->links.buckets, bytes);
    t->kind[ticket] = on;
    if (!t->comm->links.beside)
        wait_until(t, t->done[ticket], on);
}

static void dry_sum(struct mm_transport *base, const struct mm_numbers *numbers, size_t parts,
                    uint64_t watched) {
    struct dry_transport *t = (struct dry_transport *)base;
    (void)watched;
    size_t n = mm_numbers_n(numbers, parts);
    double all = (double)n * sizeof(double) * t->comm->size;
    take_room_of_sum(t, n);
    wait_until(t, begin(t, MM_AMONG_ALL, t->comm->links.sums, all), MM_ON_SUMS);
}

static void dry_reduce(struct mm_transport *base, mm_ticket ticket,
                       const struct mm_reduction *tensors, size_t n, uint64_t watched) {
    double bytes = 0;
    (void)watched;
    take_room_of_reductions((struct dry_transport *)base, tensors, n);
    for (size_t i = 0; i < n; i++)
        bytes += (double)tensors[i].full.rows * (double)tensors[i].full.cols *
                 (double)mm_dtype_bytes(base->reduce_dtype);
    start((struct dry_transport *)base, ticket, MM_AMONG_ALL, bytes, MM_ON_REDUCTIONS);
}

static void dry_gather(struct mm_transport *base, mm_ticket ticket, const struct mm_mat *tensors,
                       size_t n, enum mm_among among, uint64_t watched) {
    double bytes = 0;
    (void)watched;
    take_room_of_gathers((struct dry_transport *)base, tensors, n, among);
    for (size_t i = 0; i < n; i++)
        bytes += (double)tensors[i].rows * (double)tensors[i].cols *
                 (double)mm_dtype_bytes(tensors[i].dtype);
    start((struct dry_transport *)base, ticket, among, bytes, MM_ON_GATHERS);
}

static void dry_wait(struct mm_transport *base, mm_ticket ticket) {
    struct dry_transport *t = (struct dry_transport *)base;
    wait_until(t, t->done[ticket], t->kind[ticket]);
}

static void dry_free(struct mm_transport *base) {
    mm_free(base);
}

struct mm_transport *mm_transport_dry(struct mm_comm *comm, struct mm_device *dev,
                                      enum mm_transport_choice choice) {
    bool cuda = mm_dry_cuda(dev);
    struct dry_transport *t = mm_calloc(1, sizeof *t);
    t->base = (struct mm_transport){.name = "none: a plan",
                                    .sum = dry_sum,
                                    .reduce = dry_reduce,
                                    .gather = dry_gather,
                                    .wait = dry_wait,
                                    .free = dry_free};
    t->comm = comm;
    t->staged = cuda && choice == MM_TRANSPORT_STAGED;
    t->nccl = cuda && !t->staged && (comm->size > 1 || choice == MM_TRANSPORT_NCCL);
    t->clock = mm_dry_clock(dev);
    return &t->base;
}
