/* saving.h - the checkpoints of a run: when the method's state is copied, written and read back.
 *
 * A save is started after a loop and goes on beside the next ones (io/saver.h); the loops take it
 * further now and then. One is under way at most. What checkpoint.on_error says of a failed save is
 * decided here. */
#ifndef MM_SAVING_H
#define MM_SAVING_H

#include "io/saver.h"
#include "src/method/state.h"
#include "src/run/job.h"
#include "src/run/stop.h"

struct mm_saving {
    struct mm_job *job;             /* borrowed */
    struct mm_stopwatch *stopwatch; /* borrowed; told how long saves take */
    struct mm_state_copy copy;
    struct mm_saver *saver; /* NULL in a trial, which saves nothing: nor do the functions below */
    size_t loops;           /* completed, in the checkpoint that is being written */
    double began;           /* mm_now() at its start */
    size_t kept; /* loops that the kept state of the state list has; with a budget of divergence */
    bool ended;  /* the budget was broken: no loop is to follow, and b is the kept state */
    bool start_unknown; /* loaded, but its losses come from another evaluation */
};

/* The caller frees; a zeroed one may be freed too. Local. */
struct mm_saving mm_saving_create(struct mm_job *job, const struct mm_state_list *state,
                                  struct mm_stopwatch *stopwatch);
void mm_saving_free(struct mm_saving *saving);

/* The state and the losses of the run's start from a checkpoint, `folder`, of which `info` tells.
 * MM_BAD_INPUT where its loops were made from other weights, config.json or data, or are more than
 * `most`. Collective. */
enum mm_status mm_saving_load(struct mm_saving *saving, const char *folder,
                              const struct mm_checkpoint_info *info, size_t most,
                              struct mm_error *err);

/* Starts a save of the state as it is after `loops` loops, after the one before. Collective. */
enum mm_status mm_saving_start(struct mm_saving *saving, size_t loops, struct mm_error *err);
/* Takes the save under way further, or to its end. Collective. */
enum mm_status mm_saving_go_on(struct mm_saving *saving, struct mm_error *err);
enum mm_status mm_saving_wait(struct mm_saving *saving, struct mm_error *err);
/* The save under way to its end, also where the loops ended badly with `status`: it is the newest
 * then. Returns the status of both. Collective. */
enum mm_status mm_saving_end(struct mm_saving *saving, enum mm_status status, struct mm_error *err);

#endif
