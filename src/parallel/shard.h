/* shard.h - a set of tensors spread over the ranks by blocks of rows.
 *
 * Of every tensor in the set, rank r owns the rows mm_rows_of(rows, R, r). A "vector" holds a
 * rank's own rows of all tensors, one behind the other: Algorithm 1 is algebra on vectors. For
 * unlearning the set is W; for relearning and pretraining it is every tensor. */
#ifndef MM_SHARD_H
#define MM_SHARD_H

#include "src/parallel/layout.h"
#include "src/model/transformer.h"

/* Tensors order[first] ... order[first + n - 1]: what crosses the network at once. */
struct mm_bucket {
    size_t first, n;
    int layer; /* the lowest; MM_NO_LAYER: the tensors of no layer */
    mm_ticket ticket;
    bool started; /* and not waited for */
};

struct mm_shard {
    struct mm_comm *comm;
    struct mm_model *model;
    size_t tensors_n;
    size_t *param;           /* [tensors_n] index into model->params */
    struct mm_layout layout; /* of a vector; its total is N_W */
    float **grads;  /* [params_n] whole gradients of this rank's sequences; NULL: not in the set */
    size_t grads_n; /* elements behind grads, one block */
    float *grads_block;
    bool *overwritten; /* [tensors_n] by a backward's first micro-batch: needs no zeroing */
    size_t *order;     /* [tensors_n] tensors as a forward meets them, those of no layer first */
    struct mm_reduction *reductions; /* [tensors_n] in that order; and the working weights: */
    struct mm_mat *gathers;
    size_t buckets_n;
    struct mm_bucket *buckets; /* in that order, cut between layers */
};

/* The least bytes of a bucket that are worth a collective; tests of small models lower it. */
extern size_t mm_bucket_bytes;

/* wanted[params_n] chooses the set; while the shard is there no other tensor of the model changes
 * (mm_model_hold). Memory for whole gradients comes from `arena`, padded to equal
 * row blocks. Local. The caller frees with mm_shard_free before the arena. */
struct mm_shard *mm_shard_create(struct mm_arena *arena, struct mm_comm *comm,
                                 struct mm_model *model, const bool *wanted);
void mm_shard_free(struct mm_shard *shard);

/* A zeroed vector. Local. */
struct mm_vector mm_shard_vector(const struct mm_shard *shard, struct mm_arena *arena,
                                 enum mm_purpose purpose, enum mm_dtype dtype);

/* A vector to reduce into. One rank's own rows are the whole gradients: it is those then, unless
 * the device is `exact`. */
struct mm_vector mm_shard_gradient(const struct mm_shard *shard, struct mm_arena *arena);

/* v (=) own rows of the working weights. Local. */
void mm_shard_load(const struct mm_shard *shard, struct mm_vector v);
/* Working weights of the set (=) v of all ranks, rounded to the model's dtype. Collective. */
void mm_shard_store(struct mm_shard *shard, struct mm_vector v);
/* The same in two steps: between them nothing but a forward with mm_shard_arrivals as its hook,
 * which waits for each layer's weights where it needs them, may read the weights. Collective. */
void mm_shard_store_begin(struct mm_shard *shard, struct mm_vector v);
void mm_shard_store_end(struct mm_shard *shard);
struct mm_layer_hook mm_shard_arrivals(struct mm_shard *shard); /* Local. */

/* g (=) own rows of the whole gradients, summed over the ranks: begin zeroes the whole gradients
 * that a backward adds to; then the backwards, the last of them with mm_shard_departures as its
 * hook, which sends off each bucket when it is formed; end sends the rest and waits for all.
 * Collective. */
void mm_shard_reduce_begin(struct mm_shard *shard, struct mm_vector g);
void mm_shard_reduce_end(struct mm_shard *shard);
struct mm_layer_hook mm_shard_departures(struct mm_shard *shard); /* Local. */

/* The same of one leaf a rank, ranks 0 ... ranks-1, for `reduction: exact` (src/parallel/passes.h):
 * their gradients are added to g one after the other; those of `first` are what g then is. Every
 * backward overwrites, none has a hook. Collective, of all ranks. */
void mm_shard_reduce_leaves_begin(struct mm_shard *shard, struct mm_vector g, int ranks,
                                  bool first);

#endif
