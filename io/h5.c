/* h5.c - see h5.h. HDF5's printing of errors is off; mm_h5_fail reads the error stack instead. */
#include "io/h5.h"

#include "io/files.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "values are stored as they are in memory");

static atomic_bool lent;
static _Thread_local bool borrower;

void mm_h5_lend(enum mm_h5_user user) {
    if (user == MM_H5_MINE)
        borrower = true;
    else
        atomic_store(&lent, user == MM_H5_THEIRS);
}

void mm_h5_settle(void) {
    MM_CHECK(borrower || !atomic_load(&lent), "HDF5 is used while a checkpoint is being written");
    /* HDF5 reads both once, at its first call. By property list, locks cannot be switched off for
     * the files that it opens behind virtual datasets. */
    setenv("HDF5_USE_FILE_LOCKING", "FALSE", 0);
    unsetenv("HDF5_VDS_PREFIX");
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
}

static herr_t take_innermost(unsigned n, const H5E_error2_t *entry, void *text) {
    if (n == 0 && entry->desc)
        snprintf(text, 512, "%s", entry->desc);
    return 0;
}

enum mm_status mm_h5_fail(struct mm_error *err, enum mm_status status, const char *format, ...) {
    char text[sizeof err->text], reason[512] = "";
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, take_innermost, reason);
    H5Eclear2(H5E_DEFAULT);
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    return mm_fail(err, status, *reason ? "%s (HDF5: %s)" : "%s", text, reason);
}

void mm_h5_close(hid_t id) {
    if (id >= 0)
        H5Idec_ref(id);
}

/* Files ------------------------------------------------------------------------------------- */

hid_t mm_h5_file_access(void) {
    hid_t fapl = H5Pcreate(H5P_FILE_ACCESS);
    if (fapl < 0)
        return fapl;
    if (H5Pset_libver_bounds(fapl, H5F_LIBVER_V18, H5F_LIBVER_LATEST) < 0) {
        mm_h5_close(fapl);
        return -1;
    }
    return fapl;
}

enum mm_status mm_h5_open(hid_t *file, const char *path, struct mm_error *err) {
    struct stat info;
    *file = -1;
    if (stat(path, &info) != 0)
        return mm_fail(err, MM_BAD_INPUT, "cannot open '%s': %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode)) /* a pipe would be waited on */
        return mm_fail(err, MM_BAD_INPUT, "'%s' is not a file", path);
    mm_h5_settle();
    hid_t fapl = mm_h5_file_access();
    if (fapl < 0)
        return mm_h5_fail(err, MM_FAILED, "cannot set up HDF5 for '%s'", path);
    enum mm_status status = MM_OK;
    *file = H5Fopen(path, H5F_ACC_RDONLY, fapl);
    if (*file < 0)
        status =
            mm_h5_fail(err, MM_BAD_INPUT, "cannot read '%s': not an HDF5 file, or damaged", path);
    mm_h5_close(fapl);
    return status;
}

/* Groups and datasets ----------------------------------------------------------------------- */

hid_t mm_h5_create_group(hid_t at, const char *name) {
    hid_t gcpl = H5Pcreate(H5P_GROUP_CREATE), group = -1;
    if (gcpl >= 0 && H5Pset_obj_track_times(gcpl, false) >= 0)
        group = H5Gcreate2(at, name, H5P_DEFAULT, gcpl, H5P_DEFAULT);
    if (gcpl >= 0)
        H5Pclose(gcpl);
    return group;
}

hid_t mm_h5_create_dataset(hid_t at, const char *name, hid_t type, hid_t space, hid_t dcpl) {
    if (H5Pset_obj_track_times(dcpl, false) < 0)
        return -1;
    return H5Dcreate2(at, name, type, space, H5P_DEFAULT, dcpl, H5P_DEFAULT);
}

bool mm_h5_has(hid_t at, const char *name) {
    return H5Lexists(at, name, H5P_DEFAULT) > 0;
}

bool mm_h5_own(hid_t at, const char *name) {
    H5L_info_t link;
    return mm_h5_has(at, name) && H5Lget_info(at, name, &link, H5P_DEFAULT) >= 0 &&
           link.type == H5L_TYPE_HARD;
}

/* Every step of the way, the outermost first: a step that leads elsewhere is not taken. */
static enum mm_status check_way(hid_t at, const char *path, const char *name,
                                struct mm_error *err) {
    enum mm_status status = MM_OK;
    for (const char *end = name; *end && status == MM_OK;) {
        end += *end == '/';
        end += strcspn(end, "/");
        char *step = mm_format("%.*s", (int)(end - name), name);
        if (!mm_h5_has(at, step))
            status = mm_fail(err, MM_BAD_INPUT, "%s holds no dataset '%s'", path, name);
        else if (!mm_h5_own(at, step))
            status = mm_fail(err, MM_BAD_INPUT, "%s: '%s' is a link to elsewhere, not a dataset",
                             path, step);
        mm_free(step);
    }
    return status;
}

enum mm_status mm_h5_open_dataset(hid_t *set, hid_t at, const char *path, const char *name,
                                  struct mm_error *err) {
    *set = -1;
    enum mm_status status = check_way(at, path, name, err);
    if (status != MM_OK)
        return status;
    *set = H5Dopen2(at, name, H5P_DEFAULT);
    if (*set < 0)
        return mm_h5_fail(err, MM_BAD_INPUT, "%s: cannot read '%s' as a dataset", path, name);
    hid_t dcpl = H5Dget_create_plist(*set);
    int outside = dcpl < 0 ? -1 : H5Pget_external_count(dcpl);
    if (outside < 0)
        status = mm_h5_fail(err, MM_BAD_INPUT, "%s: cannot read '%s'", path, name);
    else if (outside > 0)
        status = mm_fail(err, MM_BAD_INPUT, "%s: '%s' keeps its data in another file", path, name);
    mm_h5_close(dcpl);
    if (status != MM_OK) {
        mm_h5_close(*set);
        *set = -1;
    }
    return status;
}

enum mm_status mm_h5_dims(hid_t set, const char *path, const char *name, int rank, hsize_t *dims,
                          struct mm_error *err) {
    hid_t space = H5Dget_space(set);
    if (space < 0)
        return mm_h5_fail(err, MM_BAD_INPUT, "%s: cannot read the shape of '%s'", path, name);
    enum mm_status status = MM_OK;
    int found = H5Sget_simple_extent_ndims(space);
    if (found != rank)
        status = mm_fail(err, MM_BAD_INPUT, "%s: '%s' has %d dimensions, not %d", path, name, found,
                         rank);
    else if (H5Sget_simple_extent_dims(space, dims, NULL) < 0)
        status = mm_h5_fail(err, MM_BAD_INPUT, "%s: cannot read the shape of '%s'", path, name);
    for (int i = 0; status == MM_OK && i < rank; i++)
        if (dims[i] == 0)
            status = mm_fail(err, MM_BAD_INPUT, "%s: '%s' is empty", path, name);
    mm_h5_close(space);
    return status;
}

hid_t mm_h5_type(enum mm_dtype dtype) {
    MM_CHECK(dtype == MM_F32 || dtype == MM_BF16, "no file type for %s", mm_dtype_name(dtype));
    hid_t type = H5Tcopy(H5T_IEEE_F32LE);
    if (dtype == MM_F32)
        return type;
    /* Fields first: they must lie inside the precision at every step. */
    if (type >= 0 && (H5Tset_fields(type, 15, 7, 8, 0, 7) < 0 || H5Tset_size(type, 2) < 0 ||
                      H5Tset_ebias(type, 127) < 0)) {
        mm_h5_close(type);
        return -1;
    }
    return type;
}

bool mm_h5_dtype(hid_t set, enum mm_dtype *dtype) {
    hid_t found = H5Dget_type(set);
    bool known = false;
    for (int i = 0; i < 2 && found >= 0 && !known; i++) {
        enum mm_dtype candidate = i ? MM_BF16 : MM_F32;
        hid_t type = mm_h5_type(candidate);
        known = type >= 0 && H5Tequal(found, type) > 0;
        if (known)
            *dtype = candidate;
        mm_h5_close(type);
    }
    mm_h5_close(found);
    return known;
}

bool mm_h5_read_rows(hid_t set, hid_t type, size_t first, size_t count, size_t cols, void *out) {
    hsize_t start[2] = {first, 0}, block[2] = {count, cols};
    hid_t space = H5Dget_space(set), memory = -1;
    bool ok = false;
    int rank = space < 0 ? -1 : H5Sget_simple_extent_ndims(space);
    if (rank == 1 || rank == 2)
        memory = H5Screate_simple(rank, block, NULL);
    if (memory >= 0 && H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, block, NULL) >= 0)
        ok = H5Dread(set, type, memory, space, H5P_DEFAULT, out) >= 0;
    /* Closing would clear the error stack that the caller wants to report. */
    hid_t stack = ok ? -1 : H5Eget_current_stack();
    mm_h5_close(memory);
    mm_h5_close(space);
    if (stack >= 0)
        H5Eset_current_stack(stack);
    return ok;
}

char *mm_h5_library_text(void) {
    unsigned major = 0, minor = 0, release = 0;
    mm_h5_settle();
    H5get_libversion(&major, &minor, &release);
    return mm_format("%u.%u.%u", major, minor, release);
}
