/* batch.c - sends a batch to the device; see batch.h. */
#include "src/parallel/batch.h"

#include <string.h>

#include "kernels/queue.h"

void mm_batch_create(struct mm_batch *b, struct mm_arena *arena, const struct mm_share *share) {
    *b = (struct mm_batch){
        .dev = mm_arena_device(arena), .share = *share, .n = mm_share_tokens(share)};
    b->tokens = mm_arena_take(arena, MM_FOR_SCRATCH, 2 * b->n, sizeof *b->tokens);
    b->targets = b->tokens + b->n;
    b->longest = mm_calloc(share->micros_n, sizeof *b->longest);
    for (int i = 0; i < 2 && !mm_arena_dry(arena); i++)
        b->host[i] = b->dev->queue->pinned_alloc(b->dev, 2 * b->n * sizeof *b->host[i]);
}

void mm_batch_free(struct mm_batch *b) {
    for (int i = 0; i < 2; i++)
        if (b->host[i])
            b->dev->queue->pinned_free(b->dev, b->host[i]);
    mm_free(b->longest);
    *b = (struct mm_batch){0};
}

/* Sequence s, as long as the longest beside it. */
static void put(const struct mm_sequences *own, size_t s, size_t longest, uint32_t *tokens,
                uint32_t *targets) {
    const uint32_t *from = own->tokens + s * own->T;
    size_t length = own->lengths[s], answer = own->answers[s];
    memcpy(tokens, from, longest * sizeof *tokens);
    for (size_t t = 0; t < longest; t++)
        targets[t] = t >= length                         ? MM_NO_TOKEN
                     : t + 1 >= answer && t + 1 < length ? from[t + 1]
                                                         : MM_NO_TARGET;
}

void mm_batch_pretend(struct mm_batch *b) {
    double B = (double)b->share.batch_size, T = (double)b->share.T;
    for (size_t i = 0; i < b->share.micros_n; i++)
        b->longest[i] = b->share.T;
    b->counts = (struct mm_counts){.tokens = B * T, .targets = B * (T - 1), .sequences = B};
    b->whole = true;
}

void mm_batch_set(struct mm_batch *b, int slot, const struct mm_sequences *own) {
    uint32_t *host = b->host[slot];
    MM_CHECK(own->n == b->share.n && own->T == b->share.T, "%zu sequences of %zu", own->n, own->T);
    b->counts = own->counts;
    b->whole = own->counts.targets == own->counts.sequences * (double)(own->T - 1);
    for (size_t i = 0; i < b->share.micros_n; i++) {
        size_t first = i * b->share.micro_batch, end = first + mm_share_count(&b->share, i);
        size_t at = mm_share_row(&b->share, i), longest = 0;
        for (size_t s = first; s < end; s++)
            longest = own->lengths[s] > longest ? own->lengths[s] : longest;
        b->longest[i] = longest;
        for (size_t s = first; s < end; s++, at += longest)
            put(own, s, longest, host + at, host + b->n + at);
    }
    b->dev->queue->upload_later(b->dev, b->tokens, host, 2 * b->n * sizeof *host);
}
