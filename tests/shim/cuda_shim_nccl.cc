/* cuda_shim_nccl.cc - see cuda_shim_nccl.h. A group is one piece of a stream's work: its
 * collectives one after the other, its messages all at once. */
#define OMPI_SKIP_MPICXX  1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

#include <vector>

struct shim_nccl {
    MPI_Comm mpi;
    int rank, ranks;
};

/* What a group sends and receives at once. */
struct message {
    bool sends;
    void *data;
    size_t bytes;
    int peer;
    MPI_Comm mpi;
};

static std::vector<std::function<void()>> collectives; /* of the open group */
static std::vector<message> messages;
static cudaStream_t group_stream;
static int groups_open;

static size_t bytes_of(ncclDataType_t type) {
    return type == ncclUint8 ? 1 : type == ncclFloat32 ? 4 : 8;
}

static void must(int result) {
    if (result != MPI_SUCCESS)
        shim_fault("MPI error %d", result);
}

static void exchange(const std::vector<message> &all) {
    std::vector<MPI_Request> requests(all.size());
    for (size_t i = 0; i < all.size(); i++) {
        const message &m = all[i];
        int bytes = static_cast<int>(m.bytes);
        must(m.sends ? MPI_Isend(m.data, bytes, MPI_BYTE, m.peer, 0, m.mpi, &requests[i])
                     : MPI_Irecv(m.data, bytes, MPI_BYTE, m.peer, 0, m.mpi, &requests[i]));
    }
    must(MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE));
}

ncclResult_t ncclGroupStart(void) {
    groups_open++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void) {
    if (groups_open == 0)
        return ncclInvalidUsage;
    if (--groups_open || (collectives.empty() && messages.empty()))
        return ncclSuccess;
    std::vector<std::function<void()>> calls = std::move(collectives);
    std::vector<message> sent = std::move(messages);
    collectives.clear();
    messages.clear();
    shim_enqueue(group_stream, [=] {
        for (const std::function<void()> &call : calls)
            call();
        exchange(sent);
    });
    return ncclSuccess;
}

static ncclResult_t add(cudaStream_t stream, std::function<void()> call) {
    ncclGroupStart();
    group_stream = stream;
    collectives.push_back(std::move(call));
    return ncclGroupEnd();
}

static ncclResult_t add(cudaStream_t stream, message m) {
    ncclGroupStart();
    group_stream = stream;
    messages.push_back(m);
    return ncclGroupEnd();
}

ncclResult_t ncclAllGather(const void *send, void *receive, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream) {
    size_t bytes = count * bytes_of(type);
    return add(stream, [=] {
        std::vector<char> mine(static_cast<const char *>(send),
                               static_cast<const char *>(send) + bytes);
        must(MPI_Allgather(mine.data(), static_cast<int>(bytes), MPI_BYTE, receive,
                           static_cast<int>(bytes), MPI_BYTE, comm->mpi));
    });
}

ncclResult_t ncclReduceScatter(const void *send, void *receive, size_t count, ncclDataType_t type,
                               ncclRedOp_t, ncclComm_t comm, cudaStream_t stream) {
    if (type != ncclFloat32)
        return ncclInvalidUsage;
    return add(stream, [=] {
        size_t ranks = static_cast<size_t>(comm->ranks);
        std::vector<float> parts(count * ranks + 1);
        must(MPI_Alltoall(send, static_cast<int>(count), MPI_FLOAT, parts.data(),
                          static_cast<int>(count), MPI_FLOAT, comm->mpi));
        float *sum = static_cast<float *>(receive);
        for (size_t i = 0; i < count; i++)
            sum[i] = parts[i];
        for (size_t r = 1; r < ranks; r++)
            for (size_t i = 0; i < count; i++)
                sum[i] += parts[r * count + i];
    });
}

ncclResult_t ncclSend(const void *data, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream) {
    return add(stream,
               message{true, const_cast<void *>(data), count * bytes_of(type), peer, comm->mpi});
}

ncclResult_t ncclRecv(void *data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream) {
    return add(stream, message{false, data, count * bytes_of(type), peer, comm->mpi});
}

/* -- the host's collectives ---------------------------------------------------------------------
 *
 * Other ranks' GPUs may wait for this one's messages while its host waits for their hosts: a GPU
 * goes on by itself then. So does a stream of the shim, but not before the host has waited in vain:
 * what reads too early shall find nothing. */
#define PATIENCE 0.05 /* s */

static int wait_while_streams_go_on(MPI_Request *request) {
    double end = MPI_Wtime() + PATIENCE;
    for (int done = 0; !done && MPI_Wtime() < end;)
        must(MPI_Test(request, &done, MPI_STATUS_IGNORE));
    if (*request != MPI_REQUEST_NULL)
        shim_progress(true);
    return MPI_Wait(request, MPI_STATUS_IGNORE);
}

extern "C" int MPI_Allreduce(const void *send, void *receive, int n, MPI_Datatype type, MPI_Op op,
                             MPI_Comm comm) {
    MPI_Request request;
    if (!shim_progress(false))
        return PMPI_Allreduce(send, receive, n, type, op, comm);
    must(MPI_Iallreduce(send, receive, n, type, op, comm, &request));
    return wait_while_streams_go_on(&request);
}

extern "C" int MPI_Allgather(const void *send, int n, MPI_Datatype type, void *receive, int each,
                             MPI_Datatype its, MPI_Comm comm) {
    MPI_Request request;
    if (!shim_progress(false))
        return PMPI_Allgather(send, n, type, receive, each, its, comm);
    must(MPI_Iallgather(send, n, type, receive, each, its, comm, &request));
    return wait_while_streams_go_on(&request);
}

/* -- communicators ----------------------------------------------------------------------------- */

static const char secret[] = "the same on every rank";

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    memcpy(id->internal, secret, sizeof secret);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank) {
    if (memcmp(id.internal, secret, sizeof secret) != 0)
        shim_fault("rank %d was not told NCCL's id", rank);
    *comm = new shim_nccl{MPI_COMM_NULL, rank, ranks};
    must(MPI_Comm_dup(MPI_COMM_WORLD, &(*comm)->mpi));
    return ncclSuccess;
}

ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t *part, void *) {
    *part = new shim_nccl{};
    must(MPI_Comm_split(comm->mpi, color, key, &(*part)->mpi));
    must(MPI_Comm_rank((*part)->mpi, &(*part)->rank));
    must(MPI_Comm_size((*part)->mpi, &(*part)->ranks));
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    must(MPI_Comm_free(&comm->mpi));
    delete comm;
    return ncclSuccess;
}

ncclResult_t ncclCommAbort(ncclComm_t) {
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t *result) {
    *result = ncclSuccess;
    return ncclSuccess;
}

ncclResult_t ncclGetVersion(int *version) {
    *version = 22809;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t) {
    return "invalid usage";
}

const char *ncclGetLastError(ncclComm_t) {
    return "";
}
