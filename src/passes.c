/* passes.c - see passes.h. */
#include "src/passes.h"

#include <string.h>

/* Consecutive sequences; the first ranks take one more where they don't divide. */
static void share_of(struct mm_passes *p) {
    size_t R = (size_t)mm_comm_size(p->comm), r = (size_t)mm_comm_rank(p->comm);
    size_t even = p->batch_size / R, more = p->batch_size % R;
    p->first = r * even + (r < more ? r : more);
    p->share = even + (r < more);
}

struct mm_passes *mm_passes_create(struct mm_arena *arena, struct mm_comm *comm,
                                   struct mm_model *model, struct mm_shard *shard,
                                   size_t batch_size, size_t micro_batch, size_t T, bool hold) {
    struct mm_passes *p = mm_calloc(1, sizeof *p);
    *p = (struct mm_passes){
        .comm = comm, .model = model, .shard = shard, .batch_size = batch_size, .T = T};
    share_of(p);
    p->micro_batch = micro_batch < p->share ? micro_batch : p->share;
    p->micros_n = (p->share + p->micro_batch - 1) / p->micro_batch;
    p->acts_n = hold ? p->micros_n : 1;
    p->acts = mm_calloc(p->acts_n, sizeof *p->acts);
    p->dhidden = mm_calloc(p->acts_n, sizeof *p->dhidden);
    size_t n = p->micro_batch * T, C = model->arch.width;
    bool *wanted = mm_calloc(model->params_n, sizeof *wanted);
    for (size_t i = 0; shard && i < model->params_n; i++)
        wanted[i] = shard->grads[i] != NULL;
    for (size_t i = 0; i < p->acts_n; i++) {
        mm_acts_create(&p->acts[i], arena, model, n, shard ? wanted : NULL);
        if (hold)
            p->dhidden[i] = mm_arena_mat(arena, MM_FOR_ACTIVATIONS, model->dtype, n, C);
    }
    mm_free(wanted);
    if (shard)
        p->dhidden_now = mm_arena_mat(arena, MM_FOR_SCRATCH, model->dtype, n, C);
    mm_scratch_create(&p->scratch, arena, model, n, shard != NULL);
    mm_head_create(&p->head, arena, model, n, hold);
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

void mm_batch_create(struct mm_batch *b, struct mm_arena *arena, const struct mm_passes *p) {
    *b = (struct mm_batch){.dev = p->model->dev, .n = p->share * p->T, .T = p->T};
    b->tokens = mm_arena_take(arena, MM_FOR_SCRATCH, 2 * b->n, sizeof *b->tokens);
    b->targets = b->tokens + b->n;
    for (int i = 0; i < 2 && !mm_arena_dry(arena); i++)
        b->host[i] = b->dev->ops->pinned_alloc(b->dev, 2 * b->n * sizeof *b->host[i]);
}

void mm_batch_free(struct mm_batch *b) {
    for (int i = 0; i < 2; i++)
        if (b->host[i])
            b->dev->ops->pinned_free(b->dev, b->host[i]);
    *b = (struct mm_batch){0};
}

void mm_batch_set(struct mm_batch *b, int slot, const uint32_t *tokens) {
    uint32_t *host = b->host[slot], *next = host + b->n;
    memcpy(host, tokens, b->n * sizeof *host);
    for (size_t i = 0; i < b->n; i++)
        next[i] = (i + 1) % b->T ? tokens[i + 1] : UINT32_MAX;
    b->dev->ops->upload(b->dev, b->tokens, host, 2 * b->n * sizeof *host);
}

/* Sequences of micro-batch i. */
static size_t micro_count(const struct mm_passes *p, size_t i) {
    size_t left = p->share - i * p->micro_batch;
    return left < p->micro_batch ? left : p->micro_batch;
}

static void zero_scalar(const struct mm_passes *p, double *scalar) {
    p->model->dev->ops->zero(p->model->dev, scalar, sizeof *scalar);
}

static struct mm_loss_term term_of(const struct mm_passes *p, struct mm_objective objective,
                                   double *sum, struct mm_mat dhidden) {
    return (struct mm_loss_term){.fn = objective.fn,
                                 .clip_at = objective.clip_at,
                                 .global_batch = p->batch_size,
                                 .sum = sum,
                                 .dhidden = dhidden};
}

/* The head's own gradient, where it is in the set. */
static float *head_grad(const struct mm_passes *p) {
    return p->shard ? p->shard->grads[p->model->head_part] : NULL;
}

static struct mm_mat rows_of(const struct mm_passes *p, struct mm_mat mat, size_t sequences) {
    return mm_mat_rows(mat, 0, sequences * p->T);
}

/* The gradients of one micro-batch; with the last one each layer's set off to their owners. */
static void backward(struct mm_passes *p, size_t i, const struct mm_acts *acts,
                     struct mm_mat dhidden) {
    struct mm_layer_hook none = {0};
    mm_backward(p->model, acts, &p->scratch, dhidden, p->shard->grads, i == 0,
                i + 1 == p->micros_n ? mm_shard_departures(p->shard) : none);
}

static void forward(struct mm_passes *p, struct mm_acts *acts, const struct mm_batch *batch,
                    size_t i) {
    struct mm_layer_hook none = {0};
    mm_forward(p->model, acts, &p->scratch, batch->tokens + i * p->micro_batch * p->T,
               micro_count(p, i), p->T, p->shard ? mm_shard_arrivals(p->shard) : none);
}

static void losses(struct mm_passes *p, const struct mm_acts *acts, const struct mm_batch *batch,
                   size_t i, const struct mm_loss_term *terms, size_t terms_n, float *dhead) {
    mm_head_losses(p->model, &p->head, acts, batch->targets + i * p->micro_batch * p->T, terms,
                   terms_n, dhead, i == 0);
}

void mm_passes_loss(struct mm_passes *p, const struct mm_batch *batch,
                    struct mm_objective objective, double *loss) {
    struct mm_mat none = {0};
    struct mm_loss_term term = term_of(p, objective, loss, none);
    zero_scalar(p, loss);
    for (size_t i = 0; i < p->micros_n; i++) {
        forward(p, &p->acts[0], batch, i);
        losses(p, &p->acts[0], batch, i, &term, 1, NULL);
    }
    mm_comm_sum_device(p->comm, loss, 1);
}

void mm_passes_gradient(struct mm_passes *p, const struct mm_batch *batch,
                        struct mm_objective objective, struct mm_vector g, double *loss,
                        double *cross_entropy) {
    struct mm_objective plain = {.fn = MM_LOSS_CROSS_ENTROPY};
    struct mm_mat none = {0};
    MM_CHECK(!cross_entropy || !head_grad(p), "the head's gradient is of one loss");
    zero_scalar(p, loss);
    if (cross_entropy)
        zero_scalar(p, cross_entropy);
    mm_shard_reduce_begin(p->shard, g);
    for (size_t i = 0; i < p->micros_n; i++) {
        struct mm_mat dhidden = rows_of(p, p->dhidden_now, micro_count(p, i));
        struct mm_loss_term terms[2] = {term_of(p, plain, cross_entropy, none),
                                        term_of(p, objective, loss, dhidden)};
        forward(p, &p->acts[0], batch, i);
        if (cross_entropy)
            losses(p, &p->acts[0], batch, i, terms, 2, NULL);
        else
            losses(p, &p->acts[0], batch, i, &terms[1], 1, head_grad(p));
        backward(p, i, &p->acts[0], dhidden);
    }
    mm_shard_reduce_end(p->shard);
    mm_comm_sum_device(p->comm, loss, 1);
    if (cross_entropy)
        mm_comm_sum_device(p->comm, cross_entropy, 1);
}

/* The negative of cross-entropy has the negated gradient at the head: no second product there. */
static void held_losses(struct mm_passes *p, const struct mm_batch *batch, size_t i,
                        struct mm_objective second, struct mm_mat dhidden, double *loss,
                        double *second_loss) {
    struct mm_device *dev = p->model->dev;
    struct mm_objective first = {.fn = MM_LOSS_CROSS_ENTROPY};
    struct mm_mat held = mm_mat_rows(p->dhidden[i], 0, dhidden.rows);
    struct mm_loss_term terms[2] = {term_of(p, first, loss, dhidden),
                                    term_of(p, second, second_loss, held)};
    bool negated = second.fn == MM_LOSS_NEG_CROSS_ENTROPY;
    losses(p, &p->acts[i], batch, i, terms, negated ? 1 : 2, NULL);
    if (negated)
        dev->ops->scale(dev, held, dhidden, -1.0f);
}

void mm_passes_gradient_held(struct mm_passes *p, const struct mm_batch *batch,
                             struct mm_objective second, struct mm_vector g, double *loss,
                             double *second_loss) {
    MM_CHECK(p->acts_n == p->micros_n, "activations are not held");
    MM_CHECK(!head_grad(p), "the head's gradient is of one loss");
    zero_scalar(p, loss);
    zero_scalar(p, second_loss);
    mm_shard_reduce_begin(p->shard, g);
    for (size_t i = 0; i < p->micros_n; i++) {
        struct mm_mat dhidden = rows_of(p, p->dhidden_now, micro_count(p, i));
        forward(p, &p->acts[i], batch, i);
        held_losses(p, batch, i, second, dhidden, loss, second_loss);
        backward(p, i, &p->acts[i], dhidden);
    }
    mm_shard_reduce_end(p->shard);
    mm_comm_sum_device(p->comm, loss, 1);
    if (second.fn == MM_LOSS_NEG_CROSS_ENTROPY)
        p->model->dev->ops->scale_scalar(p->model->dev, second_loss, loss, -1.0);
    else
        mm_comm_sum_device(p->comm, second_loss, 1);
}

void mm_passes_second_gradient(struct mm_passes *p, struct mm_vector g) {
    mm_shard_store_end(p->shard);
    mm_shard_reduce_begin(p->shard, g);
    for (size_t i = 0; i < p->micros_n; i++)
        backward(p, i, &p->acts[i], rows_of(p, p->dhidden[i], micro_count(p, i)));
    mm_shard_reduce_end(p->shard);
}
