/* dataset.h - token files, and which rows of them a step reads, whatever the number of ranks.
 *
 * A token file is HDF5 with /tokens, unsigned 32-bit [examples, context], attributes vocab_size,
 * tokenizer, source. Batch i has rows i·B to i·B+B-1 and goes on at row 0 after the last row. All
 * functions are local. */
#ifndef MM_DATASET_H
#define MM_DATASET_H

#include "src/base/base.h"

struct mm_dataset {
    char *path;
    size_t examples, context; /* of the file */
    size_t context_length;    /* what is used: the first columns */
    uint32_t vocab_size;      /* attribute; 0 where the file has none */
    uint32_t *tokens;         /* [examples, context_length], owned; of a view borrowed */
    size_t *rows;             /* of a view [examples]: which rows of `tokens`; else NULL */
};

/* Reads the first context_length columns (0: all) of the whole file, of any integer type. Tokens
 * must be below vocab_size (0: below the attribute's). The caller frees the set. Returns
 * MM_BAD_INPUT if the file is missing or not HDF5; if /tokens is missing, not a 2-D integer
 * dataset, in another file, or of a shape that its file cannot hold; if there is no example, or the
 * context is shorter than context_length; if a token is negative or too large (the text names row
 * and column); or if the attribute vocab_size is no number. */
enum mm_status mm_dataset_read(struct mm_dataset *set, const char *path, size_t context_length,
                               uint32_t vocab_size, struct mm_error *err);
void mm_dataset_free(struct mm_dataset *set);

/* XXH3 128-bit hash, 32 hex digits, of what was read: the number of rows, the columns that are used
 * and the tokens in them. A file that stores the same in another way has the same hash. */
void mm_dataset_hash(const struct mm_dataset *set, char hex[33]);

/* view (=) the rows of `set` from row `first` (modulo its examples) on, round to the row before it,
 * without those whose tokens are the tokens of one of the first `other_n` rows of `other`, a set of
 * the same context_length. None may be left: examples is 0. It borrows path and tokens of
 * `set`; the caller frees it. */
void mm_dataset_view(struct mm_dataset *view, const struct mm_dataset *set, size_t first,
                     const struct mm_dataset *other, size_t other_n);

/* out[count·context_length] (=) sequences [first, first + count) of batch `index` of size B. */
void mm_dataset_batch(const struct mm_dataset *set, size_t index, size_t batch_size, size_t first,
                      size_t count, uint32_t *out);

/* Multiple-choice file: /prompts (flat u32), /offsets [n+1], /choices [n, 4], /answers [n]. */
struct mm_questions {
    char *path;
    size_t n;
    uint32_t *prompts; /* prompt q is prompts[offsets[q] ... offsets[q+1]-1] */
    uint64_t *offsets;
    uint32_t *choices; /* [n, 4] token ids */
    uint32_t *answers; /* [n], 0...3 */
    size_t longest;    /* tokens of the longest prompt */
};

/* Returns MM_BAD_INPUT as for token files, and if offsets do not ascend, a prompt is empty, or an
 * answer is larger than 3. */
enum mm_status mm_questions_read(struct mm_questions *questions, const char *path,
                                 uint32_t vocab_size, struct mm_error *err);
void mm_questions_free(struct mm_questions *questions);
/* The hash of all that was read, as mm_dataset_hash. */
void mm_questions_hash(const struct mm_questions *questions, char hex[33]);

#endif
