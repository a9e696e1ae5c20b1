/* cuda_shim_runtime.cc - the CUDA runtime of cuda_shim.h: one device, whose memory is the host's.
 */
#include <stdlib.h>

cudaError_t cudaMalloc(void **block, size_t bytes) {
    if (posix_memalign(block, 256, bytes) != 0)
        return cudaErrorMemoryAllocation;
    memset(*block, 0xff, bytes);
    return cudaSuccess;
}

cudaError_t cudaFree(void *block) {
    free(block);
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *all) {
    *available = *all = 0;
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *block, int value, size_t bytes, cudaStream_t) {
    memset(block, value, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
    memcpy(dst, src, bytes);
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int) {
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int) {
    *properties = {"shim", 9, 0};
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    *stream = NULL;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t) {
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t) {
    return "out of memory";
}
