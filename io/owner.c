/* owner.c - see owner.h.
 *
 * To take over is to remove the file and make a new one. Two jobs that do so at once would remove
 * each other's, so each makes another file first, `owner.change`, with O_EXCL too. Only where a job
 * died between the two, and two more come at the same moment, could both succeed; then the one that
 * lost finds the other's name when it publishes. */
#include "io/owner.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "io/files.h"

#define BEAT_SECONDS  5
#define STALE_SECONDS 120.0 /* many beats: some file systems show times late */
#define TRIES         30    /* of a tenth of a second */

struct mm_owner {
    char *path;     /* NULL: of no folder */
    char *text;     /* what the file holds */
    double checked; /* mm_now() at the last look */
    pthread_t thread;
    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t changed;
    int fd;
    bool leaving;
};

/* What an owner's file says. */
struct record {
    char text[1024], host[256], place[256], job[64];
    long pid, restart;
    unsigned long long start;
    double age; /* seconds since its heartbeat */
    bool whole; /* else it is just being written, or its writer died */
};

/* -- who one is -------------------------------------------------------------------------------- */

/* When the process started, in ticks since the machine did; 0: there is none, or only its remains.
 */
static unsigned long long start_of(long pid) {
    char *path = mm_format("/proc/%ld/stat", pid), *text, *end, state;
    unsigned long long start = 0;
    struct mm_error unused;
    if (mm_file_read(path, &text, NULL, &unused) == MM_OK) {
        end = strrchr(text, ')'); /* the name may hold anything */
        if (!end || sscanf(end + 1,
                           " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d "
                           "%*d %*d %*d %*d %llu",
                           &state, &start) != 2)
            start = 0;
        else if (state == 'Z' || state == 'X')
            start = 0;
        mm_free(text);
    }
    mm_free(path);
    return start;
}

/* Where process ids mean the same: a start of a machine, and a space of its processes. */
static char *place_text(void) {
    char space[128] = "?", *boot;
    struct mm_error unused;
    ssize_t n = readlink("/proc/self/ns/pid", space, sizeof space - 1);
    space[n > 0 ? n : 1] = 0;
    if (mm_file_read("/proc/sys/kernel/random/boot_id", &boot, NULL, &unused) != MM_OK)
        return mm_format("?"); /* nobody's */
    boot[strcspn(boot, "\n")] = 0;
    char *place = mm_format("%s/%s", boot, space);
    mm_free(boot);
    return place;
}

static const char *environment(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value && *value && strlen(value) < 60 ? value : otherwise;
}

static char *my_text(void) {
    char host[256] = "?", *place = place_text();
    gethostname(host, sizeof host - 1);
    char *text =
        mm_format("host %s\npid %ld\nstart %llu\nplace %s\njob %s\nrestart %s\nend\n", host,
                  (long)getpid(), start_of(getpid()), place, environment("SLURM_JOB_ID", "-"),
                  environment("SLURM_RESTART_COUNT", "0"));
    mm_free(place);
    return text;
}

static bool parse(struct record *r) {
    return sscanf(r->text, "host %255s pid %ld start %llu place %255s job %63s restart %ld",
                  r->host, &r->pid, &r->start, r->place, r->job, &r->restart) == 6 &&
           strstr(r->text, "\nend\n");
}

/* -- the other --------------------------------------------------------------------------------- */

static double seconds_of(struct timespec t) {
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The file system's time. */
static double time_there(const char *path) {
    struct stat info = {0};
    char *probe = mm_format("%s.time-%ld", path, (long)getpid());
    int fd = open(probe, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    bool known = fd >= 0 && fstat(fd, &info) == 0;
    if (fd >= 0) {
        close(fd);
        unlink(probe);
    }
    mm_free(probe);
    return known ? seconds_of(info.st_mtim) : (double)time(NULL);
}

/* Whether there is such a file. Opened anew each time: a network file system then asks its server.
 */
static bool read_record(struct record *r, const char *path) {
    struct stat info;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    *r = (struct record){.age = 0};
    if (fd < 0)
        return false;
    ssize_t n = read(fd, r->text, sizeof r->text - 1);
    r->text[n > 0 ? n : 0] = 0;
    if (fstat(fd, &info) == 0)
        r->age = fmax(0, time_there(path) - seconds_of(info.st_mtim));
    close(fd);
    r->whole = parse(r);
    return true;
}

static bool is_ours(const char *path, const char *mine) {
    char text[1024];
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    return strcmp(text, mine) == 0;
}

static bool is_dead(const struct record *r, const char *mine) {
    struct record me = {.age = 0};
    snprintf(me.text, sizeof me.text, "%s", mine);
    if (!r->whole || !parse(&me))
        return r->age > STALE_SECONDS;
    if (strcmp(r->place, me.place) == 0 && strcmp(r->place, "?") != 0) {
        unsigned long long start = start_of(r->pid);
        bool hidden = start == 0 && kill((pid_t)r->pid, 0) != 0 && errno == EPERM;
        return hidden ? r->age > STALE_SECONDS : start != r->start;
    }
    bool requeued = strcmp(r->job, "-") != 0 && strcmp(r->job, me.job) == 0;
    return (requeued && me.restart > r->restart) || r->age > STALE_SECONDS;
}

/* "host n1, process 123, Slurm job 7, last seen 3 s ago" */
static void describe(const struct record *r, char *text, size_t bytes) {
    if (!r->whole)
        snprintf(text, bytes, "one that has not written its name, last seen %.0f s ago", r->age);
    else
        snprintf(text, bytes, "host %s, process %ld%s%s, last seen %.0f s ago", r->host, r->pid,
                 strcmp(r->job, "-") == 0 ? "" : ", Slurm job ",
                 strcmp(r->job, "-") == 0 ? "" : r->job, r->age);
}

static enum mm_status refuse(const struct record *r, const char *path, struct mm_error *err) {
    char who[512];
    describe(r, who, sizeof who);
    return mm_fail(
        err, MM_BAD_INPUT,
        "%.*s belongs to another job: %s: wait for its end, or stop it; one that is gone "
        "is taken over when it has not been seen for %.0f s",
        (int)(strlen(path) - strlen("/owner")), path, who, STALE_SECONDS);
}

/* -- claiming ---------------------------------------------------------------------------------- */

/* An open file that holds the text, or -1 and errno. */
static int make(const char *path, const char *text) {
    size_t bytes = strlen(text);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return -1;
    if (write(fd, text, bytes) == (ssize_t)bytes && fsync(fd) == 0)
        return fd;
    int reason = errno;
    close(fd);
    unlink(path);
    errno = reason;
    return -1;
}

/* Removes a dead owner's file, if it is still there and nobody else is at it. */
static void remove_dead(const char *path, const char *mine, const struct record *dead) {
    struct record now, other;
    char *change = mm_format("%s.change", path), who[512];
    int fd = make(change, mine);
    if (fd < 0) {
        if (read_record(&other, change) && is_dead(&other, mine))
            unlink(change);
        mm_free(change);
        return;
    }
    if (read_record(&now, path) && strcmp(now.text, dead->text) == 0) {
        describe(dead, who, sizeof who);
        mm_log0(MM_LOG_WARN, "%s: the folder belonged to a job that is gone (%s): taken over", path,
                who);
        unlink(path);
    }
    close(fd);
    unlink(change);
    mm_free(change);
}

static void *beat(void *argument) {
    struct mm_owner *o = argument;
    struct timespec until;
    pthread_mutex_lock(&o->lock);
    clock_gettime(CLOCK_MONOTONIC, &until);
    while (!o->leaving) {
        until.tv_sec += BEAT_SECONDS;
        while (!o->leaving && pthread_cond_timedwait(&o->changed, &o->lock, &until) == 0)
            ;
        futimens(o->fd, NULL); /* one that fails is an old heartbeat */
        clock_gettime(CLOCK_MONOTONIC, &until);
    }
    pthread_mutex_unlock(&o->lock);
    return NULL;
}

struct mm_owner *mm_owner_create(void) {
    struct mm_owner *o = mm_calloc(1, sizeof *o);
    pthread_condattr_t clock;
    pthread_mutex_init(&o->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&o->changed, &clock);
    pthread_condattr_destroy(&clock);
    return o;
}

enum mm_status mm_owner_look(const char *run_dir, struct mm_error *err) {
    struct record other;
    char *path = mm_format("%s/owner", run_dir), *mine = my_text();
    enum mm_status status = MM_OK;
    if (read_record(&other, path) && !is_dead(&other, mine))
        status = refuse(&other, path, err);
    mm_free(mine);
    mm_free(path);
    return status;
}

/* An open file `path` that is this job's; -1 with a status. */
static int claim(const char *path, const char *mine, enum mm_status *status, struct mm_error *err) {
    struct record other = {.age = 0};
    for (int i = 0; i < TRIES; i++) {
        int fd = make(path, mine);
        if (fd >= 0)
            return fd;
        if (errno != EEXIST) {
            int reason = errno;
            *status = mm_fail(err, reason == ENOSPC || reason == EDQUOT ? MM_FAILED : MM_BAD_INPUT,
                              "%s: cannot write: %s", path, strerror(reason));
            return -1;
        }
        if (read_record(&other, path) && is_dead(&other, mine))
            remove_dead(path, mine, &other);
        else
            usleep(100000);
    }
    *status = refuse(&other, path, err);
    return -1;
}

enum mm_status mm_owner_claim(struct mm_owner *o, const char *run_dir, struct mm_error *err) {
    enum mm_status status = MM_OK;
    if (mm_owner_claimed(o))
        return MM_OK;
    o->path = mm_format("%s/owner", run_dir);
    o->text = my_text();
    o->fd = claim(o->path, o->text, &status, err);
    if (o->fd >= 0) {
        o->checked = mm_now();
        MM_CHECK(pthread_create(&o->thread, NULL, beat, o) == 0, "no thread for a heartbeat");
        return MM_OK;
    }
    mm_free(o->path);
    mm_free(o->text);
    o->path = NULL;
    return status;
}

bool mm_owner_claimed(const struct mm_owner *o) {
    return o && o->path;
}

/* Somebody removed the file: it is made anew, unless another job has come. */
static bool make_again(struct mm_owner *o) {
    int fd = make(o->path, o->text);
    if (fd < 0)
        return false;
    pthread_mutex_lock(&o->lock);
    close(o->fd);
    o->fd = fd;
    pthread_mutex_unlock(&o->lock);
    return true;
}

enum mm_status mm_owner_check(struct mm_owner *o, struct mm_error *err) {
    struct record now;
    char who[512];
    if (!mm_owner_claimed(o))
        return MM_OK;
    o->checked = mm_now();
    if (is_ours(o->path, o->text))
        return MM_OK;
    bool there = read_record(&now, o->path);
    if (!there && make_again(o))
        return MM_OK;
    if (!there)
        return mm_fail(err, MM_BAD_INPUT, "%s is gone and cannot be made again: %s", o->path,
                       strerror(errno));
    describe(&now, who, sizeof who);
    return mm_fail(err, MM_BAD_INPUT,
                   "%.*s was taken over by another job (%s), since this one was not seen for a "
                   "while: nothing more is written",
                   (int)(strlen(o->path) - strlen("/owner")), o->path, who);
}

enum mm_status mm_owner_check_often(struct mm_owner *o, struct mm_error *err) {
    bool due = mm_owner_claimed(o) && mm_now() - o->checked > BEAT_SECONDS;
    return due ? mm_owner_check(o, err) : MM_OK;
}

void mm_owner_free(struct mm_owner *o) {
    if (mm_owner_claimed(o)) {
        pthread_mutex_lock(&o->lock);
        o->leaving = true;
        pthread_cond_signal(&o->changed);
        pthread_mutex_unlock(&o->lock);
        pthread_join(o->thread, NULL);
        close(o->fd);
        if (is_ours(o->path, o->text))
            unlink(o->path);
        mm_free(o->path);
        mm_free(o->text);
    }
    pthread_cond_destroy(&o->changed);
    pthread_mutex_destroy(&o->lock);
    mm_free(o);
}
