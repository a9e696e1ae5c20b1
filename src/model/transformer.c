/* transformer.c - see transformer.h. What happens within a layer is in layer.c.
 *
 * Layers below the lowest one whose weights are wanted share one set of buffers, since no backward
 * reads it. The output of a norm is kept only if the gradient of a weight reads it. */
#include "src/model/transformer.h"

#include <string.h>

#include "kernels/queue.h"
#include "src/model/layer.h"

static bool wants_linear(const struct mm_linear *linear, const bool *wanted) {
    bool any = false;
    for (size_t i = 0; i < linear->parts_n; i++)
        any |= wanted[linear->part[i]] || (linear->bias && wanted[linear->bias_part[i]]);
    return any;
}

static bool wants_layer(const struct mm_model *m, size_t l, const bool *wanted) {
    bool any = false;
    for (size_t i = 0; i < m->params_n; i++)
        any |= wanted[i] && m->params[i].layer == (int)l;
    return any;
}

/* The statistics of a layer's norms, and of its attention. */
static void kept_stats(struct mm_kept_layer *kept, struct mm_arena *arena, const struct mm_model *m,
                       const struct mm_layer *layer, size_t n, const struct mm_kept_layer *work,
                       bool own_qkv) {
    size_t heads = m->arch.heads.heads, q = layer->q_norm.parts, k = layer->k_norm.parts;
    struct {
        float **stats, *shared;
        size_t n;
        bool own;
    } all[] = {
        {&kept->stats1, work ? work->stats1 : NULL, 2 * n, !work},
        {&kept->stats2, work ? work->stats2 : NULL, 2 * n, !work},
        {&kept->lse, work ? work->lse : NULL, n * heads, !work},
        {&kept->q_stats, work ? work->q_stats : NULL, m->arch.qk_norm ? 2 * n * q : 0, own_qkv},
        {&kept->k_stats, work ? work->k_stats : NULL, m->arch.qk_norm ? 2 * n * k : 0, own_qkv},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].n)
            *all[i].stats = all[i].own
                                ? mm_arena_take(arena, MM_FOR_ACTIVATIONS, all[i].n, sizeof(float))
                                : all[i].shared;
}

/* What layer l keeps for a backward that forms `wanted`; NULL: there is none. work: what layers
 * that are recomputed share; NULL: the layer shares nothing. */
static struct mm_kept_layer kept_create(struct mm_arena *arena, const struct mm_model *m, size_t l,
                                        size_t n, const bool *wanted,
                                        const struct mm_kept_layer *work, enum mm_keep keep) {
    static const struct mm_kept_layer nothing;
    const struct mm_arch *a = &m->arch;
    const struct mm_layer *layer = &m->layers[l];
    const struct mm_heads *h = &a->heads;
    const struct mm_kept_layer *from = work ? work : &nothing;
    struct mm_kept_layer kept = {0};
    size_t q = h->heads * h->head_dim, kv = h->kv_heads * h->head_dim;
    bool of_qkv = wanted && (wants_linear(&layer->qkv, wanted) || wants_linear(&layer->v, wanted)),
         of_up = wanted && wants_linear(&layer->up, wanted);
    /* What may not be recomputed, since it was computed with a weight that has changed by then. */
    bool two = work && keep == MM_KEEP_INPUTS_FOR_TWO, old_qkv = !work || (two && of_qkv),
         old_o = !work || (two && wants_linear(&layer->o, wanted));
    struct {
        struct mm_mat *mat;
        struct mm_mat shared;
        size_t cols;
        bool kept, own;
    } mats[] = {
        {&kept.x_in, from->x_in, a->width, true, true},
        {&kept.x_mid, from->x_mid, a->width, !a->parallel, old_o && !(work && a->norm_after)},
        {&kept.y1, from->y1, a->width, of_qkv && !a->norm_after, !work},
        {&kept.y2, from->y2, a->width, of_up && !a->norm_after, !work},
        {&kept.out1, from->out1, a->width, a->norm_after, old_o},
        {&kept.out2, from->out2, a->width, a->norm_after,
         !work || (two && wants_linear(&layer->down, wanted))},
        {&kept.qk, from->qk, q + kv, a->qk_norm != MM_QK_PLAIN, old_qkv},
        {&kept.qkv, from->qkv, q + 2 * kv, true, old_qkv},
        {&kept.att, from->att, q, true, !work},
        {&kept.u, from->u, a->activation == MM_SWIGLU ? 2 * a->mlp : a->mlp, true,
         !work || (two && of_up)},
    };
    for (size_t i = 0; i < sizeof mats / sizeof *mats; i++)
        if (mats[i].kept)
            *mats[i].mat = mats[i].own
                               ? mm_arena_mat(arena, MM_FOR_ACTIVATIONS, m->dtype, n, mats[i].cols)
                               : mats[i].shared;
    kept_stats(&kept, arena, m, layer, n, work, old_qkv);
    return kept;
}

/* What the layers share that are recomputed: all that one could keep. */
static void work_create(struct mm_acts *acts, struct mm_arena *arena, const struct mm_model *m) {
    bool *all = mm_calloc(m->params_n, sizeof *all);
    memset(all, true, m->params_n * sizeof *all);
    acts->work = kept_create(arena, m, 0, acts->capacity, all, NULL, MM_KEEP_ALL);
    mm_free(all);
}

void mm_acts_create(struct mm_acts *acts, struct mm_arena *arena, const struct mm_model *m,
                    size_t capacity, const bool *wanted, enum mm_keep keep) {
    size_t L = m->arch.layers;
    *acts = (struct mm_acts){.capacity = capacity, .lowest = L};
    for (size_t l = L; wanted && l-- > 0;)
        if (wants_layer(m, l, wanted))
            acts->lowest = l;
    acts->embedding = wanted && wanted[m->embed_part];
    if (acts->embedding)
        acts->lowest = 0;
    acts->kept_n = L - acts->lowest + (acts->lowest > 0);
    acts->kept = mm_calloc(acts->kept_n, sizeof *acts->kept);
    acts->recomputes = keep != MM_KEEP_ALL && acts->lowest < L;
    if (acts->recomputes)
        work_create(acts, arena, m);
    for (size_t i = 0; i < acts->kept_n; i++) {
        bool shared = acts->lowest > 0 && i == 0;
        size_t l = shared ? 0 : acts->lowest + i - (acts->lowest > 0);
        acts->kept[i] = kept_create(arena, m, l, capacity, shared ? NULL : wanted,
                                    acts->recomputes && !shared ? &acts->work : NULL, keep);
    }
    acts->x_final = mm_arena_mat(arena, MM_FOR_ACTIVATIONS, m->dtype, capacity, m->arch.width);
    acts->stats_final = mm_arena_take(arena, MM_FOR_ACTIVATIONS, 2 * capacity, sizeof(float));
    acts->hidden = mm_arena_mat(arena, MM_FOR_ACTIVATIONS, m->dtype, capacity, m->arch.width);
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
        {&s->dqk, a->qk_norm ? (h->heads + h->kv_heads) * h->head_dim : 0, true},
    };
    *s = (struct mm_scratch){.capacity = capacity};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i].cols && (kind == MM_WITH_BACKWARD || !parts[i].backward))
            *parts[i].mat = mm_arena_mat(arena, MM_FOR_SCRATCH, m->dtype, capacity, parts[i].cols);
}

struct mm_mat mm_acts_gradient(const struct mm_acts *acts, const struct mm_scratch *s) {
    return mm_used_rows(acts->dx.data ? acts->dx : s->dx, mm_acts_tokens(acts));
}

static void call(struct mm_layer_hook hook, int layer) {
    if (hook.call)
        hook.call(hook.self, layer);
}

struct mm_mat mm_acts_state(const struct mm_acts *acts, size_t i) {
    return mm_used_rows(mm_kept_of(acts, i)->x_in, acts->B * acts->T);
}

static void need(const struct mm_model *m, int layer, int next) {
    if (m->source)
        m->source->need(m->source, layer, next);
}

/* What the layers below `layers` leave of a micro-batch is x + delta. */
static struct mm_mat x_of(const struct mm_model *m, const struct mm_acts *acts, size_t layers) {
    const struct mm_kept_layer *kept = mm_kept_of(acts, layers ? layers - 1 : 0);
    return mm_used_rows(layers == 0 || m->arch.parallel ? kept->x_in : kept->x_mid,
                        mm_acts_tokens(acts));
}

static struct mm_mat delta_after(const struct mm_acts *acts, const struct mm_scratch *s,
                                 size_t layers) {
    return layers ? mm_acts_delta(acts, s) : (struct mm_mat){0};
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
        MM_CHECK(mm_acts_tokens(&acts[i]) <= s->capacity && acts[i].T <= m->context,
                 "%zu x %zu tokens", acts[i].B, acts[i].T);
        m->dev->ops->embed(m->dev, x_of(m, &acts[i], 0), m->params[m->embed_part].w,
                           acts[i].tokens);
    }
    for (size_t l = 0; l < layers; l++) {
        call(before_layer, (int)l);
        need(m, (int)l, l + 1 < layers ? (int)l + 1 : after);
        for (size_t i = 0; i < n; i++)
            mm_layer_forward(m, &acts[i], s, l, x_of(m, &acts[i], l), delta_after(&acts[i], s, l));
    }
}

void mm_forward_to(const struct mm_model *m, struct mm_acts *acts, struct mm_scratch *s,
                   const uint32_t *tokens, size_t B, size_t T, size_t last,
                   struct mm_layer_hook before_layer) {
    MM_CHECK(last < m->arch.layers, "state %zu of %zu layers", last, m->arch.layers);
    mm_acts_begin(acts, tokens, B, T);
    forward_layers(m, acts, 1, s, last, (int)last, before_layer);
    call(before_layer, (int)last);
    need(m, (int)last, MM_NO_LAYER);
    mm_layer_input(m, acts, s, last, x_of(m, acts, last), delta_after(acts, s, last));
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
        mm_norm_forward(m, mm_used_rows(acts[i].x_final, mm_acts_tokens(&acts[i])),
                        x_of(m, &acts[i], L), delta_after(&acts[i], s, L), &m->final_norm,
                        mm_used_rows(acts[i].hidden, mm_acts_tokens(&acts[i])),
                        acts[i].stats_final);
}

void mm_forward(const struct mm_model *m, struct mm_acts *acts, struct mm_scratch *s,
                const uint32_t *tokens, size_t B, size_t T, struct mm_layer_hook before_layer) {
    mm_acts_begin(acts, tokens, B, T);
    mm_forward_group(m, acts, 1, s, before_layer);
}

/* -- backward ---------------------------------------------------------------------------------- */

static struct mm_backward_pass pass_of(const struct mm_model *m, const struct mm_acts *acts,
                                       struct mm_scratch *s, float *const *grads,
                                       enum mm_into into) {
    return (struct mm_backward_pass){
        .m = m, .acts = acts, .s = s, .grads = grads, .into = into, .n = mm_acts_tokens(acts)};
}

void mm_backward_begin(const struct mm_model *m, const struct mm_acts *acts, struct mm_scratch *s,
                       struct mm_mat dhidden, float *const *grads) {
    struct mm_backward_pass b = pass_of(m, acts, s, grads, MM_ADD);
    struct mm_mat dx = mm_acts_gradient(acts, s);
    m->dev->queue->zero(m->dev, dx.data, b.n * dx.cols * mm_dtype_bytes(dx.dtype));
    if (dhidden.data)
        mm_norm_backward(&b, &m->final_norm, dx, dhidden, acts->x_final, acts->stats_final);
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
            struct mm_backward_pass b = pass_of(m, &acts[i], s, grads, i == 0 ? into : MM_ADD);
            if (acts[i].recomputes)
                mm_layer_again(m, &acts[i], s, l);
            mm_layer_backward(&b, l, mm_acts_gradient(&acts[i], s), bottom);
        }
        call(after_layer, (int)l);
    }
}

void mm_backward_end(const struct mm_model *m, const struct mm_acts *acts,
                     const struct mm_scratch *s, float *const *grads) {
    float *dw = grads[m->embed_part];
    if (dw)
        m->dev->ops->embed_grad(m->dev, mm_mat(dw, MM_F32, m->arch.vocab, m->arch.width),
                                mm_acts_gradient(acts, s), acts->tokens, m->arch.pad);
}

void mm_backward(const struct mm_model *m, const struct mm_acts *acts, struct mm_scratch *s,
                 struct mm_mat dhidden, float *const *grads, enum mm_into into,
                 struct mm_layer_hook after_layer) {
    mm_backward_begin(m, acts, s, dhidden, grads);
    mm_backward_layers(m, acts, 1, s, grads, into, after_layer);
    mm_backward_end(m, acts, s, grads);
}
