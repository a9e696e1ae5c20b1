/* nccl.h - what the files of the transport over NCCL share; comm/nccl.cu tells how it works. */
#ifndef MM_NCCL_H
#define MM_NCCL_H

#include "kernels/cuda/block.h"

#ifndef MM_CUDA_SHIM
#include <nccl.h>
#endif
extern "C" {
#include "comm/rooms.h"
#include "comm/transport.h"
}

#define CHECK_NCCL(call)                                                                           \
    do {                                                                                           \
        ncclResult_t nccl_result = (call);                                                         \
        MM_CHECK_AS(MM_LOST, nccl_result == ncclSuccess, "NCCL: %s: %s",                           \
                    ncclGetErrorString(nccl_result), ncclGetLastError(nullptr));                   \
    } while (0)

/* Ranks that gather. */
struct group {
    ncclComm_t nccl;
    int rank, size;
};

/* Device memory. What it has outgrown stays, for recordings know it. */
struct grown {
    struct grown *outgrown;
    void *data;
    size_t bytes;
};

struct over_nccl {
    struct mm_transport base;    /* the first: a table's address is its transport's */
    struct mm_watched_work work; /* of this transport */
    struct mm_comm *comm;
    struct mm_device *dev;
    cudaStream_t stream; /* beside the device's */
    int rank, size;
    ncclComm_t nccl;
    struct group near; /* from near_begin on; before, its nccl is NULL */
    cudaEvent_t ready, summed, done[MM_BUCKETS];
    uint64_t *steps;              /* on the device: marks so far */
    struct grown *outbox, *inbox; /* rounded gradients to send | gradients of leaves received */
    struct grown *doubles;        /* every rank's numbers of a sum */
    struct grown *room;           /* for the blocks of one matrix that the ranks do not divide */
};

static inline struct over_nccl *over_nccl(struct mm_transport *base) {
    return reinterpret_cast<struct over_nccl *>(base);
}

/* Memory of the device, grown to the most that was asked for, never while it records. */
void *mm_nccl_reserve(struct over_nccl *t, struct grown **newest, size_t bytes);
/* What is put on the transport's stream now follows all that was asked of the device. */
void mm_nccl_begin(struct over_nccl *t, uint64_t watched);
/* What was put there is `done` when the event is. */
void mm_nccl_end(struct over_nccl *t, cudaEvent_t done, uint64_t watched);

/* The table's gather and near_begin. */
void mm_nccl_gather(struct mm_transport *base, mm_ticket ticket, const struct mm_mat *tensors,
                    size_t n, enum mm_among among, uint64_t watched);
void mm_nccl_near_begin(struct mm_transport *base);

#endif
