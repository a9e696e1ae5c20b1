/* checkpoint_layout.c - the bytes of a checkpoint's files; see checkpoint_format.h.
 *
 * HDF5 1.10 is undefined after a write of its own has failed: closing may lose data without a word,
 * and its clean-up may crash. So it never writes to disk here. It lays each file out in memory
 * (memfd), where the tensors' space, allocated but never written, is a hole; we then write file and
 * tensors to disk, see every error, and spend no memory on a second copy of the tensors. */
#define _GNU_SOURCE /* memfd_create */
#include "io/checkpoint_format.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/files.h"
#include "io/h5.h"

/* A file in memory, and what belongs into its holes. */
struct extent {
    uint64_t offset;
    size_t bytes;
    const void *data;
};
struct layout {
    int fd;
    char path[64];
    struct extent *extents;
    size_t extents_n;
};

static struct mm_rows own_rows(const struct mm_checkpoint_job *job,
                               const struct mm_state_tensor *tensor) {
    return mm_rows_of(tensor->rows, job->size, job->rank);
}

static size_t own_bytes(const struct mm_checkpoint_job *job, const struct mm_state_tensor *tensor) {
    return own_rows(job, tensor).count * tensor->cols * mm_dtype_bytes(job->state->dtype);
}

/* Layouts ----------------------------------------------------------------------------------- */

static enum mm_status layout_open(struct layout *layout, size_t extents_max, struct mm_error *err) {
    *layout = (struct layout){.fd = memfd_create("checkpoint", MFD_CLOEXEC)};
    if (layout->fd < 0)
        return mm_fail(err, MM_FAILED, "cannot lay out a checkpoint in memory: %s",
                       strerror(errno));
    snprintf(layout->path, sizeof layout->path, "/proc/self/fd/%d", layout->fd);
    layout->extents = mm_calloc(extents_max, sizeof *layout->extents);
    return MM_OK;
}

static void layout_close(struct layout *layout) {
    if (layout->fd >= 0)
        close(layout->fd);
    mm_free(layout->extents);
}

static int by_offset(const void *a, const void *b) {
    uint64_t x = ((const struct extent *)a)->offset, y = ((const struct extent *)b)->offset;
    return (x > y) - (x < y);
}

/* Writes the layout's own bytes [first, end). */
static enum mm_status write_between(const struct layout *layout, uint64_t first, uint64_t end,
                                    struct mm_output *out, struct mm_error *err) {
    char buffer[1 << 14];
    enum mm_status status = MM_OK;
    while (status == MM_OK && first < end) {
        size_t want = end - first < sizeof buffer ? end - first : sizeof buffer;
        ssize_t got = pread(layout->fd, buffer, want, (off_t)first);
        if (got <= 0)
            return mm_fail(err, MM_FAILED, "cannot read back the layout of '%s': %s", out->path,
                           got < 0 ? strerror(errno) : "it ended early");
        status = mm_output_write(out, buffer, (size_t)got, err);
        first += (uint64_t)got;
    }
    return status;
}

static enum mm_status layout_write(struct layout *layout, const char *path, struct mm_error *err) {
    struct mm_output out;
    struct stat info;
    uint64_t at = 0;
    if (fstat(layout->fd, &info) != 0)
        return mm_fail(err, MM_FAILED, "cannot size '%s': %s", path, strerror(errno));
    enum mm_status status = mm_output_open(&out, path, err);
    if (status != MM_OK)
        return status;
    qsort(layout->extents, layout->extents_n, sizeof *layout->extents, by_offset);
    for (size_t i = 0; status == MM_OK && i < layout->extents_n; i++) {
        const struct extent *extent = &layout->extents[i];
        MM_CHECK(extent->offset >= at && extent->offset + extent->bytes <= (uint64_t)info.st_size,
                 "HDF5 laid tensors over one another");
        status = write_between(layout, at, extent->offset, &out, err);
        if (status == MM_OK)
            status = mm_output_write(&out, extent->data, extent->bytes, err);
        at = extent->offset + extent->bytes;
    }
    if (status == MM_OK)
        status = write_between(layout, at, (uint64_t)info.st_size, &out, err);
    return mm_output_close(&out, status, err);
}

/* Parts ------------------------------------------------------------------------------------- */

static enum mm_status put_format(hid_t file, const struct mm_checkpoint_job *job,
                                 const char *format, struct mm_error *err) {
    enum mm_status status = mm_h5_put_text(file, "format", format, err);
    if (status == MM_OK)
        status = mm_h5_put_count(file, "format_version", MM_CHECKPOINT_VERSION, err);
    if (status == MM_OK)
        status = mm_h5_put_text(file, "writer", "mudman-mpi " MM_VERSION, err);
    if (status == MM_OK)
        status = mm_h5_put_count(file, "loops", job->info->loops, err);
    if (status == MM_OK)
        status = mm_h5_put_count(file, "ranks", (uint64_t)job->size, err);
    if (status == MM_OK)
        status = mm_h5_put_text(file, "dtype", mm_dtype_name(job->state->dtype), err);
    return status;
}

/* Reserves this rank's rows of a tensor in `group`. */
static enum mm_status add_rows(struct layout *layout, const struct mm_checkpoint_job *job,
                               hid_t group, const struct mm_state_tensor *tensor, const void *data,
                               struct mm_error *err) {
    struct mm_rows rows = own_rows(job, tensor);
    hid_t space = H5Screate_simple(2, (hsize_t[]){rows.count, tensor->cols}, NULL);
    hid_t dcpl = H5Pcreate(H5P_DATASET_CREATE), type = mm_h5_type(job->state->dtype), set = -1;
    haddr_t offset = HADDR_UNDEF;
    enum mm_status status = MM_OK;
    if (space >= 0 && dcpl >= 0 && type >= 0 &&
        H5Pset_alloc_time(dcpl, H5D_ALLOC_TIME_EARLY) >= 0 &&
        H5Pset_fill_time(dcpl, H5D_FILL_TIME_NEVER) >= 0)
        set = mm_h5_create_dataset(group, tensor->name, type, space, dcpl);
    if (set >= 0)
        offset = H5Dget_offset(set);
    if (offset == HADDR_UNDEF)
        status = mm_h5_fail(err, MM_FAILED, "cannot lay out tensor '%s'", tensor->name);
    else
        status = mm_h5_put_count(set, "first_row", rows.first, err);
    layout->extents[layout->extents_n++] = (struct extent){offset, own_bytes(job, tensor), data};
    mm_h5_close(set);
    mm_h5_close(type);
    mm_h5_close(dcpl);
    mm_h5_close(space);
    return status;
}

static bool has_group(const struct mm_state *state, int group) {
    for (size_t i = 0; i < state->tensors_n; i++)
        if (mm_checkpoint_rows(&state->tensors[i], group))
            return true;
    return false;
}

static enum mm_status lay_out_part(struct layout *layout, const struct mm_checkpoint_job *job,
                                   struct mm_error *err) {
    hid_t file;
    enum mm_status status = mm_h5_create(&file, layout->path, 0, err);
    if (status != MM_OK)
        return status;
    status = put_format(file, job, MM_CHECKPOINT_PART, err);
    if (status == MM_OK)
        status = mm_h5_put_count(file, "rank", (uint64_t)job->rank, err);
    for (int g = 0; status == MM_OK && g < MM_CHECKPOINT_GROUPS; g++) {
        if (!has_group(job->state, g))
            continue;
        hid_t group = mm_h5_create_group(file, mm_checkpoint_groups[g]);
        if (group < 0)
            status = mm_h5_fail(err, MM_FAILED, "cannot lay out '%s'", mm_checkpoint_groups[g]);
        for (size_t i = 0; status == MM_OK && i < job->state->tensors_n; i++) {
            const struct mm_state_tensor *tensor = &job->state->tensors[i];
            const void *data = mm_checkpoint_rows(tensor, g);
            if (data && own_rows(job, tensor).count)
                status = add_rows(layout, job, group, tensor, data, err);
        }
        mm_h5_close(group);
    }
    if (H5Fclose(file) < 0 && status == MM_OK)
        status = mm_h5_fail(err, MM_FAILED, "cannot lay out a part of a checkpoint");
    return status;
}

enum mm_status mm_checkpoint_part_write(const struct mm_checkpoint_job *job, char hash[33],
                                        struct mm_error *err) {
    struct layout layout;
    char name[32];
    mm_checkpoint_part_name(name, job->rank);
    char *path = mm_format("%s/%s", job->folder, name);
    /* Every rank makes the folder: a shared file system may show it late to the others. */
    enum mm_status status = mm_folder_make(job->folder, err);
    if (status == MM_OK) {
        status = layout_open(&layout, job->state->tensors_n * MM_CHECKPOINT_GROUPS, err);
        if (status == MM_OK)
            status = lay_out_part(&layout, job, err);
        if (status == MM_OK)
            status = layout_write(&layout, path, err);
        layout_close(&layout);
    }
    if (status == MM_OK)
        status = mm_file_hash(path, 0, hash, err);
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
        dcpl = virtual_plist(job, tensor, mm_checkpoint_groups[group], type, space);
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

static enum mm_status lay_out_whole(struct layout *layout, const struct mm_checkpoint_job *job,
                                    struct mm_error *err) {
    hid_t file;
    enum mm_status status = mm_h5_create(&file, layout->path, MM_USER_BLOCK, err);
    if (status != MM_OK)
        return status;
    status = put_info(file, job, err);
    for (int g = 0; status == MM_OK && g < MM_CHECKPOINT_GROUPS; g++) {
        if (!has_group(job->state, g))
            continue;
        hid_t group = mm_h5_create_group(file, mm_checkpoint_groups[g]);
        if (group < 0)
            status = mm_h5_fail(err, MM_FAILED, "cannot lay out '%s'", mm_checkpoint_groups[g]);
        for (size_t i = 0; status == MM_OK && i < job->state->tensors_n; i++)
            status = add_virtual(job, group, g, &job->state->tensors[i], err);
        mm_h5_close(group);
    }
    if (H5Fclose(file) < 0 && status == MM_OK)
        status = mm_h5_fail(err, MM_FAILED, "cannot lay out '%s'", MM_CHECKPOINT_WHOLE);
    return status;
}

enum mm_status mm_checkpoint_whole_write(const struct mm_checkpoint_job *job,
                                         struct mm_error *err) {
    struct layout layout;
    char hash[33], block[MM_USER_BLOCK];
    char *path = mm_format("%s/%s", job->folder, MM_CHECKPOINT_WHOLE);
    enum mm_status status = layout_open(&layout, 0, err);
    if (status == MM_OK)
        status = lay_out_whole(&layout, job, err);
    if (status == MM_OK)
        status = mm_file_hash(layout.path, MM_USER_BLOCK, hash, err);
    if (status == MM_OK) {
        mm_checkpoint_seal(block, hash);
        if (pwrite(layout.fd, block, sizeof block, 0) != sizeof block)
            status = mm_fail(err, MM_FAILED, "cannot seal '%s': %s", path, strerror(errno));
    }
    if (status == MM_OK)
        status = layout_write(&layout, path, err);
    layout_close(&layout);
    mm_free(path);
    return status;
}
