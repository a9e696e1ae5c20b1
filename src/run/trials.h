/* trials.h - the `trials` command: a resident server of unlearning and relearning trials.
 *
 * JSON lines on standard input and output; weights, tokens and questions stay loaded. A line
 * {"id": any, "overrides": {"unlearn.adv_lr": 0.01, ...}} is a trial: keys of unlearn and relearn,
 * evaluate.every_passes and evaluate.batches. The answers have an "event":
 *   ready    once: losses and accuracies of the untouched model
 *   eval     after every evaluation of a trial; the line {"prune": true} ends the trial at the next
 *   result   its end: status done | rejected | pruned | error, reason, score, losses, seconds, and
 *            overhead_seconds: those outside loops, steps and evaluations
 * A line that is wrong is answered by a result with status error. */
#ifndef MM_TRIALS_H
#define MM_TRIALS_H

#include "src/run/job.h"

/* Serves trials of the config at `path` with the overrides of the command line, which are already
 * in `config`, until standard input ends (MM_OK) or a signal comes (MM_STOPPED). Collective. */
enum mm_status mm_trials(struct mm_comm *comm, struct mm_device *dev, struct mm_config *config,
                         const char *path, char *const *overrides, size_t overrides_n,
                         struct mm_error *err);

#endif
