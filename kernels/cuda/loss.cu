/* loss.cu - the losses of docs/method.md 4 with their gradients: a block a row of logits, which
 * it reads twice: for the sums, and for the gradient that may take the row's place. */
#include "kernels/cuda/block.h"

/* A row may have 10^5 columns and a call few rows: all the threads that a block may have, each with
 * AHEAD groups under way. One such block fills a processor, and what all of them have just read
 * stays in the L2 cache until they read it again. */
#define LOSS_THREADS 1024u
template <typename T, bool WIDE> constexpr unsigned AHEAD = !WIDE ? 1 : sizeof(T) == 2 ? 4 : 2;

template <typename T> struct row {
    const T *z;
    T *d; /* NULL: no gradient */
    size_t V;
};

/* Columns that the block takes at once, and the first of this thread's group `i` of those. */
template <typename T, bool WIDE> __device__ static inline size_t stretch() {
    return AHEAD<T, WIDE> * GROUP * blockDim.x;
}
__device__ static inline size_t group_at(size_t first, unsigned i) {
    return first + GROUP * (i * blockDim.x + threadIdx.x);
}

/* Columns beyond V are -infinity. */
template <bool WIDE, typename T>
__device__ static inline void load_ahead(float (&v)[AHEAD<T, WIDE>][GROUP], const struct row<T> &r,
                                         size_t first) {
#pragma unroll
    for (unsigned i = 0; i < AHEAD<T, WIDE>; i++) {
        size_t at = group_at(first, i);
        if (!WIDE || at < r.V)
            load_group<WIDE>(v[i], r.z, at, 0, r.V, -INFINITY);
        else
            for (unsigned k = 0; k < GROUP; k++)
                v[i][k] = -INFINITY;
    }
}

/* Over what a thread or a block has seen: the largest z, the sums of e = exp(z - top) and of
 * e·(z - top). */
struct exp_sums {
    float top, sum, weighted;
};

/* Sums taken beside `top`, beside the higher `to` instead. Nothing seen: top is -infinity. */
__device__ static inline struct exp_sums rebased(struct exp_sums s, float to) {
    if (s.top == -INFINITY)
        return {to, s.sum, s.weighted};
    float down = s.top - to, factor = expf(down);
    return {to, s.sum * factor, (s.weighted + s.sum * down) * factor};
}

template <typename T, bool WEIGHTED>
__device__ static inline void add_group(struct exp_sums &s, const float (&v)[GROUP]) {
    float most = s.top;
    for (unsigned k = 0; k < GROUP; k++)
        most = fmaxf(most, v[k]);
    if (most > s.top)
        s = rebased(s, most);
    float top = s.top == -INFINITY ? 0.0f : s.top;
    for (unsigned k = 0; k < GROUP; k++) {
        float d = v[k] - top, e = exp_for<T>(d);
        s.sum += e;
        if (WEIGHTED)
            s.weighted += e == 0.0f ? 0.0f : e * d;
    }
}

template <bool WIDE, bool WEIGHTED, typename T>
__device__ static inline struct exp_sums row_sums(const struct row<T> &r) {
    struct exp_sums s = {-INFINITY, 0.0f, 0.0f};
    for (size_t first = 0; first < r.V; first += stretch<T, WIDE>()) {
        float v[AHEAD<T, WIDE>][GROUP];
        load_ahead<WIDE>(v, r, first);
#pragma unroll
        for (unsigned i = 0; i < AHEAD<T, WIDE>; i++)
            add_group<T, WEIGHTED>(s, v[i]);
    }
    s = rebased(s, block_max(s.top));
    s.sum = block_sum(s.sum);
    if (WEIGHTED)
        s.weighted = block_sum(s.weighted);
    return s;
}

template <bool WIDE, typename T> __device__ static inline float row_total(const struct row<T> &r) {
    float sum = 0.0f;
    for (size_t first = 0; first < r.V; first += stretch<T, WIDE>()) {
        float v[AHEAD<T, WIDE>][GROUP];
        load_ahead<WIDE>(v, r, first);
        for (unsigned i = 0; i < AHEAD<T, WIDE>; i++)
            for (unsigned k = 0; k < GROUP; k++)
                sum += group_at(first, i) + k < r.V ? v[i][k] : 0.0f;
    }
    return block_sum(sum);
}

/* A row's gradient: d[j] = slope(z[j]), and `at_target` more at y. */
template <bool WIDE, typename T, typename Slope>
__device__ static inline void write_row(const struct row<T> &r, uint32_t y, float at_target,
                                        Slope slope) {
    for (size_t first = 0; first < r.V; first += stretch<T, WIDE>()) {
        float v[AHEAD<T, WIDE>][GROUP];
        load_ahead<WIDE>(v, r, first);
#pragma unroll
        for (unsigned i = 0; i < AHEAD<T, WIDE>; i++) {
            size_t at = group_at(first, i);
            if (at >= r.V)
                continue;
            for (unsigned k = 0; k < GROUP; k++)
                v[i][k] = slope(v[i][k]);
            if (y - at < GROUP)
                for (unsigned k = 0; k < GROUP; k++)
                    v[i][k] += at + k == y ? at_target : 0.0f;
            store_group<WIDE>(r.d, v[i], at, 0, r.V);
        }
    }
}

struct constant_slope {
    float value;
    __device__ float operator()(float) const {
        return value;
    }
};
template <typename T> struct softmax_slope { /* p times factor·sum */
    float top, factor;
    __device__ float operator()(float z) const {
        return exp_for<T>(z - top) * factor;
    }
};
template <typename T> struct entropy_slope { /* p·(log p - the loss) times factor·sum */
    float top, factor, log_sum, loss;
    __device__ float operator()(float z) const {
        float d = z - top, e = exp_for<T>(d);
        return e == 0.0f ? 0.0f : e * factor * (d - log_sum - loss); /* d may be -infinity */
    }
};

/* Each returns the row's term. z_y is read before anything is written. */

template <bool WIDE, typename T>
__device__ static float cross_entropy_row(const struct row<T> &r, uint32_t y, float scale,
                                          float sign) {
    float z_y = to_float(r.z[y]);
    struct exp_sums s = row_sums<WIDE, false>(r);
    if (r.d)
        write_row<WIDE>(r, y, -sign * scale, softmax_slope<T>{s.top, sign * scale / s.sum});
    return sign * (logf(s.sum) - (z_y - s.top));
}

template <bool WIDE, typename T>
__device__ static float neg_entropy_row(const struct row<T> &r, float scale) {
    struct exp_sums s = row_sums<WIDE, true>(r);
    float log_sum = logf(s.sum), loss = s.weighted / s.sum - log_sum;
    if (r.d)
        write_row<WIDE>(r, MM_NO_TARGET, 0.0f,
                        entropy_slope<T>{s.top, scale / s.sum, log_sum, loss});
    return loss;
}

template <bool WIDE, typename T>
__device__ static float correct_logit_row(const struct row<T> &r, uint32_t y, float clip,
                                          float scale) {
    float z_y = to_float(r.z[y]), mean = row_total<WIDE>(r) / static_cast<float>(r.V);
    float value = z_y - mean, slope = value >= clip ? scale : 0.0f;
    if (r.d)
        write_row<WIDE>(r, y, slope, constant_slope{-slope / static_cast<float>(r.V)});
    return value >= clip || isnan(value) ? value : clip;
}

struct loss_args {
    struct mm_loss how;
    struct mm_mat logits;
    const uint32_t *targets;
    float *losses;
    struct mm_mat dlogits;
};

template <typename T, bool WIDE>
__global__ static void __launch_bounds__(LOSS_THREADS) loss_kernel(struct loss_args a) {
    uint32_t y = a.targets[blockIdx.x];
    struct row<T> r = {
        row_of<T>(a.logits, blockIdx.x),
            a.dlogits.data ? row_of<T>(a.dlogits, blockIdx.x) : nullptr, a.logits.cols
    };
    const struct mm_loss &how = a.how;
    float scale = how.weights ? how.scale * how.weights[blockIdx.x] : how.scale;
    float loss = 0.0f, sign = how.fn == MM_LOSS_CROSS_ENTROPY ? 1.0f : -1.0f;
    bool counts = how.fn == MM_LOSS_NEG_ENTROPY ? y != MM_NO_TOKEN : y < MM_NO_TOKEN;
    if (counts && how.fn != MM_LOSS_NEG_ENTROPY && y >= r.V)
        __trap();
    if (!counts) {
        if (r.d)
            write_row<WIDE>(r, y, 0.0f, constant_slope{0.0f});
    } else if (how.fn == MM_LOSS_NEG_ENTROPY)
        loss = neg_entropy_row<WIDE>(r, scale);
    else if (how.fn == MM_LOSS_CORRECT_LOGIT_MINUS_AVG)
        loss = correct_logit_row<WIDE>(r, y, how.clip_at, scale);
    else
        loss = cross_entropy_row<WIDE>(r, y, scale, sign);
    if (threadIdx.x == 0)
        a.losses[blockIdx.x] = loss;
}

template <typename T, bool WIDE> static void loss(struct mm_device *dev, const loss_args &a) {
    auto kernel = loss_kernel<T, WIDE>;
    MM_LAUNCH(kernel, blocks_for(a.logits.rows, 1), row_threads(a.logits.cols, LOSS_THREADS), 0,
              dev, a);
}

void cuda_loss(struct mm_device *dev, const struct mm_loss *how, struct mm_mat logits,
               const uint32_t *targets, float *losses, struct mm_mat dlogits) {
    struct loss_args a = {*how, logits, targets, losses, dlogits};
    if (logits.rows)
        BY_DTYPE_AND_WIDTH(logits.dtype, rows_wide(logits) && rows_wide(dlogits), loss, dev, a);
}

/* -- losses of whole sequences ----------------------------------------------------------------- */

struct sequence_args {
    struct mm_sequence_loss how;
    const float *losses;
    const uint32_t *targets;
    size_t T;
    float *terms, *weights;
};

/* A block a sequence. */
__global__ static void sequence_loss_kernel(struct sequence_args a) {
    const struct mm_sequence_loss &how = a.how;
    bool odds = how.fn == MM_LOSS_NPO; /* against the reference */
    size_t first = blockIdx.x * a.T;
    double s = 0, count = 0;
    for (size_t t = threadIdx.x; t < a.T; t += BLOCK) {
        count += a.targets[first + t] < MM_NO_TOKEN ? 1 : 0;
        s -= static_cast<double>(a.losses[first + t]);
        s += odds ? static_cast<double>(how.reference[first + t]) : 0;
    }
    count = block_sum(count);
    double by = odds ? 1 : 1 / count;
    double x = how.beta * by * block_sum(s) + (odds ? 0 : how.gamma);
    float weight = static_cast<float>(-2 * by / (1 + exp(-x)) * how.scale);
    for (size_t t = threadIdx.x; t < a.T; t += BLOCK)
        a.weights[first + t] = weight;
    if (threadIdx.x == 0)
        a.terms[blockIdx.x] =
            static_cast<float>(2 / how.beta * (fmax(x, 0.0) + log1p(exp(-fabs(x)))));
}

void cuda_sequence_loss(struct mm_device *dev, const struct mm_sequence_loss *how,
                        const float *losses, const uint32_t *targets, size_t B, size_t T,
                        float *terms, float *weights) {
    struct sequence_args a = {*how, losses, targets, T, terms, weights};
    if (B)
        MM_LAUNCH(sequence_loss_kernel, blocks_for(B, 1), BLOCK, 0, dev, a);
}
