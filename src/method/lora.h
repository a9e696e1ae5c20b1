/* lora.h - low-rank adapters (Hu et al. 2021) on matrices: W = W0 + scale·B·A, scale = alpha/rank,
 * A [rank, cols] random, B [rows, rank] zero at first.
 *
 * The forward and backward are those of the whole weights, which are formed anew after every step:
 * the adapters' gradients follow from W's, dB = scale·dW·Aᵀ and dA = scale·Bᵀ·dW. All is float32.
 * A's and B's are spread over the ranks by blocks of their own rows, as W is.
 *
 * On an `exact` device every rank forms the products of whole tensors, whose bits could depend on
 * where the rows are cut, and takes its rows of them. */
#ifndef MM_LORA_H
#define MM_LORA_H

#include "src/parallel/shard.h"

/* Some sets of adapters, one of them in use. */
struct mm_lora {
    struct mm_comm *comm;
    const struct mm_shard *shard; /* borrowed */
    size_t n;                     /* tensors of the shard that are adapted */
    size_t *tensor;               /* [n] which */
    size_t rank;
    float scale;
    struct mm_layout layout;        /* of p: 2n tensors, all A, all B */
    struct mm_vector p;             /* own rows of the set in use */
    struct mm_vector all;           /* the sets, one behind the other */
    struct mm_vector g;             /* gradient of p */
    struct mm_vector first, second; /* AdamW's moments; data NULL without */
    size_t *whole_at;               /* [n] where A i begins in the following two */
    float *whole_a;                 /* every A whole, as of the last gather */
    float *whole_da;                /* this rank's sequences' and rows', padded to equal blocks */
    float *whole_b;         /* exact: [most rows, rank] something of one tensor's B; else NULL */
    struct mm_mat *gathers; /* [n] */
    struct mm_reduction *reductions;
};

#define MM_LORA_ALPHA        8.0  /* of unlearning: the study's */
#define MM_LORA_ATTACK_ALPHA 16.0 /* of an attack with adapters of its own */

/* What to make. */
struct mm_lora_kind {
    const bool *wanted; /* [params_n] which tensors of the shard to adapt; NULL: all */
    size_t rank, sets;
    double alpha;
    enum mm_purpose purpose; /* of the memory for p */
    bool adamw;
};

/* The tensors that relearning adapts: wanted[params_n] (=). Local. */
void mm_lora_choose(const struct mm_model *model, bool *wanted);

/* Adapters of tensors of the shard, zero, set 0 in use. Local. The caller frees before the arena.
 */
struct mm_lora *mm_lora_create(struct mm_arena *arena, struct mm_comm *comm,
                               const struct mm_shard *shard, struct mm_lora_kind kind);
void mm_lora_free(struct mm_lora *lora);

/* Set `set` begins anew: A uniform in ±1/sqrt(cols) from the seed, the tensor's name and the
 * element's place alone, B zero. Local. */
void mm_lora_begin(struct mm_lora *lora, size_t set, uint64_t seed);
/* The same of the only set, as it begins in unlearning with unlearn.lora_rank; seed: the run's.
 * Local. */
void mm_lora_begin_base(struct mm_lora *lora, uint64_t seed);
/* From now on p is set `set`. Local. */
void mm_lora_use(struct mm_lora *lora, size_t set);

/* w (=) w0 + scale·B·A, float32, of the shard's own rows; what is not adapted as in w0. g is lost.
 * Collective. */
void mm_lora_weights(struct mm_lora *lora, struct mm_vector w0, struct mm_vector w);

/* g (=), from the reduced gradient of the shard's tensors, float32, at the weights that were formed
 * last, or at the beginning. Collective. */
void mm_lora_gradients(struct mm_lora *lora, struct mm_vector dw);

/* Both tensor by tensor, where the layers are spread (src/parallel/spread.h) and nobody keeps the
 * gradients of all; not on an exact device. g (=): take, of each adapted tensor of the shard, this
 * rank's rows of its gradient (local); then end (collective). Store: the weights of the layers (=)
 * w0 + scale·B·A, rounded to the model's dtype, by way of `room`, which has space for the rows of
 * the largest tensor. g is lost. Collective. */
void mm_lora_take(struct mm_lora *lora, size_t tensor, const float *own);
void mm_lora_gradients_end(struct mm_lora *lora);
void mm_lora_store(struct mm_lora *lora, struct mm_vector w0, float *room);

/* What p or its place is taken by, where there may be adapters: the weights that lora's adapters on
 * w0 stand for, formed in `room`, as mm_lora_weights; p itself where lora is NULL. Collective. */
struct mm_vector mm_lora_applied(struct mm_lora *lora, struct mm_vector p, struct mm_vector w0,
                                 struct mm_vector room);
/* The gradient by the adapters, from dw, as mm_lora_gradients; dw itself where lora is NULL.
 * Collective. */
struct mm_vector mm_lora_gradient(struct mm_lora *lora, struct mm_vector dw);

/* Sets that take turns, loop by loop. Instead of a fork one set, in turn, begins anew every
 * floor(floor(fork_every / 6)·6 / sets) loops. */
struct mm_lora_turns {
    struct mm_lora *lora; /* borrowed */
    size_t sets, every;
    uint64_t seed;
};
/* All sets begin; `dry`: they are not written. Local. */
struct mm_lora_turns mm_lora_turns_begin(struct mm_lora *lora, size_t sets, size_t fork_every,
                                         uint64_t seed, bool dry);
/* The set whose turn is loop t is in use from now on, and made anew where that is due; returns its
 * number. Local. */
size_t mm_lora_turns_take(const struct mm_lora_turns *turns, size_t t);

/* What tensor i of the layout is: A i, i < n, or B i - n. Local. */
struct mm_lora_tensor {
    const char *adapted; /* the tensor's name */
    char matrix;         /* 'A' or 'B' */
};
struct mm_lora_tensor mm_lora_tensor(const struct mm_lora *lora, size_t i);

#endif
