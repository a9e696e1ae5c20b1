/* lora.c - see lora.h. */
#include "src/method/lora.h"

#include "src/model/random.h"

#include <math.h>

#include "kernels/queue.h"

void mm_lora_choose(const struct mm_model *model, bool *wanted) {
    for (size_t l = 0; l < model->arch.layers; l++) {
        const struct mm_layer *layer = &model->layers[l];
        const struct mm_linear *const linears[] = {&layer->qkv, &layer->v, &layer->o, &layer->up,
                                                   &layer->down};
        for (size_t i = 0; i < sizeof linears / sizeof *linears; i++)
            for (size_t k = 0; k < linears[i]->parts_n; k++)
                wanted[linears[i]->part[k]] = true;
    }
}

static const struct mm_param *param_of(const struct mm_lora *l, size_t i) {
    return &l->shard->model->params[l->shard->param[l->tensor[i]]];
}

struct mm_lora_tensor mm_lora_tensor(const struct mm_lora *l, size_t i) {
    return (struct mm_lora_tensor){param_of(l, i % l->n)->name, i < l->n ? 'A' : 'B'};
}

/* -- memory ------------------------------------------------------------------------------------ */

static struct mm_rows own_rows(const struct mm_lora *l, size_t rows) {
    return mm_rows_of(rows, mm_comm_size(l->comm), mm_comm_rank(l->comm));
}

static void find_tensors(struct mm_lora *l, const bool *wanted) {
    const struct mm_shard *s = l->shard;
    l->tensor = mm_calloc(s->tensors_n, sizeof *l->tensor);
    for (size_t t = 0; t < s->tensors_n; t++)
        if (!wanted || wanted[s->param[t]])
            l->tensor[l->n++] = t;
    l->layout = mm_layout_create(l->comm, s->model->dev, 2 * l->n);
    for (size_t i = 0; i < l->n; i++)
        mm_layout_add(&l->layout, l->rank, param_of(l, i)->cols);
    for (size_t i = 0; i < l->n; i++)
        mm_layout_add(&l->layout, param_of(l, i)->rows, l->rank);
}

static struct mm_vector vector(struct mm_arena *arena, enum mm_purpose purpose, size_t n) {
    return (struct mm_vector){mm_arena_take(arena, purpose, n, sizeof(float)), n, MM_F32};
}

static size_t most_rows(const struct mm_lora *l) {
    size_t most = 0;
    for (size_t i = 0; i < l->n; i++)
        most = param_of(l, i)->rows > most ? param_of(l, i)->rows : most;
    return most;
}

/* One rank's own rows of A are the whole: those are p and g themselves then. */
static void take_whole(struct mm_lora *l, struct mm_arena *arena) {
    size_t n = l->n, all = 0, size = (size_t)mm_comm_size(l->comm);
    bool exact = l->shard->model->dev->exact;
    size_t padded = mm_rows_block(l->rank, (int)size) * size;
    l->whole_at = mm_calloc(n, sizeof *l->whole_at);
    for (size_t i = 0; i < n; i++) {
        l->whole_at[i] = all;
        all += padded * param_of(l, i)->cols;
        if (exact) /* see room_of in src/parallel/shard.c */
            all = (all + 63) / 64 * 64;
    }
    if (size > 1 || exact) {
        l->whole_a = mm_arena_take(arena, MM_FOR_SCRATCH, all, sizeof *l->whole_a);
        l->whole_da = mm_arena_take(arena, MM_FOR_GRADIENTS, all, sizeof *l->whole_da);
    } else {
        l->whole_da = l->g.data;
    }
    if (exact)
        l->whole_b = mm_arena_take(arena, MM_FOR_SCRATCH, most_rows(l) * l->rank, sizeof(float));
    l->gathers = mm_calloc(n, sizeof *l->gathers);
    l->reductions = mm_calloc(n, sizeof *l->reductions);
    for (size_t i = 0; i < n; i++) {
        size_t cols = param_of(l, i)->cols;
        l->gathers[i] = mm_mat(l->whole_a + l->whole_at[i], MM_F32, l->rank, cols);
        l->reductions[i] = (struct mm_reduction){
            .full = mm_mat(l->whole_da + l->whole_at[i], MM_F32, padded, cols),
            .rows = l->rank,
            .own = (float *)l->g.data + l->layout.offsets[i]};
    }
}

struct mm_lora *mm_lora_create(struct mm_arena *arena, struct mm_comm *comm,
                               const struct mm_shard *shard, struct mm_lora_kind kind) {
    struct mm_lora *l = mm_calloc(1, sizeof *l);
    *l = (struct mm_lora){.comm = comm,
                          .shard = shard,
                          .rank = kind.rank,
                          .scale = (float)(kind.alpha / (double)kind.rank)};
    find_tensors(l, kind.wanted);
    size_t n = mm_layout_elements(&l->layout);
    l->all = vector(arena, kind.purpose, kind.sets * n);
    l->g = vector(arena, MM_FOR_GRADIENTS, n);
    if (kind.adamw) {
        l->first = vector(arena, MM_FOR_OPTIMIZER, n);
        l->second = vector(arena, MM_FOR_OPTIMIZER, n);
    }
    take_whole(l, arena);
    l->p = (struct mm_vector){.n = n, .dtype = MM_F32};
    mm_lora_use(l, 0);
    return l;
}

void mm_lora_free(struct mm_lora *l) {
    if (!l)
        return;
    mm_layout_free(&l->layout);
    mm_free(l->tensor);
    mm_free(l->whole_at);
    mm_free(l->gathers);
    mm_free(l->reductions);
    mm_free(l);
}

void mm_lora_use(struct mm_lora *l, size_t set) {
    l->p.data = (float *)l->all.data + set * l->p.n;
}

/* -- parts ------------------------------------------------------------------------------------- */

static float *part(const struct mm_lora *l, struct mm_vector v, size_t i) {
    return (float *)v.data + l->layout.offsets[i];
}

static struct mm_mat a_of(const struct mm_lora *l, size_t i) {
    float *whole = l->whole_a ? l->whole_a + l->whole_at[i] : part(l, l->p, i);
    return mm_mat(whole, MM_F32, l->rank, param_of(l, i)->cols);
}

/* Own rows of B, in a vector like p. */
static struct mm_mat b_of(const struct mm_lora *l, struct mm_vector v, size_t i) {
    return mm_mat(part(l, v, l->n + i), MM_F32, mm_layout_own(&l->layout, l->n + i).count, l->rank);
}

/* Own rows of the tensor that is adapted, in a vector of the shard, float32. */
static struct mm_mat rows_of(const struct mm_lora *l, struct mm_vector v, size_t i) {
    return mm_mat((float *)v.data + l->shard->layout.offsets[l->tensor[i]], MM_F32,
                  mm_layout_own(&l->shard->layout, l->tensor[i]).count, param_of(l, i)->cols);
}

/* -- what they do ------------------------------------------------------------------------------ */

void mm_lora_begin(struct mm_lora *l, size_t set, uint64_t seed) {
    struct mm_device *dev = l->shard->model->dev;
    struct mm_rows own = own_rows(l, l->rank);
    struct mm_vector p = l->p;
    p.data = (float *)l->all.data + set * p.n;
    dev->queue->zero(dev, p.data, p.n * sizeof(float));
    for (size_t i = 0; i < l->n; i++) {
        size_t cols = param_of(l, i)->cols;
        float *host = mm_calloc(l->rank * cols, sizeof *host);
        uint64_t seed_here = mm_random_seed_of(seed, param_of(l, i)->name);
        double bound = 1 / sqrt((double)cols);
        for (size_t k = 0; k < l->rank * cols; k++)
            host[k] = (float)(bound * (2 * mm_random_uniform(seed_here, k) - 1));
        dev->queue->upload(dev, part(l, p, i), host + own.first * cols,
                           own.count * cols * sizeof *host);
        if (l->whole_a)
            dev->queue->upload(dev, l->whole_a + l->whole_at[i], host,
                               l->rank * cols * sizeof *host);
        mm_free(host);
    }
}

void mm_lora_begin_base(struct mm_lora *l, uint64_t seed) {
    mm_lora_begin(l, 0, mm_random_seed_of(seed, "base"));
}

static void gather(struct mm_lora *l) {
    struct mm_device *dev = l->shard->model->dev;
    struct mm_rows own = own_rows(l, l->rank);
    if (!l->whole_a)
        return;
    for (size_t i = 0; i < l->n && own.count; i++) {
        size_t cols = param_of(l, i)->cols;
        dev->queue->copy(dev, l->whole_a + l->whole_at[i] + own.first * cols, part(l, l->p, i),
                         own.count * cols * sizeof(float));
    }
    mm_comm_wait(l->comm, mm_comm_gather_rows(l->comm, l->gathers, l->n));
}

/* -- whole tensors, on an exact device ----------------------------------------------------------
 */

/* B of tensor i, or what has its shape. */
static struct mm_mat whole_b(const struct mm_lora *l, size_t i) {
    return mm_mat(l->whole_b, MM_F32, param_of(l, i)->rows, l->rank);
}

/* In the memory of the whole gradients, which are done with. */
static struct mm_mat whole_w(const struct mm_lora *l, size_t i) {
    return mm_mat(l->shard->grads[l->shard->param[l->tensor[i]]], MM_F32, param_of(l, i)->rows,
                  param_of(l, i)->cols);
}

static struct mm_mat own_of(const struct mm_lora *l, struct mm_mat whole) {
    struct mm_rows own = own_rows(l, whole.rows);
    return mm_mat_rows(whole, own.first, own.count);
}

static void copy_rows(const struct mm_lora *l, float *to, struct mm_mat from) {
    if (from.rows && to != from.data)
        l->shard->model->dev->queue->copy(l->shard->model->dev, to, from.data,
                                          from.rows * from.cols * sizeof *to);
}

/* whole (=) own of every rank. */
static void gather_whole(const struct mm_lora *l, struct mm_mat whole, struct mm_mat own) {
    copy_rows(l, own_of(l, whole).data, own);
    mm_comm_wait(l->comm, mm_comm_gather_rows(l->comm, &whole, 1));
}

static void exact_gradients(struct mm_lora *l, struct mm_vector dw) {
    struct mm_device *dev = l->shard->model->dev;
    for (size_t i = 0; i < l->n; i++) {
        struct mm_mat w = whole_w(l, i), b = whole_b(l, i), a = a_of(l, i);
        struct mm_mat da = mm_mat(l->whole_da + l->whole_at[i], MM_F32, a.rows, a.cols);
        gather_whole(l, w, rows_of(l, dw, i));
        gather_whole(l, b, b_of(l, l->p, i));
        dev->ops->linear_dw(dev, da, b, w, MM_SET);
        dev->ops->linear(dev, b, w, a, NULL, MM_SET);
        copy_rows(l, part(l, l->g, i), own_of(l, da));
        copy_rows(l, b_of(l, l->g, i).data, own_of(l, b));
    }
}

/* Own rows of w += B·A of tensor i, B scaled, which is in g. */
static void exact_weights(struct mm_lora *l, struct mm_vector w, size_t i) {
    struct mm_device *dev = l->shard->model->dev;
    struct mm_mat product = whole_w(l, i), rows = rows_of(l, w, i);
    size_t n = rows.rows * rows.cols;
    gather_whole(l, whole_b(l, i), b_of(l, l->g, i));
    dev->ops->linear_dx(dev, product, whole_b(l, i), a_of(l, i), MM_SET);
    if (n)
        dev->ops->add(dev, rows, rows, own_of(l, product));
}

/* ---------------------------------------------------------------------------------------------- */

void mm_lora_weights(struct mm_lora *l, struct mm_vector w0, struct mm_vector w) {
    struct mm_device *dev = l->shard->model->dev;
    gather(l);
    dev->ops->convert(dev, w.data, w.dtype, w0.data, w0.dtype, w.n);
    for (size_t i = 0; i < l->n; i++) {
        struct mm_mat b = b_of(l, l->p, i), scaled = b_of(l, l->g, i);
        if (b.rows)
            dev->ops->scale(dev, scaled, b, l->scale);
        if (dev->exact)
            exact_weights(l, w, i);
        else if (b.rows)
            dev->ops->linear_dx(dev, rows_of(l, w, i), scaled, a_of(l, i), MM_ADD);
    }
}

/* The parts of the gradient that own rows of tensor i's have. */
static void gradients_of(struct mm_lora *l, size_t i, struct mm_mat rows) {
    struct mm_device *dev = l->shard->model->dev;
    struct mm_mat a = a_of(l, i);
    struct mm_mat da = mm_mat(l->whole_da + l->whole_at[i], MM_F32, a.rows, a.cols);
    if (rows.rows) {
        dev->ops->linear(dev, b_of(l, l->g, i), rows, a, NULL, MM_SET);
        dev->ops->linear_dw(dev, da, b_of(l, l->p, i), rows, MM_SET);
    } else {
        dev->queue->zero(dev, da.data, da.rows * da.cols * sizeof(float));
    }
}

static void scale_gradients(struct mm_lora *l) {
    struct mm_device *dev = l->shard->model->dev;
    struct mm_mat all = mm_mat(l->g.data, MM_F32, 1, l->g.n);
    dev->ops->scale(dev, all, all, l->scale);
}

void mm_lora_gradients(struct mm_lora *l, struct mm_vector dw) {
    if (l->shard->model->dev->exact) {
        exact_gradients(l, dw);
        scale_gradients(l);
        return;
    }
    for (size_t i = 0; i < l->n; i++)
        gradients_of(l, i, rows_of(l, dw, i));
    mm_lora_gradients_end(l);
}

/* -- tensor by tensor -------------------------------------------------------------------------- */

static size_t find(const struct mm_lora *l, size_t tensor) {
    size_t i = 0;
    while (l->tensor[i] != tensor)
        i++;
    return i;
}

void mm_lora_take(struct mm_lora *l, size_t tensor, const float *own) {
    size_t i = find(l, tensor);
    gradients_of(l, i,
                 mm_mat((void *)own, MM_F32, mm_layout_own(&l->shard->layout, tensor).count,
                        param_of(l, i)->cols));
}

void mm_lora_gradients_end(struct mm_lora *l) {
    mm_comm_wait(l->comm, mm_comm_reduce_rows(l->comm, l->reductions, l->n));
    scale_gradients(l);
}

void mm_lora_store(struct mm_lora *l, struct mm_vector w0, float *room) {
    struct mm_model *model = l->shard->model;
    struct mm_device *dev = model->dev;
    gather(l);
    for (size_t i = 0; i < l->n; i++) {
        size_t t = l->tensor[i], first = l->shard->layout.offsets[t];
        struct mm_mat own = mm_own_rows_changing(model, l->comm, l->shard->param[t]);
        struct mm_mat b = b_of(l, l->p, i), scaled = b_of(l, l->g, i);
        struct mm_mat sum = mm_mat(room, MM_F32, own.rows, own.cols);
        size_t n = own.rows * own.cols;
        if (n == 0)
            continue;
        dev->ops->convert(dev, room, MM_F32, (char *)w0.data + first * mm_dtype_bytes(w0.dtype),
                          w0.dtype, n);
        dev->ops->scale(dev, scaled, b, l->scale);
        dev->ops->linear_dx(dev, sum, scaled, a_of(l, i), MM_ADD);
        dev->ops->convert(dev, own.data, own.dtype, room, MM_F32, n);
    }
    mm_spread_changed(model);
}

/* -- where there may be adapters -----------------------------------------------------------------
 */

struct mm_vector mm_lora_applied(struct mm_lora *l, struct mm_vector p, struct mm_vector w0,
                                 struct mm_vector room) {
    if (!l)
        return p;
    mm_lora_weights(l, w0, room);
    return room;
}

struct mm_vector mm_lora_gradient(struct mm_lora *l, struct mm_vector dw) {
    if (!l)
        return dw;
    mm_lora_gradients(l, dw);
    return l->g;
}

/* -- turns ---------------------------------------------------------------------------------------
 */

/* The beginnings of all sets are numbered from 0. */
static void begin_anew(const struct mm_lora_turns *turns, size_t set, size_t number) {
    uint64_t seed = mm_random_seed_of(turns->seed, "adversary");
    mm_lora_begin(turns->lora, set, mm_random_bits(seed, number));
}

struct mm_lora_turns mm_lora_turns_begin(struct mm_lora *l, size_t sets, size_t fork_every,
                                         uint64_t seed, bool dry) {
    struct mm_lora_turns turns = {
        .lora = l, .sets = sets, .every = fork_every / 6 * 6 / sets, .seed = seed};
    for (size_t i = 0; i < sets && !dry; i++)
        begin_anew(&turns, i, i);
    return turns;
}

size_t mm_lora_turns_take(const struct mm_lora_turns *turns, size_t t) {
    size_t sets = turns->sets;
    if (t % turns->every == 0)
        begin_anew(turns, t / turns->every % sets, sets + t / turns->every);
    mm_lora_use(turns->lora, t % sets);
    return t % sets;
}
