/* mudman.c - Algorithm 1. Numbers at the beginning of a line are the paper's lines; what stands
 * between them is the guard, the ablations and the diagnostic. The loop comes first, in the paper's
 * order, then the gradients that it takes. How a run of it is made, asked for and recorded:
 * src/method/setup.c. */
#include "src/mudman.h"

#include "src/method/flips.h"

#define OPS(u) (u)->dev->ops

static void keep_frozen(struct mm_mudman *u);
static void base_gradient(struct mm_mudman *u, const struct mm_batch *batch,
                          struct mm_objective objective, double *loss, double *plain_loss);
static void train_adversary(struct mm_mudman *u);
static void unlearning_gradient(struct mm_mudman *u);
static struct mm_vector gradient(const struct mm_mudman *u);
static void check(struct mm_mudman *u, const double *loss, enum mm_guard loss_code,
                  enum mm_guard gradient_code, enum mm_guard dead_code);
static struct mm_unlearn_options ablations(const struct mm_mudman *u);

/* clang-format off */
void mm_mudman_one_loop(struct mm_mudman *u, bool fork) {
    const struct mm_mudman_settings *c = &u->settings;
    struct mm_loop_scalars *s = u->scalars;
    struct mm_unlearn_options all = ablations(u);
    bool any = all.f.data || all.a.data || all.discard != 1;
    const struct mm_unlearn_options *options = any ? &all : NULL;
    const struct mm_mask mask = {u->m, c->use_masking, u->over_w.offsets, u->layout->tensors_n};
    const struct mm_normalizing norm = {c->normalization, c->rate_scale == MM_RATE_STUDY,
                                        u->layout->total, u->b.dtype};

/*  3 */    if (fork)
/*  4 */        OPS(u)->fork(u->dev, u->a, u->b, &s->stop);
/*  6 */    keep_frozen(u); /* of the batches, which mm_mudman_loop has sent */
/*  7 */    base_gradient(u, &u->retain, c->retaining, &s->retain_loss, NULL);
            check(u, &s->retain_loss, MM_GUARD_RETAIN_LOSS, MM_GUARD_RETAIN_GRADIENT, MM_GUARD_RETAIN_DEAD);
/*  8 */    OPS(u)->retain_step(u->dev, u->m, u->b, gradient(u),
/*  9 */                        c->retain_momentum, c->retaining_rate, &s->stop);
/* 11 */    train_adversary(u);
/* 12 */    unlearning_gradient(u);
            mm_comm_sum_waiting(u->comm); /* losses that were not summed with a gradient's squares */
            OPS(u)->guard(u->dev, &s->unlearning_loss, MM_GUARD_UNLEARNING_LOSS, &s->stop);
            if (u->unrounded.data && u->asked == 0)
                mm_flips_measure(u);
/* 13 */    mm_sums_mask(&u->over_w, u->sums, gradient(u), &mask, options);
            OPS(u)->unlearn_scale(u->dev, &norm, u->scale, u->sums, mask.tensors_n, s);
/* 14 */    OPS(u)->unlearn_step(u->dev, u->b, gradient(u), &mask,
/* 15 */                         u->scale, c->unlearning_rate, options, &s->stop);
}
/* clang-format on */

/* -- line 12: g = the unlearning gradient, in three ways
 * ------------------------------------------- */

static struct mm_vector stepped_weights(struct mm_mudman *u);

/* The published code: a second backward through the forward of line 11. It runs through the weights
 * after the adversary's step with the activations from before it. */
static void listing_gradient(struct mm_mudman *u) {
    mm_shard_store_begin_down(u->shard, stepped_weights(u));
    mm_passes_second_gradient(u->passes, u->g);
}

/* Algorithm 1 to the letter: forward and backward again at the adversary after its step. */
static void fresh_gradient(struct mm_mudman *u) {
    mm_shard_store_begin(u->shard, stepped_weights(u));
    mm_passes_gradient(u->passes, &u->forget, u->settings.unlearning, u->g,
                       &u->scalars->unlearning_loss, NULL);
}

/* The cheapest, for neg_cross_entropy only: the gradient of line 11, negated. */
static void reused_gradient(struct mm_mudman *u) {
    struct mm_loop_scalars *s = u->scalars;
    struct mm_mat g = mm_mat(u->g.data, MM_F32, 1, u->g.n);
    OPS(u)->scale(u->dev, g, g, -1.0f);
    OPS(u)->scale_scalar(u->dev, &s->unlearning_loss, &s->adversary_loss, -1.0);
}

static void unlearning_gradient(struct mm_mudman *u) {
    const struct mm_mudman_settings *c = &u->settings;
    struct mm_loop_scalars *s = u->scalars;
    if (!c->train_adversary) /* at the base after its retain step */
        base_gradient(u, &u->forget, c->unlearning, &s->unlearning_loss, &s->adversary_loss);
    else if (c->graph == MM_GRAPH_LISTING)
        listing_gradient(u);
    else if (c->graph == MM_GRAPH_FRESH)
        fresh_gradient(u);
    else
        reused_gradient(u);
}

/* -- line 11: the adversary's own step
 * ------------------------------------------------------------- */

static struct mm_vector adversary_weights(struct mm_mudman *u);
static void adversary_step(struct mm_mudman *u);

/* The forward of `listing` is held for line 12. */
static void train_adversary(struct mm_mudman *u) {
    const struct mm_mudman_settings *c = &u->settings;
    struct mm_loop_scalars *s = u->scalars;
    if (!c->train_adversary)
        return;
    mm_shard_store_begin(u->shard, adversary_weights(u));
    if (c->graph == MM_GRAPH_LISTING)
        mm_passes_gradient_held(u->passes, &u->forget, c->unlearning, u->g, &s->adversary_loss,
                                &s->unlearning_loss);
    else
        mm_passes_gradient(u->passes, &u->forget, c->training, u->g, &s->adversary_loss, NULL);
    adversary_step(u);
}

/* Adapters lie on b, and the sum is formed in g. */
static struct mm_vector adversary_weights(struct mm_mudman *u) {
    return mm_lora_applied(u->adversary, u->a, u->b, u->g);
}

/* The same after its step, which may have put them where they are wanted. */
static struct mm_vector stepped_weights(struct mm_mudman *u) {
    return u->places.tensors_n ? (struct mm_vector){0} : adversary_weights(u);
}

static void adversary_step(struct mm_mudman *u) {
    const struct mm_mudman_settings *c = &u->settings;
    struct mm_vector a = u->a, b = u->b, zero = {0};
    check(u, &u->scalars->adversary_loss, MM_GUARD_ADVERSARY_LOSS, MM_GUARD_ADVERSARY_GRADIENT,
          MM_GUARD_ADVERSARY_DEAD);
    struct mm_vector g = mm_lora_gradient(u->adversary, u->g);
    if (u->adversary) {
        a = u->adversary->p;
        b = zero;
    }
    OPS(u)->adversary_step(u->dev, a, b, g, c->adv_lr, c->adv_decay,
                           u->places.tensors_n ? &u->places : NULL, &u->scalars->stop);
}

/* -- the base ------------------------------------------------------------------------------------
 */

/* The gradient by what b holds, W or adapters, of the last base_gradient. */
static struct mm_vector gradient(const struct mm_mudman *u) {
    return u->base ? u->base->g : u->g;
}

/* The weights of b; adapters lie on the frozen weights, and the sum is formed in g. */
static struct mm_vector base_weights(struct mm_mudman *u) {
    return mm_lora_applied(u->base, u->b, u->frozen.w, u->g);
}

/* Forward and backward of b's weights; their gradient is taken on to the adapters. */
static void base_gradient(struct mm_mudman *u, const struct mm_batch *batch,
                          struct mm_objective objective, double *loss, double *plain_loss) {
    mm_shard_store_begin(u->shard, base_weights(u));
    mm_passes_gradient(u->passes, batch, objective, u->g, loss, plain_loss);
    mm_lora_gradient(u->base, u->g);
}

struct mm_vector mm_mudman_store(struct mm_mudman *u) {
    struct mm_vector w = base_weights(u);
    mm_shard_store(u->shard, w);
    return w;
}

/* -- beside the algorithm ------------------------------------------------------------------------
 */

/* Where losses compare with the frozen model: its hidden states and probabilities, of this loop's
 * batches. */
static void keep_frozen(struct mm_mudman *u) {
    if (!u->reference && !u->retain_states &&
        !(u->forget_states && mm_hidden_loss_compares(u->forget_states)))
        return;
    mm_frozen_use_begin(&u->frozen);
    if (u->reference)
        mm_passes_keep_terms(u->passes, &u->forget, u->reference);
    if (u->retain_states)
        mm_passes_keep_states(u->passes, &u->retain, u->retain_states);
    if (u->forget_states)
        mm_passes_keep_states(u->passes, &u->forget, u->forget_states);
    mm_shard_store_end(u->shard);
}

/* The guard: a loss or a reduced gradient that is not finite stops every later update; and so does
 * a gradient of zeros where there is a loss, for such a model does not learn any more. */
static void check(struct mm_mudman *u, const double *loss, enum mm_guard loss_code,
                  enum mm_guard gradient_code, enum mm_guard dead_code) {
    struct mm_loop_scalars *s = u->scalars;
    mm_sums_squares(&u->over_w, &s->sum_squares, gradient(u), u->b.dtype);
    OPS(u)->guard(u->dev, loss, loss_code, &s->stop);
    OPS(u)->guard(u->dev, &s->sum_squares, gradient_code, &s->stop);
    OPS(u)->guard_dead(u->dev, &s->sum_squares, loss, dead_code, &s->stop);
}

/* What the ablations add to lines 13 to 15. */
static struct mm_unlearn_options ablations(const struct mm_mudman *u) {
    const struct mm_mudman_settings *c = &u->settings;
    return (struct mm_unlearn_options){.f = u->f,
                                       .momentum = c->forget_momentum,
                                       .b = u->b,
                                       .discard = c->discard_growing_weights,
                                       .a = c->adv_update > 0 ? u->a : (struct mm_vector){0},
                                       .adv_rate = c->adv_update * c->unlearning_rate,
                                       .stop = &u->scalars->stop};
}
