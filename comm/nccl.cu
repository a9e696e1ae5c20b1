/* nccl.cu - buckets between GPUs, over NCCL.
 *
 * There is one communicator, and one stream beside the device's. All of NCCL's work goes on that
 * stream, so that its order is the same on every rank. This is the work of a bucket:
 *
 *   device's stream   ... gradients ──ready                     ┌─> what follows mm_comm_wait
 *   stream beside              └─> mark, group of messages, mark, done[ticket]
 *
 * Nothing waits for the host, and no memory is taken once all sizes have been seen. So a recording
 * of the device may hold all of it; the events bring the second stream into the recording and back.
 */
#include "comm/nccl.h"

#include <stdio.h>
#include <unistd.h>

static bool rounds(const struct over_nccl *t) {
    return t->base.reduce_dtype == MM_BF16 && t->size > 1;
}

void *mm_nccl_reserve(struct over_nccl *t, struct grown **newest, size_t bytes) {
    if (!*newest || bytes > (*newest)->bytes) {
        MM_CHECK(!cuda_context(t->dev)->recording, "buffers grow while recording");
        struct grown *bigger = static_cast<struct grown *>(mm_calloc(1, sizeof *bigger));
        *bigger = {*newest, t->dev->queue->alloc(t->dev, bytes), bytes};
        *newest = bigger;
        t->dev->own_bytes += bytes;
        t->base.room_bytes += bytes;
    }
    return (*newest)->data;
}

static void drop(struct over_nccl *t, struct grown *newest) {
    while (newest) {
        struct grown *outgrown = newest->outgrown;
        t->dev->queue->free(t->dev, newest->data);
        mm_free(newest);
        newest = outgrown;
    }
}

/* -- kernels ----------------------------------------------------------------------------------- */

/* Tells the watchdog what is under way. */
__global__ static void mark_kernel(volatile struct mm_device_progress *progress, uint64_t *steps,
                                   uint64_t doing) {
    progress->doing = doing;
    progress->steps = ++*steps;
    __threadfence_system();
}

__global__ static void round_kernel(bf16 *out, const float *in, size_t n) {
    size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x;
    if (i < n)
        out[i] = from_float<bf16>(in[i]);
}

__device__ static inline double widened(double x) {
    return x;
}
__device__ static inline float widened(float x) {
    return x;
}
__device__ static inline float widened(bf16 x) {
    return to_float(x);
}

/* sum[i] = (`add`: +=) parts[i] + parts[n + i] + ..., in rank order, in S */
template <typename S, typename P>
__global__ static void add_kernel(S *sum, const P *parts, int size, size_t n, bool add) {
    size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x;
    if (i >= n)
        return;
    S first = widened(parts[i]), total = add ? sum[i] + first : first;
    for (int r = 1; r < size; r++)
        total += widened(parts[static_cast<size_t>(r) * n + i]);
    sum[i] = total;
}

/* -- between the streams ----------------------------------------------------------------------- */

static void mark(struct over_nccl *t, uint64_t doing) {
    MM_LAUNCH_ON(t->stream, mark_kernel, 1, 1, 0, mm_watch_progress(mm_comm_watch(t->comm)),
                 t->steps, doing);
}

/* What is put on the stream now follows all that was asked of the device. */
void mm_nccl_begin(struct over_nccl *t, uint64_t watched) {
    MM_CUDA(cudaEventRecord(t->ready, cuda_context(t->dev)->stream));
    MM_CUDA(cudaStreamWaitEvent(t->stream, t->ready, 0));
    if (watched)
        mark(t, watched);
}

void mm_nccl_end(struct over_nccl *t, cudaEvent_t done, uint64_t watched) {
    if (watched)
        mark(t, 0);
    MM_CUDA(cudaEventRecord(done, t->stream));
}

static void nccl_wait(struct mm_transport *base, mm_ticket ticket) {
    struct over_nccl *t = over_nccl(base);
    MM_CUDA(cudaStreamWaitEvent(cuda_context(t->dev)->stream, t->done[ticket], 0));
}

/* -- sums -------------------------------------------------------------------------------------- */

static void nccl_sum(struct mm_transport *base, const struct mm_numbers *numbers, size_t parts,
                     uint64_t watched) {
    struct over_nccl *t = over_nccl(base);
    size_t size = static_cast<size_t>(t->size), n = mm_numbers_n(numbers, parts);
    if (n == 0)
        return;
    double *all =
        static_cast<double *>(mm_nccl_reserve(t, &t->doubles, mm_numbers_bytes(n, t->size)));
    mm_nccl_begin(t, watched);
    double *at = all;
    CHECK_NCCL(ncclGroupStart());
    for (size_t i = 0; i < parts; at += numbers[i++].n * size)
        if (numbers[i].n)
            CHECK_NCCL(ncclAllGather(numbers[i].values, at, numbers[i].n, ncclFloat64, t->nccl,
                                     t->stream));
    CHECK_NCCL(ncclGroupEnd());
    at = all;
    for (size_t i = 0; i < parts; at += numbers[i++].n * size)
        if (numbers[i].n)
            MM_LAUNCH_ON(t->stream, add_kernel, blocks_for(numbers[i].n, BLOCK), BLOCK, 0,
                         numbers[i].values, static_cast<const double *>(at), t->size, numbers[i].n,
                         false);
    mm_nccl_end(t, t->summed, watched);
    MM_CUDA(cudaStreamWaitEvent(cuda_context(t->dev)->stream, t->summed, 0));
}

/* -- reductions -------------------------------------------------------------------------------- */

struct blocks {
    size_t n;         /* elements of a block, with padding */
    size_t own_first; /* the first of this rank's block */
    size_t own_n;     /* without padding */
};

static struct blocks blocks_of(const struct over_nccl *t, const struct mm_reduction *r) {
    size_t n = mm_rows_block(r->rows, t->size) * r->full.cols;
    return {n, n * static_cast<size_t>(t->rank),
            mm_rows_of(r->rows, t->size, t->rank).count * r->full.cols};
}

/* A whole block goes straight to its owner's memory; one with padding has no room there. */
static void reduce_unrounded(struct over_nccl *t, const struct mm_reduction *tensors, size_t n) {
    CHECK_NCCL(ncclGroupStart());
    for (const struct mm_reduction *r = tensors; r < tensors + n; r++) {
        struct blocks block = blocks_of(t, r);
        float *full = static_cast<float *>(r->full.data);
        float *sum = block.own_n == block.n ? r->own : full + block.own_first;
        CHECK_NCCL(ncclReduceScatter(full, sum, block.n, ncclFloat32, ncclSum, t->nccl, t->stream));
    }
    CHECK_NCCL(ncclGroupEnd());
    for (const struct mm_reduction *r = tensors; r < tensors + n; r++) {
        struct blocks block = blocks_of(t, r);
        if (block.own_n && block.own_n < block.n)
            MM_CUDA(cudaMemcpyAsync(r->own, static_cast<float *>(r->full.data) + block.own_first,
                                    block.own_n * sizeof *r->own, cudaMemcpyDeviceToDevice,
                                    t->stream));
    }
}

/* Rows of `r` that rank `to` owns, rounded in `out`, go to it; this rank's come to full's memory,
 * one rank's part behind the other's. */
static void exchange(struct over_nccl *t, const struct mm_reduction *r, const bf16 *out) {
    struct blocks block = blocks_of(t, r);
    bf16 *in = static_cast<bf16 *>(r->full.data);
    for (int peer = 0; peer < t->size; peer++) {
        size_t its_n = mm_rows_of(r->rows, t->size, peer).count * r->full.cols;
        if (its_n)
            CHECK_NCCL(ncclSend(out + static_cast<size_t>(peer) * block.n, its_n * sizeof *out,
                                ncclUint8, peer, t->nccl, t->stream));
        if (block.own_n)
            CHECK_NCCL(ncclRecv(in + static_cast<size_t>(peer) * block.own_n,
                                block.own_n * sizeof *in, ncclUint8, peer, t->nccl, t->stream));
    }
}

static size_t elements_of(const struct mm_reduction *r) {
    return r->rows * r->full.cols;
}

static void reduce_rounded(struct over_nccl *t, const struct mm_reduction *tensors, size_t n,
                           bf16 *outbox) {
    bf16 *out = outbox;
    for (const struct mm_reduction *r = tensors; r < tensors + n; out += elements_of(r), r++)
        if (elements_of(r))
            MM_LAUNCH_ON(t->stream, round_kernel, blocks_for(elements_of(r), BLOCK), BLOCK, 0, out,
                         static_cast<const float *>(r->full.data), elements_of(r));
    out = outbox;
    CHECK_NCCL(ncclGroupStart());
    for (const struct mm_reduction *r = tensors; r < tensors + n; out += elements_of(r), r++)
        exchange(t, r, out);
    CHECK_NCCL(ncclGroupEnd());
    for (const struct mm_reduction *r = tensors; r < tensors + n; r++) {
        size_t own_n = blocks_of(t, r).own_n;
        if (own_n)
            MM_LAUNCH_ON(t->stream, add_kernel, blocks_for(own_n, BLOCK), BLOCK, 0, r->own,
                         static_cast<const bf16 *>(r->full.data), t->size, own_n, false);
    }
}

/* -- reductions of leaves, one a rank: NCCL's own sums are in an order of its own ----------------
 */

/* Rows of this rank's leaf go to their owners; this rank's rows come from all that have a leaf. */
static void exchange_leaves(struct over_nccl *t, const struct mm_reduction *r, float *in) {
    struct blocks block = blocks_of(t, r);
    const float *full = static_cast<const float *>(r->full.data);
    for (int peer = 0; peer < t->size; peer++) {
        size_t its_n = mm_rows_of(r->rows, t->size, peer).count * r->full.cols;
        if (t->rank < r->ranks && its_n)
            CHECK_NCCL(ncclSend(full + static_cast<size_t>(peer) * block.n, its_n, ncclFloat32,
                                peer, t->nccl, t->stream));
        if (peer < r->ranks && block.own_n)
            CHECK_NCCL(ncclRecv(in + static_cast<size_t>(peer) * block.own_n, block.own_n,
                                ncclFloat32, peer, t->nccl, t->stream));
    }
}

static size_t leaves_n(const struct over_nccl *t, const struct mm_reduction *r) {
    return blocks_of(t, r).own_n * static_cast<size_t>(t->size);
}

static void reduce_leaves(struct over_nccl *t, const struct mm_reduction *tensors, size_t n,
                          float *inbox) {
    float *in = inbox;
    CHECK_NCCL(ncclGroupStart());
    for (const struct mm_reduction *r = tensors; r < tensors + n; in += leaves_n(t, r), r++)
        exchange_leaves(t, r, in);
    CHECK_NCCL(ncclGroupEnd());
    in = inbox;
    for (const struct mm_reduction *r = tensors; r < tensors + n; in += leaves_n(t, r), r++) {
        size_t own_n = blocks_of(t, r).own_n;
        if (own_n)
            MM_LAUNCH_ON(t->stream, add_kernel, blocks_for(own_n, BLOCK), BLOCK, 0, r->own,
                         static_cast<const float *>(in), r->ranks, own_n, r->add);
    }
}

static void nccl_reduce(struct mm_transport *base, mm_ticket ticket,
                        const struct mm_reduction *tensors, size_t n, uint64_t watched) {
    struct over_nccl *t = over_nccl(base);
    bool leaves = n && tensors[0].ranks;
    bf16 *outbox = nullptr;
    float *inbox = nullptr;
    MM_CHECK(!leaves || !rounds(t), "leaves are not rounded");
    if (leaves)
        inbox = static_cast<float *>(
            mm_nccl_reserve(t, &t->inbox, mm_nccl_inbox(tensors, n, t->size, t->rank)));
    if (rounds(t))
        outbox = static_cast<bf16 *>(mm_nccl_reserve(
            t, &t->outbox, mm_nccl_outbox(tensors, n, t->size, t->base.reduce_dtype)));
    mm_nccl_begin(t, watched);
    if (leaves)
        reduce_leaves(t, tensors, n, inbox);
    else if (rounds(t))
        reduce_rounded(t, tensors, n, outbox);
    else
        reduce_unrounded(t, tensors, n);
    mm_nccl_end(t, t->done[ticket], watched);
}

/* -- for the watchdog -------------------------------------------------------------------------- */

static bool nccl_failed(void *self, char *text, size_t bytes) {
    struct over_nccl *t = static_cast<struct over_nccl *>(self);
    for (ncclComm_t nccl : {t->nccl, t->near.nccl}) {
        ncclResult_t state = ncclSuccess;
        ncclResult_t asked = nccl ? ncclCommGetAsyncError(nccl, &state) : ncclSuccess;
        if (asked == ncclSuccess && (state == ncclSuccess || state == ncclInProgress))
            continue;
        snprintf(text, bytes, "%s: %s", ncclGetErrorString(asked == ncclSuccess ? state : asked),
                 ncclGetLastError(nccl));
        return true;
    }
    return false;
}

static void nccl_abandon(void *self) {
    struct over_nccl *t = static_cast<struct over_nccl *>(self);
    for (ncclComm_t nccl : {t->nccl, t->near.nccl})
        if (nccl)
            (void)ncclCommAbort(nccl);
}

/* -- begin and end ----------------------------------------------------------------------------- */

struct place {
    int machine; /* see mm_comm_machine */
    char gpu[32], host[64];
};

/* NCCL forbids two ranks on one GPU. All ranks see the same places, and decide alike. */
static bool own_gpu_each(struct mm_comm *comm, struct mm_error *err) {
    int size = mm_comm_size(comm), index = 0;
    struct place mine = {};
    mine.machine = mm_comm_machine(comm);
    gethostname(mine.host, sizeof mine.host - 1);
    MM_CUDA(cudaGetDevice(&index));
    MM_CUDA(cudaDeviceGetPCIBusId(mine.gpu, sizeof mine.gpu, index));
    struct place *all =
        static_cast<struct place *>(mm_calloc(static_cast<size_t>(size), sizeof *all));
    mm_comm_gather_all(comm, &mine, sizeof mine, all);
    bool each = true;
    for (int a = 0; each && a < size; a++)
        for (int b = a + 1; each && b < size; b++)
            if (all[a].machine == all[b].machine && strcmp(all[a].gpu, all[b].gpu) == 0) {
                each = false;
                mm_fail(err, MM_BAD_INPUT,
                        "ranks %d and %d share GPU %s of %s, which NCCL forbids: start one rank a "
                        "GPU, or choose the staged transport",
                        a, b, all[a].gpu, all[a].host);
            }
    mm_free(all);
    return each;
}

/* A rank that doesn't come is the watchdog's matter; `timeout` says when. */
static void connect(struct over_nccl *t) {
    ncclUniqueId id = {};
    struct mm_watch *watch = mm_comm_watch(t->comm);
    if (t->rank == 0)
        CHECK_NCCL(ncclGetUniqueId(&id));
    mm_comm_broadcast(t->comm, 0, &id, sizeof id);
    mm_watch_enter(watch, MM_WATCHED_CONNECTION, MM_OVER_NCCL, 0);
    CHECK_NCCL(ncclCommInitRank(&t->nccl, t->size, id, t->rank));
    mm_watch_leave(watch);
}

/* Messages go before the device's other work, which would else keep them from overlapping. */
static cudaStream_t open_stream(void) {
    int last = 0, first = 0;
    cudaStream_t stream;
    MM_CUDA(cudaDeviceGetStreamPriorityRange(&last, &first));
    MM_CUDA(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, first));
    return stream;
}

static void nccl_free(struct mm_transport *base) {
    struct over_nccl *t = over_nccl(base);
    MM_CUDA(cudaStreamSynchronize(t->stream));
    for (ncclComm_t nccl : {t->nccl, t->near.nccl})
        if (nccl)
            CHECK_NCCL(ncclCommDestroy(nccl));
    drop(t, t->outbox);
    drop(t, t->inbox);
    drop(t, t->doubles);
    drop(t, t->room);
    t->dev->queue->free(t->dev, t->steps);
    MM_CUDA(cudaEventDestroy(t->ready));
    MM_CUDA(cudaEventDestroy(t->summed));
    for (cudaEvent_t event : t->done)
        MM_CUDA(cudaEventDestroy(event));
    MM_CUDA(cudaStreamDestroy(t->stream));
    mm_free(t);
}

static void fill_table(struct mm_transport *table) {
    int version = 0;
    CHECK_NCCL(ncclGetVersion(&version));
    snprintf(table->name, sizeof table->name, "NCCL %d.%d.%d", version / 10000,
             version % 10000 / 100, version % 100);
    table->records = true;
    table->sum = nccl_sum;
    table->reduce = nccl_reduce;
    table->gather = mm_nccl_gather;
    table->wait = nccl_wait;
    table->near_begin = mm_nccl_near_begin;
    table->free = nccl_free;
}

extern "C" struct mm_transport *mm_transport_nccl(struct mm_comm *comm, struct mm_device *dev,
                                                  struct mm_error *err) {
    if (!own_gpu_each(comm, err))
        return nullptr;
    struct over_nccl *t = static_cast<struct over_nccl *>(mm_calloc(1, sizeof *t));
    t->comm = comm;
    t->dev = dev;
    t->rank = mm_comm_rank(comm);
    t->size = mm_comm_size(comm);
    fill_table(&t->base);
    t->work = {t->base.name, t, nccl_failed, nccl_abandon};
    t->base.work = &t->work;
    t->stream = open_stream();
    t->steps = static_cast<uint64_t *>(dev->queue->alloc(dev, sizeof *t->steps));
    MM_CUDA(cudaEventCreateWithFlags(&t->ready, cudaEventDisableTiming));
    MM_CUDA(cudaEventCreateWithFlags(&t->summed, cudaEventDisableTiming));
    for (cudaEvent_t &event : t->done)
        MM_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    connect(t);
    return &t->base;
}
