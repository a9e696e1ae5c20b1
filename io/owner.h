/* owner.h - which job a run folder belongs to.
 *
 * Reason: two jobs that write the same checkpoints and metrics spoil both, and file systems that
 * machines share may have no locks. So the job that writes holds a file `owner` there, made with
 * O_EXCL, that names it. A thread refreshes the file's time every few seconds: its heartbeat.
 *
 * An owner is dead if it ran on this machine and its process is gone, if it was this Slurm job
 * before it was requeued, or, elsewhere, if its heartbeat is old. A dead one is taken over, with a
 * message. Heartbeats are compared with the time of a new file in the same folder, so that clocks
 * of machines need not agree.
 *
 * A job that was taken for dead (a machine that was suspended, a file system that was away) finds
 * another owner before it publishes anything, and ends. All functions are local, for rank 0. */
#ifndef MM_OWNER_H
#define MM_OWNER_H

#include "src/base/base.h"

struct mm_owner;

/* Of no folder yet. mm_owner_free gives the folder back; the caller calls it on every rank. */
struct mm_owner *mm_owner_create(void);
void mm_owner_free(struct mm_owner *owner);

/* MM_BAD_INPUT if the folder belongs to another job that lives: the text names it. */
enum mm_status mm_owner_look(const char *run_dir, struct mm_error *err);

/* Makes this process the owner of the folder, which must exist. It waits a few seconds for an owner
 * that is just ending. MM_BAD_INPUT if there is another that lives, or the folder cannot be
 * written. Nothing happens if the folder was claimed before. */
enum mm_status mm_owner_claim(struct mm_owner *owner, const char *run_dir, struct mm_error *err);
/* Whether mm_owner_claim succeeded. */
bool mm_owner_claimed(const struct mm_owner *owner);

/* Before something gets its final name. MM_BAD_INPUT if the folder has another owner now. NULL and
 * an owner of no folder may write. */
enum mm_status mm_owner_check(struct mm_owner *owner, struct mm_error *err);
/* The same where the last look was more than a few seconds ago: for what is written often. */
enum mm_status mm_owner_check_often(struct mm_owner *owner, struct mm_error *err);

#endif
