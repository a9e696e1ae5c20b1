/* h5.h - serial HDF5 with checks. Every call that can fail ends in an mm_status, and the message
 * that HDF5 would print becomes part of our text. Only io/ includes it; all functions are local.
 *
 * Handles are hid_t, negative when there is none, closed by mm_h5_close. File locks are off,
 * unless HDF5_USE_FILE_LOCKING says otherwise, because shared file systems often lack them. What is
 * read here is never written at the same time. */
#ifndef MM_H5_H
#define MM_H5_H

#include <hdf5.h>

#include "kernels/tensor.h"
#include "src/base/base.h"

/* As mm_fail, with the innermost message of HDF5's error stack appended. Call it before any other
 * HDF5 call, since each of them clears the stack. */
enum mm_status mm_h5_fail(struct mm_error *err, enum mm_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Closes a handle of any kind. A negative one is ignored. */
void mm_h5_close(hid_t id);

/* Opens a file for reading. Returns MM_BAD_INPUT if it is missing, not a regular file, or not
 * HDF5. */
enum mm_status mm_h5_open(hid_t *file, const char *path, struct mm_error *err);

/* Sets HDF5 up; every function here calls it first. HDF5 then prints nothing, and looks for the
 * parts of a checkpoint beside it, whatever prefix the environment sets for other virtual datasets.
 * It is cheap to repeat. */
void mm_h5_settle(void);
/* Says who may call HDF5 from now on, since HDF5 may not be thread-safe. ANYONES: any thread, as at
 * the start. THEIRS: only a thread that the caller is about to start. MINE: that thread says of
 * itself that it is the one. If another thread comes, mm_h5_settle ends the job. Cheap. */
enum mm_h5_user { MM_H5_ANYONES, MM_H5_THEIRS, MM_H5_MINE };
void mm_h5_lend(enum mm_h5_user user);
/* A property list for opening and creating files, for the format since HDF5 1.8, whose attributes
 * may exceed 64 kB. The caller closes it. It is negative on failure. */
hid_t mm_h5_file_access(void);

/* Creates a group or dataset without a time stamp, so that equal content is equal bytes. `dcpl` is
 * the caller's. The handle is negative on failure; mm_h5_fail then has the reason. */
hid_t mm_h5_create_group(hid_t at, const char *name);
hid_t mm_h5_create_dataset(hid_t at, const char *name, hid_t type, hid_t space, hid_t dcpl);

/* Opens the dataset `name`, which must be in this very file: no soft or external link may be on the
 * way, and its data may be in no other file unless it is virtual. Returns MM_BAD_INPUT. `path` is
 * the path of the file, for the text. */
enum mm_status mm_h5_open_dataset(hid_t *set, hid_t at, const char *path, const char *name,
                                  struct mm_error *err);
bool mm_h5_has(hid_t at, const char *name); /* whether there is a link of that name */
bool mm_h5_own(hid_t at, const char *name); /* whether it is a hard link, so of this very file */

/* Fills dims[rank] of a dataset. Returns MM_BAD_INPUT if it has another rank or a zero extent. */
enum mm_status mm_h5_dims(hid_t set, const char *path, const char *name, int rank, hsize_t *dims,
                          struct mm_error *err);

/* Compares a dataset's shape, dims[rank], with what its file can hold, so that the caller may
 * allocate memory for it. The rank is 1 or 2, and no extent is zero. Returns MM_BAD_INPUT if the
 * dataset is larger than the file, not all written, or in other files (virtual). */
enum mm_status mm_h5_check_stored(hid_t set, const char *path, const char *name, int rank,
                                  const hsize_t *dims, struct mm_error *err);

/* The little-endian file type of MM_F32 or MM_BF16 (16 bits: sign, 8 of exponent, 7 of mantissa).
 * The caller closes. */
hid_t mm_h5_type(enum mm_dtype dtype);
/* Returns true and sets *dtype if the dataset's type is one of those. */
bool mm_h5_dtype(hid_t set, enum mm_dtype *dtype);

/* Reads rows [first, first + count) of a dataset of two dimensions, its first `cols` columns, or of
 * one dimension (cols is ignored), into `out` as memory type `type`. Returns false on failure;
 * mm_h5_fail then has the reason. */
bool mm_h5_read_rows(hid_t set, hid_t type, size_t first, size_t count, size_t cols, void *out);

/* Attributes: a UTF-8 text, an unsigned number, a list of hashes (32 hex digits each). */
enum mm_status mm_h5_put_text(hid_t at, const char *name, const char *text, struct mm_error *err);
enum mm_status mm_h5_put_count(hid_t at, const char *name, uint64_t value, struct mm_error *err);
enum mm_status mm_h5_put_hashes(hid_t at, const char *name, char (*hashes)[33], size_t n,
                                struct mm_error *err);

/* They are read by these. `path` is the path of the file. They return MM_BAD_INPUT if the attribute
 * is absent, of another kind, or out of bounds. The caller frees *text with mm_free. `hashes` has
 * room for n, and the attribute must hold as many. */
bool mm_h5_has_attribute(hid_t at, const char *name);
enum mm_status mm_h5_get_text(hid_t at, const char *path, const char *name, char **text,
                              struct mm_error *err);
enum mm_status mm_h5_get_count(hid_t at, const char *path, const char *name, uint64_t max,
                               uint64_t *value, struct mm_error *err);
enum mm_status mm_h5_get_hashes(hid_t at, const char *path, const char *name, char (*hashes)[33],
                                size_t n, struct mm_error *err);

#endif
