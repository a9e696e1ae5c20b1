/* comm.h - the ranks of a job and what they do together.
 *
 * "Collective": every rank must call, in the same order. "Local": any rank, any time. Sums are
 * taken in rank order, so that the same number of ranks always gives the same bits; but for float32
 * reductions over NCCL, whose order is NCCL's. Faults of MPI or NCCL end the job with
 * exit status MM_LOST. Only comm/ sees
 * mpi.h and nccl.h. */
#ifndef MM_COMM_H
#define MM_COMM_H

#include "comm/traffic.h"
#include "comm/watch.h"
#include "kernels/device.h"
#include "kernels/tensor.h"
#include "src/base/base.h"

struct mm_comm;

/* Joins the job (MPI_Init); without a launcher the job is one rank. It waits for the others
 * `seconds` at most (0: for ever); after that this process ends with a message. Returns NULL if
 * tasks were started that cannot find each other; the text says what to do. The caller frees with
 * mm_comm_free, which leaves the job (MPI_Finalize) and waits as long as mm_comm_watch_begin said
 * last. Both are called once a process. Collective. */
struct mm_comm *mm_comm_join(int *argc, char ***argv, double seconds, struct mm_error *err);
struct mm_comm *mm_comm_create(int *argc, char ***argv); /* the same for tests: it waits for ever */
void mm_comm_free(struct mm_comm *comm);

/* Whether a launcher (srun, mpirun) started this process. Local. */
bool mm_comm_launched(void);

/* "Open MPI v4.1.4"; the caller frees with mm_free. Also before mm_comm_join. Local. */
char *mm_comm_library_text(void);

/* What a message waits for beside its bytes, in s: once, and for each step of a ring within a
 * machine and between machines. */
struct mm_hops {
    double start, inside, across;
};
/* What is between ranks; comm/transport_dry.c says what it means for the time of a collective.
 * Zeros: nothing takes time. */
struct mm_links {
    int per_machine;             /* ranks on one */
    double inside, across, loss; /* bytes/s of a rank in a ring: within one machine; between two and
                                    more, less `loss` for each doubling */
    struct mm_hops buckets, sums;
    bool beside; /* buckets cross while the device computes */
};

/* For planning only: until mm_comm_pretend_end this process answers as rank 0 of `size`, and what
 * is collective is counted and not done; buckets and sums on the memory of a dry device, which may
 * be attached once more, move its clock on. Local. */
void mm_comm_pretend(struct mm_comm *comm, int size, struct mm_links links);
void mm_comm_pretend_end(struct mm_comm *comm);

int mm_comm_rank(const struct mm_comm *comm); /* Local. */
int mm_comm_size(const struct mm_comm *comm); /* Local. */
/* The number of ranks on this machine, and this rank's place among them. Local. */
int mm_comm_local_size(const struct mm_comm *comm);
int mm_comm_local_rank(const struct mm_comm *comm);
/* The first rank of this machine, which stands for the machine. Local. */
int mm_comm_machine(const struct mm_comm *comm);
/* The number of machines. Local. */
int mm_comm_machines(const struct mm_comm *comm);
/* The ranks near this one, itself among them: those of its machine; with the environment variable
 * MUDMAN_NEAR_RANKS=n, a machine's ranks are near each other in groups of n. */
struct mm_near {
    int size, rank; /* how many there are, and this rank's place among them */
    int first;      /* the rank at place 0 */
    int groups;     /* of all ranks */
};
struct mm_near mm_comm_near(const struct mm_comm *comm); /* Local. */
/* What this rank has taken part in so far; the comm's own. Local. */
const struct mm_traffic *mm_comm_traffic(const struct mm_comm *comm);

/* Makes all ranks decide alike: returns the first status other than MM_OK, in rank order, and
 * copies the text of that rank to every err. Collective. */
enum mm_status mm_comm_agree(struct mm_comm *comm, enum mm_status status, struct mm_error *err);

/* The same, and *value (=) the largest of all ranks, in one message where all goes well.
 * Collective. */
enum mm_status mm_comm_agree_with(struct mm_comm *comm, enum mm_status status, int *value,
                                  struct mm_error *err);

/* True on every rank if `flag` is true on any. Collective. */
bool mm_comm_any(struct mm_comm *comm, bool flag);

void mm_comm_barrier(struct mm_comm *comm);                                       /* Collective. */
void mm_comm_broadcast(struct mm_comm *comm, int root, void *data, size_t bytes); /* Collective. */
/* Copies every rank's `bytes` bytes, in rank order, to all[size·bytes] on every rank. Collective.
 */
void mm_comm_gather_all(struct mm_comm *comm, const void *mine, size_t bytes, void *all);

/* values[i] (host memory) = sum over ranks of values[i], in rank order, on every rank. Collective.
 */
void mm_comm_sum(struct mm_comm *comm, double *values, size_t n);
/* Returns the largest value of all ranks. Collective. */
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

/* -- on the memory of a device -------------------------------------------------------------------
 *
 * Between CPUs over MPI; between GPUs over NCCL, or staged through host memory. NCCL works beside
 * the device: a bucket is started behind all that was asked of the device before, and mm_comm_wait
 * holds back what is asked of it later. The others are done when the call returns. One bucket is
 * one group of messages. */

enum mm_transport_choice {
    MM_TRANSPORT_AUTO, /* CPU: MPI. GPU: NCCL where it was built in and every rank has a GPU of its
                          own; one rank needs neither */
    MM_TRANSPORT_STAGED, /* GPU: through host memory and MPI; ranks may share a GPU */
    MM_TRANSPORT_NCCL,
};

/* From now on the functions below work on memory of `dev` (borrowed until mm_comm_free, which must
 * come before dev is freed), and reductions of rows cross the network as reduce_dtype, float32 or
 * bfloat16. MM_BAD_INPUT where NCCL is wanted and two ranks share one GPU: the text names ranks and
 * machine. Collective. */
enum mm_status mm_comm_attach(struct mm_comm *comm, struct mm_device *dev,
                              enum mm_transport_choice transport, enum mm_dtype reduce_dtype,
                              struct mm_error *err);
/* From now on reductions cross the network as this dtype. Every rank must say the same, and no
 * reduction may be under way. Local. */
void mm_comm_reduce_as(struct mm_comm *comm, enum mm_dtype reduce_dtype);
/* "MPI" | "MPI, staged through host memory" | "NCCL 2.x.y" | "one rank". Local. */
const char *mm_comm_transport_name(const struct mm_comm *comm);
/* Bytes that the transport has taken for messages so far, beside what they carry: of the device's
 * memory over NCCL, else of the host's. On a dry device: would have taken. Local. */
size_t mm_comm_room_bytes(const struct mm_comm *comm);
/* Whether the functions below may be part of a device's recording. Local. */
bool mm_comm_records(const struct mm_comm *comm);

/* values[i] = sum over ranks of values[i], the same bits on every rank; values on the device.
 * Follows and precedes the device's other work. Collective. */
void mm_comm_sum_device(struct mm_comm *comm, double *values, size_t n);
/* The same, but they wait for the next mm_comm_sum_device, or mm_comm_sum_waiting, and cross the
 * network with its numbers. Until then nobody may touch them. Collective. */
void mm_comm_sum_later(struct mm_comm *comm, double *values, size_t n);
/* Nothing happens where none waits. Collective. */
void mm_comm_sum_waiting(struct mm_comm *comm);

/* The gradient of one tensor, to be summed over the ranks. `full` is a contiguous float32 matrix of
 * size·c rows; the rows from `rows` on are padding. `own` has room for this rank's rows, float32,
 * contiguous. */
struct mm_reduction {
    struct mm_mat full;
    size_t rows;
    float *own;
    int ranks; /* sums over ranks 0 ... ranks-1 only, in rank order whatever the transport; 0: over
                  all */
    bool add;  /* own (+=) instead of (=); only with `ranks` */
};

/* At most MM_BUCKETS buckets may have been started and not been waited for. */
#define MM_BUCKETS 64
typedef int mm_ticket; /* names a started bucket; tickets are waited for in any order */

/* Over MPI an owner takes the rows of all ranks in pieces of so many bytes, or a row of each. Tests
 * of small matrices lower it. */
extern size_t mm_inbox_bytes;

/* For n tensors: own (=) sum over ranks of full. The content of `full` is lost. With one rank `own`
 * may be the memory of `full`. With reduce_dtype bfloat16 each rank's contribution is rounded once,
 * and the contributions are added in rank order in float32. Collective. */
mm_ticket mm_comm_reduce_rows(struct mm_comm *comm, const struct mm_reduction *tensors, size_t n);

/* Completes n contiguous matrices: each (=) the own rows of every rank. This rank's rows must be in
 * their place already. Collective. */
mm_ticket mm_comm_gather_rows(struct mm_comm *comm, const struct mm_mat *tensors, size_t n);

/* The same among the ranks near each other: the one at place l of L owns the rows
 * mm_rows_of(rows, L, l). mm_comm_near_begin comes first. Collective, over all ranks. */
mm_ticket mm_comm_gather_near(struct mm_comm *comm, const struct mm_mat *tensors, size_t n);
void mm_comm_near_begin(struct mm_comm *comm);

/* Whatever the device is asked to do from now on comes after the bucket. Local. */
void mm_comm_wait(struct mm_comm *comm, mm_ticket ticket);

/* The watchdog: between begin and end none of the functions above, nor the device's work that has
 * been asked for, may take longer than `seconds` (0: no watchdog); else every rank ends with a
 * message that names this rank, the collective, `what` ("loop") and its number, and exit status
 * MM_LOST. No rank may take longer either, from one of those functions, or mm_comm_pass, to the
 * next, whatever it does there: wait for a file, for instance.
 * Begin may be called again to go on to what comes next: what was watched until then must be done
 * in its time all the same. Neither may be called while the device records. Local. */
void mm_comm_watch_begin(struct mm_comm *comm, double seconds, const char *what, size_t number);
void mm_comm_watch_end(struct mm_comm *comm);
/* This rank is at work, in something that needs none of the functions above for long. Local. */
void mm_comm_pass(struct mm_comm *comm);

#endif
