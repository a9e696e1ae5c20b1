/* shard.h - a set of tensors spread over the ranks by blocks of rows.
 *
 * Of every tensor in the set, rank r owns the rows mm_rows_of(rows, R, r). A "vector" holds a
 * rank's own rows of all tensors, one behind the other: Algorithm 1 is algebra on vectors. For
 * unlearning the set is W; for relearning and pretraining it is every tensor. */
#ifndef MM_SHARD_H
#define MM_SHARD_H

#include "comm/comm.h"
#include "src/model.h"

struct mm_shard {
    struct mm_comm *comm;
    struct mm_model *model;
    size_t tensors_n;
    size_t *param;        /* [tensors_n] index into model->params */
    struct mm_rows *rows; /* [tensors_n] this rank's */
    size_t *offsets;      /* [tensors_n + 1] where each tensor's own rows start in a vector */
    size_t n;             /* elements of a vector */
    double total;         /* elements over all ranks: N_W */
    float **grads;  /* [params_n] whole gradients of this rank's sequences; NULL: not in the set */
    size_t grads_n; /* elements behind grads, one block */
    float *grads_block;
    void *staging; /* own rows in the model's dtype, the largest tensor's */
};

/* wanted[params_n] chooses the set. Memory for whole gradients comes from `arena`, padded to equal
 * row blocks. Local. The caller frees with mm_shard_free before the arena. */
struct mm_shard *mm_shard_create(struct mm_arena *arena, struct mm_comm *comm,
                                 struct mm_model *model, const bool *wanted);
void mm_shard_free(struct mm_shard *shard);

/* A zeroed vector. Local. */
struct mm_vector mm_shard_vector(const struct mm_shard *shard, struct mm_arena *arena,
                                 enum mm_purpose purpose, enum mm_dtype dtype);

/* A vector for mm_shard_reduce. One rank's own rows are the whole gradients: it is those then. */
struct mm_vector mm_shard_gradient(const struct mm_shard *shard, struct mm_arena *arena);

/* v (=) own rows of the working weights. Local. */
void mm_shard_load(const struct mm_shard *shard, struct mm_vector v);
/* Working weights of the set (=) v of all ranks, rounded to the model's dtype. Collective. */
void mm_shard_store(const struct mm_shard *shard, struct mm_vector v);

/* Zeroes the whole gradients. Local. */
void mm_shard_zero_grads(const struct mm_shard *shard);
/* g (=) own rows of the whole gradients, summed over the ranks. Collective. */
void mm_shard_reduce(const struct mm_shard *shard, struct mm_vector g);

#endif
