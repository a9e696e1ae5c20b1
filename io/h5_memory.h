/* h5_memory.h - an HDF5 file laid out in memory, then written by us.
 *
 * HDF5 1.10 is undefined after a write of its own has failed: on a full disk closing may lose data
 * without a word, a file handle stays, and its clean-up at exit crashes. So HDF5 lays the file out
 * with a driver whose writes cannot fail; the space of large datasets, allocated but not written,
 * costs no memory; and we write structure and data to disk, where every error is seen. All
 * functions local. */
#ifndef MM_H5_MEMORY_H
#define MM_H5_MEMORY_H

#include "io/h5.h"

struct mm_h5_memory;

/* A new file in memory, open as *file for the caller to fill and to close by mm_h5_memory_close.
 * The caller frees *memory. On MM_FAILED there is nothing to free. */
enum mm_status mm_h5_memory_create(struct mm_h5_memory **memory, hid_t *file, hsize_t user_block,
                                   struct mm_error *err);
void mm_h5_memory_free(struct mm_h5_memory *memory);

struct mm_h5_content {
    enum mm_dtype dtype;
    size_t rows, cols;
    const void *data; /* borrowed until the last mm_h5_memory_write */
};
/* Creates a contiguous dataset [rows, cols] of that content. *set is the caller's. */
enum mm_status mm_h5_memory_dataset(struct mm_h5_memory *memory, hid_t at, const char *name,
                                    const struct mm_h5_content *content, hid_t *set,
                                    struct mm_error *err);

/* Closes the file. `status` is the caller's status so far; it is returned unless closing fails. */
enum mm_status mm_h5_memory_close(hid_t file, enum mm_status status, struct mm_error *err);

/* Overwrites bytes of the closed file, for instance of its user block. */
void mm_h5_memory_patch(struct mm_h5_memory *memory, uint64_t offset, const void *data,
                        size_t bytes);

/* Writes the closed file to `path`, as an mm_output, and returns in `hex` the hash of its bytes
 * from `offset` on, which mm_file_hash would give of a file without fault. */
enum mm_status mm_h5_memory_write(struct mm_h5_memory *memory, const char *path, size_t offset,
                                  char hex[33], struct mm_error *err);
/* Returns the same hash and writes nothing. */
void mm_h5_memory_hash(struct mm_h5_memory *memory, size_t offset, char hex[33]);

#endif
