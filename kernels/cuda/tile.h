/* tile.h - products of small tiles by one warp, for attention.
 *
 * A warp holds a 16 x N result in registers as the tensor cores lay it out: in c[j][e] of a lane,
 * with g = lane / 4 and t = lane % 4, lies row g + 8·(e / 2), column 8·j + 2·t + e % 2. bfloat16
 * goes through mma.m16n8k16; float32 takes the same layout with plain multiply-adds, so that one
 * kernel serves both. The shim has no tensor core: there the two instructions are spelled out lane
 * by lane. Tiles in shared memory have rows of tile_ld elements, which spreads what a warp reads at
 * once over all banks. */
#ifndef MM_CUDA_TILE_H
#define MM_CUDA_TILE_H

#include "kernels/cuda/block.h"

/* What a thread moves at once: 16 bytes. */
template <typename Real> struct alignas(16) chunk {
    static constexpr int N = 16 / (int)sizeof(Real);
    Real x[16 / sizeof(Real)];
};

template <typename Real, int D> constexpr int tile_ld = D + chunk<Real>::N;

__device__ static inline int lane_row() {
    return (int)threadIdx.x % 32 / 4;
}
__device__ static inline int lane_col() {
    return (int)threadIdx.x % 4 * 2;
}

/* Over the four lanes that share rows. */
__device__ static inline float quad_sum(float x) {
    x += __shfl_xor_sync(WHOLE_WARP, x, 1);
    return x + __shfl_xor_sync(WHOLE_WARP, x, 2);
}
__device__ static inline float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(WHOLE_WARP, x, 1));
    return fmaxf(x, __shfl_xor_sync(WHOLE_WARP, x, 2));
}

/* -- memory --------------------------------------------------------------------------------------
 */

/* Begins to copy BYTES from global to shared memory, zeros unless `valid`: there for this thread
 * after copies_wait(), for others after a barrier that follows it. */
#ifdef MM_CUDA_SHIM
template <int BYTES> static inline void copy_begin(void *to, const void *from, bool valid) {
    shim_copy_begin(to, valid ? from : nullptr, BYTES);
}
static inline void copies_wait() {
    shim_copies_wait();
}
#else
template <int BYTES>
__device__ static inline void copy_begin(void *to, const void *from, bool valid) {
    uint32_t address = (uint32_t)__cvta_generic_to_shared(to);
    int bytes = valid ? BYTES : 0;
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from),
                     "r"(bytes)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from),
                     "n"(BYTES), "r"(bytes)
                     : "memory");
}
__device__ static inline void copies_wait() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}
#endif

/* The largest power of 2 that divides N, or MOST where that is less. */
template <int N, int MOST> constexpr int side_by_side = (N & -N) < MOST ? (N & -N) : MOST;

/* Begins to load tile [ROWS, D] = src [valid, d], zero elsewhere, by a whole block of THREADS;
 * there as copies are. `vector`: places and ld of src are whole chunks. Then ACROSS threads lie
 * side by side on DOWN rows, and how often each of them copies is known when this is compiled. */
template <typename Real, int D, int ROWS, int THREADS>
__device__ static inline void tile_load(Real *tile, const Real *src, size_t ld, int valid, int d,
                                        bool vector) {
    constexpr int LD = tile_ld<Real, D>, N = chunk<Real>::N;
    constexpr int ACROSS = side_by_side<D / N, THREADS>, DOWN = THREADS / ACROSS;
    static_assert(ROWS % DOWN == 0, "threads would be idle");
    if (vector) {
        int row = (int)threadIdx.x / ACROSS, col = (int)threadIdx.x % ACROSS * N;
        const Real *from = src + (size_t)row * ld + col;
        Real *to = tile + row * LD + col;
#pragma unroll
        for (int r = 0; r < ROWS; r += DOWN, from += DOWN * ld)
#pragma unroll
            for (int c = 0; c < D; c += ACROSS * N) {
                bool inside = row + r < valid && col + c < d;
                copy_begin<16>(to + r * LD + c, inside ? from + c : src, inside);
            }
        return;
    }
    for (int i = (int)threadIdx.x; i < ROWS * D; i += THREADS) {
        int r = i / D, c = i % D;
        tile[r * LD + c] = r < valid && c < d ? src[(size_t)r * ld + c] : from_float<Real>(0.0f);
    }
}

/* dst [valid, d] = factor · c, by one warp through its own 16 rows of a tile: whole chunks reach
 * memory where `vector` allows. factor: of rows g and g + 8. */
template <typename Real, int D, int W>
__device__ static inline void tile_store(Real *dst, size_t ld, int valid, int d, bool vector,
                                         Real *own, const float (&c)[W / 8][4],
                                         const float (&factor)[2]) {
    constexpr int LD = tile_ld<Real, D>, N = chunk<Real>::N;
    constexpr int ACROSS = side_by_side<W / N, 32>, DOWN = 32 / ACROSS;
    /* A neighbour may have read these rows last; on the way here an mma.sync parts the two. */
    __syncwarp(); /* no test shows it */
#pragma unroll
    for (int j = 0; j < W / 8; j++)
#pragma unroll
        for (int e = 0; e < 4; e++)
            own[(lane_row() + e / 2 * 8) * LD + 8 * j + lane_col() + e % 2] =
                from_float<Real>(c[j][e] * factor[e / 2]);
    __syncwarp();
    int lane = (int)threadIdx.x % 32;
    if (vector) {
        int row = lane / ACROSS, col = lane % ACROSS * N;
        const Real *from = own + row * LD + col;
        Real *to = dst + (size_t)row * ld + col;
#pragma unroll
        for (int r = 0; r < 16; r += DOWN, to += DOWN * ld)
#pragma unroll
            for (int c = 0; c < W; c += ACROSS * N)
                if (row + r < valid && col + c < d)
                    *reinterpret_cast<chunk<Real> *>(to + c) =
                        *reinterpret_cast<const chunk<Real> *>(from + r * LD + c);
        return;
    }
    for (int i = lane; i < 16 * W; i += 32)
        if (i / W < valid && i % W < d)
            dst[(size_t)(i / W) * ld + i % W] = own[i / W * LD + i % W];
}

/* -- the two instructions ------------------------------------------------------------------------
 */

#ifdef MM_CUDA_SHIM
static inline float pair_product(uint32_t a, uint32_t b) {
    bf16 x[2], y[2];
    memcpy(x, &a, 4);
    memcpy(y, &b, 4);
    return to_float(x[0]) * to_float(y[0]) + to_float(x[1]) * to_float(y[1]);
}

static inline void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    struct {
        uint32_t a[4], b[2];
    } mine, warp[32];
    memcpy(mine.a, a, sizeof a);
    memcpy(mine.b, b, sizeof b);
    shim_gather(&mine, warp, sizeof mine, {__FILE__, __LINE__});
    for (int k = 0; k < 8; k++) /* columns 2·k and 2·k + 1 of a */
        for (int e = 0; e < 4; e++)
            c[e] += pair_product(warp[lane_row() * 4 + k % 4].a[k / 4 * 2 + e / 2],
                                 warp[(lane_col() + e % 2) * 4 + k % 4].b[k / 4]);
    for (float &x : c)
        x = shim_noisy(x, fabsf(x) * 0x1p-23f);
}

template <bool TRANSPOSED>
static inline void load_matrices(uint32_t (&r)[4], const bf16 *base, int offset) {
    int warp[32], row = lane_row(), col = lane_col();
    shim_gather(&offset, warp, sizeof offset, {__FILE__, __LINE__});
    for (int i = 0; i < 4; i++) {
        bf16 pair[2];
        for (int e = 0; e < 2; e++)
            pair[e] =
                TRANSPOSED ? base[warp[8 * i + col + e] + row] : base[warp[8 * i + row] + col + e];
        memcpy(&r[i], pair, 4);
    }
}
#else
/* c [16, 8] += a [16, 16] · b [16, 8] */
__device__ static inline void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Four 8 x 8 matrices: of each, a lane gets columns 2·t and 2·t + 1 of row g; of one TRANSPOSED,
 * rows 2·t and 2·t + 1 of column g. Lane l names row l % 8 of matrix l / 8, at base + offset. */
template <bool TRANSPOSED>
__device__ static inline void load_matrices(uint32_t (&r)[4], const bf16 *base, int offset) {
    uint32_t address = (uint32_t)__cvta_generic_to_shared(base + offset);
    if constexpr (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(address)
                     : "memory");
}
#endif

/* -- products ------------------------------------------------------------------------------------
 */

/* c [16, N] = a [16, D] · bᵀ, b [N, D], both tiles in shared memory. */
template <int D, int N>
__device__ static inline void product_nt(float (&c)[N / 8][4], const bf16 *a, const bf16 *b) {
    constexpr int LD = tile_ld<bf16, D>;
    int lane = (int)threadIdx.x % 32;
    int in_a = lane % 16 * LD + lane / 16 * 8;
    int in_b = (lane % 8 + lane / 16 * 8) * LD + lane / 8 % 2 * 8;
#pragma unroll
    for (int j = 0; j < N / 8; j++)
        c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0.0f;
#pragma unroll
    for (int k = 0; k < D; k += 16) {
        uint32_t left[4];
        load_matrices<false>(left, a, in_a + k);
#pragma unroll
        for (int j = 0; j < N / 8; j += 2) {
            uint32_t r[4];
            load_matrices<false>(r, b, in_b + 8 * j * LD + k);
            uint32_t first[2] = {r[0], r[1]}, second[2] = {r[2], r[3]};
            mma(c[j], left, first);
            mma(c[j + 1], left, second);
        }
    }
}

template <int D, int N>
__device__ static inline void product_nt(float (&c)[N / 8][4], const float *a, const float *b) {
    constexpr int LD = tile_ld<float, D>;
    typedef chunk<float> quad;
#pragma unroll
    for (int j = 0; j < N / 8; j++)
        c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0.0f;
#pragma unroll 2
    for (int k = 0; k < D; k += 4) {
        quad left[2], right[2];
        for (int i = 0; i < 2; i++)
            left[i] = *reinterpret_cast<const quad *>(a + (lane_row() + 8 * i) * LD + k);
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            for (int i = 0; i < 2; i++)
                right[i] = *reinterpret_cast<const quad *>(b + (8 * j + lane_col() + i) * LD + k);
#pragma unroll
            for (int e = 0; e < 4; e++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    c[j][e] += left[e / 2].x[i] * right[e % 2].x[i];
        }
    }
}

/* p's values of one register, rounded, and what the rounding left over. */
__device__ static inline void split_pair(uint32_t &rounded, uint32_t &rest, float low, float high) {
    float back[2];
    rounded = bf16_pair(low, high);
    unpack_pair(back, rounded);
    rest = bf16_pair(low - back[0], high - back[1]);
}

/* c [16, W] += p [16, K] · b, p a result in registers, b [K, W] columns of a tile of width D. p is
 * rounded to bfloat16 or, EXACT, taken as the sum of two. */
template <int D, int K, int W, bool EXACT>
__device__ static inline void product_nn(float (&c)[W / 8][4], const float (&p)[K / 8][4],
                                         const bf16 *b) {
    constexpr int LD = tile_ld<bf16, D>;
    int lane = (int)threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < K / 16; k++) {
        uint32_t left[4], rest[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float(&from)[4] = p[2 * k + i / 2];
            split_pair(left[i], rest[i], from[i % 2 * 2], from[i % 2 * 2 + 1]);
        }
#pragma unroll
        for (int j = 0; j < W / 8; j += 2) {
            uint32_t r[4];
            load_matrices<true>(r, b, (16 * k + lane % 16) * LD + 8 * j + lane / 16 * 8);
            uint32_t first[2] = {r[0], r[1]}, second[2] = {r[2], r[3]};
            mma(c[j], left, first);
            mma(c[j + 1], left, second);
            if (EXACT) {
                mma(c[j], rest, first);
                mma(c[j + 1], rest, second);
            }
        }
    }
}

/* The four lanes of a row pass their columns of p round; each meets them in its own order. */
template <int D, int K, int W, bool>
__device__ static inline void product_nn(float (&c)[W / 8][4], const float (&p)[K / 8][4],
                                         const float *b) {
    constexpr int LD = tile_ld<float, D>;
#pragma unroll
    for (int k = 0; k < K / 8; k++)
#pragma unroll
        for (int turn = 0; turn < 4; turn++) {
            float left[4];
#pragma unroll
            for (int e = 0; e < 4; e++)
                left[e] = __shfl_xor_sync(WHOLE_WARP, p[k][e], turn);
            const float *row = b + (8 * k + (lane_col() ^ 2 * turn)) * LD + lane_col();
#pragma unroll
            for (int j = 0; j < W / 8; j++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    c[j][e] += left[e / 2 * 2] * row[8 * j + e % 2] +
                               left[e / 2 * 2 + 1] * row[LD + 8 * j + e % 2];
        }
}

#endif
