/* watch.c - see watch.h.
 *
 * The end comes in three steps, each of which may hang: NCCL is told to give up, MPI to end the
 * job, and this process exits. Another thread bounds their time. The launcher ends the other ranks
 * when one is gone. */
#include "comm/watch.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "comm/transport.h"

#define ABANDON_SECONDS 2
#define ABORT_SECONDS   5 /* for MPI_Abort, after that */

struct mm_watch {
    int rank;
    void (*abort_job)(int exit_status);
    pthread_t thread;
    bool running, leaving;
    pthread_mutex_t lock; /* of everything below */
    pthread_cond_t changed;
    /* the section */
    double seconds;
    char what[32];
    size_t number;
    bool open;
    unsigned calls; /* in this section so far */
    /* the host */
    uint64_t in; /* the word of the call the host is in, or 0 */
    double in_since;
    /* the device; NULL: the host does all by itself */
    struct mm_device *dev;
    struct mm_carrier *transport;
    volatile struct mm_progress *progress;
    uint64_t *counts;            /* on the device: 0, 1, ..., MM_SECTIONS - 1 */
    size_t closed;               /* sections whose end the device was asked to report */
    size_t numbers[MM_SECTIONS]; /* of section s, at s modulo MM_SECTIONS */
    uint64_t seen_steps, seen_done;
    double seen_at;
};

/* -- words: kind, 4 bits; NCCL, 1; which call of its section, 15; bytes, 44 ---------------------
 */

static uint64_t word_of(enum mm_watched kind, bool nccl, unsigned call, size_t bytes) {
    const uint64_t most = ((uint64_t)1 << 44) - 1;
    return (uint64_t)kind << 60 | (uint64_t)nccl << 59 | (uint64_t)(call & 0x7fff) << 44 |
           (bytes < most ? bytes : most);
}

/* "reduction #5 (34.2 MB, NCCL)" */
static void word_text(uint64_t word, char *text, size_t bytes) {
    static const char *const kinds[16] = {
        "work of the device",
        [MM_WATCHED_REDUCTION] = "reduction",
        [MM_WATCHED_GATHER] = "gather",
        [MM_WATCHED_SUM] = "sum",
        [MM_WATCHED_MAXIMUM] = "maximum",
        [MM_WATCHED_AGREEMENT] = "agreement",
        [MM_WATCHED_BARRIER] = "barrier",
        [MM_WATCHED_BROADCAST] = "broadcast",
        [MM_WATCHED_CONNECTION] = "connection",
    };
    char size[32];
    uint64_t data = word & (((uint64_t)1 << 44) - 1);
    if (!word)
        snprintf(text, bytes, "%s", kinds[0]);
    else
        snprintf(text, bytes, "%s #%u (%s%s%s)", kinds[word >> 60], (unsigned)(word >> 44 & 0x7fff),
                 data ? mm_bytes_text(size, (double)data) : "", data ? ", " : "",
                 word >> 59 & 1 ? "NCCL" : "MPI");
}

/* -- the end ----------------------------------------------------------------------------------- */

static void *exit_late(void *unused) {
    (void)unused;
    sleep(ABANDON_SECONDS + ABORT_SECONDS);
    _exit(MM_FAILED);
}

static atomic_bool abandoned;

static void *abandon(void *transport) {
    ((struct mm_carrier *)transport)->abandon(transport);
    atomic_store(&abandoned, true);
    return NULL;
}

/* MPI was started for one thread; MPI_Abort from another, while the first may be stuck in MPI,
 * works in practice, and exit_late is there if it doesn't. */
static void end_job(struct mm_watch *w) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, exit_late, NULL) != 0)
        _exit(MM_FAILED);
    if (w->transport && w->transport->abandon &&
        pthread_create(&thread, NULL, abandon, w->transport) == 0)
        for (int i = 0; i < 100 * ABANDON_SECONDS && !atomic_load(&abandoned); i++)
            usleep(10000);
    w->abort_job(MM_FAILED);
    _exit(MM_FAILED);
}

static void too_long(struct mm_watch *w, size_t number, uint64_t word) {
    char text[96];
    word_text(word, text, sizeof text);
    fprintf(stderr, "mudman-mpi: rank %d: %s %zu: %s has not ended after %g s\n", w->rank, w->what,
            number, text, w->seconds);
    end_job(w);
}

/* -- the thread -------------------------------------------------------------------------------- */

static void look_at_host(struct mm_watch *w, double now) {
    if (w->in && now - w->in_since > w->seconds)
        too_long(w, w->number, w->in);
}

/* Sections end in order: the one under way follows the last that is done. */
static size_t section_under_way(const struct mm_watch *w, uint64_t done) {
    size_t behind = (w->closed - done) % MM_SECTIONS;
    return w->numbers[(w->closed - behind) % MM_SECTIONS];
}

static bool device_is_done(const struct mm_watch *w) {
    return !w->progress ||
           (w->progress->doing == 0 && w->progress->done == w->closed % MM_SECTIONS);
}

static void look_at_device(struct mm_watch *w, double now) {
    if (!w->progress)
        return;
    uint64_t steps = w->progress->steps, done = w->progress->done, doing = w->progress->doing;
    if (steps != w->seen_steps || done != w->seen_done || device_is_done(w))
        w->seen_at = now;
    w->seen_steps = steps;
    w->seen_done = done;
    if (now - w->seen_at > w->seconds)
        too_long(w, section_under_way(w, done), doing);
}

static void look_at_transport(struct mm_watch *w) {
    char text[512];
    if (!w->transport || !w->transport->failed ||
        !w->transport->failed(w->transport, text, sizeof text))
        return;
    fprintf(stderr, "mudman-mpi: rank %d: %s %zu: %s failed: %s\n", w->rank, w->what, w->number,
            w->transport->name, text);
    end_job(w);
}

static void wait_a_little(struct mm_watch *w) {
    double wait = w->seconds / 10 < 0.25 ? w->seconds / 10 : 0.25;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    long ns = until.tv_nsec + (long)(1e9 * wait);
    until.tv_sec += ns / 1000000000;
    until.tv_nsec = ns % 1000000000;
    pthread_cond_timedwait(&w->changed, &w->lock, &until);
}

static void *keep_watch(void *argument) {
    struct mm_watch *w = argument;
    pthread_mutex_lock(&w->lock);
    while (!w->leaving) {
        if (w->seconds > 0 && (w->open || !device_is_done(w))) {
            wait_a_little(w);
            double now = mm_now();
            look_at_host(w, now);
            look_at_device(w, now);
            look_at_transport(w);
        } else {
            pthread_cond_wait(&w->changed, &w->lock);
        }
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

/* -- sections ---------------------------------------------------------------------------------- */

/* The device reports when it gets here. */
static void close_section(struct mm_watch *w) {
    if (w->open && w->progress) {
        if (device_is_done(w))
            w->seen_at = mm_now(); /* its time begins now */
        w->closed++;
        w->dev->ops->download_later(w->dev, (void *)&w->progress->done,
                                    &w->counts[w->closed % MM_SECTIONS], sizeof *w->counts);
    }
    w->open = false;
}

void mm_watch_begin(struct mm_watch *w, double seconds, const char *what, size_t number) {
    pthread_mutex_lock(&w->lock);
    close_section(w);
    w->seconds = seconds;
    w->open = seconds > 0;
    w->calls = 0;
    snprintf(w->what, sizeof w->what, "%s", what);
    w->number = w->numbers[w->closed % MM_SECTIONS] = number;
    if (w->open && !w->running) {
        MM_CHECK(pthread_create(&w->thread, NULL, keep_watch, w) == 0, "no thread for a watchdog");
        w->running = true;
    }
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
}

void mm_watch_end(struct mm_watch *w) {
    pthread_mutex_lock(&w->lock);
    close_section(w);
    pthread_mutex_unlock(&w->lock);
}

uint64_t mm_watch_enter(struct mm_watch *w, enum mm_watched kind, bool nccl, size_t bytes) {
    uint64_t word = 0;
    pthread_mutex_lock(&w->lock);
    MM_CHECK(!w->in, "a collective within a collective");
    if (w->open) {
        word = word_of(kind, nccl, ++w->calls, bytes);
        w->in = word;
        w->in_since = mm_now();
    }
    pthread_mutex_unlock(&w->lock);
    return word;
}

void mm_watch_leave(struct mm_watch *w) {
    pthread_mutex_lock(&w->lock);
    w->in = 0;
    pthread_mutex_unlock(&w->lock);
}

/* -- its own begin and end --------------------------------------------------------------------- */

struct mm_watch *mm_watch_create(int rank, void (*abort_job)(int exit_status)) {
    struct mm_watch *w = mm_calloc(1, sizeof *w);
    pthread_condattr_t clock;
    w->rank = rank;
    w->abort_job = abort_job;
    pthread_mutex_init(&w->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&w->changed, &clock);
    pthread_condattr_destroy(&clock);
    return w;
}

void mm_watch_stop(struct mm_watch *w) {
    pthread_mutex_lock(&w->lock);
    w->leaving = true;
    w->open = false;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    if (w->running)
        pthread_join(w->thread, NULL);
}

void mm_watch_free(struct mm_watch *w) {
    struct mm_device *dev = w->dev;
    if (dev) {
        uint64_t unused; /* a download waits: afterwards nothing writes to `progress` */
        dev->ops->download(dev, &unused, w->counts, sizeof unused);
        dev->ops->pinned_free(dev, (void *)w->progress);
        dev->ops->free(dev, w->counts);
    }
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    mm_free(w);
}

void mm_watch_attach(struct mm_watch *w, struct mm_device *dev, struct mm_carrier *transport) {
    if (!dev->ops->asynchronous)
        return;
    uint64_t counts[MM_SECTIONS];
    for (size_t i = 0; i < MM_SECTIONS; i++)
        counts[i] = i;
    pthread_mutex_lock(&w->lock);
    w->dev = dev;
    w->transport = transport;
    w->progress = dev->ops->pinned_alloc(dev, sizeof *w->progress);
    w->counts = dev->ops->alloc(dev, sizeof counts);
    dev->ops->upload(dev, w->counts, counts, sizeof counts);
    pthread_mutex_unlock(&w->lock);
}

struct mm_progress *mm_watch_progress(struct mm_watch *w) {
    return (struct mm_progress *)w->progress;
}
