/* vector.cu - elementwise passes over vectors, their sums, and the scalars between them. The mask's
 * own are in mask.cu. */
#include "kernels/cuda/vector.h"

/* -- passes ------------------------------------------------------------------------------------
 *
 * One kernel for all: op(p, q, r, g) by element, on registers. A NULL vector is not read and gives
 * 0; Op::writes says which of p, q, r are stored. */

enum written { WRITES_P = 1, WRITES_Q = 2, WRITES_R = 4 };

template <typename S, typename Op> struct pass {
    Op op;
    S *p, *q, *r;
    const float *g;
    size_t n;
    const uint32_t *stop; /* NULL: always */
    bool wide;
};

template <typename S, typename Op> __global__ static void pass_kernel(struct pass<S, Op> a) {
    size_t stride = 4 * static_cast<size_t>(blockDim.x) * gridDim.x;
    size_t first = 4 * (blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x);
    if (a.stop && *a.stop)
        return;
    for (; first < a.n; first += stride) {
        float p[4] = {}, q[4] = {}, r[4] = {}, g[4] = {};
        if (a.p)
            load4(p, a.p, first, 0, a.n, a.wide);
        if (a.q)
            load4(q, a.q, first, 0, a.n, a.wide);
        if (a.r)
            load4(r, a.r, first, 0, a.n, a.wide);
        if (a.g)
            load4(g, a.g, first, 0, a.n, a.wide);
        for (unsigned k = 0; k < 4; k++)
            a.op(p[k], q[k], r[k], g[k]);
        if (Op::writes & WRITES_P)
            store4(a.p, p, first, 0, a.n, a.wide);
        if (Op::writes & WRITES_Q)
            store4(a.q, q, first, 0, a.n, a.wide);
        if (Op::writes & WRITES_R)
            store4(a.r, r, first, 0, a.n, a.wide);
    }
}

/* Enough blocks to fill any GPU; each then goes on in strides. */
#define MOST_BLOCKS ((size_t)4096)

template <typename S, typename Op>
static void run_pass(struct mm_device *dev, Op op, void *p, void *q, void *r, const void *g,
                     size_t n, const uint32_t *stop) {
    enum mm_dtype dtype = sizeof(S) == 4 ? MM_F32 : MM_BF16;
    bool wide =
        aligned4(p, dtype) && aligned4(q, dtype) && aligned4(r, dtype) && aligned4(g, MM_F32);
    size_t blocks = (n + 4 * BLOCK - 1) / (4 * BLOCK);
    struct pass<S, Op> a = {
        op, static_cast<S *>(p), static_cast<S *>(q), static_cast<S *>(r),
            static_cast<const float *>(g), n, stop, wide
    };
    auto kernel = pass_kernel<S, Op>;
    if (n)
        MM_LAUNCH(kernel, static_cast<unsigned>(blocks < MOST_BLOCKS ? blocks : MOST_BLOCKS), BLOCK,
                  0, dev, a);
}

/* Runs Op<S> with S by dtype; the last argument initializes it. */
#define RUN_PASS(dtype, Op, dev, p, q, r, g, n, stop, ...)                                         \
    do {                                                                                           \
        if ((dtype) == MM_BF16)                                                                    \
            run_pass<bf16>(dev, Op<bf16>{__VA_ARGS__}, p, q, r, g, n, stop);                       \
        else                                                                                       \
            run_pass<float>(dev, Op<float>{__VA_ARGS__}, p, q, r, g, n, stop);                     \
    } while (0)

template <typename S> struct retain { /* p: m, q: b */
    static const unsigned writes = WRITES_P | WRITES_Q;
    float momentum, fresh, rate;
    __device__ void operator()(float &m, float &b, float &, float g) const {
        float decayed = round_to<S>(m * momentum);
        float part = round_to<S>(round_to<S>(g) * fresh);
        m = round_to<S>(decayed + part);
        b -= round_to<S>(rate * m);
    }
};

void cuda_retain_step(struct mm_device *dev, struct mm_vector m, struct mm_vector b,
                      struct mm_vector g, double momentum, double rate, const uint32_t *stop) {
    RUN_PASS(b.dtype, retain, dev, m.data, b.data, nullptr, g.data, b.n, stop,
             static_cast<float>(momentum), static_cast<float>(1 - momentum),
             static_cast<float>(rate));
}

template <typename S> struct adversary { /* p: a, q: b, or 0 where decay is 1 */
    static const unsigned writes = WRITES_P;
    float rate, decay, rest;
    __device__ void operator()(float &a, float &b, float &, float g) const {
        a = round_to<S>(a - round_to<S>(round_to<S>(g) * rate));
        if (decay != 1.0f)
            a = round_to<S>(a * decay) + round_to<S>(b * rest);
    }
};

void cuda_adversary_step(struct mm_device *dev, struct mm_vector a, struct mm_vector b,
                         struct mm_vector g, double rate, double decay, const uint32_t *stop) {
    float keep = static_cast<float>(decay);
    RUN_PASS(a.dtype, adversary, dev, a.data, keep != 1.0f ? b.data : nullptr, nullptr, g.data, a.n,
             stop, static_cast<float>(rate), keep, static_cast<float>(1 - decay));
}

template <typename S> struct assign { /* p = q */
    static const unsigned writes = WRITES_P;
    float factor;
    __device__ void operator()(float &p, float &q, float &, float) const {
        p = factor * q;
    }
};

void cuda_fork(struct mm_device *dev, struct mm_vector a, struct mm_vector b,
               const uint32_t *stop) {
    RUN_PASS(b.dtype, assign, dev, a.data, b.data, nullptr, nullptr, b.n, stop, 1.0f);
}

void cuda_scale(struct mm_device *dev, struct mm_mat y, struct mm_mat x, float factor) {
    RUN_PASS(x.dtype, assign, dev, y.data, x.data, nullptr, nullptr, x.rows * x.cols, nullptr,
             factor);
}

template <typename S> struct sgd {
    static const unsigned writes = WRITES_P;
    float rate;
    __device__ void operator()(float &p, float &, float &, float g) const {
        p -= round_to<S>(round_to<S>(g) * rate);
    }
};

void cuda_sgd_step(struct mm_device *dev, struct mm_vector p, struct mm_vector g, double rate) {
    RUN_PASS(p.dtype, sgd, dev, p.data, nullptr, nullptr, g.data, p.n, nullptr,
             static_cast<float>(rate));
}

struct adamw { /* p, q: first moment, r: second */
    static const unsigned writes = WRITES_P | WRITES_Q | WRITES_R;
    float scale, beta1, rest1, beta2, rest2, keep, step, correction, epsilon;
    __device__ void operator()(float &p, float &one, float &two, float g) const {
        float d = g * scale;
        one = beta1 * one + rest1 * d;
        two = beta2 * two + rest2 * d * d;
        p = p * keep - step * one / (sqrtf(two) * correction + epsilon);
    }
};

void cuda_adamw_step(struct mm_device *dev, struct mm_vector p, struct mm_vector first,
                     struct mm_vector second, struct mm_vector g, double g_scale, double rate,
                     const double betas[2], double epsilon, double weight_decay, size_t t) {
    double n = static_cast<double>(t);
    struct adamw op = {static_cast<float>(g_scale),
                       static_cast<float>(betas[0]),
                       static_cast<float>(1 - betas[0]),
                       static_cast<float>(betas[1]),
                       static_cast<float>(1 - betas[1]),
                       static_cast<float>(1 - rate * weight_decay),
                       static_cast<float>(rate / (1 - pow(betas[0], n))),
                       static_cast<float>(1 / sqrt(1 - pow(betas[1], n))),
                       static_cast<float>(epsilon)};
    run_pass<float>(dev, op, p.data, first.data, second.data, g.data, p.n, nullptr);
}

/* -- sums -------------------------------------------------------------------------------------- */

template <typename S>
__global__ static void squares_kernel(double *partial, const float *g, size_t n, bool wide) {
    size_t low = blockIdx.x * CHUNK, high = low + CHUNK < n ? low + CHUNK : n;
    double sum = 0;
    for (size_t first = low + 4 * threadIdx.x; first < high; first += 4 * blockDim.x) {
        float v[4];
        load4(v, g, first, low, high, wide);
        for (unsigned k = 0; k < 4; k++) {
            double x = round_to<S>(v[k]);
            sum += x * x;
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        partial[blockIdx.x] = sum;
}

__global__ static void add_partials_kernel(double *sum, const double *partial, size_t n) {
    double total = 0;
    for (size_t i = threadIdx.x; i < n; i += blockDim.x)
        total += partial[i];
    total = block_sum(total);
    if (threadIdx.x == 0)
        *sum += total;
}

void cuda_sum_squares(struct mm_device *dev, double *sum, struct mm_vector g,
                      enum mm_dtype state_dtype) {
    unsigned chunks = blocks_for(g.n, CHUNK);
    double *partial = static_cast<double *>(cuda_scratch(dev, (chunks + 1) * sizeof(double)));
    const float *values = static_cast<const float *>(g.data);
    bool wide = aligned4(values, MM_F32);
    if (!chunks)
        return;
    if (state_dtype == MM_BF16)
        MM_LAUNCH(squares_kernel<bf16>, chunks, BLOCK, 0, dev, partial, values, g.n, wide);
    else
        MM_LAUNCH(squares_kernel<float>, chunks, BLOCK, 0, dev, partial, values, g.n, wide);
    MM_LAUNCH(add_partials_kernel, 1, BLOCK, 0, dev, sum, partial, chunks);
}

/* In order, so one thread adds what the others fetch. */
__global__ static void sum_kernel(double *sum, const float *values, size_t n, double scale) {
    __shared__ float tile[BLOCK];
    double total = 0;
    for (size_t first = 0; first < n; first += BLOCK) {
        size_t count = n - first < BLOCK ? n - first : BLOCK;
        if (threadIdx.x < count)
            tile[threadIdx.x] = values[first + threadIdx.x];
        __syncthreads();
        for (size_t i = 0; threadIdx.x == 0 && i < count; i++)
            total += static_cast<double>(tile[i]);
        __syncthreads();
    }
    if (threadIdx.x == 0)
        *sum += scale * total;
}

void cuda_sum(struct mm_device *dev, double *sum, const float *values, size_t n, double scale) {
    MM_LAUNCH(sum_kernel, 1, BLOCK, 0, dev, sum, values, n, scale);
}

/* -- scalars ----------------------------------------------------------------------------------- */

__global__ static void scale_scalar_kernel(double *y, const double *x, double factor) {
    *y = factor * *x;
}

void cuda_scale_scalar(struct mm_device *dev, double *y, const double *x, double factor) {
    MM_LAUNCH(scale_scalar_kernel, 1, 1, 0, dev, y, x, factor);
}

__global__ static void guard_kernel(const double *value, bool zero_too, enum mm_stop code,
                                    uint32_t *stop) {
    guard_value(*value, zero_too, code, stop);
}

void cuda_guard(struct mm_device *dev, const double *value, bool zero_too, enum mm_stop code,
                uint32_t *stop) {
    MM_LAUNCH(guard_kernel, 1, 1, 0, dev, value, zero_too, code, stop);
}
