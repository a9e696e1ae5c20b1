/* divergence.h - how far a model has gone from what it was: the mean KL divergence KL(start || now)
 * of its next-token distributions over the valid positions of some rows (docs/method.md 9).
 *
 * The logits of the start are kept in host memory, each rank's those of its own sequences, in the
 * type of the arithmetic: rows x positions x vocabulary numbers over all ranks. So the same weights
 * have exactly the divergence 0. The logarithms and sums are taken by the host, in double. */
#ifndef MM_DIVERGENCE_H
#define MM_DIVERGENCE_H

#include "src/config/config.h"
#include "src/parallel/passes.h"

struct mm_divergence;

/* Of the first config->evaluate.kl.rows rows of `set`, borrowed. Local. The caller frees before the
 * arena. */
struct mm_divergence *mm_divergence_create(struct mm_arena *arena, const struct mm_config *config,
                                           const struct mm_dataset *set, struct mm_comm *comm,
                                           struct mm_model *model);
void mm_divergence_free(struct mm_divergence *divergence);

/* Takes the working weights for the start. Collective. */
void mm_divergence_keep(struct mm_divergence *divergence);

/* Of the working weights. Infinite where it is no number; NaN where no start was kept. The same on
 * every rank. Collective. */
double mm_divergence_measure(struct mm_divergence *divergence);

/* Bytes of host memory that a rank takes for the start, and while it measures. Local. */
size_t mm_divergence_bytes(const struct mm_divergence *divergence);

#endif
