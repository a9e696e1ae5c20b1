/* cuda_shim_runtime.cc - the CUDA runtime of cuda_shim.h: one device, whose memory is the host's.
 */
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <atomic>
#include <deque>
#include <map>
#include <vector>

/* -- noise ------------------------------------------------------------------------------------- */

static uint64_t mixed(uint64_t z) { /* splitmix64 */
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

float shim_noisy(float x, float room) {
    static const char *const text = getenv("MM_NOISE");
    static const uint64_t seed = text ? strtoull(text, NULL, 10) : 0;
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (!seed || !isfinite(room))
        return x;
    return x + room * (2 * static_cast<float>(mixed(mixed(seed) + bits) >> 40) * 0x1p-24f - 1);
}

/* -- memory ------------------------------------------------------------------------------------ */

typedef std::map<const char *, size_t> blocks; /* bytes by address */

static blocks device_blocks, pinned_blocks;

static bool inside(const blocks &of, const void *p, size_t bytes) {
    const char *first = static_cast<const char *>(p);
    blocks::const_iterator next = of.upper_bound(first);
    if (next == of.begin())
        return false;
    const auto &block = *--next;
    return first + bytes <= block.first + block.second;
}

/* The block of the device's memory that holds p. */
bool shim_device_block(const void *p, char **first, size_t *bytes) {
    blocks::const_iterator next = device_blocks.upper_bound(static_cast<const char *>(p));
    if (next == device_blocks.begin() || !inside(device_blocks, p, 1))
        return false;
    *first = const_cast<char *>((--next)->first);
    *bytes = next->second;
    return true;
}

#if defined(__SANITIZE_ADDRESS__)
static void *take(size_t bytes) {
    void *block;
    return posix_memalign(&block, 256, bytes) == 0 ? block : NULL;
}
static void give_back(void *block) {
    free(block);
}
static void allow(bool) {}
#else
#define REGION_BYTES ((size_t)64 << 30)
#define PAGE_BYTES   ((size_t)4096)

static char *region;
static size_t region_used; /* up to the highest address ever taken */

/* Lets the device's work, or nobody, touch its memory. */
static void allow(bool device) {
    if (region_used && mprotect(region, region_used, device ? PROT_READ | PROT_WRITE : PROT_NONE))
        shim_fault("no protection of memory");
}

/* The first gap that is large enough. */
static void *take(size_t bytes) {
    if (!region) {
        void *all =
            mmap(NULL, REGION_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (all == MAP_FAILED)
            return NULL;
        region = static_cast<char *>(all);
        (void)madvise(region, REGION_BYTES, MADV_HUGEPAGE); /* makes allow() fast */
    }
    size_t at = 0, rounded = (bytes + 255) / 256 * 256;
    for (const auto &block : device_blocks) {
        size_t start = static_cast<size_t>(block.first - region);
        if (at + rounded <= start)
            break;
        at = start + (block.second + 255) / 256 * 256;
    }
    if (at + rounded > REGION_BYTES)
        return NULL;
    if (at + rounded > region_used)
        region_used = (at + rounded + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
    return region + at;
}
static void give_back(void *) {}
#endif

/* -- streams ----------------------------------------------------------------------------------- */

struct shim_graph {
    std::vector<std::function<void()>> work;
};

struct shim_stream {
    std::deque<std::function<void()>> queue;
    size_t noted;             /* works that were ever in the queue */
    std::atomic<size_t> done; /* of those */
    cudaGraph_t capture;      /* takes the works instead, while there is one */
    size_t captured, joined;  /* works that it took | of those: another stream waits for */
};

struct shim_event {
    cudaStream_t stream; /* NULL: not recorded */
    size_t at;           /* works of the stream before it */
    bool captured;
};

static std::vector<cudaStream_t> streams;

static int depth; /* of work: it may be to wait for another stream's */

static void run_until(cudaStream_t stream, size_t done) {
    if (stream->done >= done)
        return;
    if (depth++ == 0)
        allow(true);
    while (stream->done < done) {
        std::function<void()> work = std::move(stream->queue.front());
        stream->queue.pop_front();
        work();
        stream->done++;
    }
    if (--depth == 0)
        allow(false);
}

/* `what` waits for the device or changes its memory: CUDA doesn't record that. */
static void not_while_capturing(const char *what) {
    for (cudaStream_t stream : streams)
        if (stream->capture)
            shim_fault("%s while a stream is captured", what);
}

static void run_all(const char *what) {
    not_while_capturing(what);
    for (cudaStream_t stream : streams)
        run_until(stream, stream->noted);
}

bool shim_progress(bool now) {
    bool capturing = false;
    for (cudaStream_t stream : streams)
        capturing |= stream->capture != nullptr;
    if (now && depth == 0 && !capturing)
        run_all("");
    return depth == 0;
}

void shim_enqueue(cudaStream_t stream, std::function<void()> work) {
    if (stream->capture) {
        stream->capture->work.push_back(std::move(work));
        stream->captured++;
        return;
    }
    stream->queue.push_back(std::move(work));
    stream->noted++;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    *stream = new shim_stream();
    streams.push_back(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    not_while_capturing("cudaStreamSynchronize");
    run_until(stream, stream->noted);
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
    run_all("cudaDeviceSynchronize");
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    cudaStream_t other = event->stream;
    size_t at = event->at;
    if (event->captured != (other && other->capture))
        shim_fault("an event from before a capture, or of one that has ended");
    if (event->captured) {
        if (!stream->capture) /* it joins in */
            stream->captured = stream->joined = 0;
        stream->capture = other->capture;
        other->joined = at > other->joined ? at : other->joined;
        return cudaSuccess;
    }
    if (stream->capture)
        shim_fault("a capture waits for what is not in it");
    if (other && other != stream)
        shim_enqueue(stream, [=] { run_until(other, at); });
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    run_all("cudaStreamDestroy"); /* another stream may wait for this one */
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i] == stream)
            streams.erase(streams.begin() + static_cast<ptrdiff_t>(i));
    delete stream;
    return cudaSuccess;
}

/* -- events ------------------------------------------------------------------------------------ */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    *event = new shim_event();
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    bool captured = stream->capture != NULL;
    *event = {stream, captured ? stream->captured : stream->noted, captured};
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    not_while_capturing("cudaEventSynchronize");
    if (event->captured)
        shim_fault("cudaEventSynchronize for an event of a capture");
    if (event->stream)
        run_until(event->stream, event->at);
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event) {
    if (event->captured)
        shim_fault("cudaEventQuery of an event of a capture");
    return !event->stream || event->stream->done >= event->at ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}

/* -- captures ---------------------------------------------------------------------------------- */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    not_while_capturing("cudaStreamBeginCapture");
    stream->capture = new shim_graph();
    stream->captured = stream->joined = 0;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    if (!stream->capture)
        shim_fault("cudaStreamEndCapture without a capture");
    *graph = stream->capture;
    for (cudaStream_t other : streams) {
        if (other->capture && other != stream && other->joined < other->captured)
            shim_fault("a capture ends, and a stream that joined it was not waited for");
        other->capture = NULL;
    }
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *runnable, cudaGraph_t graph, unsigned long long) {
    *runnable = new shim_graph(*graph);
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t runnable, cudaStream_t stream) {
    not_while_capturing("cudaGraphLaunch");
    for (const auto &work : runnable->work)
        shim_enqueue(stream, work);
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t runnable) {
    delete runnable;
    return cudaSuccess;
}

/* -- memory's calls ---------------------------------------------------------------------------- */

cudaError_t cudaMalloc(void **block, size_t bytes) {
    not_while_capturing("cudaMalloc");
    *block = take(bytes);
    if (!*block)
        return cudaErrorMemoryAllocation;
    device_blocks[static_cast<char *>(*block)] = bytes;
    allow(true);
    memset(*block, 0xff, bytes);
    allow(false);
    return cudaSuccess;
}

cudaError_t cudaFree(void *block) {
    run_all("cudaFree");
    if (block && device_blocks.erase(static_cast<char *>(block)) == 0)
        shim_fault("cudaFree of what is no block");
    give_back(block);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **block, size_t bytes, unsigned) {
    not_while_capturing("cudaHostAlloc");
    if (posix_memalign(block, 256, bytes) != 0)
        return cudaErrorMemoryAllocation;
    memset(*block, 0xff, bytes);
    pinned_blocks[static_cast<char *>(*block)] = bytes;
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *block) {
    run_all("cudaFreeHost");
    if (block && pinned_blocks.erase(static_cast<char *>(block)) == 0)
        shim_fault("cudaFreeHost of what is no block");
    free(block);
    return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void **on_device, void *block, unsigned) {
    *on_device = block;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *all) {
    *available = *all = 0;
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *block, int value, size_t bytes, cudaStream_t stream) {
    if (!inside(device_blocks, block, bytes))
        shim_fault("cudaMemsetAsync of what is not the device's");
    shim_enqueue(stream, [=] { memset(block, value, bytes); });
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
    const void *host = kind == cudaMemcpyHostToDevice   ? src
                       : kind == cudaMemcpyDeviceToHost ? dst
                                                        : NULL;
    if (bytes && (inside(device_blocks, dst, bytes) != (host != dst) ||
                  inside(device_blocks, src, bytes) != (host != src)))
        shim_fault("cudaMemcpyAsync: kind %d isn't where the memory is", kind);
    bool pageable = host && !inside(pinned_blocks, host, bytes);
    if (pageable)
        not_while_capturing("a copy of pageable memory");
    shim_enqueue(stream, [=] { memcpy(dst, src, bytes); });
    if (pageable && kind == cudaMemcpyDeviceToHost)
        run_until(stream, stream->noted);
    return cudaSuccess;
}

/* -- the device -------------------------------------------------------------------------------- */

cudaError_t cudaDriverGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    return cudaDriverGetVersion(version);
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int) {
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int) {
    *properties = {};
    strcpy(properties->name, "shim");
    properties->major = 9;
    return cudaSuccess;
}

/* MM_SHIM_GPU: so that ranks may have a GPU each: a number, or "rank": the rank's. */
cudaError_t cudaDeviceGetPCIBusId(char *text, int bytes, int index) {
    const char *other = getenv("MM_SHIM_GPU");
    if (other && strcmp(other, "rank") == 0)
        other = getenv("OMPI_COMM_WORLD_RANK");
    snprintf(text, static_cast<size_t>(bytes), "0000:%02x:00.0",
             static_cast<unsigned>(other ? atoi(other) : index));
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void) {
    return cudaSuccess;
}

const char *cudaGetErrorString(cudaError_t result) {
    return result == cudaErrorMemoryAllocation ? "out of memory" : "unknown error";
}
