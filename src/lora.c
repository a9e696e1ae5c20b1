/* lora.c - see lora.h. */
#include "src/lora.h"

#include "src/random.h"

#include <math.h>

#define ALPHA 16.0

void mm_lora_choose(const struct mm_model *model, bool *wanted) {
    for (size_t l = 0; l < model->arch.layers; l++) {
        const struct mm_layer *layer = &model->layers[l];
        const struct mm_linear *const linears[] = {&layer->qkv, &layer->o, &layer->up,
                                                   &layer->down};
        for (size_t i = 0; i < 4; i++)
            for (size_t k = 0; k < linears[i]->parts_n; k++)
                wanted[linears[i]->part[k]] = true;
    }
}

static const struct mm_param *param_of(const struct mm_lora *l, size_t t) {
    return &l->shard->model->params[l->shard->param[t]];
}

static struct mm_mat a_of(const struct mm_lora *l, float *all, size_t t) {
    return mm_mat(all + l->a_at[t], MM_F32, l->rank, param_of(l, t)->cols);
}

static struct mm_mat b_of(const struct mm_lora *l, struct mm_vector v, size_t t) {
    return mm_mat((float *)v.data + l->b_at[t], MM_F32, l->shard->rows[t].count, l->rank);
}

/* This rank's rows of tensor t in a vector of the shard, float32. */
static struct mm_mat rows_of(const struct mm_lora *l, struct mm_vector v, size_t t) {
    return mm_mat((float *)v.data + l->shard->offsets[t], MM_F32, l->shard->rows[t].count,
                  param_of(l, t)->cols);
}

static void fill(struct mm_lora *l, uint64_t seed) {
    struct mm_device *dev = l->shard->model->dev;
    for (size_t t = 0; t < l->shard->tensors_n; t++) {
        size_t n = l->a_at[t + 1] - l->a_at[t];
        float *host = mm_calloc(n, sizeof *host);
        uint64_t own = mm_random_seed_of(seed, param_of(l, t)->name);
        double bound = 1 / sqrt((double)param_of(l, t)->cols);
        for (size_t i = 0; i < n; i++)
            host[i] = (float)(bound * (2 * mm_random_uniform(own, i) - 1));
        dev->ops->upload(dev, l->all_a + l->a_at[t], host, n * sizeof *host);
        mm_free(host);
    }
}

static struct mm_vector vector(struct mm_arena *arena, enum mm_purpose purpose, size_t n) {
    return (struct mm_vector){mm_arena_take(arena, purpose, n, sizeof(float)), n, MM_F32};
}

static size_t most_rows(const struct mm_shard *shard) {
    size_t most = 0;
    for (size_t t = 0; t < shard->tensors_n; t++)
        if (shard->model->params[shard->param[t]].rows > most)
            most = shard->model->params[shard->param[t]].rows;
    return most;
}

static void take_moments(struct mm_adapters *adapters, struct mm_arena *arena) {
    adapters->first = vector(arena, MM_FOR_OPTIMIZER, adapters->p.n);
    adapters->second = vector(arena, MM_FOR_OPTIMIZER, adapters->p.n);
}

struct mm_lora *mm_lora_create(struct mm_arena *arena, struct mm_comm *comm,
                               const struct mm_shard *shard, size_t rank, uint64_t seed,
                               bool adamw) {
    struct mm_lora *l = mm_calloc(1, sizeof *l);
    size_t n = shard->tensors_n;
    int size = mm_comm_size(comm);
    *l =
        (struct mm_lora){.comm = comm, .shard = shard, .rank = rank, .scale = ALPHA / (double)rank};
    l->a_at = mm_calloc(n + 1, sizeof *l->a_at);
    l->b_at = mm_calloc(n + 1, sizeof *l->b_at);
    for (size_t t = 0; t < n; t++) {
        l->a_at[t + 1] = l->a_at[t] + rank * param_of(l, t)->cols;
        l->b_at[t + 1] = l->b_at[t] + rank * shard->rows[t].count;
    }
    struct mm_rows own = mm_rows_of(l->a_at[n], size, mm_comm_rank(comm));
    size_t padded = mm_rows_block(l->a_at[n], size) * (size_t)size;
    l->all_a = mm_arena_take(arena, MM_FOR_OPTIMIZER, l->a_at[n], sizeof *l->all_a);
    l->all_da = mm_arena_take(arena, MM_FOR_GRADIENTS, padded, sizeof *l->all_da);
    l->a.p = (struct mm_vector){l->all_a + own.first, own.count, MM_F32};
    l->a.g = size == 1 ? (struct mm_vector){l->all_da, own.count, MM_F32}
                       : vector(arena, MM_FOR_GRADIENTS, own.count);
    if (shard->model->dev->exact)
        l->whole_b = mm_arena_take(arena, MM_FOR_SCRATCH, most_rows(shard) * rank, sizeof(float));
    l->b.p = vector(arena, MM_FOR_OPTIMIZER, l->b_at[n]);
    l->b.g = vector(arena, MM_FOR_GRADIENTS, l->b_at[n]);
    if (adamw) {
        take_moments(&l->a, arena);
        take_moments(&l->b, arena);
    }
    if (!mm_arena_dry(arena))
        fill(l, seed);
    return l;
}

void mm_lora_free(struct mm_lora *l) {
    if (!l)
        return;
    mm_free(l->a_at);
    mm_free(l->b_at);
    mm_free(l);
}

/* -- whole tensors, on an exact device ----------------------------------------------------------
 */

/* Tensor t's B, or what has its shape. */
static struct mm_mat whole_b(const struct mm_lora *l, size_t t) {
    return mm_mat(l->whole_b, MM_F32, param_of(l, t)->rows, l->rank);
}

/* In the memory of the whole gradients, which are done with. */
static struct mm_mat whole_w(const struct mm_lora *l, size_t t) {
    return mm_mat(l->shard->grads[l->shard->param[t]], MM_F32, param_of(l, t)->rows,
                  param_of(l, t)->cols);
}

static struct mm_mat own_of(const struct mm_lora *l, struct mm_mat whole, size_t t) {
    return mm_mat_rows(whole, l->shard->rows[t].first, l->shard->rows[t].count);
}

/* whole (=) own of every rank. */
static void gather(const struct mm_lora *l, struct mm_mat whole, struct mm_mat own, size_t t) {
    struct mm_device *dev = l->shard->model->dev;
    if (own.rows)
        dev->ops->copy(dev, own_of(l, whole, t).data, own.data,
                       own.rows * own.cols * sizeof(float));
    mm_comm_wait(l->comm, mm_comm_gather_rows(l->comm, &whole, 1));
}

static void exact_gradients(struct mm_lora *l, struct mm_vector g) {
    struct mm_device *dev = l->shard->model->dev;
    for (size_t t = 0; t < l->shard->tensors_n; t++) {
        struct mm_mat dw = whole_w(l, t), b = whole_b(l, t), own = own_of(l, b, t);
        gather(l, dw, rows_of(l, g, t), t);
        gather(l, b, b_of(l, l->b.p, t), t);
        dev->ops->linear_dw(dev, a_of(l, l->all_da, t), b, dw, false);
        dev->ops->linear(dev, b, dw, a_of(l, l->all_a, t), NULL, false);
        if (own.rows)
            dev->ops->copy(dev, b_of(l, l->b.g, t).data, own.data,
                           own.rows * own.cols * sizeof(float));
    }
    const float *mine = l->all_da + ((float *)l->a.p.data - l->all_a);
    if (l->a.g.data != mine && l->a.g.n)
        dev->ops->copy(dev, l->a.g.data, mine, l->a.g.n * sizeof *mine);
}

/* w += B·A of B scaled, which is in b.g. */
static void exact_weights(struct mm_lora *l, struct mm_vector w, size_t t) {
    struct mm_device *dev = l->shard->model->dev;
    struct mm_mat product = whole_w(l, t), rows = rows_of(l, w, t);
    size_t n = rows.rows * rows.cols;
    gather(l, whole_b(l, t), b_of(l, l->b.g, t), t);
    dev->ops->linear_dx(dev, product, whole_b(l, t), a_of(l, l->all_a, t), false);
    if (n) {
        struct mm_vector sum = {rows.data, n, MM_F32};
        dev->ops->sgd_step(dev, sum, (struct mm_vector){own_of(l, product, t).data, n, MM_F32}, -1);
    }
}

/* ---------------------------------------------------------------------------------------------- */

void mm_lora_gradients(struct mm_lora *l, struct mm_vector g) {
    struct mm_device *dev = l->shard->model->dev;
    size_t n = l->a_at[l->shard->tensors_n], size = (size_t)mm_comm_size(l->comm);
    if (dev->exact) {
        exact_gradients(l, g);
        return;
    }
    for (size_t t = 0; t < l->shard->tensors_n; t++) {
        struct mm_mat dw = rows_of(l, g, t), a = a_of(l, l->all_a, t), da = a_of(l, l->all_da, t);
        if (dw.rows) {
            dev->ops->linear(dev, b_of(l, l->b.g, t), dw, a, NULL, false);
            dev->ops->linear_dw(dev, da, b_of(l, l->b.p, t), dw, false);
        } else {
            dev->ops->zero(dev, da.data, da.rows * da.cols * sizeof(float));
        }
    }
    struct mm_reduction all = {.full =
                                   mm_mat(l->all_da, MM_F32, mm_rows_block(n, (int)size) * size, 1),
                               .rows = n,
                               .own = l->a.g.data};
    mm_comm_wait(l->comm, mm_comm_reduce_rows(l->comm, &all, 1));
}

void mm_lora_weights(struct mm_lora *l, struct mm_vector w0, struct mm_vector w) {
    struct mm_device *dev = l->shard->model->dev;
    struct mm_mat all = mm_mat(l->all_a, MM_F32, l->a_at[l->shard->tensors_n], 1);
    mm_comm_wait(l->comm, mm_comm_gather_rows(l->comm, &all, 1));
    dev->ops->convert(dev, w.data, w.dtype, w0.data, w0.dtype, w.n);
    for (size_t t = 0; t < l->shard->tensors_n; t++) {
        struct mm_mat b = b_of(l, l->b.p, t), scaled = b_of(l, l->b.g, t);
        if (b.rows)
            dev->ops->scale(dev, scaled, b, (float)l->scale);
        if (dev->exact)
            exact_weights(l, w, t);
        else if (b.rows)
            dev->ops->linear_dx(dev, rows_of(l, w, t), scaled, a_of(l, l->all_a, t), true);
    }
}
