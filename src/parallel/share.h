/* share.h - which sequences of a global batch are whose, and in which micro-batches.
 *
 * Without leaves a rank's sequences are consecutive, and the first ranks have one more where they
 * don't divide. With leaves (reduction: exact) the batch is cut into blocks of micro_batch
 * sequences whatever the number of ranks, the last block of a batch being the rest; rank r of R has
 * the leaves r, r + R, r + 2R, ... Every rank puts one leaf through the model in a step. The cost:
 * ranks that have no leaf in the last step wait for the others. Ranks beyond the batch have none at
 * all; they hold their rows of the state and take part in what the others send. All functions are
 * local. */
#ifndef MM_SHARE_H
#define MM_SHARE_H

#include "comm/comm.h"
#include "io/dataset.h"
#include "src/config/config.h"

/* Of a global batch. */
struct mm_batch_size {
    size_t sequences;
    size_t micro; /* sequences that a rank puts through the model at once, at most */
    size_t T;     /* tokens of a sequence */
};
static inline struct mm_batch_size mm_batch_size_of(const struct mm_config *config) {
    return (struct mm_batch_size){config->data.batch_size, config->data.micro_batch,
                                  config->data.context_length};
}

struct mm_share {
    size_t ranks, rank;
    bool leaves;
    size_t batch_size, T; /* of the global batch: sequences, and tokens of each */
    size_t n;             /* this rank's sequences of it */
    size_t micro_batch;   /* sequences at once, at most */
    size_t micros_n;      /* micro-batches of this rank's share */
    size_t steps;         /* micro-batches of the rank that has most */
};

/* Leaves of a batch: so many ranks, at most, have one. */
static inline size_t mm_leaves(size_t batch_size, size_t micro_batch) {
    return (batch_size + micro_batch - 1) / micro_batch;
}

struct mm_share mm_share_of(const struct mm_comm *comm, bool leaves, struct mm_batch_size size);

/* The sequence of the global batch that micro-batch i begins with, and its sequences. */
size_t mm_share_first(const struct mm_share *share, size_t i);
size_t mm_share_count(const struct mm_share *share, size_t i);
/* Leaves of step i: so many ranks have one. */
size_t mm_share_leaves(const struct mm_share *share, size_t i);
/* The token of this rank's share that micro-batch i begins with. */
static inline size_t mm_share_row(const struct mm_share *share, size_t i) {
    return i * share->micro_batch * share->T;
}
/* Tokens of this rank's share. */
static inline size_t mm_share_tokens(const struct mm_share *share) {
    return share->n * share->T;
}

/* own [n] (=) this rank's sequences of batch `index` of a file. */
void mm_share_read(const struct mm_share *share, const struct mm_dataset *set, size_t index,
                   struct mm_sequences *own);
/* The same of a whole batch [batch_size] in memory. */
void mm_share_pick(const struct mm_share *share, const struct mm_sequences *batch,
                   struct mm_sequences *own);
/* Room for this rank's sequences; the caller frees with mm_sequences_free. */
static inline struct mm_sequences mm_share_sequences(const struct mm_share *share) {
    return mm_sequences_create(share->n, share->T);
}

#endif
