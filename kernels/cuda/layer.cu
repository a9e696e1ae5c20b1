/* layer.cu - the operations between the matrix products: embedding, rotation, activations. The
 * norms are in norm.cu. */
#include "kernels/cuda/block.h"

/* Columns of a row that one block takes, a group a thread. */
#define TILE (GROUP * (size_t)BLOCK)

/* A grid of rows by tiles of columns. */
static dim3 tiles(size_t rows, size_t cols) {
    size_t across = (cols + TILE - 1) / TILE;
    MM_CHECK(across <= 65535, "%zu columns", cols);
    return dim3(blocks_for(rows, 1), static_cast<unsigned>(across));
}

/* This thread's first column. */
__device__ static inline size_t tile_first() {
    return TILE * blockIdx.y + GROUP * threadIdx.x;
}

/* -- embedding --------------------------------------------------------------------------------- */

template <typename T, bool WIDE>
__global__ static void embed_kernel(struct mm_mat x, struct mm_mat table, const uint32_t *tokens) {
    size_t first = tile_first();
    uint32_t token = tokens[blockIdx.x];
    if (token >= table.rows)
        __trap();
    if (first >= x.cols)
        return;
    float v[GROUP];
    load_group<WIDE>(v, row_of<T>(table, token), first, 0, x.cols);
    store_group<WIDE>(row_of<T>(x, blockIdx.x), v, first, 0, x.cols);
}

template <typename T, bool WIDE>
static void embed(struct mm_device *dev, struct mm_mat x, struct mm_mat table,
                  const uint32_t *tokens) {
    auto kernel = embed_kernel<T, WIDE>;
    MM_LAUNCH(kernel, tiles(x.rows, x.cols), row_threads(x.cols, BLOCK), 0, dev, x, table, tokens);
}

void cuda_embed(struct mm_device *dev, struct mm_mat x, struct mm_mat table,
                const uint32_t *tokens) {
    if (x.rows && x.cols)
        BY_DTYPE_AND_WIDTH(x.dtype, rows_wide(x) && rows_wide(table), embed, dev, x, table, tokens);
}

struct occurrence {
    uint32_t token, at;
};

/* sorted [n] = the tokens with their places, by token, then by place: each thread counts what comes
 * before its own. */
__global__ static void sort_kernel(struct occurrence *sorted, const uint32_t *tokens, uint32_t n) {
    __shared__ uint32_t tile[BLOCK];
    uint32_t at = blockIdx.x * BLOCK + threadIdx.x, token = at < n ? tokens[at] : 0, before = 0;
    for (uint32_t first = 0; first < n; first += BLOCK) {
        uint32_t count = n - first < BLOCK ? n - first : BLOCK;
        __syncthreads();
        if (threadIdx.x < count)
            tile[threadIdx.x] = tokens[first + threadIdx.x];
        __syncthreads();
#pragma unroll 8
        for (uint32_t i = 0; i < count; i++)
            before += tile[i] < token || (tile[i] == token && first + i < at);
    }
    if (at < n)
        sorted[before] = {token, at};
}

/* Rows of a frequent token that are under way at once; they are added one by one, in order. */
#define EMBED_AHEAD 4u

/* A block belongs to an occurrence; that of a token's first adds all of the token's rows. */
template <typename T, bool WIDE>
__global__ static void embed_grad_kernel(struct mm_mat dtable, struct mm_mat dx,
                                         const struct occurrence *sorted, uint32_t skipped) {
    size_t first = tile_first();
    uint32_t token = sorted[blockIdx.x].token;
    if (first >= dx.cols || token == skipped ||
        (blockIdx.x > 0 && sorted[blockIdx.x - 1].token == token))
        return;
    if (token >= dtable.rows)
        __trap();
    float sum[GROUP], term[EMBED_AHEAD][GROUP] = {}, *out = row_of<float>(dtable, token);
    load_group<WIDE>(sum, out, first, 0, dx.cols);
    for (size_t i = blockIdx.x; i < dx.rows && sorted[i].token == token; i += EMBED_AHEAD) {
        bool own[EMBED_AHEAD];
#pragma unroll
        for (unsigned j = 0; j < EMBED_AHEAD; j++) {
            own[j] = i + j < dx.rows && sorted[i + j].token == token;
            if (own[j])
                load_group<WIDE>(term[j], row_of<T>(dx, sorted[i + j].at), first, 0, dx.cols);
        }
#pragma unroll
        for (unsigned j = 0; j < EMBED_AHEAD; j++)
            for (unsigned k = 0; k < GROUP; k++)
                sum[k] = own[j] ? sum[k] + term[j][k] : sum[k];
    }
    store_group<WIDE>(out, sum, first, 0, dx.cols);
}

template <typename T, bool WIDE>
static void embed_grad(struct mm_device *dev, struct mm_mat dtable, struct mm_mat dx,
                       const uint32_t *tokens, uint32_t skipped) {
    uint32_t n = static_cast<uint32_t>(dx.rows);
    struct occurrence *sorted =
        static_cast<struct occurrence *>(cuda_scratch(dev, n * sizeof *sorted));
    auto kernel = embed_grad_kernel<T, WIDE>;
    MM_LAUNCH(sort_kernel, blocks_for(n, BLOCK), BLOCK, 0, dev, sorted, tokens, n);
    MM_LAUNCH(kernel, tiles(n, dx.cols), row_threads(dx.cols, BLOCK), 0, dev, dtable, dx, sorted,
              skipped);
}

void cuda_embed_grad(struct mm_device *dev, struct mm_mat dtable, struct mm_mat dx,
                     const uint32_t *tokens, uint32_t skipped) {
    if (dx.rows && dx.cols)
        BY_DTYPE_AND_WIDTH(dx.dtype, rows_wide(dx) && rows_wide(dtable), embed_grad, dev, dtable,
                           dx, tokens, skipped);
}

/* -- rotation ---------------------------------------------------------------------------------- */

struct rope_args {
    struct mm_mat qkv;
    struct mm_heads heads;
    unsigned T, half, groups; /* pairs of a head, and the groups they make */
    const float *cosine, *sine;
    float sign;
};

/* A block takes a row, a thread a group of a head's pairs. */
template <typename T, bool WIDE> __global__ static void rope_kernel(struct rope_args a) {
    const struct mm_heads &h = a.heads;
    unsigned queries = static_cast<unsigned>(h.heads), half = a.half;
    unsigned groups = a.groups, jobs = (queries + static_cast<unsigned>(h.kv_heads)) * groups;
    size_t angle = static_cast<size_t>(blockIdx.x % a.T) * half;
    T *row = row_of<T>(a.qkv, blockIdx.x);
    for (unsigned job = threadIdx.x; job < jobs; job += blockDim.x) {
        unsigned head = job / groups, first = GROUP * (job % groups);
        size_t at =
            head < queries ? h.q_first + head * h.q_step : h.k_first + (head - queries) * h.k_step;
        float low[GROUP], high[GROUP], c[GROUP], s[GROUP];
        load_group<WIDE>(low, row + at, first, 0, half);
        load_group<WIDE>(high, row + at + half, first, 0, half);
        load_group<WIDE>(c, a.cosine + angle, first, 0, half);
        load_group<WIDE>(s, a.sine + angle, first, 0, half);
        for (unsigned k = 0; k < GROUP; k++) {
            float x = low[k], y = high[k], sine = a.sign * s[k];
            low[k] = x * c[k] - y * sine;
            high[k] = y * c[k] + x * sine;
        }
        store_group<WIDE>(row + at, low, first, 0, half);
        store_group<WIDE>(row + at + half, high, first, 0, half);
    }
}

template <typename T, bool WIDE> static void rope(struct mm_device *dev, const rope_args &a) {
    size_t jobs = (a.heads.heads + a.heads.kv_heads) * a.groups;
    auto kernel = rope_kernel<T, WIDE>;
    MM_LAUNCH(kernel, blocks_for(a.qkv.rows, 1), row_threads(GROUP * jobs, BLOCK), 0, dev, a);
}

void cuda_rope(struct mm_device *dev, struct mm_mat qkv, const struct mm_heads *heads, size_t T,
               const float *cosine, const float *sine, enum mm_turn turn) {
    size_t half = heads->rotary_dim / 2;
    size_t places = half | heads->q_first | heads->q_step | heads->k_first | heads->k_step;
    struct rope_args a = {qkv,
                          *heads,
                          static_cast<unsigned>(T),
                          static_cast<unsigned>(half),
                          blocks_for(half, GROUP),
                          cosine,
                          sine,
                          turn == MM_TURN_BACK ? -1.0f : 1.0f};
    bool wide = places % GROUP == 0 && rows_wide(qkv) && aligned16(cosine) && aligned16(sine);
    if (qkv.rows && half)
        BY_DTYPE_AND_WIDTH(qkv.dtype, wide, rope, dev, a);
}

/* -- activations ------------------------------------------------------------------------------- */

template <typename T> __device__ static inline float sigmoid(float x) {
    return reciprocal_for<T>(1.0f + exp_for<T>(-x));
}

/* The cumulative normal distribution. */
__device__ static inline float normal_cdf(float x) {
    return 0.5f * (1.0f + erff(x * 0.70710678118654752f));
}

struct activation_grads {
    float x, up;
};

template <typename T>
__device__ static inline float activated(enum mm_activation kind, float x, float up) {
    return kind == MM_SWIGLU ? x * sigmoid<T>(x) * up : x * normal_cdf(x);
}

template <typename T>
__device__ static inline struct activation_grads activation_grad(enum mm_activation kind, float x,
                                                                 float up, float dh) {
    if (kind == MM_GELU) {
        float density = 0.39894228040143268f * exp_for<T>(-0.5f * x * x);
        return {dh * (normal_cdf(x) + x * density), 0.0f};
    }
    float s = sigmoid<T>(x);
    return {dh * up * s * (1.0f + x * (1.0f - s)), dh * x * s};
}

template <enum mm_activation KIND, typename T, bool WIDE>
__global__ static void activate_kernel(struct mm_mat h, struct mm_mat u) {
    size_t M = h.cols, first = tile_first();
    if (first >= M)
        return;
    const T *in = row_of<T>(u, blockIdx.x);
    float x[GROUP], up[GROUP] = {};
    load_group<WIDE>(x, in, first, 0, M);
    if (KIND == MM_SWIGLU)
        load_group<WIDE>(up, in + M, first, 0, M);
    for (unsigned k = 0; k < GROUP; k++)
        x[k] = activated<T>(KIND, x[k], up[k]);
    store_group<WIDE>(row_of<T>(h, blockIdx.x), x, first, 0, M);
}

template <enum mm_activation KIND, typename T, bool WIDE>
__global__ static void activate_grad_kernel(struct mm_mat du, struct mm_mat dh, struct mm_mat u) {
    size_t M = dh.cols, first = tile_first();
    if (first >= M)
        return;
    const T *in = row_of<T>(u, blockIdx.x);
    T *out = row_of<T>(du, blockIdx.x);
    float x[GROUP], g[GROUP], up[GROUP] = {};
    load_group<WIDE>(x, in, first, 0, M);
    load_group<WIDE>(g, row_of<T>(dh, blockIdx.x), first, 0, M);
    if (KIND == MM_SWIGLU)
        load_group<WIDE>(up, in + M, first, 0, M);
    for (unsigned k = 0; k < GROUP; k++) {
        struct activation_grads d = activation_grad<T>(KIND, x[k], up[k], g[k]);
        x[k] = d.x;
        up[k] = d.up;
    }
    store_group<WIDE>(out, x, first, 0, M);
    if (KIND == MM_SWIGLU)
        store_group<WIDE>(out + M, up, first, 0, M);
}

template <typename T, bool WIDE>
static void activate(struct mm_device *dev, enum mm_activation kind, struct mm_mat h,
                     struct mm_mat u) {
    auto kernel =
        kind == MM_SWIGLU ? activate_kernel<MM_SWIGLU, T, WIDE> : activate_kernel<MM_GELU, T, WIDE>;
    MM_LAUNCH(kernel, tiles(h.rows, h.cols), row_threads(h.cols, BLOCK), 0, dev, h, u);
}

template <typename T, bool WIDE>
static void activate_grad(struct mm_device *dev, enum mm_activation kind, struct mm_mat du,
                          struct mm_mat dh, struct mm_mat u) {
    auto kernel = kind == MM_SWIGLU ? activate_grad_kernel<MM_SWIGLU, T, WIDE>
                                    : activate_grad_kernel<MM_GELU, T, WIDE>;
    MM_LAUNCH(kernel, tiles(dh.rows, dh.cols), row_threads(dh.cols, BLOCK), 0, dev, du, dh, u);
}

void cuda_activate(struct mm_device *dev, enum mm_activation kind, struct mm_mat h,
                   struct mm_mat u) {
    /* whole groups of h: then the second half of u's rows begins at one */
    if (h.rows && h.cols)
        BY_DTYPE_AND_WIDTH(h.dtype, rows_wide(h) && rows_wide(u), activate, dev, kind, h, u);
}

void cuda_activate_grad(struct mm_device *dev, enum mm_activation kind, struct mm_mat du,
                        struct mm_mat dh, struct mm_mat u) {
    bool wide = rows_wide(du) && rows_wide(dh) && rows_wide(u);
    if (dh.rows && dh.cols)
        BY_DTYPE_AND_WIDTH(dh.dtype, wide, activate_grad, dev, kind, du, dh, u);
}
