/* block.h - what kernels of one block a row share: four neighbours at once, and sums over a block.
 *
 * Element groups: thread t takes elements 4t ... 4t+3 of each stretch of 4·blockDim.x. `wide` says
 * that every pointer concerned allows one access for all four (rows_wide, or aligned4). */
#ifndef MM_CUDA_BLOCK_H
#define MM_CUDA_BLOCK_H

#include "kernels/cuda/cuda.h"

#define BLOCK      256u
#define WARP       32u
#define WHOLE_WARP 0xffffffffu

/* -- host side --------------------------------------------------------------------------------- */

static inline bool aligned4(const void *data, enum mm_dtype dtype) {
    return reinterpret_cast<uintptr_t>(data) % (4 * mm_dtype_bytes(dtype)) == 0;
}

/* Whether all rows of m begin on such an address. */
static inline bool rows_wide(struct mm_mat m) {
    return !m.data || (aligned4(m.data, m.dtype) && (m.ld % 4 == 0 || m.rows == 1));
}

/* Threads for a row of `cols`: whole warps, at most BLOCK; a function of `cols` alone, so that sums
 * have the same order in every call. */
static inline unsigned row_threads(size_t cols) {
    size_t warps = (cols + 4 * WARP - 1) / (4 * WARP);
    return warps * WARP < BLOCK ? (warps ? static_cast<unsigned>(warps) * WARP : WARP) : BLOCK;
}

static inline unsigned blocks_for(size_t n, size_t each) {
    size_t blocks = (n + each - 1) / each;
    MM_CHECK(blocks <= 0x7fffffffu, "%zu blocks", blocks);
    return static_cast<unsigned>(blocks);
}

/* -- device side ------------------------------------------------------------------------------- */

template <typename T> __device__ static inline T *row_of(struct mm_mat m, size_t row) {
    return static_cast<T *>(m.data) + row * m.ld;
}

__device__ static inline void load_wide(float out[4], const float *p) {
    float4 v = *reinterpret_cast<const float4 *>(p);
    out[0] = v.x;
    out[1] = v.y;
    out[2] = v.z;
    out[3] = v.w;
}
__device__ static inline void load_wide(float out[4], const bf16 *p) {
    uint2 v = *reinterpret_cast<const uint2 *>(p); /* a bfloat16 is the upper half of a float */
    out[0] = __uint_as_float(v.x << 16);
    out[1] = __uint_as_float(v.x & 0xffff0000u);
    out[2] = __uint_as_float(v.y << 16);
    out[3] = __uint_as_float(v.y & 0xffff0000u);
}
__device__ static inline void store_wide(float *p, const float in[4]) {
    *reinterpret_cast<float4 *>(p) = make_float4(in[0], in[1], in[2], in[3]);
}
__device__ static inline void store_wide(bf16 *p, const float in[4]) {
    uint2 v;
    v.x = __bfloat16_as_ushort(from_float<bf16>(in[0])) |
          static_cast<unsigned>(__bfloat16_as_ushort(from_float<bf16>(in[1]))) << 16;
    v.y = __bfloat16_as_ushort(from_float<bf16>(in[2])) |
          static_cast<unsigned>(__bfloat16_as_ushort(from_float<bf16>(in[3]))) << 16;
    *reinterpret_cast<uint2 *>(p) = v;
}

/* Elements [first, first + 4) of p, those of them in [low, high); the others' out is 0. */
template <typename T>
__device__ static inline void load4(float out[4], const T *p, size_t first, size_t low, size_t high,
                                    bool wide) {
    if (wide && first >= low && first + 4 <= high)
        return load_wide(out, p + first);
    for (unsigned k = 0; k < 4; k++)
        out[k] = first + k >= low && first + k < high ? to_float(p[first + k]) : 0.0f;
}
template <typename T>
__device__ static inline void store4(T *p, const float in[4], size_t first, size_t low, size_t high,
                                     bool wide) {
    if (wide && first >= low && first + 4 <= high)
        return store_wide(p + first, in);
    for (unsigned k = 0; k < 4; k++)
        if (first + k >= low && first + k < high)
            p[first + k] = from_float<T>(in[k]);
}

struct add_values {
    template <typename V> __device__ V operator()(V a, V b) const {
        return a + b;
    }
};
struct max_values { /* a NaN loses: it shows in the sum that follows */
    __device__ float operator()(float a, float b) const {
        return fmaxf(a, b);
    }
};

/* x of all threads of the block joined in a fixed order; every thread gets the result. blockDim.x
 * is a multiple of WARP, at most WARP². */
template <typename V, typename Join> __device__ static inline V block_join(V x, Join join) {
    __shared__ V room[WARP];
    unsigned warps = blockDim.x / WARP;
    for (unsigned offset = WARP / 2; offset > 0; offset /= 2)
        x = join(x, __shfl_xor_sync(WHOLE_WARP, x, offset));
    __syncthreads(); /* the room may still be read from the last time */
    if (threadIdx.x % WARP == 0)
        room[threadIdx.x / WARP] = x;
    __syncthreads();
    x = room[0];
    for (unsigned i = 1; i < warps; i++)
        x = join(x, room[i]);
    return x;
}

template <typename V> __device__ static inline V block_sum(V x) {
    return block_join(x, add_values());
}
__device__ static inline float block_max(float x) {
    return block_join(x, max_values());
}

#endif
