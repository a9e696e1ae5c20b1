/* attention.cu - causal attention forward and backward, tiles of queries against tiles of keys.
 *
 * Forward: a block owns a tile of queries of one head and walks over the keys up to its diagonal
 * with an online softmax. Backward: one kernel owns a tile of keys of a key-value head and walks
 * over all query heads that share it and their queries, in order; another owns queries again. Each
 * element has one writer, so nothing is added through memory and a run repeats bit by bit. Scores
 * are recomputed from lse; memory is linear in the number of tokens. */
#include "kernels/cuda/tile.h"

/* One call, as the kernels see it. */
template <typename Real> struct call {
    struct mm_heads heads;
    const Real *qkv, *out, *dout;
    Real *dqkv, *result;  /* result: the forward's out */
    float *lse, *through; /* [B, heads, tokens]; through: dout·out of a row */
    size_t qkv_ld, dqkv_ld, out_ld, dout_ld;
    int tokens, dim;
    float scale;
    bool vector; /* every row of every head begins at a whole chunk */
};

/* Warps of a block, the rows it owns, and how many of the others it takes at a time. */
template <int D> constexpr int warps = D > 128 ? 2 : 4;
template <int D> constexpr int owned = 16 * warps<D>;
template <typename Real, int D>
constexpr int step = sizeof(Real) == 4 ? (D <= 64   ? 32
                                          : D == 96 ? 16
                                                    : 8)
                     : D <= 64         ? 64
                     : D <= 128        ? 32
                                       : 16;
/* Blocks of backward_queries that a processor must have registers for; 0: the compiler's choice.
 * Heads of 64 in bfloat16 have shared memory for 4, whose 128 registers a thread it misses by a
 * few. */
template <typename Real, int D> constexpr int resident = sizeof(Real) == 2 && D == 64 ? 4 : 0;
/* Columns of dk and dv a block sums up: registers hold no more. */
template <int D> constexpr int slice = D > 128 ? 128 : D;

/* Where a head begins within a matrix of fused rows. */
__device__ static inline size_t q_column(const struct mm_heads &h, int head) {
    return h.q_first + (size_t)head * h.q_step;
}
__device__ static inline size_t k_column(const struct mm_heads &h, int kv) {
    return h.k_first + (size_t)kv * h.k_step;
}
__device__ static inline size_t v_column(const struct mm_heads &h, int kv) {
    return h.v_first + (size_t)kv * h.v_step;
}

/* Begins to load rows [first, first + ROWS) of a sequence's matrix. */
template <int D, int ROWS, typename Real>
__device__ static inline void load(const call<Real> &a, Real *tile, const Real *sequence, size_t ld,
                                   int first) {
    tile_load<Real, D, ROWS, 32 * warps<D>>(tile, sequence + (size_t)first * ld, ld,
                                            a.tokens - first, a.dim, a.vector);
}

/* The tiles that a block walks over come in pairs, keys and values or queries and dout, into two
 * places in turn: while one pair is worked on, the next is on its way. */
template <typename Real, int D> constexpr int pair = 2 * step<Real, D> *tile_ld<Real, D>;

/* Waits for the pair that is under way; the place of the other may be loaded into after it. */
__device__ static inline void next_pair() {
    copies_wait();
    __syncthreads();
}

template <int D, typename Real>
__device__ static inline void load_keys(const call<Real> &a, Real *place, const Real *rows, int kv,
                                        int key) {
    constexpr int STEP = step<Real, D>;
    load<D, STEP>(a, place, rows + k_column(a.heads, kv), a.qkv_ld, key);
    load<D, STEP>(a, place + pair<Real, D> / 2, rows + v_column(a.heads, kv), a.qkv_ld, key);
}

/* s becomes `hidden` where a query does not see a key: right of the diagonal where rows are
 * queries, left of it where columns are. The lane's rows are `row` and row + 8, its first column is
 * `col`. */
enum rows { ROWS_ARE_QUERIES, ROWS_ARE_KEYS };

template <int N, enum rows ROWS>
__device__ static inline void hide(float (&s)[N / 8][4], int row, int col, float hidden) {
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            int right = col + 8 * j + e % 2 - (row + e / 2 * 8);
            if (ROWS == ROWS_ARE_KEYS ? right < 0 : right > 0)
                s[j][e] = hidden;
        }
}

/* s becomes exp2((s - the largest so far)·scale); the sums of before shrink. */
template <int N>
__device__ static inline void online_softmax(float (&s)[N / 8][4], float scale, float (&top)[2],
                                             float (&sum)[2], float (&shrink)[2]) {
    float most[2] = {top[0], top[1]}, base[2];
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            most[e / 2] = fmaxf(most[e / 2], s[j][e]);
    for (int i = 0; i < 2; i++) {
        most[i] = quad_max(most[i]);
        base[i] = most[i] * scale;
        shrink[i] = exp2_fast(top[i] * scale - base[i]);
        top[i] = most[i];
        sum[i] *= shrink[i];
    }
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            s[j][e] = exp2_fast(s[j][e] * scale - base[e / 2]);
            sum[e / 2] += s[j][e];
        }
}

template <typename Real, int D>
__global__ static void __launch_bounds__(32 * warps<D>) forward(call<Real> a) {
    constexpr int LD = tile_ld<Real, D>, STEP = step<Real, D>, PAIR = pair<Real, D>;
    MM_SHARED(Real, shared);
    Real *q = shared, *pairs = q + owned<D> * LD;
    int heads = (int)a.heads.heads, head = (int)blockIdx.x % heads;
    int kv = head / (heads / (int)a.heads.kv_heads);
    size_t sequence = blockIdx.x / (unsigned)heads * (size_t)a.tokens;
    const Real *rows = a.qkv + sequence * a.qkv_ld;
    /* the tiles that see most keys start first */
    int first = (int)(gridDim.y - 1 - blockIdx.y) * owned<D>;
    int end = first + owned<D> < a.tokens ? first + owned<D> : a.tokens;
    int warp_row = (int)threadIdx.x / 32 * 16, row = first + warp_row + lane_row();
    float o[D / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
    const float scale = a.scale * LOG2_E;

    load<D, owned<D>>(a, q, rows + q_column(a.heads, head), a.qkv_ld, first);
    load_keys<D>(a, pairs, rows, kv, 0);
    for (int key = 0, turn = 0; key < end; key += STEP, turn ^= 1) {
        const Real *k = pairs + turn * PAIR, *v = k + PAIR / 2;
        next_pair();
        if (key + STEP < end)
            load_keys<D>(a, pairs + (turn ^ 1) * PAIR, rows, kv, key + STEP);
        if (key > first + warp_row + 15 || first + warp_row >= a.tokens)
            continue;
        float s[STEP / 8][4], shrink[2];
        product_nt<D, STEP>(s, q + warp_row * LD, k);
        if (key + STEP > first + warp_row + 1)
            hide<STEP, ROWS_ARE_QUERIES>(s, row, key + lane_col(), -INFINITY);
        online_softmax<STEP>(s, scale, top, sum, shrink);
#pragma unroll
        for (int j = 0; j < D / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                o[j][e] *= shrink[e / 2];
        /* EXACT: what is small beside the values it is a mean of keeps its digits */
        product_nn<D, STEP, D, true>(o, s, v);
    }
    float inverse[2];
    for (int i = 0; i < 2; i++) {
        sum[i] = quad_sum(sum[i]);
        inverse[i] = 1.0f / sum[i];
        if (threadIdx.x % 4 == 0 && row + 8 * i < a.tokens)
            a.lse[(size_t)blockIdx.x * a.tokens + row + 8 * i] = top[i] * a.scale + logf(sum[i]);
    }
    int own = first + warp_row;
    tile_store<Real, D, D>(a.result + (sequence + own) * a.out_ld + (size_t)head * a.dim, a.out_ld,
                           a.tokens - own, a.dim, a.vector, q + warp_row * LD, o, inverse);
}

/* -- backward ------------------------------------------------------------------------------------
 */

/* x·y of a row and head, by its four lanes. */
template <typename Real>
__device__ static inline float row_dot(const Real *x, const Real *y, int dim, bool vector) {
    constexpr int N = chunk<Real>::N;
    int lane = (int)threadIdx.x % 4;
    float sum = 0.0f;
    if (vector)
        for (int i = lane * N; i < dim; i += 4 * N) {
            float a[N], b[N];
            load_wide(a, x + i);
            load_wide(b, y + i);
            for (int j = 0; j < N; j++)
                sum += a[j] * b[j];
        }
    else
        for (int i = lane; i < dim; i += 4)
            sum += to_float(x[i]) * to_float(y[i]);
    return quad_sum(sum);
}

/* From s = scores and dp = dout·v: s becomes the weight, dp the score's gradient over scale. */
__device__ static inline void score_grad(float &s, float &dp, float scale, float lse,
                                         float through) {
    s = exp2_fast(s * scale - lse);
    dp = s * (dp - through);
}

/* What backward_keys walks over: all query heads of a key-value head, and the queries of each from
 * the first that sees the block's keys. */
struct place {
    int head, query;
};

template <typename Real, int D> struct walk {
    static constexpr int STEP = step<Real, D>;
    const call<Real> &a;
    size_t batch;
    int first; /* query */

    __device__ struct place after(struct place at) const {
        at.query += STEP;
        return at.query < a.tokens ? at : place{at.head + 1, first};
    }
    /* Begins to load a step: queries, dout, and by row lse and through. Zeros beyond the last token
     * add nothing to dk and dv. */
    __device__ void load_step(Real *to, float *lse, struct place at) const {
        int lane = (int)threadIdx.x;
        size_t sequence = batch * a.tokens, numbers = (batch * a.heads.heads + at.head) * a.tokens;
        load<D, STEP>(a, to, a.qkv + sequence * a.qkv_ld + q_column(a.heads, at.head), a.qkv_ld,
                      at.query);
        load<D, STEP>(a, to + pair<Real, D> / 2,
                      a.dout + sequence * a.dout_ld + (size_t)at.head * a.dim, a.dout_ld, at.query);
        if (lane < STEP) {
            bool valid = at.query + lane < a.tokens;
            size_t number = valid ? numbers + at.query + lane : 0;
            copy_begin<4>(lse + lane, a.lse + number, valid);
            copy_begin<4>(lse + STEP + lane, a.through + number, valid);
        }
    }
};

/* dk and dv of a tile of keys, blockIdx.z the slice of columns. Scores are transposed: a warp's
 * rows are keys. */
template <typename Real, int D>
__global__ static void __launch_bounds__(32 * warps<D>) backward_keys(call<Real> a) {
    constexpr int LD = tile_ld<Real, D>, STEP = step<Real, D>, W = slice<D>, PAIR = pair<Real, D>;
    MM_SHARED(Real, shared);
    Real *k = shared, *v = k + owned<D> * LD, *pairs = v + owned<D> * LD;
    float *row_numbers = reinterpret_cast<float *>(pairs + 2 * PAIR);
    int kv_heads = (int)a.heads.kv_heads, kv = (int)blockIdx.x % kv_heads;
    int group = (int)a.heads.heads / kv_heads;
    size_t batch = blockIdx.x / (unsigned)kv_heads, sequence = batch * a.tokens;
    const Real *rows = a.qkv + sequence * a.qkv_ld;
    int first = (int)blockIdx.y * owned<D>, col = (int)blockIdx.z * W;
    int warp_row = (int)threadIdx.x / 32 * 16, row = first + warp_row + lane_row();
    float dk[W / 8][4] = {}, dv[W / 8][4] = {};
    const walk<Real, D> walk = {a, batch, first};
    struct place at = {kv * group, first}, next = at;

    load<D, owned<D>>(a, k, rows + k_column(a.heads, kv), a.qkv_ld, first);
    load<D, owned<D>>(a, v, rows + v_column(a.heads, kv), a.qkv_ld, first);
    walk.load_step(pairs, row_numbers, at);
    for (int turn = 0; at.head < (kv + 1) * group; at = next, turn ^= 1) {
        const Real *q = pairs + turn * PAIR, *dout = q + PAIR / 2;
        const float *lse = row_numbers + turn * 2 * STEP, *through = lse + STEP;
        next = walk.after(at);
        next_pair();
        if (next.head < (kv + 1) * group)
            walk.load_step(pairs + (turn ^ 1) * PAIR, row_numbers + (turn ^ 1) * 2 * STEP, next);
        if (at.query + STEP <= first + warp_row || first + warp_row >= a.tokens)
            continue;
        float p[STEP / 8][4], dp[STEP / 8][4];
        product_nt<D, STEP>(p, k + warp_row * LD, q);
        product_nt<D, STEP>(dp, v + warp_row * LD, dout);
#pragma unroll
        for (int j = 0; j < STEP / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int i = 8 * j + lane_col() + e % 2;
                score_grad(p[j][e], dp[j][e], a.scale * LOG2_E, lse[i] * LOG2_E, through[i]);
            }
        if (at.query < first + warp_row + 15) {
            hide<STEP, ROWS_ARE_KEYS>(p, row, at.query + lane_col(), 0.0f);
            hide<STEP, ROWS_ARE_KEYS>(dp, row, at.query + lane_col(), 0.0f);
        }
        product_nn<D, STEP, W, false>(dv, p, dout + col);
        product_nn<D, STEP, W, false>(dk, dp, q + col);
    }
    int own = first + warp_row;
    Real *to = a.dqkv + (sequence + own) * a.dqkv_ld + col;
    const float once[2] = {1.0f, 1.0f}, scale[2] = {a.scale, a.scale};
    tile_store<Real, D, W>(to + k_column(a.heads, kv), a.dqkv_ld, a.tokens - own, a.dim - col,
                           a.vector, k + warp_row * LD, dk, scale);
    tile_store<Real, D, W>(to + v_column(a.heads, kv), a.dqkv_ld, a.tokens - own, a.dim - col,
                           a.vector, v + warp_row * LD, dv, once);
}

/* dq of a tile of queries, and `through`, which backward_keys reads. */
template <typename Real, int D>
__global__ static void __launch_bounds__(32 * warps<D>, resident<Real, D>)
    backward_queries(call<Real> a) {
    constexpr int LD = tile_ld<Real, D>, STEP = step<Real, D>, PAIR = pair<Real, D>;
    MM_SHARED(Real, shared);
    Real *q = shared, *dout = q + owned<D> * LD, *pairs = dout + owned<D> * LD;
    int heads = (int)a.heads.heads, head = (int)blockIdx.x % heads;
    int kv = head / (heads / (int)a.heads.kv_heads);
    size_t sequence = blockIdx.x / (unsigned)heads * (size_t)a.tokens;
    const Real *rows = a.qkv + sequence * a.qkv_ld;
    int first = (int)(gridDim.y - 1 - blockIdx.y) * owned<D>;
    int end = first + owned<D> < a.tokens ? first + owned<D> : a.tokens;
    int warp_row = (int)threadIdx.x / 32 * 16, row = first + warp_row + lane_row();
    float dq[D / 8][4] = {}, lse[2], through[2];

    load<D, owned<D>>(a, q, rows + q_column(a.heads, head), a.qkv_ld, first);
    load<D, owned<D>>(a, dout, a.dout + sequence * a.dout_ld + (size_t)head * a.dim, a.dout_ld,
                      first);
    load_keys<D>(a, pairs, rows, kv, 0);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        bool valid = row + 8 * i < a.tokens;
        size_t at = valid ? row + 8 * i : 0, place = (size_t)blockIdx.x * a.tokens + at;
        size_t token = sequence + at, col = (size_t)head * a.dim;
        lse[i] = a.lse[place] * LOG2_E;
        through[i] = row_dot(a.out + token * a.out_ld + col, a.dout + token * a.dout_ld + col,
                             a.dim, a.vector);
        if (valid && threadIdx.x % 4 == 0)
            a.through[place] = through[i];
    }
    for (int key = 0, turn = 0; key < end; key += STEP, turn ^= 1) {
        const Real *k = pairs + turn * PAIR, *v = k + PAIR / 2;
        next_pair();
        if (key + STEP < end)
            load_keys<D>(a, pairs + (turn ^ 1) * PAIR, rows, kv, key + STEP);
        if (key > first + warp_row + 15 || first + warp_row >= a.tokens)
            continue;
        float p[STEP / 8][4], dp[STEP / 8][4];
        product_nt<D, STEP>(p, q + warp_row * LD, k);
        product_nt<D, STEP>(dp, dout + warp_row * LD, v);
#pragma unroll
        for (int j = 0; j < STEP / 8; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                score_grad(p[j][e], dp[j][e], a.scale * LOG2_E, lse[e / 2], through[e / 2]);
        if (key + STEP > first + warp_row + 1)
            hide<STEP, ROWS_ARE_QUERIES>(dp, row, key + lane_col(), 0.0f);
        product_nn<D, STEP, D, false>(dq, dp, k);
    }
    int own = first + warp_row;
    const float scale[2] = {a.scale, a.scale};
    tile_store<Real, D, D>(a.dqkv + (sequence + own) * a.dqkv_ld + q_column(a.heads, head),
                           a.dqkv_ld, a.tokens - own, a.dim, a.vector, q + warp_row * LD, dq,
                           scale);
}

/* -- launches ------------------------------------------------------------------------------------
 */

/* Lets a kernel have more than the 48 KB of shared memory it may take unasked. Not an operation of
 * a stream: fine while one is recorded. */
template <typename Kernel> static void allow_shared(Kernel kernel, size_t bytes) {
#ifdef MM_CUDA_SHIM
    (void)kernel, (void)bytes;
#else
    if (bytes > 48 * 1024)
        MM_CUDA(
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
#endif
}

template <typename Real, int D> constexpr size_t tile_bytes(int rows) {
    return (size_t)rows * tile_ld<Real, D> * sizeof(Real);
}

template <typename Real, int D>
static void launch_forward(struct mm_device *dev, const call<Real> &a, size_t B) {
    size_t bytes = tile_bytes<Real, D>(owned<D> + 4 * step<Real, D>);
    dim3 grid((unsigned)(B * a.heads.heads), (unsigned)(a.tokens + owned<D> - 1) / owned<D>);
    auto kernel = forward<Real, D>;
    allow_shared(kernel, bytes);
    MM_LAUNCH(kernel, grid, 32 * warps<D>, bytes, dev, a);
}

template <typename Real, int D>
static void launch_backward(struct mm_device *dev, const call<Real> &a, size_t B) {
    unsigned tiles = (unsigned)(a.tokens + owned<D> - 1) / owned<D>;
    size_t bytes = tile_bytes<Real, D>(2 * owned<D> + 4 * step<Real, D>);
    size_t keys_bytes = bytes + 4 * step<Real, D> * sizeof(float);
    dim3 grid((unsigned)(B * a.heads.heads), tiles);
    dim3 keys_grid((unsigned)(B * a.heads.kv_heads), tiles, D / slice<D>);
    auto queries = backward_queries<Real, D>;
    auto keys = backward_keys<Real, D>;
    allow_shared(queries, bytes);
    allow_shared(keys, keys_bytes);
    MM_LAUNCH(queries, grid, 32 * warps<D>, bytes, dev, a); /* first: it writes `through` */
    MM_LAUNCH(keys, keys_grid, 32 * warps<D>, keys_bytes, dev, a);
}

template <typename Real>
static call<Real> describe(struct mm_mat qkv, struct mm_mat out, float *lse,
                           const struct mm_heads *h, size_t T) {
    size_t B = qkv.rows / T;
    MM_CHECK(h->head_dim >= 1 && h->head_dim <= 256, "head_dim %zu: attention takes 1 to 256",
             h->head_dim);
    MM_CHECK(T <= (1u << 20) && B * h->heads < (1u << 31), "%zu sequences of %zu tokens, %zu heads",
             B, T, h->heads);
    MM_CHECK(qkv.rows == B * T && out.rows == B * T && qkv.dtype == out.dtype,
             "%zu rows of %s, %zu rows of %s for %zu sequences of %zu tokens", qkv.rows,
             mm_dtype_name(qkv.dtype), out.rows, mm_dtype_name(out.dtype), B, T);
    call<Real> a = {};
    a.heads = *h;
    a.qkv = static_cast<const Real *>(qkv.data);
    a.out = a.result = static_cast<Real *>(out.data);
    a.lse = lse;
    a.qkv_ld = qkv.ld;
    a.out_ld = out.ld;
    a.tokens = (int)T;
    a.dim = (int)h->head_dim;
    a.scale = 1.0f / sqrtf((float)h->head_dim);
    size_t elements = h->head_dim | h->q_first | h->q_step | h->k_first | h->k_step | h->v_first |
                      h->v_step | qkv.ld | out.ld;
    size_t bytes = (size_t)qkv.data | (size_t)out.data;
    a.vector = elements % chunk<Real>::N == 0 && bytes % 16 == 0;
    return a;
}

/* The tile widths that are compiled; a head in between is filled up with zeros. */
#define BY_WIDTH(dim, function, ...)                                                               \
    do {                                                                                           \
        if ((dim) <= 16)                                                                           \
            function<Real, 16>(__VA_ARGS__);                                                       \
        else if ((dim) <= 32)                                                                      \
            function<Real, 32>(__VA_ARGS__);                                                       \
        else if ((dim) <= 64)                                                                      \
            function<Real, 64>(__VA_ARGS__);                                                       \
        else if ((dim) <= 96)                                                                      \
            function<Real, 96>(__VA_ARGS__);                                                       \
        else if ((dim) <= 128)                                                                     \
            function<Real, 128>(__VA_ARGS__);                                                      \
        else                                                                                       \
            function<Real, 256>(__VA_ARGS__);                                                      \
    } while (0)

template <typename Real>
static void attention(struct mm_device *dev, struct mm_mat out, struct mm_mat qkv, float *lse,
                      const struct mm_heads *heads, size_t T) {
    call<Real> a = describe<Real>(qkv, out, lse, heads, T);
    BY_WIDTH(a.dim, launch_forward, dev, a, qkv.rows / T);
}

void cuda_attention(struct mm_device *dev, struct mm_mat out, struct mm_mat qkv, float *lse,
                    const struct mm_heads *heads, size_t T) {
    if (qkv.rows > 0)
        MM_BY_DTYPE(qkv.dtype, attention, dev, out, qkv, lse, heads, T);
}

template <typename Real>
static void attention_grad(struct mm_device *dev, struct mm_mat dqkv, struct mm_mat dout,
                           struct mm_mat out, struct mm_mat qkv, const float *lse,
                           const struct mm_heads *heads, size_t T) {
    call<Real> a = describe<Real>(qkv, out, const_cast<float *>(lse), heads, T);
    a.dout = static_cast<const Real *>(dout.data);
    a.dqkv = static_cast<Real *>(dqkv.data);
    a.dout_ld = dout.ld;
    a.dqkv_ld = dqkv.ld;
    a.vector = a.vector && (dout.ld | dqkv.ld) % chunk<Real>::N == 0 &&
               ((size_t)dout.data | (size_t)dqkv.data) % 16 == 0;
    size_t rows = qkv.rows * heads->heads;
    a.through = static_cast<float *>(cuda_scratch(dev, rows * sizeof(float)));
    BY_WIDTH(a.dim, launch_backward, dev, a, qkv.rows / T);
}

void cuda_attention_grad(struct mm_device *dev, struct mm_mat dqkv, struct mm_mat dout,
                         struct mm_mat out, struct mm_mat qkv, const float *lse,
                         const struct mm_heads *heads, size_t T) {
    if (qkv.rows > 0)
        MM_BY_DTYPE(qkv.dtype, attention_grad, dev, dqkv, dout, out, qkv, lse, heads, T);
}
