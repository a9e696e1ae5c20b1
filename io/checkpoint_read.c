/* checkpoint_read.c - finding, checking and reading a checkpoint; see checkpoint.h.
 *
 * Every rank reads checkpoint.h5, which is small; the parts' hashes are shared out among the ranks.
 * Any number of ranks reads what any number wrote, since values come through the virtual datasets.
 */
#include "io/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "io/checkpoint_format.h"
#include "io/files.h"

/* HDF5 keeps the parts that a read met open as long as the virtual dataset; the number of open
 * files is limited. */
enum { PARTS_AT_ONCE = 64 };

/* Verify ------------------------------------------------------------------------------------ */

/* Checks the parts first, first + step, ... */
static enum mm_status check_parts(const struct mm_checkpoint_head *head, const char *folder,
                                  int first, int step, struct mm_error *err) {
    enum mm_status status = MM_OK;
    for (int r = first; status == MM_OK && r < head->ranks; r += step)
        status = mm_checkpoint_part_check(head, folder, r, err);
    return status;
}

/* Whether every rank sees the same checkpoint under this name. Collective. */
static enum mm_status check_same(struct mm_comm *comm, const struct mm_checkpoint_head *head,
                                 const char *folder, struct mm_error *err) {
    char first[33];
    enum mm_status status = MM_OK;
    memcpy(first, head->hash, sizeof first);
    mm_comm_broadcast(comm, 0, first, sizeof first);
    if (strcmp(first, head->hash) != 0)
        status = mm_fail(err, MM_BAD_INPUT,
                         "%s: rank %d reads another checkpoint than rank 0: is the folder one that "
                         "all ranks share?",
                         folder, mm_comm_rank(comm));
    return mm_comm_agree(comm, status, err);
}

/* Collective. The caller frees head, also after an error. */
static enum mm_status verify_together(struct mm_comm *comm, struct mm_checkpoint_head *head,
                                      const char *folder, struct mm_error *err) {
    enum mm_status status = mm_comm_agree(comm, mm_checkpoint_head_read(head, folder, err), err);
    if (status == MM_OK)
        status = check_same(comm, head, folder, err);
    if (status == MM_OK) {
        status = check_parts(head, folder, mm_comm_rank(comm), mm_comm_size(comm), err);
        status = mm_comm_agree(comm, status, err);
    }
    return status;
}

static void take_info(struct mm_checkpoint_info *info, struct mm_checkpoint_head *head) {
    *info = head->info;
    head->info = (struct mm_checkpoint_info){0};
}

enum mm_status mm_checkpoint_verify(const char *folder, struct mm_checkpoint_info *info,
                                    struct mm_error *err) {
    struct mm_checkpoint_head head;
    struct stat kind;
    bool is_file = stat(folder, &kind) == 0 && S_ISREG(kind.st_mode);
    char *where = is_file ? mm_path_parent(folder) : mm_strdup(folder);
    enum mm_status status = mm_checkpoint_head_read(&head, where, err);
    if (status == MM_OK)
        status = check_parts(&head, where, 0, 1, err);
    if (info)
        *info = (struct mm_checkpoint_info){0};
    if (info && status == MM_OK)
        take_info(info, &head);
    mm_checkpoint_head_free(&head);
    mm_free(where);
    return status == MM_OK ? MM_OK : MM_BAD_INPUT;
}

/* Find -------------------------------------------------------------------------------------- */

static int newest_first(const void *a, const void *b) {
    size_t x = *(const size_t *)a, y = *(const size_t *)b;
    return (x < y) - (x > y);
}

/* Is it a number as mm_checkpoint_write prints it? */
static bool parse_loops(const char *name, size_t *loops) {
    char again[32];
    if (*name < '0' || *name > '9')
        return false;
    *loops = strtoull(name, NULL, 10);
    snprintf(again, sizeof again, "%zu", *loops);
    return strcmp(name, again) == 0;
}

enum mm_status mm_checkpoint_list(const char *run_dir, size_t **loops, size_t *n,
                                  struct mm_error *err) {
    char *root = mm_format("%s/checkpoints", run_dir);
    DIR *folder = opendir(root);
    enum mm_status status = MM_OK;
    *loops = NULL;
    *n = 0;
    if (!folder && errno != ENOENT)
        status = mm_fail(err, MM_BAD_INPUT, "%s: cannot list: %s", root, strerror(errno));
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        struct stat info;
        size_t number;
        char *path = mm_format("%s/%s", root, entry->d_name);
        if (parse_loops(entry->d_name, &number) && stat(path, &info) == 0 &&
            S_ISDIR(info.st_mode)) {
            *loops = mm_realloc(*loops, (*n + 1) * sizeof **loops);
            (*loops)[(*n)++] = number;
        }
        mm_free(path);
    }
    if (folder)
        closedir(folder);
    if (*n)
        qsort(*loops, *n, sizeof **loops, newest_first);
    mm_free(root);
    return status;
}

/* The list of rank 0, on every rank: folders come and go, and all must try the same. Collective. */
static enum mm_status list_together(struct mm_comm *comm, const char *run_dir, size_t **loops,
                                    size_t *n, struct mm_error *err) {
    enum mm_status status = MM_OK;
    *loops = NULL;
    *n = 0;
    if (mm_comm_rank(comm) == 0)
        status = mm_checkpoint_list(run_dir, loops, n, err);
    status = mm_comm_agree(comm, status, err);
    if (status != MM_OK)
        return status;
    mm_comm_broadcast(comm, 0, n, sizeof *n);
    if (mm_comm_rank(comm) != 0)
        *loops = mm_calloc(*n, sizeof **loops);
    mm_comm_broadcast(comm, 0, *loops, *n * sizeof **loops);
    return MM_OK;
}

enum mm_status mm_checkpoint_find(struct mm_comm *comm, const char *run_dir, char **folder,
                                  struct mm_checkpoint_info *info, struct mm_error *err) {
    struct mm_error fault = {""};
    size_t *loops, n;
    *folder = NULL;
    *info = (struct mm_checkpoint_info){0};
    enum mm_status status = list_together(comm, run_dir, &loops, &n, err);
    for (size_t i = 0; status == MM_OK && !*folder && i < n; i++) {
        struct mm_checkpoint_head head;
        struct mm_error here;
        char *path = mm_format("%s/checkpoints/%zu", run_dir, loops[i]);
        enum mm_status found = verify_together(comm, &head, path, &here);
        if (found == MM_OK && head.info.loops != loops[i])
            found = mm_fail(&here, MM_BAD_INPUT, "%s: holds %zu loops: was it renamed?", path,
                            head.info.loops);
        if (found == MM_OK) {
            take_info(info, &head);
            *folder = path;
        } else {
            mm_log0(MM_LOG_WARN, "skipping checkpoint '%s': %s", path, here.text);
            fault = *fault.text ? fault : here;
            mm_free(path);
        }
        mm_checkpoint_head_free(&head);
    }
    mm_free(loops);
    if (status == MM_OK && !*folder)
        status = mm_fail(err, MM_BAD_INPUT, "no valid checkpoint in '%s/checkpoints'%s%.800s",
                         run_dir, *fault.text ? "; the newest: " : "", fault.text);
    return status;
}

/* Read -------------------------------------------------------------------------------------- */

static bool is_nan(const void *values, enum mm_dtype dtype, size_t i) {
    if (dtype == MM_BF16)
        return (((const uint16_t *)values)[i] & 0x7fffu) > 0x7f80u;
    float value = ((const float *)values)[i];
    return value != value;
}

enum mm_status mm_checkpoint_rows_read(const struct mm_checkpoint_head *head, hid_t file,
                                       const char *path, int group,
                                       const struct mm_checkpoint_shape *tensor,
                                       struct mm_rows rows, void *out, struct mm_error *err) {
    size_t first = rows.first, count = rows.count;
    char *where = mm_format("%s/%s", mm_state_groups[group].name, tensor->name);
    size_t step = mm_rows_block(tensor->rows, head->ranks) * PARTS_AT_ONCE;
    size_t row_bytes = tensor->cols * mm_dtype_bytes(head->dtype);
    hid_t type = mm_h5_type(head->dtype);
    enum mm_status status = MM_OK;
    for (size_t row = first; status == MM_OK && row < first + count; row += step) {
        size_t now = first + count - row < step ? first + count - row : step;
        hid_t set = H5Dopen2(file, where, H5P_DEFAULT);
        if (set < 0 || !mm_h5_read_rows(set, type, row, now, tensor->cols,
                                        (char *)out + (row - first) * row_bytes))
            status = mm_h5_fail(err, MM_BAD_INPUT, "%s: cannot read '%s'", path, where);
        mm_h5_close(set);
    }
    for (size_t i = 0; status == MM_OK && i < count * tensor->cols; i++)
        if (is_nan(out, head->dtype, i))
            status = mm_fail(err, MM_BAD_INPUT,
                             "%s: '%s' row %zu, column %zu is NaN: part missing or damaged", path,
                             where, first + i / tensor->cols, i % tensor->cols);
    mm_h5_close(type);
    mm_free(where);
    return status;
}

static const struct mm_checkpoint_shape *find_shape(const struct mm_checkpoint_head *head,
                                                    const char *name) {
    for (size_t i = 0; i < head->tensors_n; i++)
        if (strcmp(head->tensors[i].name, name) == 0)
            return &head->tensors[i];
    return NULL;
}

static bool state_has(const struct mm_state *state, const char *name) {
    for (size_t i = 0; i < state->tensors_n; i++)
        if (strcmp(state->tensors[i].name, name) == 0)
            return true;
    return false;
}

/* Group g holds the tensor there and not here, or the other way round. */
static enum mm_status differs_in(const char *folder, const char *tensor, int g, bool there,
                                 struct mm_error *err) {
    const char *words = mm_state_groups[g].words;
    return mm_fail(err, MM_BAD_INPUT, "%s: tensor '%s' has %s%s there but %s here", folder, tensor,
                   there ? "" : "no ", there ? words : strchr(words, ' ') + 1,
                   there ? "none" : "one");
}

/* Is the checkpoint one of this model and config? `rank` of `size` reads. */
static enum mm_status compare(const struct mm_checkpoint_head *head, const char *folder,
                              const struct mm_state *state, int rank, int size,
                              struct mm_error *err) {
    if (head->dtype != state->dtype)
        return mm_fail(err, MM_BAD_INPUT, "%s: the state is of %s there and of %s here", folder,
                       mm_dtype_name(head->dtype), mm_dtype_name(state->dtype));
    for (size_t i = 0; i < state->tensors_n; i++) {
        const struct mm_state_tensor *tensor = &state->tensors[i];
        const struct mm_checkpoint_shape *stored = find_shape(head, tensor->name);
        if (!stored)
            return mm_fail(err, MM_BAD_INPUT, "%s: holds no tensor '%s'", folder, tensor->name);
        if (stored->rows != tensor->rows || stored->cols != tensor->cols)
            return mm_fail(err, MM_BAD_INPUT,
                           "%s: tensor '%s' is [%zu, %zu] there and [%zu, %zu] here", folder,
                           tensor->name, stored->rows, stored->cols, tensor->rows, tensor->cols);
        /* Of no rows, the pointer says nothing. */
        bool owns = mm_rows_of(tensor->rows, size, rank).count > 0;
        for (int g = 0; owns && g < MM_STATE_GROUPS; g++)
            if (stored->in[g] != (tensor->own[g] != NULL))
                return differs_in(folder, tensor->name, g, stored->in[g], err);
    }
    for (size_t i = 0; i < head->tensors_n; i++)
        if (!state_has(state, head->tensors[i].name))
            return mm_fail(err, MM_BAD_INPUT, "%s: holds tensor '%s', which is not unlearned here",
                           folder, head->tensors[i].name);
    return MM_OK;
}

static enum mm_status read_own(const struct mm_checkpoint_head *head, const char *folder,
                               const struct mm_state *state, int rank, int size,
                               struct mm_error *err) {
    hid_t file;
    char *path = mm_format("%s/%s", folder, MM_CHECKPOINT_WHOLE);
    enum mm_status status = mm_h5_open(&file, path, err);
    for (size_t i = 0; i < state->tensors_n; i++) {
        const struct mm_state_tensor *tensor = &state->tensors[i];
        struct mm_rows rows = mm_rows_of(tensor->rows, size, rank);
        const struct mm_checkpoint_shape *stored = find_shape(head, tensor->name);
        for (int g = 0; status == MM_OK && rows.count && g < MM_STATE_GROUPS; g++)
            if (stored->in[g])
                status =
                    mm_checkpoint_rows_read(head, file, path, g, stored, rows, tensor->own[g], err);
    }
    mm_h5_close(file);
    mm_free(path);
    return status;
}

enum mm_status mm_checkpoint_read(struct mm_comm *comm, const char *folder, struct mm_state *state,
                                  struct mm_error *err) {
    int rank = mm_comm_rank(comm), size = mm_comm_size(comm);
    struct mm_checkpoint_head head;
    enum mm_status status = verify_together(comm, &head, folder, err);
    if (status == MM_OK)
        status = mm_comm_agree(comm, compare(&head, folder, state, rank, size, err), err);
    if (status == MM_OK)
        status = mm_comm_agree(comm, read_own(&head, folder, state, rank, size, err), err);
    mm_checkpoint_head_free(&head);
    return status;
}
