/* cuda_shim_nccl.h - the part of NCCL, and of CUDA besides, that comm/nccl.cu uses, for the host's
 * C++ compiler: NCCL's messages are MPI's, sent when it is the turn of the shim's stream. Given to
 * the compiler after cuda_shim.h (-include). Sums are in rank order. What NCCL forbids (another
 * order of calls than the peers', memory that overlaps wrongly) is not found here. */
#ifndef MM_TEST_CUDA_SHIM_NCCL_H
#define MM_TEST_CUDA_SHIM_NCCL_H

#include "tests/shim/cuda_shim.h"

static inline void __threadfence_system(void) {}
static inline cudaError_t cudaGetDevice(int *index) {
    *index = 0;
    return cudaSuccess;
}
static inline cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}
static inline cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int) {
    return cudaStreamCreateWithFlags(stream, flags);
}

enum ncclResult_t { ncclSuccess, ncclInvalidUsage = 5, ncclInProgress = 7 };
enum ncclDataType_t { ncclUint8, ncclFloat32, ncclFloat64 };
enum ncclRedOp_t { ncclSum };
struct ncclUniqueId {
    char internal[128];
};
typedef struct shim_nccl *ncclComm_t;

ncclResult_t ncclGetVersion(int *version);
const char *ncclGetErrorString(ncclResult_t result);
const char *ncclGetLastError(ncclComm_t comm);
ncclResult_t ncclGetUniqueId(ncclUniqueId *id);
ncclResult_t ncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank);
/* As ncclCommSplit of NCCL, without settings. */
ncclResult_t ncclCommSplit(ncclComm_t comm, int color, int key, ncclComm_t *part, void *none);
ncclResult_t ncclCommDestroy(ncclComm_t comm);
ncclResult_t ncclCommAbort(ncclComm_t comm);
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *result);
ncclResult_t ncclGroupStart(void);
ncclResult_t ncclGroupEnd(void);
ncclResult_t ncclAllGather(const void *send, void *receive, size_t count, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclReduceScatter(const void *send, void *receive, size_t count, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclSend(const void *data, size_t count, ncclDataType_t type, int peer,
                      ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclRecv(void *data, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream);

#endif
