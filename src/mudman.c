/* mudman.c - Algorithm 1, a call a line; numbers at the right are the paper's lines. */
#include "src/mudman.h"

#include "src/model/random.h"

#define OPS(u) (u)->dev->ops

static const struct mm_objective cross_entropy = {.fn = MM_LOSS_CROSS_ENTROPY};

static struct mm_objective unlearning(const struct mm_mudman *u) {
    return (struct mm_objective){.fn = u->config->unlearn.loss_fn,
                                 .clip_at = u->config->unlearn.clip_at,
                                 .beta = u->config->unlearn.npo_beta,
                                 .gamma = u->config->unlearn.simnpo_gamma,
                                 .reference = u->reference,
                                 .states = u->forget_states};
}

static struct mm_objective retaining(const struct mm_mudman *u) {
    bool plain = u->config->unlearn.retain_cross_entropy;
    return (struct mm_objective){.fn = plain ? MM_LOSS_CROSS_ENTROPY : MM_LOSS_NONE,
                                 .states = u->retain_states};
}

static bool compares(const struct mm_mudman *u) {
    return u->reference || u->retain_states ||
           (u->forget_states && mm_representation_compares(u->forget_states));
}

/* What losses compare with: hidden states and probabilities of the frozen model, of this loop's
 * batches. */
static void keep_frozen(struct mm_mudman *u) {
    mm_frozen_use_begin(&u->frozen);
    if (u->reference)
        mm_passes_keep_terms(u->passes, &u->forget, u->reference);
    if (u->retain_states)
        mm_passes_keep_states(u->passes, &u->retain, u->retain_states);
    if (u->forget_states)
        mm_passes_keep_states(u->passes, &u->forget, u->forget_states);
    mm_shard_store_end(u->shard);
}

/* Of what b holds, once taken. */
static struct mm_vector gradient(const struct mm_mudman *u) {
    return u->base ? u->base->g : u->g;
}

/* The weights of b; adapters lie on the frozen weights, and the sum is formed in g. */
static struct mm_vector base_weights(struct mm_mudman *u) {
    if (!u->base)
        return u->b;
    mm_lora_weights(u->base, u->frozen.w, u->g);
    return u->g;
}

/* Forward and backward of b's weights; their gradient is taken on to the adapters. */
static void base_gradient(struct mm_mudman *u, const struct mm_batch *batch,
                          struct mm_objective objective, double *loss, double *plain_loss) {
    mm_shard_store_begin(u->shard, base_weights(u));
    mm_passes_gradient(u->passes, batch, objective, u->g, loss, plain_loss);
    if (u->base)
        mm_lora_gradients(u->base, u->g);
}

/* The guard: a loss or a reduced gradient that is not finite stops every later update. */
static void check(struct mm_mudman *u, const double *loss, enum mm_guard loss_code,
                  enum mm_guard gradient_code) {
    struct mm_loop_scalars *s = u->scalars;
    mm_sums_squares(&u->over_w, &s->sum_squares, gradient(u), u->b.dtype);
    OPS(u)->guard(u->dev, loss, false, loss_code, &s->stop);
    OPS(u)->guard(u->dev, &s->sum_squares, false, gradient_code, &s->stop);
}

/* The adversary's weights as the working ones; adapters lie on b, and the sum is formed in g. */
static void use_adversary(struct mm_mudman *u) {
    if (u->adversary)
        mm_lora_weights(u->adversary, u->b, u->g);
    mm_shard_store_begin(u->shard, u->adversary ? u->g : u->a);
}

static void adversary_step(struct mm_mudman *u) {
    const __typeof__(u->config->unlearn) *c = &u->config->unlearn;
    struct mm_vector a = u->a, b = u->b, g = u->g, zero = {0};
    check(u, &u->scalars->adversary_loss, MM_GUARD_ADVERSARY_LOSS, MM_GUARD_ADVERSARY_GRADIENT);
    if (u->adversary) {
        mm_lora_gradients(u->adversary, u->g);
        a = u->adversary->p;
        b = zero;
        g = u->adversary->g;
    }
    OPS(u)->adversary_step(u->dev, a, b, g, c->adv_lr, c->adv_decay, /*                  11 */
                           &u->scalars->stop);
}

/* g = unlearning gradient, by the three ways of taking it; and the adversary's own step. */

static void listing_gradient(struct mm_mudman *u) {
    struct mm_loop_scalars *s = u->scalars;
    use_adversary(u);
    mm_passes_gradient_held(u->passes, &u->forget, unlearning(u), u->g, /*               11 */
                            &s->adversary_loss, &s->unlearning_loss);
    adversary_step(u);
    use_adversary(u);
    mm_passes_second_gradient(u->passes, u->g); /*                                       12 */
}

static void fresh_gradient(struct mm_mudman *u) {
    struct mm_loop_scalars *s = u->scalars;
    use_adversary(u);
    mm_passes_gradient(u->passes, &u->forget, cross_entropy, u->g, /*                    11 */
                       &s->adversary_loss, NULL);
    adversary_step(u);
    use_adversary(u);
    mm_passes_gradient(u->passes, &u->forget, unlearning(u), u->g, /*                    12 */
                       &s->unlearning_loss, NULL);
}

static void reused_gradient(struct mm_mudman *u) {
    struct mm_loop_scalars *s = u->scalars;
    struct mm_mat g = mm_mat(u->g.data, MM_F32, 1, u->g.n);
    use_adversary(u);
    mm_passes_gradient(u->passes, &u->forget, cross_entropy, u->g, /*                    11 */
                       &s->adversary_loss, NULL);
    adversary_step(u);
    OPS(u)->scale(u->dev, g, g, -1.0f); /*                                               12 */
    OPS(u)->scale_scalar(u->dev, &s->unlearning_loss, &s->adversary_loss, -1.0);
}

static void unlearning_gradient(struct mm_mudman *u) {
    struct mm_loop_scalars *s = u->scalars;
    if (!u->config->unlearn.train_adversary) /* at the base after its retain step */
        base_gradient(u, &u->forget, unlearning(u), &s->unlearning_loss, &s->adversary_loss);
    else if (u->config->unlearn.graph == MM_GRAPH_LISTING)
        listing_gradient(u);
    else if (u->config->unlearn.graph == MM_GRAPH_FRESH)
        fresh_gradient(u);
    else
        reused_gradient(u);
    OPS(u)->guard(u->dev, &s->unlearning_loss, false, MM_GUARD_UNLEARNING_LOSS, &s->stop);
}

/* -- what bfloat16 reductions change ----------------------------------------------------------- */

static int sign(float x) {
    return (x > 0) - (x < 0);
}

static void download_floats(struct mm_mudman *u, float *host, struct mm_vector v, size_t first,
                            size_t n) {
    size_t bytes = mm_dtype_bytes(v.dtype);
    char *raw = mm_calloc(n, bytes);
    OPS(u)->download(u->dev, raw, (char *)v.data + first * bytes, n * bytes);
    mm_convert(host, MM_F32, raw, v.dtype, n);
    mm_free(raw);
}

/* Elements whose sign agrees with m's in one of g and `unrounded` alone. */
static double count_flips(struct mm_mudman *u) {
    enum { CHUNK = 1 << 20 };
    const struct mm_vector vectors[3] = {u->g, u->unrounded, u->m};
    float *host[3];
    double flips = 0;
    for (int i = 0; i < 3; i++)
        host[i] = mm_calloc(CHUNK, sizeof **host);
    for (size_t first = 0; first < u->g.n; first += CHUNK) {
        size_t n = u->g.n - first < CHUNK ? u->g.n - first : CHUNK;
        for (int i = 0; i < 3; i++)
            download_floats(u, host[i], vectors[i], first, n);
        for (size_t i = 0; i < n; i++) {
            int m = sign(host[2][i]);
            flips += (sign(host[0][i]) == m) != (sign(host[1][i]) == m);
        }
    }
    for (int i = 0; i < 3; i++)
        mm_free(host[i]);
    return flips;
}

/* Takes the unlearning gradient, which is in g, again, and reduces it in float32. */
static void measure_flips(struct mm_mudman *u) {
    bool adversary = u->config->unlearn.train_adversary;
    bool reuse = adversary && u->config->unlearn.graph == MM_GRAPH_REUSE;
    struct mm_mat exact = mm_mat(u->unrounded.data, MM_F32, 1, u->unrounded.n);
    mm_comm_reduce_as(u->comm, MM_F32);
    if (adversary && u->config->unlearn.graph == MM_GRAPH_LISTING)
        mm_passes_second_gradient(u->passes, u->unrounded);
    else
        mm_passes_gradient(u->passes, &u->forget, reuse ? cross_entropy : unlearning(u),
                           u->unrounded, u->scale, NULL); /* which has room for a loss */
    mm_comm_reduce_as(u->comm, u->config->reduce_dtype);
    if (reuse)
        OPS(u)->scale(u->dev, exact, exact, -1.0f);
    double flips = count_flips(u);
    mm_comm_sum(u->comm, &flips, 1);
    u->flips = flips / u->shard->layout.total;
}

/* Lines 13 to 15, and the ablations' additions to them. */
static void unlearn(struct mm_mudman *u) {
    const __typeof__(u->config->unlearn) *c = &u->config->unlearn;
    struct mm_loop_scalars *s = u->scalars;
    size_t tensors = u->layout->tensors_n;
    const struct mm_unlearn_options all = {.f = u->f,
                                           .momentum = c->forget_momentum,
                                           .b = u->b,
                                           .discard = c->discard_growing_weights,
                                           .a = c->adv_update > 0 ? u->a : (struct mm_vector){0},
                                           .adv_rate = c->adv_update * c->unlearning_rate,
                                           .stop = &s->stop};
    const struct mm_unlearn_options *options =
        all.f.data || all.a.data || all.discard != 1 ? &all : NULL;
    mm_sums_mask(&u->over_w, u->sums, gradient(u), u->m, c->use_masking,
                 options);                                                      /*        13-14 */
    OPS(u)->unlearn_scale(u->dev, u->scale, u->sums, tensors, c->normalization, /*       13 */
                          c->rate_scale == MM_RATE_STUDY, u->layout->total, u->b.dtype, s);
    OPS(u)->unlearn_step(u->dev, u->b, gradient(u), u->m, u->over_w.offsets, tensors,
                         u->scale, /*  14-15 */
                         c->unlearning_rate, c->use_masking, options, &s->stop);
}

static void one_loop(struct mm_mudman *u, bool fork) {
    const __typeof__(u->config->unlearn) *c = &u->config->unlearn;
    struct mm_loop_scalars *s = u->scalars;

    if (fork)
        OPS(u)->fork(u->dev, u->a, u->b, &s->stop); /*                                    4 */
    if (compares(u))
        keep_frozen(u);
    base_gradient(u, &u->retain, retaining(u), &s->retain_loss, NULL); /*                 7 */
    check(u, &s->retain_loss, MM_GUARD_RETAIN_LOSS, MM_GUARD_RETAIN_GRADIENT);
    OPS(u)->retain_step(u->dev, u->m, u->b, gradient(u),
                        c->retain_momentum, /*                8-9 */
                        c->retaining_rate, &s->stop);
    unlearning_gradient(u); /*                                                        11-12 */
    if (u->unrounded.data && u->asked == 0)
        measure_flips(u);
    unlearn(u); /*                                                                    13-15 */
}

/* -- loops ------------------------------------------------------------------------------------- */

/* The beginnings of all sets are numbered from 0. */
static void begin_adapters(struct mm_mudman *u, size_t set, size_t number) {
    uint64_t seed = mm_random_seed_of(u->config->seed, "adversary");
    mm_lora_begin(u->adversary, set, mm_random_bits(seed, number));
}

/* A loop without the host: recorded the second time that it is asked for, when every operation has
 * taken the memory it needs, and replayed from then on. */
static void run_loop(struct mm_mudman *u, bool fork, size_t kind) {
    struct mm_error err = {""};
    void **recording = &u->recordings[kind];
    if (!*recording && u->records && u->asked > 0) {
        u->records = OPS(u)->record(u->dev);
        if (u->records) {
            one_loop(u, fork);
            *recording = OPS(u)->recorded(u->dev, &err);
            u->records = *recording != NULL;
        }
        if (!u->records)
            mm_log0(MM_LOG_WARN, "loops are not recorded, which costs speed only. %s", err.text);
    }
    if (*recording)
        OPS(u)->replay(u->dev, *recording);
    else
        one_loop(u, fork);
}

/* The set of adapters whose turn is loop t; it is chosen, and made anew, outside the recording. */
static size_t take_turn(struct mm_mudman *u, size_t t) {
    size_t sets = u->config->unlearn.adv_lora_count;
    size_t every = u->config->unlearn.fork_every_n_loops / 6 * 6 / sets;
    if (t % every == 0)
        begin_adapters(u, t / every % sets, sets + t / every);
    mm_lora_use(u->adversary, t % sets);
    return t % sets;
}

void mm_mudman_loop(struct mm_mudman *u, size_t t, const uint32_t *retain, const uint32_t *forget) {
    const __typeof__(u->config->unlearn) *c = &u->config->unlearn;
    int slot = (int)(u->asked % 2);
    MM_CHECK(u->asked - u->told < 2, "scalars were not taken");
    mm_batch_set(&u->retain, slot, retain);
    mm_batch_set(&u->forget, slot, forget);
    bool fork = u->a.data && t % c->fork_every_n_loops == 0; /*                           3 */
    run_loop(u, fork, u->adversary ? take_turn(u, t) : fork);
    OPS(u)->download_later(u->dev, u->host[slot], u->scalars, sizeof *u->scalars);
    OPS(u)->mark(u->dev, slot);
    u->asked++;
}

struct mm_vector mm_mudman_store(struct mm_mudman *u) {
    struct mm_vector w = base_weights(u);
    mm_shard_store(u->shard, w);
    return w;
}

size_t mm_mudman_passes(const struct mm_config *config) {
    size_t frozen =
        (config->unlearn.rep_eng_retain_lr > 0) + (config->unlearn.loss_fn == MM_LOSS_NPO);
    if (!config->unlearn.train_adversary || config->unlearn.graph == MM_GRAPH_REUSE)
        return 4 + frozen;
    return (config->unlearn.graph == MM_GRAPH_FRESH ? 6 : 5) + frozen;
}

static void create_base(struct mm_mudman *u, struct mm_arena *arena) {
    struct mm_lora_kind kind = {.rank = u->config->unlearn.lora_rank,
                                .sets = 1,
                                .alpha = MM_LORA_ALPHA,
                                .purpose = MM_FOR_BASE};
    if (kind.rank) {
        u->base = mm_lora_create(arena, u->comm, u->shard, kind);
        u->layout = &u->base->layout;
        u->b = u->base->p;
    } else {
        u->layout = &u->shard->layout;
        u->b = mm_shard_vector(u->shard, arena, MM_FOR_BASE, u->config->model.state_dtype);
    }
}

static void begin_base(struct mm_mudman *u) {
    if (u->base)
        mm_lora_begin_base(u->base, u->config->seed);
    else
        mm_shard_load(u->shard, u->b);
}

static void create_adversary(struct mm_mudman *u, struct mm_arena *arena) {
    const __typeof__(u->config->unlearn) *c = &u->config->unlearn;
    struct mm_lora_kind kind = {.rank = c->adv_lora_rank,
                                .sets = c->adv_lora_count,
                                .alpha = MM_LORA_ALPHA,
                                .purpose = MM_FOR_ADVERSARY};
    if (kind.rank) {
        u->adversary = mm_lora_create(arena, u->comm, u->shard, kind);
        for (size_t i = 0; i < kind.sets && !mm_arena_dry(arena); i++)
            begin_adapters(u, i, i);
    } else if (c->train_adversary) {
        u->a = mm_shard_vector(u->shard, arena, MM_FOR_ADVERSARY, u->b.dtype);
    }
}

struct mm_mudman *mm_mudman_create(struct mm_arena *arena, const struct mm_config *config,
                                   struct mm_comm *comm, struct mm_model *model,
                                   struct mm_shard *shard) {
    struct mm_mudman *u = mm_calloc(1, sizeof *u);
    enum mm_dtype dtype = config->model.state_dtype;
    bool adversary = config->unlearn.train_adversary;
    *u = (struct mm_mudman){.config = config, .comm = comm, .dev = model->dev, .shard = shard};
    create_base(u, arena);
    create_adversary(u, arena);
    u->m = mm_layout_vector(u->layout, arena, MM_FOR_RETAIN_ACC, dtype);
    if (config->unlearn.forget_momentum > 0)
        u->f = mm_layout_vector(u->layout, arena, MM_FOR_FORGET_ACC, dtype);
    u->g = mm_shard_gradient(shard, arena);
    if (config->reduce_dtype == MM_BF16 && mm_comm_size(comm) > 1)
        u->unrounded = mm_shard_vector(shard, arena, MM_FOR_GRADIENTS, MM_F32);
    u->over_w = mm_sums_create(arena, u->layout);
    u->recordings_n = 2 > config->unlearn.adv_lora_count ? 2 : config->unlearn.adv_lora_count;
    u->recordings = mm_calloc(u->recordings_n, sizeof *u->recordings);
    u->sums = mm_arena_take(arena, MM_FOR_SCRATCH, u->layout->tensors_n, sizeof *u->sums);
    u->scale = mm_arena_take(arena, MM_FOR_SCRATCH, u->layout->tensors_n, sizeof *u->scale);
    u->scalars = mm_arena_take(arena, MM_FOR_SCRATCH, 1, sizeof *u->scalars);
    u->passes = mm_passes_create(arena, comm, model, shard, config->data.batch_size,
                                 config->data.micro_batch, config->data.context_length,
                                 adversary && config->unlearn.graph == MM_GRAPH_LISTING);
    mm_batch_create(&u->retain, arena, u->passes);
    mm_batch_create(&u->forget, arena, u->passes);
    u->frozen = mm_frozen_create(arena, config, shard);
    if (config->unlearn.loss_fn == MM_LOSS_NPO)
        u->reference =
            mm_arena_take(arena, MM_FOR_FROZEN, u->passes->share * u->passes->T, sizeof(float));
    u->retain_states = mm_representation_retaining(arena, config, u->passes);
    u->forget_states = mm_representation_unlearning(arena, config, u->passes);
    if (!mm_arena_dry(arena)) {
        u->records = u->dev->ops->asynchronous && mm_comm_records(comm);
        if (u->dev->ops->asynchronous && !u->records)
            mm_log0(MM_LOG_INFO, "loops are not recorded, which costs speed only: transport %s",
                    mm_comm_transport_name(comm));
        for (int i = 0; i < 2; i++)
            u->host[i] = OPS(u)->pinned_alloc(u->dev, sizeof *u->host[i]);
        begin_base(u);
    }
    return u;
}

void mm_mudman_free(struct mm_mudman *u) {
    if (!u)
        return;
    for (size_t i = 0; i < u->recordings_n; i++)
        if (u->recordings[i])
            OPS(u)->recording_free(u->dev, u->recordings[i]);
    for (int i = 0; i < 2; i++)
        if (u->host[i])
            OPS(u)->pinned_free(u->dev, u->host[i]);
    mm_free(u->recordings);
    mm_lora_free(u->base);
    mm_lora_free(u->adversary);
    mm_batch_free(&u->retain);
    mm_batch_free(&u->forget);
    mm_free(u->retain_states);
    mm_free(u->forget_states);
    mm_passes_free(u->passes);
    mm_free(u);
}

struct mm_loop_scalars mm_mudman_scalars(struct mm_mudman *u) {
    MM_CHECK(u->told < u->asked, "no loop was asked for");
    int slot = (int)(u->told++ % 2);
    OPS(u)->wait(u->dev, slot);
    return *u->host[slot];
}

double mm_mudman_flips(const struct mm_mudman *u) {
    return u->flips;
}

const char *mm_guard_text(enum mm_guard stop) {
    static const char *const texts[] = {
        "nothing",
        "the retain loss is not finite",
        "the retain gradient is not finite",
        "the adversary's loss is not finite",
        "the adversary's gradient is not finite",
        "the unlearning loss is not finite",
        "the unlearning gradient is not finite",
        "the norm of the unlearning gradient is zero: there is nothing to normalize",
    };
    return texts[stop];
}
