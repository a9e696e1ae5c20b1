/* golden_reference.h - logits, losses and the gradients of all parameters against the traces. */
#ifndef MM_GOLDEN_REFERENCE_H
#define MM_GOLDEN_REFERENCE_H

#include "tests/golden/golden_run.h"

#include "src/run/evaluate.h"

static inline void check_logits(struct fixture *f, const uint32_t *tokens, size_t B, size_t T) {
    size_t n = B * T, V = f->model->arch.vocab;
    struct mm_acts acts;
    struct mm_scratch scratch;
    struct mm_layer_hook none = {0};
    uint32_t *on_device = mm_arena_take(f->arena, MM_FOR_SCRATCH, n, sizeof *on_device);
    dev->queue->upload(dev, on_device, tokens, n * sizeof *tokens);
    mm_acts_create(&acts, f->arena, f->model, n, NULL, MM_KEEP_ALL);
    mm_scratch_create(&scratch, f->arena, f->model, n, MM_FORWARD_ONLY);
    mm_forward(f->model, &acts, &scratch, on_device, B, T, none);
    struct mm_mat logits = mm_arena_mat(f->arena, MM_FOR_SCRATCH, arithmetic, n, V);
    dev->ops->linear(dev, logits, acts.hidden, f->model->params[f->model->head_part].w, NULL,
                     MM_SET);
    double *want = trace_read(f->reference, "logits", NULL, NULL);
    float *got = fetch(logits.data, arithmetic, n * V);
    expect_tensor(f->name, "logits", got, want, n * V, 1e-5, 0.06);
    mm_free(got);
    mm_free(want);
    mm_acts_free(&acts);
}

static struct mm_shard *shard_of_all(struct fixture *f) {
    bool *all = mm_calloc(f->model->params_n, 1);
    memset(all, 1, f->model->params_n);
    struct mm_shard *shard = mm_shard_create(f->arena, comm, f->model, all);
    mm_free(all);
    return shard;
}

/* Whether the loss that clips at 0 has a position so near there that bfloat16 may clip it or not:
 * then it has another gradient. */
static inline bool on_the_edge(struct fixture *f, const uint32_t *tokens, size_t B, size_t T) {
    size_t V = f->model->arch.vocab;
    double *z = trace_read(f->reference, "logits", NULL, NULL), nearest = INFINITY;
    for (size_t i = 0; i < B * T; i++) {
        double mean = 0;
        for (size_t v = 0; v < V; v++)
            mean += z[i * V + v] / (double)V;
        if ((i + 1) % T)
            nearest = fmin(nearest, fabs(z[i * V + tokens[i + 1]] - mean));
    }
    mm_free(z);
    return nearest < 0.02;
}

static inline void check_gradients(struct fixture *f, uint32_t *tokens, size_t B, size_t T) {
    static const char *const names[] = {"cross_entropy", "neg_cross_entropy", "neg_entropy",
                                        "correct_logit_minus_avg"};
    const enum mm_loss_fn clipped = MM_LOSS_CORRECT_LOGIT_MINUS_AVG;
    bool edge = arithmetic == MM_BF16 && on_the_edge(f, tokens, B, T);
    struct mm_shard *shard = shard_of_all(f);
    struct mm_passes *p = mm_passes_create(f->arena, comm, f->model, shard,
                                           (struct mm_batch_size){B, 3, T}, MM_PASSES_PLAIN);
    struct mm_vector g = mm_shard_gradient(shard, f->arena);
    double *loss = mm_arena_take(f->arena, MM_FOR_SCRATCH, 1, sizeof *loss);
    struct mm_batch batch;
    mm_batch_create(&batch, f->arena, &p->share);
    struct mm_sequences own = mm_share_sequences(&p->share);
    struct mm_dataset set = {.examples = B, .context = T, .context_length = T, .tokens = tokens};
    mm_share_read(&p->share, &set, 0, &own);
    mm_batch_set(&batch, 0, &own);
    mm_sequences_free(&own);
    for (int fn = 0; fn < 4; fn++) {
        struct mm_objective objective = {.fn = (enum mm_loss_fn)fn};
        char group[64];
        snprintf(group, sizeof group, "loss/%s", names[fn]);
        double *want = trace_read(f->reference, group, NULL, NULL);
        mm_passes_gradient(p, &batch, objective, g, loss, NULL);
        mm_comm_sum_waiting(comm);
        expect_near(f->name, names[fn], 0, fetch_scalar(loss), *want, 2e-6, 1e-2);
        mm_free(want);
        float *got = fetch(g.data, MM_F32, g.n);
        for (size_t t = 0; t < shard->tensors_n && !(edge && objective.fn == clipped); t++) {
            const struct mm_param *param = &f->model->params[shard->param[t]];
            struct mm_rows rows = mm_layout_own(&shard->layout, t);
            char *path = mm_format("grad/%s/%s", names[fn], param->name);
            want = trace_read(f->reference, path, NULL, NULL);
            assert_non_null(want);
            expect_tensor(names[fn], path, got + shard->layout.offsets[t],
                          want + rows.first * param->cols, rows.count * param->cols, 1e-4, 0.45);
            mm_free(want);
            mm_free(path);
        }
        mm_free(got);
    }
    mm_batch_free(&batch);
    mm_passes_free(p);
    mm_shard_free(shard);
}

static inline void check_reference(const char *name) {
    struct fixture f = open_case(name);
    size_t B, T;
    uint32_t *tokens = trace_tokens(f.reference, "tokens", &B, &T);
    check_logits(&f, tokens, B, T);
    check_gradients(&f, tokens, B, T);
    mm_free(tokens);
    close_case(&f);
}

#endif
