/* nccl_absent.c - in place of nccl.cu where the build is without NCCL. */
#include "comm/transport.h"

struct mm_transport *mm_transport_nccl(struct mm_comm *comm, struct mm_device *dev,
                                       struct mm_error *err) {
    (void)comm;
    (void)dev;
    mm_fail(err, MM_BAD_INPUT, "this mudman-mpi was built without NCCL");
    return NULL;
}
