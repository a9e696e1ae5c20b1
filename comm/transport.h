/* transport.h - how buckets get from rank to rank: one table a transport, behind comm.h's section
 * on the memory of a device. Nothing here needs MPI or CUDA. */
#ifndef MM_TRANSPORT_H
#define MM_TRANSPORT_H

#include "comm/comm.h"
#include "comm/watch.h"

/* The functions are those of comm.h; bucket `ticket` is not in use when it is started. watched: the
 * word of this call, see watch.h. */
struct mm_carrier {
    char name[48];
    bool records;
    enum mm_dtype reduce_dtype; /* as which reductions cross the network */
    void (*sum)(struct mm_carrier *transport, double *values, size_t n, uint64_t watched);
    void (*reduce)(struct mm_carrier *transport, mm_ticket ticket,
                   const struct mm_reduction *tensors, size_t n, uint64_t watched);
    void (*gather)(struct mm_carrier *transport, mm_ticket ticket, const struct mm_mat *tensors,
                   size_t n, uint64_t watched);
    void (*wait)(struct mm_carrier *transport, mm_ticket ticket);
    void (*free)(struct mm_carrier *transport);
    /* For the watchdog's thread; NULL where nothing goes on beside the host. Whether it has failed
     * by itself: the text says why. Gives up what is under way; may hang. */
    bool (*failed)(struct mm_carrier *transport, char *text, size_t bytes);
    void (*abandon)(struct mm_carrier *transport);
};

/* NCCL between GPUs; NULL, and the text says why, where it is not in this build or two ranks share
 * a GPU. Collective. */
struct mm_carrier *mm_transport_nccl(struct mm_comm *comm, struct mm_device *dev,
                                     struct mm_error *err);

struct mm_watch *mm_comm_watch(struct mm_comm *comm); /* Local. */

#endif
