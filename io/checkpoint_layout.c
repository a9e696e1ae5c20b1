/* checkpoint_layout.c - writes the content of a checkpoint's files; see checkpoint_format.h. HDF5
 * lays them out in memory (h5_memory.h), so that every error of the disk is seen. */
#include "io/checkpoint_format.h"

#include "io/files.h"
#include "io/h5_memory.h"

static struct mm_rows own_rows(const struct mm_checkpoint_job *job,
                               const struct mm_state_tensor *tensor) {
    return mm_rows_of(tensor->rows, job->size, job->rank);
}

static enum mm_status put_format(hid_t file, const struct mm_checkpoint_job *job,
                                 const char *format, struct mm_error *err) {
    char *writer = mm_format("mudman-mpi %s", mm_version);
    enum mm_status status = mm_h5_put_text(file, "format", format, err);
    if (status == MM_OK)
        status = mm_h5_put_count(file, "format_version", MM_CHECKPOINT_VERSION, err);
    if (status == MM_OK)
        status = mm_h5_put_text(file, "writer", writer, err);
    mm_free(writer);
    if (status == MM_OK)
        status = mm_h5_put_count(file, "loops", job->info->loops, err);
    if (status == MM_OK)
        status = mm_h5_put_count(file, "ranks", (uint64_t)job->size, err);
    if (status == MM_OK)
        status = mm_h5_put_text(file, "dtype", mm_dtype_name(job->state->dtype), err);
    return status;
}

/* Adds this rank's rows of a tensor to `group`. */
static enum mm_status add_rows(struct mm_h5_memory *memory, const struct mm_checkpoint_job *job,
                               hid_t group, const struct mm_state_tensor *tensor, const void *data,
                               struct mm_error *err) {
    struct mm_rows rows = own_rows(job, tensor);
    struct mm_h5_content content = {job->state->dtype, rows.count, tensor->cols, data};
    hid_t set;
    enum mm_status status = mm_h5_memory_dataset(memory, group, tensor->name, &content, &set, err);
    if (status == MM_OK)
        status = mm_h5_put_count(set, "first_row", rows.first, err);
    mm_h5_close(set);
    return status;
}

static bool has_group(const struct mm_state *state, int group) {
    for (size_t i = 0; i < state->tensors_n; i++)
        if (state->tensors[i].own[group])
            return true;
    return false;
}

static enum mm_status fill_part(struct mm_h5_memory *memory, hid_t file,
                                const struct mm_checkpoint_job *job, struct mm_error *err) {
    enum mm_status status = put_format(file, job, MM_CHECKPOINT_PART, err);
    if (status == MM_OK)
        status = mm_h5_put_count(file, "rank", (uint64_t)job->rank, err);
    for (int g = 0; status == MM_OK && g < MM_STATE_GROUPS; g++) {
        if (!has_group(job->state, g))
            continue;
        hid_t group = mm_h5_create_group(file, mm_state_groups[g].name);
        if (group < 0)
            status = mm_h5_fail(err, MM_FAILED, "cannot lay out '%s'", mm_state_groups[g].name);
        for (size_t i = 0; status == MM_OK && i < job->state->tensors_n; i++) {
            const struct mm_state_tensor *tensor = &job->state->tensors[i];
            const void *data = tensor->own[g];
            if (data && own_rows(job, tensor).count)
                status = add_rows(memory, job, group, tensor, data, err);
        }
        mm_h5_close(group);
    }
    return status;
}

enum mm_status mm_checkpoint_part_write(const struct mm_checkpoint_job *job, char hash[33],
                                        struct mm_error *err) {
    struct mm_h5_memory *memory = NULL;
    hid_t file;
    char name[32];
    mm_checkpoint_part_name(name, job->rank);
    char *path = mm_format("%s/%s", job->folder, name);
    /* Every rank makes the folder: a shared file system may show it late to the others. */
    enum mm_status status = mm_folder_make(job->folder, err);
    if (status == MM_OK)
        status = mm_h5_memory_create(&memory, &file, 0, err);
    if (status == MM_OK)
        status = mm_h5_memory_close(file, fill_part(memory, file, job, err), err);
    if (status == MM_OK)
        status = mm_h5_memory_write(memory, path, 0, hash, err);
    mm_h5_memory_free(memory);
    mm_free(path);
    return status;
}

/* checkpoint.h5 ----------------------------------------------------------------------------- */

/* The property list of a virtual dataset: which part holds which rows. */
static hid_t virtual_plist(const struct mm_checkpoint_job *job,
                           const struct mm_state_tensor *tensor, const char *group, hid_t type,
                           hid_t space) {
    const float nan32 = __builtin_nanf("");
    const uint16_t nan16 = mm_bf16_from_f32(nan32);
    hid_t dcpl = H5Pcreate(H5P_DATASET_CREATE);
    bool ok =
        dcpl >= 0 && H5Pset_fill_value(dcpl, type,
                                       job->state->dtype == MM_F32 ? (const void *)&nan32
                                                                   : (const void *)&nan16) >= 0;
    char *source = mm_format("/%s/%s", group, tensor->name);
    for (int r = 0; ok && r < job->size; r++) {
        struct mm_rows rows = mm_rows_of(tensor->rows, job->size, r);
        hsize_t start[2] = {rows.first, 0}, block[2] = {rows.count, tensor->cols};
        char part[32];
        if (!rows.count)
            break;
        mm_checkpoint_part_name(part, r);
        hid_t there = H5Screate_simple(2, block, NULL);
        ok = there >= 0 &&
             H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, block, NULL) >= 0 &&
             H5Pset_virtual(dcpl, space, part, source, there) >= 0;
        mm_h5_close(there);
    }
    mm_free(source);
    if (!ok) {
        mm_h5_close(dcpl);
        return -1;
    }
    return dcpl;
}

static enum mm_status add_virtual(const struct mm_checkpoint_job *job, hid_t at, int group,
                                  const struct mm_state_tensor *tensor, struct mm_error *err) {
    hid_t space = H5Screate_simple(2, (hsize_t[]){tensor->rows, tensor->cols}, NULL);
    hid_t type = mm_h5_type(job->state->dtype), dcpl = -1, set = -1;
    enum mm_status status = MM_OK;
    if (space >= 0 && type >= 0)
        dcpl = virtual_plist(job, tensor, mm_state_groups[group].name, type, space);
    if (dcpl >= 0 && H5Sselect_all(space) >= 0)
        set = mm_h5_create_dataset(at, tensor->name, type, space, dcpl);
    if (set < 0)
        status = mm_h5_fail(err, MM_FAILED, "cannot lay out tensor '%s'", tensor->name);
    mm_h5_close(set);
    mm_h5_close(dcpl);
    mm_h5_close(type);
    mm_h5_close(space);
    return status;
}

static enum mm_status put_info(hid_t file, const struct mm_checkpoint_job *job,
                               struct mm_error *err) {
    const struct mm_checkpoint_info *info = job->info;
    enum mm_status status = put_format(file, job, MM_CHECKPOINT_FORMAT, err);
    if (status == MM_OK)
        status = mm_h5_put_hashes(file, "part_hashes", job->hashes, (size_t)job->size, err);
    if (status == MM_OK)
        status = mm_h5_put_count(file, "retain_cursor", info->retain_cursor, err);
    if (status == MM_OK)
        status = mm_h5_put_count(file, "forget_cursor", info->forget_cursor, err);
    if (status == MM_OK)
        status = mm_h5_put_count(file, "metrics_bytes", info->metrics_bytes, err);
    if (status == MM_OK)
        status = mm_h5_put_text(file, "weights_hash", info->weights_hash, err);
    if (status == MM_OK)
        status = mm_h5_put_text(file, "config", info->config ? info->config : "", err);
    if (status == MM_OK)
        status = mm_h5_put_text(file, "extra", info->extra ? info->extra : "", err);
    return status;
}

static enum mm_status fill_whole(hid_t file, const struct mm_checkpoint_job *job,
                                 struct mm_error *err) {
    enum mm_status status = put_info(file, job, err);
    for (int g = 0; status == MM_OK && g < MM_STATE_GROUPS; g++) {
        if (!has_group(job->state, g))
            continue;
        hid_t group = mm_h5_create_group(file, mm_state_groups[g].name);
        if (group < 0)
            status = mm_h5_fail(err, MM_FAILED, "cannot lay out '%s'", mm_state_groups[g].name);
        for (size_t i = 0; status == MM_OK && i < job->state->tensors_n; i++)
            if (job->state->tensors[i].own[g]) /* rank 0 has rows of each */
                status = add_virtual(job, group, g, &job->state->tensors[i], err);
        mm_h5_close(group);
    }
    return status;
}

enum mm_status mm_checkpoint_whole_write(const struct mm_checkpoint_job *job,
                                         struct mm_error *err) {
    struct mm_h5_memory *memory;
    hid_t file;
    char hash[33], block[MM_USER_BLOCK];
    enum mm_status status = mm_h5_memory_create(&memory, &file, MM_USER_BLOCK, err);
    if (status != MM_OK)
        return status;
    char *path = mm_format("%s/%s", job->folder, MM_CHECKPOINT_WHOLE);
    status = mm_h5_memory_close(file, fill_whole(file, job, err), err);
    if (status == MM_OK) {
        mm_h5_memory_hash(memory, MM_USER_BLOCK, hash);
        mm_checkpoint_seal(block, hash);
        mm_h5_memory_patch(memory, 0, block, sizeof block);
        status = mm_h5_memory_write(memory, path, MM_USER_BLOCK, hash, err);
    }
    mm_h5_memory_free(memory);
    mm_free(path);
    return status;
}
