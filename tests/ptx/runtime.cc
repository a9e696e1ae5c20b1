/* runtime.cc - what nvcc's host code calls to register and to launch kernels: a launch runs the
 * kernel's PTX. The rest of the CUDA runtime is the host shim's.
 *
 * The PTX is read from the folder PTX_FOLDER, or from the environment variable MM_PTX: a folder
 * that another PTX of the same kernels lies in. */
#include "tests/ptx/machine.h"

#include <cublasLt.h>
#include <stdarg.h>
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace ptx {

/* -- kernels ----------------------------------------------------------------------------------- */

struct registered {
    std::string name;
    size_t dynamic_bytes = 48 * 1024; /* what a launch may ask for */
};

static std::map<const void *, registered> &registry() { /* by the host's function */
    static std::map<const void *, registered> all;
    return all;
}

static std::string whole_file(const std::filesystem::path &path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
}

/* Reads the file that has the kernel; no more than is needed, as they are large. */
static const kernel &find_kernel(const std::string &name) {
    static std::map<std::string, kernel> kernels;
    auto known = kernels.find(name);
    if (known != kernels.end())
        return known->second;
    const char *folder = getenv("MM_PTX");
    for (const auto &entry : std::filesystem::directory_iterator(folder ? folder : PTX_FOLDER))
        if (entry.path().extension() == ".ptx" &&
            whole_file(entry.path()).find(".entry " + name + "(") != std::string::npos)
            read_kernel(entry.path(), name, kernels[name]);
    if (!kernels.count(name))
        fatal("no PTX of %s", name.c_str());
    return kernels[name];
}

range device_range(const void *p) {
    static std::map<char *, marks> all; /* by where a block begins */
    char *first;
    size_t bytes;
    if (!shim_device_block(p, &first, &bytes))
        return {};
    return {first, first + bytes, &all[first]};
}

static registered &registered_as(const void *function) {
    auto found = registry().find(function);
    if (found == registry().end())
        fatal("a launch of no kernel");
    return found->second;
}

/* Arguments are copied now: what they are taken from may change before the kernel runs. */
static void enqueue(const void *function, dim3 grid, dim3 block, void **arguments,
                    size_t dynamic_bytes, cudaStream_t stream) {
    const registered &r = registered_as(function);
    const kernel &k = find_kernel(r.name);
    if (dynamic_bytes > r.dynamic_bytes)
        fatal("%s: %zu bytes of shared memory, %zu are allowed", r.name.c_str(), dynamic_bytes,
              r.dynamic_bytes);
    launch l = {&k, {grid.x, grid.y, grid.z}, {block.x, block.y, block.z}, dynamic_bytes, {}};
    l.parameters.resize(k.parameter_bytes);
    for (size_t i = 0; i < k.parameters.size(); i++)
        memcpy(&l.parameters[k.parameters[i].offset], arguments[i], k.parameters[i].bytes);
    shim_enqueue(stream, [l] { run(l); });
}

/* <<<...>>> leaves its configuration for the call that follows. */
struct configuration {
    dim3 grid, block;
    size_t dynamic_bytes;
    cudaStream_t stream;
};
static configuration pushed;

} // namespace ptx

void shim_fault(const char *format, ...) {
    va_list arguments;
    fprintf(stderr, "cuda: ");
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    abort();
}

/* -- called by nvcc's code -----------------------------------------------------------------------
 */

extern "C" {

void **__cudaRegisterFatBinary(void *) {
    return NULL;
}
void __cudaRegisterFatBinaryEnd(void **) {}
void __cudaUnregisterFatBinary(void **) {}

void __cudaRegisterFunction(void **, const char *function, char *, const char *name, int, uint3 *,
                            uint3 *, dim3 *, dim3 *, int *) {
    ptx::registry()[function].name = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t dynamic_bytes,
                                     struct CUstream_st *stream) {
    ptx::pushed = {grid, block, dynamic_bytes, stream};
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *dynamic_bytes,
                                       void *stream) {
    *grid = ptx::pushed.grid;
    *block = ptx::pushed.block;
    *dynamic_bytes = ptx::pushed.dynamic_bytes;
    *static_cast<cudaStream_t *>(stream) = ptx::pushed.stream;
    return cudaSuccess;
}

/* A kernel's handle is the host's function here. */
cudaError_t __cudaGetKernel(cudaKernel_t *handle, const void *function) {
    *handle = reinterpret_cast<cudaKernel_t>(const_cast<void *>(function));
    return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t handle, dim3 grid, dim3 block, void **arguments,
                               size_t dynamic_bytes, cudaStream_t stream) {
    ptx::enqueue(handle, grid, block, arguments, dynamic_bytes, stream);
    return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void *function, cudaFuncAttribute attribute, int value) {
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize)
        ptx::registered_as(function).dynamic_bytes = static_cast<size_t>(value);
    return cudaSuccess;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    *handle = NULL;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t) {
    return CUBLAS_STATUS_SUCCESS;
}

} // extern "C"
