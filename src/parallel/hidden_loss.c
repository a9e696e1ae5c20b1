/* hidden_loss.c - see hidden_loss.h. */
#include "src/parallel/hidden_loss.h"

#include "src/model/random.h"

#include <math.h>

#include "kernels/queue.h"

static size_t rmu_layer(const struct mm_config *config, size_t layers) {
    return config->unlearn.rmu_layer == MM_ABSENT ? layers / 2 : config->unlearn.rmu_layer;
}

enum mm_status mm_hidden_loss_check(const struct mm_config *config, size_t layers,
                                    struct mm_error *err) {
    enum mm_loss_fn fn = config->unlearn.loss_fn;
    bool rmu = fn == MM_LOSS_RMU && config->unlearn.rmu_layer != MM_ABSENT;
    if ((fn == MM_LOSS_CIRCUIT_BREAKER || fn == MM_LOSS_RMU || fn == MM_LOSS_STREAM_ACTIVATION) &&
        layers < 2)
        return mm_fail(err, MM_BAD_INPUT,
                       "unlearn.unlearning_loss_fn: of hidden states between layers, and this "
                       "model has one layer");
    if (rmu && config->unlearn.rmu_layer >= layers)
        return mm_fail(err, MM_BAD_INPUT,
                       "unlearn.rmu_layer: %zu, but this model has layers 0 to %zu",
                       config->unlearn.rmu_layer, layers - 1);
    return MM_OK;
}

/* A loss on states first ... end-1. */
static struct mm_hidden_loss *create(struct mm_arena *arena, const struct mm_share *share,
                                     const struct mm_acts *acts, enum mm_state_loss kind,
                                     size_t first, size_t end) {
    struct mm_hidden_loss *r = mm_calloc(1, sizeof *r);
    size_t moved = acts->embedding ? 0 : acts->lowest + 1;
    *r = (struct mm_hidden_loss){.dev = mm_arena_device(arena),
                                 .kind = kind,
                                 .first = first,
                                 .end = end,
                                 .moved = moved > first ? moved : first,
                                 .factor = 1,
                                 .divisor = 1,
                                 .tokens = mm_share_tokens(share)};
    r->terms =
        mm_arena_take(arena, MM_FOR_SCRATCH, share->micro_batch * share->T, sizeof *r->terms);
    return r;
}

static void take_frozen(struct mm_hidden_loss *r, struct mm_arena *arena,
                        const struct mm_model *model) {
    r->others = mm_arena_mat(arena, MM_FOR_FROZEN, model->dtype, (r->end - r->first) * r->tokens,
                             model->arch.width);
}

/* c·u, for all tokens. */
static void take_point(struct mm_hidden_loss *r, struct mm_arena *arena,
                       const struct mm_model *model, double length, uint64_t seed) {
    size_t C = model->arch.width, bytes = mm_dtype_bytes(model->dtype);
    r->others = mm_arena_mat(arena, MM_FOR_SCRATCH, model->dtype, 1, C);
    r->others.ld = 0;
    if (mm_arena_dry(arena))
        return;
    double squares = 0;
    for (size_t j = 0; j < C; j++)
        squares += mm_random_uniform(seed, j) * mm_random_uniform(seed, j);
    float *point = mm_calloc(C, sizeof *point);
    for (size_t j = 0; j < C; j++)
        point[j] = (float)(length * mm_random_uniform(seed, j) / sqrt(squares));
    void *stored = mm_calloc(C, bytes);
    mm_convert(stored, model->dtype, point, MM_F32, C);
    r->dev->queue->upload(r->dev, r->others.data, stored, C * bytes);
    mm_free(stored);
    mm_free(point);
}

struct mm_hidden_loss *mm_hidden_loss_retaining(struct mm_arena *arena,
                                                const struct mm_config *config,
                                                const struct mm_model *model,
                                                const struct mm_share *share,
                                                const struct mm_acts *acts) {
    size_t L = model->arch.layers;
    if (config->unlearn.rep_eng_retain_lr == 0)
        return NULL;
    struct mm_hidden_loss *r =
        create(arena, share, acts,
               config->unlearn.square_norm ? MM_STATE_SQUARE_DISTANCE : MM_STATE_DISTANCE, 0, L);
    r->first = r->moved = r->moved < L ? r->moved : L;
    r->factor = config->unlearn.rep_eng_retain_lr / (double)L;
    take_frozen(r, arena, model);
    return r;
}

struct mm_hidden_loss *mm_hidden_loss_unlearning(struct mm_arena *arena,
                                                 const struct mm_config *config,
                                                 const struct mm_model *model,
                                                 const struct mm_share *share,
                                                 const struct mm_acts *acts) {
    size_t L = model->arch.layers, layer = rmu_layer(config, L);
    struct mm_hidden_loss *r = NULL;
    if (config->unlearn.loss_fn == MM_LOSS_CIRCUIT_BREAKER) {
        r = create(arena, share, acts, MM_STATE_COSINE, L / 2, L / 2 + 1);
        take_frozen(r, arena, model);
    } else if (config->unlearn.loss_fn == MM_LOSS_STREAM_ACTIVATION) {
        r = create(arena, share, acts, MM_STATE_LENGTH, 0, L);
        r->sums = mm_arena_take(arena, MM_FOR_SCRATCH, L, sizeof *r->sums);
    } else if (config->unlearn.loss_fn == MM_LOSS_RMU) {
        r = create(arena, share, acts, MM_STATE_SQUARE_DISTANCE, layer, layer + 1);
        r->divisor = (double)model->arch.width;
        take_point(r, arena, model, config->unlearn.rmu_coefficient, config->seed);
    }
    return r;
}

bool mm_hidden_loss_compares(const struct mm_hidden_loss *r) {
    return r->others.data && r->others.ld;
}

/* What the micro-batch's state i is compared with. */
static struct mm_mat others_of(const struct mm_hidden_loss *r, size_t row, size_t i, size_t n) {
    if (!mm_hidden_loss_compares(r))
        return r->others;
    return mm_mat_rows(r->others, (i - r->first) * r->tokens + row, n);
}

void mm_hidden_loss_keep(const struct mm_hidden_loss *r, const struct mm_acts *acts, size_t row,
                         size_t i) {
    if (i < r->first || i >= r->end)
        return;
    struct mm_mat h = mm_acts_state(acts, i), kept = others_of(r, row, i, h.rows);
    r->dev->queue->copy(r->dev, kept.data, h.data, h.rows * h.cols * mm_dtype_bytes(h.dtype));
}

static double scale_of(const struct mm_hidden_loss *r, const struct mm_batch *batch) {
    return 1 / batch->counts.tokens * r->factor / r->divisor;
}

void mm_hidden_loss_add_terms(const struct mm_hidden_loss *r, const struct mm_acts *acts,
                              const struct mm_batch *batch, size_t row, size_t i, double *loss) {
    struct mm_mat none = {0};
    if (i < r->first || i >= r->end)
        return;
    struct mm_mat h = mm_acts_state(acts, i);
    r->dev->ops->state_loss(r->dev, r->kind, h, others_of(r, row, i, h.rows), batch->targets + row,
                            0, NULL, r->terms, none);
    r->dev->ops->sum(r->dev, r->sums ? &r->sums[i - r->first] : loss, r->terms, h.rows,
                     scale_of(r, batch));
}

void mm_hidden_loss_add_gradient(const struct mm_hidden_loss *r, const struct mm_acts *acts,
                                 const struct mm_batch *batch, size_t row, size_t i,
                                 struct mm_mat dx) {
    double scale = scale_of(r, batch);
    if (i < r->moved || i >= r->end)
        return;
    struct mm_mat h = mm_acts_state(acts, i);
    r->dev->ops->state_loss(r->dev, r->kind, h, others_of(r, row, i, h.rows), batch->targets + row,
                            (float)(r->sums ? 2 * scale : scale),
                            r->sums ? &r->sums[i - r->first] : NULL, NULL, dx);
}
