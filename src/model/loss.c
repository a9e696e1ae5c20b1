/* loss.c - see loss.h.
 *
 * Reason: with a large vocabulary the logits of all tokens would take more memory than all else. So
 * the head works on a chunk of rows at a time: logits, losses, their gradient in the logits' place,
 * and its product with the head's weights. Cost: a loss of whole sequences (NPO, SimNPO) needs all
 * its terms before any gradient, and so it forms the logits twice. */
#include "src/model/loss.h"

#include "kernels/queue.h"

#define LEAST_ROWS ((size_t)64) /* of a chunk of logits: enough for a product */

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

void mm_head_create(struct mm_head *head, struct mm_arena *arena, const struct mm_model *model,
                    size_t capacity, enum mm_head_kind kind) {
    size_t V = model->arch.vocab, most = model->dev->ops->chunk / V;
    most = most < LEAST_ROWS ? LEAST_ROWS : most;
    size_t chunks = (capacity + most - 1) / most; /* as equal as can be */
    *head = (struct mm_head){.rows = (capacity + chunks - 1) / chunks};
    head->logits = mm_arena_mat(arena, MM_FOR_SCRATCH, model->dtype, head->rows, V);
    if (kind == MM_TWO_LOSSES)
        head->spare = mm_arena_mat(arena, MM_FOR_SCRATCH, model->dtype, head->rows, V);
    head->losses = mm_arena_take(arena, MM_FOR_SCRATCH, capacity, sizeof *head->losses);
    head->weights = mm_arena_take(arena, MM_FOR_SCRATCH, capacity, sizeof *head->weights);
    head->sequences = mm_arena_take(arena, MM_FOR_SCRATCH, capacity, sizeof *head->sequences);
}

static bool of_sequences(enum mm_loss_fn fn) {
    return fn == MM_LOSS_NPO || fn == MM_LOSS_SIMNPO;
}

double mm_loss_positions(enum mm_loss_fn fn, struct mm_counts counts) {
    if (of_sequences(fn))
        return counts.sequences;
    return fn == MM_LOSS_NEG_ENTROPY ? counts.tokens : counts.targets;
}

/* What mm_head_losses works on. */
struct head_pass {
    const struct mm_model *model;
    struct mm_head *head;
    const struct mm_acts *acts;
    const uint32_t *targets;
    float *dhead;
    enum mm_into into; /* dhead */
};

void mm_head_logits(const struct mm_model *m, struct mm_head *head, const struct mm_acts *acts,
                    size_t first, mm_see_logits *see, void *self) {
    size_t n = acts->B * acts->T;
    for (size_t row = 0; row < n; row += head->rows) {
        size_t rows = smaller(head->rows, n - row);
        struct mm_mat logits = mm_mat_rows(head->logits, 0, rows);
        m->dev->ops->linear(m->dev, logits, mm_mat_rows(acts->hidden, row, rows),
                            m->params[m->head_part].w, NULL, MM_SET);
        see(self, first + row, logits);
    }
}

/* Losses of positions, a chunk of logits at a time. The positions' terms of the last loss stay in
 * head->losses. weights [n]: the gradient is of the terms times these; NULL: of the mean. */
static void position_losses(const struct head_pass *p, const struct mm_loss_term *terms,
                            size_t terms_n, const float *weights) {
    const struct mm_model *m = p->model;
    struct mm_head *head = p->head;
    const struct mm_ops *ops = m->dev->ops;
    size_t n = p->acts->B * p->acts->T, V = m->arch.vocab;
    struct mm_mat w = m->params[m->head_part].w, none = {0};
    for (size_t row = 0; row < n; row += head->rows) {
        size_t rows = smaller(head->rows, n - row);
        struct mm_mat hidden = mm_mat_rows(p->acts->hidden, row, rows);
        struct mm_mat logits = mm_mat_rows(head->logits, 0, rows);
        ops->linear(m->dev, logits, hidden, w, NULL, MM_SET);
        for (size_t i = 0; i < terms_n; i++) {
            const struct mm_loss_term *term = &terms[i];
            double mean = 1 / term->positions;
            struct mm_mat d = i + 1 < terms_n ? mm_mat_rows(head->spare, 0, rows) : logits;
            bool gradient = term->dhidden.data != NULL;
            struct mm_loss how = {.fn = term->fn,
                                  .clip_at = (float)term->clip_at,
                                  .scale = weights ? 1.0f : (float)mean,
                                  .weights = weights ? weights + row : NULL};
            ops->loss(m->dev, &how, logits, p->targets + row, head->losses + row,
                      gradient ? d : none);
            if (term->sum)
                ops->sum(m->dev, term->sum, head->losses + row, rows, mean);
            if (gradient)
                ops->linear_dx(m->dev, mm_mat_rows(term->dhidden, row, rows), d, w, MM_SET);
            if (p->dhead && i == 0)
                ops->linear_dw(m->dev, mm_mat(p->dhead, MM_F32, V, w.cols), d, hidden,
                               row > 0 ? MM_ADD : p->into);
        }
    }
}

/* A loss of whole sequences, from the cross-entropy terms in head->losses. Its gradient is that of
 * cross-entropy at each position, times a weight of the sequence. This needs the logits again. */
static void sequence_loss(const struct head_pass *p, const struct mm_loss_term *term) {
    const struct mm_ops *ops = p->model->dev->ops;
    struct mm_head *head = p->head;
    double mean = 1 / term->positions;
    struct mm_sequence_loss how = {.fn = term->fn,
                                   .beta = term->beta,
                                   .gamma = term->gamma,
                                   .reference = term->reference,
                                   .scale = mean};
    ops->sequence_loss(p->model->dev, &how, head->losses, p->targets, p->acts->B, p->acts->T,
                       head->sequences, head->weights);
    ops->sum(p->model->dev, term->sum, head->sequences, p->acts->B, mean);
    struct mm_loss_term gradient = {
        .fn = MM_LOSS_CROSS_ENTROPY, .positions = 1, .dhidden = term->dhidden}; /* weighted */
    if (gradient.dhidden.data)
        position_losses(p, &gradient, 1, head->weights);
}

void mm_head_losses(const struct mm_model *m, struct mm_head *head, const struct mm_acts *acts,
                    const uint32_t *targets, const struct mm_loss_term *terms, size_t terms_n,
                    float *dhead, enum mm_into into) {
    struct head_pass p = {m, head, acts, targets, dhead, into};
    const struct mm_loss_term *last = &terms[terms_n - 1];
    if (!of_sequences(last->fn)) {
        position_losses(&p, terms, terms_n, NULL);
        return;
    }
    MM_CHECK(!dhead, "the head's gradient is of a loss of positions");
    MM_CHECK(terms_n == 1 || terms[0].fn == MM_LOSS_CROSS_ENTROPY, "not beside cross-entropy");
    if (terms_n > 1)
        position_losses(&p, terms, 1, NULL);
    else
        mm_head_terms(m, head, acts, targets, head->losses);
    sequence_loss(&p, last);
}

void mm_head_terms(const struct mm_model *m, struct mm_head *head, const struct mm_acts *acts,
                   const uint32_t *targets, float *terms) {
    struct head_pass p = {m, head, acts, targets, NULL, MM_SET};
    struct mm_loss_term term = {.fn = MM_LOSS_CROSS_ENTROPY, .positions = 1};
    position_losses(&p, &term, 1, NULL);
    if (terms != head->losses)
        mm_head_keep(m, head, acts, terms);
}

void mm_head_keep(const struct mm_model *m, const struct mm_head *head, const struct mm_acts *acts,
                  float *terms) {
    m->dev->queue->copy(m->dev, terms, head->losses, acts->B * acts->T * sizeof *terms);
}

bool mm_loss_on_logits(enum mm_loss_fn fn) {
    switch (fn) {
    case MM_LOSS_CROSS_ENTROPY:
    case MM_LOSS_NEG_CROSS_ENTROPY:
    case MM_LOSS_NEG_ENTROPY:
    case MM_LOSS_CORRECT_LOGIT_MINUS_AVG:
    case MM_LOSS_NPO:
    case MM_LOSS_SIMNPO:
        return true;
    case MM_LOSS_CIRCUIT_BREAKER:
    case MM_LOSS_STREAM_ACTIVATION:
    case MM_LOSS_RMU:
    case MM_LOSS_NONE:
        break;
    }
    return false;
}
