/* transformer.h - one forward and one backward pass, as lists of operations.
 *
 * The forward keeps what the backward reads, but only for layers at or above the lowest one whose
 * weights are wanted; the backward stops there. W may change after the forward, and a second
 * backward then goes through the new W with the old activations (docs/method.md 3): so a backward
 * recomputes nothing through a weight of W, unless it is the only one. All functions are local.
 * Letters: n = B·T tokens, C width, M MLP width, H heads, d head dimension. */
#ifndef MM_TRANSFORMER_H
#define MM_TRANSFORMER_H

#include "src/model/model.h"

/* What one layer keeps. */
struct mm_kept_layer {
    struct mm_mat x_in, x_mid; /* [n, C] residual stream before each norm; parallel: x_mid unused */
    float *stats1, *stats2;    /* [n, 2] */
    struct mm_mat y1, y2;     /* [n, C] norm outputs; data NULL where no weight gradient reads it */
    struct mm_mat out1, out2; /* [n, C] what norms after attention and MLP read; else data NULL */
    struct mm_mat qk;         /* [n, (H + kv)·d] q and k before their norms; none: data NULL */
    float *q_stats, *k_stats; /* [n·parts, 2] of those norms */
    struct mm_mat qkv;        /* [n, (H + 2·kv)·d], rotated */
    float *lse;               /* [B, H, T] */
    struct mm_mat att;        /* [n, H·d] */
    struct mm_mat u;          /* [n, 2M] gate and up | [n, M] */
};

/* The activations of one micro-batch. */
struct mm_acts {
    size_t capacity; /* tokens */
    size_t lowest;   /* the lowest layer kept; layers below share one */
    bool embedding;  /* the embedding's gradient is wanted: the backward goes all the way */
    size_t kept_n;
    struct mm_kept_layer *kept;
    bool recomputes;           /* the backward computes each layer anew, in `work` */
    struct mm_kept_layer work; /* what layers that are recomputed share: their `kept` point there */
    /* [n, C] what flows: the forward's branch that is not added yet, and the backward's gradient.
     * data NULL: that of the scratch, so that one micro-batch at a time can be under way. */
    struct mm_mat delta, dx;
    struct mm_mat x_final; /* [n, C] before the final norm */
    float *stats_final;
    struct mm_mat hidden;   /* [n, C] what the head reads */
    const uint32_t *tokens; /* [n], device; borrowed, of the last forward, as B and T */
    size_t B, T;
};

/* Buffers whose content no pass keeps. All micro-batches of a model share them. */
struct mm_scratch {
    size_t capacity;
    struct mm_mat delta, y;   /* [n, C] */
    struct mm_mat h;          /* [n, M] */
    struct mm_mat dx, dy;     /* [n, C] from here on: for the backward only */
    struct mm_mat dh, du;     /* [n, M], [n, 2M] or [n, M] */
    struct mm_mat datt, dqkv; /* [n, H·d], [n, (H + 2·kv)·d] */
    struct mm_mat dqk;        /* [n, (H + kv)·d], where q and k are normalized */
};

/* What a forward keeps for the backward: all that it reads; each layer's input alone, from which
 * the backward computes the rest anew; or, for two backwards between which the wanted weights
 * change, also what was computed with a wanted weight. Either way the gradients are the same bits.
 */
enum mm_keep { MM_KEEP_ALL, MM_KEEP_INPUTS, MM_KEEP_INPUTS_FOR_TWO };

/* wanted[params_n] says which tensors' gradients a backward will form. NULL: there is no backward.
 * Afterwards mm_acts_separate gives it memory for what flows. */
void mm_acts_create(struct mm_acts *acts, struct mm_arena *arena, const struct mm_model *model,
                    size_t capacity, const bool *wanted, enum mm_keep keep);
void mm_acts_separate(struct mm_acts *acts, struct mm_arena *arena, const struct mm_model *model);
void mm_acts_free(struct mm_acts *acts); /* frees the struct's tables; the rest is the arena's */
enum mm_scratch_kind { MM_FORWARD_ONLY, MM_WITH_BACKWARD };
void mm_scratch_create(struct mm_scratch *scratch, struct mm_arena *arena,
                       const struct mm_model *model, size_t capacity, enum mm_scratch_kind kind);

/* What the caller does between the layers of a pass, so that communication runs beside it. It is
 * called before the forward reads the weights of layer l, or after the backward has formed the
 * gradients of layer l. Before the embedding it is called with MM_NO_LAYER. call NULL: nothing. */
struct mm_layer_hook {
    void (*call)(void *self, int layer);
    void *self;
};

/* acts->hidden (=) from tokens [B·T] in device memory, which stay as they are until the backward;
 * B·T <= capacity, T <= model->context. */
void mm_forward(const struct mm_model *model, struct mm_acts *acts, struct mm_scratch *scratch,
                const uint32_t *tokens, size_t B, size_t T, struct mm_layer_hook before_layer);

/* The same of n micro-batches, layer after layer: each layer is needed once. They have been begun,
 * and are separate where there are several. n may be 0: the layers are needed all the same, since
 * other ranks need them. */
void mm_acts_begin(struct mm_acts *acts, const uint32_t *tokens, size_t B, size_t T);
void mm_forward_group(const struct mm_model *model, struct mm_acts *acts, size_t n,
                      struct mm_scratch *scratch, struct mm_layer_hook before_layer);

/* As mm_forward, but it stops when hidden state `last`, which layer `last` reads, is there.
 * mm_forward_none is the part of a rank that has no micro-batch when others run it. */
void mm_forward_to(const struct mm_model *model, struct mm_acts *acts, struct mm_scratch *scratch,
                   const uint32_t *tokens, size_t B, size_t T, size_t last,
                   struct mm_layer_hook before_layer);
void mm_forward_none(const struct mm_model *model, size_t last);

/* Hidden state i [n, C] of the last forward, which layer i reads. That of a layer below the lowest
 * is there only while before_layer is called for layer i + 1, or after a forward that ended with
 * it. */
struct mm_mat mm_acts_state(const struct mm_acts *acts, size_t i);

/* grads[i] (float32, shape of params[i]) += gradient, where grads[i] is not NULL; those must have
 * been wanted. MM_SET: the matrices of layers are overwritten (=), whatever they held. dhidden
 * [n, C]: gradient with respect to acts->hidden, left as it is; data NULL: zero. When after_layer
 * is called for layer l, mm_acts_gradient is the gradient with respect to hidden state l, unless l
 * is acts->lowest and nothing below wants it; what the caller adds to it there flows on. */
void mm_backward(const struct mm_model *model, const struct mm_acts *acts,
                 struct mm_scratch *scratch, struct mm_mat dhidden, float *const *grads,
                 enum mm_into into, struct mm_layer_hook after_layer);
struct mm_mat mm_acts_gradient(const struct mm_acts *acts, const struct mm_scratch *scratch);

/* The same in three steps, of n micro-batches: each by itself from the hidden states to the top of
 * the layers; all of them through the layers, each layer needed once, MM_SET being for the first
 * of them; each by itself into the embedding. */
void mm_backward_begin(const struct mm_model *model, const struct mm_acts *acts,
                       struct mm_scratch *scratch, struct mm_mat dhidden, float *const *grads);
void mm_backward_layers(const struct mm_model *model, const struct mm_acts *acts, size_t n,
                        struct mm_scratch *scratch, float *const *grads, enum mm_into into,
                        struct mm_layer_hook after_layer);
void mm_backward_end(const struct mm_model *model, const struct mm_acts *acts,
                     const struct mm_scratch *scratch, float *const *grads);

#endif
