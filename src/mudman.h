/* mudman.h - Algorithm 1: Meta-Unlearning with Disruption Masking And Normalization.
 *
 * State: base b, adversary a, retain accumulator m, forget accumulator f and gradient g are vectors
 * over this rank's rows of W, the intervened weights. Only W is ever trained here; everything else
 * is frozen.
 *
 * Where paper and published code differ (METHOD.md 1.2), `graph` and `rate_scale` choose:
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

#include "src/config/config.h"
#include "src/method/frozen.h"
#include "src/method/lora.h"
#include "src/parallel/passes.h"
#include "src/parallel/sums.h"

struct mm_mudman {
    const struct mm_config *config;
    struct mm_comm *comm;
    struct mm_device *dev;
    struct mm_shard *shard;         /* of W; borrowed */
    const struct mm_layout *layout; /* of b, m and f: W's, or the adapters' */
    struct mm_passes *passes;       /* owned */
    struct mm_batch retain, forget; /* owned */
    struct mm_frozen frozen;
    struct mm_representation *retain_states, *forget_states; /* owned; NULL: no such loss */
    struct mm_vector b, a, m, f, g;  /* data NULL: a without an adversary's copy of b, f without
                                        momentum */
    struct mm_lora *base;            /* the adapters that b is; owned; NULL: b is W */
    struct mm_lora *adversary;       /* its adapters; owned; NULL: it has none */
    struct mm_vector unrounded;      /* g reduced in float32; data NULL with reduce_dtype float32 */
    float *reference;                /* see mm_objective; NULL but for MM_LOSS_NPO */
    struct mm_sums over_w;           /* sums over all ranks, of the layout's tensors */
    struct mm_mask_sums *sums;       /* [the layout's tensors], device */
    double *scale;                   /* likewise */
    struct mm_loop_scalars *scalars; /* device */
    struct mm_loop_scalars *host[2]; /* pinned: of the loops that were asked for last */
    size_t asked, told;              /* loops asked for | whose scalars were taken */
    double flips;                    /* see mm_mudman_flips */
    bool records;                    /* a loop is recorded once and then replayed */
    size_t recordings_n;
    void **recordings; /* without a fork, with one | a set of adapters each; NULL: not
                          yet */
};

/* Takes memory and makes b the working weights of W, or adapters that begin; m zero. Local. */
struct mm_mudman *mm_mudman_create(struct mm_arena *arena, const struct mm_config *config,
                                   struct mm_comm *comm, struct mm_model *model,
                                   struct mm_shard *shard);
void mm_mudman_free(struct mm_mudman *mudman);

/* Passes a loop takes, as the paper counts them: one more for the frozen model's on the retain
 * batch, none for its on the forget batch. Local. */
size_t mm_mudman_passes(const struct mm_config *config);

/* Asks for one loop, t = 0, 1, ...; retain, forget: this rank's sequences of batch t, host memory,
 * read at once. An asynchronous device is still at work on it when this returns. At most two loops
 * may be asked for whose scalars were not taken. Leaves the working weights wherever the last pass
 * needed them. Collective. */
void mm_mudman_loop(struct mm_mudman *mudman, size_t t, const uint32_t *retain,
                    const uint32_t *forget);

/* Makes b's weights the working ones. Returns them, in a vector over the shard; valid until the
 * next loop. Collective. */
struct mm_vector mm_mudman_store(struct mm_mudman *mudman);

/* The scalars of the first loop whose scalars were not taken yet. Waits for that loop. Local. */
struct mm_loop_scalars mm_mudman_scalars(struct mm_mudman *mudman);

/* After the first loop with reduce_dtype bfloat16 on several ranks: the share of W's elements that
 * the mask would keep or drop otherwise had the gradient been reduced in float32; else 0. Local. */
double mm_mudman_flips(const struct mm_mudman *mudman);

/* What the guard saw first, in words. Local. */
const char *mm_guard_text(enum mm_guard stop);

#endif
