/* checkpoint_head.c - what checkpoint.h5 says, and whether it and the parts are what they should
 * be; see checkpoint_format.h. Hashes come first: HDF5 is shown only bytes that are as they were
 * written. */
#include "io/checkpoint_format.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "io/files.h"

enum { RANKS_MAX = 1 << 20 };

const struct mm_state_group_row mm_state_groups[MM_STATE_GROUPS] = {
    [MM_GROUP_BASE] = {"base", "a base", MM_TENSORS_OF_BASE},
    [MM_GROUP_ADVERSARY] = {"adversary", "an adversary", MM_TENSORS_ITS_OWN},
    [MM_GROUP_RETAIN_ACC] = {"retain_acc", "a retain accumulator", MM_TENSORS_OF_BASE},
    [MM_GROUP_FORGET_ACC] = {"forget_acc", "a forget accumulator", MM_TENSORS_OF_BASE_OR_NO},
    [MM_GROUP_KEPT] = {"kept", "a kept base", MM_TENSORS_OF_BASE_OR_NO},
};

void mm_checkpoint_part_name(char name[32], int rank) {
    snprintf(name, 32, "part-%05d.h5", rank);
}

void mm_checkpoint_seal(char block[MM_USER_BLOCK], const char hex[33]) {
    memset(block, ' ', MM_USER_BLOCK);
    int length =
        snprintf(block, MM_USER_BLOCK,
                 MM_CHECKPOINT_FORMAT ": XXH128 of the bytes from %d on: %s\n", MM_USER_BLOCK, hex);
    block[length] = ' ';
    block[MM_USER_BLOCK - 1] = '\n';
}

void mm_checkpoint_info_free(struct mm_checkpoint_info *info) {
    mm_free(info->config);
    mm_free(info->extra);
    *info = (struct mm_checkpoint_info){0};
}

static enum mm_status check_seal(const char *path, char hash[33], struct mm_error *err) {
    char found[MM_USER_BLOCK], expected[MM_USER_BLOCK];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return mm_fail(err, MM_BAD_INPUT, "%s: cannot read: %s", path, strerror(errno));
    ssize_t got = read(fd, found, sizeof found);
    close(fd);
    if (got != sizeof found)
        return mm_fail(err, MM_BAD_INPUT, "%s: damaged: %zd bytes", path, got);
    enum mm_status status = mm_file_hash(path, MM_USER_BLOCK, hash, err);
    if (status != MM_OK)
        return status;
    mm_checkpoint_seal(expected, hash);
    if (memcmp(found, expected, sizeof found) != 0)
        return mm_fail(err, MM_BAD_INPUT, "%s: damaged: its content does not match its hash", path);
    return MM_OK;
}

/* Attributes -------------------------------------------------------------------------------- */

static enum mm_status check_format(hid_t file, const char *path, const char *format,
                                   struct mm_error *err) {
    char *text;
    uint64_t version = 0;
    enum mm_status status = mm_h5_get_text(file, path, "format", &text, err);
    if (status == MM_OK && strcmp(text, format) != 0)
        status = mm_fail(err, MM_BAD_INPUT, "%s: not a %s", path, format);
    if (status == MM_OK)
        status = mm_h5_get_count(file, path, "format_version", UINT32_MAX, &version, err);
    if (status == MM_OK && version != MM_CHECKPOINT_VERSION)
        status = mm_fail(err, MM_BAD_INPUT, "%s: format version %d; this program reads %d", path,
                         (int)version, MM_CHECKPOINT_VERSION);
    mm_free(text);
    return status;
}

static enum mm_status get_size(hid_t file, const char *path, const char *name, size_t *value,
                               struct mm_error *err) {
    uint64_t number = 0;
    enum mm_status status = mm_h5_get_count(file, path, name, SIZE_MAX, &number, err);
    *value = (size_t)number;
    return status;
}

static enum mm_status read_info(struct mm_checkpoint_info *info, hid_t file, const char *path,
                                struct mm_error *err) {
    char *hash = NULL;
    enum mm_status status = get_size(file, path, "loops", &info->loops, err);
    if (status == MM_OK)
        status = get_size(file, path, "retain_cursor", &info->retain_cursor, err);
    if (status == MM_OK)
        status = get_size(file, path, "forget_cursor", &info->forget_cursor, err);
    if (status == MM_OK)
        status = get_size(file, path, "metrics_bytes", &info->metrics_bytes, err);
    if (status == MM_OK)
        status = mm_h5_get_text(file, path, "weights_hash", &hash, err);
    if (status == MM_OK && strlen(hash) >= sizeof info->weights_hash)
        status = mm_fail(err, MM_BAD_INPUT, "%s: 'weights_hash' is no hash", path);
    if (status == MM_OK)
        strcpy(info->weights_hash, hash);
    mm_free(hash);
    if (status == MM_OK)
        status = mm_h5_get_text(file, path, "config", &info->config, err);
    if (status == MM_OK)
        status = mm_h5_get_text(file, path, "extra", &info->extra, err);
    return status;
}

static enum mm_status read_layout(struct mm_checkpoint_head *head, hid_t file, const char *path,
                                  struct mm_error *err) {
    char *dtype = NULL;
    uint64_t ranks = 0;
    enum mm_status status = mm_h5_get_text(file, path, "dtype", &dtype, err);
    if (status == MM_OK) {
        head->dtype = strcmp(dtype, mm_dtype_name(MM_BF16)) == 0 ? MM_BF16 : MM_F32;
        if (strcmp(dtype, mm_dtype_name(head->dtype)) != 0)
            status = mm_fail(err, MM_BAD_INPUT, "%s: unknown dtype '%s'", path, dtype);
    }
    mm_free(dtype);
    if (status == MM_OK)
        status = mm_h5_get_count(file, path, "ranks", RANKS_MAX, &ranks, err);
    if (status == MM_OK && ranks == 0)
        status = mm_fail(err, MM_BAD_INPUT, "%s: written by 0 ranks", path);
    if (status != MM_OK)
        return status;
    head->ranks = (int)ranks;
    head->hashes = mm_calloc(ranks, sizeof *head->hashes);
    return mm_h5_get_hashes(file, path, "part_hashes", head->hashes, ranks, err);
}

/* Tensors ----------------------------------------------------------------------------------- */

/* Opens /<group>/<tensor>, of which so many rows are there, and checks shape and dtype. */
static enum mm_status open_tensor(const struct mm_checkpoint_head *head, hid_t file,
                                  const char *path, int group,
                                  const struct mm_checkpoint_shape *tensor, size_t rows, hid_t *set,
                                  struct mm_error *err) {
    hsize_t dims[2] = {0};
    enum mm_dtype dtype;
    char *where = mm_format("%s/%s", mm_state_groups[group].name, tensor->name);
    enum mm_status status = mm_h5_open_dataset(set, file, path, where, err);
    if (status == MM_OK)
        status = mm_h5_dims(*set, path, where, 2, dims, err);
    if (status == MM_OK && (dims[0] != rows || dims[1] != tensor->cols))
        status =
            mm_fail(err, MM_BAD_INPUT, "%s: '%s' is [%llu, %llu], not [%zu, %zu]", path, where,
                    (unsigned long long)dims[0], (unsigned long long)dims[1], rows, tensor->cols);
    if (status == MM_OK && (!mm_h5_dtype(*set, &dtype) || dtype != head->dtype))
        status = mm_fail(err, MM_BAD_INPUT, "%s: '%s' does not hold %s", path, where,
                         mm_dtype_name(head->dtype));
    if (status != MM_OK) {
        mm_h5_close(*set);
        *set = -1;
    }
    mm_free(where);
    return status;
}

/* Is mapping i of a virtual dataset that of rank i's rows? */
static bool mapping_is(hid_t dcpl, int i, const char *source, struct mm_rows rows, size_t cols) {
    char part[32], file[32] = "";
    size_t length = strlen(source) + 2;
    char *set = mm_calloc(length, 1);
    hsize_t first[2] = {0}, last[2] = {0};
    mm_checkpoint_part_name(part, i);
    hid_t space = H5Pget_virtual_vspace(dcpl, (size_t)i);
    bool ok = space >= 0 && H5Pget_virtual_filename(dcpl, (size_t)i, file, sizeof file) >= 0 &&
              H5Pget_virtual_dsetname(dcpl, (size_t)i, set, length) >= 0 &&
              H5Sget_select_bounds(space, first, last) >= 0;
    ok = ok && strcmp(file, part) == 0 && strcmp(set, source) == 0;
    ok = ok && first[0] == rows.first && last[0] == rows.first + rows.count - 1 && first[1] == 0 &&
         last[1] == cols - 1;
    mm_h5_close(space);
    mm_free(set);
    return ok;
}

static enum mm_status check_virtual(const struct mm_checkpoint_head *head, hid_t file,
                                    const char *path, int group,
                                    const struct mm_checkpoint_shape *tensor,
                                    struct mm_error *err) {
    hid_t set;
    size_t mappings = 0, expected = 0;
    enum mm_status status = open_tensor(head, file, path, group, tensor, tensor->rows, &set, err);
    if (status != MM_OK)
        return status;
    char *source = mm_format("/%s/%s", mm_state_groups[group].name, tensor->name);
    hid_t dcpl = H5Dget_create_plist(set);
    bool ok = dcpl >= 0 && H5Pget_layout(dcpl) == H5D_VIRTUAL &&
              H5Pget_virtual_count(dcpl, &mappings) >= 0;
    for (int r = 0; ok && r < head->ranks; r++) {
        struct mm_rows rows = mm_rows_of(tensor->rows, head->ranks, r);
        if (!rows.count)
            break;
        ok = expected++ < mappings && mapping_is(dcpl, r, source, rows, tensor->cols);
    }
    if (!ok || expected != mappings)
        status = mm_fail(err, MM_BAD_INPUT, "%s: '%s' does not show the parts' rows", path, source);
    mm_h5_close(dcpl);
    mm_h5_close(set);
    mm_free(source);
    return status;
}

static struct mm_checkpoint_shape *find_tensor(struct mm_checkpoint_head *head, const char *name) {
    for (size_t i = 0; i < head->tensors_n; i++)
        if (strcmp(head->tensors[i].name, name) == 0)
            return &head->tensors[i];
    return NULL;
}

/* Names are looked up one by one: a file with a million would take for ever. */
#define MOST_TENSORS 32768

/* What add_name is given: the head and the group whose names come. */
struct naming {
    struct mm_checkpoint_head *head;
    int group;
};

/* Adds a tensor by its name alone: the number of links is the file's word, the links are there.
 * Another group may have brought it already. */
static herr_t add_name(hid_t group, const char *name, const H5L_info_t *link, void *self) {
    (void)group, (void)link;
    struct naming *naming = self;
    struct mm_checkpoint_head *head = naming->head;
    struct mm_checkpoint_shape *tensor = find_tensor(head, name);
    if (!tensor) {
        size_t n = head->tensors_n;
        if (n == MOST_TENSORS)
            return -1;
        if ((n & (n - 1)) == 0) /* 0 or a power of two: the table is full */
            head->tensors = mm_realloc(head->tensors, (n ? 2 * n : 1) * sizeof *head->tensors);
        tensor = &head->tensors[head->tensors_n++];
        *tensor = (struct mm_checkpoint_shape){.name = mm_strdup(name)};
    }
    tensor->in[naming->group] = true;
    return 0;
}

static enum mm_status read_names(struct mm_checkpoint_head *head, hid_t file, const char *path,
                                 int group, struct mm_error *err) {
    struct naming naming = {head, group};
    enum mm_status status = MM_OK;
    hid_t id = H5Gopen2(file, mm_state_groups[group].name, H5P_DEFAULT);
    if (id < 0 || H5Literate(id, H5_INDEX_NAME, H5_ITER_INC, NULL, add_name, &naming) < 0)
        status = mm_h5_fail(err, MM_BAD_INPUT, "%s: cannot read the tensors' names", path);
    mm_h5_close(id);
    return status;
}

/* The tensor's shape in a group, the same in each. */
static enum mm_status read_tensor(const struct mm_checkpoint_head *head, hid_t file,
                                  const char *path, int group, struct mm_checkpoint_shape *tensor,
                                  struct mm_error *err) {
    hsize_t dims[2];
    hid_t set;
    char *where = mm_format("%s/%s", mm_state_groups[group].name, tensor->name);
    enum mm_status status = mm_h5_open_dataset(&set, file, path, where, err);
    if (status == MM_OK)
        status = mm_h5_dims(set, path, where, 2, dims, err);
    mm_h5_close(set);
    mm_free(where);
    if (status != MM_OK)
        return status;
    if (tensor->rows == 0) {
        tensor->rows = dims[0];
        tensor->cols = dims[1];
    }
    return check_virtual(head, file, path, group, tensor, err);
}

/* Whether every group holds the tensors that its row says; has[]: whether the group is there. */
static enum mm_status check_groups(const struct mm_checkpoint_head *head,
                                   const bool has[MM_STATE_GROUPS], const char *path,
                                   struct mm_error *err) {
    bool ok = head->tensors_n > 0;
    for (size_t i = 0; i < head->tensors_n; i++)
        for (int g = 0; g < MM_STATE_GROUPS; g++) {
            const bool *in = head->tensors[i].in;
            enum mm_group_tensors tensors = mm_state_groups[g].tensors;
            bool absent = tensors == MM_TENSORS_OF_BASE_OR_NO && !has[g];
            ok = ok && (tensors == MM_TENSORS_ITS_OWN || in[g] == (in[MM_GROUP_BASE] && !absent));
        }
    return ok ? MM_OK
              : mm_fail(err, MM_BAD_INPUT, "%s: the groups hold different tensors, or none", path);
}

static enum mm_status read_tensors(struct mm_checkpoint_head *head, hid_t file, const char *path,
                                   struct mm_error *err) {
    bool has[MM_STATE_GROUPS];
    enum mm_status status = MM_OK;
    for (int g = 0; g < MM_STATE_GROUPS && status == MM_OK; g++) {
        has[g] = mm_h5_own(file, mm_state_groups[g].name);
        if (has[g])
            status = read_names(head, file, path, g, err);
    }
    if (status == MM_OK)
        status = check_groups(head, has, path, err);
    for (size_t i = 0; i < head->tensors_n; i++)
        for (int g = 0; g < MM_STATE_GROUPS && status == MM_OK; g++)
            if (head->tensors[i].in[g])
                status = read_tensor(head, file, path, g, &head->tensors[i], err);
    return status;
}

/* Whole files ------------------------------------------------------------------------------- */

enum mm_status mm_checkpoint_head_read(struct mm_checkpoint_head *head, const char *folder,
                                       struct mm_error *err) {
    hid_t file = -1;
    char *path = mm_format("%s/%s", folder, MM_CHECKPOINT_WHOLE);
    *head = (struct mm_checkpoint_head){0};
    enum mm_status status = check_seal(path, head->hash, err);
    if (status == MM_OK)
        status = mm_h5_open(&file, path, err);
    if (status == MM_OK)
        status = check_format(file, path, MM_CHECKPOINT_FORMAT, err);
    if (status == MM_OK)
        status = read_info(&head->info, file, path, err);
    if (status == MM_OK)
        status = read_layout(head, file, path, err);
    if (status == MM_OK)
        status = read_tensors(head, file, path, err);
    mm_h5_close(file);
    mm_free(path);
    return status;
}

void mm_checkpoint_head_free(struct mm_checkpoint_head *head) {
    for (size_t i = 0; i < head->tensors_n; i++)
        mm_free(head->tensors[i].name);
    mm_free(head->tensors);
    mm_free(head->hashes);
    mm_checkpoint_info_free(&head->info);
    *head = (struct mm_checkpoint_head){0};
}

static enum mm_status check_rows(const struct mm_checkpoint_head *head, hid_t file,
                                 const char *path, int rank, struct mm_error *err) {
    enum mm_status status = check_format(file, path, MM_CHECKPOINT_PART, err);
    for (size_t i = 0; status == MM_OK && i < head->tensors_n; i++) {
        const struct mm_checkpoint_shape *tensor = &head->tensors[i];
        size_t rows = mm_rows_of(tensor->rows, head->ranks, rank).count;
        for (int g = 0; status == MM_OK && rows && g < MM_STATE_GROUPS; g++) {
            hid_t set = -1;
            if (tensor->in[g])
                status = open_tensor(head, file, path, g, tensor, rows, &set, err);
            /* Virtual here, it could lead back to checkpoint.h5, for ever. */
            if (set >= 0)
                status = mm_h5_check_stored(set, path, tensor->name, 2,
                                            (const hsize_t[]){rows, tensor->cols}, err);
            mm_h5_close(set);
        }
    }
    return status;
}

enum mm_status mm_checkpoint_part_check(const struct mm_checkpoint_head *head, const char *folder,
                                        int rank, struct mm_error *err) {
    char name[32], hash[33];
    hid_t file = -1;
    mm_checkpoint_part_name(name, rank);
    char *path = mm_format("%s/%s", folder, name);
    enum mm_status status = mm_file_hash(path, 0, hash, err);
    if (status == MM_OK && strcmp(hash, head->hashes[rank]) != 0)
        status = mm_fail(err, MM_BAD_INPUT, "%s: damaged: its hash is not the one in %s", path,
                         MM_CHECKPOINT_WHOLE);
    if (status == MM_OK)
        status = mm_h5_open(&file, path, err);
    if (status == MM_OK)
        status = check_rows(head, file, path, rank, err);
    mm_h5_close(file);
    mm_free(path);
    return status;
}
