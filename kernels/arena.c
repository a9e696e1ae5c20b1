/* arena.c - see arena.h. */
#include "kernels/arena.h"

#include <stdio.h>
#include <string.h>

#include "kernels/queue.h"

const char *const mm_purpose_names[MM_PURPOSES] = {
    "weights",
    "base (b)",
    "adversary (a)",
    "retain accumulator (m)",
    "forget accumulator (f)",
    "frozen model",
    "gradients",
    "optimizer",
    "activations",
    "scratch",
};

/* For each purpose, what makes its memory smaller. */
static const char *const remedies[MM_PURPOSES] = {
    [MM_FOR_WEIGHTS] = "model.shard: full and more ranks, or model.dtype: bfloat16",
    [MM_FOR_BASE] = "more ranks or model.state_dtype: bfloat16",
    [MM_FOR_ADVERSARY] = "more ranks or model.state_dtype: bfloat16",
    [MM_FOR_RETAIN_ACC] = "more ranks or model.state_dtype: bfloat16",
    [MM_FOR_FORGET_ACC] = "more ranks or model.state_dtype: bfloat16",
    [MM_FOR_FROZEN] = "more ranks or model.dtype: bfloat16",
    [MM_FOR_GRADIENTS] =
        "model.shard: full, or fewer unlearn.target_modules (relearning: relearn.passes 0)",
    [MM_FOR_OPTIMIZER] = "more ranks or model.state_dtype: bfloat16",
    [MM_FOR_ACTIVATIONS] =
        "model.recompute: layer, or a lower data.micro_batch with unlearn.graph fresh or reuse",
    [MM_FOR_SCRATCH] = "a lower data.micro_batch",
};

struct block {
    struct block *next;
    void *data;
};

struct mm_arena {
    struct mm_arena *next; /* of the device's live ones */
    struct mm_device *dev;
    bool dry;
    struct block *blocks;
    size_t bytes[MM_PURPOSES];
    uintptr_t unused; /* of a dry one: the next address */
};

struct mm_arena *mm_arena_create_dry(struct mm_device *dev) {
    struct mm_arena *arena = mm_calloc(1, sizeof *arena);
    arena->dev = dev;
    arena->dry = true;
    arena->unused = 64;
    return arena;
}

struct mm_arena *mm_arena_create(struct mm_device *dev) {
    struct mm_arena *arena = mm_arena_create_dry(dev);
    arena->dry = false;
    arena->next = dev->arenas;
    dev->arenas = arena;
    return arena;
}

void mm_arena_free(struct mm_arena *arena) {
    if (!arena)
        return;
    while (arena->blocks) {
        struct block *block = arena->blocks;
        arena->blocks = block->next;
        arena->dev->queue->free(arena->dev, block->data);
        mm_free(block);
    }
    struct mm_arena **link = &arena->dev->arenas;
    while (*link && *link != arena)
        link = &(*link)->next;
    if (*link)
        *link = arena->next;
    mm_free(arena);
}

/* Fills the bytes of all live arenas by purpose, and returns their sum. */
static size_t live_bytes(const struct mm_device *dev, size_t bytes[MM_PURPOSES]) {
    size_t sum = 0;
    memset(bytes, 0, MM_PURPOSES * sizeof *bytes);
    for (const struct mm_arena *arena = dev->arenas; arena; arena = arena->next)
        for (int p = 0; p < MM_PURPOSES; p++) {
            bytes[p] += arena->bytes[p];
            sum += arena->bytes[p];
        }
    return sum;
}

/* Ends the job. The block that there was no memory for is counted already. */
static void exhausted(const struct mm_device *dev, enum mm_purpose purpose, size_t bytes) {
    size_t held[MM_PURPOSES], used = 0;
    char list[400] = "", text[32];
    size_t now = live_bytes(dev, held);
    const char *limit = dev->arenas_most && now > dev->arenas_most ? dev->arenas_limit : "";
    if (!*limit && !mm_space_is_left())
        limit = "the limit on address space (ulimit -v, or the job's)";
    for (int n = 0; n < MM_PURPOSES; n++) { /* largest first */
        int most = 0;
        for (int p = 1; p < MM_PURPOSES; p++)
            if (held[p] > held[most])
                most = p;
        if (held[most] == 0)
            break;
        int wrote = snprintf(list + used, sizeof list - used, "%s%s %s%s%s%s", n ? ", " : "",
                             mm_purpose_names[most], mm_bytes_text(text, (double)held[most]),
                             n < 2 ? " (try " : "", n < 2 ? remedies[most] : "", n < 2 ? ")" : "");
        used += (size_t)wrote < sizeof list - used ? (size_t)wrote : sizeof list - used - 1;
        held[most] = 0;
    }
    mm_abort(MM_FAILED, __FILE__, __LINE__, "alloc(dev, bytes)",
             "out of memory on %s: no %s more for %s%s%s. It would be %s", dev->name,
             mm_bytes_text(text, (double)bytes), mm_purpose_names[purpose],
             *limit ? " within " : "", limit, list);
}

void *mm_arena_take(struct mm_arena *arena, enum mm_purpose purpose, size_t count, size_t size) {
    size_t bytes, unused[MM_PURPOSES];
    MM_CHECK(mm_mul(count, size, &bytes), "size overflow: %zu x %zu", count, size);
    arena->bytes[purpose] += bytes;
    if (arena->dry) {
        void *address = (void *)arena->unused;
        arena->unused += (bytes + 64) / 64 * 64;
        return address;
    }
    struct block *block = mm_calloc(1, sizeof *block);
    size_t now = live_bytes(arena->dev, unused), most = arena->dev->arenas_most;
    if (!most || now <= most)
        block->data = arena->dev->queue->alloc(arena->dev, bytes);
    if (!block->data)
        exhausted(arena->dev, purpose, bytes);
    block->next = arena->blocks;
    arena->blocks = block;
    if (now > arena->dev->arenas_peak)
        arena->dev->arenas_peak = now;
    return block->data;
}

struct mm_mat mm_arena_mat(struct mm_arena *arena, enum mm_purpose purpose, enum mm_dtype dtype,
                           size_t rows, size_t cols) {
    size_t elements;
    MM_CHECK(mm_mul(rows, cols, &elements), "size overflow: %zu x %zu", rows, cols);
    return mm_mat(mm_arena_take(arena, purpose, elements, mm_dtype_bytes(dtype)), dtype, rows,
                  cols);
}

bool mm_arena_dry(const struct mm_arena *arena) {
    return arena->dry;
}

struct mm_device *mm_arena_device(const struct mm_arena *arena) {
    return arena->dev;
}

size_t mm_arena_bytes(const struct mm_arena *arena, enum mm_purpose purpose) {
    return arena->bytes[purpose];
}

size_t mm_arena_peak_bytes(const struct mm_device *dev) {
    return dev->arenas_peak;
}
