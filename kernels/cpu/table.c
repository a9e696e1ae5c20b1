/* table.c - the CPU backend's tables: memory, and the operations of the other files. */
#include "kernels/cpu/cpu.h"
#include "kernels/onednn.h"
#include "kernels/queue.h"

#include <stdlib.h>

#define ALIGNMENT ((size_t)64)

struct cpu_context {
    void *scratch;
    size_t scratch_bytes;
    struct mm_onednn *onednn;
};

static void *cpu_alloc(struct mm_device *dev, size_t bytes) {
    (void)dev;
    size_t rounded = (bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
    MM_CHECK(rounded > bytes, "size overflow");
    void *block = aligned_alloc(ALIGNMENT, rounded);
    if (block && mm_space_is_left())
        return memset(block, 0, rounded);
    free(block);
    return NULL;
}

/* Memory that no arena counts. */
static void *must_alloc(struct mm_device *dev, size_t bytes) {
    void *block = cpu_alloc(dev, bytes);
    MM_CHECK(block, "out of memory: %zu bytes", bytes);
    return block;
}

static void cpu_free(struct mm_device *dev, void *block) {
    (void)dev;
    free(block);
}

static void cpu_zero(struct mm_device *dev, void *block, size_t bytes) {
    (void)dev;
    memset(block, 0, bytes);
}

static void cpu_copy(struct mm_device *dev, void *dst, const void *src, size_t bytes) {
    (void)dev;
    const size_t step = (size_t)1 << 20;
#pragma omp parallel for schedule(static) if (bytes > step)
    for (size_t first = 0; first < bytes; first += step)
        memcpy((char *)dst + first, (const char *)src + first,
               bytes - first < step ? bytes - first : step);
}

void CPU_NAME(cpu_convert)(struct mm_device *dev, void *dst, enum mm_dtype dst_dtype,
                           const void *src, enum mm_dtype src_dtype, size_t n) {
    (void)dev;
    size_t dst_bytes = mm_dtype_bytes(dst_dtype), src_bytes = mm_dtype_bytes(src_dtype);
#pragma omp parallel for schedule(static)
    for (size_t first = 0; first < n; first += CHUNK) {
        size_t count = n - first < CHUNK ? n - first : CHUNK;
        void *to = (char *)dst + first * dst_bytes;
        const void *from = (const char *)src + first * src_bytes;
        if (dst_dtype == MM_BF16 && src_dtype == MM_F32)
            bf16_from_floats(to, from, count);
        else if (dst_dtype == MM_F32 && src_dtype == MM_BF16)
            floats_from_bf16(to, from, count);
        else
            mm_convert(to, dst_dtype, from, src_dtype, count);
    }
}

/* The CPU does everything at once, so there is nothing to mark or to wait for. */
static void nothing_to_do(struct mm_device *dev, int slot) {
    (void)dev;
    (void)slot;
}

static bool records_nothing(struct mm_device *dev) {
    (void)dev;
    return false;
}

void *CPU_NAME(cpu_scratch)(struct mm_device *dev, size_t bytes) {
    struct cpu_context *context = dev->context;
    if (bytes > context->scratch_bytes) {
        free(context->scratch);
        context->scratch = dev->dry ? NULL : must_alloc(dev, bytes);
        dev->own_bytes += bytes - context->scratch_bytes;
        context->scratch_bytes = bytes;
    }
    return context->scratch;
}

struct mm_onednn *CPU_NAME(cpu_onednn)(struct mm_device *dev) {
    struct cpu_context *context = dev->context;
    return context->onednn;
}

static void cpu_hold(struct mm_device *dev, struct mm_mat w) {
    if (w.dtype == MM_BF16)
        mm_onednn_hold(CPU_NAME(cpu_onednn)(dev), w);
}

static void cpu_let_go(struct mm_device *dev) {
    mm_onednn_let_go(CPU_NAME(cpu_onednn)(dev));
}

static void device_free(struct mm_device *dev) {
    struct cpu_context *context = dev->context;
    mm_onednn_free(context->onednn);
    free(context->scratch);
    mm_free(context);
    mm_free(dev);
}

#define CPU_ROW(operation) .operation = CPU_NAME(cpu_##operation),
#define CPU_TEXT2(x)       #x
#define CPU_TEXT(x)        CPU_TEXT2(x)

static const struct mm_queue queue = {
    .alloc = cpu_alloc,
    .free = cpu_free,
    .zero = cpu_zero,
    .copy = cpu_copy,
    .upload = cpu_copy,
    .download = cpu_copy,
    .pinned_alloc = must_alloc,
    .pinned_free = cpu_free,
    .upload_later = cpu_copy,
    .download_later = cpu_copy,
    .mark = nothing_to_do,
    .wait = nothing_to_do,
    .record = records_nothing,
};

static const struct mm_ops ops = {.chunk = MM_CPU_CHUNK,
                                  .convert = CPU_NAME(cpu_convert),
                                  .hold = cpu_hold,
                                  .let_go = cpu_let_go,
                                  MM_OPERATIONS(CPU_ROW)};

struct mm_device *CPU_NAME(mm_cpu_device)(void);
struct mm_device *CPU_NAME(mm_cpu_device)(void) {
    struct mm_device *dev = mm_calloc(1, sizeof *dev);
    dev->name = "cpu " CPU_TEXT(CPU_SUFFIX);
    dev->queue = &queue;
    dev->ops = &ops;
    dev->close = device_free;
    struct cpu_context *context = mm_calloc(1, sizeof *context);
    context->onednn = mm_onednn_create(dev, mm_onednn_has_tiles());
    dev->context = context;
    return dev;
}
