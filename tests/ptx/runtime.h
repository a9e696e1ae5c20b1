/* runtime.h - given to the compiler before the host shim's runtime
 * (tests/shim/cuda_shim_runtime.cc) in place of cuda_shim.h: the same runtime behind the interface
 * of the real one, so that programs whose CUDA objects nvcc has compiled link with it. */
#ifndef MM_TEST_PTX_RUNTIME_H
#define MM_TEST_PTX_RUNTIME_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <functional>

/* The types behind the runtime's handles are the shim's. */
#define CUstream_st    shim_stream
#define CUevent_st     shim_event
#define CUgraph_st     shim_graph
#define CUgraphExec_st shim_graph
#include <cuda_runtime_api.h>

float shim_noisy(float x, float room);
void shim_enqueue(cudaStream_t stream, std::function<void()> work);
[[noreturn]] void shim_fault(const char *format, ...) __attribute__((format(printf, 1, 2)));
bool shim_device_block(const void *p, char **first, size_t *bytes);

#endif
