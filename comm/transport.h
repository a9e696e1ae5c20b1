/* transport.h - how buckets get from rank to rank: one table a transport, behind comm.h's section
 * on the memory of a device. Nothing here needs MPI or CUDA. */
#ifndef MM_TRANSPORT_H
#define MM_TRANSPORT_H

#include "comm/comm.h"
#include "comm/watch.h"

/* Numbers on the device. */
struct mm_numbers {
    double *values;
    size_t n;
};
#define MM_NUMBERS 8 /* of one sum, at most */

/* The ranks of a gather: all, or those near this one. */
enum mm_among { MM_AMONG_ALL, MM_AMONG_NEAR };

static inline size_t mm_numbers_n(const struct mm_numbers *numbers, size_t parts) {
    size_t n = 0;
    for (size_t i = 0; i < parts; i++)
        n += numbers[i].n;
    return n;
}

/* The functions are those of comm.h; bucket `ticket` is not in use when it is started. watched: the
 * word of this call, see watch.h. */
struct mm_transport {
    char name[48];
    bool records;
    enum mm_dtype reduce_dtype; /* as which reductions cross the network */
    size_t room_bytes;          /* see mm_comm_room_bytes */
    void (*sum)(struct mm_transport *transport, const struct mm_numbers *numbers, size_t parts,
                uint64_t watched);
    void (*reduce)(struct mm_transport *transport, mm_ticket ticket,
                   const struct mm_reduction *tensors, size_t n, uint64_t watched);
    void (*gather)(struct mm_transport *transport, mm_ticket ticket, const struct mm_mat *tensors,
                   size_t n, enum mm_among among, uint64_t watched);
    void (*wait)(struct mm_transport *transport, mm_ticket ticket);
    void (*near_begin)(struct mm_transport *transport); /* NULL: nothing to do */
    void (*free)(struct mm_transport *transport);
    const struct mm_watched_work
        *work; /* for the watchdog; NULL: nothing goes on beside the host */
};

/* NCCL between GPUs; NULL, and the text says why, where it is not in this build or two ranks share
 * a GPU. Collective. */
struct mm_transport *mm_transport_nccl(struct mm_comm *comm, struct mm_device *dev,
                                       struct mm_error *err);

struct mm_watch *mm_comm_watch(struct mm_comm *comm); /* Local. */

#endif
