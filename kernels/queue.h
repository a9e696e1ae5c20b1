/* queue.h - the memory of a device, and the order of its work, as one table a backend.
 *
 * A device does what it is asked in the order of the calls, those of kernels/ops.h among them. If
 * it is asynchronous, calls return before that is done: with marks and recordings the host runs
 * ahead of it. All functions are local. Faults of a backend end the job. */
#ifndef MM_QUEUE_H
#define MM_QUEUE_H

#include "kernels/device.h"
#include "kernels/tensor.h"

#define MM_MARKS 2

struct mm_queue {
    /* -- memory -------------------------------------------------------------------------------- */
    /* 64-byte aligned, zeroed; NULL where there is not that much. Freed by free. */
    void *(*alloc)(struct mm_device *dev, size_t bytes);
    void (*free)(struct mm_device *dev, void *block);
    void (*zero)(struct mm_device *dev, void *block, size_t bytes);
    void (*copy)(struct mm_device *dev, void *dst, const void *src, size_t bytes);
    /* `host` may be reused at once. */
    void (*upload)(struct mm_device *dev, void *dst, const void *host, size_t bytes);
    void (*download)(struct mm_device *dev, void *host, const void *src, size_t bytes); /* waits */

    /* -- running ahead of the device ----------------------------------------------------------- */
    /* Host memory that the device reads and writes by itself; zeroed; freed by pinned_free. */
    void *(*pinned_alloc)(struct mm_device *dev, size_t bytes);
    void (*pinned_free)(struct mm_device *dev, void *block);
    /* As upload, of pinned memory, without waiting: it may be reused after a wait for a later mark.
     */
    void (*upload_later)(struct mm_device *dev, void *dst, const void *pinned, size_t bytes);
    /* As download, into pinned memory, without waiting: there after a wait for a later mark. */
    void (*download_later)(struct mm_device *dev, void *pinned, const void *src, size_t bytes);
    /* Marks, in slot 0 ... MM_MARKS-1, all that was asked of the device so far; waits for it. */
    void (*mark)(struct mm_device *dev, int slot);
    void (*wait)(struct mm_device *dev, int slot);
    /* Begins a recording: operations are noted and not done, until `recorded` ends it. False: this
     * device doesn't record, and they are done as always. While recording nothing may wait, and no
     * memory be taken: what is recorded has been done once before. */
    bool (*record)(struct mm_device *dev);
    /* The recording, freed by recording_free; NULL where it cannot be replayed: the text says why.
     */
    void *(*recorded)(struct mm_device *dev, struct mm_error *err);
    /* Does again all that was noted, with the same addresses and values. */
    void (*replay)(struct mm_device *dev, void *recording);
    void (*recording_free)(struct mm_device *dev, void *recording);
};

/* Bytes of a tensor that are in host memory at once, where it goes through there piece by piece. */
#define MM_HOST_PIECE ((size_t)4 << 20)

/* floats (=) n elements of `dtype` at `src` on the device, which is waited for. */
void mm_download_floats(struct mm_device *dev, float *floats, enum mm_dtype dtype, const void *src,
                        size_t n);

#endif
