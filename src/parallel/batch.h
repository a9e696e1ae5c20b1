/* batch.h - this rank's sequences of a global batch, in device memory. All functions are local. */
#ifndef MM_BATCH_H
#define MM_BATCH_H

#include "kernels/arena.h"
#include "src/parallel/share.h"

/* Tokens, and each position's next token (UINT32_MAX: the last of a sequence has none). There are
 * pinned copies of two batches, so that the host can prepare one while the device works on the
 * other. */
struct mm_batch {
    struct mm_device *dev;
    size_t n, T;                /* tokens; of a sequence */
    uint32_t *tokens, *targets; /* [n], device, one block */
    uint32_t *host[2];          /* [2n] */
};

/* The caller frees with mm_batch_free, before the arena. */
void mm_batch_create(struct mm_batch *batch, struct mm_arena *arena, const struct mm_share *share);
void mm_batch_free(struct mm_batch *batch);
/* Sends tokens [n] (any host memory) by way of host[slot], whose last use the device must be done
 * with. */
void mm_batch_set(struct mm_batch *batch, int slot, const uint32_t *tokens);

#endif
