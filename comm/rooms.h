/* rooms.h - the memory that a transport takes for messages, beside the matrices that they carry.
 *
 * Reason: `plan` must say what a rank will hold. Whoever takes such memory, and the dry transport,
 * which counts it, ask the same functions. All of them give bytes; size, rank: of the ranks; dtype:
 * as which reductions cross the network. Pure. */
#ifndef MM_ROOMS_H
#define MM_ROOMS_H

#include "comm/comm.h"

/* -- over MPI, a matrix at a time -------------------------------------------------------------- */

/* Rows of each rank's block of `r` that an owner takes at once: mm_inbox_bytes, or one row. */
size_t mm_mpi_rows_at_once(const struct mm_reduction *r, int size, enum mm_dtype dtype);
/* Of those rows of all ranks. */
size_t mm_mpi_inbox(const struct mm_reduction *r, int size, enum mm_dtype dtype);
/* Of the matrix, rounded; 0: it is sent from where it is. */
size_t mm_mpi_outbox(const struct mm_reduction *r, int size, enum mm_dtype dtype);
/* From a GPU, in pinned host memory: of the matrix with this rank's sums behind it; of a matrix
 * that is gathered. */
size_t mm_stage_of_reduction(const struct mm_reduction *r, int size, int rank);
size_t mm_stage_of_gather(const struct mm_mat *m);

/* -- over NCCL, a bucket of n at a time -------------------------------------------------------- */

/* Of the rounded matrices; 0: float32 is sent from where it is. */
size_t mm_nccl_outbox(const struct mm_reduction *tensors, size_t n, int size, enum mm_dtype dtype);
/* Of this rank's rows of every rank's leaf; 0: these are no leaves. */
size_t mm_nccl_inbox(const struct mm_reduction *tensors, size_t n, int size, int rank);
/* Of the blocks of the largest matrix whose rows the ranks do not divide; 0: there is none. */
size_t mm_nccl_room(const struct mm_mat *tensors, size_t n, int size);

/* -- over either ------------------------------------------------------------------------------- */

/* Every rank's numbers of a sum of n: over NCCL. A rank's own: over MPI, in host memory. */
static inline size_t mm_numbers_bytes(size_t n, int ranks) {
    return n * (size_t)ranks * sizeof(double);
}

#endif
