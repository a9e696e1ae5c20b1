/* saver.h - saves checkpoints while the run goes on.
 *
 * Reason: a disk is slower than the loops, which need not wait for it. The caller copies its state,
 * starts a save of the copy, and goes on, while a thread of every rank writes. What ranks do
 * together (MPI) happens only in the calls below, on the caller's thread:
 *
 *   start   rank 0 makes room; then every rank's thread writes its part
 *   poll    once all parts are on disk: rank 0's thread writes checkpoint.h5, gives the folder its
 *           name and removes old checkpoints
 *   poll    once that is done: the save is over
 *
 * Invariants:
 *   1. At most one save is under way.
 *   2. While it is, nothing but its thread calls HDF5, which may not be thread-safe (io/h5.h sees
 * to that).
 *   3. A checkpoint has its name only if every byte of it is on disk.
 *   4. The files have the bytes that mm_checkpoint_write would write.
 * Cost: host memory for a copy of this rank's state, and a core for the thread while it writes. */
#ifndef MM_SAVER_H
#define MM_SAVER_H

#include "io/checkpoint.h"
#include "io/metrics.h"
#include "io/owner.h"

struct mm_saver;

/* A saver for `run_dir`, which keeps the newest `keep` checkpoints. `comm` is borrowed. The caller
 * frees it when no save is under way. Local. */
struct mm_saver *mm_saver_create(struct mm_comm *comm, const char *run_dir, size_t keep);
void mm_saver_free(struct mm_saver *saver);
/* Before a save starts, and before it is published, rank 0 sees whether the folder is still
 * `owner`'s (borrowed). If not, start and poll return MM_BAD_INPUT, and what is there is left as it
 * is. Local. */
void mm_saver_heed(struct mm_saver *saver, struct mm_owner *owner);

/* Starts a save; none may be under way. `state` and what it points to are borrowed and must stay as
 * they are until the save is over. The saver takes over `info`, even if it fails. `metrics` (NULL:
 * none) is synced to disk before the checkpoint counts; lines may be added meanwhile. Returns
 * MM_FAILED on every rank if there is no room, the folder is read-only, or the like; then nothing
 * was started. Collective. */
enum mm_status mm_saver_start(struct mm_saver *saver, const struct mm_state *state,
                              struct mm_checkpoint_info *info, struct mm_metrics *metrics,
                              struct mm_error *err);

/* Takes the save that is under way one step further. Returns MM_OK if it goes on, ended well, or
 * there is none. Returns MM_FAILED on every rank if it ended without a checkpoint, as
 * mm_checkpoint_write says. Collective. */
enum mm_status mm_saver_poll(struct mm_saver *saver, struct mm_error *err);
/* The same to the end of the save. */
enum mm_status mm_saver_wait(struct mm_saver *saver, struct mm_error *err);

/* Whether a save is under way, which is the same on every rank. Local. */
bool mm_saver_busy(const struct mm_saver *saver);

#endif
