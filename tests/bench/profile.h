/* profile.h - what a loop asks of a device: its tables of operations with a meter around each.
 *
 * On a device that does what it is asked before it returns, a meter has the seconds; an operation
 * that waits for memory that another one has just written pays for that itself. On a dry device it
 * has what kernels/dry.c counts, the seconds of its rates among that, and the bytes that the CUDA
 * kernels of the operation move (tests/bench/cuda_bytes.h). */
#ifndef MM_BENCH_PROFILE_H
#define MM_BENCH_PROFILE_H

#include "kernels/dry.h"
#include "kernels/queue.h"
#include "tests/bench/cuda_bytes.h"

#include <stdio.h>

enum profile_kind {
    PROFILE_PRODUCTS,
    PROFILE_ATTENTION,
    PROFILE_ATTENTION_GRAD,
    PROFILE_LOSS,
    PROFILE_NORMS,
    PROFILE_ACTIVATION,
    PROFILE_ROPE,
    PROFILE_EMBEDDING,
    PROFILE_EMBEDDING_GRAD,
    PROFILE_ELEMENTS, /* sums of activations, gradients of biases */
    PROFILE_SUMS,     /* over a gradient, and of the losses */
    PROFILE_UPDATES,  /* Algorithm 1's vectors and optimizers */
    PROFILE_WEIGHTS,  /* the working weights, made from the vectors */
    PROFILE_MEMORY,   /* zeros and copies */
    PROFILE_KINDS,
};

static const char *const profile_names[PROFILE_KINDS] = {
    "products",  "attention",      "attention_grad", "loss", "norms",   "activation", "rope",
    "embedding", "embedding_grad", "elements",       "sums", "updates", "weights",    "memory"};

struct profile_meter {
    size_t calls;
    double seconds;
    double flops, bytes; /* of a dry device: those of the definition, read and written at least */
    struct cuda_bytes cuda;
};
static struct profile_meter profile_meters[PROFILE_KINDS];
static const struct mm_ops *profile_inner;
static const struct mm_queue *profile_inner_queue;
static struct mm_ops profile_table;
static struct mm_queue profile_queue;

static inline struct mm_clock profile_clock(struct mm_device *dev) {
    return dev->dry ? *mm_dry_clock(dev) : (struct mm_clock){.now = mm_now()};
}

static inline void profile_add(enum profile_kind kind, struct mm_device *dev,
                               struct mm_clock before, struct cuda_bytes cuda) {
    struct mm_clock now = profile_clock(dev);
    struct profile_meter *meter = &profile_meters[kind];
    meter->calls++;
    meter->seconds += now.now - before.now;
    meter->flops += now.flops - before.flops;
    meter->bytes += now.bytes - before.bytes;
    meter->cuda.launched += cuda.launched;
    meter->cuda.asked += cuda.asked;
}

#define PROFILED(kind, operation, parameters, arguments, cuda)                                     \
    static void profiled_##operation parameters {                                                  \
        struct mm_clock before = profile_clock(dev);                                               \
        profile_inner->operation arguments;                                                        \
        profile_add(kind, dev, before, cuda);                                                      \
    }
#define DEV struct mm_device *dev

PROFILED(PROFILE_PRODUCTS, linear,
         (DEV, struct mm_mat y, struct mm_mat x, struct mm_mat w, const void *bias,
          enum mm_into into),
         (dev, y, x, w, bias, into),
         cuda_once(mat_bytes(y) * (into == MM_ADD ? 2 : 1) + mat_bytes(x) + mat_bytes(w)))
PROFILED(PROFILE_PRODUCTS, linear_dx,
         (DEV, struct mm_mat dx, struct mm_mat dy, struct mm_mat w, enum mm_into into),
         (dev, dx, dy, w, into),
         cuda_once(mat_bytes(dx) * (into == MM_ADD ? 2 : 1) + mat_bytes(dy) + mat_bytes(w)))
PROFILED(PROFILE_PRODUCTS, linear_dw,
         (DEV, struct mm_mat dw, struct mm_mat dy, struct mm_mat x, enum mm_into into),
         (dev, dw, dy, x, into),
         cuda_once(mat_bytes(dw) * (into == MM_ADD ? 2 : 1) + mat_bytes(dy) + mat_bytes(x)))
PROFILED(PROFILE_ELEMENTS, bias_db, (DEV, float *db, struct mm_mat dy), (dev, db, dy),
         cuda_bias_db_bytes(dy))
PROFILED(PROFILE_EMBEDDING, embed,
         (DEV, struct mm_mat x, struct mm_mat table, const uint32_t *tokens),
         (dev, x, table, tokens), cuda_once(2 * mat_bytes(x)))
PROFILED(PROFILE_EMBEDDING_GRAD, embed_grad,
         (DEV, struct mm_mat dtable, struct mm_mat dx, const uint32_t *tokens, uint32_t skipped),
         (dev, dtable, dx, tokens, skipped), cuda_embed_grad_bytes(dx))
PROFILED(PROFILE_NORMS, norm,
         (DEV, const struct mm_norm *how, struct mm_mat sum, struct mm_mat x, struct mm_mat delta,
          struct mm_mat y, float *stats),
         (dev, how, sum, x, delta, y, stats), cuda_norm_bytes(how, x, delta))
PROFILED(PROFILE_NORMS, norm_grad,
         (DEV, const struct mm_norm *how, struct mm_mat dx, struct mm_mat dy, struct mm_mat x,
          const float *stats, float *dweight, float *dbias),
         (dev, how, dx, dy, x, stats, dweight, dbias),
         cuda_norm_grad_bytes(how, x, dweight || dbias))
PROFILED(PROFILE_ROPE, rope,
         (DEV, struct mm_mat qkv, const struct mm_heads *heads, size_t T, const float *cosine,
          const float *sine, enum mm_turn turn),
         (dev, qkv, heads, T, cosine, sine, turn), cuda_rope_bytes(qkv, heads, T))
PROFILED(PROFILE_ATTENTION, attention,
         (DEV, struct mm_mat out, struct mm_mat qkv, float *lse, const struct mm_heads *heads,
          size_t T),
         (dev, out, qkv, lse, heads, T), cuda_attention_bytes(qkv, heads, T))
PROFILED(PROFILE_ATTENTION_GRAD, attention_grad,
         (DEV, struct mm_mat dqkv, struct mm_mat dout, struct mm_mat out, struct mm_mat qkv,
          const float *lse, const struct mm_heads *heads, size_t T),
         (dev, dqkv, dout, out, qkv, lse, heads, T), cuda_attention_grad_bytes(qkv, heads, T))
PROFILED(PROFILE_ACTIVATION, activate,
         (DEV, enum mm_activation kind, struct mm_mat h, struct mm_mat u), (dev, kind, h, u),
         cuda_once(mat_bytes(h) + mat_bytes(u)))
PROFILED(PROFILE_ACTIVATION, activate_grad,
         (DEV, enum mm_activation kind, struct mm_mat du, struct mm_mat dh, struct mm_mat u),
         (dev, kind, du, dh, u), cuda_once(mat_bytes(du) + mat_bytes(dh) + mat_bytes(u)))
PROFILED(PROFILE_LOSS, loss,
         (DEV, const struct mm_loss *how, struct mm_mat logits, const uint32_t *targets,
          float *losses, struct mm_mat dlogits),
         (dev, how, logits, targets, losses, dlogits), cuda_loss_bytes(logits, dlogits))
PROFILED(PROFILE_SUMS, sum, (DEV, double *sum, const float *values, size_t n, double scale),
         (dev, sum, values, n, scale), cuda_once(4 * (double)n))
PROFILED(PROFILE_ELEMENTS, add, (DEV, struct mm_mat sum, struct mm_mat x, struct mm_mat y),
         (dev, sum, x, y), cuda_once(mat_bytes(sum) + mat_bytes(x) + mat_bytes(y)))
PROFILED(PROFILE_UPDATES, scale, (DEV, struct mm_mat y, struct mm_mat x, float factor),
         (dev, y, x, factor), cuda_once(mat_bytes(y) + mat_bytes(x)))
PROFILED(PROFILE_WEIGHTS, convert,
         (DEV, void *dst, enum mm_dtype dst_dtype, const void *src, enum mm_dtype src_dtype,
          size_t n),
         (dev, dst, dst_dtype, src, src_dtype, n),
         cuda_once((double)n *(double)(mm_dtype_bytes(dst_dtype) + mm_dtype_bytes(src_dtype))))
PROFILED(PROFILE_SUMS, sum_squares,
         (DEV, double *sum, struct mm_vector g, enum mm_dtype state_dtype),
         (dev, sum, g, state_dtype), cuda_once(vector_bytes(g)))
PROFILED(PROFILE_UPDATES, fork, (DEV, struct mm_vector a, struct mm_vector b, const uint32_t *stop),
         (dev, a, b, stop), cuda_once(vector_bytes(a) + vector_bytes(b)))
PROFILED(PROFILE_UPDATES, retain_step,
         (DEV, struct mm_vector m, struct mm_vector b, struct mm_vector g, double momentum,
          double rate, const uint32_t *stop),
         (dev, m, b, g, momentum, rate, stop),
         cuda_once(2 * vector_bytes(m) + 2 * vector_bytes(b) + vector_bytes(g)))
PROFILED(PROFILE_UPDATES, adversary_step,
         (DEV, struct mm_vector a, struct mm_vector b, struct mm_vector g, double rate,
          double decay, const struct mm_places *places, const uint32_t *stop),
         (dev, a, b, g, rate, decay, places, stop),
         cuda_adversary_step_bytes(a, b, g, decay, places))
PROFILED(PROFILE_SUMS, mask_sums,
         (DEV, struct mm_mask_sums *sums, struct mm_vector g, const struct mm_mask *mask,
          const struct mm_unlearn_options *options),
         (dev, sums, g, mask, options), cuda_mask_sums_bytes(g, mask, options))
PROFILED(PROFILE_UPDATES, unlearn_step,
         (DEV, struct mm_vector b, struct mm_vector g, const struct mm_mask *mask,
          const double *scale, double rate, const struct mm_unlearn_options *options,
          const uint32_t *stop),
         (dev, b, g, mask, scale, rate, options, stop),
         cuda_unlearn_step_bytes(b, g, mask, options))
PROFILED(PROFILE_UPDATES, sgd_step, (DEV, struct mm_vector p, struct mm_vector g, double rate),
         (dev, p, g, rate), cuda_once(2 * vector_bytes(p) + vector_bytes(g)))

static void profiled_zero(DEV, void *block, size_t bytes) {
    struct mm_clock before = profile_clock(dev);
    profile_inner_queue->zero(dev, block, bytes);
    profile_add(PROFILE_MEMORY, dev, before, cuda_once((double)bytes));
}

static void profiled_copy(DEV, void *dst, const void *src, size_t bytes) {
    struct mm_clock before = profile_clock(dev);
    profile_inner_queue->copy(dev, dst, src, bytes);
    profile_add(PROFILE_MEMORY, dev, before, cuda_once(2 * (double)bytes));
}

/* From now on the device's operations are metered. */
static inline void profile_begin(struct mm_device *dev) {
    profile_inner = dev->ops;
    profile_inner_queue = dev->queue;
    profile_table = *dev->ops;
    profile_queue = *dev->queue;
#define PROFILE(operation) profile_table.operation = profiled_##operation;
    PROFILE(linear)
    PROFILE(linear_dx)
    PROFILE(linear_dw)
    PROFILE(bias_db)
    PROFILE(embed)
    PROFILE(embed_grad)
    PROFILE(norm)
    PROFILE(norm_grad)
    PROFILE(rope)
    PROFILE(attention)
    PROFILE(attention_grad)
    PROFILE(activate)
    PROFILE(activate_grad)
    PROFILE(loss)
    PROFILE(sum)
    PROFILE(add)
    PROFILE(scale)
    PROFILE(convert)
    PROFILE(sum_squares)
    PROFILE(fork)
    PROFILE(retain_step)
    PROFILE(adversary_step)
    PROFILE(mask_sums)
    PROFILE(unlearn_step)
    PROFILE(sgd_step)
#undef PROFILE
    profile_queue.zero = profiled_zero;
    profile_queue.copy = profiled_copy;
    dev->ops = &profile_table;
    dev->queue = &profile_queue;
}

/* Forgets what was counted so far. */
static inline void profile_reset(void) {
    memset(profile_meters, 0, sizeof profile_meters);
}

/* Means over `runs` that took `seconds` together, in ms. */
static inline void profile_print(int runs, double seconds) {
    double rest = seconds;
    for (int i = 0; i < PROFILE_KINDS; i++) {
        printf(" %s_ms=%.2f", profile_names[i], 1e3 * profile_meters[i].seconds / runs);
        rest -= profile_meters[i].seconds;
    }
    printf(" other_ms=%.2f", 1e3 * rest / runs);
}

#endif
