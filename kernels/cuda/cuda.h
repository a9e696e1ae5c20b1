/* cuda.h - what the files of the CUDA backend share.
 *
 * Kernels are CUDA C with one template parameter, the type of activations and weights: float or
 * bfloat16; all arithmetic and accumulation is float32 (double where ops.h says so). No atomics on
 * floats: sums are taken in a fixed order, so that a run repeats bit by bit. Every kernel is
 * launched through MM_LAUNCH or MM_LAUNCH_ON and nowhere else: where MM_CUDA_SHIM is defined, the
 * compiler was given the host shim (tests/shim/cuda_shim.h) before this file, and the same source
 * runs on the CPU, block by block. So in a kernel: all threads of a block reach every
 * __syncthreads() and leave only after the last one; a mask names the lanes that come; shared
 * memory starts undefined. */
#ifndef MM_CUDA_H
#define MM_CUDA_H

extern "C" {
#include "kernels/ops.h"
#include "kernels/queue.h"
}

#ifndef MM_CUDA_SHIM
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#define MM_LAUNCH_ON(stream, kernel, grid, block, shared_bytes, ...)                               \
    do {                                                                                           \
        kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__);                        \
        MM_CUDA(cudaGetLastError());                                                               \
    } while (0)
/* Dynamic shared memory of a kernel, as an array of `type`. */
#define MM_SHARED(type, name)                                                                      \
    extern __shared__ __align__(16) unsigned char name##_bytes[];                                  \
    type *name = reinterpret_cast<type *>(name##_bytes)
#endif

/* On the device's stream. */
#define MM_LAUNCH(kernel, grid, block, shared_bytes, dev, ...)                                     \
    MM_LAUNCH_ON(cuda_context(dev)->stream, kernel, grid, block, shared_bytes, __VA_ARGS__)

typedef __nv_bfloat16 bf16;

#define MM_CUDA(call)                                                                              \
    do {                                                                                           \
        cudaError_t cuda_result = (call);                                                          \
        MM_CHECK(cuda_result == cudaSuccess, "CUDA: %s", cudaGetErrorString(cuda_result));         \
    } while (0)

struct scratch_block {
    struct scratch_block *outgrown;
    void *data;
};

struct cuda_context {
    cudaStream_t stream;
    cublasLtHandle_t lt;
    void *workspace; /* cuBLASLt's, ours to own: the same one gives the same bits */
    size_t workspace_bytes;
    struct scratch_block
        *scratch; /* the newest; the outgrown ones stay, for recordings know them */
    size_t scratch_bytes;
    cudaEvent_t marks[MM_MARKS];
    bool recording;
    struct cuda_choices *choices; /* matrix.cu's, by mm_calloc; NULL before the first product */
    struct mm_queue queue;
    struct mm_ops ops;
    char name[280];
};

static inline struct cuda_context *cuda_context(struct mm_device *dev) {
    return static_cast<struct cuda_context *>(dev->context);
}

/* Device memory of at least `bytes`, 256-byte aligned, not zeroed; valid until the next call.
 * Growing it while recording is a fault. */
void *cuda_scratch(struct mm_device *dev, size_t bytes);

__device__ static inline float to_float(float x) {
    return x;
}
__device__ static inline float to_float(bf16 x) {
    return __bfloat162float(x);
}
template <typename T> __device__ static inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x) {
    return x;
}
template <> __device__ inline bf16 from_float<bf16>(float x) {
    return __float2bfloat16_rn(x);
}

/* Calls `function<T>(...)` with T by dtype. */
#define MM_BY_DTYPE(dtype, function, ...)                                                          \
    do {                                                                                           \
        if ((dtype) == MM_BF16)                                                                    \
            function<bf16>(__VA_ARGS__);                                                           \
        else                                                                                       \
            function<float>(__VA_ARGS__);                                                          \
    } while (0)

/* -- the operations, see kernels/ops.h; each in the file named after its group ----------------- */
#define CUDA_DECLARE(name) extern __typeof__(*((struct mm_ops *)0)->name) cuda_##name;
MM_OPERATIONS(CUDA_DECLARE)

#endif
