/* h5_storage.c - the mm_h5_check_stored of h5.h. A hostile file may state any shape, and memory
 * would be taken for it. So the shape is compared with the bytes that the file has before anything
 * is allocated. */
#include <sys/stat.h>

#include "io/h5.h"

/* A dataset as it says it is. */
struct stored {
    hid_t set;
    int rank;
    const hsize_t *dims;
    uint64_t bytes; /* allocated in the file, by its own word */
};

/* A chunked dataset holds rows and columns in stored chunks, which may be compressed (deflate: at
 * most 1032 times). Says how many bytes a file must hold at least, and whether chunks are missing.
 */
static bool chunks_fit(const struct stored *in, hid_t dcpl, size_t size, bool *complete) {
    hsize_t chunk[2] = {1, 1}, found = 0;
    hid_t space = H5Dget_space(in->set);
    bool ok = space >= 0 && H5Pget_chunk(dcpl, in->rank, chunk) == in->rank &&
              H5Dget_num_chunks(in->set, space, &found) >= 0;
    mm_h5_close(space);
    uint64_t chunks = 1, bytes = size;
    for (int i = 0; ok && i < in->rank; i++)
        ok = chunk[i] > 0 &&
             !__builtin_mul_overflow(chunks, (in->dims[i] - 1) / chunk[i] + 1, &chunks) &&
             !__builtin_mul_overflow(bytes, chunk[i], &bytes);
    if (!ok || __builtin_mul_overflow(bytes, chunks, &bytes))
        return false;
    *complete = chunks == found;
    return bytes / 1100 <= in->bytes;
}

/* Whether all filters are among those that read hostile data safely. HDF5 1.10's scale-offset and
 * n-bit do not, and others would be loaded from plugins. */
static bool filters_known(hid_t dcpl) {
    int n = H5Pget_nfilters(dcpl);
    for (int i = 0; i < n; i++) {
        H5Z_filter_t filter = H5Pget_filter2(dcpl, (unsigned)i, NULL, NULL, NULL, 0, NULL, NULL);
        if (filter != H5Z_FILTER_DEFLATE && filter != H5Z_FILTER_SHUFFLE &&
            filter != H5Z_FILTER_FLETCHER32)
            return false;
    }
    return n >= 0;
}

static bool elements_fit(const struct stored *in, size_t size, uint64_t *bytes) {
    *bytes = size;
    for (int i = 0; i < in->rank; i++)
        if (__builtin_mul_overflow(*bytes, in->dims[i], bytes))
            return false;
    return size > 0;
}

enum mm_status mm_h5_check_stored(hid_t set, const char *path, const char *name, int rank,
                                  const hsize_t *dims, struct mm_error *err) {
    struct stat file;
    const struct stored in = {set, rank, dims, H5Dget_storage_size(set)};
    hid_t type = H5Dget_type(set), dcpl = H5Dget_create_plist(set);
    H5D_layout_t layout = dcpl < 0 ? H5D_LAYOUT_ERROR : H5Pget_layout(dcpl);
    uint64_t bytes;
    bool fits = elements_fit(&in, type < 0 ? 0 : H5Tget_size(type), &bytes) &&
                stat(path, &file) == 0 && in.bytes <= (uint64_t)file.st_size;
    bool complete = in.bytes > 0;
    const char *fault = NULL;
    if (fits && layout == H5D_CHUNKED)
        fits = chunks_fit(&in, dcpl, H5Tget_size(type), &complete);
    else
        fits = fits && (bytes == in.bytes || in.bytes == 0);
    if (layout == H5D_VIRTUAL)
        fault = "keeps its data in other files";
    else if (dcpl < 0 || !filters_known(dcpl))
        fault = "is filtered by more than gzip, shuffle and fletcher32: store it without";
    else if (!complete)
        fault = "holds no data, or only a part";
    else if (!fits)
        fault = "is larger than its file: damaged";
    mm_h5_close(dcpl);
    mm_h5_close(type);
    if (!fault)
        return MM_OK;
    return mm_fail(err, MM_BAD_INPUT, "%s: '%s' [%llu, %llu] %s", path, name,
                   (unsigned long long)dims[0], (unsigned long long)(rank > 1 ? dims[1] : 1),
                   fault);
}
