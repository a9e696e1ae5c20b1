/* checkpoint_folder.c - what one rank does to the folders of the checkpoints; see
 * checkpoint_format.h. A folder gets its final name when every byte in it is on disk; what stands
 * under other names is rubbish of a crash and goes at the next write:
 *   .writing-N    being written
 *   .replaced-N   the older one, while N is exchanged; goes back if the crash came in between
 *   .removed-N    being pruned: never seen as a checkpoint by half */
#include "io/checkpoint_format.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "io/files.h"

struct mm_checkpoint_paths mm_checkpoint_paths_of(const char *run_dir, size_t loops) {
    char *root = mm_format("%s/checkpoints", run_dir);
    return (struct mm_checkpoint_paths){.root = root,
                                        .temporary = mm_format("%s/.writing-%zu", root, loops),
                                        .final = mm_format("%s/%zu", root, loops),
                                        .aside = mm_format("%s/.replaced-%zu", root, loops)};
}

void mm_checkpoint_paths_free(struct mm_checkpoint_paths *paths) {
    mm_free(paths->root);
    mm_free(paths->temporary);
    mm_free(paths->final);
    mm_free(paths->aside);
}

/* Room -------------------------------------------------------------------------------------- */

double mm_checkpoint_bytes(const struct mm_checkpoint_job *job) {
    double bytes = 1 << 16;
    if (job->rank == 0) {
        bytes += 96.0 * job->size;
        bytes += job->info->config ? (double)strlen(job->info->config) : 0;
        bytes += job->info->extra ? (double)strlen(job->info->extra) : 0;
    }
    for (size_t i = 0; i < job->state->tensors_n; i++) {
        const struct mm_state_tensor *tensor = &job->state->tensors[i];
        size_t rows = mm_rows_of(tensor->rows, job->size, job->rank).count;
        double mappings = job->rank == 0 ? 512.0 * job->size : 0;
        for (int g = 0; g < MM_STATE_GROUPS; g++)
            if (tensor->own[g])
                bytes += (double)rows * (double)tensor->cols * mm_dtype_bytes(job->state->dtype) +
                         2048 + mappings + (double)strlen(tensor->name) * 4;
    }
    return bytes;
}

enum mm_status mm_checkpoint_check_limit(double bytes, struct mm_error *err) {
    struct rlimit limit;
    char need[32], most[32];
    if (getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY ||
        bytes <= (double)limit.rlim_cur)
        return MM_OK;
    return mm_fail(err, MM_FAILED,
                   "a checkpoint needs a file of %s, and this process may write %s (ulimit -f)",
                   mm_bytes_text(need, bytes), mm_bytes_text(most, (double)limit.rlim_cur));
}

static enum mm_status check_space(const char *root, double bytes, struct mm_error *err) {
    struct statvfs disk;
    char need[32], left[32];
    if (statvfs(root, &disk) != 0) /* then the write will tell */
        return MM_OK;
    double available = (double)disk.f_bavail * (double)disk.f_frsize;
    if (bytes * 1.05 <= available)
        return MM_OK;
    return mm_fail(err, MM_FAILED, "no room for a checkpoint in '%s': it needs %s, %s are free",
                   root, mm_bytes_text(need, bytes * 1.05), mm_bytes_text(left, available));
}

/* Folders ----------------------------------------------------------------------------------- */

static bool starts_with(const char *text, const char *start) {
    return strncmp(text, start, strlen(start)) == 0;
}

static enum mm_status move(const char *from, const char *to, struct mm_error *err) {
    if (rename(from, to) == 0)
        return MM_OK;
    return mm_fail(err, MM_FAILED, "cannot rename '%s' to '%s': %s", from, to, strerror(errno));
}

/* What becomes of the folders that a crash left and that need not be put back. */
enum leftovers { KEEP, REMOVE };

/* A folder that an older checkpoint was moved to. */
static enum mm_status put_back(const char *root, const char *name, const char *path,
                               enum leftovers leftovers, struct mm_error *err) {
    char *final = mm_format("%s/%s", root, name + strlen(".replaced-"));
    enum mm_status status = MM_OK;
    if (!mm_path_exists(final))
        status = move(path, final, err);
    else if (leftovers == REMOVE)
        status = mm_folder_remove(path, err);
    mm_free(final);
    return status;
}

/* Puts back what a crash left, and of the rest does as `leftovers` says. */
static enum mm_status sweep(const char *root, enum leftovers leftovers, struct mm_error *err) {
    DIR *folder = opendir(root);
    struct dirent *entry;
    enum mm_status status = MM_OK;
    if (!folder)
        return mm_fail(err, MM_FAILED, "cannot list '%s': %s", root, strerror(errno));
    while (status == MM_OK && (entry = readdir(folder))) {
        const char *name = entry->d_name;
        char *path = mm_format("%s/%s", root, name);
        if (starts_with(name, ".replaced-"))
            status = put_back(root, name, path, leftovers, err);
        else if (leftovers == REMOVE &&
                 (starts_with(name, ".writing-") || starts_with(name, ".removed-")))
            status = mm_folder_remove(path, err);
        mm_free(path);
    }
    closedir(folder);
    return status;
}

enum mm_status mm_checkpoint_recover(const char *run_dir, struct mm_error *err) {
    char *root = mm_format("%s/checkpoints", run_dir);
    enum mm_status status = sweep(root, KEEP, err);
    mm_free(root);
    return status == MM_OK ? MM_OK : MM_BAD_INPUT;
}

enum mm_status mm_checkpoint_prepare(const struct mm_checkpoint_paths *paths, double bytes,
                                     struct mm_error *err) {
    enum mm_status status = mm_folder_make(paths->root, err);
    if (status == MM_OK)
        status = sweep(paths->root, REMOVE, err);
    if (status == MM_OK)
        status = check_space(paths->root, bytes, err);
    return status;
}

/* A part that is not there would be missed by a reader only, when older checkpoints are gone.
 * Opened, since a network file system may answer from memory where it is only asked. */
static enum mm_status check_parts(const char *folder, int size, struct mm_error *err) {
    enum mm_status status = MM_OK;
    for (int r = 0; status == MM_OK && r < size; r++) {
        char name[32];
        mm_checkpoint_part_name(name, r);
        char *path = mm_format("%s/%s", folder, name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            status = mm_fail(err, MM_FAILED,
                             "rank %d wrote '%s', which rank 0 cannot read: %s: is the folder one "
                             "that all ranks share, and was nothing removed?",
                             r, path, strerror(errno));
        else
            close(fd);
        mm_free(path);
    }
    return status;
}

enum mm_status mm_checkpoint_publish(const struct mm_checkpoint_paths *paths, int size,
                                     struct mm_error *err) {
    bool replaces = mm_path_exists(paths->final);
    enum mm_status status = check_parts(paths->temporary, size, err);
    if (status == MM_OK)
        status = mm_folder_sync(paths->temporary, err);
    if (status == MM_OK && replaces)
        status = move(paths->final, paths->aside, err);
    if (status != MM_OK)
        return status;
    status = move(paths->temporary, paths->final, err);
    if (status != MM_OK && replaces && rename(paths->aside, paths->final) != 0)
        mm_log0(MM_LOG_WARN, "'%s' is now at '%s' and cannot be moved back: %s", paths->final,
                paths->aside, strerror(errno));
    if (status == MM_OK)
        status = mm_folder_sync(paths->root, err);
    return status;
}

enum mm_status mm_checkpoint_prune(const struct mm_checkpoint_paths *paths, const char *run_dir,
                                   size_t loops, size_t keep, struct mm_error *err) {
    size_t *found, n, kept = 1;
    enum mm_status status = mm_folder_remove(paths->aside, err);
    if (status == MM_OK)
        status = mm_checkpoint_list(run_dir, &found, &n, err);
    if (status != MM_OK)
        return status;
    for (size_t i = 0; status == MM_OK && i < n; i++) {
        if (found[i] >= loops || kept++ < keep)
            continue;
        char *old = mm_format("%s/%zu", paths->root, found[i]);
        char *removed = mm_format("%s/.removed-%zu", paths->root, found[i]);
        status = move(old, removed, err);
        if (status == MM_OK)
            status = mm_folder_remove(removed, err);
        mm_free(removed);
        mm_free(old);
    }
    mm_free(found);
    return status;
}
