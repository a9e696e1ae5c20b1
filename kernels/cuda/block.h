/* block.h - what the kernels share: access to groups of elements, approximations, sums over a
 * block.
 *
 * A thread takes groups of neighbouring elements. A kernel is compiled twice: WIDE, where every
 * group is whole and begins on an address that allows accesses of 16 bytes, so that all loads can
 * be under way before the first is waited for; and for any shape, element by element. */
#ifndef MM_CUDA_BLOCK_H
#define MM_CUDA_BLOCK_H

#include "kernels/cuda/cuda.h"

#define BLOCK      256u
#define WARP       32u
#define WHOLE_WARP 0xffffffffu

/* Elements of a row that a thread takes at once: 16 bytes of bfloat16. */
#define GROUP 8u

/* -- host side --------------------------------------------------------------------------------- */

static inline bool aligned16(const void *data) {
    return reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

/* Whether every row of m is whole groups, on addresses as WIDE wants them. */
static inline bool rows_wide(struct mm_mat m) {
    return !m.data || (aligned16(m.data) && m.cols % GROUP == 0 &&
                       (m.ld * mm_dtype_bytes(m.dtype) % 16 == 0 || m.rows == 1));
}

/* Threads for a row of `cols` in groups: whole warps, at most `most`; a function of these alone, so
 * that sums have the same order in every call. */
static inline unsigned row_threads(size_t cols, unsigned most) {
    size_t warps = (cols + GROUP * WARP - 1) / (GROUP * WARP);
    return warps * WARP < most ? (warps ? static_cast<unsigned>(warps) * WARP : WARP) : most;
}

static inline unsigned blocks_for(size_t n, size_t each) {
    size_t blocks = (n + each - 1) / each;
    MM_CHECK(blocks <= 0x7fffffffu, "%zu blocks", blocks);
    return static_cast<unsigned>(blocks);
}

/* Calls function<T, WIDE>(...), T by dtype. */
#define BY_DTYPE_AND_WIDTH(dtype, wide, function, ...)                                             \
    do {                                                                                           \
        if ((dtype) == MM_BF16 && (wide))                                                          \
            function<bf16, true>(__VA_ARGS__);                                                     \
        else if ((dtype) == MM_BF16)                                                               \
            function<bf16, false>(__VA_ARGS__);                                                    \
        else if (wide)                                                                             \
            function<float, true>(__VA_ARGS__);                                                    \
        else                                                                                       \
            function<float, false>(__VA_ARGS__);                                                   \
    } while (0)

/* -- device side: groups ----------------------------------------------------------------------- */

template <typename T> __device__ static inline T *row_of(struct mm_mat m, size_t row) {
    return static_cast<T *>(m.data) + row * m.ld;
}

/* Two values of one register, `low` at the lower address. */
__device__ static inline uint32_t bf16_pair(float low, float high) {
#ifdef MM_CUDA_SHIM
    bf16 pair[2] = {from_float<bf16>(low), from_float<bf16>(high)};
#else
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
#endif
    uint32_t bits;
    memcpy(&bits, &pair, 4);
    return bits;
}
__device__ static inline void unpack_pair(float *out, uint32_t pair) {
    out[0] = __uint_as_float(pair << 16); /* a bfloat16 is the upper half of a float */
    out[1] = __uint_as_float(pair & 0xffff0000u);
}

template <unsigned N> __device__ static inline void load_wide(float (&out)[N], const float *p) {
#pragma unroll
    for (unsigned k = 0; k < N; k += 4) {
        float4 v = *reinterpret_cast<const float4 *>(p + k);
        out[k] = v.x;
        out[k + 1] = v.y;
        out[k + 2] = v.z;
        out[k + 3] = v.w;
    }
}
__device__ static inline void load_wide(float (&out)[4], const bf16 *p) {
    uint2 v = *reinterpret_cast<const uint2 *>(p);
    unpack_pair(out, v.x);
    unpack_pair(out + 2, v.y);
}
__device__ static inline void load_wide(float (&out)[8], const bf16 *p) {
    uint4 v = *reinterpret_cast<const uint4 *>(p);
    unpack_pair(out, v.x);
    unpack_pair(out + 2, v.y);
    unpack_pair(out + 4, v.z);
    unpack_pair(out + 6, v.w);
}
/* One access each: of a plain assignment the compiler may make several. */
__device__ static inline void store_whole(void *p, uint2 v) {
#ifdef MM_CUDA_SHIM
    *static_cast<uint2 *>(p) = v;
#else
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(p)), "r"(v.x),
                 "r"(v.y)
                 : "memory");
#endif
}
__device__ static inline void store_whole(void *p, uint4 v) {
#ifdef MM_CUDA_SHIM
    *static_cast<uint4 *>(p) = v;
#else
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)),
                 "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
#endif
}
template <unsigned N> __device__ static inline void store_wide(float *p, const float (&in)[N]) {
#pragma unroll
    for (unsigned k = 0; k < N; k += 4)
        store_whole(p + k, uint4{__float_as_uint(in[k]), __float_as_uint(in[k + 1]),
                                 __float_as_uint(in[k + 2]), __float_as_uint(in[k + 3])});
}
__device__ static inline void store_wide(bf16 *p, const float (&in)[4]) {
    store_whole(p, uint2{bf16_pair(in[0], in[1]), bf16_pair(in[2], in[3])});
}
__device__ static inline void store_wide(bf16 *p, const float (&in)[8]) {
    store_whole(p, uint4{bf16_pair(in[0], in[1]), bf16_pair(in[2], in[3]), bf16_pair(in[4], in[5]),
                         bf16_pair(in[6], in[7])});
}

/* Elements [first, first + N) of p; unless WIDE, those outside [low, high) are not touched, and
 * `other` is what out has of them. */
template <bool WIDE, unsigned N, typename T>
__device__ static inline void load_group(float (&out)[N], const T *p, size_t first, size_t low,
                                         size_t high, float other = 0.0f) {
    if constexpr (WIDE)
        load_wide(out, p + first);
    else
#pragma unroll
        for (unsigned k = 0; k < N; k++)
            out[k] = first + k >= low && first + k < high ? to_float(p[first + k]) : other;
}
template <bool WIDE, unsigned N, typename T>
__device__ static inline void store_group(T *p, const float (&in)[N], size_t first, size_t low,
                                          size_t high) {
    if constexpr (WIDE)
        store_wide(p + first, in);
    else
#pragma unroll
        for (unsigned k = 0; k < N; k++)
            if (first + k >= low && first + k < high)
                p[first + k] = from_float<T>(in[k]);
}

/* What kernels/tensor.c makes of a float, NaN's bits too, of which the hardware would make one. */
__device__ static inline uint16_t bf16_from_f32(float value) {
    uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return static_cast<uint16_t>(bits >> 16 | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
__device__ static inline void store_converted(uint16_t *p, const float (&in)[4]) {
    uint32_t x = bf16_from_f32(in[0]), y = bf16_from_f32(in[2]);
    x |= static_cast<uint32_t>(bf16_from_f32(in[1])) << 16;
    y |= static_cast<uint32_t>(bf16_from_f32(in[3])) << 16;
    store_whole(p, uint2{x, y});
}
__device__ static inline void store_converted(float *p, const float (&in)[4]) {
    store_wide(p, in);
}
/* A single one, where the compiler does not see that p is global memory. */
__device__ static inline void store_converted(uint16_t *p, float in) {
#ifdef MM_CUDA_SHIM
    *p = bf16_from_f32(in);
#else
    asm volatile("st.global.u16 [%0], %1;" ::"l"(__cvta_generic_to_global(p)),
                 "h"(bf16_from_f32(in))
                 : "memory");
#endif
}
__device__ static inline void store_converted(float *p, float in) {
#ifdef MM_CUDA_SHIM
    *p = in;
#else
    asm volatile("st.global.f32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "f"(in) : "memory");
#endif
}

/* -- device side: approximations --------------------------------------------------------------- */

#define LOG2_E 1.4426950408889634f

/* 2^x and 1/x, a few units of float32's last place off. */
__device__ static inline float exp2_fast(float x) {
#ifdef MM_CUDA_SHIM
    float y = exp2f(x);
    return x == 0 ? y : shim_noisy(y, y * 0x1p-22f);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}
__device__ static inline float reciprocal_fast(float x) {
#ifdef MM_CUDA_SHIM
    return shim_noisy(1.0f / x, 0x1p-23f / x);
#else
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

/* e^x and 1/x as results of type T deserve them. */
template <typename T> __device__ static inline float exp_for(float x) {
    return sizeof(T) == 4 ? expf(x) : exp2_fast(x * LOG2_E);
}
template <typename T> __device__ static inline float reciprocal_for(float x) {
    return sizeof(T) == 4 ? 1.0f / x : reciprocal_fast(x);
}

/* -- device side: sums ------------------------------------------------------------------------- */

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
