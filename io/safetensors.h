/* safetensors.h - reads and writes one safetensors file; weights.c and weights_export.c share it.
 *
 * The format: 8 bytes of header length (little-endian), the header (JSON: name to dtype, shape and
 * data_offsets counted from the header's end; "__metadata__"), then the data, which the tensors
 * cover without gap or overlap. All functions are local. */
#ifndef MM_SAFETENSORS_H
#define MM_SAFETENSORS_H

#include "io/weights.h"

/* One tensor of a file, of whatever dtype. */
struct mm_safetensors_entry {
    struct mm_stored_tensor tensor; /* all of it where `listed`; dtype also where `floating` */
    char *name, *dtype, *shape;     /* as the header has them: "BF16", "[512,64]"; owned */
    size_t dims_n;                  /* of the shape, more than 4 included */
    size_t begin, bytes;            /* where the data lies in the file */
    bool floating;                  /* F32, F16 or BF16 */
    bool listed;                    /* floating, and of at most 4 dimensions */
};

struct mm_safetensors {
    char *path, *name;        /* folder/name, name; owned */
    const unsigned char *map; /* the whole file */
    size_t bytes, data_begin;
    uint64_t inode, modified;             /* of the file; its time in nanoseconds */
    char *metadata;                       /* "__metadata__" as JSON text; NULL if there is none */
    struct mm_safetensors_entry *entries; /* in the order of the data */
    size_t entries_n;
};

/* Maps folder/name and reads its header. MM_BAD_INPUT as mm_weights_open says; then there is
 * nothing to close. Close is safe on a zeroed struct. */
enum mm_status mm_safetensors_open(struct mm_safetensors *file, const char *folder,
                                   const char *name, struct mm_error *err);
void mm_safetensors_close(struct mm_safetensors *file);

/* The same from memory: reads the header of file->map (file->bytes, named file->path) into the
 * other fields. The map stays the caller's. The caller frees the other fields with
 * mm_safetensors_clear, also after a failure. */
enum mm_status mm_safetensors_parse(struct mm_safetensors *file, struct mm_error *err);
void mm_safetensors_clear(struct mm_safetensors *file);

/* Bytes of a mapped file after which its readers give back the memory of what they have read. */
#define MM_FILE_PIECE ((size_t)4 << 20)
/* Gives back the memory of `bytes` bytes of a mapped file, which are read again where they are
 * asked for again. */
void mm_safetensors_forget(const void *data, size_t bytes);

const char *mm_safetensors_dtype(enum mm_dtype dtype); /* "F32" | "BF16" | "F16" */

/* A header being written: begin, add every tensor in the order of the data, end. After the end
 * `text` holds the `bytes` that come before the data, length included, padded with spaces to a
 * multiple of 8. */
struct mm_safetensors_header {
    char *text; /* owned; mm_free */
    size_t bytes, capacity;
    size_t data_bytes; /* of the tensors added so far */
};
void mm_safetensors_header_begin(struct mm_safetensors_header *header, const char *metadata);
void mm_safetensors_header_add(struct mm_safetensors_header *header, const char *name,
                               const char *dtype, const char *shape, size_t bytes);
void mm_safetensors_header_end(struct mm_safetensors_header *header);

#endif
