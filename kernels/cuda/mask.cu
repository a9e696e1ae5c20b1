/* mask.cu - lines 13 to 15 of Algorithm 1: sums by tensor, scales, and the unlearning step.
 *
 * The tensors' bounds are on the device, so blocks take chunks of the whole vector and find the
 * tensors in them. The part of tensor t in chunk c has the number c + t. This number
 * grows from each part to the next, so no two parts share one. */
#include "kernels/cuda/vector.h"

struct parts {
    const size_t *offsets;
    size_t tensors_n, n;
    bool aligned; /* every vector begins at a multiple of 16 bytes */
};

struct part {
    size_t tensor, low, high; /* low >= high: nothing there */
};

/* Tensor t's part of this block's chunk. */
__device__ static inline struct part part_of(const struct parts &p, size_t t) {
    size_t first = blockIdx.x * CHUNK, last = first + CHUNK < p.n ? first + CHUNK : p.n;
    size_t low = p.offsets[t], high = p.offsets[t + 1];
    return {t, low > first ? low : first, high < last ? high : last};
}

/* Whether the part is whole groups of four, alike for all threads of the block; and a thread's
 * first. */
__device__ static inline bool is_wide(const struct parts &p, struct part part) {
    return p.aligned && part.low % QUAD == 0 && part.high % QUAD == 0;
}
__device__ static inline size_t first_quad(struct part part) {
    return part.low + QUAD * threadIdx.x;
}

/* For each part of this block's chunk. */
#define FOR_PARTS(part, p)                                                                         \
    for (size_t t_ = tensor_at((p).offsets, (p).tensors_n, blockIdx.x * CHUNK);                    \
         t_ < (p).tensors_n && (p).offsets[t_] < (blockIdx.x + 1) * CHUNK; t_++)                   \
        if (struct part part = part_of(p, t_); part.low < part.high)

__device__ static inline int sign(float x) {
    return (x > 0) - (x < 0);
}

/* struct mm_unlearn_options as the kernels take it; all NULL: none. */
template <typename S> struct options {
    S *f, *a;
    const S *b; /* NULL: nothing is discarded */
    float momentum, fresh, discard;
    double adv_rate;
    const uint32_t *stop;
};

template <typename S> static struct options<S> options_of(const struct mm_unlearn_options *o) {
    if (!o)
        return {};
    return {static_cast<S *>(o->f.data),
            static_cast<S *>(o->a.data),
            o->discard != 1 ? static_cast<const S *>(o->b.data) : nullptr,
            static_cast<float>(o->momentum),
            static_cast<float>(1 - o->momentum),
            static_cast<float>(o->discard),
            o->adv_rate,
            o->stop};
}

static bool
options_aligned(const struct mm_unlearn_options *o) {
    return !o || (aligned16(o->f.data) && aligned16(o->a.data) && aligned16(o->b.data));
}

/* Four elements of f, which take the place of those of g in x; both are written. */
template <typename S, bool WIDE>
__device__ static inline void accumulate(const struct options<S> &o, float (&x)[QUAD], float *g,
                                         size_t first, struct part part) {
    float f[QUAD];
    load_group<WIDE>(f, o.f, first, part.low, part.high);
    for (unsigned k = 0; k < QUAD; k++) {
        float fresh = round_to<S>(x[k] * o.fresh);
        x[k] = round_to<S>(round_to<S>(f[k] * o.momentum) + fresh);
    }
    store_group<WIDE>(o.f, x, first, part.low, part.high);
    store_group<WIDE>(g, x, first, part.low, part.high);
}

/* x where b's sign agrees, else the share of it that is left. */
template <typename S, bool WIDE>
__device__ static inline void discard(const struct options<S> &o, float (&x)[QUAD], size_t first,
                                      struct part part) {
    float b[QUAD];
    load_group<WIDE>(b, o.b, first, part.low, part.high);
    for (unsigned k = 0; k < QUAD; k++)
        x[k] = sign(b[k]) != sign(x[k]) ? round_to<S>(x[k] * o.discard) : x[k];
}

/* -- sums -------------------------------------------------------------------------------------- */

template <typename S> struct sums_args {
    struct mm_mask_sums *partial;
    struct parts parts;
    float *g;
    const S *m;
    bool masking;
    struct options<S> options;
};

/* Of one thread. */
template <typename S, bool WIDE, bool OPTIONS>
__device__ static inline struct mm_mask_sums part_sums(const struct sums_args<S> &a,
                                                       struct part part, bool momentum) {
    double raw = 0, kept = 0;
    unsigned kept_n = 0;
#pragma unroll 4
    for (size_t first = first_quad(part); first < part.high; first += QUAD * BLOCK) {
        float x[QUAD], y[QUAD] = {};
        bool keep[QUAD];
        load_group<WIDE>(x, a.g, first, part.low, part.high);
        if (a.masking)
            load_group<WIDE>(y, a.m, first, part.low, part.high);
        for (unsigned k = 0; k < QUAD; k++) {
            x[k] = round_to<S>(x[k]);
            raw += static_cast<double>(x[k]) * static_cast<double>(x[k]);
        }
        if (momentum)
            accumulate<S, WIDE>(a.options, x, a.g, first, part);
        for (unsigned k = 0; k < QUAD; k++) {
            bool own = WIDE || (first + k >= part.low && first + k < part.high);
            keep[k] = own && (!a.masking || sign(x[k]) == sign(y[k]));
        }
        if (OPTIONS && a.options.b)
            discard<S, WIDE>(a.options, x, first, part);
        for (unsigned k = 0; k < QUAD; k++) {
            kept += keep[k] ? static_cast<double>(x[k]) * static_cast<double>(x[k]) : 0;
            kept_n += keep[k];
        }
    }
    return {raw, kept, static_cast<double>(kept_n)};
}

template <typename S, bool OPTIONS>
__device__ static inline struct mm_mask_sums block_sums(const struct sums_args<S> &a,
                                                        struct part part, bool momentum) {
    struct mm_mask_sums s = is_wide(a.parts, part)
                                ? part_sums<S, true, OPTIONS>(a, part, momentum)
                                : part_sums<S, false, OPTIONS>(a, part, momentum);
    s.raw = block_sum(s.raw);
    s.kept = block_sum(s.kept);
    s.kept_n = block_sum(s.kept_n);
    return s;
}

/* On an exact device, a block a tensor: its order is its own, wherever in the vector it lies. */
template <typename S, bool OPTIONS>
__global__ static void whole_sums_kernel(struct sums_args<S> a, struct mm_mask_sums *sums) {
    bool momentum = OPTIONS && a.options.f && !*a.options.stop;
    size_t t = blockIdx.x;
    struct part part = {t, a.parts.offsets[t], a.parts.offsets[t + 1]};
    struct mm_mask_sums s = block_sums<S, OPTIONS>(a, part, momentum);
    if (threadIdx.x == 0)
        sums[t] = s;
}

template <typename S, bool OPTIONS> __global__ static void mask_sums_kernel(struct sums_args<S> a) {
    struct mm_mask_sums *partial = a.partial;
    struct parts parts = a.parts;
    bool momentum = OPTIONS && a.options.f && !*a.options.stop;
    FOR_PARTS(part, parts) {
        struct mm_mask_sums s = block_sums<S, OPTIONS>(a, part, momentum);
        if (threadIdx.x == 0)
            partial[blockIdx.x + part.tensor] = s;
    }
}

/* A block a tensor: its chunks' sums. */
__global__ static void add_parts_kernel(struct mm_mask_sums *sums,
                                        const struct mm_mask_sums *partial, struct parts parts) {
    size_t t = blockIdx.x, low = parts.offsets[t], high = parts.offsets[t + 1];
    struct mm_mask_sums total = {};
    for (size_t c = low / CHUNK + threadIdx.x; low < high && c <= (high - 1) / CHUNK;
         c += blockDim.x) {
        total.raw += partial[c + t].raw;
        total.kept += partial[c + t].kept;
        total.kept_n += partial[c + t].kept_n;
    }
    total.raw = block_sum(total.raw);
    total.kept = block_sum(total.kept);
    total.kept_n = block_sum(total.kept_n);
    if (threadIdx.x == 0)
        sums[t] = total;
}

template <typename S>
static void mask_sums(struct mm_device *dev, struct mm_mask_sums *sums, struct mm_vector g,
                      const struct mm_mask *mask, struct parts parts,
                      const struct mm_unlearn_options *options) {
    unsigned chunks = blocks_for(g.n, CHUNK), tensors = blocks_for(parts.tensors_n, 1);
    size_t bytes = (chunks + parts.tensors_n) * sizeof(struct mm_mask_sums);
    struct mm_mask_sums *partial = static_cast<struct mm_mask_sums *>(cuda_scratch(dev, bytes));
    struct sums_args<S> a = {
        partial, parts, static_cast<float *>(g.data),
            static_cast<const S *>(mask->m.data), mask->masking, options_of<S>(options)
    };
    auto kernel = options ? mask_sums_kernel<S, true> : mask_sums_kernel<S, false>;
    auto whole = options ? whole_sums_kernel<S, true> : whole_sums_kernel<S, false>;
    if (dev->exact) {
        if (tensors)
            MM_LAUNCH(whole, tensors, BLOCK, 0, dev, a, sums);
        return;
    }
    if (chunks)
        MM_LAUNCH(kernel, chunks, BLOCK, 0, dev, a);
    if (tensors)
        MM_LAUNCH(add_parts_kernel, tensors, BLOCK, 0, dev, sums, partial, parts);
}

void cuda_mask_sums(struct mm_device *dev, struct mm_mask_sums *sums, struct mm_vector g,
                    const struct mm_mask *mask, const struct mm_unlearn_options *options) {
    bool aligned = aligned16(g.data) && aligned16(mask->m.data) && options_aligned(options);
    struct parts parts = {mask->offsets, mask->tensors_n, g.n, aligned};
    MM_BY_DTYPE(mask->m.dtype, mask_sums, dev, sums, g, mask, parts, options);
}

/* -- scales ------------------------------------------------------------------------------------ */

enum which { RAW, KEPT };

/* The norm of all tensors together. In bfloat16 the study code's sum(norm**2)**0.5 rounds each
 * tensor's norm, its square, every partial sum and the root. */
template <typename S>
__device__ static double global_norm(const struct mm_mask_sums *sums, size_t tensors_n,
                                     enum which which) {
    double total = 0;
    for (size_t t = 0; t < tensors_n; t++) {
        double square = which == KEPT ? sums[t].kept : sums[t].raw;
        if (sizeof(S) == 2) {
            float norm = round_to<S>(static_cast<float>(sqrt(square)));
            total = round_to<S>(static_cast<float>(total) + round_to<S>(norm * norm));
        } else
            total += square;
    }
    return sizeof(S) == 2 ? round_to<S>(sqrtf(static_cast<float>(total))) : sqrt(total);
}

/* factor / norm; PyTorch divides a number by a bfloat16 tensor as reciprocal, then product. */
template <typename S> __device__ static double divide(double factor, double norm) {
    if (sizeof(S) == 4)
        return factor / norm;
    return round_to<S>(round_to<S>(1.0f / static_cast<float>(norm)) * static_cast<float>(factor));
}

template <typename S>
__global__ static void unlearn_scale_kernel(struct mm_normalizing how, double *scale,
                                            const struct mm_mask_sums *sums, size_t tensors_n,
                                            struct mm_loop_scalars *scalars) {
    double kept_n = 0, factor = how.study ? sqrt(how.n_w) : 1.0;
    double raw_norm = global_norm<S>(sums, tensors_n, RAW), common = raw_norm;
    uint32_t *stop = &scalars->stop;
    if (how.by == MM_NORM_GLOBAL_POST_MASK)
        common = global_norm<S>(sums, tensors_n, KEPT);
    guard_finite(raw_norm, MM_GUARD_UNLEARNING_GRADIENT, stop);
    if (how.by == MM_NORM_GLOBAL_PRE_MASK || how.by == MM_NORM_GLOBAL_POST_MASK)
        guard_divisor(common, stop);
    for (size_t t = 0; t < tensors_n; t++) {
        kept_n += sums[t].kept_n;
        if (how.by == MM_NORM_NONE)
            scale[t] = 1.0;
        else if (how.by == MM_NORM_PER_PARAMETER) {
            double norm = global_norm<S>(&sums[t], 1, KEPT);
            guard_divisor(norm, stop);
            scale[t] = divide<S>(1.0, norm);
        } else
            scale[t] = divide<S>(factor, common);
    }
    scalars->grad_norm = raw_norm;
    scalars->mask_fraction = kept_n / how.n_w;
}

void cuda_unlearn_scale(struct mm_device *dev, const struct mm_normalizing *how, double *scale,
                        const struct mm_mask_sums *sums, size_t tensors_n,
                        struct mm_loop_scalars *scalars) {
    auto kernel =
        how->state_dtype == MM_BF16 ? unlearn_scale_kernel<bf16> : unlearn_scale_kernel<float>;
    MM_LAUNCH(kernel, 1, 1, 0, dev, *how, scale, sums, tensors_n, scalars);
}

/* -- step -------------------------------------------------------------------------------------- */

template <typename S> struct step_args {
    S *b;
    const float *g;
    const S *m;
    struct parts parts;
    const double *scale;
    double rate;
    bool masking;
    struct options<S> options;
    const uint32_t *stop;
};

/* v minus the kept elements of x times step. */
template <typename S, bool WIDE>
__device__ static inline void step_group(S *v, const float (&x)[QUAD], const bool (&keep)[QUAD],
                                         float step, size_t first, struct part part) {
    float z[QUAD];
    load_group<WIDE>(z, v, first, part.low, part.high);
    for (unsigned k = 0; k < QUAD; k++)
        z[k] -= keep[k] ? round_to<S>(x[k] * step) : 0.0f;
    store_group<WIDE>(v, z, first, part.low, part.high);
}

template <typename S, bool WIDE, bool OPTIONS>
__device__ static inline void step_part(const struct step_args<S> &a, struct part part) {
    double by = a.scale[part.tensor];
    float s = sizeof(S) == 2 ? static_cast<float>(by) : 1.0f;
    float step = static_cast<float>(sizeof(S) == 2 ? a.rate : a.rate * by);
    double adv_rate = a.options.adv_rate;
    float adv_step = static_cast<float>(sizeof(S) == 2 ? adv_rate : adv_rate * by);
    for (size_t first = first_quad(part); first < part.high; first += QUAD * BLOCK) {
        float x[QUAD], y[QUAD];
        bool keep[QUAD];
        load_group<WIDE>(x, a.g, first, part.low, part.high);
        load_group<WIDE>(y, a.m, first, part.low, part.high);
        for (unsigned k = 0; k < QUAD; k++) {
            x[k] = round_to<S>(x[k]);
            keep[k] = !a.masking || sign(x[k]) == sign(y[k]);
        }
        if (OPTIONS && a.options.b)
            discard<S, WIDE>(a.options, x, first, part);
        for (unsigned k = 0; k < QUAD; k++)
            x[k] = round_to<S>(x[k] * s);
        step_group<S, WIDE>(a.b, x, keep, step, first, part);
        if (OPTIONS && a.options.a)
            step_group<S, WIDE>(a.options.a, x, keep, adv_step, first, part);
    }
}

template <typename S, bool OPTIONS>
__global__ static void unlearn_step_kernel(struct step_args<S> a) {
    if (*a.stop)
        return;
    FOR_PARTS(part, a.parts) {
        if (is_wide(a.parts, part))
            step_part<S, true, OPTIONS>(a, part);
        else
            step_part<S, false, OPTIONS>(a, part);
    }
}

template <typename S>
static void unlearn_step(struct mm_device *dev, struct mm_vector b, struct mm_vector g,
                         const struct mm_mask *mask, const double *scale, double rate,
                         const struct mm_unlearn_options *options, const uint32_t *stop) {
    bool aligned = aligned16(b.data) && aligned16(g.data) && aligned16(mask->m.data) &&
                   options_aligned(options);
    struct parts parts = {mask->offsets, mask->tensors_n, b.n, aligned};
    struct step_args<S> a = {
        static_cast<S *>(b.data), static_cast<const float *>(g.data),
            static_cast<const S *>(mask->m.data), parts, scale, rate, mask->masking,
            options_of<S>(options), stop
    };
    unsigned chunks = blocks_for(b.n, CHUNK);
    auto kernel = options ? unlearn_step_kernel<S, true> : unlearn_step_kernel<S, false>;
    if (chunks && parts.tensors_n)
        MM_LAUNCH(kernel, chunks, BLOCK, 0, dev, a);
}

void cuda_unlearn_step(struct mm_device *dev, struct mm_vector b, struct mm_vector g,
                       const struct mm_mask *mask, const double *scale, double rate,
                       const struct mm_unlearn_options *options, const uint32_t *stop) {
    MM_BY_DTYPE(b.dtype, unlearn_step, dev, b, g, mask, scale, rate, options, stop);
}
