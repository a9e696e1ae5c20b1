/* late_transport.h - a transport that delivers at the wait and not before, as hardware may: who
 * reads too early, or changes what is under way, gets other numbers. It sends over another. */
#ifndef MM_TEST_LATE_TRANSPORT_H
#define MM_TEST_LATE_TRANSPORT_H

#include <string.h>

#include "comm/mpi_comm.h"

struct late_bucket {
    struct mm_reduction *reductions; /* NULL: not a reduction */
    struct mm_mat *gathers;          /* likewise */
    size_t n;
    enum mm_among among;
};

struct late_transport {
    struct mm_transport base, *over;
    struct late_bucket buckets[MM_BUCKETS];
};

static inline void *late_copy(const void *from, size_t n, size_t bytes) {
    return memcpy(mm_calloc(n, bytes), from, n * bytes);
}

static inline void late_sum(struct mm_transport *self, const struct mm_numbers *numbers,
                            size_t parts, uint64_t watched) {
    struct late_transport *t = (struct late_transport *)self;
    t->over->sum(t->over, numbers, parts, watched);
}

static inline void late_reduce(struct mm_transport *self, mm_ticket ticket,
                               const struct mm_reduction *tensors, size_t n, uint64_t watched) {
    struct late_transport *t = (struct late_transport *)self;
    (void)watched;
    t->buckets[ticket] =
        (struct late_bucket){.reductions = late_copy(tensors, n, sizeof *tensors), .n = n};
}

static inline void late_gather(struct mm_transport *self, mm_ticket ticket,
                               const struct mm_mat *tensors, size_t n, enum mm_among among,
                               uint64_t watched) {
    struct late_transport *t = (struct late_transport *)self;
    (void)watched;
    t->buckets[ticket] = (struct late_bucket){
        .gathers = late_copy(tensors, n, sizeof *tensors), .n = n, .among = among};
}

static inline void late_wait(struct mm_transport *self, mm_ticket ticket) {
    struct late_transport *t = (struct late_transport *)self;
    struct late_bucket *b = &t->buckets[ticket];
    t->over->reduce_dtype = t->base.reduce_dtype;
    if (b->reductions)
        t->over->reduce(t->over, ticket, b->reductions, b->n, 0);
    else
        t->over->gather(t->over, ticket, b->gathers, b->n, b->among, 0);
    t->over->wait(t->over, ticket);
    mm_free(b->reductions);
    mm_free(b->gathers);
    *b = (struct late_bucket){0};
}

static inline void late_free(struct mm_transport *self) {
    struct late_transport *t = (struct late_transport *)self;
    t->over->free(t->over);
    mm_free(t);
}

/* After mm_comm_attach. */
static inline void late_transport_attach(struct mm_comm *on) {
    struct late_transport *t = mm_calloc(1, sizeof *t);
    t->over = on->transport;
    t->base = (struct mm_transport){.reduce_dtype = t->over->reduce_dtype,
                                    .sum = late_sum,
                                    .reduce = late_reduce,
                                    .gather = late_gather,
                                    .wait = late_wait,
                                    .free = late_free};
    on->transport = &t->base;
}

#endif
