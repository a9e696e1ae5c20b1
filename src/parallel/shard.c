/* shard.c - see shard.h.
 *
 * Reason: sending one tensor at a time costs the latency of a collective each, and sending all at
 * once leaves nothing to compute meanwhile. So tensors are sent in a few buckets, cut
 * between layers. A bucket of gradients leaves when the backward has formed its lowest layer; a
 * bucket of weights is waited for when the forward reaches its lowest layer. Cost: whole gradients
 * of the set, padded to equal blocks of rows, on every rank.
 *
 * With spread weights (spread.h) every layer is a bucket of its own. Weights are not gathered here,
 * and the gradients of the layers take turns in two slots: one is formed while the one of the layer
 * above is under way. */
#include "src/parallel/shard.h"

#include <string.h>

#include "kernels/queue.h"

static bool spread(const struct mm_shard *s) {
    return s->model->source != NULL;
}

static const struct mm_param *param_of(const struct mm_shard *s, size_t t) {
    return &s->model->params[s->param[t]];
}

/* One rank keeps the whole gradients in any case, if it keeps any. */
static bool alone(const struct mm_shard *s) {
    return mm_comm_size(s->comm) == 1 && !s->model->dev->exact && !s->given_away;
}

/* Whether the gradients of layers take turns in slots. */
static bool takes_turns(const struct mm_shard *s) {
    return spread(s) && !alone(s);
}

/* -- what is sent at once ---------------------------------------------------------------------- */

/* Each costs the latency of a collective, which grows with the ranks, and they with the machines.
 */
#define MOST_BUCKETS     8
#define MOST_BUCKETS_FAR 4 /* beyond so many machines: */
#define NEAR_MACHINES    8
#define SLOTS            ((size_t)2) /* for gradients of layers */

size_t mm_bucket_bytes = (size_t)32 << 20;

/* Matrices of layers, and the head: a backward's first micro-batch overwrites their gradients. */
static void find_overwritten(struct mm_shard *s) {
    const struct mm_model *m = s->model;
    bool *product = mm_calloc(m->params_n, sizeof *product);
    for (size_t l = 0; l < m->arch.layers; l++) {
        const struct mm_layer *layer = &m->layers[l];
        const struct mm_linear *const linears[] = {&layer->qkv, &layer->v, &layer->o, &layer->up,
                                                   &layer->down};
        for (size_t i = 0; i < sizeof linears / sizeof *linears; i++)
            for (size_t k = 0; k < linears[i]->parts_n; k++)
                product[linears[i]->part[k]] = true;
    }
    product[m->head_part] = true;
    for (size_t t = 0; t < s->tensors_n; t++)
        s->overwritten[t] = product[s->param[t]];
    mm_free(product);
}

/* The table's order, but for the tensors of no layer, which come first. */
static void find_order(struct mm_shard *s) {
    size_t n = 0;
    for (int within = 0; within < 2; within++)
        for (size_t t = 0; t < s->tensors_n; t++)
            if ((param_of(s, t)->layer != MM_NO_LAYER) == within)
                s->order[n++] = t;
}

static void find_buckets(struct mm_shard *s) {
    bool far = mm_comm_machines(s->comm) > NEAR_MACHINES;
    size_t enough = s->grads_n * sizeof(float) / (far ? MOST_BUCKETS_FAR : MOST_BUCKETS), bytes = 0;
    enough = enough < mm_bucket_bytes ? mm_bucket_bytes : enough;
    for (size_t i = 0; i < s->tensors_n; i++) {
        const struct mm_param *p = param_of(s, s->order[i]);
        struct mm_bucket *last = s->buckets_n ? &s->buckets[s->buckets_n - 1] : NULL;
        bool new_layer = i == 0 || p->layer != param_of(s, s->order[i - 1])->layer;
        bool full = spread(s) || bytes >= enough;
        if (!last || (new_layer && (full || last->layer == MM_NO_LAYER))) {
            last = &s->buckets[s->buckets_n++];
            *last = (struct mm_bucket){.first = i, .layer = p->layer};
            bytes = 0;
        }
        last->n++;
        bytes += p->rows * p->cols * sizeof(float);
    }
}

/* Elements of tensor t's whole gradient, padded to equal blocks of rows. */
static size_t padded(const struct mm_shard *s, size_t t) {
    int size = mm_comm_size(s->comm);
    return mm_rows_block(param_of(s, t)->rows, size) * (size_t)size * param_of(s, t)->cols;
}

/* Elements that its memory takes. On an exact device none begins at another multiple of 256 bytes
 * for another number of ranks: products may choose their order of sums by the addresses. */
static size_t room_of(const struct mm_shard *s, size_t t) {
    return s->model->dev->exact ? (padded(s, t) + 63) / 64 * 64 : padded(s, t);
}

static size_t bucket_elements(const struct mm_shard *s, const struct mm_bucket *bucket) {
    size_t n = 0;
    for (size_t k = bucket->first; k < bucket->first + bucket->n; k++)
        n += room_of(s, s->order[k]);
    return n;
}

/* Every gradient has memory of its own, in the table's order. */
static void place_whole(struct mm_shard *s, struct mm_arena *arena) {
    s->grads_block = mm_arena_take(arena, MM_FOR_GRADIENTS, s->grads_n, sizeof(float));
    size_t used = 0;
    for (size_t t = 0; t < s->tensors_n; t++) {
        s->grads[s->param[t]] = s->grads_block + used;
        used += room_of(s, t);
    }
}

/* Only those of no layer have; those of the layers take turns in the slots. */
static void place_in_slots(struct mm_shard *s, struct mm_arena *arena) {
    size_t fixed = 0, most = 0;
    for (size_t i = 0; i < s->buckets_n; i++) {
        size_t n = bucket_elements(s, &s->buckets[i]);
        if (s->buckets[i].layer == MM_NO_LAYER)
            fixed = n;
        else
            most = n > most ? n : most;
    }
    s->grads_n = fixed + SLOTS * most;
    s->grads_block = mm_arena_take(arena, MM_FOR_GRADIENTS, s->grads_n, sizeof(float));
    for (size_t i = 0; i < s->buckets_n; i++) {
        const struct mm_bucket *bucket = &s->buckets[i];
        size_t used = bucket->layer == MM_NO_LAYER ? 0 : fixed + i % SLOTS * most;
        for (size_t k = bucket->first; k < bucket->first + bucket->n; k++) {
            s->grads[s->param[s->order[k]]] = s->grads_block + used;
            used += room_of(s, s->order[k]);
        }
    }
}

static void create_buckets(struct mm_shard *s, struct mm_arena *arena) {
    s->overwritten = mm_calloc(s->tensors_n, sizeof *s->overwritten);
    s->order = mm_calloc(s->tensors_n, sizeof *s->order);
    s->reductions = mm_calloc(s->tensors_n, sizeof *s->reductions);
    s->gathers = mm_calloc(s->tensors_n, sizeof *s->gathers);
    s->buckets = mm_calloc(s->tensors_n, sizeof *s->buckets);
    find_overwritten(s);
    find_order(s);
    find_buckets(s);
    if (takes_turns(s))
        place_in_slots(s, arena);
    else
        place_whole(s, arena);
    for (size_t i = 0; i < s->tensors_n; i++) {
        const struct mm_param *p = param_of(s, s->order[i]);
        s->gathers[i] = p->w;
        s->reductions[i] =
            (struct mm_reduction){.full = mm_mat(s->grads[s->param[s->order[i]]], MM_F32,
                                                 padded(s, s->order[i]) / p->cols, p->cols),
                                  .rows = p->rows};
    }
}

void mm_shard_settle(struct mm_shard *s) {
    mm_spread_settle(s->model, s->wanted);
}

static struct mm_shard *create(struct mm_arena *arena, struct mm_comm *comm, struct mm_model *model,
                               const bool *wanted, bool given_away) {
    struct mm_shard *s = mm_calloc(1, sizeof *s);
    s->comm = comm;
    s->model = model;
    s->given_away = given_away;
    s->param = mm_calloc(model->params_n, sizeof *s->param);
    s->layout = mm_layout_create(comm, model->dev, model->params_n);
    s->grads = mm_calloc(model->params_n, sizeof *s->grads);
    s->wanted = mm_calloc(model->params_n, sizeof *s->wanted);
    memcpy(s->wanted, wanted, model->params_n * sizeof *wanted);
    for (size_t p = 0; p < model->params_n; p++) {
        if (!wanted[p])
            continue;
        size_t t = s->tensors_n++;
        s->param[t] = p;
        mm_layout_add(&s->layout, model->params[p].rows, model->params[p].cols);
        s->grads_n += room_of(s, t);
    }
    create_buckets(s, arena);
    mm_model_hold(model, wanted);
    return s;
}

struct mm_shard *mm_shard_create(struct mm_arena *arena, struct mm_comm *comm,
                                 struct mm_model *model, const bool *wanted) {
    return create(arena, comm, model, wanted, false);
}

struct mm_shard *mm_shard_create_stream(struct mm_arena *arena, struct mm_comm *comm,
                                        struct mm_model *model, const bool *wanted) {
    return create(arena, comm, model, wanted, true);
}

void mm_shard_free(struct mm_shard *s) {
    if (!s)
        return;
    s->model->dev->ops->let_go(s->model->dev);
    mm_free(s->param);
    mm_layout_free(&s->layout);
    mm_free(s->grads);
    mm_free(s->wanted);
    mm_free(s->overwritten);
    mm_free(s->order);
    mm_free(s->reductions);
    mm_free(s->gathers);
    mm_free(s->buckets);
    mm_free(s);
}

struct mm_vector mm_shard_vector(const struct mm_shard *s, struct mm_arena *arena,
                                 enum mm_purpose purpose, enum mm_dtype dtype) {
    return mm_layout_vector(&s->layout, arena, purpose, dtype);
}

struct mm_vector mm_shard_gradient(const struct mm_shard *s, struct mm_arena *arena) {
    if (alone(s))
        return (struct mm_vector){
            .data = s->grads_block, .n = mm_layout_elements(&s->layout), .dtype = MM_F32};
    return mm_shard_vector(s, arena, MM_FOR_GRADIENTS, MM_F32);
}

/* Tensor t's part of a vector. */
static void *part_of(const struct mm_shard *s, struct mm_vector v, size_t t) {
    return (char *)v.data + s->layout.offsets[t] * mm_dtype_bytes(v.dtype);
}

/* This rank's rows of the weights. */
static struct mm_mat own_rows(const struct mm_shard *s, size_t t) {
    return mm_own_rows(s->model, s->comm, s->param[t]);
}

void mm_shard_load(const struct mm_shard *s, struct mm_vector v) {
    struct mm_device *dev = s->model->dev;
    for (size_t t = 0; t < s->tensors_n; t++) {
        struct mm_mat own = own_rows(s, t);
        if (own.rows)
            dev->ops->convert(dev, part_of(s, v, t), v.dtype, own.data, own.dtype,
                              own.rows * own.cols);
    }
}

/* -- gathering weights ------------------------------------------------------------------------- */

struct mm_places mm_shard_places(const struct mm_shard *s, struct mm_arena *arena,
                                 const size_t *offsets) {
    struct mm_device *dev = s->model->dev;
    void **data = mm_arena_take(arena, MM_FOR_SCRATCH, s->tensors_n, sizeof *data);
    if (!mm_arena_dry(arena)) {
        void **host = mm_calloc(s->tensors_n, sizeof *host);
        for (size_t t = 0; t < s->tensors_n; t++)
            host[t] = own_rows(s, t).data;
        dev->queue->upload(dev, data, host, s->tensors_n * sizeof *host);
        mm_free(host);
    }
    return (struct mm_places){
        .dtype = s->model->dtype, .data = data, .offsets = offsets, .tensors_n = s->tensors_n};
}

static void wait(struct mm_shard *s, struct mm_bucket *bucket) {
    if (bucket->started)
        mm_comm_wait(s->comm, bucket->ticket);
    bucket->started = false;
}

static void wait_for_all(struct mm_shard *s) {
    for (size_t i = 0; i < s->buckets_n; i++)
        wait(s, &s->buckets[i]);
}

static void store_bucket(struct mm_shard *s, struct mm_bucket *bucket, struct mm_vector v) {
    struct mm_device *dev = s->model->dev;
    for (size_t k = bucket->first; k < bucket->first + bucket->n; k++) {
        struct mm_mat own = mm_own_rows_changing(s->model, s->comm, s->param[s->order[k]]);
        if (v.data && own.rows)
            dev->ops->convert(dev, own.data, own.dtype, part_of(s, v, s->order[k]), v.dtype,
                              own.rows * own.cols);
    }
    if (spread(s) && bucket->layer != MM_NO_LAYER)
        return; /* it is gathered when a pass comes to it */
    bucket->ticket = mm_comm_gather_rows(s->comm, s->gathers + bucket->first, bucket->n);
    bucket->started = true;
}

void mm_shard_store_begin(struct mm_shard *s, struct mm_vector v) {
    for (size_t i = 0; i < s->buckets_n; i++)
        store_bucket(s, &s->buckets[i], v);
    mm_spread_changed(s->model);
}

void mm_shard_store_begin_down(struct mm_shard *s, struct mm_vector v) {
    for (size_t i = s->buckets_n; i-- > 0;)
        store_bucket(s, &s->buckets[i], v);
    mm_spread_changed(s->model);
}

void mm_shard_store_end(struct mm_shard *s) {
    wait_for_all(s);
}

void mm_shard_store(struct mm_shard *s, struct mm_vector v) {
    mm_shard_store_begin(s, v);
    mm_shard_store_end(s);
}

static void arrive(void *self, int layer) {
    struct mm_shard *s = self;
    for (size_t i = 0; i < s->buckets_n; i++)
        if (s->buckets[i].layer == layer)
            wait(s, &s->buckets[i]);
}

struct mm_layer_hook mm_shard_arrivals(struct mm_shard *s) {
    return (struct mm_layer_hook){.call = arrive, .self = s};
}

/* A bucket holds the layers from its lowest to below the next one's. */
void mm_shard_await(struct mm_shard *s, int layer) {
    size_t i = s->buckets_n;
    while (i > 0 && s->buckets[i - 1].layer > layer)
        i--;
    if (i > 0)
        wait(s, &s->buckets[i - 1]);
}

/* -- reducing gradients ------------------------------------------------------------------------ */

/* Zeroes what backwards add to; of a rank that makes none, all. */
static void prepare(struct mm_shard *s, const struct mm_bucket *bucket) {
    struct mm_device *dev = s->model->dev;
    for (size_t k = bucket->first; k < bucket->first + bucket->n; k++) {
        const struct mm_param *p = param_of(s, s->order[k]);
        if (s->idle || !s->overwritten[s->order[k]])
            dev->queue->zero(dev, s->grads[s->param[s->order[k]]],
                             p->rows * p->cols * sizeof(float));
    }
}

/* Elements of this rank's rows of the i-th tensor of the order. */
static size_t own_n(const struct mm_shard *s, size_t i) {
    size_t t = s->order[i];
    return s->layout.offsets[t + 1] - s->layout.offsets[t];
}

static size_t own_of_bucket(const struct mm_shard *s, const struct mm_bucket *bucket) {
    size_t n = 0;
    for (size_t k = bucket->first; k < bucket->first + bucket->n; k++)
        n += own_n(s, k);
    return n;
}

/* Two layers' rows take turns, and those of no layer lie behind them. One rank's rows are the whole
 * gradients, and stay where they are. */
void mm_shard_stream(struct mm_shard *s, struct mm_arena *arena, struct mm_gradient_taker taker) {
    size_t fixed = 0, most = 0;
    for (size_t i = 0; i < s->buckets_n; i++) {
        size_t n = own_of_bucket(s, &s->buckets[i]);
        if (s->buckets[i].layer == MM_NO_LAYER)
            fixed = n;
        else
            most = n > most ? n : most;
    }
    MM_CHECK(s->given_away && spread(s) && !s->model->dev->exact, "gradients that nobody keeps");
    s->taker = taker;
    if (mm_comm_size(s->comm) == 1)
        return;
    s->arrivals_of_layer = most;
    s->arrivals = mm_arena_take(arena, MM_FOR_GRADIENTS, SLOTS * most + fixed, sizeof(float));
}

static void aim_at_arrivals(struct mm_shard *s) {
    for (size_t i = 0; i < s->buckets_n; i++) {
        const struct mm_bucket *bucket = &s->buckets[i];
        size_t slot = bucket->layer == MM_NO_LAYER ? SLOTS : i % SLOTS;
        size_t at = slot * s->arrivals_of_layer;
        for (size_t k = bucket->first; k < bucket->first + bucket->n; at += own_n(s, k++))
            s->reductions[k].own = s->arrivals ? s->arrivals + at : s->reductions[k].full.data;
    }
}

static void aim_at(struct mm_shard *s, struct mm_vector g) {
    for (size_t i = 0; i < s->tensors_n; i++)
        s->reductions[i].own = part_of(s, g, s->order[i]);
}

/* Waits for a bucket of gradients. */
static void arrived(struct mm_shard *s, struct mm_bucket *bucket) {
    bool new = bucket->started;
    wait(s, bucket);
    for (size_t k = bucket->first; new && s->streams &&k < bucket->first + bucket->n; k++)
        s->taker.take(s->taker.self, s->order[k], s->reductions[k].own);
}

static void reduce_begin(struct mm_shard *s, struct mm_vector g, int ranks, enum mm_into into) {
    s->streams = s->taker.take && !g.data;
    if (s->streams)
        aim_at_arrivals(s);
    else
        aim_at(s, g);
    for (size_t i = 0; i < s->tensors_n; i++) {
        s->reductions[i].ranks = ranks;
        s->reductions[i].add = into == MM_ADD;
    }
    for (size_t i = 0; i < s->buckets_n; i++)
        if (!spread(s) || s->buckets[i].layer == MM_NO_LAYER || i + 1 == s->buckets_n)
            prepare(s, &s->buckets[i]);
}

void mm_shard_reduce_begin(struct mm_shard *s, struct mm_vector g) {
    reduce_begin(s, g, 0, MM_SET);
}

void mm_shard_reduce_leaves_begin(struct mm_shard *s, struct mm_vector g, int ranks,
                                  enum mm_into into) {
    MM_CHECK(s->model->dev->exact && g.data != s->grads_block, "leaves need a vector of their own");
    reduce_begin(s, g, ranks, into);
}

static void send(struct mm_shard *s, struct mm_bucket *bucket) {
    bucket->ticket = mm_comm_reduce_rows(s->comm, s->reductions + bucket->first, bucket->n);
    bucket->started = true;
}

/* The bucket below takes the slot of the one above. */
static void make_room_below(struct mm_shard *s, size_t i) {
    if (i + 1 < s->buckets_n)
        arrived(s, &s->buckets[i + 1]);
    if (i > 0 && s->buckets[i - 1].layer != MM_NO_LAYER)
        prepare(s, &s->buckets[i - 1]);
}

static void depart(void *self, int layer) {
    struct mm_shard *s = self;
    for (size_t i = 0; i < s->buckets_n; i++)
        if (s->buckets[i].layer == layer) {
            send(s, &s->buckets[i]);
            if (spread(s))
                make_room_below(s, i);
        }
}

struct mm_layer_hook mm_shard_departures(struct mm_shard *s) {
    return (struct mm_layer_hook){.call = depart, .self = s};
}

void mm_shard_reduce_end(struct mm_shard *s) {
    for (size_t i = 0; i < s->buckets_n; i++)
        if (!s->buckets[i].started && (!spread(s) || s->buckets[i].layer == MM_NO_LAYER))
            send(s, &s->buckets[i]);
    for (size_t i = s->buckets_n; i-- > 0;)
        arrived(s, &s->buckets[i]);
}
