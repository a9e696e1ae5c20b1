/* passes.c - see passes.h. */
#include "src/parallel/passes.h"

#include <string.h>

#include "kernels/queue.h"

static bool exact(const struct mm_passes *p) {
    return p->model->dev->exact;
}

struct mm_passes *mm_passes_create(struct mm_arena *arena, struct mm_comm *comm,
                                   struct mm_model *model, struct mm_shard *shard,
                                   struct mm_batch_size size, enum mm_passes_kind kind) {
    bool held = kind == MM_PASSES_HELD;
    struct mm_passes *p = mm_calloc(1, sizeof *p);
    *p = (struct mm_passes){.comm = comm, .model = model, .shard = shard};
    p->share = mm_share_of(comm, exact(p), size);
    p->acts_n = held ? p->share.micros_n : 1;
    p->acts = mm_calloc(p->acts_n, sizeof *p->acts);
    p->dhidden = mm_calloc(p->acts_n, sizeof *p->dhidden);
    size_t n = p->share.micro_batch * size.T, C = model->arch.width;
    bool *wanted = mm_calloc(model->params_n, sizeof *wanted);
    for (size_t i = 0; shard && i < model->params_n; i++)
        wanted[i] = shard->grads[i] != NULL;
    for (size_t i = 0; i < p->acts_n; i++) {
        mm_acts_create(&p->acts[i], arena, model, n, shard ? wanted : NULL);
        if (held)
            p->dhidden[i] = mm_arena_mat(arena, MM_FOR_ACTIVATIONS, model->dtype, n, C);
    }
    mm_free(wanted);
    if (shard)
        p->dhidden_now = mm_arena_mat(arena, MM_FOR_SCRATCH, model->dtype, n, C);
    mm_scratch_create(&p->scratch, arena, model, n, shard ? MM_WITH_BACKWARD : MM_FORWARD_ONLY);
    mm_head_create(&p->head, arena, model, n, held ? MM_TWO_LOSSES : MM_ONE_LOSS);
    return p;
}

void mm_passes_free(struct mm_passes *p) {
    if (!p)
        return;
    for (size_t i = 0; i < p->acts_n; i++)
        mm_acts_free(&p->acts[i]);
    mm_free(p->acts);
    mm_free(p->dhidden);
    mm_free(p);
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
        .global_batch = p->share.batch_size,
        .sum = sum,
        .dhidden = dhidden};
}

/* The head's own gradient, where it is in the set. */
static float *head_grad(const struct mm_passes *p) {
    return p->shard ? p->shard->grads[p->model->head_part] : NULL;
}

static struct mm_mat rows_of(const struct mm_passes *p, struct mm_mat mat, size_t sequences) {
    return mm_mat_rows(mat, 0, sequences * p->share.T);
}

/* -- hidden states, beside the layers ----------------------------------------------------------
 */

/* What a pass of micro-batch `micro` does between its layers: with hidden states, and `then`. */
struct visit {
    struct mm_passes *p;
    const struct mm_acts *acts;
    const struct mm_hidden_loss *states; /* NULL: nothing */
    size_t micro;
    double *loss;
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
        mm_hidden_loss_add_terms(v->states, v->acts, first_token(v), (size_t)layer - 1, v->loss);
    hand_on(v, layer);
}

static void keep_state(void *self, int layer) {
    const struct visit *v = self;
    if (layer > 0)
        mm_hidden_loss_keep(v->states, v->acts, first_token(v), (size_t)layer - 1);
    hand_on(v, layer);
}

static void add_gradient(void *self, int layer) {
    const struct visit *v = self;
    struct mm_mat dx = rows_of(v->p, v->p->scratch.dx, v->acts->B);
    hand_on(v, layer);
    mm_hidden_loss_add_gradient(v->states, v->acts, first_token(v), (size_t)layer, dx);
}

/* -- one micro-batch --------------------------------------------------------------------------- */

/* Whether micro-batch i overwrites the gradients: not only the first where each is a leaf. */
static enum mm_into into(const struct mm_passes *p, size_t i) {
    return exact(p) || i == 0 ? MM_SET : MM_ADD;
}

/* The gradients of one micro-batch; with the last one each layer's set off to their owners. */
static void backward(struct mm_passes *p, size_t i, const struct mm_acts *acts,
                     struct mm_mat dhidden, const struct mm_hidden_loss *states) {
    struct visit visit = {.p = p, .acts = acts, .states = states, .micro = i};
    struct mm_layer_hook hook = {.call = add_gradient, .self = &visit};
    mm_comm_pass(p->comm);
    if (i + 1 == p->share.micros_n && !exact(p))
        visit.then = mm_shard_departures(p->shard);
    mm_backward(p->model, acts, &p->scratch, dhidden, p->shard->grads, into(p, i),
                states ? hook : visit.then);
}

static const uint32_t *tokens_of(const struct mm_passes *p, const struct mm_batch *batch,
                                 size_t i) {
    return batch->tokens + mm_share_row(&p->share, i);
}

static struct mm_layer_hook arrivals(const struct mm_passes *p) {
    struct mm_layer_hook none = {0};
    return p->shard ? mm_shard_arrivals(p->shard) : none;
}

/* states NULL: no terms are taken. */
static void forward(struct mm_passes *p, struct mm_acts *acts, const struct mm_batch *batch,
                    size_t i, const struct mm_hidden_loss *states, double *loss) {
    struct visit visit = {
        .p = p, .acts = acts, .states = states, .micro = i, .loss = loss, .then = arrivals(p)};
    struct mm_layer_hook hook = {.call = take_terms, .self = &visit};
    mm_comm_pass(p->comm);
    mm_forward(p->model, acts, &p->scratch, tokens_of(p, batch, i), mm_share_count(&p->share, i),
               p->share.T, states ? hook : visit.then);
    if (states)
        mm_hidden_loss_add_terms(states, acts, first_token(&visit), p->model->arch.layers - 1,
                                 loss);
}

void mm_passes_keep_states(struct mm_passes *p, const struct mm_batch *batch,
                           const struct mm_hidden_loss *r) {
    if (!mm_hidden_loss_compares(r) || r->first == r->end)
        return;
    struct mm_acts *acts = &p->acts[0];
    for (size_t i = 0; i < p->share.micros_n; i++) {
        struct visit visit = {.p = p, .acts = acts, .states = r, .micro = i, .then = arrivals(p)};
        struct mm_layer_hook hook = {.call = keep_state, .self = &visit};
        mm_comm_pass(p->comm);
        mm_forward_to(p->model, acts, &p->scratch, tokens_of(p, batch, i),
                      mm_share_count(&p->share, i), p->share.T, r->end - 1, hook);
        mm_hidden_loss_keep(r, acts, first_token(&visit), r->end - 1);
    }
}

static void losses(struct mm_passes *p, const struct mm_acts *acts, const struct mm_batch *batch,
                   size_t i, const struct mm_loss_term *terms, size_t terms_n, float *dhead) {
    mm_head_losses(p->model, &p->head, acts, batch->targets + mm_share_row(&p->share, i), terms,
                   terms_n, dhead, into(p, i));
}

/* -- sums over the batch ----------------------------------------------------------------------- */

/* values [n] are zero now and grow until grown_end. */
static void grow(struct mm_passes *p, double *values, size_t n) {
    struct mm_grown *g = &p->grown[p->grown_n++];
    *g = (struct mm_grown){values, n, exact(p) ? mm_calloc(n, sizeof(double)) : NULL};
    p->model->dev->queue->zero(p->model->dev, values, n * sizeof *values);
}

/* Of an exact step: totals += values of each rank that had a leaf, one after the other. */
static void add_leaves(const struct mm_passes *p, const struct mm_grown *g, size_t leaves) {
    size_t bytes = g->n * sizeof *g->values;
    double *all = mm_calloc((size_t)mm_comm_size(p->comm), bytes);
    mm_comm_gather_all(p->comm, g->values, bytes, all);
    for (size_t r = 0; r < leaves; r++)
        for (size_t i = 0; i < g->n; i++)
            g->totals[i] += all[r * g->n + i];
    memset(g->values, 0, bytes);
    mm_free(all);
}

/* Step i is done: what its leaves, if any, have to add. */
static void grown_step(const struct mm_passes *p, size_t i) {
    for (size_t k = 0; k < p->grown_n && exact(p); k++)
        add_leaves(p, &p->grown[k], mm_share_leaves(&p->share, i));
}

/* What has grown is summed over all ranks. */
static void grown_end(struct mm_passes *p) {
    for (struct mm_grown *g = p->grown; g < p->grown + p->grown_n; g++) {
        if (g->totals)
            memcpy(g->values, g->totals, g->n * sizeof *g->values);
        else
            mm_comm_sum_device(p->comm, g->values, g->n);
        mm_free(g->totals);
    }
    p->grown_n = 0;
}

/* The gradient, around the backward of step i. */
static void reduce_begin(const struct mm_passes *p, size_t i, struct mm_vector g) {
    if (exact(p))
        mm_shard_reduce_leaves_begin(p->shard, g, (int)mm_share_leaves(&p->share, i),
                                     i == 0 ? MM_SET : MM_ADD);
    else if (i == 0)
        mm_shard_reduce_begin(p->shard, g);
}

static void reduce_end(const struct mm_passes *p, size_t i) {
    if (exact(p) || i + 1 == p->share.steps)
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
    if (has_sums(objective))
        p->model->dev->ops->add_squares(p->model->dev, loss, objective.states->sums,
                                        sums_n(objective));
}

void mm_passes_loss(struct mm_passes *p, const struct mm_batch *batch,
                    struct mm_objective objective, double *loss) {
    struct mm_mat none = {0};
    MM_CHECK(on_logits(objective) && !objective.states, "a loss on hidden states");
    grow(p, loss, 1);
    for (size_t i = 0; i < p->share.steps; i++) {
        if (i < p->share.micros_n) {
            struct mm_loss_term term = term_of(p, i, objective, loss, none);
            forward(p, &p->acts[0], batch, i, NULL, NULL);
            losses(p, &p->acts[0], batch, i, &term, 1, NULL);
        }
        grown_step(p, i);
    }
    grown_end(p);
}

void mm_passes_keep_terms(struct mm_passes *p, const struct mm_batch *batch, float *terms) {
    for (size_t i = 0; i < p->share.micros_n; i++) {
        size_t row = mm_share_row(&p->share, i);
        forward(p, &p->acts[0], batch, i, NULL, NULL);
        mm_head_terms(p->model, &p->head, &p->acts[0], batch->targets + row, terms + row);
    }
}

/* Where the gradient needs sums over the whole batch: those. A single micro-batch's activations
 * stay for the backward. */
static void complete_sums(struct mm_passes *p, const struct mm_batch *batch,
                          struct mm_objective objective, double *loss) {
    grow(p, objective.states->sums, sums_n(objective));
    for (size_t i = 0; i < p->share.steps; i++) {
        if (i < p->share.micros_n)
            forward(p, &p->acts[0], batch, i, objective.states, loss);
        grown_step(p, i);
    }
    grown_end(p);
}

/* The losses on logits of a micro-batch; the gradient of the objective's by the hidden states is
 * returned, absent where it has none. */
static struct mm_mat logit_losses(struct mm_passes *p, const struct mm_batch *batch, size_t i,
                                  struct mm_objective objective, double *loss,
                                  double *cross_entropy) {
    struct mm_objective plain = {.fn = MM_LOSS_CROSS_ENTROPY};
    struct mm_mat none = {0}, dhidden = rows_of(p, p->dhidden_now, mm_share_count(&p->share, i));
    struct mm_loss_term terms[2] = {term_of(p, i, plain, cross_entropy, none),
                                    term_of(p, i, objective, loss, dhidden)};
    size_t first = cross_entropy ? 0 : 1, end = on_logits(objective) ? 2 : 1;
    float *dhead = cross_entropy ? NULL : head_grad(p);
    if (first < end)
        losses(p, &p->acts[0], batch, i, terms + first, end - first, dhead);
    else if (dhead && into(p, i) == MM_SET)
        p->model->dev->queue->zero(p->model->dev, dhead,
                                   p->model->arch.vocab * p->model->arch.width * sizeof *dhead);
    return on_logits(objective) ? dhidden : none;
}

void mm_passes_gradient(struct mm_passes *p, const struct mm_batch *batch,
                        struct mm_objective objective, struct mm_vector g, double *loss,
                        double *cross_entropy) {
    bool summed = has_sums(objective), forward_done = summed && p->share.micros_n == 1;
    MM_CHECK(!cross_entropy || !head_grad(p), "the head's gradient is of one loss");
    if (summed)
        complete_sums(p, batch, objective, loss);
    grow(p, loss, 1);
    if (cross_entropy)
        grow(p, cross_entropy, 1);
    for (size_t i = 0; i < p->share.steps; i++) {
        reduce_begin(p, i, g);
        if (i < p->share.micros_n) {
            if (!forward_done)
                forward(p, &p->acts[0], batch, i, summed ? NULL : objective.states, loss);
            struct mm_mat dhidden = logit_losses(p, batch, i, objective, loss, cross_entropy);
            backward(p, i, &p->acts[0], dhidden, objective.states);
        }
        reduce_end(p, i);
        grown_step(p, i);
    }
    grown_end(p);
    add_sums(p, objective, loss);
}

/* The negative of cross-entropy has the negated gradient at the head: no second product there. */
static void held_losses(struct mm_passes *p, const struct mm_batch *batch, size_t i,
                        struct mm_objective second, struct mm_mat dhidden, double *loss,
                        double *second_loss) {
    struct mm_device *dev = p->model->dev;
    struct mm_objective first = {.fn = MM_LOSS_CROSS_ENTROPY};
    struct mm_mat held = mm_mat_rows(p->dhidden[i], 0, dhidden.rows);
    struct mm_loss_term terms[2] = {term_of(p, i, first, loss, dhidden),
                                    term_of(p, i, second, second_loss, held)};
    bool negated = second.fn == MM_LOSS_NEG_CROSS_ENTROPY;
    losses(p, &p->acts[i], batch, i, terms, negated || !on_logits(second) ? 1 : 2, NULL);
    if (negated)
        dev->ops->scale(dev, held, dhidden, -1.0f);
}

void mm_passes_gradient_held(struct mm_passes *p, const struct mm_batch *batch,
                             struct mm_objective second, struct mm_vector g, double *loss,
                             double *second_loss) {
    MM_CHECK(p->acts_n == p->share.micros_n, "activations are not held");
    MM_CHECK(!head_grad(p), "the head's gradient is of one loss");
    bool negated = second.fn == MM_LOSS_NEG_CROSS_ENTROPY;
    p->held = second;
    grow(p, loss, 1);
    if (!negated)
        grow(p, second_loss, 1);
    if (has_sums(second))
        grow(p, second.states->sums, sums_n(second));
    for (size_t i = 0; i < p->share.steps; i++) {
        reduce_begin(p, i, g);
        if (i < p->share.micros_n) {
            struct mm_mat dhidden = rows_of(p, p->dhidden_now, mm_share_count(&p->share, i));
            forward(p, &p->acts[i], batch, i, second.states, second_loss);
            held_losses(p, batch, i, second, dhidden, loss, second_loss);
            backward(p, i, &p->acts[i], dhidden, NULL);
        }
        reduce_end(p, i);
        grown_step(p, i);
    }
    grown_end(p);
    if (negated)
        p->model->dev->ops->scale_scalar(p->model->dev, second_loss, loss, -1.0);
    else
        add_sums(p, second, second_loss);
}

void mm_passes_second_gradient(struct mm_passes *p, struct mm_vector g) {
    struct mm_mat none = {0};
    mm_shard_store_end(p->shard);
    for (size_t i = 0; i < p->share.steps; i++) {
        reduce_begin(p, i, g);
        if (i < p->share.micros_n)
            backward(p, i, &p->acts[i],
                     on_logits(p->held) ? rows_of(p, p->dhidden[i], mm_share_count(&p->share, i))
                                        : none,
                     p->held.states);
        reduce_end(p, i);
    }
}
