/* watch.c - see watch.h.
 *
 * Reason: a rank that hangs or is gone would let the others wait for ever, and keep the machines.
 * Cost: a lock at each begin, end and collective, and a look every quarter of a second, or every
 * tenth of a short timeout.
 *
 * Invariants:
 *   1. The lock guards everything that the thread and the host change. The device alone writes
 *      what `progress` points to, without it.
 *   2. `closed` counts the sections whose end the device was asked to report, and `progress->done`
 *      those that it has reported, modulo MM_SECTIONS. Sections end in order, so the one under way
 *      follows the last that is done.
 *   3. A section is watched until the device has done all of it, also after the next one began.
 *   4. `clock` grows only while the thread watches, and by no more than twice what it meant to
 * wait: a longer wait means that the process was stopped.
 *   5. `in` is the word of at most one call: calls are not nested.
 *
 * The end comes in three steps, each of which may hang: NCCL is told to give up, MPI to end the
 * job, and this process exits. Another thread bounds their time. When one rank is gone the launcher
 * ends the others. */
#include "comm/watch.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "kernels/queue.h"

#define ABANDON_SECONDS 2
#define ABORT_SECONDS   5 /* for MPI_Abort, after that */

/* What lies between two begins. */
struct section {
    char what[32];
    size_t number; /* MM_UNNUMBERED: none */
};

struct mm_watch {
    int rank;
    void (*abort_job)(int exit_status);
    pthread_t thread;
    bool running, leaving;
    pthread_mutex_t lock; /* of everything below */
    pthread_cond_t changed;
    bool idle;    /* the thread has nothing to watch, and waits to be told */
    double clock; /* seconds that this thread has been watching */
    /* the section */
    double seconds;
    struct section now;
    bool open;
    unsigned calls; /* in this section so far */
    /* the host */
    uint64_t in; /* the word of the call the host is in, or 0 */
    double in_since;
    double out_since; /* a begin, or the end of the newest call */
    /* the device; NULL, and not attached: the host does all by itself */
    struct mm_device *dev;
    bool attached;
    const struct mm_watched_work *work; /* NULL: none */
    volatile struct mm_device_progress *progress;
    uint64_t *counts;                     /* on the device: 0, 1, ..., MM_SECTIONS - 1 */
    size_t closed;                        /* sections whose end the device was asked to report */
    struct section sections[MM_SECTIONS]; /* section s, at s modulo MM_SECTIONS */
    uint64_t seen_steps, seen_done;
    double seen_at;
};

/* -- words: kind, 4 bits; NCCL, 1; which call of its section, 15; bytes, 44 ---------------------
 */

static uint64_t word_of(enum mm_watched kind, enum mm_over over, unsigned call, size_t bytes) {
    const uint64_t most = ((uint64_t)1 << 44) - 1;
    return (uint64_t)kind << 60 | (uint64_t)(over == MM_OVER_NCCL) << 59 |
           (uint64_t)(call & 0x7fff) << 44 | (bytes < most ? bytes : most);
}

const char *mm_watched_name(enum mm_watched kind) {
    static const char *const kinds[16] = {
        "work of the device",
        [MM_WATCHED_REDUCTION] = "reduction",
        [MM_WATCHED_GATHER] = "gather",
        [MM_WATCHED_NEAR_GATHER] = "near gather",
        [MM_WATCHED_SUM] = "sum",
        [MM_WATCHED_MAXIMUM] = "maximum",
        [MM_WATCHED_AGREEMENT] = "agreement",
        [MM_WATCHED_BARRIER] = "barrier",
        [MM_WATCHED_BROADCAST] = "broadcast",
        [MM_WATCHED_CONNECTION] = "connection",
        [MM_WATCHED_DEPARTURE] = "departure",
    };
    return kinds[kind];
}

/* "reduction #5 (34.2 MB, NCCL)" */
static void word_text(uint64_t word, char *text, size_t bytes) {
    char size[32];
    uint64_t data = word & (((uint64_t)1 << 44) - 1);
    if (!word)
        snprintf(text, bytes, "%s", mm_watched_name((enum mm_watched)0));
    else
        snprintf(text, bytes, "%s #%u (%s%s%s)", mm_watched_name((enum mm_watched)(word >> 60)),
                 (unsigned)(word >> 44 & 0x7fff), data ? mm_bytes_text(size, (double)data) : "",
                 data ? ", " : "", word >> 59 & 1 ? "NCCL" : "MPI");
}

/* -- the end ----------------------------------------------------------------------------------- */

static void *exit_late(void *unused) {
    (void)unused;
    sleep(ABANDON_SECONDS + ABORT_SECONDS);
    _exit(MM_LOST);
}

static atomic_bool abandoned;

static void *abandon(void *work) {
    const struct mm_watched_work *w = work;
    w->abandon(w->self);
    atomic_store(&abandoned, true);
    return NULL;
}

/* MPI was started for one thread; MPI_Abort from another, while the first may be stuck in MPI,
 * works in practice, and exit_late is there if it doesn't. */
static void end_job(struct mm_watch *w) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, exit_late, NULL) != 0)
        _exit(MM_LOST);
    if (w->work && pthread_create(&thread, NULL, abandon, (void *)w->work) == 0)
        for (int i = 0; i < 100 * ABANDON_SECONDS && !atomic_load(&abandoned); i++)
            usleep(10000);
    w->abort_job(MM_LOST);
    _exit(MM_LOST);
}

/* "loop 7" */
static void section_text(const struct section *section, char *text, size_t bytes) {
    if (section->number == MM_UNNUMBERED)
        snprintf(text, bytes, "%s", section->what);
    else
        snprintf(text, bytes, "%s %zu", section->what, section->number);
}

static void too_long(struct mm_watch *w, const struct section *section, uint64_t word) {
    char where[64], text[96];
    section_text(section, where, sizeof where);
    word_text(word, text, sizeof text);
    fprintf(stderr,
            "mudman-mpi: rank %d: %s: %s has not ended after %g s: another rank hangs or is gone, "
            "or 'timeout' is too short\n",
            w->rank, where, text, w->seconds);
    end_job(w);
}

/* -- the thread -------------------------------------------------------------------------------- */

static void too_quiet(struct mm_watch *w) {
    char where[64];
    section_text(&w->now, where, sizeof where);
    fprintf(stderr,
            "mudman-mpi: rank %d: %s: nothing has gone on for %g s: this process hangs, or "
            "'timeout' is too short\n",
            w->rank, where, 1.5 * w->seconds);
    end_job(w);
}

/* A rank that stands still is given half as long again: one that waits for it, or a bucket on the
 * device, can name the collective, and is to speak first. */
static void look_at_host(struct mm_watch *w) {
    if (w->in && w->clock - w->in_since > w->seconds)
        too_long(w, &w->now, w->in);
    if (w->open && !w->in && w->clock - w->out_since > 1.5 * w->seconds)
        too_quiet(w);
}

/* Sections end in order: the one under way follows the last that is done. */
static const struct section *section_under_way(const struct mm_watch *w, uint64_t done) {
    size_t behind = (w->closed - done) % MM_SECTIONS;
    return &w->sections[(w->closed - behind) % MM_SECTIONS];
}

static bool device_is_done(const struct mm_watch *w) {
    return !w->attached ||
           (w->progress->doing == 0 && w->progress->done == w->closed % MM_SECTIONS);
}

static void look_at_device(struct mm_watch *w) {
    if (!w->attached)
        return;
    uint64_t steps = w->progress->steps, done = w->progress->done, doing = w->progress->doing;
    if (steps != w->seen_steps || done != w->seen_done || device_is_done(w))
        w->seen_at = w->clock;
    w->seen_steps = steps;
    w->seen_done = done;
    if (w->clock - w->seen_at > w->seconds)
        too_long(w, section_under_way(w, done), doing);
}

static void look_at_work(struct mm_watch *w) {
    char text[512], where[64];
    if (!w->work || !w->work->failed(w->work->self, text, sizeof text))
        return;
    section_text(&w->now, where, sizeof where);
    fprintf(stderr, "mudman-mpi: rank %d: %s: %s failed: %s\n", w->rank, where, w->work->name,
            text);
    end_job(w);
}

/* A wait much longer than asked for is a process that was stopped. */
static void wait_a_little(struct mm_watch *w) {
    double wait = w->seconds / 10 < 0.25 ? w->seconds / 10 : 0.25, began = mm_now();
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    long ns = until.tv_nsec + (long)(1e9 * wait);
    until.tv_sec += ns / 1000000000;
    until.tv_nsec = ns % 1000000000;
    pthread_cond_timedwait(&w->changed, &w->lock, &until);
    double waited = mm_now() - began;
    w->clock += waited < 2 * wait ? waited : 2 * wait;
}

static void *keep_watch(void *argument) {
    struct mm_watch *w = argument;
    pthread_mutex_lock(&w->lock);
    while (!w->leaving) {
        if (w->seconds > 0 && (w->open || !device_is_done(w))) {
            wait_a_little(w);
            look_at_host(w);
            look_at_device(w);
            look_at_work(w);
        } else {
            w->idle = true;
            pthread_cond_wait(&w->changed, &w->lock);
            w->idle = false;
        }
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* -- sections ---------------------------------------------------------------------------------- */

/* True: the device is to report when it gets here, see report. */
static bool close_section(struct mm_watch *w) {
    bool reports = w->open && w->attached;
    if (reports) {
        if (device_is_done(w))
            w->seen_at = w->clock; /* its time begins now */
        w->closed++;
    }
    w->open = false;
    return reports;
}

/* Without the lock: behind a device that hangs this may wait for ever, and the thread must see it.
 */
static void report(struct mm_watch *w) {
    w->dev->queue->download_later(w->dev, (void *)&w->progress->done,
                                  &w->counts[w->closed % MM_SECTIONS], sizeof *w->counts);
}

void mm_watch_begin(struct mm_watch *w, double seconds, const char *what, size_t number) {
    pthread_mutex_lock(&w->lock);
    bool reports = close_section(w);
    w->seconds = seconds;
    w->open = seconds > 0;
    w->calls = 0;
    w->out_since = w->clock;
    snprintf(w->now.what, sizeof w->now.what, "%s", what);
    w->now.number = number;
    w->sections[w->closed % MM_SECTIONS] = w->now;
    if (w->open && !w->running) {
        MM_CHECK(pthread_create(&w->thread, NULL, keep_watch, w) == 0, "no thread for a watchdog");
        w->running = true;
    }
    if (w->idle) /* else it looks by itself, soon: a small loop need not wake a thread */
        pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    if (reports)
        report(w);
}

void mm_watch_end(struct mm_watch *w) {
    pthread_mutex_lock(&w->lock);
    bool reports = close_section(w);
    pthread_mutex_unlock(&w->lock);
    if (reports)
        report(w);
}

uint64_t mm_watch_enter(struct mm_watch *w, enum mm_watched kind, enum mm_over over, size_t bytes) {
    uint64_t word = 0;
    pthread_mutex_lock(&w->lock);
    MM_CHECK(!w->in, "a collective within a collective");
    if (w->open) {
        word = word_of(kind, over, ++w->calls, bytes);
        w->in = word;
        w->in_since = w->clock;
    }
    pthread_mutex_unlock(&w->lock);
    return word;
}

void mm_watch_leave(struct mm_watch *w) {
    pthread_mutex_lock(&w->lock);
    w->in = 0;
    w->out_since = w->clock;
    pthread_mutex_unlock(&w->lock);
}

void mm_watch_pass(struct mm_watch *w) {
    pthread_mutex_lock(&w->lock);
    w->out_since = w->clock;
    pthread_mutex_unlock(&w->lock);
}

/* -- its own begin and end --------------------------------------------------------------------- */

struct mm_watch *mm_watch_create(void (*abort_job)(int exit_status)) {
    struct mm_watch *w = mm_calloc(1, sizeof *w);
    pthread_condattr_t clock;
    w->abort_job = abort_job;
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&w->changed, &clock);
    pthread_condattr_destroy(&clock);
    return w;
}

void mm_watch_name(struct mm_watch *w, int rank) {
    w->rank = rank;
}

void mm_watch_free(struct mm_watch *w) {
    pthread_mutex_lock(&w->lock);
    w->leaving = true;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    if (w->running)
        pthread_join(w->thread, NULL);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    mm_free(w);
}

void mm_watch_attach(struct mm_watch *w, struct mm_device *dev,
                     const struct mm_watched_work *work) {
    if (!dev->asynchronous)
        return;
    uint64_t counts[MM_SECTIONS];
    for (size_t i = 0; i < MM_SECTIONS; i++)
        counts[i] = i;
    pthread_mutex_lock(&w->lock);
    w->dev = dev;
    w->work = work;
    w->attached = true;
    w->progress = dev->queue->pinned_alloc(dev, sizeof *w->progress);
    w->counts = dev->queue->alloc(dev, sizeof counts);
    dev->queue->upload(dev, w->counts, counts, sizeof counts);
    pthread_mutex_unlock(&w->lock);
}

void mm_watch_detach(struct mm_watch *w) {
    pthread_mutex_lock(&w->lock);
    w->attached = w->open = false;
    w->work = NULL;
    pthread_mutex_unlock(&w->lock);
}

void mm_watch_free_device(struct mm_watch *w) {
    struct mm_device *dev = w->dev;
    if (!dev)
        return;
    uint64_t unused; /* a download waits: afterwards nothing writes to `progress` */
    dev->queue->download(dev, &unused, w->counts, sizeof unused);
    dev->queue->pinned_free(dev, (void *)w->progress);
    dev->queue->free(dev, w->counts);
}

struct mm_device_progress *mm_watch_progress(struct mm_watch *w) {
    return (struct mm_device_progress *)w->progress;
}
