/* queue.c - see queue.h. */
#include "kernels/queue.h"

void mm_download_floats(struct mm_device *dev, float *floats, enum mm_dtype dtype, const void *src,
                        size_t n) {
    size_t bytes = mm_dtype_bytes(dtype);
    void *stored = dtype == MM_F32 ? floats : mm_calloc(n, bytes);
    dev->queue->download(dev, stored, src, n * bytes);
    if (stored == floats)
        return;
    mm_convert(floats, MM_F32, stored, dtype, n);
    mm_free(stored);
}
