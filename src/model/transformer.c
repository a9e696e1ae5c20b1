/* transformer.c - see transformer.h.
 *
 * Both passes are lists of calls of kernels/ops.h. Layers below the lowest one whose weights are
 * wanted share one set of buffers, since no backward reads it. The output of a norm is kept only
 * if the gradient of a weight reads it. */
#include "src/model/transformer.h"

#include "kernels/queue.h"

static bool wants_linear(const struct mm_linear *linear, const bool *wanted) {
    bool any = false;
    for (size_t i = 0; i < linear->parts_n; i++)
        any |= wanted[linear->part[i]] || (linear->bias && wanted[linear->bias_part[i]]);
    return any;
}

static bool wants_norm(const struct mm_norm_weights *norm, const bool *wanted) {
    return wanted[norm->weight_part] || (norm->has_bias && wanted[norm->bias_part]);
}

static bool wants_layer(const struct mm_layer *layer, const bool *wanted) {
    return wants_linear(&layer->qkv, wanted) || wants_linear(&layer->o, wanted) ||
           wants_linear(&layer->up, wanted) || wants_linear(&layer->down, wanted) ||
           wants_norm(&layer->norm1, wanted) || wants_norm(&layer->norm2, wanted);
}

/* Of n tokens. */
static struct mm_mat take_residual(struct mm_arena *arena, const struct mm_model *m, size_t n) {
    return mm_arena_mat(arena, MM_FOR_ACTIVATIONS, m->dtype, n, m->arch.width);
}

static struct mm_mat take_qkv(struct mm_arena *arena, const struct mm_model *m, size_t n) {
    const struct mm_heads *h = &m->arch.heads;
    return mm_arena_mat(arena, MM_FOR_ACTIVATIONS, m->dtype, n,
                        (h->heads + 2 * h->kv_heads) * h->head_dim);
}

static struct mm_mat take_u(struct mm_arena *arena, const struct mm_model *m, size_t n) {
    const struct mm_arch *a = &m->arch;
    return mm_arena_mat(arena, MM_FOR_ACTIVATIONS, m->dtype, n,
                        a->activation == MM_SWIGLU ? 2 * a->mlp : a->mlp);
}

/* All of a layer but its input. */
static struct mm_kept_layer kept_create(struct mm_arena *arena, const struct mm_model *m, size_t n,
                                        bool y1, bool y2) {
    const struct mm_heads *h = &m->arch.heads;
    struct mm_kept_layer kept = {0};
    if (!m->arch.parallel)
        kept.x_mid = take_residual(arena, m, n);
    kept.stats1 = mm_arena_take(arena, MM_FOR_ACTIVATIONS, 2 * n, sizeof(float));
    kept.stats2 = mm_arena_take(arena, MM_FOR_ACTIVATIONS, 2 * n, sizeof(float));
    if (y1)
        kept.y1 = take_residual(arena, m, n);
    if (y2)
        kept.y2 = take_residual(arena, m, n);
    kept.qkv = take_qkv(arena, m, n);
    kept.lse = mm_arena_take(arena, MM_FOR_ACTIVATIONS, n * h->heads, sizeof(float));
    kept.att = mm_arena_mat(arena, MM_FOR_ACTIVATIONS, m->dtype, n, h->heads * h->head_dim);
    kept.u = take_u(arena, m, n);
    return kept;
}

/* A layer in the memory that all of them share, but for what two backwards may not compute anew. */
static struct mm_kept_layer kept_share(const struct mm_acts *acts, struct mm_arena *arena,
                                       const struct mm_model *m, const struct mm_layer *layer,
                                       const bool *wanted, enum mm_keep keep) {
    struct mm_kept_layer kept = acts->work;
    bool two = keep == MM_KEEP_INPUTS_FOR_TWO;
    if (!wants_linear(&layer->qkv, wanted))
        kept.y1 = (struct mm_mat){0};
    else if (two)
        kept.qkv = take_qkv(arena, m, acts->capacity);
    if (!wants_linear(&layer->up, wanted))
        kept.y2 = (struct mm_mat){0};
    else if (two)
        kept.u = take_u(arena, m, acts->capacity);
    if (two && !m->arch.parallel && wants_linear(&layer->o, wanted))
        kept.x_mid = take_residual(arena, m, acts->capacity);
    return kept;
}

/* The lowest layer with a wanted weight; all, if there is none. */
static size_t lowest_wanted(const struct mm_model *m, const bool *wanted) {
    size_t lowest = m->arch.layers;
    for (size_t l = lowest; wanted && l-- > 0;)
        if (wants_layer(&m->layers[l], wanted))
            lowest = l;
    return wanted && wanted[m->embed_part] ? 0 : lowest;
}

void mm_acts_create(struct mm_acts *acts, struct mm_arena *arena, const struct mm_model *m,
                    size_t capacity, const bool *wanted, enum mm_keep keep) {
    size_t L = m->arch.layers;
    *acts = (struct mm_acts){.capacity = capacity, .lowest = lowest_wanted(m, wanted)};
    acts->embedding = wanted && wanted[m->embed_part];
    size_t below = acts->lowest > 0; /* they share one */
    acts->kept_n = L - acts->lowest + below;
    acts->kept = mm_calloc(acts->kept_n, sizeof *acts->kept);
    if (keep != MM_KEEP_ALL && acts->lowest < L)
        acts->work = kept_create(arena, m, capacity, true, true);
    for (size_t i = 0; i < acts->kept_n; i++) {
        const struct mm_layer *layer = i < below ? NULL : &m->layers[acts->lowest + i - below];
        bool y1 = layer && wants_linear(&layer->qkv, wanted),
             y2 = layer && wants_linear(&layer->up, wanted);
        if (acts->work.qkv.data && layer)
            acts->kept[i] = kept_share(acts, arena, m, layer, wanted, keep);
        else
            acts->kept[i] = kept_create(arena, m, capacity, y1, y2);
        acts->kept[i].x_in = take_residual(arena, m, capacity);
    }
    acts->x_final = take_residual(arena, m, capacity);
    acts->stats_final = mm_arena_take(arena, MM_FOR_ACTIVATIONS, 2 * capacity, sizeof(float));
    acts->hidden = take_residual(arena, m, capacity);
}

void mm_acts_separate(struct mm_acts *acts, struct mm_arena *arena, const struct mm_model *m) {
    acts->delta = mm_arena_mat(arena, MM_FOR_ACTIVATIONS, m->dtype, acts->capacity, m->arch.width);
    if (acts->lowest < m->arch.layers)
        acts->dx = mm_arena_mat(arena, MM_FOR_ACTIVATIONS, m->dtype, acts->capacity, m->arch.width);
}

void mm_acts_free(struct mm_acts *acts) {
    mm_free(acts->kept);
    *acts = (struct mm_acts){0};
}

void mm_scratch_create(struct mm_scratch *s, struct mm_arena *arena, const struct mm_model *m,
                       size_t capacity, enum mm_scratch_kind kind) {
    const struct mm_arch *a = &m->arch;
    const struct mm_heads *h = &a->heads;
    size_t up = a->activation == MM_SWIGLU ? 2 * a->mlp : a->mlp;
    struct {
        struct mm_mat *mat;
        size_t cols;
        bool backward;
    } parts[] = {
        {&s->delta, a->width, false},
        {&s->y, a->width, false},
        {&s->h, a->mlp, false},
        {&s->dx, a->width, true},
        {&s->dy, a->width, true},
        {&s->dh, a->mlp, true},
        {&s->du, up, true},
        {&s->datt, h->heads * h->head_dim, true},
        {&s->dqkv, (h->heads + 2 * h->kv_heads) * h->head_dim, true},
    };
    *s = (struct mm_scratch){.capacity = capacity};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (kind == MM_WITH_BACKWARD || !parts[i].backward)
            *parts[i].mat = mm_arena_mat(arena, MM_FOR_SCRATCH, m->dtype, capacity, parts[i].cols);
}

/* What layer l keeps, or the one place that the layers below the lowest share. */
static const struct mm_kept_layer *kept_of(const struct mm_acts *acts, size_t l) {
    if (l < acts->lowest)
        return &acts->kept[0];
    return &acts->kept[l - acts->lowest + (acts->lowest > 0)];
}

static void linear(const struct mm_model *m, struct mm_mat y, struct mm_mat x,
                   const struct mm_linear *l, enum mm_into into) {
    m->dev->ops->linear(m->dev, y, x, l->w, l->bias, into);
}

static struct mm_norm norm_of(const struct mm_model *m, const struct mm_norm_weights *w) {
    return (struct mm_norm){m->arch.norm, m->arch.epsilon, w->weight, w->bias};
}

static void norm(const struct mm_model *m, struct mm_mat sum, struct mm_mat x, struct mm_mat delta,
                 const struct mm_norm_weights *w, struct mm_mat y, float *stats) {
    struct mm_norm how = norm_of(m, w);
    m->dev->ops->norm(m->dev, &how, sum, x, delta, y, stats);
}

/* `m` cut to the n tokens in use. */
static struct mm_mat head_rows(struct mm_mat mat, size_t n) {
    return mat.data ? mm_mat_rows(mat, 0, n) : mat;
}

static size_t tokens_n(const struct mm_acts *acts) {
    return acts->B * acts->T;
}

static struct mm_mat delta_of(const struct mm_acts *acts, const struct mm_scratch *s) {
    return head_rows(acts->delta.data ? acts->delta : s->delta, tokens_n(acts));
}

struct mm_mat mm_acts_gradient(const struct mm_acts *acts, const struct mm_scratch *s) {
    return head_rows(acts->dx.data ? acts->dx : s->dx, tokens_n(acts));
}

/* Whether a backward computes this part of a layer anew. */
static bool shared(struct mm_mat part, struct mm_mat work) {
    return part.data && part.data == work.data;
}

enum mm_time { MM_FIRST_TIME, MM_AGAIN };

/* A layer as far as u. The residual stream comes as x + delta, and the first norm forms their sum;
 * when it is done again the sum is there, and so may be other parts. */
static void layer_to_u(const struct mm_model *m, const struct mm_layer *layer,
                       const struct mm_acts *acts, const struct mm_scratch *s, struct mm_mat x,
                       struct mm_mat delta, enum mm_time time) {
    const struct mm_ops *ops = m->dev->ops;
    const struct mm_kept_layer *kept = kept_of(acts, (size_t)(layer - m->layers));
    const struct mm_kept_layer *work = &acts->work;
    size_t n = tokens_n(acts);
    bool first = time == MM_FIRST_TIME, parallel = m->arch.parallel;
    bool sums = !parallel && (first || shared(kept->x_mid, work->x_mid));
    struct mm_mat none = {0}, x_in = head_rows(kept->x_in, n), x_mid = head_rows(kept->x_mid, n);
    struct mm_mat y1 = head_rows(kept->y1.data ? kept->y1 : s->y, n);
    struct mm_mat y2 = head_rows(kept->y2.data ? kept->y2 : s->y, n);
    struct mm_mat qkv = head_rows(kept->qkv, n), att = head_rows(kept->att, n);
    struct mm_mat out = delta_of(acts, s);

    norm(m, first ? x_in : none, first ? x : x_in, first ? delta : none, &layer->norm1, y1,
         kept->stats1);
    if (first || shared(kept->qkv, work->qkv)) {
        linear(m, qkv, y1, &layer->qkv, MM_SET);
        ops->rope(m->dev, qkv, &m->arch.heads, acts->T, m->cosine, m->sine, MM_TURN);
    }
    ops->attention(m->dev, att, qkv, kept->lse, &m->arch.heads, acts->T);
    if (first || sums)
        linear(m, out, att, &layer->o, MM_SET);
    norm(m, sums ? x_mid : none, sums || parallel ? x_in : x_mid, sums ? out : none, &layer->norm2,
         y2, kept->stats2);
    if (first || shared(kept->u, work->u))
        linear(m, head_rows(kept->u, n), y2, &layer->up, MM_SET);
}

/* The residual stream comes as x + delta and leaves so: the sum is formed by the next norm. */
static void forward_layer(const struct mm_model *m, const struct mm_layer *layer,
                          const struct mm_acts *acts, struct mm_scratch *s, struct mm_mat x,
                          struct mm_mat delta) {
    const struct mm_kept_layer *kept = kept_of(acts, (size_t)(layer - m->layers));
    struct mm_mat h = head_rows(s->h, tokens_n(acts));
    layer_to_u(m, layer, acts, s, x, delta, MM_FIRST_TIME);
    m->dev->ops->activate(m->dev, m->arch.activation, h, head_rows(kept->u, h.rows));
    linear(m, delta_of(acts, s), h, &layer->down, m->arch.parallel ? MM_ADD : MM_SET);
}

static void call(struct mm_layer_hook hook, int layer) {
    if (hook.call)
        hook.call(hook.self, layer);
}

struct mm_mat mm_acts_state(const struct mm_acts *acts, size_t i) {
    return head_rows(kept_of(acts, i)->x_in, acts->B * acts->T);
}

static void need(const struct mm_model *m, int layer, int next) {
    if (m->source)
        m->source->need(m->source, layer, next);
}

/* What the layers below `layers` leave of a micro-batch is x + delta. */
static struct mm_mat x_of(const struct mm_model *m, const struct mm_acts *acts, size_t layers) {
    const struct mm_kept_layer *kept = kept_of(acts, layers ? layers - 1 : 0);
    return head_rows(layers == 0 || m->arch.parallel ? kept->x_in : kept->x_mid, tokens_n(acts));
}

static struct mm_mat delta_after(const struct mm_acts *acts, const struct mm_scratch *s,
                                 size_t layers) {
    return layers ? delta_of(acts, s) : (struct mm_mat){0};
}

void mm_acts_begin(struct mm_acts *acts, const uint32_t *tokens, size_t B, size_t T) {
    MM_CHECK(B * T <= acts->capacity, "%zu x %zu tokens", B, T);
    acts->tokens = tokens;
    acts->B = B;
    acts->T = T;
}

/* The layers below `layers`; `after` is the next that is read. */
static void forward_layers(const struct mm_model *m, struct mm_acts *acts, size_t n,
                           struct mm_scratch *s, size_t layers, int after,
                           struct mm_layer_hook before_layer) {
    MM_CHECK(n <= 1 || acts->delta.data, "%zu micro-batches share what flows", n);
    call(before_layer, MM_NO_LAYER);
    need(m, MM_NO_LAYER, layers ? 0 : after);
    for (size_t i = 0; i < n; i++) {
        MM_CHECK(tokens_n(&acts[i]) <= s->capacity && acts[i].T <= m->context, "%zu x %zu tokens",
                 acts[i].B, acts[i].T);
        m->dev->ops->embed(m->dev, x_of(m, &acts[i], 0), m->params[m->embed_part].w,
                           acts[i].tokens);
    }
    for (size_t l = 0; l < layers; l++) {
        call(before_layer, (int)l);
        need(m, (int)l, l + 1 < layers ? (int)l + 1 : after);
        for (size_t i = 0; i < n; i++)
            forward_layer(m, &m->layers[l], &acts[i], s, x_of(m, &acts[i], l),
                          delta_after(&acts[i], s, l));
    }
}

void mm_forward_to(const struct mm_model *m, struct mm_acts *acts, struct mm_scratch *s,
                   const uint32_t *tokens, size_t B, size_t T, size_t last,
                   struct mm_layer_hook before_layer) {
    struct mm_mat y = head_rows(s->y, B * T);
    const struct mm_kept_layer *kept = kept_of(acts, last);
    MM_CHECK(last < m->arch.layers, "state %zu of %zu layers", last, m->arch.layers);
    mm_acts_begin(acts, tokens, B, T);
    forward_layers(m, acts, 1, s, last, (int)last, before_layer);
    call(before_layer, (int)last);
    need(m, (int)last, MM_NO_LAYER);
    norm(m, mm_acts_state(acts, last), x_of(m, acts, last), delta_after(acts, s, last),
         &m->layers[last].norm1, y, kept->stats1);
}

void mm_forward_none(const struct mm_model *m, size_t last) {
    struct mm_layer_hook none = {0};
    forward_layers(m, NULL, 0, NULL, last, (int)last, none);
    need(m, (int)last, MM_NO_LAYER);
}

void mm_forward_group(const struct mm_model *m, struct mm_acts *acts, size_t n,
                      struct mm_scratch *s, struct mm_layer_hook before_layer) {
    size_t L = m->arch.layers;
    forward_layers(m, acts, n, s, L, MM_NO_LAYER, before_layer);
    for (size_t i = 0; i < n; i++)
        norm(m, head_rows(acts[i].x_final, tokens_n(&acts[i])), x_of(m, &acts[i], L),
             delta_after(&acts[i], s, L), &m->final_norm,
             head_rows(acts[i].hidden, tokens_n(&acts[i])), acts[i].stats_final);
}

void mm_forward(const struct mm_model *m, struct mm_acts *acts, struct mm_scratch *s,
                const uint32_t *tokens, size_t B, size_t T, struct mm_layer_hook before_layer) {
    mm_acts_begin(acts, tokens, B, T);
    mm_forward_group(m, acts, 1, s, before_layer);
}

/* -- backward ---------------------------------------------------------------------------------- */

struct backward {
    const struct mm_model *m;
    const struct mm_acts *acts;
    struct mm_scratch *s;
    float *const *grads;
    enum mm_into into; /* of the matrices of layers */
    size_t n;
};

static bool wants_linear_grad(const struct backward *b, const struct mm_linear *linear) {
    bool any = false;
    for (size_t i = 0; i < linear->parts_n; i++)
        any |= b->grads[linear->part[i]] || (linear->bias && b->grads[linear->bias_part[i]]);
    return any;
}

static bool wants_norm_grad(const struct backward *b, const struct mm_norm_weights *norm) {
    return b->grads[norm->weight_part] || (norm->has_bias && b->grads[norm->bias_part]);
}

/* Gradients of the parts of a product y = x·wᵀ + bias that are wanted. */
static void linear_grads(const struct backward *b, const struct mm_linear *linear, struct mm_mat dy,
                         struct mm_mat x) {
    const struct mm_ops *ops = b->m->dev->ops;
    size_t first = 0;
    for (size_t i = 0; i < linear->parts_n; i++) {
        size_t rows = b->m->params[linear->part[i]].rows;
        struct mm_mat part = mm_mat_cols(dy, first, rows);
        float *dw = b->grads[linear->part[i]];
        if (dw)
            ops->linear_dw(b->m->dev, mm_mat(dw, MM_F32, rows, linear->w.cols), part, x, b->into);
        if (linear->bias && b->grads[linear->bias_part[i]])
            ops->bias_db(b->m->dev, b->grads[linear->bias_part[i]], part);
        first += rows;
    }
}

/* dx += gradient through a norm, and the norm's own gradients. */
static void norm_grads(const struct backward *b, const struct mm_norm_weights *w, struct mm_mat dx,
                       struct mm_mat dy, struct mm_mat x, const float *stats) {
    struct mm_norm how = norm_of(b->m, w);
    b->m->dev->ops->norm_grad(b->m->dev, &how, dx, dy, head_rows(x, b->n), stats,
                              b->grads[w->weight_part],
                              w->has_bias ? b->grads[w->bias_part] : NULL);
}

/* dx: in, the gradient of the layer's output; out, of its input, unless `bottom`: then nothing
 * below wants it, and the products that only serve it are left out. */
static void backward_layer(const struct backward *b, size_t l, struct mm_mat dx, bool bottom) {
    const struct mm_model *m = b->m;
    const struct mm_ops *ops = m->dev->ops;
    const struct mm_layer *layer = &m->layers[l];
    const struct mm_kept_layer *kept = kept_of(b->acts, l);
    struct mm_scratch *s = b->s;
    size_t n = b->n;
    struct mm_mat dh = head_rows(s->dh, n), du = head_rows(s->du, n), dy = head_rows(s->dy, n);
    struct mm_mat datt = head_rows(s->datt, n), dqkv = head_rows(s->dqkv, n);
    struct mm_mat u = head_rows(kept->u, n), att = head_rows(kept->att, n);
    struct mm_mat qkv = head_rows(kept->qkv, n);
    bool into_qkv =
        !bottom || wants_linear_grad(b, &layer->qkv) || wants_norm_grad(b, &layer->norm1);
    bool into_attention = into_qkv || wants_linear_grad(b, &layer->o);
    bool through_mlp =
        !bottom || wants_norm_grad(b, &layer->norm2) || (into_attention && !m->arch.parallel);

    if (wants_linear_grad(b, &layer->down)) {
        struct mm_mat h = head_rows(s->h, n);
        ops->activate(m->dev, m->arch.activation, h, u);
        linear_grads(b, &layer->down, dx, h);
    }
    if (through_mlp || wants_linear_grad(b, &layer->up)) {
        ops->linear_dx(m->dev, dh, dx, layer->down.w, MM_SET);
        ops->activate_grad(m->dev, m->arch.activation, du, dh, u);
        if (kept->y2.data)
            linear_grads(b, &layer->up, du, head_rows(kept->y2, n));
    }
    if (through_mlp)
        ops->linear_dx(m->dev, dy, du, layer->up.w, MM_SET);
    if (through_mlp && !m->arch.parallel)
        norm_grads(b, &layer->norm2, dx, dy, kept->x_mid, kept->stats2);
    if (into_attention)
        linear_grads(b, &layer->o, dx, att);
    if (into_qkv)
        ops->linear_dx(m->dev, datt, dx, layer->o.w, MM_SET);
    if (through_mlp && m->arch.parallel)
        norm_grads(b, &layer->norm2, dx, dy, kept->x_in, kept->stats2);
    if (!into_qkv)
        return;
    ops->attention_grad(m->dev, dqkv, datt, att, qkv, kept->lse, &m->arch.heads, b->acts->T);
    ops->rope(m->dev, dqkv, &m->arch.heads, b->acts->T, m->cosine, m->sine, MM_TURN_BACK);
    if (kept->y1.data)
        linear_grads(b, &layer->qkv, dqkv, head_rows(kept->y1, n));
    if (bottom && !wants_norm_grad(b, &layer->norm1))
        return;
    ops->linear_dx(m->dev, dy, dqkv, layer->qkv.w, MM_SET);
    norm_grads(b, &layer->norm1, dx, dy, kept->x_in, kept->stats1);
}

static struct backward backward_of(const struct mm_model *m, const struct mm_acts *acts,
                                   struct mm_scratch *s, float *const *grads, enum mm_into into) {
    return (struct backward){
        .m = m, .acts = acts, .s = s, .grads = grads, .into = into, .n = tokens_n(acts)};
}

void mm_backward_begin(const struct mm_model *m, const struct mm_acts *acts, struct mm_scratch *s,
                       struct mm_mat dhidden, float *const *grads) {
    struct backward b = backward_of(m, acts, s, grads, MM_ADD);
    struct mm_mat dx = mm_acts_gradient(acts, s);
    m->dev->queue->zero(m->dev, dx.data, b.n * dx.cols * mm_dtype_bytes(dx.dtype));
    if (dhidden.data)
        norm_grads(&b, &m->final_norm, dx, dhidden, acts->x_final, acts->stats_final);
}

void mm_backward_layers(const struct mm_model *m, const struct mm_acts *acts, size_t n,
                        struct mm_scratch *s, float *const *grads, enum mm_into into,
                        struct mm_layer_hook after_layer) {
    size_t lowest = acts->lowest;
    MM_CHECK(n <= 1 || acts->dx.data, "%zu micro-batches share what flows", n);
    for (size_t l = m->arch.layers; l-- > lowest;) {
        bool bottom = l == lowest && !acts->embedding;
        need(m, (int)l, l > lowest ? (int)l - 1 : MM_NO_LAYER);
        for (size_t i = 0; i < n; i++) {
            struct backward b = backward_of(m, &acts[i], s, grads, i == 0 ? into : MM_ADD);
            struct mm_mat none = {0};
            if (acts[i].work.qkv.data)
                layer_to_u(m, &m->layers[l], &acts[i], s, none, none, MM_AGAIN);
            backward_layer(&b, l, mm_acts_gradient(&acts[i], s), bottom);
        }
        call(after_layer, (int)l);
    }
}

void mm_backward_end(const struct mm_model *m, const struct mm_acts *acts,
                     const struct mm_scratch *s, float *const *grads) {
    float *dw = grads[m->embed_part];
    if (dw)
        m->dev->ops->embed_grad(m->dev, mm_mat(dw, MM_F32, m->arch.vocab, m->arch.width),
                                mm_acts_gradient(acts, s), acts->tokens);
}

void mm_backward(const struct mm_model *m, const struct mm_acts *acts, struct mm_scratch *s,
                 struct mm_mat dhidden, float *const *grads, enum mm_into into,
                 struct mm_layer_hook after_layer) {
    mm_backward_begin(m, acts, s, dhidden, grads);
    mm_backward_layers(m, acts, 1, s, grads, into, after_layer);
    mm_backward_end(m, acts, s, grads);
}
