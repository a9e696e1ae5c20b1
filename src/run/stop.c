/* stop.c - see stop.h. */
#include "src/run/stop.h"

#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

#define MARGIN_SECONDS   30.0
#define BYTES_PER_SECOND 2e8 /* what a checkpoint is taken to reach before one was measured */

#define SAME_SIGNAL 0.25

static volatile sig_atomic_t asked;
static volatile double insisted = -1; /* mm_now() at the first SIGTERM or SIGINT; its handler's */
static double ends = INFINITY;        /* mm_now() when the job does */

static void note(int number) {
    (void)number;
    asked = 1;
}

/* Of one that may be meant as "now". */
static void note_or_end(int number) {
    double now = mm_now();
    note(number);
    if (insisted < 0)
        insisted = now;
    if (now - insisted < SAME_SIGNAL)
        return;
    signal(number, SIG_DFL);
    raise(number); /* taken when this handler returns */
}

void mm_stop_listen(void) {
    struct sigaction action = {.sa_handler = note, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGUSR2, &action, NULL);
    sigaction(SIGXCPU, &action, NULL);
    action.sa_handler = note_or_end;
    sigaddset(&action.sa_mask, SIGTERM); /* one at a time */
    sigaddset(&action.sa_mask, SIGINT);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    struct sigaction hangup;
    if (sigaction(SIGHUP, NULL, &hangup) == 0 && hangup.sa_handler != SIG_IGN)
        sigaction(SIGHUP, &action, NULL); /* nohup's choice stays */
}

bool mm_stop_asked(void) {
    return asked != 0;
}

void mm_stop_read_limit(void) {
    const char *text = getenv("SLURM_JOB_END_TIME");
    char *rest;
    if ((!text || !*text) && getenv("SLURM_JOB_ID"))
        mm_log0(MM_LOG_INFO,
                "SLURM_JOB_END_TIME is not set: no time limit is known, and only a signal stops "
                "the run with a checkpoint");
    if (!text || !*text)
        return;
    double left = strtod(text, &rest) - (double)time(NULL);
    if (*rest || !(left > 0)) {
        mm_log0(MM_LOG_WARN, "SLURM_JOB_END_TIME=%s is %s: no time limit is known", text,
                *rest ? "no time" : "past");
        return;
    }
    ends = mm_now() + left;
    mm_log0(MM_LOG_INFO, "the job ends in %.0f s: a checkpoint and exit status 3 before that",
            left);
}

struct mm_stopwatch mm_stopwatch_start(double bytes) {
    return (struct mm_stopwatch){.last = mm_now(), .save = bytes / BYTES_PER_SECOND};
}

void mm_stopwatch_saved(struct mm_stopwatch *w, double seconds) {
    if (!w->saved || seconds > w->save)
        w->save = seconds;
    w->saved = true;
}

enum mm_status mm_stop_before_start(struct mm_comm *comm, struct mm_error *err) {
    if (!mm_comm_any(comm, mm_stop_asked()))
        return MM_OK;
    return mm_fail(err, MM_STOPPED,
                   "stopped by a signal before the first step: nothing was written, the same "
                   "command starts it");
}

const char *mm_stop_words(enum mm_stop_why why) {
    return why == MM_STOP_LIMIT ? "before the job's time limit" : "by a signal";
}

enum mm_status mm_stop_agree(struct mm_stopwatch *w, struct mm_comm *comm, enum mm_status status,
                             enum mm_stop_why *why, struct mm_error *err) {
    double now = mm_now();
    if (now - w->last > w->longest)
        w->longest = now - w->last;
    w->last = now;
    bool near = ends - now < w->longest + 2 * w->save + MARGIN_SECONDS;
    int strongest = asked ? MM_STOP_SIGNAL : near ? MM_STOP_LIMIT : MM_GO_ON;
    status = mm_comm_agree_with(comm, status, &strongest, err);
    *why = (enum mm_stop_why)strongest;
    return status;
}
