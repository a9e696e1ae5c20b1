/* cuda_shim.h - the part of CUDA that kernels/cuda uses, for the host's C++ compiler: the same
 * kernels run on the CPU, so that their tests need no GPU.
 *
 * Given to the compiler before any other file (-include), with MM_CUDA_SHIM defined. Blocks run one
 * after the other; each thread of a block is a fiber that runs until it waits. The order of threads
 * and blocks is the environment variable MM_SHIM_ORDER: "ascending" (if unset), "descending" or
 * "random:SEED"; a result that depends on it lacks a barrier. A barrier that some thread never
 * reaches, or that threads wait for in different places, ends the program with a message, as does a
 * shuffle whose mask names a lane that doesn't come. A GPU lands an asynchronous copy some time
 * between its begin and the wait for it: MM_SHIM_COPIES is "late" (if unset), when it is waited
 * for, or "early", at once. A missing wait shows in the one, a begin before the barrier that frees
 * its place in the other. */
#ifndef MM_TEST_CUDA_SHIM_H
#define MM_TEST_CUDA_SHIM_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <functional>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__      static
#define __constant__    static const
#define __launch_bounds__(...)

struct uint2 {
    unsigned x, y;
};
struct uint3 {
    unsigned x, y, z;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
static inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}
static inline float2 make_float2(float x, float y) {
    return {x, y};
}

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

/* -- launches and barriers, cuda_shim.cc ------------------------------------------------------- */

typedef struct shim_stream *cudaStream_t;

/* Done when somebody waits for the stream; while it is captured, at each launch of its graph. */
void shim_enqueue(cudaStream_t stream, std::function<void()> work);
/* Whether this is the host, and not a stream's work; with `now`, all that was noted is done then,
 * unless a stream is captured. */
bool shim_progress(bool now);
void shim_launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                 std::function<void()> thread);
void *
shim_shared(void); /* the block's dynamic shared memory; its contents are no numbers at first */
bool shim_device_block(const void *p, char **first, size_t *bytes);
/* Of `bytes` bytes, zeros if `from` is NULL; for this thread. Both places are multiples of them. */
void shim_copy_begin(void *to, const void *from, int bytes);
void shim_copies_wait(void);
[[noreturn]] void shim_fault(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Arguments are copied now: what they are taken from may change before the kernel runs. */
template <typename Kernel, typename... Arguments>
static inline void shim_run(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                            Kernel kernel, Arguments... arguments) {
    shim_launch(grid, block, shared_bytes, stream, [=] { kernel(arguments...); });
}

#define MM_LAUNCH_ON(stream, kernel, grid, block, shared_bytes, ...)                               \
    shim_run(                                                                                      \
        dim3(grid), dim3(block), (shared_bytes), (stream),                                         \
        [=](auto... arguments) { kernel(arguments...); }, __VA_ARGS__)
#define MM_SHARED(type, name) type *name = static_cast<type *>(shim_shared())

/* Where a thread waits, for the messages; a caller's place, through default arguments. */
struct shim_place {
    const char *file;
    int line;
};
void shim_barrier(shim_place place);
/* Every lane of `mask` brings a value of `bytes` and gets that of lane `source`. */
void shim_exchange(unsigned mask, const void *value, void *result, size_t bytes, unsigned source,
                   shim_place place);
/* Every lane of the warp brings `bytes` and gets all lanes', in order. */
void shim_gather(const void *value, void *all, size_t bytes, shim_place place);

#define SHIM_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

static inline void __syncthreads(SHIM_HERE) {
    shim_barrier({file, line});
}
static inline unsigned shim_lane() {
    return (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32;
}
static inline void __syncwarp(unsigned mask = 0xffffffffu, SHIM_HERE) {
    char none = 0, unused;
    shim_exchange(mask, &none, &unused, 1, shim_lane(), {file, line});
}
template <typename V>
static inline V __shfl_sync(unsigned mask, V value, int source, int width = 32, SHIM_HERE) {
    V result;
    unsigned first = shim_lane() & ~static_cast<unsigned>(width - 1);
    shim_exchange(mask, &value, &result, sizeof value,
                  first + (static_cast<unsigned>(source) & static_cast<unsigned>(width - 1)),
                  {file, line});
    return result;
}
template <typename V>
static inline V __shfl_xor_sync(unsigned mask, V value, int other, SHIM_HERE) {
    V result;
    shim_exchange(mask, &value, &result, sizeof value, shim_lane() ^ static_cast<unsigned>(other),
                  {file, line});
    return result;
}
template <typename V>
static inline V __shfl_down_sync(unsigned mask, V value, unsigned by, SHIM_HERE) {
    V result;
    unsigned lane = shim_lane();
    shim_exchange(mask, &value, &result, sizeof value, lane + by < 32 ? lane + by : lane,
                  {file, line});
    return result;
}
template <typename V>
static inline V __shfl_up_sync(unsigned mask, V value, unsigned by, SHIM_HERE) {
    V result;
    unsigned lane = shim_lane();
    shim_exchange(mask, &value, &result, sizeof value, lane >= by ? lane - by : lane, {file, line});
    return result;
}
[[noreturn]] static inline void __trap(void) {
    shim_fault("a kernel trapped");
}

/* -- numbers ----------------------------------------------------------------------------------- */

static inline float __uint_as_float(unsigned bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
static inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, 4);
    return bits;
}
/* x, or with MM_NOISE=SEED in the environment another number within `room` of it, as hardware may
 * give that adds in another order or approximates: the same of the same x, and drawn by the seed.
 */
float shim_noisy(float x, float room);

template <typename V> static inline V __ldg(const V *p) {
    return *p;
}

struct __nv_bfloat16 {
    uint16_t bits;
};
static inline float __bfloat162float(__nv_bfloat16 x) {
    return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}
static inline __nv_bfloat16 __float2bfloat16_rn(float x) { /* makes one NaN of all, as a GPU does */
    unsigned bits = __float_as_uint(x);
    if (isnan(x))
        return {0x7fff};
    return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) {
    return x.bits;
}
static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    return {bits};
}

/* -- the runtime ------------------------------------------------------------------------------
 *
 * One device. Its streams are lazy: work is only noted, and done when the host waits for it; so
 * that a missing wait shows. Its memory is the host's, but not the host's to touch: outside the
 * device's work that is a segmentation fault (not with AddressSanitizer, which has its own checks).
 * What CUDA forbids during a capture ends the program with a message. One host thread; another may
 * ask for cudaEventQuery. */

enum cudaError_t {
    cudaSuccess,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorNotReady = 600,
};
enum cudaMemcpyKind {
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice
};
enum cudaStreamCaptureMode {
    cudaStreamCaptureModeGlobal,
    cudaStreamCaptureModeThreadLocal,
    cudaStreamCaptureModeRelaxed
};
typedef struct shim_event *cudaEvent_t;
typedef struct shim_graph *cudaGraph_t, *cudaGraphExec_t;
#define cudaStreamNonBlocking  1u
#define cudaHostAllocDefault   0u
#define cudaHostAllocPortable  1u
#define cudaHostAllocMapped    2u
#define cudaEventDefault       0u
#define cudaEventBlockingSync  1u
#define cudaEventDisableTiming 2u
struct cudaDeviceProp {
    char name[256];
    int major, minor;
};

cudaError_t cudaGetLastError(void);
const char *cudaGetErrorString(cudaError_t result);

cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaRuntimeGetVersion(int *version);
cudaError_t cudaSetDevice(int index);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int index);
cudaError_t cudaDeviceGetPCIBusId(char *text, int bytes, int index);
cudaError_t cudaDeviceSynchronize(void);

cudaError_t cudaMalloc(void **block, size_t bytes); /* its contents are no numbers */
cudaError_t cudaFree(void *block);                  /* waits, as the next one */
cudaError_t cudaFreeHost(void *block);
cudaError_t cudaHostAlloc(void **block, size_t bytes, unsigned flags);
cudaError_t cudaHostGetDevicePointer(void **on_device, void *block, unsigned flags);
cudaError_t cudaMemGetInfo(size_t *available, size_t *all);
cudaError_t cudaMemsetAsync(void *block, int value, size_t bytes, cudaStream_t stream);
/* Of memory that cudaHostAlloc didn't give: `host` is read as late as any other, as by a GPU that
 * reads the host's memory itself, or written and waited for. */
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
cudaError_t cudaEventQuery(cudaEvent_t event);
cudaError_t cudaEventDestroy(cudaEvent_t event);

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *runnable, cudaGraph_t graph,
                                 unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t runnable, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t runnable);

/* The matrix products' library isn't there: cuda_shim_matrix.cc has the operations themselves. */
typedef void *cublasLtHandle_t;
enum cublasStatus_t { CUBLAS_STATUS_SUCCESS };
static inline cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    *handle = NULL;
    return CUBLAS_STATUS_SUCCESS;
}
static inline cublasStatus_t cublasLtDestroy(cublasLtHandle_t) {
    return CUBLAS_STATUS_SUCCESS;
}

#endif
