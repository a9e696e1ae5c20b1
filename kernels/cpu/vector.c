/* vector.c - Algorithm 1 on a shard of W, and the steps of relearning and pretraining.
 *
 * Every function has one body for both state types: `half` is a constant at each call site, and
 * round_to(half, x) stands wherever PyTorch's bfloat16 operation would store a result
 * (docs/method.md 6). In float32 it does nothing. */
#include "kernels/cpu/cpu.h"

static inline float round_to(bool half, float x) {
    return half ? mm_bf16_round(x) : x;
}

static inline float get(bool half, const void *data, size_t i) {
    return half ? mm_f32_from_bf16(((const uint16_t *)data)[i]) : ((const float *)data)[i];
}

static inline void put(bool half, void *data, size_t i, float x) {
    if (half)
        ((uint16_t *)data)[i] = mm_bf16_from_f32(x);
    else
        ((float *)data)[i] = x;
}

/* Runs `range(half, first, count)` over chunks of n elements on all threads, with `half` constant.
 * A single chunk, as the row that mm_sums asks for, wakes none of them. */
#define FOR_CHUNKS(is_half, n, range, ...)                                                         \
    {                                                                                              \
        bool several = (n) > CHUNK;                                                                \
        _Pragma("omp parallel for schedule(static) if (several)") for (size_t chunk = 0;           \
                                                                       chunk < (n);                \
                                                                       chunk += CHUNK) {           \
            size_t chunk_n = (n)-chunk < CHUNK ? (n)-chunk : CHUNK;                                \
            if (is_half)                                                                           \
                range(true, chunk, chunk_n, __VA_ARGS__);                                          \
            else                                                                                   \
                range(false, chunk, chunk_n, __VA_ARGS__);                                         \
        }                                                                                          \
    }

/* Inlined wherever it is called, so that `half`, and options that are NULL, are constants in it. */
#define SPECIALIZED static inline __attribute__((always_inline))

/* Of the same sign; zero matches only zero. Without a branch, so that loops over it vectorize. */
static inline bool agrees(float x, float y) {
    return ((x > 0) == (y > 0)) & ((x < 0) == (y < 0));
}

/* -- sums -----------------------------------------------------------------------------------------
 */

/* Double partial sums, interleaved so that they vectorize; folded in order. */
#define DOUBLE_LANES 8

static inline double fold_doubles(const double lanes[DOUBLE_LANES]) {
    double sum = lanes[0];
    for (int i = 1; i < DOUBLE_LANES; i++)
        sum += lanes[i];
    return sum;
}

static inline void square_range(bool half, size_t first, size_t n, const float *g,
                                double *partial) {
    double sum[DOUBLE_LANES] = {0};
    size_t i = 0;
    for (; i + DOUBLE_LANES <= n; i += DOUBLE_LANES)
        for (size_t l = 0; l < DOUBLE_LANES; l++) {
            double x = (double)round_to(half, g[first + i + l]);
            sum[l] += x * x;
        }
    for (size_t l = 0; i < n; i++, l++) {
        double x = (double)round_to(half, g[first + i]);
        sum[l] += x * x;
    }
    partial[first / CHUNK] = fold_doubles(sum);
}

void CPU_NAME(cpu_sum_squares)(struct mm_device *dev, double *sum, struct mm_vector g,
                               enum mm_dtype state_dtype) {
    size_t chunks = (g.n + CHUNK - 1) / CHUNK;
    double *partial = scratch(dev, chunks * sizeof *partial);
    FOR_CHUNKS(state_dtype == MM_BF16, g.n, square_range, g.data, partial)
    for (size_t i = 0; i < chunks; i++)
        *sum += partial[i];
}

static void guard_finite(double value, enum mm_guard code, uint32_t *stop) {
    if (*stop == MM_GUARD_NONE && !isfinite(value))
        *stop = code;
}

/* Of a norm that is divided by. */
static void guard_divisor(double norm, uint32_t *stop) {
    if (*stop == MM_GUARD_NONE && (!isfinite(norm) || norm == 0))
        *stop = MM_GUARD_ZERO_NORM;
}

void CPU_NAME(cpu_guard)(struct mm_device *dev, const double *value, enum mm_guard code,
                         uint32_t *stop) {
    (void)dev;
    guard_finite(*value, code, stop);
}

void CPU_NAME(cpu_guard_dead)(struct mm_device *dev, const double *sum_squares, const double *loss,
                              enum mm_guard code, uint32_t *stop) {
    (void)dev;
    if (*stop == MM_GUARD_NONE && *sum_squares == 0 && *loss != 0)
        *stop = code;
}

void CPU_NAME(cpu_scale)(struct mm_device *dev, struct mm_mat y, struct mm_mat x, float factor) {
    (void)dev;
    bool half = x.dtype == MM_BF16;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < x.rows * x.cols; i++)
        put(half, y.data, i, factor * get(half, x.data, i));
}

void CPU_NAME(cpu_add)(struct mm_device *dev, struct mm_mat sum, struct mm_mat x, struct mm_mat y) {
    (void)dev;
    bool half = x.dtype == MM_BF16;
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < x.rows * x.cols; i++)
        put(half, sum.data, i, get(half, x.data, i) + get(half, y.data, i));
}

void CPU_NAME(cpu_scale_scalar)(struct mm_device *dev, double *y, const double *x, double factor) {
    (void)dev;
    *y = factor * *x;
}

/* -- lines 4 to 11 --------------------------------------------------------------------------------
 */

void CPU_NAME(cpu_fork)(struct mm_device *dev, struct mm_vector a, struct mm_vector b,
                        const uint32_t *stop) {
    (void)dev;
    if (!*stop)
        memcpy(a.data, b.data, b.n * mm_dtype_bytes(b.dtype));
}

/* What retain_range works on. */
struct retain_step {
    void *m, *b;
    const float *g;
    float momentum, fresh, rate;
};

static inline void retain_range(bool half, size_t first, size_t n, const struct retain_step *r) {
    void *m = r->m, *b = r->b;
    const float *g = r->g;
    float momentum = r->momentum, fresh = r->fresh, rate = r->rate;
    for (size_t i = first; i < first + n; i++) {
        float decayed = round_to(half, get(half, m, i) * momentum);
        float part = round_to(half, round_to(half, g[i]) * fresh);
        float acc = round_to(half, decayed + part);
        put(half, m, i, acc);
        put(half, b, i, get(half, b, i) - round_to(half, rate * acc));
    }
}

void CPU_NAME(cpu_retain_step)(struct mm_device *dev, struct mm_vector m, struct mm_vector b,
                               struct mm_vector g, double momentum, double rate,
                               const uint32_t *stop) {
    (void)dev;
    struct retain_step r = {m.data,     b.data, g.data, (float)momentum, (float)(1 - momentum),
                            (float)rate};
    if (!*stop)
        FOR_CHUNKS(b.dtype == MM_BF16, b.n, retain_range, &r)
}

/* What adversary_range works on. */
struct adversary_step {
    void *a;
    const void *b;
    const float *g;
    float rate, decay, rest;
};

static inline void adversary_range(bool half, size_t first, size_t n,
                                   const struct adversary_step *t) {
    void *a = t->a;
    const void *b = t->b;
    const float *g = t->g;
    float rate = t->rate, decay = t->decay, rest = t->rest;
    for (size_t i = first; i < first + n; i++)
        put(half, a, i, get(half, a, i) - round_to(half, round_to(half, g[i]) * rate));
    for (size_t i = first; decay != 1.0f && i < first + n; i++) {
        float other = b ? round_to(half, get(half, b, i) * rest) : 0.0f;
        put(half, a, i, round_to(half, get(half, a, i) * decay) + other);
    }
}

void CPU_NAME(cpu_adversary_step)(struct mm_device *dev, struct mm_vector a, struct mm_vector b,
                                  struct mm_vector g, double rate, double decay,
                                  const struct mm_places *places, const uint32_t *stop) {
    struct adversary_step t = {a.data,      b.data,       g.data,
                               (float)rate, (float)decay, (float)(1 - decay)};
    if (*stop)
        return;
    FOR_CHUNKS(a.dtype == MM_BF16, a.n, adversary_range, &t)
    for (size_t i = 0; places && i < places->tensors_n; i++) {
        size_t first = places->offsets[i], n = places->offsets[i + 1] - first;
        const char *from = (const char *)a.data + first * mm_dtype_bytes(a.dtype);
        CPU_NAME(cpu_convert)(dev, places->data[i], places->dtype, from, a.dtype, n);
    }
}

/* -- lines 13 to 15 -------------------------------------------------------------------------------
 */

/* Elements of which what counts is written out, before their squares are summed in double. */
#define MASK_BLOCK ((size_t)512)

struct mask_block {
    float raw[MASK_BLOCK], kept[MASK_BLOCK]; /* the gradient | what is left of it, 0 elsewhere */
};

/* f = β·f + (1-β)·x, which takes x's place. */
SPECIALIZED float accumulated(bool half, const struct mm_unlearn_options *o, size_t i, float x) {
    float decayed = round_to(half, get(half, o->f.data, i) * (float)o->momentum);
    float f = round_to(half, decayed + round_to(half, x * (float)(1 - o->momentum)));
    put(half, o->f.data, i, f);
    return f;
}

SPECIALIZED float discarded(bool half, const struct mm_unlearn_options *o, size_t i, float x) {
    bool grows = !agrees(get(half, o->b.data, i), x);
    return grows ? round_to(half, x * (float)o->discard) : x;
}

/* Fills `block` from elements first ... first + n - 1; returns how many are kept. */
SPECIALIZED unsigned mask_fill(bool half, size_t first, size_t n, float *g, const void *m,
                               bool masking, const struct mm_unlearn_options *o,
                               struct mask_block *restrict block) {
    unsigned kept_n = 0;
    for (size_t j = 0; j < n; j++) {
        size_t i = first + j;
        float x = round_to(half, g[i]);
        block->raw[j] = x;
        if (o && o->f.data)
            x = g[i] = accumulated(half, o, i, x);
        bool kept = !masking || agrees(x, get(half, m, i));
        if (o && o->discard != 1)
            x = discarded(half, o, i, x);
        block->kept[j] = kept ? x : 0.0f;
        kept_n += kept;
    }
    return kept_n;
}

static inline void add_squares(double lanes[DOUBLE_LANES], const float *x, size_t n) {
    size_t i = 0;
    for (; i + DOUBLE_LANES <= n; i += DOUBLE_LANES)
        for (size_t l = 0; l < DOUBLE_LANES; l++)
            lanes[l] += (double)x[i + l] * (double)x[i + l];
    for (size_t l = 0; i < n; i++, l++)
        lanes[l] += (double)x[i] * (double)x[i];
}

SPECIALIZED void mask_range(bool half, size_t first, size_t n, size_t begin, float *g,
                            const struct mm_mask *mask, const struct mm_unlearn_options *o,
                            struct mm_mask_sums *partial) {
    bool masking = mask->masking;
    const void *m = mask->m.data;
    double raw[DOUBLE_LANES] = {0}, kept[DOUBLE_LANES] = {0}, kept_n = 0;
    for (size_t at = 0; at < n; at += MASK_BLOCK) {
        size_t count = n - at < MASK_BLOCK ? n - at : MASK_BLOCK;
        struct mask_block block;
        kept_n += mask_fill(half, begin + first + at, count, g, m, masking, o, &block);
        add_squares(raw, block.raw, count);
        add_squares(kept, block.kept, count);
    }
    partial[first / CHUNK] = (struct mm_mask_sums){
        .raw = fold_doubles(raw), .kept = fold_doubles(kept), .kept_n = kept_n};
}

void CPU_NAME(cpu_mask_sums)(struct mm_device *dev, struct mm_mask_sums *sums, struct mm_vector g,
                             const struct mm_mask *mask, const struct mm_unlearn_options *options) {
    bool half = mask->m.dtype == MM_BF16;
    struct mm_unlearn_options now = {0};
    if (options)
        now = *options;
    if (options && *options->stop)
        now.f.data = NULL;
    for (size_t t = 0; t < mask->tensors_n; t++) {
        size_t begin = mask->offsets[t], n = mask->offsets[t + 1] - begin;
        size_t chunks = (n + CHUNK - 1) / CHUNK;
        struct mm_mask_sums *partial = scratch(dev, chunks * sizeof *partial);
        if (options)
            FOR_CHUNKS(half, n, mask_range, begin, g.data, mask, &now, partial)
        else
            FOR_CHUNKS(half, n, mask_range, begin, g.data, mask, NULL, partial)
        sums[t] = (struct mm_mask_sums){0};
        for (size_t i = 0; i < chunks; i++) {
            sums[t].raw += partial[i].raw;
            sums[t].kept += partial[i].kept;
            sums[t].kept_n += partial[i].kept_n;
        }
    }
}

enum which { RAW, KEPT };

/* The norm of all tensors together. In bfloat16 the study code's sum(norm**2)**0.5 rounds each
 * tensor's norm, its square, every partial sum and the root. */
static double global_norm(const struct mm_mask_sums *sums, size_t tensors_n, enum which which,
                          bool half) {
    double total = 0;
    for (size_t t = 0; t < tensors_n; t++) {
        double square = which == KEPT ? sums[t].kept : sums[t].raw;
        if (half) {
            float norm = mm_bf16_round((float)sqrt(square));
            total = mm_bf16_round((float)total + mm_bf16_round(norm * norm));
        } else
            total += square;
    }
    return half ? mm_bf16_round(sqrtf((float)total)) : sqrt(total);
}

/* factor / norm; PyTorch divides a number by a bfloat16 tensor as reciprocal, then product. */
static double divide(double factor, double norm, bool half) {
    if (!half)
        return factor / norm;
    return mm_bf16_round(mm_bf16_round(1.0f / (float)norm) * (float)factor);
}

void CPU_NAME(cpu_unlearn_scale)(struct mm_device *dev, const struct mm_normalizing *how,
                                 double *scale, const struct mm_mask_sums *sums, size_t tensors_n,
                                 struct mm_loop_scalars *scalars) {
    (void)dev;
    bool half = how->state_dtype == MM_BF16;
    double kept_n = 0, factor = how->study ? sqrt(how->n_w) : 1.0;
    scalars->grad_norm = global_norm(sums, tensors_n, RAW, half);
    double common = how->by == MM_NORM_GLOBAL_POST_MASK ? global_norm(sums, tensors_n, KEPT, half)
                                                        : scalars->grad_norm;
    guard_finite(scalars->grad_norm, MM_GUARD_UNLEARNING_GRADIENT, &scalars->stop);
    if (how->by == MM_NORM_GLOBAL_PRE_MASK || how->by == MM_NORM_GLOBAL_POST_MASK)
        guard_divisor(common, &scalars->stop);
    for (size_t t = 0; t < tensors_n; t++) {
        kept_n += sums[t].kept_n;
        if (how->by == MM_NORM_NONE)
            scale[t] = 1.0;
        else if (how->by == MM_NORM_PER_PARAMETER) {
            double norm = global_norm(&sums[t], 1, KEPT, half);
            guard_divisor(norm, &scalars->stop);
            scale[t] = divide(1.0, norm, half);
        } else
            scale[t] = divide(factor, common, half);
    }
    scalars->mask_fraction = kept_n / how->n_w;
}

/* What unlearn_range works on. */
struct unlearn_step {
    void *b;
    const float *g;
    const void *m;
    bool masking;
    double scale, rate;
};

SPECIALIZED void unlearn_range(bool half, size_t first, size_t n, size_t begin,
                               const struct unlearn_step *u, const struct mm_unlearn_options *o) {
    void *b = u->b;
    const float *g = u->g;
    const void *m = u->m;
    bool masking = u->masking;
    double scale = u->scale, rate = u->rate;
    float s = half ? (float)scale : 1.0f, step = half ? (float)rate : (float)(rate * scale);
    float adv_step = o ? (float)(half ? o->adv_rate : o->adv_rate * scale) : 0.0f;
    for (size_t i = begin + first; i < begin + first + n; i++) {
        float x = round_to(half, g[i]);
        bool kept = !masking | agrees(x, get(half, m, i));
        if (o && o->discard != 1)
            x = discarded(half, o, i, x);
        float scaled = round_to(half, x * s);
        put(half, b, i, get(half, b, i) - (kept ? round_to(half, scaled * step) : 0.0f));
        if (o && o->a.data)
            put(half, o->a.data, i,
                get(half, o->a.data, i) - (kept ? round_to(half, scaled * adv_step) : 0.0f));
    }
}

void CPU_NAME(cpu_unlearn_step)(struct mm_device *dev, struct mm_vector b, struct mm_vector g,
                                const struct mm_mask *mask, const double *scale, double rate,
                                const struct mm_unlearn_options *options, const uint32_t *stop) {
    (void)dev;
    bool half = b.dtype == MM_BF16;
    for (size_t t = 0; t < mask->tensors_n && !*stop; t++) {
        size_t begin = mask->offsets[t], n = mask->offsets[t + 1] - begin;
        struct unlearn_step u = {b.data, g.data, mask->m.data, mask->masking, scale[t], rate};
        if (options)
            FOR_CHUNKS(half, n, unlearn_range, begin, &u, options)
        else
            FOR_CHUNKS(half, n, unlearn_range, begin, &u, NULL)
    }
}

/* -- relearning and pretraining ---------------------------------------------------------------- */

static inline void sgd_range(bool half, size_t first, size_t n, void *p, const float *g,
                             float rate) {
    for (size_t i = first; i < first + n; i++)
        put(half, p, i, get(half, p, i) - round_to(half, round_to(half, g[i]) * rate));
}

void CPU_NAME(cpu_sgd_step)(struct mm_device *dev, struct mm_vector p, struct mm_vector g,
                            double rate) {
    (void)dev;
    FOR_CHUNKS(p.dtype == MM_BF16, p.n, sgd_range, p.data, g.data, (float)rate)
}

/* The factors of a step of AdamW, in float32. */
struct adamw {
    float scale, beta1, rest1, beta2, rest2, keep, step, correction, epsilon;
};

static inline void adamw_range(bool half, size_t first, size_t n, void *p, void *one, void *two,
                               const float *g, struct adamw a) {
    for (size_t i = first; i < first + n; i++) {
        float d = g[i] * a.scale;
        float mean = a.beta1 * get(half, one, i) + a.rest1 * d;
        float square = a.beta2 * get(half, two, i) + a.rest2 * d * d;
        float moved = a.step * mean / (sqrtf(square) * a.correction + a.epsilon);
        put(half, one, i, mean);
        put(half, two, i, square);
        put(half, p, i, get(half, p, i) * a.keep - moved);
    }
}

void CPU_NAME(cpu_adamw_step)(struct mm_device *dev, struct mm_vector p, struct mm_vector first,
                              struct mm_vector second, struct mm_vector g,
                              const struct mm_adamw *how) {
    (void)dev;
    const double *betas = how->betas, t = (double)how->t;
    struct adamw a = {.scale = (float)how->g_scale,
                      .beta1 = (float)betas[0],
                      .rest1 = (float)(1 - betas[0]),
                      .beta2 = (float)betas[1],
                      .rest2 = (float)(1 - betas[1]),
                      .keep = (float)(1 - how->rate * how->weight_decay),
                      .step = (float)(how->rate / (1 - pow(betas[0], t))),
                      .correction = (float)(1 / sqrt(1 - pow(betas[1], t))),
                      .epsilon = (float)how->epsilon};
    FOR_CHUNKS(p.dtype == MM_BF16, p.n, adamw_range, p.data, first.data, second.data, g.data, a)
}
