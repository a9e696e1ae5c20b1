/* files.h - small checked file operations that several formats share. All local.
 *
 * Where the path is at fault (missing, not permitted, not a folder, read-only) the status is
 * MM_BAD_INPUT; where the machine is (disk full, input/output error) it is MM_FAILED. The text
 * names the path and the system's reason. */
#ifndef MM_FILES_H
#define MM_FILES_H

#include "src/base/base.h"

/* Whole file as NUL-terminated text (size in *bytes where not NULL); the caller frees with mm_free.
 * MM_BAD_INPUT if it cannot be read or is larger than 1 GiB; *text is then NULL. */
enum mm_status mm_file_read(const char *path, char **text, size_t *bytes, struct mm_error *err);

/* Writes `data` to path.tmp, syncs, renames, syncs the folder. */
enum mm_status mm_file_write(const char *path, const void *data, size_t bytes,
                             struct mm_error *err);

/* Copies the bytes of a regular file (a link is followed), written as by mm_file_write but for the
 * sync of the folder. */
enum mm_status mm_file_copy(const char *from, const char *to, struct mm_error *err);

/* A file written piece by piece. It lies at path.tmp until mm_output_close has synced and renamed
 * it to `path`; the sync of the folder is left to the caller, once for all that it writes there.
 * Every output that was opened is closed: `status` is the caller's so far; unless it is MM_OK, the
 * file is removed and the same status returned. An open that fails leaves nothing to close. */
struct mm_output {
    char *path, *temporary;
    int fd;
};
enum mm_status mm_output_open(struct mm_output *out, const char *path, struct mm_error *err);
enum mm_status mm_output_write(struct mm_output *out, const void *data, size_t bytes,
                               struct mm_error *err);
enum mm_status mm_output_close(struct mm_output *out, enum mm_status status, struct mm_error *err);

/* mkdir -p. */
enum mm_status mm_folder_make(const char *path, struct mm_error *err);
/* rm -rf: removes a folder and all below it (or a file, or a link itself); no error if there is
 * none. Does not follow links. */
enum mm_status mm_folder_remove(const char *path, struct mm_error *err);
/* fsync of a folder (after a rename in it). */
enum mm_status mm_folder_sync(const char *path, struct mm_error *err);

/* Something has this name, be it a link to nothing. */
bool mm_path_exists(const char *path);
/* The folder that holds `path` ("." or "/" where it names none); the caller frees with mm_free. */
char *mm_path_parent(const char *path);

/* An XXH3 128-bit hash of bytes that come one after another; mm_hash_end frees it and says it as 32
 * hex digits. */
struct mm_hash;
struct mm_hash *mm_hash_begin(void);
void mm_hash_add(struct mm_hash *hash, const void *data, size_t bytes);
void mm_hash_end(struct mm_hash *hash, char hex[33]);

/* The same of a file's bytes from `offset` on (xxhsum -H2 prints it). MM_BAD_INPUT if it
 * cannot be read or is shorter than `offset`. */
enum mm_status mm_file_hash(const char *path, size_t offset, char hex[33], struct mm_error *err);

/* The version of the HDF5 library, "1.10.8"; the caller frees with mm_free. */
char *mm_h5_library_text(void);

#endif
