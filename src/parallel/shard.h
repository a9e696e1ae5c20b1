/* shard.h - a set of tensors that is spread over the ranks by blocks of rows.
 *
 * Reason: b, a and m would take three times W's memory on every rank. So of every tensor in the set
 * rank r owns the rows mm_rows_of(rows, R, r), and only it keeps their state. A "vector" holds a
 * rank's own rows of all tensors, one behind the other; Algorithm 1 is algebra on vectors. For
 * unlearning the set is W; for relearning and pretraining it is every tensor.
 *
 * Cost: each pass begins with a gather of the weights and ends with a reduction of the gradients,
 * and every rank holds both whole; but for a model whose layers are spread (spread.h). There the
 * gathers are part of the passes, and a backward over all micro-batches at once, with
 * mm_shard_departures as its hook, forms the gradients of a layer and sends them off. */
#ifndef MM_SHARD_H
#define MM_SHARD_H

#include "src/parallel/spread.h"
#include "src/model/transformer.h"

/* Tensors order[first] ... order[first + n - 1], which cross the network at once. */
struct mm_bucket {
    size_t first, n;
    int layer; /* the lowest; MM_NO_LAYER: the tensors of no layer */
    mm_ticket ticket;
    bool started; /* and not yet waited for */
};

/* Who takes the reduced gradient of tensor t of the set, this rank's rows of it, when it arrives.
 */
struct mm_gradient_taker {
    void (*take)(void *self, size_t t, const float *own);
    void *self;
};

struct mm_shard {
    struct mm_comm *comm;
    struct mm_model *model;
    size_t tensors_n;
    size_t *param;           /* [tensors_n] index into model->params */
    bool *wanted;            /* [params_n] the set */
    struct mm_layout layout; /* of a vector; its total is N_W */
    float **grads;  /* [params_n] whole gradients of this rank's sequences; NULL: not in the set */
    size_t grads_n; /* elements behind grads, one block */
    float *grads_block;
    bool given_away;   /* mm_shard_create_stream made it */
    bool idle;         /* this rank forms no gradient: all are zero (mm_passes_create says so) */
    bool *overwritten; /* [tensors_n] a backward's first micro-batch overwrites it: no zeroing */
    size_t *order;     /* [tensors_n] tensors as a forward meets them, those of no layer first */
    struct mm_reduction *reductions; /* [tensors_n] in that order; and the working weights: */
    struct mm_mat *gathers;
    size_t buckets_n;
    struct mm_bucket *buckets;      /* in that order, cut between layers */
    struct mm_gradient_taker taker; /* see mm_shard_stream */
    float *arrivals;                /* where the rows arrive that the taker takes */
    size_t arrivals_of_layer;       /* elements of one of its two slots */
    bool streams;                   /* the reductions under way are the taker's */
};

/* The least bytes of a bucket that are worth a collective; tests of small models lower it. */
extern size_t mm_bucket_bytes;

/* wanted[params_n] chooses the set; while the shard is there no other tensor of the model changes
 * (mm_model_hold). Memory for whole gradients comes from `arena`, padded to equal
 * row blocks. Local. The caller frees with mm_shard_free before the arena. */
struct mm_shard *mm_shard_create(struct mm_arena *arena, struct mm_comm *comm,
                                 struct mm_model *model, const bool *wanted);
/* The same for gradients that are never kept: mm_shard_stream comes next. Only where the layers are
 * spread, and not on an exact device. */
struct mm_shard *mm_shard_create_stream(struct mm_arena *arena, struct mm_comm *comm,
                                        struct mm_model *model, const bool *wanted);
void mm_shard_free(struct mm_shard *shard);

/* Begins a loop or step: see mm_spread_settle. Collective. */
void mm_shard_settle(struct mm_shard *shard);

/* A zeroed vector. Local. */
struct mm_vector mm_shard_vector(const struct mm_shard *shard, struct mm_arena *arena,
                                 enum mm_purpose purpose, enum mm_dtype dtype);

/* A vector to reduce into. With one rank its own rows are the whole gradients, and the vector is
 * their memory, unless the device is `exact`. */
struct mm_vector mm_shard_gradient(const struct mm_shard *shard, struct mm_arena *arena);

/* v (=) own rows of the working weights. Local. */
void mm_shard_load(const struct mm_shard *shard, struct mm_vector v);
/* Where a step puts v's elements itself, as the next functions would: this rank's rows of the
 * working weights. offsets: the layout's, in device memory; the other array is the arena's. Local.
 */
struct mm_places mm_shard_places(const struct mm_shard *shard, struct mm_arena *arena,
                                 const size_t *offsets);
/* Working weights of the set (=) v of all ranks, rounded to the model's dtype; v.data NULL: a step
 * has put every rank's rows there (mm_shard_places). Collective. */
void mm_shard_store(struct mm_shard *shard, struct mm_vector v);
/* The same in two steps. Between them nothing may read the weights but a forward with
 * mm_shard_arrivals as its hook, which waits for the weights of each layer where they are needed.
 * Collective. */
void mm_shard_store_begin(struct mm_shard *shard, struct mm_vector v);
void mm_shard_store_end(struct mm_shard *shard);
struct mm_layer_hook mm_shard_arrivals(struct mm_shard *shard); /* Local. */
/* Begins for a backward: the layers arrive from the top down, and mm_shard_await comes before each
 * that is read. The tensors of no layer are not waited for before mm_shard_store_end: the set has
 * none, or nobody reads them. Collective; the second one is local. */
void mm_shard_store_begin_down(struct mm_shard *shard, struct mm_vector v);
void mm_shard_await(struct mm_shard *shard, int layer);

/* g (=) own rows of the whole gradients, summed over the ranks. Begin zeroes the whole gradients
 * that a backward adds to. Then come the backwards; the last of them has mm_shard_departures as its
 * hook, which sends each bucket when it is complete. End sends the rest and waits for all.
 * Collective. */
void mm_shard_reduce_begin(struct mm_shard *shard, struct mm_vector g);
void mm_shard_reduce_end(struct mm_shard *shard);
struct mm_layer_hook mm_shard_departures(struct mm_shard *shard); /* Local. */

/* Only where the layers are spread: from now on reductions into a vector without data give the
 * gradients to the taker, layer after layer from the top, and those of no layer last. No rank holds
 * the gradients of more than two layers. Local. */
void mm_shard_stream(struct mm_shard *shard, struct mm_arena *arena,
                     struct mm_gradient_taker taker);

/* The same for one leaf a rank, of ranks 0 ... ranks-1, for `reduction: exact`
 * (src/parallel/passes.h). Their gradients are added to g one after the other; with MM_SET g holds
 * nothing before. Every backward overwrites, and none has a hook. All ranks call. Collective. */
void mm_shard_reduce_leaves_begin(struct mm_shard *shard, struct mm_vector g, int ranks,
                                  enum mm_into into);

#endif
