/* test_transformer.c - what must hold of one forward and backward whatever the numbers are: a
 * backward that stops early forms the same gradients, a forward that keeps less has the same hidden
 * states, and the chunks of a head add up. The numbers themselves: test_golden.c. */
#include "tests/golden/golden_model.h"

static struct mm_device *dev;

static double targets_of(const struct fixture *f) {
    return (double)(f->B * (f->T - 1));
}

/* -- gradients of chosen tensors --------------------------------------------------------------- */

/* A gradient for each tensor of `formed`, others NULL, by activations kept for all of `wanted`;
 * added to zeros, or where `first` says so written over what isn't a gradient. Frees with
 * gradients_free. */
static float **gradients_of(const struct fixture *f, const bool *wanted, const bool *formed,
                            size_t capacity, bool first, enum mm_keep keep) {
    const struct mm_model *m = f->model;
    size_t n = f->B * f->T;
    struct mm_arena *arena = mm_arena_create(dev);
    struct mm_acts acts;
    struct mm_scratch scratch;
    struct mm_head head;
    float **grads = mm_calloc(m->params_n, sizeof *grads);
    for (size_t i = 0; i < m->params_n; i++)
        grads[i] = formed[i] ? mm_calloc(elements(f, i), sizeof **grads) : NULL;
    for (size_t i = 0; i < m->params_n && first; i++)
        if (grads[i] && (i == m->head_part || (m->params[i].layer >= 0 && !m->params[i].vector)))
            memset(grads[i], 0x5a, elements(f, i) * sizeof **grads);
    mm_acts_create(&acts, arena, m, capacity, wanted, keep);
    mm_scratch_create(&scratch, arena, m, capacity, MM_WITH_BACKWARD);
    mm_head_create(&head, arena, m, capacity, MM_ONE_LOSS);
    struct mm_mat dhidden = mm_arena_mat(arena, MM_FOR_SCRATCH, MM_F32, n, m->arch.width);
    double sum = 0;
    struct mm_loss_term term = {
        .fn = MM_LOSS_CROSS_ENTROPY, .positions = targets_of(f), .sum = &sum, .dhidden = dhidden};
    mm_forward(m, &acts, &scratch, f->tokens, f->B, f->T, no_hook);
    mm_head_losses(m, &head, &acts, f->targets, &term, 1, grads[m->head_part],
                   first ? MM_SET : MM_ADD);
    mm_backward(m, &acts, &scratch, dhidden, grads, first ? MM_SET : MM_ADD, no_hook);
    mm_acts_free(&acts);
    mm_arena_free(arena);
    return grads;
}

static void gradients_free(const struct fixture *f, float **grads) {
    for (size_t i = 0; i < f->model->params_n; i++)
        mm_free(grads[i]);
    mm_free(grads);
}

/* The gradients of `wanted` alone are the ones that come with all others, to the bit; also where
 * more is kept than they need, or layers are recomputed. */
static void check_subset(const struct fixture *f, const bool *wanted, float *const *all) {
    bool *everything = mm_calloc(f->model->params_n, 1);
    memset(everything, 1, f->model->params_n);
    for (int how = 0; how < 5; how++) {
        static const enum mm_keep keeps[] = {MM_KEEP_ALL, MM_KEEP_ALL, MM_KEEP_INPUTS,
                                             MM_KEEP_INPUTS, MM_KEEP_INPUTS_FOR_TWO};
        bool more = how % 2;
        float **grads =
            gradients_of(f, more ? everything : wanted, wanted, f->B * f->T + 5, more, keeps[how]);
        for (size_t i = 0; i < f->model->params_n; i++)
            for (size_t k = 0; wanted[i] && k < elements(f, i); k++)
                if (grads[i][k] != all[i][k])
                    fail_msg("%s: the gradient of %s is another one among fewer", f->name,
                             f->model->params[i].name);
        gradients_free(f, grads);
    }
    mm_free(everything);
}

static void check_subsets(const char *name) {
    struct fixture f = open_case(dev, name);
    size_t n = f.model->params_n;
    bool *wanted = mm_calloc(n, 1);
    memset(wanted, 1, n);
    float **all = gradients_of(&f, wanted, wanted, f.B * f.T, false, MM_KEEP_ALL);
    for (size_t i = 0; i < n; i++) { /* each alone; none is nothing */
        float most = 0;
        memset(wanted, 0, n);
        wanted[i] = true;
        check_subset(&f, wanted, all);
        for (size_t k = 0; k < elements(&f, i); k++)
            most = fmaxf(most, fabsf(all[i][k]));
        /* a key bias moves all scores of a softmax alike: its gradient is rounding */
        if (!(most > 1e-4f) && !strstr(f.model->params[i].name, "k_proj.bias"))
            fail_msg("%s: the gradient of %s is %g", f.name, f.model->params[i].name, (double)most);
    }
    for (uint32_t pick = 1; pick < 200; pick += 11) { /* and some of them together */
        for (size_t i = 0; i < n; i++)
            wanted[i] = (pick * 2654435761u >> (i * 5 % 28) & 7u) < 2;
        check_subset(&f, wanted, all);
    }
    for (int layer = (int)f.model->arch.layers - 1; layer >= 0; layer--) { /* a layer and above */
        for (size_t i = 0; i < n; i++)
            wanted[i] = f.model->params[i].layer >= layer && !f.model->params[i].vector;
        check_subset(&f, wanted, all);
    }
    gradients_free(&f, all);
    mm_free(wanted);
    close_case(&f);
}

static void subsets(void **state) {
    (void)state;
    for (size_t i = 0; i < CASES; i++)
        check_subsets(cases[i]);
}

/* -- two backwards ----------------------------------------------------------------------------- */

/* The gradients of `wanted` by a second backward, before which those weights have changed. The
 * caller frees with gradients_free; the weights are as before. */
static float **second_gradients(const struct fixture *f, const bool *wanted, enum mm_keep keep) {
    const struct mm_model *m = f->model;
    size_t n = f->B * f->T;
    struct mm_arena *arena = mm_arena_create(dev);
    struct mm_acts acts;
    struct mm_scratch scratch;
    float **grads = mm_calloc(m->params_n, sizeof *grads);
    mm_acts_create(&acts, arena, m, n, wanted, keep);
    mm_scratch_create(&scratch, arena, m, n, MM_WITH_BACKWARD);
    struct mm_mat dhidden = mm_arena_mat(arena, MM_FOR_SCRATCH, MM_F32, n, m->arch.width);
    for (size_t i = 0; i < n * m->arch.width; i++)
        ((float *)dhidden.data)[i] = (float)(i % 7) - 3;
    for (size_t i = 0; i < m->params_n; i++)
        grads[i] = wanted[i] ? mm_calloc(elements(f, i), sizeof **grads) : NULL;
    mm_forward(m, &acts, &scratch, f->tokens, f->B, f->T, no_hook);
    mm_backward(m, &acts, &scratch, dhidden, grads, MM_SET, no_hook);
    for (size_t i = 0; i < m->params_n; i++)
        for (size_t k = 0; wanted[i] && k < elements(f, i); k++)
            ((float *)m->params[i].w.data)[k] *= 2;
    mm_backward(m, &acts, &scratch, dhidden, grads, MM_SET, no_hook);
    for (size_t i = 0; i < m->params_n; i++)
        for (size_t k = 0; wanted[i] && k < elements(f, i); k++)
            ((float *)m->params[i].w.data)[k] /= 2;
    mm_acts_free(&acts);
    mm_arena_free(arena);
    return grads;
}

static bool same_gradients(const struct fixture *f, float *const *a, float *const *b) {
    bool same = true;
    for (size_t i = 0; i < f->model->params_n; i++)
        same &= !a[i] || memcmp(a[i], b[i], elements(f, i) * sizeof **a) == 0;
    return same;
}

/* The trap of docs/method.md 3: what was computed through the old weights may not be recomputed
 * through the new ones. One who does gets other gradients. */
static void check_two(const struct fixture *f, const char *module) {
    bool *wanted = mm_calloc(f->model->params_n, 1), any = false;
    for (size_t i = 0; i < f->model->params_n; i++)
        any |= wanted[i] = strstr(f->model->params[i].name, module) != NULL;
    if (any) {
        float **want = second_gradients(f, wanted, MM_KEEP_ALL);
        float **got = second_gradients(f, wanted, MM_KEEP_INPUTS_FOR_TWO);
        float **wrong = second_gradients(f, wanted, MM_KEEP_INPUTS);
        if (!same_gradients(f, want, got))
            fail_msg("%s: the second gradient of %s is another one", f->name, module);
        /* No backward reads what the last product of a layer or of a branch has made. */
        static const char last[] = "down_proj.weight dense_4h_to_h.weight dense.weight";
        if (!strstr(last, module) && same_gradients(f, want, wrong))
            fail_msg("%s: %s may be recomputed after all", f->name, module);
        gradients_free(f, want);
        gradients_free(f, got);
        gradients_free(f, wrong);
    }
    mm_free(wanted);
}

static void two_backwards(void **state) {
    (void)state;
    static const char *const modules[] = {
        "gate_proj.weight",       "up_proj.weight",       "q_proj.weight",
        "v_proj.weight",          "o_proj.weight",        "down_proj.weight",
        "query_key_value.weight", "dense_h_to_4h.weight", "dense.weight",
        "dense_4h_to_h.weight",   "_proj.weight",         "dense"};
    for (size_t i = 0; i < CASES; i++) {
        struct fixture f = open_case(dev, cases[i]);
        for (size_t k = 0; k < sizeof modules / sizeof *modules; k++)
            check_two(&f, modules[k]);
        close_case(&f);
    }
}

/* A forward keeps more or less, and has more or less room: the hidden states are the same. A
 * shorter input has the hidden states of its longer continuation. */
static void check_forward(const char *name) {
    struct fixture f = open_case(dev, name);
    size_t n = f.B * f.T, C = f.model->arch.width, short_T = f.T / 2 + 1, part = f.model->params_n;
    bool *wanted = mm_calloc(part, 1);
    memset(wanted, 1, part);
    struct mm_acts acts[3];
    struct mm_scratch scratch[3];
    uint32_t *cut = mm_calloc(n, sizeof *cut);
    for (size_t i = 0; i < f.B * short_T; i++)
        cut[i] = f.tokens[i / short_T * f.T + i % short_T];
    for (size_t i = 0; i < 3; i++) {
        mm_acts_create(&acts[i], f.arena, f.model, n + 40 * i, i == 1 ? wanted : NULL, MM_KEEP_ALL);
        mm_scratch_create(&scratch[i], f.arena, f.model, n + 40 * i, MM_FORWARD_ONLY);
        mm_forward(f.model, &acts[i], &scratch[i], i == 2 ? cut : f.tokens, f.B,
                   i == 2 ? short_T : f.T, no_hook);
    }
    const float *hidden = acts[0].hidden.data, *shorter = acts[2].hidden.data;
    assert_memory_equal(hidden, acts[1].hidden.data, n * C * sizeof *hidden);
    for (size_t i = 0; i < f.B * short_T * C; i++) {
        float want = hidden[(i / C / short_T * f.T + i / C % short_T) * C + i % C];
        if (!(fabsf(shorter[i] - want) <= 2e-5f * fmaxf(1, fabsf(want))))
            fail_msg("%s: %g for %g with less behind", name, (double)shorter[i], (double)want);
    }
    for (size_t i = 0; i < 3; i++)
        mm_acts_free(&acts[i]);
    mm_free(cut);
    mm_free(wanted);
    close_case(&f);
}

static void forwards(void **state) {
    (void)state;
    for (size_t i = 0; i < CASES; i++)
        check_forward(cases[i]);
}

/* -- the head ---------------------------------------------------------------------------------- */

/* Both losses of a pair at once and each alone, in chunks of `rows`, against one chunk. */
static void check_chunks(struct fixture *f, enum mm_loss_fn first, enum mm_loss_fn second,
                         size_t rows) {
    const struct mm_model *m = f->model;
    struct mm_arena *arena = mm_arena_create(dev);
    size_t n = f->B * f->T, C = m->arch.width, V = m->arch.vocab;
    struct mm_acts acts;
    struct mm_scratch scratch;
    mm_acts_create(&acts, arena, m, n, NULL, MM_KEEP_ALL);
    mm_scratch_create(&scratch, arena, m, n, MM_FORWARD_ONLY);
    mm_forward(m, &acts, &scratch, f->tokens, f->B, f->T, no_hook);
    float *dhead[2];
    double sums[4] = {0.5, 0.5, 0.5, 0.5};
    struct mm_mat d[4];
    for (size_t i = 0; i < 4; i++)
        d[i] = mm_arena_mat(arena, MM_FOR_SCRATCH, MM_F32, n, C);
    for (size_t i = 0; i < 2; i++) {
        struct mm_head head;
        struct mm_loss_term terms[] = {{.fn = first,
                                        .clip_at = 0.1,
                                        .positions = targets_of(f),
                                        .sum = &sums[2 * i],
                                        .dhidden = d[2 * i]},
                                       {.fn = second,
                                        .clip_at = 0.1,
                                        .positions = targets_of(f),
                                        .sum = &sums[2 * i + 1],
                                        .dhidden = d[2 * i + 1]}};
        dhead[i] = mm_arena_take(arena, MM_FOR_SCRATCH, V * C, sizeof(float));
        mm_head_create(&head, arena, m, n, MM_TWO_LOSSES);
        assert_int_equal(head.rows, n);
        if (i == 0) { /* one after the other, in one chunk */
            mm_head_losses(m, &head, &acts, f->targets, &terms[0], 1, dhead[0], MM_ADD);
            mm_head_losses(m, &head, &acts, f->targets, &terms[1], 1, NULL, MM_ADD);
        } else {
            head.rows = rows;
            memset(dhead[1], 0x5a, V * C * sizeof(float));
            mm_head_losses(m, &head, &acts, f->targets, terms, 2, dhead[1], MM_SET);
        }
    }
    for (size_t i = 0; i < 2; i++) {
        trace_near(f->name, "loss in chunks", rows, sums[2 + i], sums[i], 1e-6);
        assert_true(sums[i] != 0.5); /* added to what was there */
        expect_near("dhidden in chunks", d[2 + i].data, d[i].data, n * C, 1e-5);
    }
    expect_near("dhead in chunks", dhead[1], dhead[0], V * C, 1e-5);
    mm_acts_free(&acts);
    mm_arena_free(arena);
}

static void chunks(void **state) {
    (void)state;
    for (size_t i = 0; i < CASES; i++) {
        struct fixture f = open_case(dev, cases[i]);
        size_t n = f.B * f.T;
        for (int fn = 0; fn < 4; fn++) {
            check_chunks(&f, MM_LOSS_CROSS_ENTROPY, (enum mm_loss_fn)fn, n);
            check_chunks(&f, (enum mm_loss_fn)fn, MM_LOSS_CROSS_ENTROPY, 1);
            check_chunks(&f, MM_LOSS_NEG_ENTROPY, (enum mm_loss_fn)fn, 7);
            check_chunks(&f, (enum mm_loss_fn)fn, MM_LOSS_NEG_ENTROPY, n - 1);
        }
        close_case(&f);
    }
}

/* The rows of a chunk: 2^23 logits, but 64 rows at least and the batch at most. */
static void chunk_rows(void **state) {
    (void)state;
    struct fixture f = open_case(dev, cases[0]);
    static const struct {
        size_t vocab, capacity, rows;
    } want[] = {{128256, 1600, 124},
                {1000000, 1600, 64},
                {1000000, 10, 10},
                {50304, 1600, 320},
                {100, 1600, 1600}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        struct mm_arena *arena = mm_arena_create_dry(dev);
        struct mm_model model = *f.model;
        struct mm_head one, two;
        model.arch.vocab = want[i].vocab;
        mm_head_create(&one, arena, &model, want[i].capacity, MM_ONE_LOSS);
        mm_head_create(&two, arena, &model, want[i].capacity, MM_TWO_LOSSES);
        assert_int_equal(one.rows, want[i].rows);
        assert_int_equal(two.rows, want[i].rows);
        mm_arena_free(arena);
    }
    const struct mm_counts counts = {.sequences = 3, .targets = 290, .tokens = 298};
    assert_true(mm_loss_positions(MM_LOSS_CROSS_ENTROPY, counts) == 290);
    assert_true(mm_loss_positions(MM_LOSS_NEG_CROSS_ENTROPY, counts) == 290);
    assert_true(mm_loss_positions(MM_LOSS_CORRECT_LOGIT_MINUS_AVG, counts) == 290);
    assert_true(mm_loss_positions(MM_LOSS_NEG_ENTROPY, counts) == 298);
    assert_true(mm_loss_positions(MM_LOSS_NPO, counts) == 3);
    close_case(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(subsets), cmocka_unit_test(two_backwards), cmocka_unit_test(forwards),
        cmocka_unit_test(chunks),  cmocka_unit_test(chunk_rows),
    };
    dev = mm_device_create_cpu();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    mm_device_free(dev);
    if (mm_live_blocks() != 0)
        fprintf(stderr, "%ld blocks were not freed\n", mm_live_blocks());
    return failed || mm_live_blocks() != 0;
}
