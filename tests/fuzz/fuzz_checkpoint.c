/* fuzz_checkpoint.c - a checkpoint folder whose hashes are right and whose content is the input's:
 * two tensors on one to three ranks. Verified, read, inspected, whole and by part. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "io/checkpoint_format.h"
#include "io/files.h"
#include "io/inspect.h"
#include "tests/fuzz/h5_build.h"

enum { RANKS = 3, ROWS = 5, COLS = 2 };

static const char *const tensors[] = {"a", "b.weight"};
static const float values[ROWS * COLS] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};

static void put_format(hid_t file, const char *format, struct fuzz_bytes *bytes) {
    fuzz_h5_attribute(file, "format", format, 0, bytes);
    fuzz_h5_attribute(file, "format_version", NULL, MM_CHECKPOINT_VERSION, bytes);
}

static int groups_n(size_t groups) {
    return groups == 0 ? 3 : (int)groups; /* base, adversary, retain_acc */
}

static void build_part(const char *path, int rank, int ranks, size_t groups,
                       struct fuzz_bytes *bytes) {
    struct mm_rows rows = mm_rows_of(ROWS, ranks, rank);
    hid_t file = fuzz_h5_create(path, 0, bytes);
    put_format(file, MM_CHECKPOINT_PART, bytes);
    fuzz_h5_attribute(file, "loops", NULL, 3, bytes);
    fuzz_h5_attribute(file, "rank", NULL, (uint64_t)rank, bytes);
    fuzz_h5_attribute(file, "ranks", NULL, (uint64_t)ranks, bytes);
    for (int g = 0; g < groups_n(groups); g++) {
        hid_t group = fuzz_h5_group(file, mm_state_groups[g].name, bytes);
        for (int t = 0; t < 2 && group >= 0 && rows.count; t++)
            fuzz_h5_dataset(group, tensors[t],
                            &(struct fuzz_h5_set){H5T_IEEE_F32LE, 2, {rows.count, COLS}, values},
                            bytes);
        mm_h5_close(group);
    }
    H5Fclose(file);
}

/* The mapping of one rank's rows, right where the input says 0. */
static void map_rows(hid_t dcpl, hid_t space, const char *source, struct mm_rows rows, int rank,
                     struct fuzz_bytes *bytes) {
    static const char *const files[] = {".", "checkpoint.h5", "../a.h5", "part-%b.h5", "/dev/null"};
    hsize_t start[2] = {rows.first, 0}, block[2] = {rows.count, COLS};
    char part[32];
    mm_checkpoint_part_name(part, rank);
    size_t kind = fuzz_choose(bytes, 8);
    const char *from = kind == 1 ? files[fuzz_choose(bytes, 5)] : part;
    if (kind == 2)
        source = fuzz_choose(bytes, 2) ? "/base/none" : "";
    if (kind == 3)
        start[1] += fuzz_choose(bytes, 4);
    if (kind == 5)
        start[0] += fuzz_choose(bytes, 4);
    hid_t there = H5Screate_simple(2, block, NULL);
    if (kind == 4)
        H5Sselect_none(space);
    else
        H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, block, NULL);
    H5Pset_virtual(dcpl, space, from, source, there);
    H5Sclose(there);
}

static void put_virtual(hid_t at, const char *group, const char *name, int ranks,
                        struct fuzz_bytes *bytes) {
    size_t kind = fuzz_choose(bytes, 8);
    if (kind > 4) {
        fuzz_h5_dataset(at, name, &(struct fuzz_h5_set){H5T_IEEE_F32LE, 2, {ROWS, COLS}, values},
                        bytes);
        return;
    }
    /* An even kind has the right shape. */
    hsize_t dims[2] = {ROWS, COLS};
    for (int i = 0; i < 2 && kind % 2; i++)
        dims[i] = fuzz_size(bytes);
    hid_t space = H5Screate_simple(2, dims, NULL), dcpl = H5Pcreate(H5P_DATASET_CREATE);
    char *source = mm_format("/%s/%s", group, name);
    for (int r = 0; r < ranks && space >= 0; r++) {
        struct mm_rows rows = mm_rows_of(kind % 2 ? dims[0] : ROWS, ranks, r);
        if (rows.count)
            map_rows(dcpl, space, source, rows, r, bytes);
    }
    if (space >= 0)
        H5Sselect_all(space);
    mm_h5_close(space < 0
                    ? -1
                    : H5Dcreate2(at, name, H5T_IEEE_F32LE, space, H5P_DEFAULT, dcpl, H5P_DEFAULT));
    mm_h5_close(dcpl);
    mm_h5_close(space);
    mm_free(source);
}

static void put_hashes(hid_t file, char (*hashes)[33], int ranks, struct fuzz_bytes *bytes) {
    char packed[RANKS * 32];
    for (int r = 0; r < RANKS; r++)
        memcpy(packed + 32 * r, hashes[r], 32);
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, 32);
    hid_t space = H5Screate_simple(1, (const hsize_t[]){(hsize_t)ranks}, NULL);
    hid_t attribute = -1;
    if (fuzz_choose(bytes, 4))
        fuzz_h5_attribute(file, "part_hashes", hashes[0], 0, bytes);
    else
        attribute = H5Acreate2(file, "part_hashes", type, space, H5P_DEFAULT, H5P_DEFAULT);
    if (attribute >= 0)
        H5Awrite(attribute, type, packed);
    mm_h5_close(attribute);
    mm_h5_close(space);
    mm_h5_close(type);
}

static void build_whole(const char *path, char (*hashes)[33], int ranks, size_t groups,
                        struct fuzz_bytes *bytes) {
    static const char *const counts[] = {"loops", "retain_cursor", "forget_cursor",
                                         "metrics_bytes"};
    hid_t file = fuzz_h5_create(path, MM_USER_BLOCK, bytes);
    put_format(file, MM_CHECKPOINT_FORMAT, bytes);
    for (size_t i = 0; i < 4; i++)
        fuzz_h5_attribute(file, counts[i], NULL, 3, bytes);
    fuzz_h5_attribute(file, "weights_hash", "0123456789abcdef0123456789abcdef", 0, bytes);
    fuzz_h5_attribute(file, "config", "seed: 1\n", 0, bytes);
    fuzz_h5_attribute(file, "extra", "{}", 0, bytes);
    fuzz_h5_attribute(file, "dtype", "float32", 0, bytes);
    fuzz_h5_attribute(file, "ranks", NULL, (uint64_t)ranks, bytes);
    put_hashes(file, hashes, ranks, bytes);
    for (int g = 0; g < groups_n(groups); g++) {
        hid_t group = fuzz_h5_group(file, mm_state_groups[g].name, bytes);
        for (int t = 0; t < 2 && group >= 0; t++)
            put_virtual(group, mm_state_groups[g].name, tensors[t], ranks, bytes);
        mm_h5_close(group);
    }
    H5Fclose(file);
    char hash[33], block[MM_USER_BLOCK];
    struct mm_error err;
    FUZZ_CHECK(mm_file_hash(path, MM_USER_BLOCK, hash, &err) == MM_OK);
    mm_checkpoint_seal(block, hash);
    FILE *sealed = fopen(path, "r+b");
    FUZZ_CHECK(sealed && fwrite(block, 1, sizeof block, sealed) == sizeof block);
    FUZZ_CHECK(fclose(sealed) == 0);
}

/* Parts of an earlier input stay: they may be the wrong ones, or lead anywhere. */
static void build(const char *folder, struct fuzz_bytes *bytes) {
    char hashes[RANKS][33], name[32];
    int ranks = 1 + (int)fuzz_choose(bytes, RANKS);
    size_t groups = fuzz_choose(bytes, MM_STATE_GROUPS + 1);
    for (int r = 0; r < RANKS; r++)
        snprintf(hashes[r], sizeof hashes[r], "%032d", r);
    for (int r = 0; r < ranks; r++) {
        struct mm_error err;
        mm_checkpoint_part_name(name, r);
        char *path = mm_format("%s/%s", folder, name);
        build_part(path, r, ranks, groups, bytes);
        if (fuzz_choose(bytes, 16) == 1)
            unlink(path);
        else
            FUZZ_CHECK(mm_file_hash(path, 0, hashes[r], &err) == MM_OK);
        mm_free(path);
    }
    char *path = mm_format("%s/%s", folder, MM_CHECKPOINT_WHOLE);
    build_whole(path, hashes, ranks, groups, bytes);
    mm_free(path);
}

/* Every row of every tensor, as a resume reads them. */
static void read_rows(const char *folder) {
    struct mm_checkpoint_head head;
    struct mm_error err = {""};
    hid_t file;
    char *path = mm_format("%s/%s", folder, MM_CHECKPOINT_WHOLE);
    FUZZ_CHECK(mm_checkpoint_head_read(&head, folder, &err) == MM_OK);
    FUZZ_CHECK(mm_h5_open(&file, path, &err) == MM_OK);
    for (size_t i = 0; i < head.tensors_n; i++)
        for (int g = 0; g < MM_STATE_GROUPS; g++) {
            const struct mm_checkpoint_shape *t = &head.tensors[i];
            if (!t->in[g])
                continue;
            void *rows = mm_calloc(t->rows * t->cols, mm_dtype_bytes(head.dtype));
            fuzz_expect(mm_checkpoint_rows_read(&head, file, path, g, t,
                                                (struct mm_rows){0, t->rows}, rows, &err),
                        &err, path);
            mm_free(rows);
        }
    mm_h5_close(file);
    mm_checkpoint_head_free(&head);
    mm_free(path);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct fuzz_bytes bytes = {data, size};
    struct mm_checkpoint_info info;
    struct mm_error err = {""};
    fuzz_quiet();
    char *folder = mm_format("%s/3", fuzz_begin());
    char *part = mm_format("%s/part-00000.h5", folder);
    FUZZ_CHECK(mm_folder_make(folder, &err) == MM_OK);
    build(folder, &bytes);
    long handles = fuzz_h5_handles();
    enum mm_status status = mm_checkpoint_verify(folder, &info, &err);
    fuzz_expect(status, &err, folder);
    if (status == MM_OK)
        read_rows(folder);
    mm_checkpoint_info_free(&info);
    fuzz_expect(mm_inspect(folder, &err), &err, folder);
    fuzz_expect(mm_inspect(part, &err), &err, folder);
    char *whole = mm_format("%s/%s", folder, MM_CHECKPOINT_WHOLE);
    unlink(whole); /* the part alone */
    fuzz_expect(mm_inspect(part, &err), &err, folder);
    FUZZ_CHECK(fuzz_h5_handles() == handles);
    mm_free(whole);
    mm_free(part);
    mm_free(folder);
    fuzz_end();
    return 0;
}
