/* batch.h - this rank's sequences of a global batch, in device memory. All functions are local. */
#ifndef MM_BATCH_H
#define MM_BATCH_H

#include "kernels/arena.h"
#include "kernels/ops.h"
#include "src/parallel/share.h"

/* Tokens, and what each position has for a next token (MM_NO_TARGET and MM_NO_TOKEN included). A
 * micro-batch begins where mm_share_row says and holds sequences as long as its longest: padding
 * that no sequence of it needs is not worked on, and the same for any room T. There are pinned
 * copies of two batches, so that the host can prepare one while the device works on the other. */
struct mm_batch {
    struct mm_device *dev;
    struct mm_share share;
    size_t n;                   /* tokens that there is room for */
    uint32_t *tokens, *targets; /* [n], device, one block */
    uint32_t *host[2];          /* [2n] */
    size_t *longest;            /* [micro-batches] tokens that each of its sequences takes */
    bool whole;                 /* all are share.T long and learnt: batches have one shape */
    struct mm_counts counts;
};

/* The caller frees with mm_batch_free, before the arena. */
void mm_batch_create(struct mm_batch *batch, struct mm_arena *arena, const struct mm_share *share);
void mm_batch_free(struct mm_batch *batch);
/* Sends this rank's sequences (any host memory) by way of host[slot], whose last use the device
 * must be done with. */
void mm_batch_set(struct mm_batch *batch, int slot, const struct mm_sequences *own);
/* For a plan: the batch is one of sequences of T tokens, all to be learnt. */
void mm_batch_pretend(struct mm_batch *batch);

#endif
