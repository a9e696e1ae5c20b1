/* h5_build.c - see h5_build.h. What HDF5 refuses to write is left out. */
#include "tests/fuzz/h5_build.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "io/h5.h"

static const char *const places[] = {".",    "checkpoint.h5", "part-00000.h5", "part-00001.h5",
                                     "a.h5", "../a.h5",       "/dev/null",     "%b.h5"};
static const char *const sources[] = {"/base/a", "/base/b", "/retain_acc/a", "/tokens", "/", ""};

static const char *pick(const char *const *from, size_t n, struct fuzz_bytes *bytes) {
    return from[fuzz_choose(bytes, n)];
}

hid_t fuzz_h5_create(const char *path, hsize_t user_block, struct fuzz_bytes *bytes) {
    mm_h5_settle();
    hid_t fapl = H5Pcreate(H5P_FILE_ACCESS), fcpl = H5Pcreate(H5P_FILE_CREATE);
    if (fuzz_choose(bytes, 2) == 0) /* else the format of before 1.8, without checksums */
        H5Pset_libver_bounds(fapl, H5F_LIBVER_V18, H5F_LIBVER_LATEST);
    H5Pset_userblock(fcpl, user_block);
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, fcpl, fapl);
    FUZZ_CHECK(file >= 0);
    H5Pclose(fcpl);
    H5Pclose(fapl);
    return file;
}

/* Types ------------------------------------------------------------------------------------- */

static hid_t odd_integer(struct fuzz_bytes *bytes) {
    static const size_t sizes[] = {1, 2, 3, 8, 16, 40, 4096};
    hid_t type = H5Tcopy(fuzz_choose(bytes, 2) ? H5T_STD_I32LE : H5T_STD_U32BE);
    H5Tset_size(type, sizes[fuzz_choose(bytes, 7)]);
    H5Tset_precision(type, 1 + fuzz_choose(bytes, 128));
    H5Tset_offset(type, fuzz_choose(bytes, 16));
    return type;
}

static hid_t text_type(size_t size) {
    hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, size ? size : 1);
    return type;
}

/* The caller closes. */
static hid_t make_type(struct fuzz_bytes *bytes) {
    const hid_t plain[] = {H5T_STD_U8LE,   H5T_STD_U16LE, H5T_STD_U32LE,  H5T_STD_U64LE,
                           H5T_STD_I8LE,   H5T_STD_I16LE, H5T_STD_I32LE,  H5T_STD_I64LE,
                           H5T_STD_U32BE,  H5T_STD_I64BE, H5T_IEEE_F32LE, H5T_IEEE_F32BE,
                           H5T_IEEE_F64LE, H5T_STD_B32LE, H5T_STD_REF_OBJ};
    const size_t n = sizeof plain / sizeof *plain;
    size_t kind = fuzz_choose(bytes, n + 8);
    if (kind < n)
        return H5Tcopy(plain[kind]);
    switch (kind - n) {
    case 0:
        return text_type(fuzz_take(bytes, 2));
    case 1:
        return text_type(H5T_VARIABLE);
    case 2:
        return H5Tvlen_create(H5T_STD_U32LE);
    case 3:
        return H5Tarray_create2(H5T_STD_U32LE, 1, (const hsize_t[]){1 + fuzz_choose(bytes, 8)});
    case 4:
        return H5Tenum_create(H5T_STD_U32LE);
    case 5:
        return H5Tcreate(H5T_OPAQUE, 1 + fuzz_choose(bytes, 64));
    case 6:
        return mm_h5_type(MM_BF16);
    default:
        return odd_integer(bytes);
    }
}

/* Attributes -------------------------------------------------------------------------------- */

static void write_attribute(hid_t at, const char *name, hid_t type, hid_t memory, hid_t space,
                            const void *data) {
    hid_t attribute = H5Acreate2(at, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    if (attribute >= 0 && data)
        H5Awrite(attribute, memory, data);
    mm_h5_close(attribute);
    mm_h5_close(space);
    mm_h5_close(type);
}

static void write_text(hid_t at, const char *name, const char *text, struct fuzz_bytes *bytes) {
    hid_t type = text_type(H5T_VARIABLE);
    if (fuzz_choose(bytes, 2) == 0) {
        write_attribute(at, name, type, type, H5Screate(H5S_SCALAR), &text);
        return;
    }
    mm_h5_close(type);
    char fixed[256] = "";
    snprintf(fixed, sizeof fixed, "%s", text);
    type = text_type(sizeof fixed);
    write_attribute(at, name, type, type, H5Screate(H5S_SCALAR), fixed);
}

void fuzz_h5_attribute(hid_t at, const char *name, const char *text, uint64_t count,
                       struct fuzz_bytes *bytes) {
    char input[33] = "";
    const void *nothing = NULL;
    uint64_t number[2] = {0};
    hid_t type;
    size_t kind = fuzz_choose(bytes, 9);
    if (kind == 0 && text) {
        write_text(at, name, text, bytes);
        return;
    }
    switch (kind) {
    case 0:
        write_attribute(at, name, H5Tcopy(H5T_STD_U64LE), H5T_NATIVE_UINT64, H5Screate(H5S_SCALAR),
                        &count);
        break;
    case 1: /* absent */
        break;
    case 2:
        number[0] = fuzz_size(bytes);
        write_attribute(at, name, H5Tcopy(H5T_STD_U64LE), H5T_NATIVE_UINT64, H5Screate(H5S_SCALAR),
                        number);
        break;
    case 3:
        number[0] = -fuzz_size(bytes);
        write_attribute(at, name, H5Tcopy(H5T_STD_I64LE), H5T_NATIVE_INT64, H5Screate(H5S_SCALAR),
                        number);
        break;
    case 4:
        for (size_t i = 0, n = fuzz_choose(bytes, 32); i < n; i++)
            input[i] = (char)fuzz_take(bytes, 1);
        write_text(at, name, input, bytes);
        break;
    case 5: /* a text that is NULL */
        type = text_type(H5T_VARIABLE);
        write_attribute(at, name, type, type, H5Screate(H5S_SCALAR), &nothing);
        break;
    case 6: /* any type, not written */
        write_attribute(at, name, make_type(bytes), H5T_NATIVE_UINT64, H5Screate(H5S_SCALAR), NULL);
        break;
    case 7: /* several, or none */
        write_attribute(at, name, make_type(bytes), H5T_NATIVE_UINT64,
                        H5Screate_simple(1, (const hsize_t[]){fuzz_choose(bytes, 16)}, NULL), NULL);
        break;
    default:
        write_attribute(at, name, make_type(bytes), H5T_NATIVE_UINT64, H5Screate(H5S_NULL), NULL);
    }
}

/* Groups and datasets ----------------------------------------------------------------------- */

/* Something else of that name; false where the object itself is to be made. */
static bool put_other(hid_t at, const char *name, size_t kind, struct fuzz_bytes *bytes) {
    const char *file; /* the order of takes in one expression is the compiler's */
    hid_t other = -1;
    switch (kind) {
    case 1: /* absent */
        break;
    case 2:
        H5Lcreate_soft(pick(sources, 6, bytes), at, name, H5P_DEFAULT, H5P_DEFAULT);
        break;
    case 3:
        file = pick(places, 8, bytes);
        H5Lcreate_external(file, pick(sources, 6, bytes), at, name, H5P_DEFAULT, H5P_DEFAULT);
        break;
    case 4:
        other = H5Gcreate2(at, name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
        break;
    case 5:
        other = H5Tcopy(H5T_STD_U32LE);
        H5Tcommit2(at, name, other, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
        break;
    default:
        return false;
    }
    mm_h5_close(other);
    return true;
}

hid_t fuzz_h5_group(hid_t at, const char *name, struct fuzz_bytes *bytes) {
    size_t kind = fuzz_choose(bytes, 8);
    if (kind && kind != 4 && put_other(at, name, kind, bytes))
        return -1;
    return H5Gcreate2(at, name, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
}

/* True where it is not safe to write values. */
static bool set_layout(hid_t dcpl, hid_t space, int rank, struct fuzz_bytes *bytes) {
    const char *file;
    hsize_t chunk[4];
    switch (fuzz_choose(bytes, 6)) {
    case 0:
        break;
    case 1:
        H5Pset_layout(dcpl, H5D_COMPACT);
        break;
    case 2:
        H5Pset_external(dcpl, pick(places, 8, bytes), 0, H5F_UNLIMITED);
        break;
    case 3:
        file = pick(places, 8, bytes);
        H5Pset_virtual(dcpl, space, file, pick(sources, 6, bytes), space);
        break;
    default:
        for (int i = 0; i < 4; i++)
            chunk[i] = i < 2 ? fuzz_size(bytes) : 1;
        H5Pset_chunk(dcpl, rank, chunk);
    }
    static const H5D_alloc_time_t times[] = {H5D_ALLOC_TIME_DEFAULT, H5D_ALLOC_TIME_LATE,
                                             H5D_ALLOC_TIME_INCR};
    H5Pset_alloc_time(dcpl, times[fuzz_choose(bytes, 3)]);
    unsigned filters = (unsigned)fuzz_take(bytes, 1);
    if (filters & 1)
        H5Pset_shuffle(dcpl);
    if (filters & 2)
        H5Pset_deflate(dcpl, 1);
    if (filters & 4)
        H5Pset_fletcher32(dcpl);
    if (filters == 8) /* HDF5 1.10 writes beyond its buffers in both: never with data */
        H5Pset_nbit(dcpl);
    if (filters == 16)
        H5Pset_scaleoffset(dcpl, H5Z_SO_INT, 0);
    return filters == 8 || filters == 16;
}

/* Values for the first elements along the first dimension. */
static void write_some(hid_t set, hid_t type, int rank, const hsize_t *dims,
                       struct fuzz_bytes *bytes) {
    uint64_t values[64];
    hsize_t start[4] = {0}, count[4] = {1, 1, 1, 1}, n = dims[rank ? rank - 1 : 0];
    H5T_class_t kind = H5Tget_class(type);
    if (rank == 0 || (kind != H5T_INTEGER && kind != H5T_FLOAT))
        return;
    count[rank - 1] = n < 64 ? n : 64;
    for (hsize_t row = 0; row < (rank > 1 ? dims[0] : 1) && row < 8; row++) {
        for (size_t i = 0; i < 64; i++)
            values[i] = fuzz_size(bytes);
        hid_t space = H5Dget_space(set), memory = H5Screate_simple(1, &count[rank - 1], NULL);
        start[0] = rank > 1 ? row : 0;
        H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, count, NULL);
        H5Dwrite(set, H5T_NATIVE_UINT64, memory, space, H5P_DEFAULT, values);
        mm_h5_close(memory);
        mm_h5_close(space);
    }
}

static void put_wrong(hid_t at, const char *name, struct fuzz_bytes *bytes) {
    int rank = (int)fuzz_choose(bytes, 4);
    hsize_t dims[4];
    for (int i = 0; i < 4; i++)
        dims[i] = i < rank ? fuzz_size(bytes) : 1;
    hid_t type = make_type(bytes), dcpl = H5Pcreate(H5P_DATASET_CREATE), set = -1;
    hid_t space = rank ? H5Screate_simple(rank, dims, NULL)
                       : H5Screate(fuzz_choose(bytes, 2) ? H5S_NULL : H5S_SCALAR);
    size_t elements = 1, room = H5Tget_size(type);
    bool small = mm_mul(elements, room, &elements);
    for (int i = 0; i < rank; i++)
        small = small && mm_mul(elements, dims[i], &elements);
    bool unsafe = space >= 0 && set_layout(dcpl, space, rank ? rank : 1, bytes);
    /* HDF5 writes zeros, or fills chunks in memory: only where there are few bytes. A write that
     * failed would leave it in a state of its own. */
    hsize_t chunk[4] = {1, 1, 1, 1};
    if (H5Pget_layout(dcpl) == H5D_CHUNKED && H5Pget_chunk(dcpl, 4, chunk) >= 0) {
        small = room > 0;
        elements = room;
        for (int i = 0; i < rank; i++)
            small = small && mm_mul(elements, chunk[i], &elements) && dims[i] / chunk[i] < 256;
    }
    small = small && elements <= (size_t)1 << 20 && !unsafe;
    if (!small)
        H5Pset_alloc_time(dcpl, H5D_ALLOC_TIME_LATE);
    if (space >= 0)
        set = H5Dcreate2(at, name, type, space, H5P_DEFAULT, dcpl, H5P_DEFAULT);
    if (set >= 0 && small && H5Pget_layout(dcpl) != H5D_VIRTUAL && H5Pget_external_count(dcpl) == 0)
        write_some(set, type, rank, dims, bytes);
    mm_h5_close(set);
    mm_h5_close(space);
    mm_h5_close(dcpl);
    mm_h5_close(type);
}

void fuzz_h5_dataset(hid_t at, const char *name, const struct fuzz_h5_set *right,
                     struct fuzz_bytes *bytes) {
    size_t kind = fuzz_choose(bytes, 12);
    if (kind && put_other(at, name, kind, bytes))
        return;
    if (kind) {
        put_wrong(at, name, bytes);
        return;
    }
    hid_t space = H5Screate_simple(right->rank, right->dims, NULL);
    hid_t set = H5Dcreate2(at, name, right->type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    if (set >= 0)
        H5Dwrite(set, right->type, H5S_ALL, H5S_ALL, H5P_DEFAULT, right->data);
    mm_h5_close(set);
    mm_h5_close(space);
}

long fuzz_h5_handles(void) {
    static const H5I_type_t kinds[] = {H5I_FILE,    H5I_GROUP, H5I_DATATYPE,    H5I_DATASPACE,
                                       H5I_DATASET, H5I_ATTR,  H5I_GENPROP_LST, H5I_ERROR_STACK};
    long all = 0;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        hsize_t n = 0;
        if (H5Inmembers(kinds[i], &n) >= 0)
            all += (long)n;
    }
    return all;
}

void fuzz_quiet(void) {
    static bool quiet;
    if (!quiet)
        FUZZ_CHECK(freopen("/dev/null", "w", stdout));
    quiet = true;
}
