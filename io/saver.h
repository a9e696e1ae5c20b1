/* saver.h - saving checkpoints while the run goes on.
 *
 * The caller copies its state, starts a save of the copy, and goes on; a thread of every rank
 * writes meanwhile. What ranks do together (MPI) happens in the calls below only, on the caller's
 * thread:
 *
 *   start   rank 0 makes room; then every rank's thread writes its part
 *   poll    once all parts are on disk: rank 0's thread writes checkpoint.h5, gives the folder its
 *           name and removes old checkpoints
 *   poll    once that is done: the save is over
 *
 * One save at a time. HDF5 is not thread-safe as it is packaged: while a save is under way nothing
 * else may call it (io/h5.h sees to that). The bytes are those of mm_checkpoint_write. */
#ifndef MM_SAVER_H
#define MM_SAVER_H

#include "io/checkpoint.h"
#include "io/metrics.h"

struct mm_saver;

/* Saves under `run_dir`, of which the newest `keep` stay. `comm` is borrowed. The caller frees,
 * when no save is under way. Local. */
struct mm_saver *mm_saver_create(struct mm_comm *comm, const char *run_dir, size_t keep);
void mm_saver_free(struct mm_saver *saver);

/* Starts a save; none may be under way. `state` and what it points to is borrowed and must stay as
 * it is until the save is over. `info` is taken, whatever comes. `metrics` (NULL: none) is synced
 * to disk before the checkpoint counts; lines may be added meanwhile. MM_FAILED on every rank (no
 * room, read-only, ...): nothing was started. Collective. */
enum mm_status mm_saver_start(struct mm_saver *saver, const struct mm_state *state,
                              struct mm_checkpoint_info *info, struct mm_metrics *metrics,
                              struct mm_error *err);

/* Takes the save under way further; with `wait` to its end. MM_OK: it goes on, is over well, or
 * there is none. MM_FAILED on every rank: it is over without a checkpoint, as mm_checkpoint_write
 * says. Collective. */
enum mm_status mm_saver_poll(struct mm_saver *saver, bool wait, struct mm_error *err);

/* A save is under way: the same on every rank. Local. */
bool mm_saver_busy(const struct mm_saver *saver);

#endif
