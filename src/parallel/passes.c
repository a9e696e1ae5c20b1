/* passes.c - see passes.h. */
#include "src/parallel/passes.h"

#include "kernels/queue.h"

static bool exact(const struct mm_passes *p) {
    return p->model->dev->exact;
}

/* Of micro-batch i. */
static struct mm_loss_term term_of(const struct mm_passes *p, size_t i,
                                   struct mm_objective objective, double *sum,
                                   struct mm_mat dhidden) {
    return (struct mm_loss_term){
        .fn = objective.fn,
        .clip_at = objective.clip_at,
        .beta = objective.beta,
        .gamma = objective.gamma,
        .reference = objective.reference ? objective.reference + mm_share_row(&p->share, i) : NULL,
        .positions = mm_loss_positions(objective.fn, p->batch->counts),
        .sum = sum,
        .dhidden = dhidden};
}

/* The head's own gradient, where it is in the set. */
static float *head_grad(const struct mm_passes *p) {
    return p->shard ? p->shard->grads[p->model->head_part] : NULL;
}

/* Those of the micro-batch that went through `acts`. */
static struct mm_mat rows_of(struct mm_mat mat, const struct mm_acts *acts) {
    return mm_mat_rows(mat, 0, acts->B * acts->T);
}

/* -- hidden states, beside the layers ----------------------------------------------------------
 */

/* What a pass of micro-batches micro ... micro+n-1 does between its layers: with hidden states, and
 * `then`. A forward is of one of them. */
struct visit {
    struct mm_passes *p;
    const struct mm_acts *acts;          /* [n] */
    const struct mm_hidden_loss *states; /* NULL: nothing */
    size_t micro, n;
    double *loss;
    bool awaits; /* a backward: the weights of the layer below may be arriving */
    struct mm_layer_hook then;
};

static size_t first_token(const struct visit *v) {
    return mm_share_row(&v->p->share, v->micro);
}

static void hand_on(const struct visit *v, int layer) {
    if (v->then.call)
        v->then.call(v->then.self, layer);
}

/* State l - 1 is complete when layer l begins. */
static void take_terms(void *self, int layer) {
    const struct visit *v = self;
    if (layer > 0)
        mm_hidden_loss_add_terms(v->states, v->acts, v->p->batch, first_token(v), (size_t)layer - 1,
                                 v->loss);
    hand_on(v, layer);
}

static void keep_state(void *self, int layer) {
    const struct visit *v = self;
    if (layer > 0)
        mm_hidden_loss_keep(v->states, v->acts, first_token(v), (size_t)layer - 1);
    hand_on(v, layer);
}

static void after_layer(void *self, int layer) {
    const struct visit *v = self;
    hand_on(v, layer);
    if (v->awaits)
        mm_shard_await(v->p->shard, layer - 1);
    for (size_t i = 0; v->states && i < v->n; i++)
        mm_hidden_loss_add_gradient(v->states, &v->acts[i], v->p->batch,
                                    mm_share_row(&v->p->share, v->micro + i), (size_t)layer,
                                    mm_acts_gradient(&v->acts[i], &v->p->scratch));
}

/* -- micro-batches ----------------------------------------------------------------------------- */

/* Micro-batches first ... first+n-1 of this rank, which go through the layers together; n may be
 * less than other ranks', or 0. */
struct group {
    size_t first, n;
    struct mm_acts *acts; /* [n], or [1] of which only the shape is read */
};

static struct group group_at(const struct mm_passes *p, size_t first) {
    size_t micros = p->share.micros_n, rest = first < micros ? micros - first : 0;
    struct group g = {.first = first, .n = rest < p->group ? rest : p->group, .acts = p->acts};
    if (g.n && first + g.n <= p->acts_n)
        g.acts += first;
    return g;
}

/* The step behind a group: the same on every rank. */
static size_t end_of(const struct mm_passes *p, size_t first) {
    return first + p->group < p->share.steps ? first + p->group : p->share.steps;
}

/* Whether micro-batch i overwrites the gradients: not only the first where each is a leaf. */
static enum mm_into into(const struct mm_passes *p, size_t i) {
    return exact(p) || i == 0 ? MM_SET : MM_ADD;
}

/* Whether each layer's gradients set off to their owners during this backward: those of the last
 * micro-batch, or in spread layers of any, for there they have no memory to stay in. A rank beyond
 * the batch sends as the others do: the same tensors in the same order. */
static bool departs(const struct mm_passes *p, struct group g) {
    bool last = g.first + g.n == p->share.micros_n && (g.n || g.first == 0);
    return p->model->source || (!exact(p) && last);
}

static void backward(struct mm_passes *p, struct group g, const struct mm_hidden_loss *states,
                     bool awaits) {
    struct visit visit = {
        .p = p, .acts = g.acts, .states = states, .micro = g.first, .n = g.n, .awaits = awaits};
    struct mm_layer_hook hook = {.call = after_layer, .self = &visit};
    float *const *grads = p->shard->grads;
    mm_comm_pass(p->comm);
    if (departs(p, g))
        visit.then = mm_shard_departures(p->shard);
    else if (g.n == 0)
        return;
    if (awaits)
        mm_shard_await(p->shard, (int)p->model->arch.layers - 1);
    mm_backward_layers(p->model, g.acts, g.n, &p->scratch, grads, into(p, g.first),
                       states || awaits ? hook : visit.then);
}

/* Before it: from the hidden states of one micro-batch to the top of the layers. */
static void backward_begin(struct mm_passes *p, const struct mm_acts *acts, struct mm_mat dhidden) {
    mm_backward_begin(p->model, acts, &p->scratch, dhidden, p->shard->grads);
}

/* After it: into the embedding. */
static void backward_end(struct mm_passes *p, const struct mm_acts *acts) {
    mm_backward_end(p->model, acts, &p->scratch, p->shard->grads);
}

static void begin(struct mm_passes *p, struct mm_acts *acts, const struct mm_batch *batch,
                  size_t i) {
    mm_acts_begin(acts, batch->tokens + mm_share_row(&p->share, i), mm_share_count(&p->share, i),
                  batch->longest[i]);
}

static struct mm_layer_hook arrivals(const struct mm_passes *p) {
    struct mm_layer_hook none = {0};
    return p->shard ? mm_shard_arrivals(p->shard) : none;
}

/* A rank whose micro-batches are done has nothing to do here, but for spread layers. */
static void forward(struct mm_passes *p, struct group g, const struct mm_batch *batch) {
    mm_comm_pass(p->comm);
    if (g.n == 0 && p->share.micros_n && !p->model->source)
        return;
    for (size_t i = 0; i < g.n; i++)
        begin(p, &g.acts[i], batch, g.first + i);
    mm_forward_group(p->model, g.acts, g.n, &p->scratch, arrivals(p));
}

/* One micro-batch, whose terms of the hidden states are added to `loss`. */
static void forward_states(struct mm_passes *p, struct mm_acts *acts, const struct mm_batch *batch,
                           size_t i, const struct mm_hidden_loss *states, double *loss) {
    struct visit visit = {.p = p,
                          .acts = acts,
                          .states = states,
                          .micro = i,
                          .n = 1,
                          .loss = loss,
                          .then = arrivals(p)};
    struct mm_layer_hook hook = {.call = take_terms, .self = &visit};
    mm_comm_pass(p->comm);
    begin(p, acts, batch, i);
    mm_forward_group(p->model, acts, 1, &p->scratch, hook);
    mm_hidden_loss_add_terms(states, acts, batch, first_token(&visit), p->model->arch.layers - 1,
                             loss);
}

/* Step i of a group by itself. */
static void forward_step(struct mm_passes *p, struct group g, const struct mm_batch *batch,
                         size_t i, const struct mm_hidden_loss *states, double *loss) {
    struct group nothing = {.first = i, .acts = g.acts};
    if (i < g.first + g.n)
        forward_states(p, &g.acts[i - g.first], batch, i, states, loss);
    else
        forward(p, nothing, batch);
}

void mm_passes_keep_states(struct mm_passes *p, const struct mm_batch *batch,
                           const struct mm_hidden_loss *r) {
    if (!mm_hidden_loss_compares(r) || r->first == r->end)
        return;
    struct mm_acts *acts = &p->acts[0];
    p->batch = batch;
    for (size_t i = 0; i < p->share.steps; i++) {
        struct visit visit = {
            .p = p, .acts = acts, .states = r, .micro = i, .n = 1, .then = arrivals(p)};
        struct mm_layer_hook hook = {.call = keep_state, .self = &visit};
        mm_comm_pass(p->comm);
        if (i >= p->share.micros_n) {
            mm_forward_none(p->model, r->end - 1);
            continue;
        }
        mm_forward_to(p->model, acts, &p->scratch, batch->tokens + mm_share_row(&p->share, i),
                      mm_share_count(&p->share, i), batch->longest[i], r->end - 1, hook);
        mm_hidden_loss_keep(r, acts, first_token(&visit), r->end - 1);
    }
}

static void losses(struct mm_passes *p, const struct mm_acts *acts, const struct mm_batch *batch,
                   size_t i, const struct mm_loss_term *terms, size_t terms_n, float *dhead) {
    mm_head_losses(p->model, &p->head, acts, batch->targets + mm_share_row(&p->share, i), terms,
                   terms_n, dhead, into(p, i));
}

/* -- around the steps -------------------------------------------------------------------------- */

static void grown_step(struct mm_passes *p, size_t i) {
    mm_grown_step(&p->grown, mm_share_leaves(&p->share, i));
}

/* The gradient, around the backward of step i. */
static void reduce_begin(const struct mm_passes *p, size_t i, struct mm_vector g) {
    if (exact(p))
        mm_shard_reduce_leaves_begin(p->shard, g, (int)mm_share_leaves(&p->share, i),
                                     i == 0 ? MM_SET : MM_ADD);
    else if (i == 0)
        mm_shard_reduce_begin(p->shard, g);
}

/* `end`: the step behind the group. */
static void reduce_end(const struct mm_passes *p, size_t end) {
    if (exact(p) || end == p->share.steps)
        mm_shard_reduce_end(p->shard);
}

/* -- losses over the batch --------------------------------------------------------------------- */

static bool on_logits(struct mm_objective objective) {
    return mm_loss_on_logits(objective.fn);
}

static bool has_sums(struct mm_objective objective) {
    return objective.states && objective.states->sums;
}

static size_t sums_n(struct mm_objective objective) {
    return objective.states->end - objective.states->first;
}

/* The loss of all ranks, from its sums where it has any. */
static void add_sums(struct mm_passes *p, struct mm_objective objective, double *loss) {
    if (!has_sums(objective))
        return;
    mm_comm_sum_waiting(p->comm);
    p->model->dev->ops->add_squares(p->model->dev, loss, objective.states->sums, sums_n(objective));
}

void mm_passes_loss(struct mm_passes *p, const struct mm_batch *batch,
                    struct mm_objective objective, double *loss, float *terms) {
    struct mm_mat none = {0};
    MM_CHECK(on_logits(objective) && !objective.states, "a loss on hidden states");
    p->batch = batch;
    mm_grown_begin(&p->grown, loss, 1);
    for (size_t first = 0; first < p->share.steps; first = end_of(p, first)) {
        struct group g = group_at(p, first);
        forward(p, g, batch);
        for (size_t i = first; i < end_of(p, first); i++) {
            struct mm_loss_term term = term_of(p, i, objective, loss, none);
            if (i - first < g.n)
                losses(p, &g.acts[i - first], batch, i, &term, 1, NULL);
            if (i - first < g.n && terms)
                mm_head_keep(p->model, &p->head, &g.acts[i - first],
                             terms + mm_share_row(&p->share, i));
            grown_step(p, i);
        }
    }
    mm_grown_end(&p->grown);
    mm_comm_sum_waiting(p->comm);
}

void mm_passes_keep_terms(struct mm_passes *p, const struct mm_batch *batch, float *terms) {
    p->batch = batch;
    for (size_t first = 0; first < p->share.steps; first = end_of(p, first)) {
        struct group g = group_at(p, first);
        forward(p, g, batch);
        for (size_t i = 0; i < g.n; i++) {
            size_t row = mm_share_row(&p->share, first + i);
            mm_head_terms(p->model, &p->head, &g.acts[i], batch->targets + row, terms + row);
        }
    }
}

void mm_passes_see_logits(struct mm_passes *p, const struct mm_batch *batch, mm_see_logits *see,
                          void *self) {
    p->batch = batch;
    for (size_t first = 0; first < p->share.steps; first = end_of(p, first)) {
        struct group g = group_at(p, first);
        forward(p, g, batch);
        for (size_t i = 0; i < g.n; i++)
            mm_head_logits(p->model, &p->head, &g.acts[i], mm_share_row(&p->share, first + i), see,
                           self);
    }
}

/* Where the gradient needs sums over the whole batch: those. A single group's activations stay for
 * the backward. */
static void complete_sums(struct mm_passes *p, const struct mm_batch *batch,
                          struct mm_objective objective, double *loss) {
    mm_grown_begin(&p->grown, objective.states->sums, sums_n(objective));
    for (size_t i = 0; i < p->share.steps; i++) {
        forward_step(p, group_at(p, i / p->group * p->group), batch, i, objective.states, loss);
        grown_step(p, i);
    }
    mm_grown_end(&p->grown);
    mm_comm_sum_waiting(p->comm);
}

/* Head and embedding are one tensor, and several micro-batches go through the layers together: its
 * gradient grows by the head's part of each just before the embedding's, as it does one by one. */
static bool head_is_late(const struct mm_passes *p) {
    return p->group > 1 && head_grad(p) && p->model->head_part == p->model->embed_part;
}

static void late_head(struct mm_passes *p, const struct mm_acts *acts, const struct mm_batch *batch,
                      size_t i, struct mm_objective objective) {
    struct mm_mat dhidden = rows_of(p->dhidden_now, acts);
    struct mm_loss_term term = term_of(p, i, objective, NULL, dhidden);
    losses(p, acts, batch, i, &term, 1, head_grad(p));
}

/* The losses on logits of micro-batch i; the gradient of the objective's by the hidden states is
 * returned, absent where it has none. */
static struct mm_mat logit_losses(struct mm_passes *p, const struct mm_acts *acts,
                                  const struct mm_batch *batch, size_t i,
                                  struct mm_objective objective, double *loss,
                                  double *cross_entropy) {
    struct mm_objective plain = {.fn = MM_LOSS_CROSS_ENTROPY};
    struct mm_mat none = {0}, dhidden = rows_of(p->dhidden_now, acts);
    struct mm_loss_term terms[2] = {term_of(p, i, plain, cross_entropy, none),
                                    term_of(p, i, objective, loss, dhidden)};
    size_t first = cross_entropy ? 0 : 1, end = on_logits(objective) ? 2 : 1;
    float *dhead = cross_entropy || head_is_late(p) ? NULL : head_grad(p);
    if (first < end)
        losses(p, acts, batch, i, terms + first, end - first, dhead);
    else if (dhead && into(p, i) == MM_SET)
        p->model->dev->queue->zero(p->model->dev, dhead,
                                   p->model->arch.vocab * p->model->arch.width * sizeof *dhead);
    return on_logits(objective) ? dhidden : none;
}

void mm_passes_gradient(struct mm_passes *p, const struct mm_batch *batch,
                        struct mm_objective objective, struct mm_vector gradient, double *loss,
                        double *cross_entropy) {
    bool summed = has_sums(objective), forward_done = summed && p->share.steps <= p->group;
    const struct mm_hidden_loss *states = summed ? NULL : objective.states;
    MM_CHECK(!cross_entropy || !head_grad(p), "the head's gradient is of one loss");
    p->batch = batch;
    if (summed)
        complete_sums(p, batch, objective, loss);
    mm_grown_begin(&p->grown, loss, 1);
    if (cross_entropy)
        mm_grown_begin(&p->grown, cross_entropy, 1);
    for (size_t first = 0; first < p->share.steps; first = end_of(p, first)) {
        struct group g = group_at(p, first);
        reduce_begin(p, first, gradient);
        if (!forward_done && !states)
            forward(p, g, batch);
        for (size_t i = first; i < end_of(p, first); i++) {
            if (states)
                forward_step(p, g, batch, i, states, loss);
            if (i < first + g.n)
                backward_begin(
                    p, &g.acts[i - first],
                    logit_losses(p, &g.acts[i - first], batch, i, objective, loss, cross_entropy));
        }
        backward(p, g, objective.states, false);
        for (size_t i = 0; i < g.n; i++) {
            if (head_is_late(p))
                late_head(p, &g.acts[i], batch, first + i, objective);
            backward_end(p, &g.acts[i]);
        }
        reduce_end(p, end_of(p, first));
        grown_step(p, first);
    }
    mm_grown_end(&p->grown);
    add_sums(p, objective, loss);
}

/* The negative of cross-entropy has the negated gradient at the head: no second product there. */
static void held_losses(struct mm_passes *p, const struct mm_acts *acts,
                        const struct mm_batch *batch, size_t i, struct mm_objective second,
                        struct mm_mat dhidden, double *loss, double *second_loss) {
    struct mm_device *dev = p->model->dev;
    struct mm_objective first = {.fn = MM_LOSS_CROSS_ENTROPY};
    struct mm_mat held = mm_mat_rows(p->dhidden[i], 0, dhidden.rows);
    struct mm_loss_term terms[2] = {term_of(p, i, first, loss, dhidden),
                                    term_of(p, i, second, second_loss, held)};
    bool negated = second.fn == MM_LOSS_NEG_CROSS_ENTROPY;
    losses(p, acts, batch, i, terms, negated || !on_logits(second) ? 1 : 2, NULL);
    if (negated)
        dev->ops->scale(dev, held, dhidden, -1.0f);
}

void mm_passes_gradient_held(struct mm_passes *p, const struct mm_batch *batch,
                             struct mm_objective second, struct mm_vector gradient, double *loss,
                             double *second_loss) {
    MM_CHECK(p->acts_n >= p->share.micros_n, "activations are not held");
    MM_CHECK(!head_grad(p), "the head's gradient is of one loss");
    bool negated = second.fn == MM_LOSS_NEG_CROSS_ENTROPY;
    p->held = second;
    p->batch = batch;
    mm_grown_begin(&p->grown, loss, 1);
    if (!negated)
        mm_grown_begin(&p->grown, second_loss, 1);
    if (has_sums(second))
        mm_grown_begin(&p->grown, second.states->sums, sums_n(second));
    for (size_t first = 0; first < p->share.steps; first = end_of(p, first)) {
        struct group g = group_at(p, first);
        reduce_begin(p, first, gradient);
        if (!second.states)
            forward(p, g, batch);
        for (size_t i = first; i < end_of(p, first); i++) {
            if (second.states)
                forward_step(p, g, batch, i, second.states, second_loss);
            if (i >= first + g.n)
                continue;
            struct mm_acts *acts = &g.acts[i - first];
            struct mm_mat dhidden = rows_of(p->dhidden_now, acts);
            held_losses(p, acts, batch, i, second, dhidden, loss, second_loss);
            backward_begin(p, acts, dhidden);
        }
        backward(p, g, NULL, false);
        reduce_end(p, end_of(p, first));
        grown_step(p, first);
    }
    mm_grown_end(&p->grown);
    if (negated)
        p->model->dev->ops->scale_scalar(p->model->dev, second_loss, loss, -1.0);
    else
        add_sums(p, second, second_loss);
    if (negated && !exact(p))
        mm_comm_sum_later(p->comm, second_loss, 1); /* as `loss`, which waits too */
}

void mm_passes_second_gradient(struct mm_passes *p, struct mm_vector gradient) {
    struct mm_mat none = {0};
    if (p->share.micros_n == 0)
        mm_shard_store_end(p->shard); /* no layer of its own to wait at */
    for (size_t first = 0; first < p->share.steps; first = end_of(p, first)) {
        struct group g = group_at(p, first);
        reduce_begin(p, first, gradient);
        for (size_t i = 0; i < g.n; i++)
            backward_begin(p, &g.acts[i],
                           on_logits(p->held) ? rows_of(p->dhidden[first + i], &g.acts[i]) : none);
        backward(p, g, p->held.states, true);
        reduce_end(p, end_of(p, first));
    }
}
