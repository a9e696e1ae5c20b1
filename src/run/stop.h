/* stop.h - when a run has to end early: a signal, or the time limit of the job it runs in. The
 * signals are SIGTERM, SIGINT, SIGHUP and those that schedulers send before they kill: SIGUSR1,
 * SIGUSR2, SIGXCPU (a soft limit of processor time). */
#ifndef MM_STOP_H
#define MM_STOP_H

#include "comm/comm.h"

/* From now on those signals are noted instead of ending the process, SIGHUP unless it is ignored
 * (nohup). A second SIGTERM, SIGINT or SIGHUP, a quarter of a second after the first of them or
 * later, ends it at once: sooner it is the same one that came two ways, as from timeout(1). Slurm
 * may well send SIGTERM after a SIGUSR1: those two ask for the same. Local. */
void mm_stop_listen(void);
/* True once one came. Local. */
bool mm_stop_asked(void);
/* While nothing is written yet: MM_STOPPED on every rank once one came to any. Collective. */
enum mm_status mm_stop_before_start(struct mm_comm *comm, struct mm_error *err);

/* Takes the end of the job from SLURM_JOB_END_TIME (seconds since 1970), where it is set; rank 0
 * says so. One that is no time, or has passed, is ignored with a warning. Local. */
void mm_stop_read_limit(void);

enum mm_stop_why { MM_GO_ON, MM_STOP_LIMIT, MM_STOP_SIGNAL };

/* How long things took so far. */
struct mm_stopwatch {
    double last;    /* mm_now() at the end of the last step */
    double longest; /* seconds of a step, with the evaluation or checkpoint that came with it */
    double save;    /* seconds of a checkpoint: the longest, or until there is one an estimate */
    bool saved;
};

/* The first step begins. bytes: of a checkpoint, to estimate what it takes; 0: none is needed. */
struct mm_stopwatch mm_stopwatch_start(double bytes);
/* A checkpoint took so long, until it was safe on the disk. */
void mm_stopwatch_saved(struct mm_stopwatch *watch, double seconds);
/* "by a signal", for messages. Local. */
const char *mm_stop_words(enum mm_stop_why why);
/* After a step that ended with `status`: the first of all ranks that is not MM_OK, as mm_comm_agree
 * has it, and *why (=) whether to stop here, the same on every rank. The limit is near when another
 * step like the longest, two checkpoints and half a minute do not fit any more. It is all that
 * ranks tell each other of a step in host memory. Collective. */
enum mm_status mm_stop_agree(struct mm_stopwatch *watch, struct mm_comm *comm,
                             enum mm_status status, enum mm_stop_why *why, struct mm_error *err);

#endif
