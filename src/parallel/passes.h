/* passes.h - gradients of a loss over a global batch: micro-batches, all ranks, reduced to owners.
 *
 * The functions return the *globally reduced* gradient of this rank's shard: sign, accumulator and
 * norm are taken of it, never of a rank's own (docs/method.md 8). Losses are
 * means over the global batch, on every rank. Collective, all of them, unless marked Local.
 *
 * Where the layers are spread (src/parallel/spread.h) all micro-batches of a rank go through them
 * together, layer after layer, so that a pass gathers each layer once, forms its gradient whole,
 * and adds in the same order as micro-batch after micro-batch. Cost: activations of all of them.
 * With leaves, and forward with losses on hidden states, they go one by one, and gather each.
 *
 * On an `exact` device (reduction: exact) results are the same to the bit on any number of ranks.
 * The micro-batches are leaves then (src/parallel/share.h), and gradients and losses are added leaf
 * after leaf, which within a step is in rank order.
 */
#ifndef MM_PASSES_H
#define MM_PASSES_H

#include "src/model/loss.h"
#include "src/parallel/batch.h"
#include "src/parallel/grown.h"
#include "src/parallel/hidden_loss.h"
#include "src/parallel/shard.h"

/* A loss as the method asks for it: one on logits, one on hidden states, or the sum of both. */
struct mm_objective {
    enum mm_loss_fn fn;                  /* not mm_loss_on_logits: none on logits, and no head */
    double clip_at, beta, gamma;         /* the last two: of losses of whole sequences */
    const float *reference;              /* [share·T], device, of MM_LOSS_NPO: see keep_terms */
    const struct mm_hidden_loss *states; /* NULL: none */
};

struct mm_passes {
    struct mm_comm *comm;
    struct mm_model *model;
    struct mm_shard *shard;       /* whose gradients are formed; NULL: losses only */
    struct mm_share share;        /* of the global batch */
    const struct mm_batch *batch; /* the last one that was put through; borrowed */
    size_t group;                 /* micro-batches that go through the layers together */
    size_t acts_n; /* group, or micros_n where a forward is held for a second backward */
    struct mm_acts *acts;
    struct mm_mat *dhidden; /* [acts_n] of the unlearning loss, where held */
    struct mm_objective held;
    struct mm_mat dhidden_now;
    struct mm_scratch scratch;
    struct mm_head head;
    struct mm_grown grown;
};

/* MM_PASSES_HELD keeps every micro-batch's activations, for a second backward (graph: listing). */
enum mm_passes_kind { MM_PASSES_PLAIN, MM_PASSES_HELD };
/* shard NULL: forward only. Local. */
struct mm_passes *mm_passes_create(struct mm_arena *arena, struct mm_comm *comm,
                                   struct mm_model *model, struct mm_shard *shard,
                                   struct mm_batch_size size, enum mm_passes_kind kind);
void mm_passes_free(struct mm_passes *passes);

/* `loss`: device, (=). g: reduced gradient, (=). All at the working weights as they are, or as they
 * will be when mm_shard_store_begin has ended.
 *
 * Losses that come with a gradient are those of this rank until the next sum over the ranks
 * (mm_comm_sum_later): that of the gradient's squares, or mm_comm_sum_waiting. */

/* Keeps the hidden states of the working weights as those that r compares with, as far as it reads
 * any. */
void mm_passes_keep_states(struct mm_passes *p, const struct mm_batch *batch,
                           const struct mm_hidden_loss *r);
/* terms [share·T], device = the cross-entropy terms of this rank's positions. */
void mm_passes_keep_terms(struct mm_passes *p, const struct mm_batch *batch, float *terms);
/* Calls `see` with the logits of this rank's positions, as mm_head_logits; row: of the share. */
void mm_passes_see_logits(struct mm_passes *p, const struct mm_batch *batch, mm_see_logits *see,
                          void *self);
/* Forward only, of a loss on logits. terms [share·T], device (=) those of this rank's positions;
 * NULL: not wanted. */
void mm_passes_loss(struct mm_passes *p, const struct mm_batch *batch,
                    struct mm_objective objective, double *loss, float *terms);
/* Forward and backward. cross_entropy: device, (=) that loss of the same logits too; may be NULL.
 */
void mm_passes_gradient(struct mm_passes *p, const struct mm_batch *batch,
                        struct mm_objective objective, struct mm_vector g, double *loss,
                        double *cross_entropy);
/* Forward and backward of cross-entropy, everything held for mm_passes_second_gradient of `second`,
 * whose loss is taken from the same logits. */
void mm_passes_gradient_held(struct mm_passes *p, const struct mm_batch *batch,
                             struct mm_objective second, struct mm_vector g, double *loss,
                             double *second_loss);
/* The second backward through the held graph: old activations and logits, the working weights of
 * now (docs/method.md 3), which mm_shard_store_begin_down may have begun to send. */
void mm_passes_second_gradient(struct mm_passes *p, struct mm_vector g);

#endif
