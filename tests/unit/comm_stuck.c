/* comm_stuck.c - a job that must not hang: see comm_stuck.sh. Rank 1 sleeps, or dies, where the
 * others wait for it in a barrier or a bucket.
 * Usage: comm_stuck barrier|bucket|shared|dead auto|staged|nccl. Where built with MM_TEST_CUDA the
 * device is a GPU, else the CPU. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "comm/comm.h"
#include "kernels/queue.h"

/* The second bucket of loop 7 is where rank 1 doesn't come. */
static void buckets(struct mm_comm *comm, struct mm_device *dev, bool leaves) {
    float *full = dev->queue->alloc(dev, 256 * sizeof *full), *own = dev->queue->alloc(dev, 1024),
          one;
    struct mm_reduction r = {.full = mm_mat(full, MM_F32, 64, 4), .rows = 64, .own = own};
    mm_comm_wait(comm, mm_comm_reduce_rows(comm, &r, 1));
    dev->queue->download(dev, &one, own, sizeof one);
    if (leaves)
        sleep(60);
    mm_comm_wait(comm, mm_comm_reduce_rows(comm, &r, 1));
    dev->queue->download(dev, &one, own, sizeof one);
}

int main(int argc, char **argv) {
    struct mm_comm *comm = mm_comm_create(&argc, &argv);
    struct mm_error err;
    bool leaves = mm_comm_rank(comm) == 1;
    if (argc != 3)
        return 2;
    enum mm_transport_choice transport = strcmp(argv[2], "nccl") == 0     ? MM_TRANSPORT_NCCL
                                         : strcmp(argv[2], "staged") == 0 ? MM_TRANSPORT_STAGED
                                                                          : MM_TRANSPORT_AUTO;
    if (strcmp(argv[1], "shared") != 0)
        setenv("MM_SHIM_GPU", leaves ? "1" : "0", 1); /* else the shim's ranks share one */
#ifdef MM_TEST_CUDA
    struct mm_device *dev = mm_device_create_cuda(0, &err);
#else
    struct mm_device *dev = mm_device_create_cpu();
#endif
    if (!dev || mm_comm_attach(comm, dev, transport, MM_F32, &err) != MM_OK) {
        fprintf(stderr, "rank %d: %s\n", mm_comm_rank(comm), err.text);
        mm_comm_barrier(comm); /* both are heard */
        mm_comm_free(comm);
        return MM_BAD_INPUT;
    }
    mm_comm_watch_begin(comm, 1, "loop", 6);
    mm_comm_barrier(comm);
    mm_comm_watch_begin(comm, 1, "loop", 7);
    if (strcmp(argv[1], "bucket") == 0)
        buckets(comm, dev, leaves);
    else if (leaves && strcmp(argv[1], "dead") == 0)
        _exit(9);
    else if (leaves)
        sleep(60);
    mm_comm_barrier(comm);
    puts("it went on");
    mm_comm_watch_end(comm);
    mm_comm_free(comm);
    mm_device_free(dev);
    return 0;
}
