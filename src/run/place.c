/* place.c - see place.h. */
#include "src/run/place.h"

#include "kernels/blas.h"
#include "src/run/fit.h"
#include "src/run/threads.h"

/* auto is bfloat16 on GPUs and float32 on CPUs, of all kinds: where a job happens to land must not
 * decide its arithmetic. What stored auto computed on a CPU: everything else stored what auto came
 * to. */
static void settle_dtype(struct mm_config *config, bool cuda, bool resumed) {
    if (config->model.dtype == MM_DTYPE_AUTO)
        config->model.dtype = cuda && !resumed ? MM_DTYPE_BF16 : MM_DTYPE_F32;
}

static void warn_slow(const struct mm_config *config, bool cuda) {
    if (!cuda && config->model.dtype == MM_DTYPE_BF16 && !mm_cpu_multiplies_bf16())
        mm_log0(MM_LOG_WARN,
                "model.dtype: this processor does not multiply bfloat16: products are "
                "computed in float32 after conversion, and model.dtype: float32 is faster");
}

/* A GPU on every rank, or on none: the text says where and why. */
static enum mm_status open_gpu(struct mm_device **dev, struct mm_comm *comm, struct mm_error *err) {
    int count = mm_cuda_device_count();
    struct mm_error why = {""};
    enum mm_status status = MM_OK;
    *dev = mm_device_create_cuda(count ? mm_comm_local_rank(comm) % count : 0, &why);
    if (!*dev)
        status =
            mm_fail(err, MM_BAD_INPUT, "device: cuda on rank %d: %.900s; device: cpu needs none",
                    mm_comm_rank(comm), why.text);
    status = mm_comm_agree(comm, status, err);
    if (status != MM_OK) {
        mm_device_free(*dev);
        *dev = NULL;
    }
    return status;
}

/* As open_gpu, or the CPU's. */
static void open_best(struct mm_device **dev, struct mm_comm *comm) {
    struct mm_error why;
    if (mm_comm_any(comm, mm_cuda_device_count() == 0))
        mm_log0(MM_LOG_DEBUG, "device: auto: not every rank sees a GPU");
    else if (open_gpu(dev, comm, &why) == MM_OK)
        return;
    else
        mm_log0(MM_LOG_WARN, "device: auto takes the CPU: %s", why.text);
    *dev = mm_device_create_cpu();
}

/* Where a rank has no memory for products, none goes on. */
static enum mm_status prepare_products(struct mm_comm *comm, struct mm_error *err) {
    return mm_comm_agree(comm, mm_blas_take_memory(mm_cpu_threads(), err), err);
}

static void say(const struct mm_comm *comm, const struct mm_device *dev,
                const struct mm_config *config) {
    int ranks = mm_comm_size(comm);
    bool cuda = dev->asynchronous;
    mm_log0(cuda ? MM_LOG_INFO : MM_LOG_DEBUG, "%d rank%s, %s%s%s; arithmetic %s", ranks,
            ranks == 1 ? "" : "s", dev->name, ranks == 1 ? "" : ", ",
            ranks == 1 ? "" : mm_comm_transport_name(comm), mm_dtype_name(mm_config_dtype(config)));
    if (!cuda)
        mm_log0(MM_LOG_DEBUG, "%d threads a rank", mm_cpu_threads());
}

enum mm_status mm_place_open(struct mm_device **dev, struct mm_comm *comm, struct mm_config *config,
                             bool resumed, struct mm_error *err) {
    enum mm_status status = MM_OK;
    *dev = NULL;
    if (config->device == MM_DEVICE_CPU)
        *dev = mm_device_create_cpu();
    else if (config->device == MM_DEVICE_CUDA)
        status = open_gpu(dev, comm, err);
    else
        open_best(dev, comm);
    if (status != MM_OK)
        return status;
    bool cuda = (*dev)->asynchronous;
    mm_threads_settle(comm, !cuda);
    settle_dtype(config, cuda, resumed);
    warn_slow(config, cuda);
    if (!cuda)
        status = prepare_products(comm, err);
    if (status == MM_OK)
        status = mm_fit_shard(comm, *dev, config, err);
    if (status == MM_OK)
        status = mm_comm_attach(comm, *dev, cuda ? config->transport : MM_TRANSPORT_AUTO,
                                config->reduce_dtype, err);
    if (status == MM_OK)
        say(comm, *dev, config);
    return status;
}

bool mm_place_plan(struct mm_config *config) {
    bool wanted = config->model.dtype == MM_DTYPE_BF16;
    bool cuda = config->device == MM_DEVICE_CUDA ||
                (config->device == MM_DEVICE_AUTO && (wanted || mm_cuda_device_count() > 0));
    settle_dtype(config, cuda, false);
    return cuda;
}
