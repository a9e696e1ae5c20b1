/* ops.h - every arithmetic operation of the program, as one table a backend. Memory, copies and
 * waits are kernels/queue.h's.
 *
 * A transformer pass and Algorithm 1 are lists of calls through this table; the CPU backend is the
 * oracle of the others. One process can hold several backends and compare them.
 *
 * Conventions, unless a line says otherwise:
 *   - Local: no operation communicates. Faults of a backend end the job; shapes are the caller's
 * duty and are checked by MM_CHECK where that is cheap.
 *   - Memory is the device's (mm_queue.alloc) and borrowed; inputs and outputs don't overlap.
 *   - "=" overwrites, "+=" accumulates.
 *   - Sums have a fixed order, whatever the number of threads: fixed chunks, partials added in
 *     order. Matrix products are the exception: their order is the library's, the same for the
 *     same number, unless the device is `exact`.
 *   - n tokens are rows: n = B·T, row b·T + t holds token t of sequence b.
 * Letters: B sequences, T tokens a sequence, C width, V vocabulary. */
#ifndef MM_OPS_H
#define MM_OPS_H

#include "kernels/device.h"
#include "kernels/tensor.h"

/* Losses, docs/method.md 4; z logits, p softmax, y next token, N positions of the global batch. */
enum mm_loss_fn {
    MM_LOSS_CROSS_ENTROPY,           /* -mean log p_y */
    MM_LOSS_NEG_CROSS_ENTROPY,       /* its negative */
    MM_LOSS_NEG_ENTROPY,             /* mean of sum p log p, over all tokens, no shift */
    MM_LOSS_CORRECT_LOGIT_MINUS_AVG, /* mean of max(z_y - mean z, clip) */
    MM_LOSS_NPO,                     /* of whole sequences: sequence_loss */
    MM_LOSS_SIMNPO,
    MM_LOSS_CIRCUIT_BREAKER, /* on hidden states, as the next two: src/parallel/hidden_loss.h */
    MM_LOSS_STREAM_ACTIVATION,
    MM_LOSS_RMU,
    MM_LOSS_NONE,
};
/* How losses of positions are taken. */
struct mm_loss {
    enum mm_loss_fn fn;
    float clip_at;        /* read by MM_LOSS_CORRECT_LOGIT_MINUS_AVG only */
    float scale;          /* the gradient is multiplied by it */
    const float *weights; /* one a position, by which the gradient of its term is multiplied too;
                             NULL: all 1 */
};
/* How losses of sequences are taken. */
struct mm_sequence_loss {
    enum mm_loss_fn fn; /* MM_LOSS_NPO or MM_LOSS_SIMNPO */
    double beta, gamma;
    const float *reference; /* [B·T] cross-entropy terms of the reference; NPO's only */
    double scale;           /* the gradient is multiplied by it */
};
/* Terms of losses on hidden states: of a token's state h and another one r. */
enum mm_state_loss {
    MM_STATE_DISTANCE,        /* ‖h - r‖ */
    MM_STATE_SQUARE_DISTANCE, /* ‖h - r‖² */
    MM_STATE_COSINE,          /* max(0, cos(h, r)) */
    MM_STATE_LENGTH,          /* ‖h‖ */
};
enum mm_normalization { /* docs/method.md 5 */
                        MM_NORM_GLOBAL_PRE_MASK,
                        MM_NORM_GLOBAL_POST_MASK,
                        MM_NORM_PER_PARAMETER,
                        MM_NORM_NONE,
};

/* In place of a next token: the position has none to be learnt, or is padding and no token itself.
 */
#define MM_NO_TARGET UINT32_MAX
#define MM_NO_TOKEN  (UINT32_MAX - 1)

/* What becomes of what a result's place held. */
enum mm_into { MM_SET, MM_ADD };

enum mm_norm_kind { MM_RMS_NORM, MM_LAYER_NORM };
/* A norm of rows of C elements. Each row is `parts` parts side by side, at least one, which are
 * normalized each by itself with the same weight, bias [C/parts], of the rows' dtype; bias NULL:
 * none. With several parts no residual is added. */
struct mm_norm {
    enum mm_norm_kind kind;
    float epsilon;
    const void *weight, *bias;
    size_t parts;
};
enum mm_turn { MM_TURN, MM_TURN_BACK };
enum mm_activation { MM_SWIGLU, MM_GELU }; /* silu(gate)·up | exact GELU (erf) */

/* Where attention finds the heads within a row of the fused q, k, v product: element 0 of query
 * head h is at q_first + h·q_step; key and value head likewise. Rotation turns the first rotary_dim
 * elements of q and k, element i with element i + rotary_dim/2. */
struct mm_heads {
    size_t heads, kv_heads, head_dim, rotary_dim;
    size_t q_first, q_step, k_first, k_step, v_first, v_step;
};

/* The scalars of a loop, in device memory: nothing of a loop waits for the host. */
struct mm_loop_scalars {
    double retain_loss, adversary_loss, unlearning_loss; /* means over the global batch */
    double sum_squares;                                  /* of the last reduced gradient */
    double grad_norm, mask_fraction;
    uint32_t stop; /* the guard: 0, or enum mm_guard of what stopped it first; sticky */
};
enum mm_guard {
    MM_GUARD_NONE,
    MM_GUARD_RETAIN_LOSS,
    MM_GUARD_RETAIN_GRADIENT,
    MM_GUARD_ADVERSARY_LOSS,
    MM_GUARD_ADVERSARY_GRADIENT,
    MM_GUARD_UNLEARNING_LOSS,
    MM_GUARD_UNLEARNING_GRADIENT,
    MM_GUARD_ZERO_NORM,
    MM_GUARD_RETAIN_DEAD, /* the gradient is zero everywhere, the loss is not: a wrecked model */
    MM_GUARD_ADVERSARY_DEAD,
};

/* Sums over one tensor of W of the unlearning gradient, before and after the mask. */
struct mm_mask_sums {
    double raw, kept; /* squares of all elements | of the kept ones */
    double kept_n;
};

/* How line 13 divides a gradient by its norm. */
struct mm_normalizing {
    enum mm_normalization by;
    bool study; /* the two global norms also multiply by sqrt(n_w) */
    double n_w; /* elements of W over all ranks */
    enum mm_dtype state_dtype;
};

/* A run's vectors b, a, m, f, g over this rank's shard of W: n elements of `dtype` (g: float32
 * always). With dtype bfloat16 g is rounded to it on load and every operation rounds, as PyTorch
 * does it (docs/method.md 6). stop: nothing is written once *stop != 0. */
struct mm_vector {
    void *data;
    size_t n;
    enum mm_dtype dtype;
};

/* Where a step puts a vector once more: the model's own tensors. Element offsets[t] + i goes,
 * rounded to `dtype`, to element i of data[t]; t < tensors_n. Both arrays are in device memory. */
struct mm_places {
    enum mm_dtype dtype;
    void *const *data;     /* [tensors_n] */
    const size_t *offsets; /* [tensors_n + 1] */
    size_t tensors_n;
};

/* The mask of line 14 over vectors of several tensors: tensor t is elements offsets[t] ...
 * offsets[t+1]-1. An element of a gradient g is kept where sign(m) = sign(g), zero matching only
 * zero; all are without `masking`. */
struct mm_mask {
    struct mm_vector m;
    bool masking;
    const size_t *offsets; /* [tensors_n + 1], device */
    size_t tensors_n;
};

/* What the paper's ablations add to lines 13 to 15 (docs/method.md 2). */
struct mm_unlearn_options {
    struct mm_vector f; /* forget accumulator, of b's dtype; data NULL: none */
    double momentum;    /* β: f = β·f + (1-β)·g, then g = f */
    struct mm_vector b;
    double discard;     /* c: an element that is kept where sign(b) != sign(g) counts c times */
    struct mm_vector a; /* takes the step too, at its own rate; data NULL: it does not */
    double adv_rate;
    const uint32_t *stop;
};

/* How a step of AdamW is made. */
struct mm_adamw {
    double g_scale; /* the gradient is multiplied by it first */
    double rate, betas[2], epsilon, weight_decay;
    size_t t; /* this step: 1, 2, ... */
};

struct mm_ops {
    size_t chunk; /* elements of logits that are best worked on at once */

    /* dst[i] = src[i] converted, i < n */
    void (*convert)(struct mm_device *dev, void *dst, enum mm_dtype dst_dtype, const void *src,
                    enum mm_dtype src_dtype, size_t n);

    /* -- weights that stay as they are --------------------------------------------------------- */
    /* w [out, in] of linear and linear_dx does not change until all are let go: the backend may
     * keep copies of it in a layout of its own. */
    void (*hold)(struct mm_device *dev, struct mm_mat w);
    void (*let_go)(struct mm_device *dev);

    /* -- matrix products ----------------------------------------------------------------------- */
    /* y [n, out] = x [n, in] · wᵀ, w [out, in]  (+ bias [out] where not NULL) (+ y if MM_ADD) */
    void (*linear)(struct mm_device *dev, struct mm_mat y, struct mm_mat x, struct mm_mat w,
                   const void *bias, enum mm_into into);
    /* dx [n, in] = dy [n, out] · w  (+ dx if MM_ADD) */
    void (*linear_dx)(struct mm_device *dev, struct mm_mat dx, struct mm_mat dy, struct mm_mat w,
                      enum mm_into into);
    /* dw [out, in], float32, = dyᵀ · x  (+ dw if MM_ADD) */
    void (*linear_dw)(struct mm_device *dev, struct mm_mat dw, struct mm_mat dy, struct mm_mat x,
                      enum mm_into into);
    /* db [out], float32, += column sums of dy [n, out] */
    void (*bias_db)(struct mm_device *dev, float *db, struct mm_mat dy);

    /* -- transformer --------------------------------------------------------------------------- */
    /* x [n, C] = rows tokens[i] of table [V, C] */
    void (*embed)(struct mm_device *dev, struct mm_mat x, struct mm_mat table,
                  const uint32_t *tokens);
    /* dtable [V, C], float32, += dx by token, in token order; nothing for token `skipped` */
    void (*embed_grad)(struct mm_device *dev, struct mm_mat dtable, struct mm_mat dx,
                       const uint32_t *tokens, uint32_t skipped);
    /* sum = x + delta (delta.data NULL: sum is not written, x is normalized as it is);
     * y = normalized sum · weight (+ bias). stats [n·parts, 2] float32: mean (0 for RMS) and
     * 1/deviation of each part.
     * sum may be x itself. A row whose sum of squares overflows becomes NaN, y and 1/deviation:
     * zeros would look like a finite loss, and the guard would not see the wreck. */
    void (*norm)(struct mm_device *dev, const struct mm_norm *how, struct mm_mat sum,
                 struct mm_mat x, struct mm_mat delta, struct mm_mat y, float *stats);
    /* dx += gradient through the norm of x with its stats; dweight, dbias (NULL: not wanted) +=. */
    void (*norm_grad)(struct mm_device *dev, const struct mm_norm *how, struct mm_mat dx,
                      struct mm_mat dy, struct mm_mat x, const float *stats, float *dweight,
                      float *dbias);
    /* Turns q and k of qkv [B·T, ...] in place by angle[t][i] (cosines and sines [T, rotary/2],
     * float32); MM_TURN_BACK by minus the angle, which is also the backward. */
    void (*rope)(struct mm_device *dev, struct mm_mat qkv, const struct mm_heads *heads, size_t T,
                 const float *cosine, const float *sine, enum mm_turn turn);
    /* out [B·T, heads·head_dim] = causal softmax(q kᵀ / sqrt(head_dim)) v of qkv [B·T, ...];
     * lse [B, heads, T] float32: log of the softmax's denominator. Memory linear in T. */
    void (*attention)(struct mm_device *dev, struct mm_mat out, struct mm_mat qkv, float *lse,
                      const struct mm_heads *heads, size_t T);
    /* dqkv = gradient of q, k, v (every q, k, v element is written). */
    void (*attention_grad)(struct mm_device *dev, struct mm_mat dqkv, struct mm_mat dout,
                           struct mm_mat out, struct mm_mat qkv, const float *lse,
                           const struct mm_heads *heads, size_t T);
    /* SWIGLU: h [n, M] = silu(u[:, :M]) · u[:, M:], u [n, 2M]. GELU: h = gelu(u), u [n, M]. */
    void (*activate)(struct mm_device *dev, enum mm_activation kind, struct mm_mat h,
                     struct mm_mat u);
    /* du = gradient */
    void (*activate_grad)(struct mm_device *dev, enum mm_activation kind, struct mm_mat du,
                          struct mm_mat dh, struct mm_mat u);

    /* -- losses -------------------------------------------------------------------------------- */
    /* For each row of logits [r, V] with next token target[i] (or MM_NO_TARGET, MM_NO_TOKEN):
     * losses[i] = its term of the loss, not yet divided by N (0 where it doesn't count: without a
     * target, or for the entropy without a token); and, where dlogits.data is not NULL, dlogits =
     * gradient of (sum of weights[i]·terms)·scale. dlogits may be logits. */
    void (*loss)(struct mm_device *dev, const struct mm_loss *how, struct mm_mat logits,
                 const uint32_t *targets, float *losses, struct mm_mat dlogits);
    /* For each of B sequences of T tokens whose cross-entropy terms are losses [B·T], with
     * s = -(their sum), the log-probability: terms[b] = its loss (2/β)·log(1 + e^x), where
     *   NPO     x = β·(s - the same of `reference` [B·T])           (Zhang et al. 2024)
     *   SimNPO  x = β·s/k + γ, reference is not read                (Fan et al. 2024)
     * k = the sequence's targets among `targets` [B·T], at least one;
     * and weights[b·T + t] = gradient of (sum of terms)·scale by losses[b·T + t]. */
    void (*sequence_loss)(struct mm_device *dev, const struct mm_sequence_loss *how,
                          const float *losses, const uint32_t *targets, size_t B, size_t T,
                          float *terms, float *weights);
    /* For each row h of `states` [n, C]: values[i] = its term f, unless values is NULL; and
     * dx += scale · *factor · df/dh, unless dx.data is NULL (factor NULL: 1; the gradient is 0
     * where h - r, or h or r of the last two, is 0). others [n, C] holds the r, one row for all if
     * its ld is 0; not read for MM_STATE_LENGTH. A row whose target [n] is MM_NO_TOKEN has the term
     * 0 and no gradient. */
    void (*state_loss)(struct mm_device *dev, enum mm_state_loss kind, struct mm_mat states,
                       struct mm_mat others, const uint32_t *targets, float scale,
                       const double *factor, float *values, struct mm_mat dx);
    /* *sum += x[0]² + ... + x[n-1]², in order */
    void (*add_squares)(struct mm_device *dev, double *sum, const double *x, size_t n);
    /* *sum += scale · (values[0] + ... + values[n-1]), in double, in order */
    void (*sum)(struct mm_device *dev, double *sum, const float *values, size_t n, double scale);

    /* sum = x + y, all contiguous and of one dtype, float32 or bfloat16; sum may be x or y */
    void (*add)(struct mm_device *dev, struct mm_mat sum, struct mm_mat x, struct mm_mat y);
    /* y = factor·x, contiguous, y may be x */
    void (*scale)(struct mm_device *dev, struct mm_mat y, struct mm_mat x, float factor);
    /* *y = factor · *x */
    void (*scale_scalar)(struct mm_device *dev, double *y, const double *x, double factor);

    /* -- vectors: Algorithm 1 ------------------------------------------------------------------ */
    /* *sum += squares of g, in double */
    void (*sum_squares)(struct mm_device *dev, double *sum, struct mm_vector g,
                        enum mm_dtype state_dtype);
    /* if *value is not finite and *stop == 0: *stop = code */
    void (*guard)(struct mm_device *dev, const double *value, enum mm_guard code, uint32_t *stop);
    /* if *sum_squares, of a gradient, is zero, *loss is not, and *stop == 0: *stop = code */
    void (*guard_dead)(struct mm_device *dev, const double *sum_squares, const double *loss,
                       enum mm_guard code, uint32_t *stop);
    /* a = b (line 4) */
    void (*fork)(struct mm_device *dev, struct mm_vector a, struct mm_vector b,
                 const uint32_t *stop);
    /* m = μ·m + (1-μ)·g; b = b - α·m (lines 8-9) */
    void (*retain_step)(struct mm_device *dev, struct mm_vector m, struct mm_vector b,
                        struct mm_vector g, double momentum, double rate, const uint32_t *stop);
    /* a = a - α·g; then a = d·a + (1-d)·b unless d == 1 (lines 11, 11a); b.data
     * NULL: zeros. The new a is put to `places` too, bit for bit as convert would (NULL: nowhere).
     */
    void (*adversary_step)(struct mm_device *dev, struct mm_vector a, struct mm_vector b,
                           struct mm_vector g, double rate, double decay,
                           const struct mm_places *places, const uint32_t *stop);
    /* sums[t] = sums over tensor t of g. options NULL: none. With f it becomes g, which is written,
     * after `raw` is summed; `kept` is of what is left after the mask and the discarding. */
    void (*mask_sums)(struct mm_device *dev, struct mm_mask_sums *sums, struct mm_vector g,
                      const struct mm_mask *mask, const struct mm_unlearn_options *options);
    /* scale[t] from the sums over all ranks (line 13); and scalars->grad_norm, mask_fraction, and
     * the guard on the norms that are divided by. */
    void (*unlearn_scale)(struct mm_device *dev, const struct mm_normalizing *how, double *scale,
                          const struct mm_mask_sums *sums, size_t tensors_n,
                          struct mm_loop_scalars *scalars);
    /* b = b - α·scale[t]·g where g is kept (lines 13-15); options NULL: none; with a: the same of a
     * at its rate. Whether g is discarded is decided by b before the step. */
    void (*unlearn_step)(struct mm_device *dev, struct mm_vector b, struct mm_vector g,
                         const struct mm_mask *mask, const double *scale, double rate,
                         const struct mm_unlearn_options *options, const uint32_t *stop);

    /* -- vectors: relearning and pretraining --------------------------------------------------- */
    /* p = p - rate·g, float32; p of bfloat16: the product and the difference round */
    void (*sgd_step)(struct mm_device *dev, struct mm_vector p, struct mm_vector g, double rate);
    /* A step of AdamW (Loshchilov and Hutter, Algorithm 2); first, second: the moments, of p's
     * dtype; g float32. Computed in float32; p of bfloat16: what is stored rounds. */
    void (*adamw_step)(struct mm_device *dev, struct mm_vector p, struct mm_vector first,
                       struct mm_vector second, struct mm_vector g, const struct mm_adamw *how);
};

/* The arithmetic fields of struct mm_ops, in its order: op(name) for each. A backend declares and
 * fills its table with it. */
#define MM_OPERATIONS(op)                                                                          \
    op(linear) op(linear_dx) op(linear_dw) op(bias_db) op(embed) op(embed_grad) op(norm)           \
        op(norm_grad) op(rope) op(attention) op(attention_grad) op(activate) op(activate_grad)     \
            op(loss) op(sequence_loss) op(state_loss) op(add_squares) op(sum) op(add) op(scale)    \
                op(scale_scalar) op(sum_squares) op(guard) op(guard_dead) op(fork) op(retain_step) \
                    op(adversary_step) op(mask_sums) op(unlearn_scale) op(unlearn_step)            \
                        op(sgd_step) op(adamw_step)

#endif
