/* loss.cu - the losses of METHOD.md 1.5, fused with their gradients: a block a row of logits, which
 * it reads twice: for the sums, and for the gradient that may take the row's place. */
#include "kernels/cuda/block.h"

#define NO_TARGET 0xffffffffu

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

template <typename T>
__device__ static inline struct exp_sums row_sums(const T *z, size_t V, bool wide) {
    struct exp_sums s = {-INFINITY, 0.0f, 0.0f};
    for (size_t first = 4 * threadIdx.x; first < V; first += 4 * blockDim.x) {
        float v[4], most = -INFINITY;
        unsigned count = V - first < 4 ? static_cast<unsigned>(V - first) : 4;
        load4(v, z, first, 0, V, wide);
        for (unsigned k = 0; k < 4; k++)
            most = k < count ? fmaxf(most, v[k]) : most;
        if (most > s.top)
            s = rebased(s, most);
        for (unsigned k = 0; k < 4; k++) {
            float d = v[k] - (s.top == -INFINITY ? 0.0f : s.top), e = expf(d);
            s.sum += k < count ? e : 0.0f;
            s.weighted += k < count ? e * d : 0.0f;
        }
    }
    float top = block_max(s.top);
    s = rebased(s, top);
    s.sum = block_sum(s.sum);
    s.weighted = block_sum(s.weighted);
    return s;
}

template <typename T> __device__ static inline float row_total(const T *z, size_t V, bool wide) {
    float sum = 0.0f;
    for (size_t first = 4 * threadIdx.x; first < V; first += 4 * blockDim.x) {
        float v[4];
        load4(v, z, first, 0, V, wide);
        sum += (v[0] + v[1]) + (v[2] + v[3]);
    }
    return block_sum(sum);
}

/* A row's gradient: d[j] = slope(z[j]), and `at_target` more at y. */
template <typename T, typename Slope>
__device__ static inline void write_row(T *d, const T *z, size_t V, bool wide, uint32_t y,
                                        float at_target, Slope slope) {
    for (size_t first = 4 * threadIdx.x; first < V; first += 4 * blockDim.x) {
        float v[4];
        load4(v, z, first, 0, V, wide);
        for (unsigned k = 0; k < 4; k++)
            v[k] = slope(v[k]) + (first + k == y ? at_target : 0.0f);
        store4(d, v, first, 0, V, wide);
    }
}

struct constant_slope {
    float value;
    __device__ float operator()(float) const {
        return value;
    }
};
struct softmax_slope { /* p times factor·sum */
    float top, factor;
    __device__ float operator()(float z) const {
        return expf(z - top) * factor;
    }
};
struct entropy_slope { /* p·(log p - the loss) times factor·sum */
    float top, factor, log_sum, loss;
    __device__ float operator()(float z) const {
        return expf(z - top) * factor * ((z - top) - log_sum - loss);
    }
};

/* Each returns the row's term; d NULL: no gradient. z_y is read before anything is written. */

template <typename T>
__device__ static float cross_entropy_row(const T *z, T *d, size_t V, bool wide, uint32_t y,
                                          float scale, float sign) {
    float z_y = to_float(z[y]);
    struct exp_sums s = row_sums(z, V, wide);
    if (d)
        write_row(d, z, V, wide, y, -sign * scale, softmax_slope{s.top, sign * scale / s.sum});
    return sign * (logf(s.sum) - (z_y - s.top));
}

template <typename T>
__device__ static float neg_entropy_row(const T *z, T *d, size_t V, bool wide, float scale) {
    struct exp_sums s = row_sums(z, V, wide);
    float log_sum = logf(s.sum), loss = s.weighted / s.sum - log_sum;
    if (d)
        write_row(d, z, V, wide, NO_TARGET, 0.0f,
                  entropy_slope{s.top, scale / s.sum, log_sum, loss});
    return loss;
}

template <typename T>
__device__ static float correct_logit_row(const T *z, T *d, size_t V, bool wide, uint32_t y,
                                          float clip, float scale) {
    float z_y = to_float(z[y]), value = z_y - row_total(z, V, wide) / static_cast<float>(V);
    float slope = value >= clip ? scale : 0.0f;
    if (d)
        write_row(d, z, V, wide, y, slope, constant_slope{-slope / static_cast<float>(V)});
    return value >= clip || isnan(value) ? value : clip;
}

template <typename T>
__global__ static void loss_kernel(enum mm_loss_fn fn, float clip, struct mm_mat logits,
                                   const uint32_t *targets, float scale, float *losses,
                                   struct mm_mat dlogits, bool wide) {
    size_t V = logits.cols;
    uint32_t y = targets[blockIdx.x];
    const T *z = row_of<T>(logits, blockIdx.x);
    T *d = dlogits.data ? row_of<T>(dlogits, blockIdx.x) : nullptr;
    float loss = 0.0f;
    if (fn != MM_LOSS_NEG_ENTROPY && y != NO_TARGET && y >= V)
        __trap();
    if (fn == MM_LOSS_NEG_ENTROPY)
        loss = neg_entropy_row(z, d, V, wide, scale);
    else if (y == NO_TARGET) {
        if (d)
            write_row(d, z, V, wide, y, 0.0f, constant_slope{0.0f});
    } else if (fn == MM_LOSS_CORRECT_LOGIT_MINUS_AVG)
        loss = correct_logit_row(z, d, V, wide, y, clip, scale);
    else
        loss =
            cross_entropy_row(z, d, V, wide, y, scale, fn == MM_LOSS_CROSS_ENTROPY ? 1.0f : -1.0f);
    if (threadIdx.x == 0)
        losses[blockIdx.x] = loss;
}

void cuda_loss(struct mm_device *dev, enum mm_loss_fn fn, float clip_at, struct mm_mat logits,
               const uint32_t *targets, float scale, float *losses, struct mm_mat dlogits) {
    bool wide = rows_wide(logits) && rows_wide(dlogits);
    unsigned rows = blocks_for(logits.rows, 1), threads = row_threads(logits.cols);
    if (!rows)
        return;
    if (logits.dtype == MM_BF16)
        MM_LAUNCH(loss_kernel<bf16>, rows, threads, 0, dev, fn, clip_at, logits, targets, scale,
                  losses, dlogits, wide);
    else
        MM_LAUNCH(loss_kernel<float>, rows, threads, 0, dev, fn, clip_at, logits, targets, scale,
                  losses, dlogits, wide);
}
