/* batch.c - sends a batch to the device; see batch.h. */
#include "src/parallel/batch.h"

#include <string.h>

#include "kernels/queue.h"

void mm_batch_create(struct mm_batch *b, struct mm_arena *arena, const struct mm_share *share) {
    *b = (struct mm_batch){
        .dev = mm_arena_device(arena), .n = mm_share_tokens(share), .T = share->T};
    b->tokens = mm_arena_take(arena, MM_FOR_SCRATCH, 2 * b->n, sizeof *b->tokens);
    b->targets = b->tokens + b->n;
    for (int i = 0; i < 2 && !mm_arena_dry(arena); i++)
        b->host[i] = b->dev->queue->pinned_alloc(b->dev, 2 * b->n * sizeof *b->host[i]);
}

void mm_batch_free(struct mm_batch *b) {
    for (int i = 0; i < 2; i++)
        if (b->host[i])
            b->dev->queue->pinned_free(b->dev, b->host[i]);
    *b = (struct mm_batch){0};
}

void mm_batch_set(struct mm_batch *b, int slot, const uint32_t *tokens) {
    uint32_t *host = b->host[slot], *next = host + b->n;
    memcpy(host, tokens, b->n * sizeof *host);
    for (size_t i = 0; i < b->n; i++)
        next[i] = (i + 1) % b->T ? tokens[i + 1] : UINT32_MAX;
    b->dev->queue->upload(b->dev, b->tokens, host, 2 * b->n * sizeof *host);
}
