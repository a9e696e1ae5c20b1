/* comm_differs.c - rank 1 makes another call than the others, and with MUDMAN_CHECK_COLLECTIVES the
 * job must say which: see comm_differs.sh.
 * Usage: comm_differs same|kind|bytes|root|shape|dtype|missing */
#include <stdio.h>
#include <string.h>

#include "comm/comm.h"

static float numbers[2][64];

/* Of 16 numbers each: a matrix of `rows` rows. */
static void gather(struct mm_comm *comm, size_t rows, enum mm_dtype dtype) {
    size_t cols = 64 / mm_dtype_bytes(dtype) / rows;
    struct mm_mat m = mm_mat(numbers[0], dtype, rows, cols);
    mm_comm_wait(comm, mm_comm_gather_rows(comm, &m, 1));
}

int main(int argc, char **argv) {
    struct mm_comm *comm = mm_comm_create(&argc, &argv);
    struct mm_device *dev = mm_device_create_cpu();
    struct mm_error err;
    double sums[2] = {0};
    bool other = mm_comm_rank(comm) == 1;
    const char *what = argc == 2 ? argv[1] : "";
    if (mm_comm_attach(comm, dev, MM_TRANSPORT_AUTO, MM_F32, &err) != MM_OK)
        return 2;
    mm_comm_barrier(comm);
    gather(comm, 8, MM_F32);
    if (other && strcmp(what, "kind") == 0)
        mm_comm_max(comm, 1);
    else if (!other || strcmp(what, "missing") != 0)
        mm_comm_sum(comm, sums, other && strcmp(what, "bytes") == 0 ? 2 : 1);
    mm_comm_broadcast(comm, other && strcmp(what, "root") == 0, sums, sizeof *sums);
    gather(comm, other && strcmp(what, "shape") == 0 ? 4 : 8,
           other && strcmp(what, "dtype") == 0 ? MM_BF16 : MM_F32);
    puts("it went on");
    mm_comm_free(comm);
    mm_device_free(dev);
    return 0;
}
