/* arena.h - device memory by purpose and lifetime. It is taken at start, counted, and freed
 * together.
 *
 * Reason: `plan` must say what a run will take, and the two must not disagree. So the same code
 * sets up both. A dry arena takes no memory; it counts, and returns addresses, each block's its
 * own, that must not be used. All functions are local. */
#ifndef MM_ARENA_H
#define MM_ARENA_H

#include "kernels/device.h"
#include "kernels/tensor.h"

enum mm_purpose {
    MM_FOR_WEIGHTS, /* working weights */
    MM_FOR_BASE,
    MM_FOR_ADVERSARY,
    MM_FOR_RETAIN_ACC,
    MM_FOR_FORGET_ACC,
    MM_FOR_FROZEN,    /* W as the model came, and hidden states of that model */
    MM_FOR_GRADIENTS, /* whole gradients of this rank's sequences, and the reduced shard */
    MM_FOR_OPTIMIZER, /* float32 masters and moments: relearning, pretraining */
    MM_FOR_ACTIVATIONS,
    MM_FOR_SCRATCH,
    MM_PURPOSES,
};
extern const char *const mm_purpose_names[MM_PURPOSES];

struct mm_arena;

/* The caller frees with mm_arena_free, which frees every block. dev is borrowed. */
struct mm_arena *mm_arena_create(struct mm_device *dev);
/* The same of an arena that only counts. */
struct mm_arena *mm_arena_create_dry(struct mm_device *dev);
void mm_arena_free(struct mm_arena *arena);

/* Returns `count` zeroed elements of `size` bytes. If the device does not have that much, or may
 * not give it (arenas_most), the job ends with a message that lists what its arenas hold, largest
 * first, and says what makes the two largest smaller. */
void *mm_arena_take(struct mm_arena *arena, enum mm_purpose purpose, size_t count, size_t size);
/* A matrix in memory of its own. */
struct mm_mat mm_arena_mat(struct mm_arena *arena, enum mm_purpose purpose, enum mm_dtype dtype,
                           size_t rows, size_t cols);

bool mm_arena_dry(const struct mm_arena *arena);
struct mm_device *mm_arena_device(const struct mm_arena *arena);
size_t mm_arena_bytes(const struct mm_arena *arena, enum mm_purpose purpose);
/* The most bytes that the device's arenas have held at one time. Dry ones do not count. */
size_t mm_arena_peak_bytes(const struct mm_device *dev);

#endif
