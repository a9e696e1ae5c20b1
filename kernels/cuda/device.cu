/* device.cu - the CUDA backend's tables: the device, its memory, and the operations of the other
 * files. One stream, so that every operation follows the one before it. */
#include "kernels/cuda/block.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* -- memory ------------------------------------------------------------------------------------ */

/* For what no arena counts. */
static void *take(size_t bytes) {
    void *block = nullptr;
    cudaError_t result = cudaMalloc(&block, bytes ? bytes : 1);
    if (result != cudaSuccess) {
        size_t available = 0, all = 0;
        (void)cudaMemGetInfo(&available, &all);
        MM_CHECK(false, "GPU memory: %zu bytes asked for, %zu of %zu are free: %s", bytes,
                 available, all, cudaGetErrorString(result));
    }
    return block;
}

static void cuda_zero(struct mm_device *dev, void *block, size_t bytes) {
    MM_CUDA(cudaMemsetAsync(block, 0, bytes, cuda_context(dev)->stream));
}

static void *cuda_alloc(struct mm_device *dev, size_t bytes) {
    void *block = nullptr;
    cudaError_t result = cudaMalloc(&block, bytes ? bytes : 1);
    if (result == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError(); /* it is told, not kept for the next check */
        return nullptr;
    }
    MM_CUDA(result);
    cuda_zero(dev, block, bytes);
    return block;
}

static void cuda_free(struct mm_device *dev, void *block) {
    (void)dev;
    MM_CUDA(cudaFree(block)); /* waits for the device */
}

static void cuda_copy(struct mm_device *dev, void *dst, const void *src, size_t bytes) {
    MM_CUDA(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, cuda_context(dev)->stream));
}

/* The first to wait for the device learns of a fault in what it was asked before. */
#define CUDA_WAIT(call)                                                                            \
    do {                                                                                           \
        cudaError_t cuda_result = (call);                                                          \
        MM_CHECK(cuda_result == cudaSuccess,                                                       \
                 "CUDA: %s, in work that was asked for earlier: with the environment variable "    \
                 "CUDA_LAUNCH_BLOCKING=1 the operation itself says so",                            \
                 cudaGetErrorString(cuda_result));                                                 \
    } while (0)

static void cuda_upload_later(struct mm_device *dev, void *dst, const void *pinned, size_t bytes) {
    MM_CUDA(cudaMemcpyAsync(dst, pinned, bytes, cudaMemcpyHostToDevice, cuda_context(dev)->stream));
}

/* Where the device reads the host's memory itself, `host` is read as late as it is the stream's
 * turn. */
static void cuda_upload(struct mm_device *dev, void *dst, const void *host, size_t bytes) {
    cuda_upload_later(dev, dst, host, bytes);
    CUDA_WAIT(cudaStreamSynchronize(cuda_context(dev)->stream));
}

static void cuda_download(struct mm_device *dev, void *host, const void *src, size_t bytes) {
    struct cuda_context *context = cuda_context(dev);
    MM_CUDA(cudaMemcpyAsync(host, src, bytes, cudaMemcpyDeviceToHost, context->stream));
    CUDA_WAIT(cudaStreamSynchronize(context->stream));
}

void *cuda_scratch(struct mm_device *dev, size_t bytes) {
    struct cuda_context *context = cuda_context(dev);
    if (bytes > context->scratch_bytes) {
        MM_CHECK(!context->recording, "scratch grows while recording");
        struct scratch_block *bigger =
            static_cast<struct scratch_block *>(mm_calloc(1, sizeof *bigger));
        *bigger = {context->scratch, take(bytes)};
        context->scratch = bigger;
        context->scratch_bytes = bytes;
        dev->own_bytes += bytes;
    }
    return context->scratch ? context->scratch->data : nullptr;
}

/* -- running ahead ----------------------------------------------------------------------------- */

static void *cuda_pinned_alloc(struct mm_device *dev, size_t bytes) {
    void *block = nullptr;
    (void)dev;
    cudaError_t result = cudaHostAlloc(&block, bytes ? bytes : 1, cudaHostAllocDefault);
    MM_CHECK(result == cudaSuccess, "%zu bytes of pinned host memory: %s", bytes,
             cudaGetErrorString(result));
    return memset(block, 0, bytes);
}

static void cuda_pinned_free(struct mm_device *dev, void *block) {
    (void)dev;
    MM_CUDA(cudaFreeHost(block));
}

static void cuda_download_later(struct mm_device *dev, void *pinned, const void *src,
                                size_t bytes) {
    MM_CUDA(cudaMemcpyAsync(pinned, src, bytes, cudaMemcpyDeviceToHost, cuda_context(dev)->stream));
}

static void cuda_mark(struct mm_device *dev, int slot) {
    MM_CUDA(cudaEventRecord(cuda_context(dev)->marks[slot], cuda_context(dev)->stream));
}

static void cuda_wait(struct mm_device *dev, int slot) {
    CUDA_WAIT(cudaEventSynchronize(cuda_context(dev)->marks[slot]));
}

/* Whether the user wants every call to end before the next begins: then nothing is recorded. */
static bool launches_block(void) {
    const char *text = getenv("CUDA_LAUNCH_BLOCKING");
    return text && *text && strcmp(text, "0") != 0;
}

/* Thread-local: a watchdog may ask after events meanwhile. */
static bool cuda_record(struct mm_device *dev) {
    struct cuda_context *context = cuda_context(dev);
    context->recording =
        !launches_block() &&
        cudaStreamBeginCapture(context->stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess;
    if (!context->recording)
        (void)cudaGetLastError(); /* it is told, not kept for the next check */
    return context->recording;
}

static void *cuda_recorded(struct mm_device *dev, struct mm_error *err) {
    struct cuda_context *context = cuda_context(dev);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t runnable = nullptr;
    cudaError_t result = cudaStreamEndCapture(context->stream, &graph);
    context->recording = false;
    if (result == cudaSuccess)
        result = cudaGraphInstantiate(&runnable, graph, 0);
    if (graph)
        (void)cudaGraphDestroy(graph);
    if (result == cudaSuccess)
        return runnable;
    (void)cudaGetLastError();
    mm_fail(err, MM_FAILED, "CUDA graph: %s", cudaGetErrorString(result));
    return nullptr;
}

static void cuda_replay(struct mm_device *dev, void *recording) {
    MM_CUDA(cudaGraphLaunch(static_cast<cudaGraphExec_t>(recording), cuda_context(dev)->stream));
}

static void cuda_recording_free(struct mm_device *dev, void *recording) {
    MM_CUDA(cudaStreamSynchronize(cuda_context(dev)->stream));
    MM_CUDA(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(recording)));
}

/* -- conversion: bit by bit what kernels/tensor.c does ----------------------------------------- */

__device__ static inline uint16_t f16_from_f32(float value) {
    uint32_t bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u)
        return static_cast<uint16_t>(sign | 0x7e00u);
    if (bits >= 0x477ff000u) /* 65520: rounds beyond the largest finite value */
        return static_cast<uint16_t>(sign | 0x7c00u);
    if (bits < 0x38800000u) /* below 2^-14: adding 1/2 aligns the units of 2^-24 */
        bits = __float_as_uint(__uint_as_float(bits) + 0.5f) - 0x3f000000u;
    else
        bits = (bits + 0xfffu + (bits >> 13 & 1u) - 0x38000000u) >> 13;
    return static_cast<uint16_t>(sign | bits);
}

__device__ static inline float f32_from_f16(uint16_t value) {
    uint32_t sign = (value & 0x8000u) << 16, exponent = value >> 10 & 31u, mantissa = value & 1023u;
    if (exponent == 31)
        return __uint_as_float(sign | 0x7f800000u | mantissa << 13);
    if (exponent)
        return __uint_as_float(sign | (exponent + 112) << 23 | mantissa << 13);
    return __uint_as_float(sign | __float_as_uint(static_cast<float>(mantissa) * 0x1p-24f));
}

__global__ static void convert_kernel(void *dst, enum mm_dtype to, const void *src,
                                      enum mm_dtype from, size_t n) {
    size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x;
    if (i >= n)
        return;
    uint16_t half = from == MM_F32 ? 0 : static_cast<const uint16_t *>(src)[i];
    float value = from == MM_F32    ? static_cast<const float *>(src)[i]
                  : from == MM_BF16 ? __uint_as_float(static_cast<uint32_t>(half) << 16)
                                    : f32_from_f16(half);
    if (to == MM_F32)
        static_cast<float *>(dst)[i] = value;
    else
        static_cast<uint16_t *>(dst)[i] =
            to == MM_BF16 ? bf16_from_f32(value) : f16_from_f32(value);
}

/* What every pass begins with: the weights of float32 state. Two groups of four a thread, n a
 * multiple of 4. */
#define NARROW_TILE ((size_t)8 * BLOCK)

__global__ static void narrow_kernel(uint16_t *dst, const float *src, size_t n) {
    size_t first = NARROW_TILE * blockIdx.x + 4 * threadIdx.x;
    float v[2][4];
#pragma unroll
    for (unsigned i = 0; i < 2; i++)
        if (first + i * 4 * BLOCK < n)
            load_wide(v[i], src + first + i * 4 * BLOCK);
#pragma unroll
    for (unsigned i = 0; i < 2; i++)
        if (first + i * 4 * BLOCK < n)
            store_converted(dst + first + i * 4 * BLOCK, v[i]);
}

static void cuda_convert(struct mm_device *dev, void *dst, enum mm_dtype dst_dtype, const void *src,
                         enum mm_dtype src_dtype, size_t n) {
    if (dst_dtype == src_dtype)
        cuda_copy(dev, dst, src, n * mm_dtype_bytes(dst_dtype));
    else if (n && dst_dtype == MM_BF16 && src_dtype == MM_F32 && n % 4 == 0 && aligned16(dst) &&
             aligned16(src))
        MM_LAUNCH(narrow_kernel, blocks_for(n, NARROW_TILE), BLOCK, 0, dev,
                  static_cast<uint16_t *>(dst), static_cast<const float *>(src), n);
    else if (n)
        MM_LAUNCH(convert_kernel, blocks_for(n, BLOCK), BLOCK, 0, dev, dst, dst_dtype, src,
                  src_dtype, n);
}

/* -- the device -------------------------------------------------------------------------------- */

static void cuda_close(struct mm_device *dev) {
    struct cuda_context *context = cuda_context(dev);
    MM_CUDA(cudaStreamSynchronize(context->stream));
    while (struct scratch_block *newest = context->scratch) {
        context->scratch = newest->outgrown;
        MM_CUDA(cudaFree(newest->data));
        mm_free(newest);
    }
    MM_CUDA(cudaFree(context->workspace));
    for (cudaEvent_t mark : context->marks)
        MM_CUDA(cudaEventDestroy(mark));
    cublasLtDestroy(context->lt);
    MM_CUDA(cudaStreamDestroy(context->stream));
    mm_free(context->choices);
    mm_free(context);
    mm_free(dev);
}

#define CUDA_ROW(operation) table->operation = cuda_##operation;

/* cuBLASLt reads weights as they are stored. */
static void cuda_hold(struct mm_device *dev, struct mm_mat w) {
    (void)dev;
    (void)w;
}

static void cuda_let_go(struct mm_device *dev) {
    (void)dev;
}

static void fill_queue(struct mm_queue *table) {
    table->alloc = cuda_alloc;
    table->free = cuda_free;
    table->zero = cuda_zero;
    table->copy = cuda_copy;
    table->upload = cuda_upload;
    table->download = cuda_download;
    table->pinned_alloc = cuda_pinned_alloc;
    table->pinned_free = cuda_pinned_free;
    table->upload_later = cuda_upload_later;
    table->download_later = cuda_download_later;
    table->mark = cuda_mark;
    table->wait = cuda_wait;
    table->record = cuda_record;
    table->recorded = cuda_recorded;
    table->replay = cuda_replay;
    table->recording_free = cuda_recording_free;
}

static void fill_ops(struct mm_ops *table) {
    table->chunk = MM_CUDA_CHUNK;
    table->convert = cuda_convert;
    table->hold = cuda_hold;
    table->let_go = cuda_let_go;
    MM_OPERATIONS(CUDA_ROW)
}

int mm_cuda_device_count(void) {
    int count = 0;
    return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

char *mm_cuda_text(void) {
    int runtime = 0, driver = 0, count = mm_cuda_device_count();
    (void)cudaRuntimeGetVersion(&runtime);
    (void)cudaDriverGetVersion(&driver);
    if (driver == 0)
        return mm_format("runtime %d.%d, no driver", runtime / 1000, runtime % 1000 / 10);
    return mm_format("runtime %d.%d, driver for %d.%d, %d GPU%s", runtime / 1000,
                     runtime % 1000 / 10, driver / 1000, driver % 1000 / 10, count,
                     count == 1 ? "" : "s");
}

/* Whether device `index` can be used, and its name; else the text says why not. */
static bool device_name(int index, char *name, size_t bytes, struct mm_error *err) {
    int count = 0, driver = 0;
    struct cudaDeviceProp properties;
    cudaError_t result = cudaGetDeviceCount(&count);
    if (result != cudaSuccess && cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0) {
        mm_fail(err, MM_FAILED, "no usable GPU: this machine has no NVIDIA driver");
        return false;
    }
    if (result == cudaSuccess && index >= count) {
        mm_fail(err, MM_FAILED, "GPU %d asked for, %d visible (CUDA_VISIBLE_DEVICES)", index,
                count);
        return false;
    }
    if (result == cudaSuccess)
        result = cudaSetDevice(index);
    if (result == cudaSuccess)
        result = cudaGetDeviceProperties(&properties, index);
    if (result != cudaSuccess) {
        mm_fail(err, MM_FAILED, "no usable GPU: %s", cudaGetErrorString(result));
        return false;
    }
    if (properties.major < 8) {
        mm_fail(err, MM_FAILED, "GPU %d is %s, of compute capability %d.%d: 8.0 is needed", index,
                properties.name, properties.major, properties.minor);
        return false;
    }
    snprintf(name, bytes, "cuda %s", properties.name);
    return true;
}

struct mm_device *mm_device_create_cuda(int index, struct mm_error *err) {
    char name[sizeof cuda_context(nullptr)->name];
    cublasLtHandle_t lt;
    if (!device_name(index, name, sizeof name, err))
        return nullptr;
    if (cublasLtCreate(&lt) != CUBLAS_STATUS_SUCCESS) {
        mm_fail(err, MM_FAILED, "cuBLASLt does not start on %s", name);
        return nullptr;
    }
    struct mm_device *dev = static_cast<struct mm_device *>(mm_calloc(1, sizeof *dev));
    struct cuda_context *context =
        static_cast<struct cuda_context *>(mm_calloc(1, sizeof *context));
    MM_CUDA(cudaStreamCreateWithFlags(&context->stream, cudaStreamNonBlocking));
    for (cudaEvent_t &mark : context->marks)
        MM_CUDA(cudaEventCreateWithFlags(&mark, cudaEventDisableTiming));
    context->lt = lt;
    context->workspace_bytes = MM_CUDA_WORKSPACE_BYTES;
    context->workspace = take(MM_CUDA_WORKSPACE_BYTES);
    memcpy(context->name, name, sizeof name);
    fill_queue(&context->queue);
    fill_ops(&context->ops);
    dev->name = context->name;
    dev->own_bytes = MM_CUDA_WORKSPACE_BYTES;
    size_t all;
    MM_CUDA(cudaMemGetInfo(&dev->free_bytes, &all));
    dev->asynchronous = true;
    dev->queue = &context->queue;
    dev->ops = &context->ops;
    dev->context = context;
    dev->close = cuda_close;
    return dev;
}
