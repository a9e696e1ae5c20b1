/* h5_memory.c - see h5_memory.h. The driver keeps what HDF5 writes, all of it structure, in pages;
 * what was never written reads as zeros. */
#include "io/h5_memory.h"

#include <stdlib.h>
#include <string.h>
#if H5_VERSION_GE(1, 13, 0)
#include <H5FDdevelop.h>
#endif

#include "io/files.h"

enum { PAGE_BYTES = 4096, PIECE_BYTES = 1 << 18 };

struct page {
    uint64_t number;
    char *bytes;
};

/* Data of the caller that belongs into the file. */
struct extent {
    uint64_t offset;
    size_t bytes;
    const void *data;
};

struct mm_h5_memory {
    struct page *pages; /* ascending */
    struct extent *extents;
    size_t pages_n, extents_n;
    uint64_t allocated, written; /* ends: what HDF5 has given to itself, what it has written */
    hid_t driver;
};

/* Pages ------------------------------------------------------------------------------------- */

/* The index of the first page whose number is at least `number`. */
static size_t page_index(const struct mm_h5_memory *memory, uint64_t number) {
    size_t low = 0, high = memory->pages_n;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (memory->pages[middle].number < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static char *find_page(const struct mm_h5_memory *memory, uint64_t number) {
    size_t i = page_index(memory, number);
    return i < memory->pages_n && memory->pages[i].number == number ? memory->pages[i].bytes : NULL;
}

static char *make_page(struct mm_h5_memory *memory, uint64_t number) {
    size_t i = page_index(memory, number);
    memory->pages = mm_realloc(memory->pages, (memory->pages_n + 1) * sizeof *memory->pages);
    memmove(memory->pages + i + 1, memory->pages + i,
            (memory->pages_n - i) * sizeof *memory->pages);
    memory->pages_n++;
    memory->pages[i] = (struct page){number, mm_calloc(PAGE_BYTES, 1)};
    return memory->pages[i].bytes;
}

/* The bytes from `offset` on that are in one page, at most `bytes`. */
static size_t in_page(uint64_t offset, size_t bytes) {
    size_t left = PAGE_BYTES - offset % PAGE_BYTES;
    return bytes < left ? bytes : left;
}

void mm_h5_memory_patch(struct mm_h5_memory *memory, uint64_t offset, const void *data,
                        size_t bytes) {
    const char *next = data;
    for (size_t now; bytes > 0; next += now, offset += now, bytes -= now) {
        char *page = find_page(memory, offset / PAGE_BYTES);
        now = in_page(offset, bytes);
        if (!page)
            page = make_page(memory, offset / PAGE_BYTES);
        memcpy(page + offset % PAGE_BYTES, next, now);
    }
    memory->written = memory->written > offset ? memory->written : offset;
}

static void get_bytes(const struct mm_h5_memory *memory, uint64_t offset, size_t bytes, void *out) {
    char *next = out;
    for (size_t now; bytes > 0; next += now, offset += now, bytes -= now) {
        const char *page = find_page(memory, offset / PAGE_BYTES);
        now = in_page(offset, bytes);
        if (page)
            memcpy(next, page + offset % PAGE_BYTES, now);
        else
            memset(next, 0, now);
    }
}

/* The driver -------------------------------------------------------------------------------- */

struct driver_file {
    H5FD_t head; /* HDF5's own fields come first */
    struct mm_h5_memory *memory;
};

static struct mm_h5_memory *memory_of(const H5FD_t *file) {
    return ((const struct driver_file *)file)->memory;
}

static H5FD_t *driver_open(const char *name, unsigned flags, hid_t fapl, haddr_t max) {
    (void)name, (void)flags, (void)max;
    struct mm_h5_memory *const *memory = H5Pget_driver_info(fapl);
    struct driver_file *file = mm_calloc(1, sizeof *file);
    file->memory = *memory;
    return &file->head;
}

static herr_t driver_close(H5FD_t *file) {
    mm_free(file);
    return 0;
}

static haddr_t driver_get_eoa(const H5FD_t *file, H5FD_mem_t type) {
    (void)type;
    return memory_of(file)->allocated;
}

static herr_t driver_set_eoa(H5FD_t *file, H5FD_mem_t type, haddr_t end) {
    (void)type;
    memory_of(file)->allocated = end;
    return 0;
}

static haddr_t driver_get_eof(const H5FD_t *file, H5FD_mem_t type) {
    (void)type;
    return memory_of(file)->written;
}

static herr_t driver_read(H5FD_t *file, H5FD_mem_t type, hid_t dxpl, haddr_t offset, size_t bytes,
                          void *out) {
    (void)type, (void)dxpl;
    get_bytes(memory_of(file), offset, bytes, out);
    return 0;
}

static herr_t driver_write(H5FD_t *file, H5FD_mem_t type, hid_t dxpl, haddr_t offset, size_t bytes,
                           const void *data) {
    (void)type, (void)dxpl;
    mm_h5_memory_patch(memory_of(file), offset, data, bytes);
    return 0;
}

static herr_t driver_truncate(H5FD_t *file, hid_t dxpl, hbool_t closing) {
    (void)dxpl, (void)closing;
    memory_of(file)->written = memory_of(file)->allocated;
    return 0;
}

static const H5FD_class_t driver_class = {
#if H5_VERSION_GE(1, 13, 0)
    .version = H5FD_CLASS_VERSION,
    .value = 2 * H5_VFD_RESERVED,
#endif
    .name = "mudman-mpi memory",
    .maxaddr = (haddr_t)1 << 62,
    .fc_degree = H5F_CLOSE_WEAK,
    .fapl_size = sizeof(struct mm_h5_memory *),
    .open = driver_open,
    .close = driver_close,
    .get_eoa = driver_get_eoa,
    .set_eoa = driver_set_eoa,
    .get_eof = driver_get_eof,
    .read = driver_read,
    .write = driver_write,
    .truncate = driver_truncate,
    .fl_map = H5FD_FLMAP_DICHOTOMY,
};

/* Files ------------------------------------------------------------------------------------- */

enum mm_status mm_h5_memory_create(struct mm_h5_memory **memory, hid_t *file, hsize_t user_block,
                                   struct mm_error *err) {
    struct mm_h5_memory *m = mm_calloc(1, sizeof *m);
    enum mm_status status = MM_OK;
    mm_h5_settle();
    m->driver = H5FDregister(&driver_class);
    hid_t fapl = mm_h5_file_access(), fcpl = H5Pcreate(H5P_FILE_CREATE);
    *file = -1;
    if (m->driver >= 0 && fapl >= 0 && fcpl >= 0 && H5Pset_driver(fapl, m->driver, &m) >= 0 &&
        H5Pset_userblock(fcpl, user_block) >= 0 && H5Pset_obj_track_times(fcpl, false) >= 0)
        *file = H5Fcreate("in memory", H5F_ACC_TRUNC, fcpl, fapl);
    if (*file < 0)
        status = mm_h5_fail(err, MM_FAILED, "cannot lay out an HDF5 file");
    mm_h5_close(fcpl);
    mm_h5_close(fapl);
    if (status != MM_OK) {
        mm_h5_memory_free(m);
        m = NULL;
    }
    *memory = m;
    return status;
}

void mm_h5_memory_free(struct mm_h5_memory *memory) {
    if (!memory)
        return;
    if (memory->driver >= 0)
        H5FDunregister(memory->driver);
    for (size_t i = 0; i < memory->pages_n; i++)
        mm_free(memory->pages[i].bytes);
    mm_free(memory->pages);
    mm_free(memory->extents);
    mm_free(memory);
}

enum mm_status mm_h5_memory_dataset(struct mm_h5_memory *memory, hid_t at, const char *name,
                                    const struct mm_h5_content *content, hid_t *set,
                                    struct mm_error *err) {
    size_t rows = content->rows, cols = content->cols;
    hid_t space = H5Screate_simple(2, (hsize_t[]){rows, cols}, NULL);
    hid_t dcpl = H5Pcreate(H5P_DATASET_CREATE), type = mm_h5_type(content->dtype);
    haddr_t offset = HADDR_UNDEF;
    enum mm_status status = MM_OK;
    *set = -1;
    if (space >= 0 && dcpl >= 0 && type >= 0 &&
        H5Pset_alloc_time(dcpl, H5D_ALLOC_TIME_EARLY) >= 0 &&
        H5Pset_fill_time(dcpl, H5D_FILL_TIME_NEVER) >= 0)
        *set = mm_h5_create_dataset(at, name, type, space, dcpl);
    if (*set >= 0)
        offset = H5Dget_offset(*set);
    if (offset == HADDR_UNDEF)
        status = mm_h5_fail(err, MM_FAILED, "cannot lay out '%s'", name);
    mm_h5_close(type);
    mm_h5_close(dcpl);
    mm_h5_close(space);
    if (status != MM_OK) {
        mm_h5_close(*set);
        *set = -1;
        return status;
    }
    memory->extents =
        mm_realloc(memory->extents, (memory->extents_n + 1) * sizeof *memory->extents);
    memory->extents[memory->extents_n++] =
        (struct extent){offset, rows * cols * mm_dtype_bytes(content->dtype), content->data};
    return MM_OK;
}

enum mm_status mm_h5_memory_close(hid_t file, enum mm_status status, struct mm_error *err) {
    if (H5Fclose(file) < 0 && status == MM_OK)
        return mm_h5_fail(err, MM_FAILED, "cannot lay out an HDF5 file");
    return status;
}

static int by_offset(const void *a, const void *b) {
    uint64_t x = ((const struct extent *)a)->offset, y = ((const struct extent *)b)->offset;
    return (x > y) - (x < y);
}

/* Receives the bytes of the closed file, one after another. */
struct sink {
    struct mm_output *out; /* NULL: nowhere */
    struct mm_hash *hash;
    size_t skip; /* bytes that do not count for it */
};

/* Hashes and writes the bytes, in pieces that stay in the processor's cache between the two. */
static enum mm_status put(struct sink *sink, const void *data, size_t bytes, struct mm_error *err) {
    const char *next = data;
    enum mm_status status = MM_OK;
    for (size_t now; status == MM_OK && bytes > 0; next += now, bytes -= now) {
        now = bytes < PIECE_BYTES ? bytes : PIECE_BYTES;
        size_t skip = sink->skip < now ? sink->skip : now;
        sink->skip -= skip;
        mm_hash_add(sink->hash, next + skip, now - skip);
        if (sink->out)
            status = mm_output_write(sink->out, next, now, err);
    }
    return status;
}

/* The file's own bytes [first, end). */
static enum mm_status put_between(const struct mm_h5_memory *memory, uint64_t first, uint64_t end,
                                  struct sink *sink, struct mm_error *err) {
    char buffer[4 * PAGE_BYTES];
    enum mm_status status = MM_OK;
    while (status == MM_OK && first < end) {
        size_t now = end - first < sizeof buffer ? end - first : sizeof buffer;
        get_bytes(memory, first, now, buffer);
        status = put(sink, buffer, now, err);
        first += now;
    }
    return status;
}

static enum mm_status put_all(struct mm_h5_memory *memory, struct sink *sink,
                              struct mm_error *err) {
    uint64_t at = 0;
    enum mm_status status = MM_OK;
    if (memory->extents_n)
        qsort(memory->extents, memory->extents_n, sizeof *memory->extents, by_offset);
    for (size_t i = 0; status == MM_OK && i < memory->extents_n; i++) {
        const struct extent *extent = &memory->extents[i];
        MM_CHECK(extent->offset >= at && extent->offset + extent->bytes <= memory->written,
                 "HDF5 laid datasets over one another");
        status = put_between(memory, at, extent->offset, sink, err);
        if (status == MM_OK)
            status = put(sink, extent->data, extent->bytes, err);
        at = extent->offset + extent->bytes;
    }
    if (status == MM_OK)
        status = put_between(memory, at, memory->written, sink, err);
    return status;
}

enum mm_status mm_h5_memory_write(struct mm_h5_memory *memory, const char *path, size_t offset,
                                  char hex[33], struct mm_error *err) {
    struct mm_output out;
    enum mm_status status = mm_output_open(&out, path, err);
    if (status != MM_OK)
        return status;
    struct sink sink = {&out, mm_hash_begin(), offset};
    status = put_all(memory, &sink, err);
    mm_hash_end(sink.hash, hex);
    return mm_output_close(&out, status, err);
}

void mm_h5_memory_hash(struct mm_h5_memory *memory, size_t offset, char hex[33]) {
    struct mm_error none;
    struct sink sink = {NULL, mm_hash_begin(), offset};
    put_all(memory, &sink, &none);
    mm_hash_end(sink.hash, hex);
}
