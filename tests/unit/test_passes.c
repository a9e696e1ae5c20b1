/* test_passes.c - pieces of a batch add up, and a second backward through a held graph reads the
 * new weights and nothing else that is new (docs/method.md 3). The numbers
 * themselves: test_golden.c. */
#include "tests/golden/golden_model.h"

static struct mm_comm *comm;
static struct mm_device *dev;

static const struct mm_objective plain = {.fn = MM_LOSS_CROSS_ENTROPY};

/* -- passes: micro-batches --------------------------------------------------------------------- */

/* A set of tensors and passes over it; ends with its arena. */
struct setup {
    struct mm_arena *arena;
    struct mm_shard *shard;
    struct mm_passes *passes;
    struct mm_batch batch;
    struct mm_vector g;
    double *loss; /* [2] */
};

/* Which tensors: all, the matrices of layers, those of layers above the first. */
enum set { EVERYTHING, MATRICES, UPPER_MATRICES };

static struct setup setup_create(const struct fixture *f, enum set set, size_t micro,
                                 enum mm_passes_kind kind) {
    struct setup s = {.arena = mm_arena_create(dev)};
    const struct mm_model *m = f->model;
    bool *wanted = mm_calloc(m->params_n, 1);
    for (size_t i = 0; i < m->params_n; i++)
        wanted[i] = set == EVERYTHING ||
                    (!m->params[i].vector && m->params[i].layer >= (set == UPPER_MATRICES ? 1 : 0));
    s.shard = mm_shard_create(s.arena, comm, f->model, wanted);
    s.passes = mm_passes_create(s.arena, comm, f->model, s.shard,
                                (struct mm_batch_size){f->B, micro, f->T}, kind);
    s.g = mm_shard_vector(s.shard, s.arena, MM_FOR_GRADIENTS, MM_F32);
    s.loss = mm_arena_take(s.arena, MM_FOR_SCRATCH, 2, sizeof *s.loss);
    mm_batch_create(&s.batch, s.arena, &s.passes->share);
    struct mm_sequences own = mm_share_sequences(&s.passes->share);
    struct mm_dataset file = {
        .examples = f->B, .context = f->T, .context_length = f->T, .tokens = f->tokens};
    mm_share_read(&s.passes->share, &file, 0, &own);
    mm_batch_set(&s.batch, 0, &own);
    mm_sequences_free(&own);
    mm_free(wanted);
    return s;
}

static void setup_free(struct setup *s) {
    mm_batch_free(&s->batch);
    mm_passes_free(s->passes);
    mm_shard_free(s->shard);
    mm_arena_free(s->arena);
}

static float *copy_of(struct mm_vector v) {
    float *copy = mm_calloc(v.n, sizeof *copy);
    memcpy(copy, v.data, v.n * sizeof *copy);
    return copy;
}

static void check_micro_batches(const char *name) {
    struct fixture f = open_case(dev, name);
    for (int fn = 0; fn < 4; fn++) {
        struct mm_objective objective = {.fn = (enum mm_loss_fn)fn};
        struct setup whole = setup_create(&f, EVERYTHING, f.B, MM_PASSES_PLAIN);
        mm_passes_gradient(whole.passes, &whole.batch, objective, whole.g, whole.loss, NULL);
        for (size_t micro = 1; micro < f.B; micro++) {
            struct setup s = setup_create(&f, EVERYTHING, micro, MM_PASSES_PLAIN);
            assert_int_equal(s.passes->share.micros_n, (f.B + micro - 1) / micro);
            memset(s.g.data, 0x5a, s.g.n * sizeof(float)); /* = , not += */
            s.loss[0] = 99;
            mm_passes_gradient(s.passes, &s.batch, objective, s.g, s.loss, NULL);
            trace_near(name, "loss by micro-batches", micro, s.loss[0], whole.loss[0], 1e-6);
            for (size_t t = 0; t < s.shard->tensors_n; t++) {
                size_t at = s.shard->layout.offsets[t], n = s.shard->layout.offsets[t + 1] - at;
                const char *param = f.model->params[s.shard->param[t]].name;
                if (!strstr(param, "k_proj.bias")) /* rounding only */
                    expect_near(param, (float *)s.g.data + at, (float *)whole.g.data + at, n, 5e-5);
            }
            s.loss[0] = s.loss[1] = 99;
            mm_passes_loss(s.passes, &s.batch, objective, s.loss, NULL);
            trace_near(name, "loss alone", micro, s.loss[0], whole.loss[0], 1e-6);
            setup_free(&s);
        }
        setup_free(&whole);
    }
    close_case(&f);
}

static void micro_batches(void **state) {
    (void)state;
    for (size_t i = 0; i < CASES; i++)
        check_micro_batches(cases[i]);
}

/* -- losses on hidden states -------------------------------------------------------------------
 */

/* Those of the config, which have a name each. */
static const struct {
    const char *name;
    enum mm_loss_fn fn;
    bool retaining, square;
} state_losses[] = {{"distance", MM_LOSS_NONE, true, false},
                    {"square distance", MM_LOSS_NONE, true, true},
                    {"circuit breaker", MM_LOSS_CIRCUIT_BREAKER, false, false},
                    {"stream activation", MM_LOSS_STREAM_ACTIVATION, false, false},
                    {"rmu", MM_LOSS_RMU, false, false}};
#define STATE_LOSSES (sizeof state_losses / sizeof *state_losses)

/* The way of element i of tensor t. The embedding of padding, which gets no gradient, stays. */
static float way(const struct fixture *f, const struct mm_shard *shard, size_t t, size_t i) {
    const struct mm_model *m = f->model;
    bool padding = shard->param[t] == m->embed_part && i / m->arch.width == m->arch.pad;
    return padding ? 0 : (float)((int)((i * 29 + t) % 64) - 31) / 1024;
}

/* Weights move off those that the frozen states were of. */
static void stir(const struct fixture *f, const struct mm_shard *shard, float factor) {
    for (size_t t = 0; t < shard->tensors_n; t++) {
        const struct mm_param *p = &f->model->params[shard->param[t]];
        float *w = p->w.data;
        for (size_t i = 0; i < p->rows * p->cols; i++)
            w[i] += factor * way(f, shard, t, i);
    }
}

/* The objective of loss k on s's passes; its frozen states are of the weights as they are now. */
static struct mm_objective state_objective(struct setup *s, size_t k) {
    struct mm_config config = {.seed = 3};
    config.unlearn.loss_fn = state_losses[k].fn;
    config.unlearn.rep_eng_retain_lr = state_losses[k].retaining ? 0.8 : 0;
    config.unlearn.square_norm = state_losses[k].square;
    config.unlearn.rmu_layer = MM_ABSENT;
    config.unlearn.rmu_coefficient = 4;
    struct mm_objective objective = {.fn = state_losses[k].fn};
    const struct mm_passes *p = s->passes;
    objective.states =
        state_losses[k].retaining
            ? mm_hidden_loss_retaining(s->arena, &config, p->model, &p->share, &p->acts[0])
            : mm_hidden_loss_unlearning(s->arena, &config, p->model, &p->share, &p->acts[0]);
    mm_passes_keep_states(s->passes, &s->batch, objective.states);
    return objective;
}

static void free_states(struct mm_objective objective) {
    mm_free((struct mm_hidden_loss *)objective.states);
}

/* The loss alone along the set's weights, for a difference. */
static double stirred_loss(const struct fixture *f, struct setup *s, struct mm_objective objective,
                           float factor) {
    stir(f, s->shard, factor);
    mm_passes_gradient(s->passes, &s->batch, objective, s->g, s->loss, NULL);
    stir(f, s->shard, -factor);
    return s->loss[0];
}

/* Slope of the loss along the stir by its gradient, against a difference of losses. */
static void check_slope(const struct fixture *f, struct setup *s, struct mm_objective objective,
                        const char *what) {
    const float step = 1.0f / 64;
    mm_passes_gradient(s->passes, &s->batch, objective, s->g, s->loss, NULL);
    double slope = 0, size = 0;
    for (size_t t = 0; t < s->shard->tensors_n; t++)
        for (size_t i = s->shard->layout.offsets[t]; i < s->shard->layout.offsets[t + 1]; i++) {
            double along = (double)way(f, s->shard, t, i - s->shard->layout.offsets[t]);
            slope += (double)((float *)s->g.data)[i] * along;
            size += fabs((double)((float *)s->g.data)[i] * along);
        }
    double difference =
        (stirred_loss(f, s, objective, step) - stirred_loss(f, s, objective, -step)) /
        (2 * (double)step);
    if (!(fabs(difference - slope) <= 2e-3 * size && size > 0))
        fail_msg("%s, %s: the slope is %.6g by the gradient, %.6g by a difference", f->name, what,
                 slope, difference);
}

/* Any cut of the batch, whichever layers are trained, gives one loss and one gradient, which is the
 * loss's slope; at the frozen model the distances are exactly 0. */
static void check_states(const char *name, enum set set, size_t k) {
    struct fixture f = open_case(dev, name);
    const char *what = state_losses[k].name;
    struct setup whole = setup_create(&f, set, f.B, MM_PASSES_PLAIN);
    struct mm_objective objective = state_objective(&whole, k);
    mm_passes_gradient(whole.passes, &whole.batch, objective, whole.g, whole.loss, NULL);
    if (state_losses[k].retaining) {
        assert_true(whole.loss[0] == 0);
        for (size_t i = 0; i < whole.g.n; i++)
            assert_true(((float *)whole.g.data)[i] == 0);
    }
    for (size_t micro = 1; micro < f.B; micro += 2) {
        struct setup s = setup_create(&f, set, micro, MM_PASSES_PLAIN);
        struct mm_objective cut = state_objective(&s, k);
        stir(&f, whole.shard, 1);
        mm_passes_gradient(whole.passes, &whole.batch, objective, whole.g, whole.loss, NULL);
        memset(s.g.data, 0x5a, s.g.n * sizeof(float)); /* = , not += */
        s.loss[0] = s.loss[1] = 99;
        mm_passes_gradient(s.passes, &s.batch, cut, s.g, &s.loss[0],
                           set == EVERYTHING ? NULL : &s.loss[1]);
        trace_near(name, what, micro, s.loss[0], whole.loss[0], 1e-6);
        expect_near(what, s.g.data, whole.g.data, whole.g.n,
                    1e-4); /* of small differences of states */
        if (set !=
            EVERYTHING) { /* cross-entropy beside it, where there is no other use of the head */
            mm_passes_loss(whole.passes, &whole.batch, plain, &whole.loss[1], NULL);
            trace_near(name, "cross-entropy beside it", micro, s.loss[1], whole.loss[1], 1e-6);
        }
        check_slope(&f, &s, cut, what);
        stir(&f, whole.shard, -1);
        free_states(cut);
        setup_free(&s);
    }
    free_states(objective);
    setup_free(&whole);
    close_case(&f);
}

static void hidden_states(void **state) {
    (void)state;
    for (size_t i = 0; i < CASES; i++)
        for (size_t k = 0; k < STATE_LOSSES; k++) {
            check_states(cases[i], MATRICES, k);
            check_states(cases[i], EVERYTHING, k);
            if (strcmp(cases[i], "llama-gqa-tied") == 0 && state_losses[k].fn != MM_LOSS_RMU &&
                state_losses[k].fn != MM_LOSS_CIRCUIT_BREAKER) /* the last state is moved alone */
                check_states(cases[i], UPPER_MATRICES, k);
        }
}

/* -- the held graph ---------------------------------------------------------------------------- */

/* With the weights as they were the second gradient is that of the second loss; of the negative of
 * cross-entropy it is the first one negated, to the bit, as often as it is taken. */
static void check_held(const char *name, size_t micro) {
    struct fixture f = open_case(dev, name);
    for (int fn = 0; fn < 4; fn++) {
        struct mm_objective second = {.fn = (enum mm_loss_fn)fn, .clip_at = -0.5};
        struct setup own = setup_create(&f, MATRICES, micro, MM_PASSES_PLAIN);
        struct setup held = setup_create(&f, MATRICES, micro, MM_PASSES_HELD);
        mm_passes_gradient_held(held.passes, &held.batch, second, held.g, &held.loss[0],
                                &held.loss[1]);
        float *first = copy_of(held.g);
        mm_passes_gradient(own.passes, &own.batch, plain, own.g, &own.loss[0], NULL);
        assert_memory_equal(first, own.g.data, own.g.n * sizeof *first);
        assert_true(held.loss[0] == own.loss[0]);
        mm_passes_gradient(own.passes, &own.batch, second, own.g, &own.loss[0], &own.loss[1]);
        trace_near(name, "second loss", 0, held.loss[1], own.loss[0], 1e-7);
        trace_near(name, "cross-entropy beside it", 0, own.loss[1], held.loss[0], 1e-7);
        for (int again = 0; again < 2; again++) {
            memset(held.g.data, 0x5a, held.g.n * sizeof *first);
            mm_passes_second_gradient(held.passes, held.g);
            const float *g = held.g.data;
            expect_near("second gradient", g, own.g.data, own.g.n, 1e-5);
            for (size_t i = 0; i < own.g.n && fn == MM_LOSS_NEG_CROSS_ENTROPY; i++)
                if (g[i] != -first[i])
                    fail_msg("%s: %.9g is not -%.9g", name, (double)g[i], (double)first[i]);
        }
        mm_free(first);
        setup_free(&held);
        setup_free(&own);
    }
    close_case(&f);
}

static void held_graph(void **state) {
    (void)state;
    for (size_t i = 0; i < CASES; i++)
        for (size_t micro = 1; micro <= 4; micro += i % 2 ? 3 : 2)
            check_held(cases[i], micro);
}

/* The same of losses on hidden states, whose second gradient takes no product with the head: the
 * held one is that of a forward of its own, but not at weights that moved since. */
static void check_held_states(const char *name, size_t micro, size_t k) {
    struct fixture f = open_case(dev, name);
    const char *what = state_losses[k].name;
    struct setup own = setup_create(&f, MATRICES, micro, MM_PASSES_PLAIN);
    struct setup held = setup_create(&f, MATRICES, micro, MM_PASSES_HELD);
    struct mm_objective a = state_objective(&own, k), b = state_objective(&held, k);
    stir(&f, own.shard, 1);
    mm_passes_gradient_held(held.passes, &held.batch, b, held.g, &held.loss[0], &held.loss[1]);
    float *first = copy_of(held.g);
    mm_passes_gradient(own.passes, &own.batch, plain, own.g, &own.loss[0], NULL);
    assert_memory_equal(first, own.g.data, own.g.n * sizeof *first);
    assert_true(held.loss[0] == own.loss[0]);
    mm_passes_gradient(own.passes, &own.batch, a, own.g, &own.loss[0], NULL);
    trace_near(name, what, micro, held.loss[1], own.loss[0], 1e-7);
    for (int again = 0; again < 2; again++) {
        memset(held.g.data, 0x5a, held.g.n * sizeof *first);
        mm_passes_second_gradient(held.passes, held.g);
        expect_near(what, held.g.data, own.g.data, own.g.n, 1e-5);
    }
    stir(&f, own.shard, 1);
    mm_passes_second_gradient(held.passes, held.g);
    mm_passes_gradient(own.passes, &own.batch, a, own.g, &own.loss[0], NULL);
    assert_true(memcmp(held.g.data, own.g.data, own.g.n * sizeof *first) != 0);
    mm_free(first);
    free_states(a);
    free_states(b);
    setup_free(&held);
    setup_free(&own);
    close_case(&f);
}

static void held_states(void **state) {
    (void)state;
    for (size_t i = 0; i < CASES; i++)
        for (size_t k = 0; k < STATE_LOSSES; k++)
            for (size_t micro = 1; micro <= 4; micro += i % 2 ? 3 : 2)
                check_held_states(cases[i], micro, k);
}

/* Adds `factor` times a fixed pattern to a matrix. */
static void move_weights(const struct mm_param *p, float factor) {
    float *w = p->w.data;
    for (size_t i = 0; i < p->rows * p->cols; i++)
        w[i] +=
            factor * (float)((int)(i * 37 % 64) - 31) / 1024; /* exact, and so is the way back */
}

/* Weights a little coarser, so that a move and its inverse leave no trace. */
static void coarsen(struct fixture *f) {
    for (size_t i = 0; i < f->model->params_n; i++) {
        float *w = f->model->params[i].w.data;
        for (size_t k = 0; k < elements(f, i); k++)
            w[k] = roundf(w[k] * 0x1p16f) / 0x1p16f;
    }
}

/* Is tensor `of` above the moved one, so that its gradient does not pass through that? */
static bool beyond(const struct fixture *f, size_t of, size_t moved) {
    return f->model->params[of].layer > f->model->params[moved].layer || of == moved;
}

/* The second gradient with one matrix moved by +D and by -D. Each matrix is met once on the way
 * back, so the gradient is an affine function of it - if nothing of the forward is taken anew. What
 * lies above, and the matrix's own gradient, must not change at all. */
static void check_moved(struct fixture *f, struct setup *s, const float *still, size_t moved) {
    const struct mm_param *p = &f->model->params[moved];
    float *moves[2], factors[] = {1, -2, 1};
    for (int i = 0; i < 2; i++) {
        move_weights(p, factors[i]);
        mm_passes_second_gradient(s->passes, s->g);
        moves[i] = copy_of(s->g);
    }
    move_weights(p, factors[2]);
    mm_passes_second_gradient(s->passes, s->g);
    assert_memory_equal(s->g.data, still, s->g.n * sizeof *still);
    bool below = false;
    for (size_t t = 0; t < s->shard->tensors_n; t++) {
        size_t at = s->shard->layout.offsets[t], n = s->shard->layout.offsets[t + 1] - at;
        const struct mm_param *of = &f->model->params[s->shard->param[t]];
        double most = 0, change = 0, bend = 0;
        for (size_t i = at; i < at + n; i++) {
            most = fmax(most, fabs((double)still[i]));
            change = fmax(change, fabs((double)moves[0][i] - (double)still[i]));
            bend =
                fmax(bend, fabs((double)moves[0][i] + (double)moves[1][i] - 2 * (double)still[i]));
        }
        if (beyond(f, s->shard->param[t], moved) && change != 0)
            fail_msg("%s: %s moved, and the gradient of %s changed", f->name, p->name, of->name);
        if (of->layer < p->layer && !(change > 1e-3 * most))
            fail_msg("%s: %s moved, and the gradient of %s did not", f->name, p->name, of->name);
        if (!(bend <= 1e-5 * most))
            fail_msg("%s: the gradient of %s bends by %.3g of %.3g with %s", f->name, of->name,
                     bend, most, p->name);
        below |= of->layer < p->layer;
    }
    assert_true(below || p->layer == 0);
    mm_free(moves[0]);
    mm_free(moves[1]);
}

/* The gradient of a forward at the moved weights is another one: the trap is a real one. */
static void check_trap(struct fixture *f, struct setup *s, size_t moved) {
    struct setup own = setup_create(f, MATRICES, 4, MM_PASSES_PLAIN);
    struct mm_objective second = {.fn = MM_LOSS_NEG_CROSS_ENTROPY};
    double most = 0, change = 0;
    move_weights(&f->model->params[moved], 1);
    mm_passes_second_gradient(s->passes, s->g);
    mm_passes_gradient(own.passes, &own.batch, second, own.g, own.loss, NULL);
    move_weights(&f->model->params[moved], -1);
    for (size_t i = 0; i < own.g.n; i++) {
        double fresh = (double)((float *)own.g.data)[i];
        most = fmax(most, fabs(fresh));
        change = fmax(change, fabs(fresh - (double)((float *)s->g.data)[i]));
    }
    assert_true(change > 1e-3 * most);
    setup_free(&own);
}

static void check_changed_weights(const char *name) {
    static const enum mm_loss_fn fns[] = {MM_LOSS_NEG_CROSS_ENTROPY, MM_LOSS_NEG_ENTROPY};
    struct fixture f = open_case(dev, name);
    coarsen(&f);
    for (size_t k = 0; k < 2; k++) {
        struct mm_objective second = {.fn = fns[k]};
        struct setup s = setup_create(&f, MATRICES, k ? 3 : 4, MM_PASSES_HELD);
        mm_passes_gradient_held(s.passes, &s.batch, second, s.g, &s.loss[0], &s.loss[1]);
        mm_passes_second_gradient(s.passes, s.g);
        float *still = copy_of(s.g);
        for (size_t t = 0; t < s.shard->tensors_n; t++)
            check_moved(&f, &s, still, s.shard->param[t]);
        if (k == 0)
            check_trap(&f, &s, s.shard->param[s.shard->tensors_n - 1]);
        mm_free(still);
        setup_free(&s);
    }
    close_case(&f);
}

static void changed_weights(void **state) {
    (void)state;
    for (size_t i = 0; i < CASES; i++)
        check_changed_weights(cases[i]);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(micro_batches),   cmocka_unit_test(hidden_states),
        cmocka_unit_test(held_graph),      cmocka_unit_test(held_states),
        cmocka_unit_test(changed_weights),
    };
    struct mm_error err = {""};
    comm = mm_comm_create(&argc, &argv);
    dev = mm_device_create_cpu();
    int failed = mm_comm_attach(comm, dev, MM_TRANSPORT_AUTO, MM_F32, &err) != MM_OK;
    failed = failed || cmocka_run_group_tests(tests, NULL, NULL);
    mm_comm_free(comm);
    mm_device_free(dev);
    if (mm_live_blocks() != 0)
        fprintf(stderr, "%ld blocks were not freed\n", mm_live_blocks());
    return failed || mm_live_blocks() != 0;
}
