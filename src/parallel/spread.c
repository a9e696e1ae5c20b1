/* spread.c - see spread.h.
 *
 * A slot goes from layer to layer: poisoned in tests, this rank's rows copied in, the others'
 * gathered, waited for, read. Invariant: a slot is not filled anew before what reads its last layer
 * was asked for. That holds since a pass needs layer after layer, neighbours are in different
 * slots, and the comm starts a gather behind all that the device was asked before. */
#include "src/parallel/spread.h"

#include <string.h>

#include "kernels/queue.h"

bool mm_spread_poison;

struct mm_spread *mm_spread_of(const struct mm_model *model) {
    return (struct mm_spread *)model->source;
}

static size_t slot_of(const struct mm_spread *s, int layer) {
    return (size_t)layer % s->model->slots_n;
}

/* The memory of a slot begins with its layer's first tensor and ends with its last. */
static void poison(const struct mm_spread *s, const struct mm_mat *tensors) {
    for (size_t i = 0; i < s->each && mm_spread_poison; i++)
        memset(tensors[i].data, 0xff,
               tensors[i].rows * tensors[i].cols * mm_dtype_bytes(tensors[i].dtype));
}

static void *own_part(const struct mm_spread *s, size_t t) {
    return s->own + s->layout.offsets[t] * mm_dtype_bytes(s->model->dtype);
}

static void start(struct mm_spread *s, int layer) {
    struct mm_device *dev = s->model->dev;
    size_t first = (size_t)layer * s->each;
    struct mm_slot *slot = &s->slots[slot_of(s, layer)];
    MM_CHECK(!slot->started, "layer %d is still arriving", slot->layer);
    poison(s, s->gathers + first);
    for (size_t t = first; t < first + s->each; t++) {
        struct mm_rows own = mm_layout_own(&s->layout, t);
        struct mm_mat to = mm_mat_rows(s->gathers[t], own.first, own.count);
        if (own.count)
            dev->queue->copy(dev, to.data, own_part(s, t),
                             to.rows * to.cols * mm_dtype_bytes(to.dtype));
    }
    slot->ticket = mm_comm_gather_rows(s->comm, s->gathers + first, s->each);
    slot->layer = layer;
    slot->started = true;
}

static void finish(struct mm_spread *s, struct mm_slot *slot) {
    if (slot->started)
        mm_comm_wait(s->comm, slot->ticket);
    slot->started = false;
}

static void need(struct mm_layer_source *source, int layer, int next) {
    struct mm_spread *s = (struct mm_spread *)source;
    if (s->model->slots_n == 0)
        return;
    if (layer != MM_NO_LAYER) {
        struct mm_slot *slot = &s->slots[slot_of(s, layer)];
        if (slot->layer != layer) {
            finish(s, slot);
            start(s, layer);
        }
        finish(s, slot);
    }
    if (next == MM_NO_LAYER || next == layer)
        return;
    struct mm_slot *slot = &s->slots[slot_of(s, next)];
    bool in_use = layer != MM_NO_LAYER && slot_of(s, layer) == slot_of(s, next);
    if (slot->layer != next && !in_use) {
        finish(s, slot);
        start(s, next);
    }
}

struct mm_spread *mm_spread_create(struct mm_arena *arena, struct mm_comm *comm,
                                   struct mm_model *model) {
    struct mm_spread *s = mm_calloc(1, sizeof *s);
    *s = (struct mm_spread){.source.need = need, .comm = comm, .model = model};
    s->layout = mm_layout_create(comm, model->dev, model->params_n);
    s->place = mm_calloc(model->params_n, sizeof *s->place);
    s->gathers = mm_calloc(model->params_n, sizeof *s->gathers);
    for (size_t i = 0; i < model->params_n; i++) {
        const struct mm_param *p = &model->params[i];
        s->place[i] = p->layer == MM_NO_LAYER ? SIZE_MAX : s->layout.tensors_n;
        if (p->layer == MM_NO_LAYER)
            continue;
        s->gathers[s->layout.tensors_n] = p->w;
        mm_layout_add(&s->layout, p->rows, p->cols);
    }
    s->each = s->layout.tensors_n / model->arch.layers;
    if (model->slots_n)
        s->own = mm_arena_take(arena, MM_FOR_WEIGHTS, mm_layout_elements(&s->layout),
                               mm_dtype_bytes(model->dtype));
    for (size_t i = 0; i < MM_SLOTS; i++)
        s->slots[i].layer = MM_NO_LAYER;
    model->source = &s->source;
    return s;
}

void mm_spread_free(struct mm_spread *s) {
    if (!s)
        return;
    mm_spread_changed(s->model);
    s->model->source = NULL;
    mm_layout_free(&s->layout);
    mm_free(s->place);
    mm_free(s->gathers);
    mm_free(s);
}

struct mm_mat mm_own_rows(const struct mm_model *m, struct mm_comm *comm, size_t param) {
    const struct mm_param *p = &m->params[param];
    const struct mm_spread *s = mm_spread_of(m);
    struct mm_rows own = mm_rows_of(p->rows, mm_comm_size(comm), mm_comm_rank(comm));
    if (!s || !m->slots_n || s->place[param] == SIZE_MAX)
        return mm_mat_rows(p->w, own.first, own.count);
    return mm_mat(own_part(s, s->place[param]), m->dtype, own.count, p->cols);
}

void mm_spread_changed(struct mm_model *m) {
    struct mm_spread *s = mm_spread_of(m);
    for (size_t i = 0; s && i < MM_SLOTS; i++) {
        finish(s, &s->slots[i]);
        s->slots[i].layer = MM_NO_LAYER;
    }
}

/* -- copies ------------------------------------------------------------------------------------ */

static size_t block_bytes(const struct mm_model *m) {
    return m->block_n * mm_dtype_bytes(m->dtype);
}

static size_t own_bytes(const struct mm_model *m) {
    return mm_layout_elements(&mm_spread_of(m)->layout) * mm_dtype_bytes(m->dtype);
}

struct mm_kept_weights mm_weights_keep(struct mm_arena *arena, const struct mm_model *m) {
    struct mm_spread *s = mm_spread_of(m);
    struct mm_kept_weights kept = {.block =
                                       mm_arena_take(arena, MM_FOR_WEIGHTS, block_bytes(m), 1)};
    if (s && m->slots_n)
        kept.own = mm_arena_take(arena, MM_FOR_WEIGHTS, own_bytes(m), 1);
    if (mm_arena_dry(arena))
        return kept;
    m->dev->queue->copy(m->dev, kept.block, m->block, block_bytes(m));
    if (kept.own)
        m->dev->queue->copy(m->dev, kept.own, s->own, own_bytes(m));
    return kept;
}

void mm_weights_restore(struct mm_model *m, struct mm_kept_weights kept) {
    struct mm_spread *s = mm_spread_of(m);
    mm_spread_changed(m);
    m->dev->queue->copy(m->dev, m->block, kept.block, block_bytes(m));
    if (kept.own)
        m->dev->queue->copy(m->dev, s->own, kept.own, own_bytes(m));
}
