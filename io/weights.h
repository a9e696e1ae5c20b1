/* weights.h - reads and writes Hugging Face weights: safetensors, one file or several with an
 * index.
 *
 * This layer moves named tensors and knows nothing of models. Files are memory-mapped, so that only
 * what is read is loaded. Every length and offset of a header is checked before use. */
#ifndef MM_WEIGHTS_H
#define MM_WEIGHTS_H

#include "kernels/tensor.h"
#include "src/base/base.h"

struct mm_stored_tensor {
    const char *name; /* owned by the mm_weights */
    enum mm_dtype dtype;
    size_t dims_n, dims[4];
    size_t elements;
    const void *data; /* into the mapped file: little-endian, possibly unaligned */
    size_t file;      /* index of the file it lies in */
};

struct mm_weights; /* a folder's weight files, mapped */

/* Opens model.safetensors, or else the files that model.safetensors.index.json names, in `folder`.
 * Local. MM_BAD_INPUT: no such file, truncated, header not JSON, data offsets that overlap, leave
 * gaps or leave the file, shape and size that disagree, a name twice, an index that names a file
 * outside the folder. A file that the index names and that is missing is missed when one of its
 * tensors is loaded. Tensors of a dtype other than F32, F16, BF16 or of
 * more than 4 dimensions are kept out of the list: mm_weights_load says so when asked for one.
 * *weights is NULL on failure; the caller frees. */
enum mm_status mm_weights_open(struct mm_weights **weights, const char *folder,
                               struct mm_error *err);
void mm_weights_free(struct mm_weights *weights);

size_t mm_weights_count(const struct mm_weights *weights);
/* index < count; by file name, then as the data lies in the file. */
const struct mm_stored_tensor *mm_weights_at(const struct mm_weights *weights, size_t index);
/* NULL where none is listed. Local. */
const struct mm_stored_tensor *mm_weights_find(const struct mm_weights *weights, const char *name);

/* Every tensor of the files, of whatever dtype, by name; index < names_n. */
size_t mm_weights_names_n(const struct mm_weights *weights);
const char *mm_weights_name(const struct mm_weights *weights, size_t index);

/* From now on `name` means the tensor that the files call `stored`, which is there. To be called
 * once a name. */
void mm_weights_alias(struct mm_weights *weights, const char *name, const char *stored);

/* Whether two tensors that are there have the same shape and, as float32, the same values. False
 * where one is of a dtype that is not supported. */
bool mm_weights_same(const struct mm_weights *weights, const char *a, const char *b);

/* config.json says that head and embedding are one, but they are not: an export says so. */
void mm_weights_untie(struct mm_weights *weights);

/* MM_BAD_INPUT, naming file, tensor, both shapes, if there is no such tensor or its shape is not
 * [rows, cols] (cols == 0: a vector [rows]). Local. */
enum mm_status mm_weights_check(const struct mm_weights *weights, const char *name, size_t rows,
                                size_t cols, struct mm_error *err);

/* Copies the tensor into dst, converted to dst_dtype. Errors as mm_weights_check. Local. */
enum mm_status mm_weights_load(const struct mm_weights *weights, const char *name, size_t rows,
                               size_t cols, void *dst, enum mm_dtype dst_dtype,
                               struct mm_error *err);

/* The same of rows first ... first + count - 1 of a tensor [rows, cols] (cols == 0: of elements of
 * a vector). No other byte of the data is read, and little of it is in memory at a time. Local. */
struct mm_stored_rows {
    size_t rows, cols, first, count;
};
enum mm_status mm_weights_load_rows(const struct mm_weights *weights, const char *name,
                                    struct mm_stored_rows part, void *dst, enum mm_dtype dst_dtype,
                                    struct mm_error *err);

/* Gives back what is still in memory of the files: what the system has read beside what was asked
 * for. Local. */
void mm_weights_forget(const struct mm_weights *weights);

/* Part of a hash of tensors: a sum over rows. Sums of different rows are added member by member, in
 * any order, and text is made of the sum of all: the same 32 hex digits however many took part. */
struct mm_weights_sum {
    uint64_t low, high;
};
/* Adds rows first ... first + count - 1 of a tensor that is listed, whose rows are
 * mm_stored_rows_n. Reads no other, and has little of them in memory at a time. Local. */
void mm_weights_sum_rows(const struct mm_weights *weights, const char *name, size_t first,
                         size_t count, struct mm_weights_sum *sum);
void mm_weights_sum_text(struct mm_weights_sum sum, char hex[33]);
/* The rows that are hashed: those of a matrix; a vector is one. */
static inline size_t mm_stored_rows_n(const struct mm_stored_tensor *tensor) {
    return tensor->dims_n < 2 ? 1 : tensor->dims[0];
}

/* Ranks that get the same number have opened the same files: not copies of them, unless these have
 * the same inodes, sizes and times. Local. */
uint64_t mm_weights_copy(const struct mm_weights *weights);

/* XXH3 128-bit hash of all bytes of all weight files, in order of file name, as 32 hex digits: what
 * checkpoints of before 2026-11-27 hold. It reads every byte. Local. */
void mm_weights_hash_files(const struct mm_weights *weights, char hex[33]);
/* Bytes of address space that the files take, as long as they are open. Local. */
size_t mm_weights_mapped_bytes(const struct mm_weights *weights);
/* The weight file, or the folder where there are several. Owned by the mm_weights. Local. */
const char *mm_weights_path(const struct mm_weights *weights);

/* What an export replaces: tensor `name`, of `elements` in all ranks. `data` is of the rows of the
 * rank that gives it: mm_rows_of (comm/comm.h) of the tensor's first dimension. */
struct mm_replacement {
    const char *name;
    const void *data;
    size_t elements;
};

/* What rounding to the written dtype did to a rank's rows. Values are compared bit by bit. */
struct mm_export_report {
    size_t replaced; /* elements of the replaced tensors */
    size_t changed;  /* those whose float32 value differs from the original's */
    size_t lost;     /* changed ones that are written as the original: rounding undid the change */
    size_t overflowed; /* of all tensors: finite before, infinite in the written dtype */
};

/* Writes `out` as a complete Hugging Face folder. Every weight file is written anew: the same
 * tensors, metadata, dtypes and order, replaced tensors rounded from float32. Of the rest of the
 * input folder only what a list knows is copied: configuration, tokenizer, chat template, licence
 * and text. Anything else may hold the weights before unlearning; it is left out, and one warning
 * names it. config.json is written without a byte order mark, "tie_word_embeddings" false after
 * mm_weights_untie; an index lists the tensors that are there. Where save_dtype is not NULL every
 * F32, F16 and BF16 tensor is written in *save_dtype, and config.json's "torch_dtype" or "dtype"
 * and the index's total_size say so.
 *
 * One rank begins. When it is done every rank writes its rows of every tensor, and syncs them. When
 * all are done, the one that began ends. All is written into OUT.writing, which the end renames;
 * the remains of an earlier attempt are removed at the beginning, and after a failure, of which the
 * end is told, nothing stays. Each function is local. */
struct mm_weights_export {
    const struct mm_weights *weights;
    const char *out;
    const enum mm_dtype *save_dtype;
    /* floats (=) elements first ... first + n - 1 of a replacement's data; NULL: those are float
     * themselves, one behind the other. */
    void (*read)(const void *data, size_t first, size_t n, float *floats);
};
/* Makes the folder and its parents, and writes all but the data of the tensors. MM_BAD_INPUT: `out`
 * exists already, a config.json that is not JSON, a path not permitted; MM_FAILED: disk full and
 * the like. Fails only with nothing left behind; then there is nothing to end. */
enum mm_status mm_weights_export_begin(const struct mm_weights_export *e, struct mm_error *err);
/* Writes the rows of rank `rank` of `ranks`. MM_BAD_INPUT: a replacement that no tensor matches, or
 * two of the same; MM_FAILED as above. */
enum mm_status mm_weights_export_rows(const struct mm_weights_export *e,
                                      const struct mm_replacement *replacements,
                                      size_t replacements_n, int ranks, int rank,
                                      struct mm_export_report *report, struct mm_error *err);
/* status: how the ranks fared; unless that is MM_OK, the folder is removed and it is returned. */
enum mm_status mm_weights_export_end(const struct mm_weights_export *e, enum mm_status status,
                                     struct mm_error *err);

/* Writes one model.safetensors of float32 tensors into `folder` (for pretraining), which is made
 * where it is missing; atomic: an earlier file stays until the new one is whole. MM_BAD_INPUT: a
 * name twice, a path not permitted; MM_FAILED: disk full and the like. */
struct mm_named_tensor {
    const char *name;
    size_t rows, cols; /* cols == 0: a vector */
    const float *data;
};
enum mm_status mm_weights_write(const char *folder, const struct mm_named_tensor *tensors,
                                size_t tensors_n, struct mm_error *err);

#endif
