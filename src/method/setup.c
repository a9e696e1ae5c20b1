/* setup.c - a run of Algorithm 1: its memory, its settings and its list of the state; loops asked
 * for ahead of the device. The algorithm itself is src/mudman.c. */
#include "src/mudman.h"

#include <math.h>

#include "kernels/queue.h"

static size_t passes_of(const struct mm_config *config) {
    size_t frozen =
        (config->unlearn.rep_eng_retain_lr > 0) + (config->unlearn.loss_fn == MM_LOSS_NPO);
    if (!config->unlearn.train_adversary || config->unlearn.graph == MM_GRAPH_REUSE)
        return 4 + frozen;
    return (config->unlearn.graph == MM_GRAPH_FRESH ? 6 : 5) + frozen;
}

/* -- creation ------------------------------------------------------------------------------------
 */

/* b, and what it begins as. */
static void create_base(struct mm_mudman *u, struct mm_arena *arena,
                        const struct mm_config *config) {
    struct mm_lora_kind kind = {.rank = config->unlearn.lora_rank,
                                .sets = 1,
                                .alpha = MM_LORA_ALPHA,
                                .purpose = MM_FOR_BASE};
    struct mm_state_part part = {.group = MM_GROUP_BASE, .purpose = MM_FOR_BASE};
    if (kind.rank) {
        part.adapters = u->base = mm_lora_create(arena, u->comm, u->shard, kind);
        u->layout = part.layout = &u->base->layout;
        u->b = part.vector = u->base->p;
        mm_state_add(&u->state, part);
    } else {
        u->layout = part.layout = &u->shard->layout;
        u->b = mm_state_take(&u->state, arena, part, config->model.state_dtype);
    }
    if (mm_arena_dry(arena))
        return;
    if (u->base)
        mm_lora_begin_base(u->base, config->seed);
    else
        mm_shard_load(u->shard, u->b);
}

/* a, a copy of b to come; adapters are added behind m and f. */
static void create_adversary(struct mm_mudman *u, struct mm_arena *arena,
                             const struct mm_config *config) {
    struct mm_lora_kind kind = {.rank = config->unlearn.adv_lora_rank,
                                .sets = config->unlearn.adv_lora_count,
                                .alpha = MM_LORA_ALPHA,
                                .purpose = MM_FOR_ADVERSARY};
    struct mm_state_part part = {.group = MM_GROUP_ADVERSARY,
                                 .purpose = MM_FOR_ADVERSARY,
                                 .layout = u->layout,
                                 .adapters = u->base};
    if (config->unlearn.train_adversary && !kind.rank)
        u->a = mm_state_take(&u->state, arena, part, u->b.dtype);
    else
        mm_state_add(&u->state, part);
    if (!kind.rank)
        return;
    u->adversary = mm_lora_create(arena, u->comm, u->shard, kind);
    u->turns = mm_lora_turns_begin(u->adversary, kind.sets, config->unlearn.fork_every_n_loops,
                                   config->seed, mm_arena_dry(arena));
}

/* m and f, zero; the adversary's adapters. */
static void create_accumulators(struct mm_mudman *u, struct mm_arena *arena,
                                const struct mm_config *config) {
    enum mm_dtype dtype = config->model.state_dtype;
    struct mm_state_part part = {.group = MM_GROUP_RETAIN_ACC,
                                 .purpose = MM_FOR_RETAIN_ACC,
                                 .layout = u->layout,
                                 .adapters = u->base};
    u->m = mm_state_take(&u->state, arena, part, dtype);
    part.group = MM_GROUP_FORGET_ACC;
    part.purpose = MM_FOR_FORGET_ACC;
    if (config->unlearn.forget_momentum > 0)
        u->f = mm_state_take(&u->state, arena, part, dtype);
    else
        mm_state_add(&u->state, part);
    if (u->adversary)
        mm_state_add(&u->state, (struct mm_state_part){.group = MM_GROUP_ADVERSARY,
                                                       .purpose = MM_FOR_ADVERSARY,
                                                       .layout = &u->adversary->layout,
                                                       .sets = config->unlearn.adv_lora_count,
                                                       .adapters = u->adversary,
                                                       .vector = u->adversary->all});
}

/* Where b is kept as it was within the budget of the divergence. */
static void create_kept(struct mm_mudman *u, struct mm_arena *arena,
                        const struct mm_config *config) {
    struct mm_state_part part = {
        .group = MM_GROUP_KEPT, .purpose = MM_FOR_BASE, .layout = u->layout, .adapters = u->base};
    if (!isnan(config->evaluate.kl.budget))
        u->kept = mm_state_take(&u->state, arena, part, u->b.dtype);
}

/* What the losses compare with. */
static void create_losses(struct mm_mudman *u, struct mm_arena *arena,
                          const struct mm_config *config) {
    const struct mm_share *share = &u->passes->share;
    const struct mm_model *model = u->shard->model;
    u->frozen = mm_frozen_create(arena, config, u->shard);
    if (config->unlearn.loss_fn == MM_LOSS_NPO)
        u->reference =
            mm_arena_take(arena, MM_FOR_FROZEN, mm_share_tokens(share), sizeof *u->reference);
    u->retain_states = mm_hidden_loss_retaining(arena, config, model, share, &u->passes->acts[0]);
    u->forget_states = mm_hidden_loss_unlearning(arena, config, model, share, &u->passes->acts[0]);
}

static struct mm_mudman_settings settings_of(const struct mm_mudman *u,
                                             const struct mm_config *config) {
    const __typeof__(config->unlearn) *c = &config->unlearn;
    return (struct mm_mudman_settings){
        .train_adversary = c->train_adversary,
        .use_masking = c->use_masking,
        .graph = c->graph,
        .normalization = c->normalization,
        .rate_scale = c->rate_scale,
        .retain_momentum = c->retain_momentum,
        .retaining_rate = c->retaining_rate,
        .adv_lr = c->adv_lr,
        .adv_decay = c->adv_decay,
        .unlearning_rate = c->unlearning_rate,
        .forget_momentum = c->forget_momentum,
        .discard_growing_weights = c->discard_growing_weights,
        .adv_update = c->adv_update,
        .fork_every_n_loops = c->fork_every_n_loops,
        .retaining = {.fn = c->retain_cross_entropy ? MM_LOSS_CROSS_ENTROPY : MM_LOSS_NONE,
                      .states = u->retain_states},
        .training = {.fn = MM_LOSS_CROSS_ENTROPY},
        .unlearning = {.fn = c->loss_fn,
                       .clip_at = c->clip_at,
                       .beta = c->npo_beta,
                       .gamma = c->simnpo_gamma,
                       .reference = u->reference,
                       .states = u->forget_states},
    };
}

static void create_scratch(struct mm_mudman *u, struct mm_arena *arena,
                           const struct mm_config *config) {
    size_t tensors = u->layout->tensors_n, sets = config->unlearn.adv_lora_count;
    u->g = mm_shard_gradient(u->shard, arena);
    if (config->reduce_dtype == MM_BF16 && mm_comm_size(u->comm) > 1)
        u->unrounded = mm_shard_vector(u->shard, arena, MM_FOR_GRADIENTS, MM_F32);
    u->over_w = mm_sums_create(arena, u->layout);
    if (config->unlearn.train_adversary && config->unlearn.graph != MM_GRAPH_REUSE && !u->base &&
        !u->adversary) /* a pass follows, through weights that the step is a vector of */
        u->places = mm_shard_places(u->shard, arena, u->over_w.offsets);
    u->sums = mm_arena_take(arena, MM_FOR_SCRATCH, tensors, sizeof *u->sums);
    u->scale = mm_arena_take(arena, MM_FOR_SCRATCH, tensors, sizeof *u->scale);
    u->scalars = mm_arena_take(arena, MM_FOR_SCRATCH, 1, sizeof *u->scalars);
    u->recorder = mm_recorder_create(u->comm, u->dev, sets > 2 ? sets : 2, mm_arena_dry(arena));
    for (int i = 0; i < 2 && !mm_arena_dry(arena); i++)
        u->host[i] = u->dev->queue->pinned_alloc(u->dev, sizeof *u->host[i]);
}

struct mm_mudman *mm_mudman_create(struct mm_arena *arena, const struct mm_config *config,
                                   struct mm_comm *comm, struct mm_model *model,
                                   struct mm_shard *shard) {
    struct mm_mudman *u = mm_calloc(1, sizeof *u);
    bool held = config->unlearn.train_adversary && config->unlearn.graph == MM_GRAPH_LISTING;
    *u = (struct mm_mudman){.comm = comm, .dev = model->dev, .shard = shard, .state.shard = shard};
    create_base(u, arena, config);
    create_adversary(u, arena, config);
    create_accumulators(u, arena, config);
    create_kept(u, arena, config);
    create_scratch(u, arena, config);
    u->passes = mm_passes_create(arena, comm, model, shard, mm_batch_size_of(config),
                                 held ? MM_PASSES_HELD : MM_PASSES_PLAIN);
    mm_batch_create(&u->retain, arena, &u->passes->share);
    mm_batch_create(&u->forget, arena, &u->passes->share);
    create_losses(u, arena, config);
    u->settings = settings_of(u, config);
    return u;
}

void mm_mudman_free(struct mm_mudman *u) {
    if (!u)
        return;
    mm_recorder_free(&u->recorder);
    for (int i = 0; i < 2; i++)
        if (u->host[i])
            u->dev->queue->pinned_free(u->dev, u->host[i]);
    mm_lora_free(u->base);
    mm_lora_free(u->adversary);
    mm_batch_free(&u->retain);
    mm_batch_free(&u->forget);
    mm_free(u->retain_states);
    mm_free(u->forget_states);
    mm_passes_free(u->passes);
    mm_free(u);
}

/* -- loops ---------------------------------------------------------------------------------------
 */

/* Kinds of loops: without a fork and with one; or, with sets of adapters, which never fork, one a
 * set. */
static void one_loop(void *self, size_t kind) {
    struct mm_mudman *u = self;
    mm_mudman_one_loop(u, !u->adversary && kind == 1);
}

void mm_mudman_loop(struct mm_mudman *u, size_t t, const struct mm_sequences *retain,
                    const struct mm_sequences *forget) {
    int slot = (int)(u->asked % 2);
    MM_CHECK(u->asked - u->told < 2, "scalars were not taken");
    mm_batch_set(&u->retain, slot, retain);
    mm_batch_set(&u->forget, slot, forget);
    mm_shard_settle(u->shard);
    size_t kind = u->adversary ? mm_lora_turns_take(&u->turns, t)
                               : u->a.data && t % u->settings.fork_every_n_loops == 0;
    if (u->retain.whole && u->forget.whole)
        mm_recorder_run(&u->recorder, kind, one_loop, u);
    else /* a recording has the shapes and the counts of one batch */
        one_loop(u, kind);
    u->dev->queue->download_later(u->dev, u->host[slot], u->scalars, sizeof *u->scalars);
    u->dev->queue->mark(u->dev, slot);
    u->asked++;
}

struct mm_loop_scalars mm_mudman_scalars(struct mm_mudman *u) {
    MM_CHECK(u->told < u->asked, "no loop was asked for");
    int slot = (int)(u->told++ % 2);
    u->dev->queue->wait(u->dev, slot);
    return *u->host[slot];
}

/* -- the row of the table ------------------------------------------------------------------------
 */

static struct mm_method_run method_create(struct mm_arena *arena, const struct mm_config *config,
                                          struct mm_comm *comm, struct mm_model *model,
                                          struct mm_shard *shard) {
    struct mm_mudman *u = mm_mudman_create(arena, config, comm, model, shard);
    return (struct mm_method_run){.self = u,
                                  .share = &u->passes->share,
                                  .state = &u->state,
                                  .origin = u->base ? u->frozen.w : u->b,
                                  .trained = u->b,
                                  .kept = u->kept,
                                  .adapters = u->base,
                                  .flips = u->unrounded.data ? &u->flips : NULL};
}

static void method_free(void *self) {
    mm_mudman_free(self);
}

static void method_loop(void *self, size_t t, const struct mm_sequences *retain,
                        const struct mm_sequences *forget) {
    mm_mudman_loop(self, t, retain, forget);
}

/* Not the first loop, which may measure something beside. */
static void method_rehearse(void *self) {
    struct mm_mudman *u = self;
    mm_batch_pretend(&u->retain);
    mm_batch_pretend(&u->forget);
    u->asked = u->told = 1;
    mm_shard_settle(u->shard);
    mm_mudman_one_loop(u, false);
}

static struct mm_loop_scalars method_scalars(void *self) {
    return mm_mudman_scalars(self);
}

static struct mm_vector method_store(void *self) {
    return mm_mudman_store(self);
}

const struct mm_method mm_mudman_method = {.name = "mudman",
                                           .passes = passes_of,
                                           .create = method_create,
                                           .free = method_free,
                                           .loop = method_loop,
                                           .rehearse = method_rehearse,
                                           .scalars = method_scalars,
                                           .store = method_store};
