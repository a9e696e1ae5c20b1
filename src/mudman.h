/* mudman.h - Algorithm 1: Meta-Unlearning with Disruption Masking And Normalization.
 *
 * State: base b, adversary a, retain accumulator m, forget accumulator f and gradient g are vectors
 * over this rank's rows of W, the intervened weights. Only W is ever trained here; everything else
 * is frozen.
 *
 * Where paper and published code differ (docs/method.md), `graph` and `rate_scale` choose:
 *   loops        count from 0 and fork at t mod N = 0, before the retain step (code), in all modes
 *   listing      one forward on the forget batch; the adversary steps between the two backwards, so
 *                the second runs through new weights with old activations (code; 5 passes a loop)
 *   fresh        forward and backward again at the updated adversary (Algorithm 1; 6 passes)
 *   reuse        the negated gradient of the adversary's own step (neg_cross_entropy; 4 passes)
 *   rate_scale   listing: step α/n; study: α·sqrt(N_W)/n (what the searches' rates mean)
 *
 * With adv_lora_rank the adversary is b with adapters beside it (src/method/lora.h, alpha 8), of
 * which adv_lora_count sets take turns, loop by loop. They step and decay in place of a; the
 * unlearning gradient is taken of the weights under them, with the adapters in place. Instead of
 * the fork one set, in turn, begins anew every floor(floor(fork_every_n_loops / 6)·6 / count)
 * loops.
 *
 * With lora_rank b is the adapters (src/method/lora.h, alpha 8) beside W, which is frozen: b, m, f
 * and their gradient are vectors over A and B. */
#ifndef MM_MUDMAN_H
#define MM_MUDMAN_H

#include "src/method/frozen.h"
#include "src/method/method.h"
#include "src/method/recorder.h"
#include "src/parallel/sums.h"

/* All that the algorithm reads of a config, made once. */
struct mm_mudman_settings {
    bool train_adversary, use_masking;
    enum mm_graph graph;
    enum mm_normalization normalization;
    enum mm_rate_scale rate_scale;
    double retain_momentum, retaining_rate; /* μ, α_retaining */
    double adv_lr, adv_decay;
    double unlearning_rate;
    double forget_momentum, discard_growing_weights, adv_update; /* ablations: 0, 1, 0 are off */
    size_t fork_every_n_loops;
    struct mm_objective retaining, training, unlearning; /* losses: of b, a and a */
};

struct mm_mudman {
    struct mm_mudman_settings settings;
    struct mm_comm *comm;
    struct mm_device *dev;
    struct mm_shard *shard;         /* of W; borrowed */
    const struct mm_layout *layout; /* of b, m and f: W's, or the adapters' */
    struct mm_passes *passes;       /* owned */
    struct mm_batch retain, forget; /* owned */
    struct mm_frozen frozen;
    struct mm_hidden_loss *retain_states, *forget_states; /* owned; NULL: no such loss */
    struct mm_vector b, a, m, f, g;  /* data NULL: a without an adversary's copy of b, f without
                                        momentum */
    struct mm_vector kept;           /* b as it was within the budget; data NULL: no budget */
    struct mm_lora *base;            /* the adapters that b is; owned; NULL: b is W */
    struct mm_lora *adversary;       /* its adapters; owned; NULL: it has none */
    struct mm_lora_turns turns;      /* of the adversary's sets */
    struct mm_state_list state;      /* what of these a checkpoint holds */
    struct mm_vector unrounded;      /* g reduced in float32; data NULL with reduce_dtype float32 */
    float *reference;                /* see mm_objective; NULL but for MM_LOSS_NPO */
    struct mm_sums over_w;           /* sums over all ranks, of the layout's tensors */
    struct mm_places places;         /* where the adversary's step puts its weights; tensors_n 0:
                                        nowhere, they are stored as others are */
    struct mm_mask_sums *sums;       /* [the layout's tensors], device */
    double *scale;                   /* likewise */
    struct mm_loop_scalars *scalars; /* device */
    struct mm_loop_scalars *host[2]; /* pinned: of the loops that were asked for last */
    size_t asked, told;              /* loops asked for | whose scalars were taken */
    double flips;                    /* see src/method/flips.h */
    struct mm_recorder recorder;     /* of loops without a fork, with one | of each set's loops */
};

extern const struct mm_method mm_mudman_method;

/* What the table of methods calls, and tests too: as struct mm_method says. */
struct mm_mudman *mm_mudman_create(struct mm_arena *arena, const struct mm_config *config,
                                   struct mm_comm *comm, struct mm_model *model,
                                   struct mm_shard *shard);
void mm_mudman_free(struct mm_mudman *mudman);
void mm_mudman_loop(struct mm_mudman *mudman, size_t t, const struct mm_sequences *retain,
                    const struct mm_sequences *forget);
struct mm_loop_scalars mm_mudman_scalars(struct mm_mudman *mudman);

/* Lines 3 to 15 on the batches that were sent; `fork`: line 3 holds. Leaves the working weights
 * wherever the last pass needed them. Collective. */
void mm_mudman_one_loop(struct mm_mudman *mudman, bool fork);
/* Makes b's weights the working ones and returns them. Collective. */
struct mm_vector mm_mudman_store(struct mm_mudman *mudman);

#endif
