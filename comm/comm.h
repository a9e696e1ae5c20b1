/* comm.h - the ranks of a job and what they do together.
 *
 * "Collective": every rank must call, in the same order. "Local": any rank, any time. Sums are
 * taken in rank order, so that the same number of ranks always gives the same bits. Faults of MPI
 * end the job. Only comm/ sees mpi.h. */
#ifndef MM_COMM_H
#define MM_COMM_H

#include "kernels/tensor.h"
#include "src/base/base.h"

struct mm_comm;

/* Joins the job (MPI_Init); one rank when started without a launcher. Collective. The caller frees
 * with mm_comm_free, which leaves the job (MPI_Finalize): once a process. */
struct mm_comm *mm_comm_create(int *argc, char ***argv);
void mm_comm_free(struct mm_comm *comm);

/* For planning only: from now on this process answers as rank 0 of `size`; anything collective is a
 * fault. Local. */
void mm_comm_pretend(struct mm_comm *comm, int size);

int mm_comm_rank(const struct mm_comm *comm); /* Local. */
int mm_comm_size(const struct mm_comm *comm); /* Local. */
/* Ranks on this machine, and this rank's place among them. Local. */
int mm_comm_local_size(const struct mm_comm *comm);
int mm_comm_local_rank(const struct mm_comm *comm);

/* Makes all ranks decide alike: returns the first status other than MM_OK in rank order and puts
 * that rank's text in every err. Collective. */
enum mm_status mm_comm_agree(struct mm_comm *comm, enum mm_status status, struct mm_error *err);

/* True on every rank if `flag` is true on any. Collective. */
bool mm_comm_any(struct mm_comm *comm, bool flag);

void mm_comm_barrier(struct mm_comm *comm);                                       /* Collective. */
void mm_comm_broadcast(struct mm_comm *comm, int root, void *data, size_t bytes); /* Collective. */
/* Every rank's `bytes` bytes, in rank order, to all[size·bytes] on every rank. Collective. */
void mm_comm_gather_all(struct mm_comm *comm, const void *mine, size_t bytes, void *all);

/* values[i] = sum over ranks of values[i], in rank order, on every rank. Collective. */
void mm_comm_sum(struct mm_comm *comm, double *values, size_t n);
/* value = the largest over ranks. Collective. */
double mm_comm_max(struct mm_comm *comm, double value);

/* Row blocks. A tensor of `rows` rows is owned in blocks of c = ceil(rows/size): rank r owns rows
 * r·c ... min((r+1)·c, rows)-1, possibly none. Local. */
struct mm_rows {
    size_t first, count;
};
static inline size_t mm_rows_block(size_t rows, int size) {
    return (rows + (size_t)size - 1) / (size_t)size;
}
static inline struct mm_rows mm_rows_of(size_t rows, int size, int rank) {
    size_t c = mm_rows_block(rows, size), first = c * (size_t)rank;
    first = first < rows ? first : rows;
    return (struct mm_rows){first, rows - first < c ? rows - first : c};
}

/* own (this rank's rows, float32, contiguous; =) = sum over ranks of `full`, a contiguous float32
 * matrix of size·c rows of which the ones from `rows` on are padding. With one rank own may be
 * full's own memory. Collective. */
void mm_comm_reduce_rows(struct mm_comm *comm, struct mm_mat full, size_t rows, float *own);

/* full (contiguous, `rows` rows; =) = every rank's own rows. `own`: this rank's, contiguous, of
 * full's dtype. Collective. */
void mm_comm_gather_rows(struct mm_comm *comm, const void *own, struct mm_mat full);

#endif
