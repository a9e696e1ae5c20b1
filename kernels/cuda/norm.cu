/* norm.cu - RMS and layer norm with the residual fused, and their gradients. A block takes a part
 * of a row (blockIdx.y of row blockIdx.x), each of its threads the same elements from the first
 * load to the last store, in registers. */
#include "kernels/cuda/block.h"

#define NORM_THREADS 1024u
/* The widest row: two groups a thread. */
#define MOST_COLUMNS ((size_t)2 * GROUP * NORM_THREADS)
/* Rows of which a block adds up dweight's and dbias's terms before the blocks' sums are added. */
#define SLAB ((size_t)32)

/* Calls launch<T, WIDE, GROUPS>(...) by dtype, width and columns. */
#define LAUNCH_ROWS(launch, dtype, wide, cols, ...)                                                \
    do {                                                                                           \
        MM_CHECK((cols) <= MOST_COLUMNS, "a norm of %zu columns, at most %zu", (cols),             \
                 MOST_COLUMNS);                                                                    \
        if ((cols) <= MOST_COLUMNS / 2)                                                            \
            BY_DTYPE_AND_WIDTH(dtype, wide, launch<1>::template with, __VA_ARGS__);                \
        else                                                                                       \
            BY_DTYPE_AND_WIDTH(dtype, wide, launch<2>::template with, __VA_ARGS__);                \
    } while (0)

/* The first column of this thread's group `i`. */
__device__ static inline size_t column_of(unsigned i) {
    return GROUP * (i * static_cast<size_t>(blockDim.x) + threadIdx.x);
}

template <typename T> __device__ static inline const T *as(const void *data) {
    return static_cast<const T *>(data);
}

__device__ static inline float group_sum(const float (&v)[GROUP]) {
    return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
}

/* This block's part of m, of C elements. */
template <typename T> __device__ static inline T *part_of(struct mm_mat m, size_t C) {
    return row_of<T>(m, blockIdx.x) + blockIdx.y * C;
}
/* Its place among the statistics. */
__device__ static inline size_t stats_at() {
    return 2 * (static_cast<size_t>(blockIdx.x) * gridDim.y + blockIdx.y);
}

static dim3 parts_grid(size_t rows, size_t parts) {
    MM_CHECK(parts <= 65535, "%zu parts", parts);
    return dim3(blocks_for(rows, 1), static_cast<unsigned>(parts));
}

/* -- forward ----------------------------------------------------------------------------------- */

struct norm_args {
    enum mm_norm_kind kind;
    float epsilon;
    struct mm_mat sum, x, delta, y;
    const void *weight, *bias;
    float *stats;
    size_t C; /* columns of a part: a kernel's own division would take longer than its sums */
};

/* v = x, or x + delta as `sum` stores it. */
template <typename T, bool WIDE>
__device__ static inline void add_residual(float (&v)[GROUP], const struct norm_args &a,
                                           size_t first) {
    size_t C = a.C;
    const T *x = part_of<T>(a.x, C);
    if (!a.delta.data)
        return load_group<WIDE>(v, x, first, 0, C);
    float d[GROUP];
    load_group<WIDE>(v, x, first, 0, C);
    load_group<WIDE>(d, row_of<T>(a.delta, blockIdx.x), first, 0, C);
    for (unsigned k = 0; k < GROUP; k++)
        v[k] = to_float(from_float<T>(v[k] + d[k]));
    store_group<WIDE>(row_of<T>(a.sum, blockIdx.x), v, first, 0, C);
}

template <typename T, bool WIDE, unsigned GROUPS>
__global__ static void __launch_bounds__(NORM_THREADS) norm_kernel(struct norm_args a) {
    size_t C = a.C;
    T *out = part_of<T>(a.y, C);
    float v[GROUPS][GROUP] = {}, w[GROUPS][GROUP] = {}, b[GROUP] = {};
    float total = 0.0f, squares = 0.0f, mean = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < GROUPS; i++)
        if (column_of(i) < C) {
            load_group<WIDE>(w[i], as<T>(a.weight), column_of(i), 0, C);
            add_residual<T, WIDE>(v[i], a, column_of(i));
            total += group_sum(v[i]);
        }
    if (a.kind == MM_LAYER_NORM)
        mean = block_sum(total) / static_cast<float>(C);
#pragma unroll
    for (unsigned i = 0; i < GROUPS; i++)
        for (unsigned k = 0; k < GROUP; k++) {
            bool inside = column_of(i) + (WIDE ? 0 : k) < C; /* of a whole group, all or none */
            v[i][k] = inside ? v[i][k] - mean : 0.0f;
            squares += v[i][k] * v[i][k];
        }
    float inverse = 1.0f / sqrtf(block_sum(squares) / static_cast<float>(C) + a.epsilon);
    if (inverse == 0.0f)
        inverse = nanf("");
#pragma unroll
    for (unsigned i = 0; i < GROUPS; i++)
        if (column_of(i) < C) {
            if (a.bias)
                load_group<WIDE>(b, as<T>(a.bias), column_of(i), 0, C);
            for (unsigned k = 0; k < GROUP; k++)
                v[i][k] = v[i][k] * inverse * w[i][k] + b[k];
            store_group<WIDE>(out, v[i], column_of(i), 0, C);
        }
    if (threadIdx.x == 0) {
        a.stats[stats_at()] = mean;
        a.stats[stats_at() + 1] = inverse;
    }
}

template <unsigned GROUPS> struct launch_norm {
    template <typename T, bool WIDE>
    static void with(struct mm_device *dev, const struct norm_args &a, size_t parts) {
        auto kernel = norm_kernel<T, WIDE, GROUPS>;
        MM_LAUNCH(kernel, parts_grid(a.x.rows, parts), row_threads(a.x.cols / parts, NORM_THREADS),
                  0, dev, a);
    }
};

void cuda_norm(struct mm_device *dev, const struct mm_norm *how, struct mm_mat sum, struct mm_mat x,
               struct mm_mat delta, struct mm_mat y, float *stats) {
    size_t C = x.cols / how->parts;
    bool wide = C % GROUP == 0 && rows_wide(x) && rows_wide(y) && aligned16(how->weight) &&
                aligned16(how->bias) && (!delta.data || (rows_wide(sum) && rows_wide(delta)));
    MM_CHECK(how->parts == 1 || !delta.data, "a residual beside %zu parts", how->parts);
    struct norm_args a = {how->kind, how->epsilon, sum,       x,     delta,
                          y,         how->weight,  how->bias, stats, C};
    if (x.rows)
        LAUNCH_ROWS(launch_norm, x.dtype, wide, C, dev, a, how->parts);
}

/* -- gradient ---------------------------------------------------------------------------------- */

struct norm_grad_args {
    enum mm_norm_kind kind;
    struct mm_mat dx, dy, x;
    const float *stats;
    const void *weight;
    size_t C; /* columns of a part */
};

/* With u = (x - mean)·r normalized and v = dy·weight:
 * RMS: dx += r·(v - u·avg(v·u)); layer norm: dx += r·(v - avg(v) - u·avg(v·u)). */
template <typename T, bool WIDE, unsigned GROUPS>
__global__ static void __launch_bounds__(NORM_THREADS) norm_grad_kernel(struct norm_grad_args a) {
    size_t C = a.C;
    T *dx = part_of<T>(a.dx, C);
    float mean = a.stats[stats_at()], r = a.stats[stats_at() + 1];
    float u[GROUPS][GROUP] = {}, v[GROUPS][GROUP] = {}, out[GROUPS][GROUP] = {};
    float sum = 0.0f, dot = 0.0f, average = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < GROUPS; i++)
        if (column_of(i) < C) {
            float w[GROUP];
            load_group<WIDE>(u[i], part_of<T>(a.x, C), column_of(i), 0, C);
            load_group<WIDE>(v[i], part_of<T>(a.dy, C), column_of(i), 0, C);
            load_group<WIDE>(w, as<T>(a.weight), column_of(i), 0, C);
            load_group<WIDE>(out[i], dx, column_of(i), 0, C);
            for (unsigned k = 0; k < GROUP; k++) { /* beyond C, v is 0 */
                u[i][k] = (u[i][k] - mean) * r;
                v[i][k] *= w[k];
                sum += v[i][k];
                dot += v[i][k] * u[i][k];
            }
        }
    if (a.kind == MM_LAYER_NORM)
        average = block_sum(sum) / static_cast<float>(C);
    float slope = block_sum(dot) / static_cast<float>(C);
#pragma unroll
    for (unsigned i = 0; i < GROUPS; i++)
        if (column_of(i) < C) {
            for (unsigned k = 0; k < GROUP; k++)
                out[i][k] += r * (v[i][k] - average - u[i][k] * slope);
            store_group<WIDE>(dx, out[i], column_of(i), 0, C);
        }
}

template <unsigned GROUPS> struct launch_norm_grad {
    template <typename T, bool WIDE>
    static void with(struct mm_device *dev, const struct norm_grad_args &a, size_t parts) {
        auto kernel = norm_grad_kernel<T, WIDE, GROUPS>;
        MM_LAUNCH(kernel, parts_grid(a.x.rows, parts), row_threads(a.x.cols / parts, NORM_THREADS),
                  0, dev, a);
    }
};

/* sums [slabs, 2, C] = over each slab of parts of rows, dy·u and dy by column. */
template <typename T>
__global__ static void slab_kernel(struct norm_grad_args a, size_t parts, float *sums) {
    size_t C = a.C, column = blockIdx.y * static_cast<size_t>(blockDim.x) + threadIdx.x;
    size_t n = a.x.rows * parts, first = blockIdx.x * SLAB,
           last = first + SLAB < n ? first + SLAB : n;
    size_t row = first / parts, part = first % parts;
    float weight = 0.0f, bias = 0.0f;
    if (column >= C)
        return;
#pragma unroll 8
    for (size_t i = first; i < last; i++) {
        size_t at = part * C + column;
        float g = to_float(row_of<T>(a.dy, row)[at]), x = to_float(row_of<T>(a.x, row)[at]);
        weight += g * ((x - a.stats[2 * i]) * a.stats[2 * i + 1]);
        bias += g;
        part = part + 1 < parts ? part + 1 : 0;
        row += part == 0;
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
#pragma unroll 8
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
static void weight_grads(struct mm_device *dev, const struct norm_grad_args &a, size_t parts,
                         float *dweight, float *dbias) {
    size_t C = a.x.cols / parts;
    unsigned slabs = blocks_for(a.x.rows * parts, SLAB), across = blocks_for(C, BLOCK);
    float *sums = static_cast<float *>(cuda_scratch(dev, slabs * 2 * C * sizeof(float)));
    MM_LAUNCH(slab_kernel<T>, dim3(slabs, across), BLOCK, 0, dev, a, parts, sums);
    /* few columns, many slabs: small blocks reach more processors */
    MM_LAUNCH(slabs_kernel, blocks_for(C, WARP), WARP, 0, dev, sums, slabs, C, dweight, dbias);
}

void cuda_norm_grad(struct mm_device *dev, const struct mm_norm *how, struct mm_mat dx,
                    struct mm_mat dy, struct mm_mat x, const float *stats, float *dweight,
                    float *dbias) {
    size_t C = x.cols / how->parts;
    bool wide =
        C % GROUP == 0 && rows_wide(dx) && rows_wide(dy) && rows_wide(x) && aligned16(how->weight);
    struct norm_grad_args a = {how->kind, dx, dy, x, stats, how->weight, C};
    if (!x.rows || !x.cols)
        return;
    LAUNCH_ROWS(launch_norm_grad, x.dtype, wide, C, dev, a, how->parts);
    if (dweight || dbias)
        MM_BY_DTYPE(x.dtype, weight_grads, dev, a, how->parts, dweight, dbias);
}
