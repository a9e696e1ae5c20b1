/* vector.cu - elementwise passes over vectors, their sums, and the scalars between them. Those of
 * the mask are in mask.cu. */
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
};

/* Groups of four that a thread has under way at once, a block's threads side by side in each. */
#define AHEAD     2u
#define PASS_TILE ((size_t)AHEAD * QUAD * BLOCK)

template <bool WIDE, typename T>
__device__ static inline void load_if(float (&out)[QUAD], const T *p, size_t first, size_t n) {
    if (p)
        load_group<WIDE>(out, p, first, 0, n);
}

/* Where p goes too: nowhere, or as struct mm_places says, in elements of Bits. */
struct nowhere {
    __device__ void put(const float (&)[QUAD], size_t, size_t) const {}
};

template <typename Bits> struct placed {
    void *const *data;
    const size_t *offsets;
    size_t tensors_n;

    /* Elements [first, first + QUAD) of n, of one tensor or of several. */
    __device__ void put(const float (&x)[QUAD], size_t first, size_t n) const {
        size_t t = tensor_at(offsets, tensors_n, first), low = offsets[t];
        Bits *to = static_cast<Bits *>(data[t]) + (first - low);
        if (first + QUAD <= offsets[t + 1] &&
            reinterpret_cast<uintptr_t>(to) % (QUAD * sizeof(Bits)) == 0) {
            store_converted(to, x);
            return;
        }
        for (unsigned k = 0; k < QUAD && first + k < n; k++) {
            while (first + k >= offsets[t + 1])
                t++;
            store_converted(static_cast<Bits *>(data[t]) + (first + k - offsets[t]), x[k]);
        }
    }
};

template <bool WIDE, typename S, typename Op, typename To>
__global__ static void pass_kernel(struct pass<S, Op> a, To to) {
    size_t first = PASS_TILE * blockIdx.x + QUAD * threadIdx.x;
    float p[AHEAD][QUAD] = {}, q[AHEAD][QUAD] = {}, r[AHEAD][QUAD] = {}, g[AHEAD][QUAD] = {};
#pragma unroll
    for (unsigned i = 0; i < AHEAD; i++)
        if (size_t at = first + i * QUAD * BLOCK; at < a.n) {
            load_if<WIDE>(p[i], a.p, at, a.n);
            load_if<WIDE>(q[i], a.q, at, a.n);
            load_if<WIDE>(r[i], a.r, at, a.n);
            load_if<WIDE>(g[i], a.g, at, a.n);
        }
    if (a.stop && *a.stop)
        return;
#pragma unroll
    for (unsigned i = 0; i < AHEAD; i++)
        if (size_t at = first + i * QUAD * BLOCK; at < a.n) {
            for (unsigned k = 0; k < QUAD; k++)
                a.op(p[i][k], q[i][k], r[i][k], g[i][k]);
            if (Op::writes & WRITES_P)
                store_group<WIDE>(a.p, p[i], at, 0, a.n);
            for (unsigned k = 0; k < QUAD; k++)
                p[i][k] = round_to<S>(p[i][k]); /* as it was stored */
            to.put(p[i], at, a.n);
            if (Op::writes & WRITES_Q)
                store_group<WIDE>(a.q, q[i], at, 0, a.n);
            if (Op::writes & WRITES_R)
                store_group<WIDE>(a.r, r[i], at, 0, a.n);
        }
}

template <typename S, typename Op, typename To = struct nowhere>
static void run_pass(struct mm_device *dev, Op op, void *p, void *q, void *r, const void *g,
                     size_t n, const uint32_t *stop, To to = {}) {
    bool wide = n % QUAD == 0 && aligned16(p) && aligned16(q) && aligned16(r) && aligned16(g);
    struct pass<S, Op> a = {
        op, static_cast<S *>(p), static_cast<S *>(q), static_cast<S *>(r),
            static_cast<const float *>(g), n, stop
    };
    auto kernel = wide ? pass_kernel<true, S, Op, To> : pass_kernel<false, S, Op, To>;
    if (n)
        MM_LAUNCH(kernel, blocks_for(n, PASS_TILE), BLOCK, 0, dev, a, to);
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

template <typename S> struct adversary { /* p: a, q: b, or 0 where decay is 1 or b is not there */
    static const unsigned writes = WRITES_P;
    float rate, decay, rest;
    __device__ void operator()(float &a, float &b, float &, float g) const {
        a = round_to<S>(a - round_to<S>(round_to<S>(g) * rate));
        if (decay != 1.0f)
            a = round_to<S>(a * decay) + round_to<S>(b * rest);
    }
};

template <typename S>
static void adversary_step(struct mm_device *dev, struct mm_vector a, void *b, struct mm_vector g,
                           adversary<S> op, const struct mm_places *places, const uint32_t *stop) {
    if (!places)
        run_pass<S>(dev, op, a.data, b, nullptr, g.data, a.n, stop);
    else if (places->dtype == MM_BF16)
        run_pass<S>(dev, op, a.data, b, nullptr, g.data, a.n, stop,
                    placed<uint16_t>{places->data, places->offsets, places->tensors_n});
    else
        run_pass<S>(dev, op, a.data, b, nullptr, g.data, a.n, stop,
                    placed<float>{places->data, places->offsets, places->tensors_n});
}

void cuda_adversary_step(struct mm_device *dev, struct mm_vector a, struct mm_vector b,
                         struct mm_vector g, double rate, double decay,
                         const struct mm_places *places, const uint32_t *stop) {
    float by = static_cast<float>(rate), keep = static_cast<float>(decay);
    float rest = static_cast<float>(1 - decay);
    void *other = keep != 1.0f ? b.data : nullptr;
    if (a.dtype == MM_BF16)
        adversary_step<bf16>(dev, a, other, g, {by, keep, rest}, places, stop);
    else
        adversary_step<float>(dev, a, other, g, {by, keep, rest}, places, stop);
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

template <typename S> struct addition { /* p = q + r */
    static const unsigned writes = WRITES_P;
    __device__ void operator()(float &p, float &q, float &r, float) const {
        p = q + r;
    }
};

void cuda_add(struct mm_device *dev, struct mm_mat sum, struct mm_mat x, struct mm_mat y) {
    RUN_PASS(x.dtype, addition, dev, sum.data, x.data, y.data, nullptr, x.rows * x.cols, nullptr);
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
                     struct mm_vector second, struct mm_vector g, const struct mm_adamw *how) {
    const double *betas = how->betas, n = static_cast<double>(how->t);
    struct adamw op = {static_cast<float>(how->g_scale),
                       static_cast<float>(betas[0]),
                       static_cast<float>(1 - betas[0]),
                       static_cast<float>(betas[1]),
                       static_cast<float>(1 - betas[1]),
                       static_cast<float>(1 - how->rate * how->weight_decay),
                       static_cast<float>(how->rate / (1 - pow(betas[0], n))),
                       static_cast<float>(1 / sqrt(1 - pow(betas[1], n))),
                       static_cast<float>(how->epsilon)};
    if (p.dtype == MM_BF16)
        run_pass<bf16>(dev, op, p.data, first.data, second.data, g.data, p.n, nullptr);
    else
        run_pass<float>(dev, op, p.data, first.data, second.data, g.data, p.n, nullptr);
}

/* -- sums -------------------------------------------------------------------------------------- */

template <typename S, bool WIDE>
__global__ static void squares_kernel(double *partial, const float *g, size_t n) {
    size_t low = blockIdx.x * CHUNK, high = low + CHUNK < n ? low + CHUNK : n;
    double sum = 0;
#pragma unroll 4
    for (size_t first = low + QUAD * threadIdx.x; first < high; first += QUAD * BLOCK) {
        float v[QUAD];
        load_group<WIDE>(v, g, first, low, high);
        for (unsigned k = 0; k < QUAD; k++) {
            double x = round_to<S>(v[k]);
            sum += x * x;
        }
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0)
        partial[blockIdx.x] = sum;
}

/* One block for all: with the most threads, as it mostly waits. */
#define PARTIALS_THREADS 1024u

__global__ static void __launch_bounds__(PARTIALS_THREADS)
    add_partials_kernel(double *sum, const double *partial, size_t n) {
    double total = 0;
#pragma unroll 4
    for (size_t i = threadIdx.x; i < n; i += PARTIALS_THREADS)
        total += partial[i];
    total = block_sum(total);
    if (threadIdx.x == 0)
        *sum += total;
}

template <typename S, bool WIDE>
static void sum_squares(struct mm_device *dev, double *sum, struct mm_vector g) {
    unsigned chunks = blocks_for(g.n, CHUNK);
    double *partial = static_cast<double *>(cuda_scratch(dev, chunks * sizeof(double)));
    auto kernel = squares_kernel<S, WIDE>;
    MM_LAUNCH(kernel, chunks, BLOCK, 0, dev, partial, static_cast<const float *>(g.data), g.n);
    MM_LAUNCH(add_partials_kernel, 1, PARTIALS_THREADS, 0, dev, sum, partial, chunks);
}

void cuda_sum_squares(struct mm_device *dev, double *sum, struct mm_vector g,
                      enum mm_dtype state_dtype) {
    if (g.n)
        BY_DTYPE_AND_WIDTH(state_dtype, g.n % QUAD == 0 && aligned16(g.data), sum_squares, dev, sum,
                           g);
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

__global__ static void guard_kernel(const double *value, enum mm_guard code, uint32_t *stop) {
    guard_finite(*value, code, stop);
}

void cuda_guard(struct mm_device *dev, const double *value, enum mm_guard code, uint32_t *stop) {
    MM_LAUNCH(guard_kernel, 1, 1, 0, dev, value, code, stop);
}

__global__ static void guard_dead_kernel(const double *sum_squares, const double *loss,
                                         enum mm_guard code, uint32_t *stop) {
    if (*stop == MM_GUARD_NONE && *sum_squares == 0 && *loss != 0)
        *stop = code;
}

void cuda_guard_dead(struct mm_device *dev, const double *sum_squares, const double *loss,
                     enum mm_guard code, uint32_t *stop) {
    MM_LAUNCH(guard_dead_kernel, 1, 1, 0, dev, sum_squares, loss, code, stop);
}
