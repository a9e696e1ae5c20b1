/* hidden_loss.h - losses on hidden states (docs/method.md 4).
 *
 * Hidden state i of a model of L layers is what layer i reads, 0 to L-1: 0 are the embeddings; what
 * leaves the last layer, or the final norm, is none of them. h is a token's state, h0 the one that
 * the model had as it came (src/method/frozen.h), C the width. Means are over all tokens of the
 * global batch, the last of a sequence included and padding not.
 *
 *   retaining          λ · mean over the L states and the tokens of ‖h - h0‖ (square_norm:
 *                      ‖h - h0‖²), λ = rep_eng_retain_lr
 *   circuit_breaker    mean over tokens of max(0, cos(h, h0)) at state floor(L/2)
 *   stream_activation  sum over the L states of (mean over tokens of ‖h‖)²
 *   rmu                mean over tokens of ‖h - c·u‖² / C at state rmu_layer, c = rmu_coefficient,
 *                      u = v/‖v‖, v_j = mm_random_uniform(seed, j): Li et al. 2024, as the mean
 *                      squared error of their code. What they retain by is `retaining` with
 *                      square_norm at that state alone, but for the factor C.
 *
 * A state that W cannot move has h = h0 exactly: it counts in the means and is not looked at. */
#ifndef MM_HIDDEN_LOSS_H
#define MM_HIDDEN_LOSS_H

#include "src/config/config.h"
#include "src/model/transformer.h"
#include "src/parallel/batch.h"

/* One of these losses. Its value is scale · (sum of terms over states first ... end-1 and tokens),
 * or where there are sums the sum of their squares, each scale · (sum of terms of a state). */
struct mm_hidden_loss {
    struct mm_device *dev;
    enum mm_state_loss kind;
    size_t first, end;      /* states that are looked at */
    size_t moved;           /* of those, the ones from here on depend on W */
    double factor, divisor; /* scale = 1/(tokens of the batch) · factor / divisor */
    size_t tokens;          /* that there is room for in this rank's share of the batch */
    struct mm_mat others;   /* the frozen states, [tokens, C] a state, one behind the other; or one
                               row for all, ld 0; or data NULL */
    float *terms;           /* [tokens of a micro-batch], device */
    double *sums;           /* [end - first], device; NULL: none */
};

/* Whether the config's loss can be had from a model of so many layers; the text says why not.
 * Local. */
enum mm_status mm_hidden_loss_check(const struct mm_config *config, size_t layers,
                                    struct mm_error *err);

/* The retain loss's part, and the unlearning loss; NULL where the config has none on hidden states.
 * acts: where the forward leaves the states, for which of them W can move. Memory comes from the
 * arena. Local. The caller frees with mm_free. */
struct mm_hidden_loss *mm_hidden_loss_retaining(struct mm_arena *arena,
                                                const struct mm_config *config,
                                                const struct mm_model *model,
                                                const struct mm_share *share,
                                                const struct mm_acts *acts);
struct mm_hidden_loss *mm_hidden_loss_unlearning(struct mm_arena *arena,
                                                 const struct mm_config *config,
                                                 const struct mm_model *model,
                                                 const struct mm_share *share,
                                                 const struct mm_acts *acts);

/* Whether it compares with the frozen model's states. Local. */
bool mm_hidden_loss_compares(const struct mm_hidden_loss *r);

/* Of the micro-batch that begins at token `row` of the share, whose last forward left `acts`.
 * States outside first ... end-1 are ignored. Local, all three. */

/* Keeps state i as the frozen model's. */
void mm_hidden_loss_keep(const struct mm_hidden_loss *r, const struct mm_acts *acts, size_t row,
                         size_t i);
/* *loss (or sums) += the terms of state i, device; batch: the one that was put through. */
void mm_hidden_loss_add_terms(const struct mm_hidden_loss *r, const struct mm_acts *acts,
                              const struct mm_batch *batch, size_t row, size_t i, double *loss);
/* dx [n, C] += gradient by state i; with sums these must be those of all ranks. */
void mm_hidden_loss_add_gradient(const struct mm_hidden_loss *r, const struct mm_acts *acts,
                                 const struct mm_batch *batch, size_t row, size_t i,
                                 struct mm_mat dx);

#endif
