/* files.c - see files.h. A write counts only when every step said so: a short write goes on, and
 * what a full disk or a network file system reports late, at fsync or close, is an error too. */
#include "io/files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

static const size_t read_limit = (size_t)1 << 30;
static const size_t buffer_bytes = (size_t)1 << 20;

/* Fails with errno's reason: is the path at fault, or the machine? */
static enum mm_status fail_errno(struct mm_error *err, const char *action, const char *path) {
    int reason = errno;
    enum mm_status status = MM_FAILED;
    switch (reason) {
    case EACCES:
    case EEXIST:
    case EISDIR:
    case ELOOP:
    case ENAMETOOLONG:
    case ENOENT:
    case ENOTDIR:
    case EPERM:
    case EROFS:
        status = MM_BAD_INPUT;
    }
    return mm_fail(err, status, "%s: cannot %s: %s", path, action, strerror(reason));
}

static ssize_t read_some(int fd, void *data, size_t bytes) {
    ssize_t got;
    do
        got = read(fd, data, bytes);
    while (got < 0 && errno == EINTR);
    return got;
}

static bool is_folder(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

enum mm_status mm_file_read(const char *path, char **text, size_t *bytes, struct mm_error *err) {
    *text = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fail_errno(err, "read", path);
    size_t used = 0, capacity = 1 << 16;
    char *block = mm_calloc(capacity, 1);
    ssize_t got;
    while ((got = read_some(fd, block + used, capacity - used - 1)) > 0) {
        used += (size_t)got;
        if (used > read_limit)
            break;
        if (used + 1 == capacity)
            block = mm_realloc(block, capacity *= 2);
    }
    enum mm_status status = MM_OK;
    if (got < 0)
        status = fail_errno(err, "read", path);
    else if (used > read_limit)
        status = mm_fail(err, MM_BAD_INPUT, "%s: larger than 1 GiB: not the text file it should be",
                         path);
    close(fd);
    if (status) {
        mm_free(block);
        return MM_BAD_INPUT;
    }
    block[used] = 0;
    *text = block;
    if (bytes)
        *bytes = used;
    return MM_OK;
}

enum mm_status mm_output_open(struct mm_output *out, const char *path, struct mm_error *err) {
    out->path = mm_strdup(path);
    out->temporary = mm_format("%s.tmp", path);
    /* No link: it could lead out of the folder, or to a file that someone else needs. */
    out->fd = open(out->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (out->fd >= 0)
        return MM_OK;
    enum mm_status status = fail_errno(err, "write", out->temporary);
    mm_free(out->path);
    mm_free(out->temporary);
    return status;
}

enum mm_status mm_output_reopen(struct mm_output *out, const char *path, struct mm_error *err) {
    *out = (struct mm_output){.fd = open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW)};
    if (out->fd < 0)
        return fail_errno(err, "write", path);
    out->path = mm_strdup(path);
    return MM_OK;
}

enum mm_status mm_output_seek(struct mm_output *out, size_t place, struct mm_error *err) {
    return lseek(out->fd, (off_t)place, SEEK_SET) < 0 ? fail_errno(err, "write", out->path) : MM_OK;
}

enum mm_status mm_output_write(struct mm_output *out, const void *data, size_t bytes,
                               struct mm_error *err) {
    const char *next = data;
    while (bytes > 0) {
        ssize_t put = write(out->fd, next, bytes < (size_t)1 << 30 ? bytes : (size_t)1 << 30);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return fail_errno(err, "write", out->path);
        next += put;
        bytes -= (size_t)put;
    }
    return MM_OK;
}

enum mm_status mm_output_close(struct mm_output *out, enum mm_status status, struct mm_error *err) {
    if (!status && fsync(out->fd))
        status = fail_errno(err, "sync", out->path);
    if (close(out->fd) && !status)
        status = fail_errno(err, "close", out->path);
    if (!status && out->temporary && rename(out->temporary, out->path))
        status = fail_errno(err, "rename to", out->path);
    if (status && out->temporary)
        unlink(out->temporary);
    mm_free(out->path);
    mm_free(out->temporary);
    return status;
}

enum mm_status mm_file_write(const char *path, const void *data, size_t bytes,
                             struct mm_error *err) {
    struct mm_output out;
    enum mm_status status = mm_output_open(&out, path, err);
    if (status)
        return status;
    status = mm_output_close(&out, mm_output_write(&out, data, bytes, err), err);
    if (status)
        return status;
    char *folder = mm_path_parent(path);
    status = mm_folder_sync(folder, err);
    mm_free(folder);
    return status;
}

static enum mm_status copy_bytes(int fd, const char *from, struct mm_output *out,
                                 struct mm_error *err) {
    char *buffer = mm_calloc(buffer_bytes, 1);
    enum mm_status status = MM_OK;
    ssize_t got = 0;
    while (!status && (got = read_some(fd, buffer, buffer_bytes)) > 0)
        status = mm_output_write(out, buffer, (size_t)got, err);
    if (!status && got < 0)
        status = fail_errno(err, "read", from);
    mm_free(buffer);
    return status;
}

enum mm_status mm_file_copy(const char *from, const char *to, struct mm_error *err) {
    int fd = open(from, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fail_errno(err, "read", from);
    struct mm_output out;
    enum mm_status status = mm_output_open(&out, to, err);
    if (!status)
        status = mm_output_close(&out, copy_bytes(fd, from, &out, err), err);
    close(fd);
    return status;
}

enum mm_status mm_folder_make(const char *path, struct mm_error *err) {
    if (!*path)
        return mm_fail(err, MM_BAD_INPUT, "cannot make a folder without a name");
    char *part = mm_strdup(path);
    enum mm_status status = MM_OK;
    for (char *slash = part; slash && !status;) {
        slash = strchr(slash + 1, '/');
        if (slash)
            *slash = 0;
        if (mkdir(part, 0777)) {
            int reason = errno;
            if (!is_folder(part)) {
                errno = reason;
                status = fail_errno(err, "make the folder", part);
            }
        }
        if (slash)
            *slash = '/';
    }
    mm_free(part);
    return status;
}

static enum mm_status remove_at(int parent, const char *name, const char *path,
                                struct mm_error *err);

/* Removes what is in the folder open at `fd`, which is closed. */
static enum mm_status remove_content(int fd, const char *path, struct mm_error *err) {
    DIR *folder = fdopendir(fd);
    if (!folder) {
        enum mm_status status = fail_errno(err, "list", path);
        close(fd);
        return status;
    }
    enum mm_status status = MM_OK;
    struct dirent *item;
    while (!status && (item = readdir(folder))) {
        if (!strcmp(item->d_name, ".") || !strcmp(item->d_name, ".."))
            continue;
        char *below = mm_format("%s/%s", path, item->d_name);
        status = remove_at(fd, item->d_name, below, err);
        mm_free(below);
    }
    closedir(folder);
    return status;
}

static enum mm_status remove_at(int parent, const char *name, const char *path,
                                struct mm_error *err) {
    struct stat info;
    if (fstatat(parent, name, &info, AT_SYMLINK_NOFOLLOW))
        return errno == ENOENT || errno == ENOTDIR ? MM_OK : fail_errno(err, "remove", path);
    bool folder = S_ISDIR(info.st_mode);
    if (folder) {
        int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (fd < 0)
            return fail_errno(err, "remove", path);
        enum mm_status status = remove_content(fd, path, err);
        if (status)
            return status;
    }
    if (unlinkat(parent, name, folder ? AT_REMOVEDIR : 0) && errno != ENOENT)
        return fail_errno(err, "remove", path);
    return MM_OK;
}

enum mm_status mm_folder_remove(const char *path, struct mm_error *err) {
    return remove_at(AT_FDCWD, path, path, err);
}

enum mm_status mm_folder_sync(const char *path, struct mm_error *err) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return fail_errno(err, "sync", path);
    enum mm_status status = MM_OK;
    /* EINVAL: this file system has no sync of folders, so there is nothing to wait for. */
    if (fsync(fd) && errno != EINVAL)
        status = fail_errno(err, "sync", path);
    close(fd);
    return status;
}

bool mm_path_exists(const char *path) {
    struct stat info;
    return lstat(path, &info) == 0;
}

char *mm_path_parent(const char *path) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/')
        length--;
    while (length > 0 && path[length - 1] != '/')
        length--;
    if (length == 0)
        return mm_strdup(".");
    while (length > 1 && path[length - 1] == '/')
        length--;
    return mm_format("%.*s", (int)length, path);
}

struct mm_hash {
    XXH3_state_t *state;
};

struct mm_hash *mm_hash_begin(void) {
    struct mm_hash *hash = mm_calloc(1, sizeof *hash);
    hash->state = XXH3_createState();
    MM_CHECK(hash->state, "out of memory");
    XXH3_128bits_reset(hash->state);
    return hash;
}

void mm_hash_add(struct mm_hash *hash, const void *data, size_t bytes) {
    XXH3_128bits_update(hash->state, data, bytes);
}

void mm_hash_end(struct mm_hash *hash, char hex[33]) {
    XXH128_hash_t value = XXH3_128bits_digest(hash->state);
    snprintf(hex, 33, "%016llx%016llx", (unsigned long long)value.high64,
             (unsigned long long)value.low64);
    XXH3_freeState(hash->state);
    mm_free(hash);
}

void mm_bytes_hash(const void *data, size_t bytes, char hex[33]) {
    struct mm_hash *hash = mm_hash_begin();
    mm_hash_add(hash, data, bytes);
    mm_hash_end(hash, hex);
}

enum mm_status mm_file_hash(const char *path, size_t offset, char hex[33], struct mm_error *err) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return fail_errno(err, "read", path);
    enum mm_status status = MM_OK;
    struct stat info;
    if (fstat(fd, &info))
        status = fail_errno(err, "read", path);
    else if (S_ISREG(info.st_mode) && (size_t)info.st_size < offset)
        status = mm_fail(err, MM_BAD_INPUT, "%s: truncated: %lld bytes, at least %zu expected",
                         path, (long long)info.st_size, offset);
    else if (lseek(fd, (off_t)offset, SEEK_SET) < 0)
        status = fail_errno(err, "read", path);
    struct mm_hash *hash = mm_hash_begin();
    char *buffer = mm_calloc(buffer_bytes, 1);
    ssize_t got = 0;
    while (!status && (got = read_some(fd, buffer, buffer_bytes)) > 0)
        mm_hash_add(hash, buffer, (size_t)got);
    if (!status && got < 0)
        status = fail_errno(err, "read", path);
    mm_hash_end(hash, hex);
    mm_free(buffer);
    close(fd);
    return status;
}
