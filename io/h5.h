/* h5.h - serial HDF5, checked: every call that can fail ends in an mm_status, and HDF5's own
 * message, which it would print, becomes part of our text. For io/ only; all functions local.
 *
 * Handles are hid_t, negative when there is none, closed by mm_h5_close. File locks are off,
 * unless HDF5_USE_FILE_LOCKING says otherwise: shared file systems often lack them, and what is
 * read here is never written at the same time. */
#ifndef MM_H5_H
#define MM_H5_H

#include <hdf5.h>

#include "kernels/tensor.h"
#include "src/base/base.h"

/* As mm_fail, with the innermost message of HDF5's error stack appended. To be called before any
 * other HDF5 call, since each clears the stack. */
enum mm_status mm_h5_fail(struct mm_error *err, enum mm_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* Closes a handle of any kind; nothing for a negative one. */
void mm_h5_close(hid_t id);

/* Opens a file for reading. MM_BAD_INPUT: missing, not a regular file, not HDF5. */
enum mm_status mm_h5_open(hid_t *file, const char *path, struct mm_error *err);

/* Before every use of HDF5: it prints nothing, and the parts of a checkpoint lie beside it
 * whatever prefix the environment sets for the user's other virtual datasets. Cheap to repeat. */
void mm_h5_settle(void);
/* HDF5 as it is packaged is not thread-safe. Who may call it from now on: anyone (at first); a
 * thread that is about to be started, and not the caller (THEIRS); that thread, which says so of
 * itself (MINE). mm_h5_settle ends the job where another than that one comes. Cheap. */
enum mm_h5_user { MM_H5_ANYONES, MM_H5_THEIRS, MM_H5_MINE };
void mm_h5_lend(enum mm_h5_user user);
/* A property list for opening and creating files: of the format since HDF5 1.8, whose attributes
 * may exceed 64 kB. The caller closes. Negative on failure. */
hid_t mm_h5_file_access(void);

/* Creates a group or dataset without a time stamp, so that equal content is equal bytes. `dcpl` is
 * the caller's. Negative on failure: mm_h5_fail. */
hid_t mm_h5_create_group(hid_t at, const char *name);
hid_t mm_h5_create_dataset(hid_t at, const char *name, hid_t type, hid_t space, hid_t dcpl);

/* Opens the dataset `name`, which must be in this very file: no soft or external link on the way,
 * and data in no other file unless it is virtual. MM_BAD_INPUT; `path` is the file's, for the text.
 */
enum mm_status mm_h5_open_dataset(hid_t *set, hid_t at, const char *path, const char *name,
                                  struct mm_error *err);
bool mm_h5_has(hid_t at, const char *name); /* a link of that name */
bool mm_h5_own(hid_t at, const char *name); /* a hard one: an object of this very file */

/* dims[rank] of a dataset. MM_BAD_INPUT if it has another rank or a zero extent. */
enum mm_status mm_h5_dims(hid_t set, const char *path, const char *name, int rank, hsize_t *dims,
                          struct mm_error *err);

/* Holds a dataset's shape, dims[rank], of rank 1 or 2, none zero, against what its file can hold,
 * so that the caller may allocate for it. MM_BAD_INPUT: larger than the file, not all written, or
 * in other files (virtual). */
enum mm_status mm_h5_check_stored(hid_t set, const char *path, const char *name, int rank,
                                  const hsize_t *dims, struct mm_error *err);

/* The little-endian file type of MM_F32 or MM_BF16 (16 bits: sign, 8 of exponent, 7 of mantissa).
 * The caller closes. */
hid_t mm_h5_type(enum mm_dtype dtype);
/* True, and *dtype, where the dataset's type is one of those. */
bool mm_h5_dtype(hid_t set, enum mm_dtype *dtype);

/* Reads rows [first, first + count) of a dataset of two dimensions, its first `cols` columns, or of
 * one dimension (cols ignored), into `out` as memory type `type`. False: mm_h5_fail. */
bool mm_h5_read_rows(hid_t set, hid_t type, size_t first, size_t count, size_t cols, void *out);

/* Attributes: a UTF-8 text, an unsigned number, a list of hashes (32 hex digits each). */
enum mm_status mm_h5_put_text(hid_t at, const char *name, const char *text, struct mm_error *err);
enum mm_status mm_h5_put_count(hid_t at, const char *name, uint64_t value, struct mm_error *err);
enum mm_status mm_h5_put_hashes(hid_t at, const char *name, char (*hashes)[33], size_t n,
                                struct mm_error *err);

/* Reading them; `path` is the file's. MM_BAD_INPUT: absent, of another kind, out of bounds. *text
 * is the caller's (mm_free). `hashes` has room for n, and the attribute must hold as many. */
bool mm_h5_has_attribute(hid_t at, const char *name);
enum mm_status mm_h5_get_text(hid_t at, const char *path, const char *name, char **text,
                              struct mm_error *err);
enum mm_status mm_h5_get_count(hid_t at, const char *path, const char *name, uint64_t max,
                               uint64_t *value, struct mm_error *err);
enum mm_status mm_h5_get_hashes(hid_t at, const char *path, const char *name, char (*hashes)[33],
                                size_t n, struct mm_error *err);

#endif
