/* device.h - a device: one that computes, with memory of its own, and the context that its backend
 * keeps.
 *
 * What a device is asked to do stands in two tables, which its backend fills: kernels/queue.h has
 * its memory and the order of its work, kernels/ops.h the arithmetic. What is true of the device
 * whichever table is called stands here. */
#ifndef MM_DEVICE_H
#define MM_DEVICE_H

#include "src/base/base.h"

struct mm_device {
    const char *name;  /* "cpu ..." | "cuda ..."; the backend's own */
    bool asynchronous; /* what it is asked returns before it is done, and is done in order */
    bool dry;          /* it does nothing, and its memory must not be touched: kernels/dry.h. One of
                          the CPU does so in operations that take room, which it counts */
    const struct mm_queue *queue;
    const struct mm_ops *ops;
    void *context;           /* the backend's own */
    bool exact;              /* reduction: exact; the CPU's matrix products are then cut into pieces
                                that depend on nothing but the shape */
    size_t free_bytes;       /* a GPU's, when it was opened; 0: not known */
    size_t own_bytes;        /* of its memory that the backend has for itself, beside the arenas */
    struct mm_arena *arenas; /* live ones, and the most bytes they held together: arena.c's */
    size_t arenas_peak;
    size_t arenas_most; /* bytes that they may hold together, and who says so; 0: no one does */
    char arenas_limit[128];
    void (*close)(struct mm_device *dev); /* frees the device and its context: mm_device_free */
};

/* Device memory that a CUDA device takes for itself: cuBLASLt's workspace, as much as its kernels
 * for NVIDIA's newest GPUs ask for. */
#define MM_CUDA_WORKSPACE_BYTES ((size_t)32 << 20)

/* Elements of logits that are best worked on at once (struct mm_ops): on a CPU they stay near the
 * processor; on a GPU there are rows enough that the head's weights are read seldom. */
#define MM_CPU_CHUNK  ((size_t)16 << 20)
#define MM_CUDA_CHUNK ((size_t)256 << 20)

/* The best CPU table of this processor. The caller frees with mm_device_free. Local. */
struct mm_device *mm_device_create_cpu(void);
/* Whether this processor multiplies bfloat16; elsewhere products of it are computed in float32. */
bool mm_cpu_multiplies_bf16(void);
/* GPU `index` of those visible to this process; NULL, and the text says what is missing, where
 * there is no driver, no such GPU, or no CUDA in this build. The caller frees with mm_device_free.
 * Local. */
struct mm_device *mm_device_create_cuda(int index, struct mm_error *err);
/* GPUs visible to this process; 0 without a driver or without CUDA. */
int mm_cuda_device_count(void);
/* "runtime 13.0, driver for 13.0, 4 GPUs", or that this build has none; the caller frees with
 * mm_free. Local. */
char *mm_cuda_text(void);
void mm_device_free(struct mm_device *dev);

/* Threads the CPU backend uses: as OpenMP has it, or from now on n. Local. */
int mm_cpu_threads(void);
void mm_cpu_set_threads(int n);

#endif
