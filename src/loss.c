/* loss.c - see loss.h. */
#include "src/loss.h"

#define LEAST_ROWS ((size_t)64) /* of a chunk of logits: enough for a product */

static size_t smaller(size_t a, size_t b) {
    return a < b ? a : b;
}

void mm_head_create(struct mm_head *head, struct mm_arena *arena, const struct mm_model *model,
                    size_t capacity, bool two_losses) {
    size_t V = model->arch.vocab, most = model->dev->ops->chunk / V;
    most = most < LEAST_ROWS ? LEAST_ROWS : most;
    size_t chunks = (capacity + most - 1) / most; /* as equal as can be */
    *head = (struct mm_head){.rows = (capacity + chunks - 1) / chunks};
    head->logits = mm_arena_mat(arena, MM_FOR_SCRATCH, model->dtype, head->rows, V);
    if (two_losses)
        head->spare = mm_arena_mat(arena, MM_FOR_SCRATCH, model->dtype, head->rows, V);
    head->losses = mm_arena_take(arena, MM_FOR_SCRATCH, capacity, sizeof *head->losses);
}

double mm_loss_positions(enum mm_loss_fn fn, size_t B, size_t T) {
    return (double)B * (double)(fn == MM_LOSS_NEG_ENTROPY ? T : T - 1);
}

void mm_head_losses(const struct mm_model *m, struct mm_head *head, const struct mm_acts *acts,
                    const uint32_t *targets, const struct mm_loss_term *terms, size_t terms_n,
                    float *dhead, bool first) {
    const struct mm_ops *ops = m->dev->ops;
    size_t n = acts->B * acts->T, V = m->arch.vocab;
    struct mm_mat w = m->params[m->head_part].w, none = {0};
    for (size_t row = 0; row < n; row += head->rows) {
        size_t rows = smaller(head->rows, n - row);
        struct mm_mat hidden = mm_mat_rows(acts->hidden, row, rows);
        struct mm_mat logits = mm_mat_rows(head->logits, 0, rows);
        ops->linear(m->dev, logits, hidden, w, NULL, false);
        for (size_t i = 0; i < terms_n; i++) {
            const struct mm_loss_term *term = &terms[i];
            double positions = mm_loss_positions(term->fn, term->global_batch, acts->T);
            struct mm_mat d = i + 1 < terms_n ? mm_mat_rows(head->spare, 0, rows) : logits;
            bool gradient = term->dhidden.data != NULL;
            ops->loss(m->dev, term->fn, (float)term->clip_at, logits, targets + row,
                      (float)(1 / positions), head->losses, gradient ? d : none);
            ops->sum(m->dev, term->sum, head->losses, rows, 1 / positions);
            if (gradient)
                ops->linear_dx(m->dev, mm_mat_rows(term->dhidden, row, rows), d, w, false);
            if (dhead && i == 0)
                ops->linear_dw(m->dev, mm_mat(dhead, MM_F32, V, w.cols), d, hidden,
                               row > 0 || !first);
        }
    }
}
