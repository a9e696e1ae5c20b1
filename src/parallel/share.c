/* share.c - the arithmetic of shares, leaves and micro-batches; see share.h. */
#include "src/parallel/share.h"

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

size_t mm_share_first(const struct mm_share *s, size_t i) {
    size_t R = s->ranks, r = s->rank;
    if (s->leaves)
        return (i * R + r) * s->micro_batch;
    return r * (s->batch_size / R) + smaller(r, s->batch_size % R) + i * s->micro_batch;
}

size_t mm_share_count(const struct mm_share *s, size_t i) {
    if (s->leaves)
        return smaller(s->micro_batch, s->batch_size - mm_share_first(s, i));
    return smaller(s->micro_batch, s->n - i * s->micro_batch);
}

size_t mm_share_leaves(const struct mm_share *s, size_t i) {
    return smaller(s->ranks, mm_leaves(s->batch_size, s->micro_batch) - i * s->ranks);
}

static void find_leaves(struct mm_share *s, size_t micro_batch) {
    size_t R = s->ranks, r = s->rank;
    s->micro_batch = smaller(micro_batch, s->batch_size);
    size_t leaves = mm_leaves(s->batch_size, s->micro_batch);
    s->steps = (leaves + R - 1) / R;
    s->micros_n = r < leaves ? (leaves - r + R - 1) / R : 0;
    for (size_t i = 0; i < s->micros_n; i++)
        s->n += mm_share_count(s, i);
}

static void find_share(struct mm_share *s, size_t micro_batch) {
    size_t most = (s->batch_size + s->ranks - 1) / s->ranks;
    s->n = s->batch_size / s->ranks + (s->rank < s->batch_size % s->ranks);
    s->micro_batch = smaller(micro_batch, s->n ? s->n : 1);
    s->micros_n = mm_leaves(s->n, s->micro_batch);
    s->steps = mm_leaves(most, smaller(micro_batch, most));
}

struct mm_share mm_share_of(const struct mm_comm *comm, bool leaves, struct mm_batch_size size) {
    struct mm_share s = {.ranks = (size_t)mm_comm_size(comm),
                         .rank = (size_t)mm_comm_rank(comm),
                         .leaves = leaves,
                         .batch_size = size.sequences,
                         .T = size.T};
    if (leaves)
        find_leaves(&s, size.micro);
    else
        find_share(&s, size.micro);
    return s;
}

void mm_share_read(const struct mm_share *s, const struct mm_dataset *set, size_t index,
                   struct mm_sequences *own) {
    for (size_t i = 0; i < s->micros_n; i++)
        mm_dataset_batch(set, index, s->batch_size, mm_share_first(s, i), mm_share_count(s, i), own,
                         i * s->micro_batch);
    own->counts = mm_dataset_counts(set, index, s->batch_size);
}

void mm_share_pick(const struct mm_share *s, const struct mm_sequences *batch,
                   struct mm_sequences *own) {
    for (size_t i = 0; i < s->micros_n; i++)
        mm_sequences_copy(own, i * s->micro_batch, batch, mm_share_first(s, i),
                          mm_share_count(s, i));
    own->counts = batch->counts;
}
