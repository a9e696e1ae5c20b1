/* rehearsal.h - what a loop or a step will ask of a rank, found out by doing it on a dry device:
 * for `plan`. */
#ifndef MM_REHEARSAL_H
#define MM_REHEARSAL_H

#include "kernels/dry.h"
#include "src/run/job.h"

struct mm_rehearsal {
    struct mm_traffic traffic;
    struct mm_clock clock;
    size_t workspace; /* bytes that the device has for itself, at the end */
    size_t messages;  /* and the transport for messages: mm_comm_room_bytes */
};

/* What is done between these two is counted. The job's device is dry, and its comm pretends. Local.
 */
struct mm_rehearsal mm_rehearsal_begin(const struct mm_job *job);
void mm_rehearsal_end(struct mm_rehearsal *rehearsal, const struct mm_job *job);

/* Prints the collectives of `what`. */
void mm_rehearsal_print_traffic(const struct mm_rehearsal *rehearsal, const char *what);
/* Prints how long it is predicted to take, and on what; tokens: of all ranks. */
void mm_rehearsal_print_time(const struct mm_rehearsal *rehearsal, const char *what, size_t tokens);

#endif
