/* norm.cu - RMS and layer norm with the residual fused, and their gradients. A block takes a row; a
 * thread meets only its own elements again, so that rows need no barrier but those of the sums. */
#include "kernels/cuda/block.h"

/* Rows of which a block adds up dweight's and dbias's terms before the blocks' sums are added. */
#define SLAB ((size_t)32)

/* -- forward ----------------------------------------------------------------------------------- */

struct norm_args {
    enum mm_norm_kind kind;
    float epsilon;
    struct mm_mat sum, x, delta, y;
    const void *weight, *bias;
    float *stats;
    bool wide;
};

/* Writes x + delta where there is a delta; returns this thread's sum of the row. */
template <typename T>
__device__ static inline float add_residual(const struct norm_args &a, const T *x, T *sum) {
    size_t C = a.x.cols;
    float total = 0.0f, v[4], d[4];
    if (!a.delta.data && a.kind == MM_RMS_NORM)
        return 0.0f;
    for (size_t first = 4 * threadIdx.x; first < C; first += 4 * blockDim.x) {
        load4(v, x, first, 0, C, a.wide);
        if (a.delta.data) {
            load4(d, row_of<T>(a.delta, blockIdx.x), first, 0, C, a.wide);
            for (unsigned k = 0; k < 4; k++)
                v[k] = to_float(from_float<T>(v[k] + d[k]));
            store4(sum, v, first, 0, C, a.wide);
        }
        total += (v[0] + v[1]) + (v[2] + v[3]);
    }
    return total;
}

template <typename T> __global__ static void norm_kernel(struct norm_args a) {
    size_t C = a.x.cols;
    const T *in = row_of<T>(a.x, blockIdx.x);
    T *out = row_of<T>(a.y, blockIdx.x);
    float v[4], w[4], b[4] = {0.0f, 0.0f, 0.0f, 0.0f}, squares = 0.0f, mean = 0.0f;
    T *sum = a.delta.data ? row_of<T>(a.sum, blockIdx.x) : nullptr;
    float total = add_residual(a, in, sum);
    in = a.delta.data ? sum : in;
    if (a.kind == MM_LAYER_NORM)
        mean = block_sum(total) / static_cast<float>(C);
    for (size_t first = 4 * threadIdx.x; first < C; first += 4 * blockDim.x) {
        load4(v, in, first, 0, C, a.wide);
        for (unsigned k = 0; k < 4; k++) {
            float centered = first + k < C ? v[k] - mean : 0.0f;
            squares += centered * centered;
        }
    }
    float inverse = 1.0f / sqrtf(block_sum(squares) / static_cast<float>(C) + a.epsilon);
    for (size_t first = 4 * threadIdx.x; first < C; first += 4 * blockDim.x) {
        load4(v, in, first, 0, C, a.wide);
        load4(w, static_cast<const T *>(a.weight), first, 0, C, a.wide);
        if (a.bias)
            load4(b, static_cast<const T *>(a.bias), first, 0, C, a.wide);
        for (unsigned k = 0; k < 4; k++)
            v[k] = (v[k] - mean) * inverse * w[k] + b[k];
        store4(out, v, first, 0, C, a.wide);
    }
    if (threadIdx.x == 0) {
        a.stats[2 * blockIdx.x] = mean;
        a.stats[2 * blockIdx.x + 1] = inverse;
    }
}

void cuda_norm(struct mm_device *dev, enum mm_norm_kind kind, float epsilon, struct mm_mat sum,
               struct mm_mat x, struct mm_mat delta, const void *weight, const void *bias,
               struct mm_mat y, float *stats) {
    bool wide = rows_wide(x) && rows_wide(y) && aligned4(weight, x.dtype) &&
                aligned4(bias, x.dtype) && (!delta.data || (rows_wide(sum) && rows_wide(delta)));
    struct norm_args a = {kind, epsilon, sum, x, delta, y, weight, bias, stats, wide};
    unsigned rows = blocks_for(x.rows, 1), threads = row_threads(x.cols);
    if (rows && x.dtype == MM_BF16)
        MM_LAUNCH(norm_kernel<bf16>, rows, threads, 0, dev, a);
    else if (rows)
        MM_LAUNCH(norm_kernel<float>, rows, threads, 0, dev, a);
}

/* -- gradient ---------------------------------------------------------------------------------- */

struct norm_grad_args {
    enum mm_norm_kind kind;
    struct mm_mat dx, dy, x;
    const float *stats;
    const void *weight;
    bool wide;
};

/* With u = (x - mean)·r normalized and v = dy·weight:
 * RMS: dx += r·(v - u·avg(v·u)); layer norm: dx += r·(v - avg(v) - u·avg(v·u)). */
template <typename T> __global__ static void norm_grad_kernel(struct norm_grad_args a) {
    size_t C = a.x.cols;
    const T *x = row_of<T>(a.x, blockIdx.x), *dy = row_of<T>(a.dy, blockIdx.x);
    const T *weight = static_cast<const T *>(a.weight);
    T *dx = row_of<T>(a.dx, blockIdx.x);
    float mean = a.stats[2 * blockIdx.x], r = a.stats[2 * blockIdx.x + 1];
    float u[4], v[4], w[4], out[4], sum = 0.0f, dot = 0.0f, average = 0.0f;
    for (size_t first = 4 * threadIdx.x; first < C; first += 4 * blockDim.x) {
        load4(u, x, first, 0, C, a.wide);
        load4(v, dy, first, 0, C, a.wide);
        load4(w, weight, first, 0, C, a.wide); /* 0 beyond C, and so the products */
        for (unsigned k = 0; k < 4; k++) {
            sum += v[k] * w[k];
            dot += v[k] * w[k] * ((u[k] - mean) * r);
        }
    }
    if (a.kind == MM_LAYER_NORM)
        average = block_sum(sum) / static_cast<float>(C);
    float slope = block_sum(dot) / static_cast<float>(C);
    for (size_t first = 4 * threadIdx.x; first < C; first += 4 * blockDim.x) {
        load4(u, x, first, 0, C, a.wide);
        load4(v, dy, first, 0, C, a.wide);
        load4(w, weight, first, 0, C, a.wide);
        load4(out, dx, first, 0, C, a.wide);
        for (unsigned k = 0; k < 4; k++)
            out[k] += r * (v[k] * w[k] - average - (u[k] - mean) * r * slope);
        store4(dx, out, first, 0, C, a.wide);
    }
}

/* sums [slabs, 2, C] = over each slab of rows, dy·u and dy by column. */
template <typename T> __global__ static void slab_kernel(struct norm_grad_args a, float *sums) {
    size_t C = a.x.cols, column = blockIdx.y * static_cast<size_t>(blockDim.x) + threadIdx.x;
    size_t first = blockIdx.x * SLAB, last = first + SLAB < a.x.rows ? first + SLAB : a.x.rows;
    float weight = 0.0f, bias = 0.0f;
    if (column >= C)
        return;
    for (size_t i = first; i < last; i++) {
        float g = to_float(row_of<T>(a.dy, i)[column]), x = to_float(row_of<T>(a.x, i)[column]);
        weight += g * ((x - a.stats[2 * i]) * a.stats[2 * i + 1]);
        bias += g;
    }
    sums[2 * blockIdx.x * C + column] = weight;
    sums[(2 * blockIdx.x + 1) * C + column] = bias;
}

__global__ static void slabs_kernel(const float *sums, size_t slabs, size_t C, float *dweight,
                                    float *dbias) {
    size_t column = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x;
    float weight = 0.0f, bias = 0.0f;
    if (column >= C)
        return;
    for (size_t i = 0; i < slabs; i++) {
        weight += sums[2 * i * C + column];
        bias += sums[(2 * i + 1) * C + column];
    }
    if (dweight)
        dweight[column] += weight;
    if (dbias)
        dbias[column] += bias;
}

template <typename T>
static void norm_grad(struct mm_device *dev, const struct norm_grad_args &a, float *dweight,
                      float *dbias) {
    size_t C = a.x.cols;
    unsigned rows = blocks_for(a.x.rows, 1), slabs = blocks_for(a.x.rows, SLAB);
    unsigned threads = row_threads(4 * C), across = blocks_for(C, threads);
    MM_LAUNCH(norm_grad_kernel<T>, rows, row_threads(C), 0, dev, a);
    if (!dweight && !dbias)
        return;
    float *sums = static_cast<float *>(cuda_scratch(dev, slabs * 2 * C * sizeof(float)));
    MM_LAUNCH(slab_kernel<T>, dim3(slabs, across), threads, 0, dev, a, sums);
    MM_LAUNCH(slabs_kernel, across, threads, 0, dev, sums, slabs, C, dweight, dbias);
}

void cuda_norm_grad(struct mm_device *dev, enum mm_norm_kind kind, struct mm_mat dx,
                    struct mm_mat dy, struct mm_mat x, const float *stats, const void *weight,
                    float *dweight, float *dbias) {
    bool wide = rows_wide(dx) && rows_wide(dy) && rows_wide(x) && aligned4(weight, x.dtype);
    struct norm_grad_args a = {kind, dx, dy, x, stats, weight, wide};
    if (x.rows && x.cols)
        MM_BY_DTYPE(x.dtype, norm_grad, dev, a, dweight, dbias);
}
