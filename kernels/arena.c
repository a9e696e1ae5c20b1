/* arena.c - see arena.h. */
#include "kernels/arena.h"

const char *const mm_purpose_names[MM_PURPOSES] = {
    "weights",   "base (b)",  "adversary (a)", "retain accumulator (m)",
    "gradients", "optimizer", "activations",   "scratch",
};

struct block {
    struct block *next;
    void *data;
};

struct mm_arena {
    struct mm_device *dev;
    bool dry;
    struct block *blocks;
    size_t bytes[MM_PURPOSES];
};

struct mm_arena *mm_arena_create(struct mm_device *dev, bool dry) {
    struct mm_arena *arena = mm_calloc(1, sizeof *arena);
    arena->dev = dev;
    arena->dry = dry;
    return arena;
}

void mm_arena_free(struct mm_arena *arena) {
    if (!arena)
        return;
    while (arena->blocks) {
        struct block *block = arena->blocks;
        arena->blocks = block->next;
        arena->dev->ops->free(arena->dev, block->data);
        mm_free(block);
    }
    mm_free(arena);
}

void *mm_arena_take(struct mm_arena *arena, enum mm_purpose purpose, size_t count, size_t size) {
    size_t bytes;
    MM_CHECK(mm_mul(count, size, &bytes), "size overflow: %zu x %zu", count, size);
    arena->bytes[purpose] += bytes;
    if (arena->dry)
        return (void *)(uintptr_t)64;
    struct block *block = mm_calloc(1, sizeof *block);
    block->data = arena->dev->ops->alloc(arena->dev, bytes);
    block->next = arena->blocks;
    arena->blocks = block;
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
