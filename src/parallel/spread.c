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

static size_t bytes_of(const struct mm_spread *s, size_t elements) {
    return elements * mm_dtype_bytes(s->model->dtype);
}

static void copy_rows(const struct mm_spread *s, void *to, const void *from, size_t elements) {
    struct mm_device *dev = s->model->dev;
    if (elements)
        dev->queue->copy(dev, to, from, bytes_of(s, elements));
}

/* The memory of a slot begins with its layer's first tensor and ends with its last. */
static void poison(const struct mm_spread *s, const struct mm_mat *tensors) {
    for (size_t i = 0; i < s->each && mm_spread_poison; i++)
        memset(tensors[i].data, 0xff, bytes_of(s, tensors[i].rows * tensors[i].cols));
}

static void *own_part(const struct mm_spread *s, size_t t) {
    return s->own + bytes_of(s, s->layout.offsets[t]);
}

/* -- the copy among near ranks ----------------------------------------------------------------- */

static void *near_part(const struct mm_spread *s, size_t t) {
    return s->near + bytes_of(s, s->near_at[t]);
}

/* This rank's rows of the copy, where they are in the slot. */
static struct mm_mat near_rows(const struct mm_spread *s, size_t t) {
    struct mm_rows mine = mm_rows_of(s->layout.rows[t], s->group.size, s->group.rank);
    return mm_mat_rows(s->gathers[t], mine.first, mine.count);
}

static void take_ticket(struct mm_slot *slot, mm_ticket ticket) {
    slot->tickets[slot->tickets_n++] = ticket;
}

/* Of a layer's tensors those that changed, or those that did not; in s->some. Both kinds' own rows
 * are put in their places. */
static size_t choose(struct mm_spread *s, size_t first, bool changed) {
    size_t n = 0;
    for (size_t t = first; t < first + s->each; t++) {
        bool from_all = !s->near || s->changed[t];
        if (from_all != changed)
            continue;
        struct mm_rows own = mm_layout_own(&s->layout, t);
        struct mm_mat to =
            changed ? mm_mat_rows(s->gathers[t], own.first, own.count) : near_rows(s, t);
        copy_rows(s, to.data, changed ? own_part(s, t) : near_part(s, t), to.rows * to.cols);
        s->some[n++] = s->gathers[t];
    }
    return n;
}

/* They are taken for unchanged from now on: what arrives is what was written until now. */
static void expect(struct mm_spread *s, struct mm_slot *slot, size_t first) {
    slot->arrivals_n = 0;
    for (size_t t = first; s->near && t < first + s->each; t++) {
        if (s->changed[t])
            slot->arrivals[slot->arrivals_n++] = t;
        s->changed[t] = false;
    }
}

static void start(struct mm_spread *s, int layer) {
    size_t first = (size_t)layer * s->each, n;
    struct mm_slot *slot = &s->slots[slot_of(s, layer)];
    MM_CHECK(!slot->tickets_n, "layer %d is still arriving", slot->layer);
    poison(s, s->gathers + first);
    if ((n = choose(s, first, true)))
        take_ticket(slot, mm_comm_gather_rows(s->comm, s->some, n));
    if ((n = choose(s, first, false)))
        take_ticket(slot, mm_comm_gather_near(s->comm, s->some, n));
    expect(s, slot, first);
    slot->layer = layer;
}

static void finish(struct mm_spread *s, struct mm_slot *slot) {
    while (slot->tickets_n)
        mm_comm_wait(s->comm, slot->tickets[--slot->tickets_n]);
    for (; slot->arrivals_n; slot->arrivals_n--) {
        size_t t = slot->arrivals[slot->arrivals_n - 1];
        struct mm_mat rows = near_rows(s, t);
        copy_rows(s, near_part(s, t), rows.data, rows.rows * rows.cols);
    }
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

static void create_copy(struct mm_spread *s, struct mm_arena *arena) {
    s->near_at = mm_calloc(s->layout.tensors_n + 1, sizeof *s->near_at);
    s->changed = mm_calloc(s->layout.tensors_n, sizeof *s->changed);
    for (size_t t = 0; t < s->layout.tensors_n; t++) {
        s->near_at[t + 1] = s->near_at[t] + near_rows(s, t).rows * s->layout.cols[t];
        s->changed[t] = true;
    }
    s->near = mm_arena_take(arena, MM_FOR_WEIGHTS, s->near_at[s->layout.tensors_n],
                            mm_dtype_bytes(s->model->dtype));
    mm_comm_near_begin(s->comm);
}

struct mm_spread *mm_spread_create(struct mm_arena *arena, struct mm_comm *comm,
                                   struct mm_model *model, bool near) {
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
    s->some = mm_calloc(s->each, sizeof *s->some);
    if (model->slots_n)
        s->own = mm_arena_take(arena, MM_FOR_WEIGHTS, mm_layout_elements(&s->layout),
                               mm_dtype_bytes(model->dtype));
    for (size_t i = 0; i < MM_SLOTS; i++)
        s->slots[i] =
            (struct mm_slot){.layer = MM_NO_LAYER, .arrivals = mm_calloc(s->each, sizeof(size_t))};
    s->group = mm_comm_near(comm);
    if (near && model->slots_n && s->group.groups > 1)
        create_copy(s, arena);
    model->source = &s->source;
    return s;
}

void mm_spread_free(struct mm_spread *s) {
    if (!s)
        return;
    mm_spread_changed(s->model);
    s->model->source = NULL;
    mm_layout_free(&s->layout);
    for (size_t i = 0; i < MM_SLOTS; i++)
        mm_free(s->slots[i].arrivals);
    mm_free(s->near_at);
    mm_free(s->changed);
    mm_free(s->some);
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

struct mm_mat mm_own_rows_changing(const struct mm_model *m, struct mm_comm *comm, size_t param) {
    const struct mm_spread *s = mm_spread_of(m);
    if (s && s->near && s->place[param] != SIZE_MAX)
        s->changed[s->place[param]] = true;
    return mm_own_rows(m, comm, param);
}

void mm_spread_changed(struct mm_model *m) {
    struct mm_spread *s = mm_spread_of(m);
    for (size_t i = 0; s && i < MM_SLOTS; i++) {
        finish(s, &s->slots[i]);
        s->slots[i].layer = MM_NO_LAYER;
    }
}

/* Whether the copy lacks something of a layer that is not going to change. */
static bool unsettled(const struct mm_spread *s, int layer, const bool *changing) {
    bool lacks = false;
    for (size_t p = 0; p < s->model->params_n; p++)
        lacks |= s->model->params[p].layer == layer && s->changed[s->place[p]] &&
                 !(changing && changing[p]);
    return lacks;
}

void mm_spread_settle(struct mm_model *m, const bool *changing) {
    struct mm_spread *s = mm_spread_of(m);
    if (!s || !s->near)
        return;
    for (int l = 0; l < (int)m->arch.layers; l++)
        if (unsettled(s, l, changing))
            need(&s->source, l, MM_NO_LAYER);
    mm_spread_changed(m);
    for (size_t p = 0; changing && p < m->params_n; p++)
        if (changing[p] && s->place[p] != SIZE_MAX)
            s->changed[s->place[p]] = true;
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
    for (size_t t = 0; s && s->near && t < s->layout.tensors_n; t++)
        s->changed[t] = true;
}
