/* training.c - see training.h. */
#include "src/method/training.h"

#include "src/model/random.h"

#include <math.h>
#include <string.h>

#include "kernels/queue.h"

#define EPSILON 1e-8 /* AdamW's */

/* Of the tensors of the shard, which becomes its own. */
static struct mm_training *create(struct mm_arena *arena, struct mm_shard *shard,
                                  struct mm_batch_size size, enum mm_dtype dtype,
                                  enum mm_optimizer optimizer) {
    struct mm_comm *comm = shard->comm;
    struct mm_model *model = shard->model;
    struct mm_training *t = mm_calloc(1, sizeof *t);
    *t = (struct mm_training){.comm = comm, .model = model, .shard = shard};
    t->p = mm_shard_vector(t->shard, arena, MM_FOR_OPTIMIZER, dtype);
    if (optimizer == MM_ADAMW) {
        t->first = mm_shard_vector(t->shard, arena, MM_FOR_OPTIMIZER, dtype);
        t->second = mm_shard_vector(t->shard, arena, MM_FOR_OPTIMIZER, dtype);
    }
    t->over_all = mm_sums_create(arena, &t->shard->layout);
    t->scalars = mm_arena_take(arena, MM_FOR_SCRATCH, 2, sizeof *t->scalars);
    t->passes = mm_passes_create(arena, comm, model, t->shard, size, MM_PASSES_PLAIN);
    mm_batch_create(&t->batch, arena, &t->passes->share);
    if (!mm_arena_dry(arena))
        mm_shard_load(t->shard, t->p);
    return t;
}

/* The gradient is kept whole: own rows of it. */
static struct mm_training *keeping(struct mm_training *t, struct mm_arena *arena) {
    t->g = mm_shard_gradient(t->shard, arena);
    return t;
}

static void take(void *self, size_t tensor, const float *own);

/* Whether gradients can be taken as they arrive. */
static bool takes(const struct mm_model *model) {
    return mm_spread_of(model) && !model->dev->exact;
}

static struct mm_training *taking(struct mm_training *t, struct mm_arena *arena) {
    mm_shard_stream(t->shard, arena, (struct mm_gradient_taker){.take = take, .self = t});
    return t;
}

static bool *all_of(const struct mm_model *model) {
    bool *all = mm_calloc(model->params_n, sizeof *all);
    memset(all, true, model->params_n * sizeof *all);
    return all;
}

struct mm_training *mm_training_create(struct mm_arena *arena, struct mm_comm *comm,
                                       struct mm_model *model, struct mm_batch_size size,
                                       enum mm_dtype dtype, enum mm_optimizer optimizer) {
    bool *all = all_of(model);
    struct mm_shard *shard = mm_shard_create(arena, comm, model, all);
    mm_free(all);
    return keeping(create(arena, shard, size, dtype, optimizer), arena);
}

/* Elements of this rank's rows of the tensor of which it has most. */
static size_t largest(const struct mm_layout *layout) {
    size_t most = 0;
    for (size_t t = 0; t < layout->tensors_n; t++) {
        size_t n = layout->offsets[t + 1] - layout->offsets[t];
        most = n > most ? n : most;
    }
    return most;
}

static struct mm_training *create_lora(struct mm_arena *arena, struct mm_comm *comm,
                                       struct mm_model *model, const struct mm_config *config,
                                       const struct mm_attack *attack) {
    bool *adapted = mm_calloc(model->params_n, sizeof *adapted);
    mm_lora_choose(model, adapted);
    struct mm_shard *shard = takes(model) ? mm_shard_create_stream(arena, comm, model, adapted)
                                          : mm_shard_create(arena, comm, model, adapted);
    struct mm_training *t = create(arena, shard, mm_batch_size_of(config), model->dtype, MM_SGD);
    if (takes(model))
        t->room = mm_arena_take(arena, MM_FOR_SCRATCH, largest(&taking(t, arena)->shard->layout),
                                sizeof *t->room);
    else
        keeping(t, arena);
    struct mm_lora_kind kind = {.rank = attack->lora_rank,
                                .sets = 1,
                                .alpha = MM_LORA_ATTACK_ALPHA,
                                .purpose = MM_FOR_OPTIMIZER,
                                .adamw = attack->optimizer == MM_ADAMW};
    t->lora = mm_lora_create(arena, comm, t->shard, kind);
    t->alone = true;
    if (!mm_arena_dry(arena))
        mm_lora_begin(t->lora, 0, config->seed);
    mm_free(adapted);
    return t;
}

/* Adapters beside some of all parameters, which leave the weights as they are. */
static void attach(struct mm_training *t, struct mm_arena *arena, const struct mm_config *config,
                   enum mm_optimizer optimizer, const float *adapters) {
    const struct mm_ops *ops = t->model->dev->ops;
    struct mm_error err;
    bool *wanted = mm_calloc(t->model->params_n, sizeof *wanted);
    MM_CHECK(mm_model_choose(t->model, config->unlearn.target_modules,
                             config->unlearn.target_modules_n, wanted, &err) == MM_OK,
             "%s", err.text);
    struct mm_lora_kind kind = {.wanted = wanted,
                                .rank = config->unlearn.lora_rank,
                                .sets = 1,
                                .alpha = MM_LORA_ALPHA,
                                .purpose = MM_FOR_OPTIMIZER,
                                .adamw = optimizer == MM_ADAMW};
    t->lora = mm_lora_create(arena, t->comm, t->shard, kind);
    mm_free(wanted);
    if (mm_arena_dry(arena))
        return;
    if (adapters)
        t->model->dev->queue->upload(t->model->dev, t->lora->p.data, adapters,
                                     t->lora->p.n * sizeof *adapters);
    else
        mm_lora_begin_base(t->lora, config->seed);
    t->model->dev->queue->zero(t->model->dev, t->p.data, t->p.n * sizeof(float));
    mm_lora_weights(t->lora, t->p, t->g);
    mm_shard_load(t->shard, t->p);
    if (t->p.n)
        ops->sgd_step(t->model->dev, t->p, t->g, 1);
}

struct mm_training *mm_training_create_attack(struct mm_arena *arena, struct mm_comm *comm,
                                              struct mm_model *model,
                                              const struct mm_config *config,
                                              const struct mm_attack *attack,
                                              const float *adapters) {
    if (attack->lora_rank)
        return create_lora(arena, comm, model, config, attack);
    enum mm_dtype dtype = attack->state_dtype == MM_DTYPE_BF16 ? MM_BF16 : MM_F32;
    bool stream = takes(model) && !config->unlearn.lora_rank, *all = all_of(model);
    struct mm_shard *shard = stream ? mm_shard_create_stream(arena, comm, model, all)
                                    : mm_shard_create(arena, comm, model, all);
    mm_free(all);
    struct mm_training *t =
        create(arena, shard, mm_batch_size_of(config), dtype, attack->optimizer);
    if (stream)
        return taking(t, arena);
    keeping(t, arena);
    if (config->unlearn.lora_rank)
        attach(t, arena, config, attack->optimizer, adapters);
    return t;
}

void mm_training_free(struct mm_training *t) {
    if (!t)
        return;
    mm_batch_free(&t->batch);
    mm_passes_free(t->passes);
    mm_lora_free(t->lora);
    mm_shard_free(t->shard);
    mm_free(t);
}

/* What no working model has, in words; NULL: nothing. */
static const char *wreck_of(double loss, double sum_squares) {
    return !isfinite(loss)          ? "the loss is not finite"
           : !isfinite(sum_squares) ? "the gradient is not finite"
           : sum_squares == 0 && loss != 0
               ? "the gradient is zero everywhere, though the loss is not,"
               : NULL;
}

/* Loss and squared norm of the reduced gradient, on the host; and what is wrong with them. */
static void gradient(struct mm_training *t, double result[2]) {
    const struct mm_objective objective = {.fn = MM_LOSS_CROSS_ENTROPY};
    struct mm_device *dev = t->model->dev;
    if (t->taking)
        dev->queue->zero(dev, &t->scalars[1], sizeof t->scalars[1]);
    mm_passes_gradient(t->passes, &t->batch, objective, t->g, &t->scalars[0], NULL);
    if (t->taking)
        mm_comm_sum_device(t->comm, &t->scalars[1], 1);
    else
        mm_sums_squares(&t->over_all, &t->scalars[1], t->g, MM_F32);
    dev->queue->download(dev, result, t->scalars, 2 * sizeof *result);
    t->wrecked = wreck_of(result[0], result[1]);
}

/* p, by its gradient, at a rank that has a part of it. */
static void optimize(const struct mm_training *t, const struct mm_attack *attack,
                     struct mm_vector p, struct mm_vector g, struct mm_vector first,
                     struct mm_vector second) {
    struct mm_adamw how = {
        .g_scale = 1, .rate = attack->lr, .betas = {0.9, 0.999}, .epsilon = EPSILON, .t = t->steps};
    struct mm_device *dev = t->model->dev;
    if (p.n == 0)
        return;
    if (attack->optimizer == MM_ADAMW)
        dev->ops->adamw_step(dev, p, first, second, g, &how);
    else
        dev->ops->sgd_step(dev, p, g, attack->lr);
}

static struct mm_vector slice(struct mm_vector v, size_t first, size_t n) {
    if (!v.data)
        return v;
    v.data = (char *)v.data + first * mm_dtype_bytes(v.dtype);
    v.n = n;
    return v;
}

/* The step of one tensor, whose gradient has arrived. */
static void take(void *self, size_t tensor, const float *own) {
    struct mm_training *t = self;
    struct mm_device *dev = t->model->dev;
    size_t first = t->shard->layout.offsets[tensor];
    size_t n = t->shard->layout.offsets[tensor + 1] - first;
    struct mm_vector g = {(void *)own, n, MM_F32};
    if (n)
        dev->ops->sum_squares(dev, &t->scalars[1], g, MM_F32);
    if (t->lora)
        mm_lora_take(t->lora, tensor, own);
    else if (n)
        optimize(t, t->taking, slice(t->p, first, n), g, slice(t->first, first, n),
                 slice(t->second, first, n));
}

/* The steps are taken before it is known whether the gradient is one: a wrecked model is of no more
 * use anyway. */
static double attack_as_gradients_arrive(struct mm_training *t, const struct mm_attack *attack) {
    double result[2];
    t->steps++;
    t->taking = attack;
    gradient(t, result);
    t->taking = NULL;
    struct mm_lora *l = t->lora;
    if (!t->wrecked && l) {
        mm_lora_gradients_end(l);
        optimize(t, attack, l->p, l->g, l->first, l->second);
        mm_lora_store(l, t->p, t->room);
    } else if (!t->wrecked) {
        mm_shard_store(t->shard, t->p);
    }
    return result[0];
}

/* On the batch that was sent. */
static double attack_step(struct mm_training *t, const struct mm_attack *attack) {
    double result[2];
    mm_shard_settle(t->shard);
    if (t->shard->taker.take)
        return attack_as_gradients_arrive(t, attack);
    gradient(t, result);
    if (t->wrecked)
        return result[0];
    struct mm_lora *l = t->lora;
    t->steps++;
    if (l)
        mm_lora_gradients(l, t->g);
    if (!t->alone)
        optimize(t, attack, t->p, t->g, t->first, t->second);
    if (l) {
        optimize(t, attack, l->p, l->g, l->first, l->second);
        mm_lora_weights(l, t->p, t->g); /* into the gradient's memory */
    }
    mm_shard_store(t->shard, l ? t->g : t->p);
    return result[0];
}

double mm_training_attack(struct mm_training *t, const struct mm_sequences *own,
                          const struct mm_attack *attack) {
    mm_batch_set(&t->batch, 0, own); /* the step before was waited for */
    return attack_step(t, attack);
}

void mm_training_rehearse(struct mm_training *t, const struct mm_attack *attack) {
    mm_batch_pretend(&t->batch);
    attack_step(t, attack);
}

double mm_pretrain_rate(const struct mm_config *config, size_t t) {
    double lr = config->pretrain.lr, ratio = config->pretrain.min_lr_ratio;
    size_t warmup = config->pretrain.warmup, steps = config->pretrain.steps;
    if (t < warmup)
        return lr * (double)(t + 1) / (double)warmup;
    double done = (double)(t - warmup) / (double)(steps > warmup ? steps - warmup : 1);
    return lr * (ratio + (1 - ratio) * 0.5 * (1 + cos(M_PI * done)));
}

double mm_training_adamw(struct mm_training *t, const struct mm_sequences *own,
                         const struct mm_config *config, size_t step) {
    const struct mm_ops *ops = t->model->dev->ops;
    double result[2];
    mm_batch_set(&t->batch, 0, own); /* the step before was waited for */
    gradient(t, result);
    double norm = sqrt(result[1]), clip = config->pretrain.clip;
    if (t->wrecked)
        return result[0];
    struct mm_adamw how = {
        .g_scale = clip > 0 && norm > clip ? clip / (norm + 1e-6) : 1,
        .rate = mm_pretrain_rate(config, step),
        .betas = {config->pretrain.betas[0], config->pretrain.betas[1]},
        .epsilon = EPSILON,
        .t = step + 1,
    };
    for (size_t i = 0; i < t->shard->tensors_n; i++) {
        const struct mm_param *param = &t->model->params[t->shard->param[i]];
        size_t first = t->shard->layout.offsets[i], n = t->shard->layout.offsets[i + 1] - first;
        how.weight_decay = param->vector ? 0 : config->pretrain.weight_decay;
        ops->adamw_step(t->model->dev, slice(t->p, first, n), slice(t->first, first, n),
                        slice(t->second, first, n), slice(t->g, first, n), &how);
    }
    mm_shard_store(t->shard, t->p);
    return result[0];
}

static bool ends_with(const char *name, const char *end) {
    size_t n = strlen(name), k = strlen(end);
    return n >= k && strcmp(name + n - k, end) == 0;
}

/* Tensor `param` of the model from host memory: all of it, or of a spread layer this rank's rows.
 */
static void store_whole(struct mm_model *model, size_t param, const char *host) {
    const struct mm_param *p = &model->params[param];
    const struct mm_spread *spread = mm_spread_of(model);
    struct mm_mat to = p->w;
    size_t row_bytes = p->cols * mm_dtype_bytes(model->dtype);
    if (spread && p->layer != MM_NO_LAYER) {
        host += mm_layout_own(&spread->layout, spread->place[param]).first * row_bytes;
        to = mm_own_rows_changing(model, spread->comm, param);
    }
    if (to.rows)
        model->dev->queue->upload(model->dev, to.data, host, to.rows * row_bytes);
}

void mm_model_randomize(struct mm_model *model, uint64_t seed) {
    for (size_t i = 0; i < model->params_n; i++) {
        struct mm_param *p = &model->params[i];
        size_t n = p->rows * p->cols;
        float *host = mm_calloc(n, sizeof *host);
        uint64_t own = mm_random_bits(seed, i);
        for (size_t j = 0; j < n; j++)
            host[j] = !p->vector ? (float)(model->arch.initializer_range * mm_random_normal(own, j))
                      : ends_with(p->name, ".bias") ? 0.0f
                                                    : 1.0f;
        void *stored = mm_calloc(n, mm_dtype_bytes(model->dtype));
        mm_convert(stored, model->dtype, host, MM_F32, n);
        store_whole(model, i, stored);
        mm_free(stored);
        mm_free(host);
    }
}
