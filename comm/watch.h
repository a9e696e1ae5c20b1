/* watch.h - the watchdog: a thread that ends the job when something takes too long.
 *
 * Time is what this process ran: while the whole job is stopped (a suspended one, a debugger) none
 * passes.
 *
 * It looks at four things: the call the host is in, the bucket the device is in, whether the device
 * has done all that was asked of it up to a begin or end, and how long the host has been between
 * two calls: all ranks may wait for the same file system, and then none is in a call. A collective
 * is one word: what it is, which of its section (what lies between two begins), and its size; so
 * that a bucket can tell its own from inside a device's recording, by writing it to host memory.
 * Local, all of it. */
#ifndef MM_WATCH_H
#define MM_WATCH_H

#include "kernels/device.h"

struct mm_watch;

/* Work that goes on beside the host and can fail by itself: the transport between GPUs. The
 * functions are called on the watchdog's thread. */
struct mm_watched_work {
    const char *name; /* for messages; borrowed */
    void *self;       /* what the functions are given */
    /* Whether it has failed: the text says why. */
    bool (*failed)(void *self, char *text, size_t bytes);
    /* Gives up what is under way; may hang. */
    void (*abandon)(void *self);
};

enum mm_watched {
    MM_WATCHED_REDUCTION = 1,
    MM_WATCHED_GATHER,
    MM_WATCHED_NEAR_GATHER,
    MM_WATCHED_SUM,
    MM_WATCHED_MAXIMUM,
    MM_WATCHED_AGREEMENT,
    MM_WATCHED_BARRIER,
    MM_WATCHED_BROADCAST,
    MM_WATCHED_CONNECTION,
    MM_WATCHED_DEPARTURE,
    MM_WATCHED_KINDS,
};
/* "reduction" */
const char *mm_watched_name(enum mm_watched kind);

/* Written by the device, read by the watchdog; memory of pinned_alloc. */
struct mm_device_progress {
    uint64_t doing; /* the word of the bucket that is under way, or 0 */
    uint64_t steps; /* changes with every begin and end of a bucket */
    uint64_t done;  /* sections that are done, modulo MM_SECTIONS */
};
#define MM_SECTIONS 256

/* abort_job ends all ranks; if it returns or hangs, this process exits. The caller frees with
 * mm_watch_free, which ends the thread. */
struct mm_watch *mm_watch_create(void (*abort_job)(int exit_status));
void mm_watch_free(struct mm_watch *watch);

/* This process's rank, for messages. */
void mm_watch_name(struct mm_watch *watch, int rank);

/* From now on what was asked of `dev` and `work` are watched too, if the device is asynchronous.
 * Both are borrowed; work NULL: nothing but the device. Once. */
void mm_watch_attach(struct mm_watch *watch, struct mm_device *dev,
                     const struct mm_watched_work *work);
/* From now on neither is watched, and the work's owner may be freed; then mm_watch_free_device,
 * after which the device may be. */
void mm_watch_detach(struct mm_watch *watch);
void mm_watch_free_device(struct mm_watch *watch);
/* Where the attached device writes what it is doing; NULL: nowhere. */
struct mm_device_progress *mm_watch_progress(struct mm_watch *watch);

/* See mm_comm_watch_begin; `what` is copied. */
#define MM_UNNUMBERED SIZE_MAX
void mm_watch_begin(struct mm_watch *watch, double seconds, const char *what, size_t number);
void mm_watch_end(struct mm_watch *watch);

/* The calling thread enters a collective of `bytes` bytes over NCCL or MPI, and leaves it. Enter
 * returns the word of the collective, or 0 if nothing is watched. Calls may not be nested. */
enum mm_over { MM_OVER_MPI, MM_OVER_NCCL };
uint64_t mm_watch_enter(struct mm_watch *watch, enum mm_watched kind, enum mm_over over,
                        size_t bytes);
void mm_watch_leave(struct mm_watch *watch);
/* This thread came so far, to a call that has nothing to wait for. */
void mm_watch_pass(struct mm_watch *watch);

#endif
