/* profile.h - where the time of a loop goes: a device's table of operations with a clock around
 * each. For devices that do what they are asked before they return; an operation that waits for
 * memory that another one has just written pays for that itself. */
#ifndef MM_BENCH_PROFILE_H
#define MM_BENCH_PROFILE_H

#include "kernels/ops.h"

#include <stdio.h>

enum profile_kind {
    PROFILE_PRODUCTS,
    PROFILE_ATTENTION,
    PROFILE_LOSS,
    PROFILE_NORMS,
    PROFILE_ELEMENTS, /* embedding, rotation, activation, bias */
    PROFILE_UPDATES,  /* Algorithm 1's vectors, and the working weights made from them */
    PROFILE_KINDS,
};

static const char *const profile_names[PROFILE_KINDS] = {"products", "attention", "loss",
                                                         "norms",    "elements",  "updates"};
static double profile_seconds[PROFILE_KINDS];
static const struct mm_ops *profile_inner;
static struct mm_ops profile_table;

#define PROFILED(kind, operation, parameters, arguments)                                           \
    static void profiled_##operation parameters {                                                  \
        double start = mm_now();                                                                   \
        profile_inner->operation arguments;                                                        \
        profile_seconds[kind] += mm_now() - start;                                                 \
    }
#define DEV struct mm_device *dev

PROFILED(PROFILE_PRODUCTS, linear,
         (DEV, struct mm_mat y, struct mm_mat x, struct mm_mat w, const void *bias,
          enum mm_into into),
         (dev, y, x, w, bias, into))
PROFILED(PROFILE_PRODUCTS, linear_dx,
         (DEV, struct mm_mat dx, struct mm_mat dy, struct mm_mat w, enum mm_into into),
         (dev, dx, dy, w, into))
PROFILED(PROFILE_PRODUCTS, linear_dw,
         (DEV, struct mm_mat dw, struct mm_mat dy, struct mm_mat x, enum mm_into into),
         (dev, dw, dy, x, into))
PROFILED(PROFILE_ELEMENTS, bias_db, (DEV, float *db, struct mm_mat dy), (dev, db, dy))
PROFILED(PROFILE_ELEMENTS, embed,
         (DEV, struct mm_mat x, struct mm_mat table, const uint32_t *tokens),
         (dev, x, table, tokens))
PROFILED(PROFILE_ELEMENTS, embed_grad,
         (DEV, struct mm_mat dtable, struct mm_mat dx, const uint32_t *tokens),
         (dev, dtable, dx, tokens))
PROFILED(PROFILE_NORMS, norm,
         (DEV, const struct mm_norm *how, struct mm_mat sum, struct mm_mat x, struct mm_mat delta,
          struct mm_mat y, float *stats),
         (dev, how, sum, x, delta, y, stats))
PROFILED(PROFILE_NORMS, norm_grad,
         (DEV, const struct mm_norm *how, struct mm_mat dx, struct mm_mat dy, struct mm_mat x,
          const float *stats, float *dweight, float *dbias),
         (dev, how, dx, dy, x, stats, dweight, dbias))
PROFILED(PROFILE_ELEMENTS, rope,
         (DEV, struct mm_mat qkv, const struct mm_heads *heads, size_t T, const float *cosine,
          const float *sine, enum mm_turn turn),
         (dev, qkv, heads, T, cosine, sine, turn))
PROFILED(PROFILE_ATTENTION, attention,
         (DEV, struct mm_mat out, struct mm_mat qkv, float *lse, const struct mm_heads *heads,
          size_t T),
         (dev, out, qkv, lse, heads, T))
PROFILED(PROFILE_ATTENTION, attention_grad,
         (DEV, struct mm_mat dqkv, struct mm_mat dout, struct mm_mat out, struct mm_mat qkv,
          const float *lse, const struct mm_heads *heads, size_t T),
         (dev, dqkv, dout, out, qkv, lse, heads, T))
PROFILED(PROFILE_ELEMENTS, activate,
         (DEV, enum mm_activation kind, struct mm_mat h, struct mm_mat u), (dev, kind, h, u))
PROFILED(PROFILE_ELEMENTS, activate_grad,
         (DEV, enum mm_activation kind, struct mm_mat du, struct mm_mat dh, struct mm_mat u),
         (dev, kind, du, dh, u))
PROFILED(PROFILE_LOSS, loss,
         (DEV, const struct mm_loss *how, struct mm_mat logits, const uint32_t *targets,
          float *losses, struct mm_mat dlogits),
         (dev, how, logits, targets, losses, dlogits))
PROFILED(PROFILE_UPDATES, convert,
         (DEV, void *dst, enum mm_dtype dst_dtype, const void *src, enum mm_dtype src_dtype,
          size_t n),
         (dev, dst, dst_dtype, src, src_dtype, n))
PROFILED(PROFILE_UPDATES, sum_squares,
         (DEV, double *sum, struct mm_vector g, enum mm_dtype state_dtype),
         (dev, sum, g, state_dtype))
PROFILED(PROFILE_UPDATES, retain_step,
         (DEV, struct mm_vector m, struct mm_vector b, struct mm_vector g, double momentum,
          double rate, const uint32_t *stop),
         (dev, m, b, g, momentum, rate, stop))
PROFILED(PROFILE_UPDATES, adversary_step,
         (DEV, struct mm_vector a, struct mm_vector b, struct mm_vector g, double rate,
          double decay, const uint32_t *stop),
         (dev, a, b, g, rate, decay, stop))
PROFILED(PROFILE_UPDATES, mask_sums,
         (DEV, struct mm_mask_sums *sums, struct mm_vector g, const struct mm_mask *mask,
          const struct mm_unlearn_options *options),
         (dev, sums, g, mask, options))
PROFILED(PROFILE_UPDATES, unlearn_step,
         (DEV, struct mm_vector b, struct mm_vector g, const struct mm_mask *mask,
          const double *scale, double rate, const struct mm_unlearn_options *options,
          const uint32_t *stop),
         (dev, b, g, mask, scale, rate, options, stop))
PROFILED(PROFILE_UPDATES, sgd_step, (DEV, struct mm_vector p, struct mm_vector g, double rate),
         (dev, p, g, rate))

/* From now on the device's operations are timed. */
static inline void profile_begin(struct mm_device *dev) {
    profile_inner = dev->ops;
    profile_table = *dev->ops;
#define PROFILE(operation) profile_table.operation = profiled_##operation;
    PROFILE(linear)
    PROFILE(linear_dx)
    PROFILE(linear_dw)
    PROFILE(bias_db)
    PROFILE(embed)
    PROFILE(embed_grad)
    PROFILE(norm)
    PROFILE(norm_grad)
    PROFILE(rope) PROFILE(attention) PROFILE(attention_grad) PROFILE(activate)
        PROFILE(activate_grad) PROFILE(loss) PROFILE(convert) PROFILE(sum_squares)
            PROFILE(retain_step) PROFILE(adversary_step) PROFILE(mask_sums) PROFILE(unlearn_step)
                PROFILE(sgd_step)
#undef PROFILE
                    dev->ops = &profile_table;
}

/* Forgets what was counted so far. */
static inline void profile_reset(void) {
    for (int i = 0; i < PROFILE_KINDS; i++)
        profile_seconds[i] = 0;
}

/* Means over `runs` that took `seconds` together, in ms. */
static inline void profile_print(int runs, double seconds) {
    double rest = seconds;
    for (int i = 0; i < PROFILE_KINDS; i++) {
        printf(" %s_ms=%.2f", profile_names[i], 1e3 * profile_seconds[i] / runs);
        rest -= profile_seconds[i];
    }
    printf(" other_ms=%.2f", 1e3 * rest / runs);
}

#endif
