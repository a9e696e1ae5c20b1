/* layer.cu - what lies between the matrix products: embedding, rotation, activations. Norms are in
 * norm.cu. */
#include "kernels/cuda/block.h"

/* Columns of a row that one block of BLOCK threads, four each, takes. */
#define TILE (4 * (size_t)BLOCK)

/* A grid of rows by tiles of columns. */
static dim3 tiles(size_t rows, size_t cols) {
    size_t across = (cols + TILE - 1) / TILE;
    MM_CHECK(across <= 65535, "%zu columns", cols);
    return dim3(blocks_for(rows, 1), static_cast<unsigned>(across));
}

/* This thread's first column. */
__device__ static inline size_t tile_first() {
    return TILE * blockIdx.y + 4 * threadIdx.x;
}

/* -- embedding --------------------------------------------------------------------------------- */

template <typename T>
__global__ static void embed_kernel(struct mm_mat x, struct mm_mat table, const uint32_t *tokens,
                                    bool wide) {
    size_t first = tile_first();
    uint32_t token = tokens[blockIdx.x];
    if (token >= table.rows)
        __trap();
    if (first >= x.cols)
        return;
    float v[4];
    load4(v, row_of<T>(table, token), first, 0, x.cols, wide);
    store4(row_of<T>(x, blockIdx.x), v, first, 0, x.cols, wide);
}

void cuda_embed(struct mm_device *dev, struct mm_mat x, struct mm_mat table,
                const uint32_t *tokens) {
    bool wide = rows_wide(x) && rows_wide(table);
    dim3 grid = tiles(x.rows, x.cols);
    if (x.rows && x.cols && x.dtype == MM_BF16)
        MM_LAUNCH(embed_kernel<bf16>, grid, row_threads(x.cols), 0, dev, x, table, tokens, wide);
    else if (x.rows && x.cols)
        MM_LAUNCH(embed_kernel<float>, grid, row_threads(x.cols), 0, dev, x, table, tokens, wide);
}

/* A block belongs to a position i; that of a token's first position adds all of the token's rows,
 * in order. */
template <typename T>
__global__ static void embed_grad_kernel(struct mm_mat dtable, struct mm_mat dx,
                                         const uint32_t *tokens, bool wide) {
    size_t first = tile_first();
    uint32_t token = tokens[blockIdx.x];
    if (first >= dx.cols)
        return;
    for (size_t i = 0; i < blockIdx.x; i++)
        if (tokens[i] == token)
            return;
    float sum[4], term[4], *out = row_of<float>(dtable, token);
    load4(sum, out, first, 0, dx.cols, wide);
    for (size_t i = blockIdx.x; i < dx.rows; i++)
        if (tokens[i] == token) {
            load4(term, row_of<T>(dx, i), first, 0, dx.cols, wide);
            for (unsigned k = 0; k < 4; k++)
                sum[k] += term[k];
        }
    store4(out, sum, first, 0, dx.cols, wide);
}

void cuda_embed_grad(struct mm_device *dev, struct mm_mat dtable, struct mm_mat dx,
                     const uint32_t *tokens) {
    bool wide = rows_wide(dx) && rows_wide(dtable);
    dim3 grid = tiles(dx.rows, dx.cols);
    if (dx.rows && dx.cols && dx.dtype == MM_BF16)
        MM_LAUNCH(embed_grad_kernel<bf16>, grid, row_threads(dx.cols), 0, dev, dtable, dx, tokens,
                  wide);
    else if (dx.rows && dx.cols)
        MM_LAUNCH(embed_grad_kernel<float>, grid, row_threads(dx.cols), 0, dev, dtable, dx, tokens,
                  wide);
}

/* -- rotation ---------------------------------------------------------------------------------- */

template <typename T>
__global__ static void rope_kernel(struct mm_mat qkv, struct mm_heads heads, size_t T_,
                                   const float *cosine, const float *sine, float sign) {
    size_t half = heads.rotary_dim / 2, t = blockIdx.x % T_;
    size_t pairs = (heads.heads + heads.kv_heads) * half;
    T *row = row_of<T>(qkv, blockIdx.x);
    for (size_t pair = threadIdx.x; pair < pairs; pair += blockDim.x) {
        size_t h = pair / half, i = pair % half;
        size_t at = h < heads.heads ? heads.q_first + h * heads.q_step
                                    : heads.k_first + (h - heads.heads) * heads.k_step;
        float low = to_float(row[at + i]), high = to_float(row[at + i + half]);
        float c = cosine[t * half + i], s = sign * sine[t * half + i];
        row[at + i] = from_float<T>(low * c - high * s);
        row[at + i + half] = from_float<T>(high * c + low * s);
    }
}

void cuda_rope(struct mm_device *dev, struct mm_mat qkv, const struct mm_heads *heads, size_t T,
               const float *cosine, const float *sine, bool inverse) {
    size_t pairs = (heads->heads + heads->kv_heads) * (heads->rotary_dim / 2);
    unsigned rows = blocks_for(qkv.rows, 1), threads = row_threads(4 * pairs);
    float sign = inverse ? -1.0f : 1.0f;
    if (!rows || !pairs)
        return;
    if (qkv.dtype == MM_BF16)
        MM_LAUNCH(rope_kernel<bf16>, rows, threads, 0, dev, qkv, *heads, T, cosine, sine, sign);
    else
        MM_LAUNCH(rope_kernel<float>, rows, threads, 0, dev, qkv, *heads, T, cosine, sine, sign);
}

/* -- activations ------------------------------------------------------------------------------- */

__device__ static inline float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

/* The cumulative normal distribution. */
__device__ static inline float normal_cdf(float x) {
    return 0.5f * (1.0f + erff(x * 0.70710678118654752f));
}

struct activation_grads {
    float x, up;
};

__device__ static inline float activated(enum mm_activation kind, float x, float up) {
    return kind == MM_SWIGLU ? x * sigmoid(x) * up : x * normal_cdf(x);
}

__device__ static inline struct activation_grads activation_grad(enum mm_activation kind, float x,
                                                                 float up, float dh) {
    if (kind == MM_GELU) {
        float density = 0.39894228040143268f * expf(-0.5f * x * x);
        return {dh * (normal_cdf(x) + x * density), 0.0f};
    }
    float s = sigmoid(x);
    return {dh * up * s * (1.0f + x * (1.0f - s)), dh * x * s};
}

template <typename T>
__global__ static void activate_kernel(enum mm_activation kind, struct mm_mat h, struct mm_mat u,
                                       bool wide) {
    size_t M = h.cols, first = tile_first();
    if (first >= M)
        return;
    const T *in = row_of<T>(u, blockIdx.x);
    float x[4], up[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    load4(x, in, first, 0, M, wide);
    if (kind == MM_SWIGLU)
        load4(up, in + M, first, 0, M, wide);
    for (unsigned k = 0; k < 4; k++)
        x[k] = activated(kind, x[k], up[k]);
    store4(row_of<T>(h, blockIdx.x), x, first, 0, M, wide);
}

template <typename T>
__global__ static void activate_grad_kernel(enum mm_activation kind, struct mm_mat du,
                                            struct mm_mat dh, struct mm_mat u, bool wide) {
    size_t M = dh.cols, first = tile_first();
    if (first >= M)
        return;
    const T *in = row_of<T>(u, blockIdx.x);
    T *out = row_of<T>(du, blockIdx.x);
    float x[4], g[4], up[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    load4(x, in, first, 0, M, wide);
    load4(g, row_of<T>(dh, blockIdx.x), first, 0, M, wide);
    if (kind == MM_SWIGLU)
        load4(up, in + M, first, 0, M, wide);
    for (unsigned k = 0; k < 4; k++) {
        struct activation_grads d = activation_grad(kind, x[k], up[k], g[k]);
        x[k] = d.x;
        up[k] = d.up;
    }
    store4(out, x, first, 0, M, wide);
    if (kind == MM_SWIGLU)
        store4(out + M, up, first, 0, M, wide);
}

void cuda_activate(struct mm_device *dev, enum mm_activation kind, struct mm_mat h,
                   struct mm_mat u) {
    /* The second half of a row begins at element M. */
    bool wide = rows_wide(h) && rows_wide(u) && h.cols % 4 == 0;
    dim3 grid = tiles(h.rows, h.cols);
    if (h.rows && h.cols && h.dtype == MM_BF16)
        MM_LAUNCH(activate_kernel<bf16>, grid, row_threads(h.cols), 0, dev, kind, h, u, wide);
    else if (h.rows && h.cols)
        MM_LAUNCH(activate_kernel<float>, grid, row_threads(h.cols), 0, dev, kind, h, u, wide);
}

void cuda_activate_grad(struct mm_device *dev, enum mm_activation kind, struct mm_mat du,
                        struct mm_mat dh, struct mm_mat u) {
    bool wide = rows_wide(du) && rows_wide(dh) && rows_wide(u) && dh.cols % 4 == 0;
    dim3 grid = tiles(dh.rows, dh.cols);
    if (dh.rows && dh.cols && dh.dtype == MM_BF16)
        MM_LAUNCH(activate_grad_kernel<bf16>, grid, row_threads(dh.cols), 0, dev, kind, du, dh, u,
                  wide);
    else if (dh.rows && dh.cols)
        MM_LAUNCH(activate_grad_kernel<float>, grid, row_threads(dh.cols), 0, dev, kind, du, dh, u,
                  wide);
}
