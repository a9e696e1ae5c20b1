/* files.h - small checked file operations that several formats share. All functions are local.
 *
 * If the path is at fault (missing, not permitted, not a folder, read-only), the status is
 * MM_BAD_INPUT. If the machine is at fault (disk full, input/output error), it is MM_FAILED. The
 * text names the path and the system's reason. */
#ifndef MM_FILES_H
#define MM_FILES_H

#include "src/base/base.h"

/* Reads a whole file as NUL-terminated text, which the caller frees with mm_free. Its size is in
 * *bytes unless that is NULL. Returns MM_BAD_INPUT if the file cannot be read or is larger than
 * 1 GiB; *text is then NULL. */
enum mm_status mm_file_read(const char *path, char **text, size_t *bytes, struct mm_error *err);

/* Writes `data` to path.tmp, syncs, renames, syncs the folder. */
enum mm_status mm_file_write(const char *path, const void *data, size_t bytes,
                             struct mm_error *err);

/* Copies the bytes of a regular file; a link is followed. It writes as mm_file_write does, but does
 * not sync the folder. */
enum mm_status mm_file_copy(const char *from, const char *to, struct mm_error *err);

/* A file that is written piece by piece. It lies at path.tmp until mm_output_close has synced it
 * and renamed it to `path`. The caller syncs the folder, once for all that it writes there. The
 * caller closes every output that it opened. `status` is its status so far: unless that is MM_OK,
 * close removes the file and returns the same status. An open that fails leaves nothing to close.
 */
struct mm_output {
    char *path, *temporary; /* temporary NULL: written in place */
    int fd;
};
enum mm_status mm_output_open(struct mm_output *out, const char *path, struct mm_error *err);
/* The same of a file that is there, in place: what is not written stays, also after a failure. */
enum mm_status mm_output_reopen(struct mm_output *out, const char *path, struct mm_error *err);
/* The next write goes to this place, counted from the start. */
enum mm_status mm_output_seek(struct mm_output *out, size_t place, struct mm_error *err);
enum mm_status mm_output_write(struct mm_output *out, const void *data, size_t bytes,
                               struct mm_error *err);
enum mm_status mm_output_close(struct mm_output *out, enum mm_status status, struct mm_error *err);

/* Makes a folder and its parents, as mkdir -p. */
enum mm_status mm_folder_make(const char *path, struct mm_error *err);
/* Removes a folder and all below it (or a file, or a link itself), as rm -rf. It is no error if
 * there is none. Links are not followed. */
enum mm_status mm_folder_remove(const char *path, struct mm_error *err);
/* Syncs a folder, which is needed after a rename in it. */
enum mm_status mm_folder_sync(const char *path, struct mm_error *err);

/* Whether something has this name, be it a link to nothing. */
bool mm_path_exists(const char *path);
/* The folder that holds `path`; "." or "/" if the path names none. The caller frees it with
 * mm_free. */
char *mm_path_parent(const char *path);

/* An XXH3 128-bit hash of bytes that come one after another. mm_hash_end frees it and writes it as
 * 32 hex digits. */
struct mm_hash;
struct mm_hash *mm_hash_begin(void);
void mm_hash_add(struct mm_hash *hash, const void *data, size_t bytes);
void mm_hash_end(struct mm_hash *hash, char hex[33]);
/* The same of bytes that are all there. */
void mm_bytes_hash(const void *data, size_t bytes, char hex[33]);

/* The same hash of a file's bytes from `offset` on; xxhsum -H2 prints it. Returns MM_BAD_INPUT if
 * the file cannot be read or is shorter than `offset`. */
enum mm_status mm_file_hash(const char *path, size_t offset, char hex[33], struct mm_error *err);

/* The version of the HDF5 library, "1.10.8"; the caller frees with mm_free. */
char *mm_h5_library_text(void);

#endif
