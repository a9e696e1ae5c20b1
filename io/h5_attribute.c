/* h5_attribute.c - attributes of h5.h. Texts are written with a variable length, so that any length
 * fits and h5py gives a str; read in either form. */
#include <inttypes.h>
#include <string.h>

#include "io/h5.h"

static hid_t text_type(size_t size) {
    hid_t type = H5Tcopy(H5T_C_S1);
    if (type >= 0 && (H5Tset_size(type, size) < 0 || H5Tset_cset(type, H5T_CSET_UTF8) < 0)) {
        mm_h5_close(type);
        return -1;
    }
    return type;
}

/* Closes type and space. */
static enum mm_status put(hid_t at, const char *name, hid_t type, hid_t space, const void *data,
                          struct mm_error *err) {
    hid_t attribute = -1;
    enum mm_status status = MM_OK;
    if (type >= 0 && space >= 0)
        attribute = H5Acreate2(at, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    if (attribute < 0 || H5Awrite(attribute, type, data) < 0)
        status = mm_h5_fail(err, MM_FAILED, "cannot write the attribute '%s'", name);
    mm_h5_close(attribute);
    mm_h5_close(space);
    mm_h5_close(type);
    return status;
}

enum mm_status mm_h5_put_text(hid_t at, const char *name, const char *text, struct mm_error *err) {
    return put(at, name, text_type(H5T_VARIABLE), H5Screate(H5S_SCALAR), &text, err);
}

enum mm_status mm_h5_put_count(hid_t at, const char *name, uint64_t value, struct mm_error *err) {
    return put(at, name, H5Tcopy(H5T_STD_U64LE), H5Screate(H5S_SCALAR), &value, err);
}

enum mm_status mm_h5_put_hashes(hid_t at, const char *name, char (*hashes)[33], size_t n,
                                struct mm_error *err) {
    hsize_t dims[1] = {n};
    char *packed = mm_calloc(n, 32);
    for (size_t i = 0; i < n; i++)
        memcpy(packed + 32 * i, hashes[i], 32);
    hid_t type = text_type(32);
    if (type >= 0)
        H5Tset_strpad(type, H5T_STR_NULLPAD);
    enum mm_status status = put(at, name, type, H5Screate_simple(1, dims, NULL), packed, err);
    mm_free(packed);
    return status;
}

bool mm_h5_has_attribute(hid_t at, const char *name) {
    return H5Aexists(at, name) > 0;
}

/* An attribute open for reading: its type in the file and how many elements it has. */
struct attribute {
    hid_t id, type;
    hssize_t n;
};

static void close_attribute(struct attribute *a) {
    mm_h5_close(a->type);
    mm_h5_close(a->id);
}

static enum mm_status open_attribute(struct attribute *a, hid_t at, const char *path,
                                     const char *name, H5T_class_t kind, struct mm_error *err) {
    *a = (struct attribute){.id = -1, .type = -1};
    if (!mm_h5_has_attribute(at, name))
        return mm_fail(err, MM_BAD_INPUT, "%s has no attribute '%s'", path, name);
    a->id = H5Aopen(at, name, H5P_DEFAULT);
    hid_t space = a->id < 0 ? -1 : H5Aget_space(a->id);
    a->type = space < 0 ? -1 : H5Aget_type(a->id);
    a->n = a->type < 0 ? -1 : H5Sget_simple_extent_npoints(space);
    enum mm_status status = MM_OK;
    if (a->n < 0)
        status = mm_h5_fail(err, MM_BAD_INPUT, "%s: cannot read the attribute '%s'", path, name);
    else if (H5Tget_class(a->type) != kind)
        status = mm_fail(err, MM_BAD_INPUT, "%s: the attribute '%s' is not %s", path, name,
                         kind == H5T_STRING ? "text" : "an integer");
    mm_h5_close(space);
    if (status != MM_OK)
        close_attribute(a);
    return status;
}

static enum mm_status not_one(const char *path, const char *name, hssize_t n,
                              struct mm_error *err) {
    return mm_fail(err, MM_BAD_INPUT, "%s: the attribute '%s' holds %lld values, not one", path,
                   name, (long long)n);
}

static uint64_t bytes_of_file(hid_t at) {
    hsize_t bytes = 0;
    hid_t file = H5Iget_file_id(at);
    if (file < 0 || H5Fget_filesize(file, &bytes) < 0)
        bytes = 0;
    mm_h5_close(file);
    return bytes;
}

enum mm_status mm_h5_get_text(hid_t at, const char *path, const char *name, char **text,
                              struct mm_error *err) {
    struct attribute a;
    enum mm_status status = open_attribute(&a, at, path, name, H5T_STRING, err);
    *text = NULL;
    if (status != MM_OK)
        return status;
    char *stored = NULL;
    size_t size = H5Tget_size(a.type);
    bool ok;
    if (a.n != 1) {
        status = not_one(path, name, a.n, err);
    } else if (H5Tis_variable_str(a.type) > 0) {
        ok = H5Aread(a.id, a.type, &stored) >= 0;
        if (ok)
            *text = mm_strdup(stored ? stored : "");
        else
            status =
                mm_h5_fail(err, MM_BAD_INPUT, "%s: cannot read the attribute '%s'", path, name);
        if (stored)
            H5free_memory(stored);
    } else if (size > bytes_of_file(at)) { /* the size is the file's word, not what it holds */
        status = mm_fail(err, MM_BAD_INPUT, "%s: the attribute '%s' is too long", path, name);
    } else {
        *text = mm_calloc(size + 1, 1);
        if (H5Aread(a.id, a.type, *text) < 0) {
            status =
                mm_h5_fail(err, MM_BAD_INPUT, "%s: cannot read the attribute '%s'", path, name);
            mm_free(*text);
            *text = NULL;
        }
    }
    close_attribute(&a);
    return status;
}

enum mm_status mm_h5_get_count(hid_t at, const char *path, const char *name, uint64_t max,
                               uint64_t *value, struct mm_error *err) {
    struct attribute a;
    enum mm_status status = open_attribute(&a, at, path, name, H5T_INTEGER, err);
    if (status != MM_OK)
        return status;
    /* Read as what it is, since HDF5 would clip a negative number to 0. */
    bool is_signed = H5Tget_sign(a.type) == H5T_SGN_2;
    union {
        int64_t i;
        uint64_t u;
    } number = {0};
    if (a.n != 1)
        status = not_one(path, name, a.n, err);
    else if (H5Aread(a.id, is_signed ? H5T_NATIVE_INT64 : H5T_NATIVE_UINT64, &number) < 0)
        status = mm_h5_fail(err, MM_BAD_INPUT, "%s: cannot read the attribute '%s'", path, name);
    else if ((is_signed && number.i < 0) || number.u > max)
        status = mm_fail(err, MM_BAD_INPUT,
                         "%s: the attribute '%s' is %" PRId64 ", not from 0 to %" PRIu64, path,
                         name, number.i, max);
    else
        *value = number.u;
    close_attribute(&a);
    return status;
}

enum mm_status mm_h5_get_hashes(hid_t at, const char *path, const char *name, char (*hashes)[33],
                                size_t n, struct mm_error *err) {
    struct attribute a;
    enum mm_status status = open_attribute(&a, at, path, name, H5T_STRING, err);
    if (status != MM_OK)
        return status;
    char *packed = NULL;
    if (H5Tis_variable_str(a.type) != 0 || H5Tget_size(a.type) != 32 || a.n < 0 || (size_t)a.n != n)
        status =
            mm_fail(err, MM_BAD_INPUT, "%s: the attribute '%s' is not %zu hashes", path, name, n);
    else if (H5Aread(a.id, a.type, packed = mm_calloc(n, 32)) < 0)
        status = mm_h5_fail(err, MM_BAD_INPUT, "%s: cannot read the attribute '%s'", path, name);
    for (size_t i = 0; status == MM_OK && i < n; i++) {
        memcpy(hashes[i], packed + 32 * i, 32);
        hashes[i][32] = 0;
    }
    mm_free(packed);
    close_attribute(&a);
    return status;
}
