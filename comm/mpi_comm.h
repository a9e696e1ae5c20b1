/* mpi_comm.h - the job as the files of comm/ that speak MPI see it. */
#ifndef MM_MPI_COMM_H
#define MM_MPI_COMM_H

#include <mpi.h>

#include "comm/traffic.h"
#include "comm/transport.h"

struct mm_comm {
    MPI_Comm world, node, beside; /* beside: of the ranks near this one */
    int rank, size, local_rank, local_size;
    struct mm_near near;
    int machine;   /* the rank that stands for this machine: its first */
    double *sums;  /* every rank's numbers in a sum, grown to the most there were */
    size_t sums_n; /* doubles of it */
    struct mm_watch *watch;
    double patience;                       /* seconds of the newest section */
    struct mm_transport *transport;        /* NULL before mm_comm_attach */
    uint64_t started;                      /* bit t: the bucket of ticket t was not waited for */
    struct mm_numbers waiting[MM_NUMBERS]; /* for a sum */
    size_t waiting_n;
    int machines;  /* that the ranks are on */
    bool pretends; /* see mm_comm_pretend; and what was true before: */
    struct {
        int rank, size, machines;
        struct mm_near near;
        struct mm_transport *transport;
        struct mm_traffic traffic;
    } real;
    struct mm_links links;
    struct mm_traffic traffic; /* so far */
    MPI_Comm comparing;        /* for the debug mode alone; MPI_COMM_NULL: it is off */
    uint64_t compared;         /* calls so far */
    struct {
        char what[32];
        size_t number;
        struct mm_traffic before;
    } section; /* of the watchdog's: the debug mode tells of each */
};

#define CHECK_MPI(call)                                                                            \
    do {                                                                                           \
        int mpi_result = (call);                                                                   \
        MM_CHECK_AS(MM_LOST, mpi_result == MPI_SUCCESS, "MPI error %d in %s", mpi_result, #call);  \
    } while (0)

/* What comes before each collective: returns the watchdog's word of it, and mm_watch_leave follows
 * it. Collective where the debug mode is on. */
uint64_t mm_comm_enter(struct mm_comm *comm, struct mm_call call);
/* The debug mode: Collective. */
void mm_comm_compare_begin(struct mm_comm *comm);
void mm_comm_compare_end(struct mm_comm *comm);
/* A section of the watchdog's begins. Local. */
void mm_comm_tell_traffic(struct mm_comm *comm, const char *what, size_t number);

/* mm_comm_sum without the watchdog: part of a watched function. Collective. */
void mm_comm_sum_unwatched(struct mm_comm *comm, double *values, size_t n);

/* Buckets of a dry device, of which it counts the room that they take over MPI or, where `choice`
 * is not staged and the device stands for a GPU, over NCCL. Local. */
struct mm_transport *mm_transport_dry(struct mm_comm *comm, struct mm_device *dev,
                                      enum mm_transport_choice choice);
/* Buckets on the CPU's memory, or on a GPU's through host memory. Collective. */
struct mm_transport *mm_transport_mpi(struct mm_comm *comm, struct mm_device *dev);

#endif
