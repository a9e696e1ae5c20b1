/* vector.h - what the files of Algorithm 1's vector operations share. */
#ifndef MM_CUDA_VECTOR_H
#define MM_CUDA_VECTOR_H

#include "kernels/cuda/block.h"

/* Elements a thread takes at once: 16 bytes of float32, side by side across a warp. */
#define QUAD 4u

/* Elements a block sums up; the blocks' sums are added in an order of their own. */
#define CHUNK ((size_t)16384)

/* x as a state of type S stores it: PyTorch's bfloat16 operations round so (docs/method.md 6). */
template <typename S> __device__ static inline float round_to(float x) {
    return to_float(from_float<S>(x));
}

/* The first of n tensors that reaches beyond element `at` of a vector; n: none does. */
__device__ static inline size_t tensor_at(const size_t *offsets, size_t n, size_t at) {
    size_t low = 0, high = n;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (offsets[middle + 1] > at)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

__device__ static inline void guard_finite(double value, enum mm_guard code, uint32_t *stop) {
    if (*stop == MM_GUARD_NONE && !isfinite(value))
        *stop = code;
}

/* Of a norm that is divided by. */
__device__ static inline void guard_divisor(double norm, uint32_t *stop) {
    if (*stop == MM_GUARD_NONE && (!isfinite(norm) || norm == 0))
        *stop = MM_GUARD_ZERO_NORM;
}

#endif
