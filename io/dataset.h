/* dataset.h - token files, and which rows of them a step reads, whatever the number of ranks.
 *
 * A token file is HDF5 with /tokens, unsigned 32-bit [examples, context], attributes vocab_size,
 * tokenizer, source. Batch i has rows i·B to i·B+B-1 and goes on at row 0 after the last row.
 *
 * Two more datasets [examples] may be there. /lengths: how many of a row's tokens are its own; what
 * stands behind is padding and changes nothing. /answer_from: the token from which on a row is to
 * be learnt; what comes before is read and not learnt. So position p of a row has a target, its
 * token p+1, where answer_from <= p+1 < length. Of a dataset of another name, which is not read,
 * rank 0 warns: its writer may have meant lengths or a mask. All functions are local. */
#ifndef MM_DATASET_H
#define MM_DATASET_H

#include "src/base/base.h"

struct mm_dataset {
    char *path;
    size_t examples, context; /* of the file */
    size_t context_length;    /* what is used: the first columns */
    uint32_t vocab_size;      /* attribute; 0 where the file has none */
    char *tokenizer;          /* attribute, owned as path is; NULL where the file has none */
    uint32_t *tokens;         /* [examples, context_length], owned; of a view borrowed */
    /* [examples] each, as tokens; both NULL: all rows are whole. At most context_length. */
    uint32_t *lengths, *answers;
    size_t *rows; /* of a view [examples]: which rows of `tokens`; else NULL */
};

/* What losses are means over, of the sequences of a batch on all ranks. */
struct mm_counts {
    double sequences, targets, tokens; /* without padding; a target is a token to be learnt */
};

/* Some sequences in host memory. */
struct mm_sequences {
    size_t n, T;                 /* sequences, and the room of each */
    uint32_t *tokens;            /* [n, T]; behind a sequence's end its first token */
    uint32_t *lengths, *answers; /* [n] */
    struct mm_counts counts;     /* of the whole batch that they are of */
};

/* The caller frees. */
struct mm_sequences mm_sequences_create(size_t n, size_t T);
void mm_sequences_free(struct mm_sequences *sequences);
/* Copies sequences of `from` [first, first + count) to `to` at `at`. Counts stay as they are. */
void mm_sequences_copy(struct mm_sequences *to, size_t at, const struct mm_sequences *from,
                       size_t first, size_t count);

/* Reads the first context_length columns (0: all) of the whole file, of any integer type. Tokens
 * must be below vocab_size (0: below the attribute's). The caller frees the set. Returns
 * MM_BAD_INPUT if the file is missing or not HDF5; if /tokens is missing, not a 2-D integer
 * dataset, in another file, or of a shape that its file cannot hold; if there is no example, or the
 * context is shorter than context_length; if a token is negative or too large (the text names row
 * and column); if the attribute vocab_size is no number; or if /lengths or /answer_from are not
 * whole numbers, one a row, of at most the context, or leave a row no target within context_length.
 */
enum mm_status mm_dataset_read(struct mm_dataset *set, const char *path, size_t context_length,
                               uint32_t vocab_size, struct mm_error *err);
void mm_dataset_free(struct mm_dataset *set);

/* XXH3 128-bit hash, 32 hex digits, of what was read: the number of rows, the columns that are used
 * and the tokens in them, without what stands in padding; and lengths and answers where there are
 * any. A file that stores the same in another way has the same hash. */
void mm_dataset_hash(const struct mm_dataset *set, char hex[33]);

/* view (=) the rows of `set` from row `first` (modulo its examples) on, round to the row before it,
 * without those whose tokens, learnt or not, are the tokens of one of the first `other_n` rows of
 * `other`, a set of the same context_length. None may be left: examples is 0. It borrows path and
 * tokens of `set`; the caller frees it. */
void mm_dataset_view(struct mm_dataset *view, const struct mm_dataset *set, size_t first,
                     const struct mm_dataset *other, size_t other_n);

/* out, from `at` on (=) sequences [first, first + count) of batch `index` of size B. Its counts
 * stay as they are. */
void mm_dataset_batch(const struct mm_dataset *set, size_t index, size_t batch_size, size_t first,
                      size_t count, struct mm_sequences *out, size_t at);
/* The counts of batch `index` of size B. */
struct mm_counts mm_dataset_counts(const struct mm_dataset *set, size_t index, size_t batch_size);

/* Multiple-choice file: /prompts (flat u32), /offsets [n+1], /choices [n, 4], /answers [n]. */
struct mm_questions {
    char *path, *tokenizer; /* as of token files */
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
