/* layer.c - see layer.h. Both directions are lists of calls of kernels/ops.h.
 *
 * A branch is attention or the MLP. Its norm stands before it: x + branch(norm x), or after it:
 * x + norm(branch x). */
#include "src/model/layer.h"

#include "kernels/queue.h"

static void linear(const struct mm_model *m, struct mm_mat y, struct mm_mat x,
                   const struct mm_linear *l, enum mm_into into) {
    m->dev->ops->linear(m->dev, y, x, l->w, l->bias, into);
}

static struct mm_norm norm_of(const struct mm_model *m, const struct mm_norm_weights *w) {
    return (struct mm_norm){m->arch.norm, m->arch.epsilon, w->weight, w->bias, w->parts};
}

void mm_norm_forward(const struct mm_model *m, struct mm_mat sum, struct mm_mat x,
                     struct mm_mat delta, const struct mm_norm_weights *w, struct mm_mat y,
                     float *stats) {
    struct mm_norm how = norm_of(m, w);
    m->dev->ops->norm(m->dev, &how, sum, x, delta, y, stats);
}

/* The columns of q, k and v, where these lie in this order. */
static struct mm_mat q_of(const struct mm_model *m, struct mm_mat qkv) {
    const struct mm_heads *h = &m->arch.heads;
    return mm_mat_cols(qkv, 0, h->heads * h->head_dim);
}
static struct mm_mat k_of(const struct mm_model *m, struct mm_mat qkv) {
    const struct mm_heads *h = &m->arch.heads;
    return mm_mat_cols(qkv, h->k_first, h->kv_heads * h->head_dim);
}
static struct mm_mat v_of(const struct mm_model *m, struct mm_mat qkv) {
    const struct mm_heads *h = &m->arch.heads;
    return mm_mat_cols(qkv, h->v_first, h->kv_heads * h->head_dim);
}

/* What the products into q, k and v read, and those into gate and up. */
static struct mm_mat input1(const struct mm_model *m, const struct mm_kept_layer *kept,
                            const struct mm_scratch *s, size_t n) {
    return mm_used_rows(m->arch.norm_after ? kept->x_in : kept->y1.data ? kept->y1 : s->y, n);
}
static struct mm_mat input2(const struct mm_model *m, const struct mm_kept_layer *kept,
                            const struct mm_scratch *s, size_t n) {
    return mm_used_rows(m->arch.norm_after ? kept->x_mid : kept->y2.data ? kept->y2 : s->y, n);
}

void mm_layer_input(const struct mm_model *m, const struct mm_acts *acts, struct mm_scratch *s,
                    size_t l, struct mm_mat x, struct mm_mat delta) {
    const struct mm_kept_layer *kept = mm_kept_of(acts, l);
    size_t n = mm_acts_tokens(acts);
    struct mm_mat x_in = mm_used_rows(kept->x_in, n);
    if (!m->arch.norm_after)
        mm_norm_forward(m, x_in, x, delta, &m->layers[l].norm1, input1(m, kept, s, n),
                        kept->stats1);
    else if (delta.data)
        m->dev->ops->add(m->dev, x_in, x, delta);
}

/* q, k and v, the former two normalized where the model does that; not rotated yet. */
static void project(const struct mm_model *m, const struct mm_layer *layer,
                    const struct mm_kept_layer *kept, struct mm_mat qkv, struct mm_mat y) {
    struct mm_mat none = {0}, qk = mm_used_rows(kept->qk, y.rows);
    if (m->arch.qk_norm == MM_QK_PLAIN) {
        linear(m, qkv, y, &layer->qkv, MM_SET);
        return;
    }
    linear(m, qk, y, &layer->qkv, MM_SET);
    linear(m, v_of(m, qkv), y, &layer->v, MM_SET);
    mm_norm_forward(m, none, q_of(m, qk), none, &layer->q_norm, q_of(m, qkv), kept->q_stats);
    mm_norm_forward(m, none, k_of(m, qk), none, &layer->k_norm, k_of(m, qkv), kept->k_stats);
}

enum mm_time { MM_FIRST_TIME, MM_AGAIN };

/* Whether a part of a layer is computed: the first time each is, and again those that no layer has
 * kept for itself. */
static bool computes(enum mm_time time, struct mm_mat part, struct mm_mat work) {
    return time == MM_FIRST_TIME || (part.data && part.data == work.data);
}

/* From x_in to what the products into gate and up read. */
static void attention_branch(const struct mm_model *m, const struct mm_acts *acts,
                             struct mm_scratch *s, size_t l, enum mm_time time) {
    const struct mm_ops *ops = m->dev->ops;
    const struct mm_layer *layer = &m->layers[l];
    const struct mm_kept_layer *kept = mm_kept_of(acts, l), *work = &acts->work;
    size_t n = mm_acts_tokens(acts);
    bool after = m->arch.norm_after, parallel = m->arch.parallel;
    struct mm_mat none = {0}, x_in = mm_used_rows(kept->x_in, n);
    struct mm_mat x_mid = mm_used_rows(kept->x_mid, n), y2 = input2(m, kept, s, n);
    struct mm_mat qkv = mm_used_rows(kept->qkv, n), att = mm_used_rows(kept->att, n);
    struct mm_mat out = mm_acts_delta(acts, s), out1 = after ? mm_used_rows(kept->out1, n) : out;
    bool to_out =
        after ? computes(time, kept->out1, work->out1) : computes(time, kept->x_mid, work->x_mid);

    if (computes(time, kept->qkv, work->qkv)) {
        project(m, layer, kept, qkv, input1(m, kept, s, n));
        ops->rope(m->dev, qkv, &m->arch.heads, acts->T, m->cosine, m->sine, MM_TURN);
    }
    ops->attention(m->dev, att, qkv, kept->lse, &m->arch.heads, acts->T);
    if (to_out)
        linear(m, out1, att, &layer->o, MM_SET);
    if (after) {
        mm_norm_forward(m, none, out1, none, &layer->norm1, out, kept->stats1);
        ops->add(m->dev, x_mid, x_in, out);
    } else if (parallel || !to_out) {
        mm_norm_forward(m, none, parallel ? x_in : x_mid, none, &layer->norm2, y2, kept->stats2);
    } else {
        mm_norm_forward(m, x_mid, x_in, out, &layer->norm2, y2, kept->stats2);
    }
}

/* From there to the layer's output, which nothing reads again but a norm that stands after it. */
static void mlp_branch(const struct mm_model *m, const struct mm_acts *acts, struct mm_scratch *s,
                       size_t l, enum mm_time time) {
    const struct mm_layer *layer = &m->layers[l];
    const struct mm_kept_layer *kept = mm_kept_of(acts, l), *work = &acts->work;
    size_t n = mm_acts_tokens(acts);
    bool after = m->arch.norm_after;
    struct mm_mat none = {0}, u = mm_used_rows(kept->u, n), h = mm_used_rows(s->h, n);
    struct mm_mat out = mm_acts_delta(acts, s), out2 = after ? mm_used_rows(kept->out2, n) : out;
    if (computes(time, kept->u, work->u))
        linear(m, u, input2(m, kept, s, n), &layer->up, MM_SET);
    if (computes(time, kept->out2, work->out2)) {
        m->dev->ops->activate(m->dev, m->arch.activation, h, u);
        linear(m, out2, h, &layer->down, m->arch.parallel ? MM_ADD : MM_SET);
    }
    if (after)
        mm_norm_forward(m, none, out2, none, &layer->norm2, out, kept->stats2);
}

void mm_layer_forward(const struct mm_model *m, const struct mm_acts *acts, struct mm_scratch *s,
                      size_t l, struct mm_mat x, struct mm_mat delta) {
    mm_layer_input(m, acts, s, l, x, delta);
    attention_branch(m, acts, s, l, MM_FIRST_TIME);
    mlp_branch(m, acts, s, l, MM_FIRST_TIME);
}

void mm_layer_again(const struct mm_model *m, const struct mm_acts *acts, struct mm_scratch *s,
                    size_t l) {
    const struct mm_kept_layer *kept = mm_kept_of(acts, l);
    struct mm_mat none = {0}, x_in = mm_used_rows(kept->x_in, mm_acts_tokens(acts));
    if (!m->arch.norm_after)
        mm_norm_forward(m, none, x_in, none, &m->layers[l].norm1, input1(m, kept, s, x_in.rows),
                        kept->stats1);
    attention_branch(m, acts, s, l, MM_AGAIN);
    mlp_branch(m, acts, s, l, MM_AGAIN);
}

/* -- backward ---------------------------------------------------------------------------------- */

static bool wants_linear(const struct mm_backward_pass *b, const struct mm_linear *linear) {
    bool any = false;
    for (size_t i = 0; i < linear->parts_n; i++)
        any |= b->grads[linear->part[i]] || (linear->bias && b->grads[linear->bias_part[i]]);
    return any;
}

static bool wants_norm(const struct mm_backward_pass *b, const struct mm_norm_weights *norm) {
    return b->grads[norm->weight_part] || (norm->has_bias && b->grads[norm->bias_part]);
}

/* Of the products into q, k and v, and the norms between them and the rotation. */
static bool wants_qkv(const struct mm_backward_pass *b, const struct mm_layer *layer) {
    return wants_linear(b, &layer->qkv) || wants_linear(b, &layer->v) ||
           (b->m->arch.qk_norm && (wants_norm(b, &layer->q_norm) || wants_norm(b, &layer->k_norm)));
}

/* Gradients of the parts of a product y = x·wᵀ + bias that are wanted. */
static void linear_grads(const struct mm_backward_pass *b, const struct mm_linear *linear,
                         struct mm_mat dy, struct mm_mat x) {
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

void mm_norm_backward(const struct mm_backward_pass *b, const struct mm_norm_weights *w,
                      struct mm_mat dx, struct mm_mat dy, struct mm_mat x, const float *stats) {
    struct mm_norm how = norm_of(b->m, w);
    b->m->dev->ops->norm_grad(b->m->dev, &how, dx, dy, mm_used_rows(x, b->n), stats,
                              b->grads[w->weight_part],
                              w->has_bias ? b->grads[w->bias_part] : NULL);
}

/* The same of a place that holds nothing yet: dx (=), contiguous. */
static void through_norm(const struct mm_backward_pass *b, const struct mm_norm_weights *w,
                         struct mm_mat dx, struct mm_mat dy, struct mm_mat x, const float *stats) {
    b->m->dev->queue->zero(b->m->dev, dx.data, dx.rows * dx.cols * mm_dtype_bytes(dx.dtype));
    mm_norm_backward(b, w, dx, dy, x, stats);
}

/* From dqkv, turned back, to the input of the products: into `dx` unless its data is NULL. */
static void backward_qkv(const struct mm_backward_pass *b, size_t l, struct mm_mat dqkv,
                         struct mm_mat dx, enum mm_into into) {
    const struct mm_model *m = b->m;
    const struct mm_layer *layer = &m->layers[l];
    const struct mm_kept_layer *kept = mm_kept_of(b->acts, l);
    struct mm_mat y = input1(m, kept, b->s, b->n), dv = v_of(m, dqkv);
    struct mm_mat dqk = mm_used_rows(b->s->dqk, b->n), qk = kept->qk;
    if (m->arch.qk_norm) {
        m->dev->queue->zero(m->dev, dqk.data, b->n * dqk.cols * mm_dtype_bytes(dqk.dtype));
        mm_norm_backward(b, &layer->q_norm, q_of(m, dqk), q_of(m, dqkv), q_of(m, qk),
                         kept->q_stats);
        mm_norm_backward(b, &layer->k_norm, k_of(m, dqk), k_of(m, dqkv), k_of(m, qk),
                         kept->k_stats);
        linear_grads(b, &layer->v, dv, y);
        dqkv = dqk;
    }
    linear_grads(b, &layer->qkv, dqkv, y);
    if (dx.data)
        m->dev->ops->linear_dx(m->dev, dx, dqkv, layer->qkv.w, into);
    if (dx.data && m->arch.qk_norm)
        m->dev->ops->linear_dx(m->dev, dx, dv, layer->v.w, MM_ADD);
}

/* What a layer's backward goes through, from what is wanted. */
struct ways {
    bool qkv, attention, mlp;
};

static struct ways ways_of(const struct mm_backward_pass *b, const struct mm_layer *layer,
                           bool bottom) {
    const struct mm_arch *a = &b->m->arch;
    struct ways w = {.qkv = !bottom || wants_qkv(b, layer)};
    w.qkv |= !a->norm_after && wants_norm(b, &layer->norm1);
    w.attention = w.qkv || wants_linear(b, &layer->o);
    w.attention |= a->norm_after && wants_norm(b, &layer->norm1);
    w.mlp = !bottom || (w.attention && !a->parallel);
    w.mlp |= !a->norm_after && wants_norm(b, &layer->norm2);
    return w;
}

/* dx += the gradient through the MLP and its norm; where the branches are parallel it is left in
 * s->dy, before the norm, since attention's branch needs dx as it is. */
static void backward_mlp(const struct mm_backward_pass *b, size_t l, struct mm_mat dx,
                         struct ways ways) {
    const struct mm_model *m = b->m;
    const struct mm_ops *ops = m->dev->ops;
    const struct mm_layer *layer = &m->layers[l];
    const struct mm_kept_layer *kept = mm_kept_of(b->acts, l);
    struct mm_mat dh = mm_used_rows(b->s->dh, b->n), du = mm_used_rows(b->s->du, b->n);
    struct mm_mat dy = mm_used_rows(b->s->dy, b->n), u = mm_used_rows(kept->u, b->n), dout = dx;
    bool after = m->arch.norm_after;
    if (after) {
        dout = dy;
        through_norm(b, &layer->norm2, dout, dx, kept->out2, kept->stats2);
    }
    if (wants_linear(b, &layer->down)) {
        struct mm_mat h = mm_used_rows(b->s->h, b->n);
        ops->activate(m->dev, m->arch.activation, h, u);
        linear_grads(b, &layer->down, dout, h);
    }
    if (!ways.mlp && !wants_linear(b, &layer->up))
        return;
    ops->linear_dx(m->dev, dh, dout, layer->down.w, MM_SET);
    ops->activate_grad(m->dev, m->arch.activation, du, dh, u);
    linear_grads(b, &layer->up, du, input2(m, kept, b->s, b->n));
    if (ways.mlp)
        ops->linear_dx(m->dev, after ? dx : dy, du, layer->up.w, after ? MM_ADD : MM_SET);
    if (ways.mlp && !after && !m->arch.parallel)
        mm_norm_backward(b, &layer->norm2, dx, dy, kept->x_mid, kept->stats2);
}

void mm_layer_backward(const struct mm_backward_pass *b, size_t l, struct mm_mat dx, bool bottom) {
    const struct mm_model *m = b->m;
    const struct mm_ops *ops = m->dev->ops;
    const struct mm_layer *layer = &m->layers[l];
    const struct mm_kept_layer *kept = mm_kept_of(b->acts, l);
    struct ways ways = ways_of(b, layer, bottom);
    bool after = m->arch.norm_after;
    struct mm_mat none = {0}, dy = mm_used_rows(b->s->dy, b->n), dout = dx;
    struct mm_mat datt = mm_used_rows(b->s->datt, b->n), dqkv = mm_used_rows(b->s->dqkv, b->n);
    struct mm_mat att = mm_used_rows(kept->att, b->n), qkv = mm_used_rows(kept->qkv, b->n);

    backward_mlp(b, l, dx, ways);
    if (after && ways.attention) {
        dout = dy;
        through_norm(b, &layer->norm1, dout, dx, kept->out1, kept->stats1);
    }
    if (ways.attention)
        linear_grads(b, &layer->o, dout, att);
    if (ways.qkv)
        ops->linear_dx(m->dev, datt, dout, layer->o.w, MM_SET);
    if (ways.mlp && m->arch.parallel)
        mm_norm_backward(b, &layer->norm2, dx, dy, kept->x_in, kept->stats2);
    if (!ways.qkv)
        return;
    ops->attention_grad(m->dev, dqkv, datt, att, qkv, kept->lse, &m->arch.heads, b->acts->T);
    ops->rope(m->dev, dqkv, &m->arch.heads, b->acts->T, m->cosine, m->sine, MM_TURN_BACK);
    if (after) {
        backward_qkv(b, l, dqkv, bottom ? none : dx, MM_ADD);
        return;
    }
    bool below = !bottom || wants_norm(b, &layer->norm1);
    backward_qkv(b, l, dqkv, below ? dy : none, MM_SET);
    if (below)
        mm_norm_backward(b, &layer->norm1, dx, dy, kept->x_in, kept->stats1);
}
