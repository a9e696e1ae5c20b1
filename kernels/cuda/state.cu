/* state.cu - losses on hidden states (docs/method.md 4): a block a token, whose states it reads
 * twice, for the sums and for the gradient. */
#include "kernels/cuda/block.h"

struct state_args {
    enum mm_state_loss kind;
    struct mm_mat states, others;
    const uint32_t *targets;
    float scale;
    const double *factor;
    float *values;
    struct mm_mat dx;
};

/* 1/x, but 0 of 0. */
__device__ static inline float inverse(float x) {
    return x == 0.0f ? 0.0f : 1.0f / x;
}

/* The gradient of a token's term: with_h·h + with_r·r, but with_h·(h - r) of a distance, which
 * nothing may cancel from. */
struct state_slope {
    float value, with_h, with_r;
};

__device__ static inline struct state_slope distance_slope(bool square, float squared,
                                                           float scale) {
    float value = square ? squared : sqrtf(squared);
    return {value, scale * (square ? 2.0f : inverse(value)), 0.0f};
}

__device__ static inline struct state_slope length_slope(float hh, float scale) {
    float length = sqrtf(hh);
    return {length, scale * inverse(length), 0.0f};
}

__device__ static inline struct state_slope cosine_slope(float hh, float rr, float hr,
                                                         float scale) {
    float to_h = inverse(sqrtf(hh)), to_r = inverse(sqrtf(rr)), cosine = hr * to_h * to_r;
    if (!(cosine > 0.0f))
        return {isnan(cosine) ? cosine : 0.0f, 0.0f, 0.0f};
    return {cosine, -scale * to_h * cosine * to_h, scale * to_h * to_r};
}

/* Group `first` of the token's h, and of r or zeros; of a distance h - r and r. */
template <typename T, bool WIDE>
__device__ static inline void load_states(float (&h)[GROUP], float (&r)[GROUP],
                                          const struct state_args &a, size_t first) {
    size_t C = a.states.cols;
    load_group<WIDE>(h, row_of<T>(a.states, blockIdx.x), first, 0, C);
    for (unsigned k = 0; k < GROUP; k++)
        r[k] = 0.0f;
    if (a.kind != MM_STATE_LENGTH)
        load_group<WIDE>(r, row_of<T>(a.others, blockIdx.x), first, 0, C);
    if (a.kind <= MM_STATE_SQUARE_DISTANCE)
        for (unsigned k = 0; k < GROUP; k++)
            h[k] -= r[k];
}

template <typename T, bool WIDE>
__device__ static inline struct state_slope state_sums(const struct state_args &a) {
    float hh = 0.0f, rr = 0.0f, hr = 0.0f;
    for (size_t first = GROUP * threadIdx.x; first < a.states.cols; first += GROUP * blockDim.x) {
        float h[GROUP], r[GROUP];
        load_states<T, WIDE>(h, r, a, first);
        for (unsigned k = 0; k < GROUP; k++) {
            hh += h[k] * h[k];
            rr += r[k] * r[k];
            hr += h[k] * r[k];
        }
    }
    float scale = a.factor ? a.scale * static_cast<float>(*a.factor) : a.scale;
    hh = block_sum(hh);
    if (a.kind == MM_STATE_LENGTH)
        return length_slope(hh, scale);
    if (a.kind != MM_STATE_COSINE)
        return distance_slope(a.kind == MM_STATE_SQUARE_DISTANCE, hh, scale);
    rr = block_sum(rr);
    return cosine_slope(hh, rr, block_sum(hr), scale);
}

template <typename T, bool WIDE>
__global__ static void __launch_bounds__(BLOCK) state_kernel(struct state_args a) {
    size_t C = a.states.cols;
    if (a.targets[blockIdx.x] == MM_NO_TOKEN) {
        if (a.values && threadIdx.x == 0)
            a.values[blockIdx.x] = 0.0f;
        return;
    }
    struct state_slope slope = state_sums<T, WIDE>(a);
    if (a.values && threadIdx.x == 0)
        a.values[blockIdx.x] = slope.value;
    if (!a.dx.data)
        return;
    T *dx = row_of<T>(a.dx, blockIdx.x);
    for (size_t first = GROUP * threadIdx.x; first < C; first += GROUP * blockDim.x) {
        float h[GROUP], r[GROUP], d[GROUP];
        load_states<T, WIDE>(h, r, a, first);
        load_group<WIDE>(d, dx, first, 0, C);
        for (unsigned k = 0; k < GROUP; k++)
            d[k] += slope.with_h * h[k] + slope.with_r * r[k];
        store_group<WIDE>(dx, d, first, 0, C);
    }
}

template <typename T, bool WIDE>
static void state_loss(struct mm_device *dev, const state_args &a) {
    auto kernel = state_kernel<T, WIDE>;
    MM_LAUNCH(kernel, blocks_for(a.states.rows, 1), row_threads(a.states.cols, BLOCK), 0, dev, a);
}

void cuda_state_loss(struct mm_device *dev, enum mm_state_loss kind, struct mm_mat states,
                     struct mm_mat others, const uint32_t *targets, float scale,
                     const double *factor, float *values, struct mm_mat dx) {
    struct state_args a = {kind, states, others, targets, scale, factor, values, dx};
    if (states.rows)
        BY_DTYPE_AND_WIDTH(states.dtype, rows_wide(states) && rows_wide(others) && rows_wide(dx),
                           state_loss, dev, a);
}

__global__ static void add_squares_kernel(double *sum, const double *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        *sum += x[i] * x[i];
}

void cuda_add_squares(struct mm_device *dev, double *sum, const double *x, size_t n) {
    MM_LAUNCH(add_squares_kernel, 1, 1, 0, dev, sum, x, n);
}
