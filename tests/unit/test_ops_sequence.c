/* test_ops_sequence.c - losses of whole sequences on every backend: values against double, weights
 * against central differences of the double form; and the loss of positions under such weights. */
#include "tests/unit/ops_reference.h"
#include "tests/unit/ops_subject.h"

struct sequences {
    enum mm_loss_fn fn;
    double beta, gamma, scale;
    size_t B, T, one; /* `one`: the sequence that sequence_term is of */
    double *losses, *reference;
    uint32_t *targets; /* [B·T] */
};

/* From the definitions: -(2/β) log σ(-x). */
static double sequence_term(const void *of) {
    const struct sequences *c = of;
    double s = 0, s_reference = 0, count = 0;
    for (size_t i = c->one * c->T; i < (c->one + 1) * c->T; i++) {
        count += c->targets[i] < MM_NO_TOKEN;
        s -= c->losses[i];
        s_reference -= c->reference[i];
    }
    double u =
        c->fn == MM_LOSS_NPO ? -c->beta * (s - s_reference) : -c->beta / count * s - c->gamma;
    return -2 / c->beta * log(ref_sigmoid(u));
}

static struct sequences sequences_make(enum mm_loss_fn fn, size_t B, size_t T, double beta,
                                       double gamma) {
    struct rng r = {B + 100 * T};
    struct sequences c = {.fn = fn, .beta = beta, .gamma = gamma, .scale = 0.25, .B = B, .T = T};
    c.losses = random_numbers(&r, MM_F32, B * T, 1);
    c.reference = random_numbers(&r, MM_F32, B * T, 1);
    c.targets = mm_calloc(B * T, sizeof *c.targets);
    for (size_t i = 0; i < B * T; i++) { /* as cross-entropy has them: nothing without a target */
        size_t t = i % T, last = T - 1 - i / T % 2 * (T / 3), first = i / T % 3 * (T / 4);
        c.targets[i] = t > last ? MM_NO_TOKEN : t == last || t < first ? MM_NO_TARGET : 1;
        bool counts = c.targets[i] == 1;
        c.losses[i] = counts ? (double)(float)fabs(3 + c.losses[i]) : 0;
        c.reference[i] = counts ? (double)(float)fabs(3 + c.reference[i]) : 0;
    }
    return c;
}

static void check_sequences(struct sequences *c) {
    double *terms = numbers(c->B), *weights = numbers(c->B * c->T), *size = numbers(c->B * c->T);
    for (c->one = 0; c->one < c->B; c->one++) {
        size_t first = c->one * c->T;
        terms[c->one] = sequence_term(c);
        for (size_t i = first; i < first + c->T; i++) {
            weights[i] = c->scale * central(sequence_term, c, &c->losses[i], 1e-4);
            size[i] = 1;
        }
    }
    FOR_DEVICES(s) {
        struct box bl = box_row(s, MM_F32, c->B * c->T, c->losses);
        struct box br = box_row(s, MM_F32, c->B * c->T, c->reference);
        struct box bt = box_row(s, MM_F32, c->B, NULL);
        struct box bw = box_row(s, MM_F32, c->B * c->T, NULL);
        uint32_t *y = device_put(s, c->targets, c->B * c->T * sizeof *y);
        struct mm_sequence_loss how = {.fn = c->fn,
                                       .beta = c->beta,
                                       .gamma = c->gamma,
                                       .reference = c->fn == MM_LOSS_NPO ? br.mat.data : NULL,
                                       .scale = c->scale};
        s->dev->ops->sequence_loss(s->dev, &how, bl.mat.data, y, c->B, c->T, bt.mat.data,
                                   bw.mat.data);
        expect_close(&bt, "sequence_loss terms", terms, terms, 1);
        expect_close(&bw, "sequence_loss weights", weights, size, 1);
        expect_exact(&bl, "sequence_loss losses", c->losses);
    }
    mm_free(c->targets);
    pool_drop();
}

static void sequence_losses(void **state) {
    (void)state;
    static const size_t lengths[] = {2, 7, 100, 300};
    for (size_t i = 0; i < 4; i++)
        for (size_t B = 1; B <= 5; B += 4) {
            struct sequences npo = sequences_make(MM_LOSS_NPO, B, lengths[i], 0.1, 0);
            check_sequences(&npo);
            struct sequences simnpo = sequences_make(MM_LOSS_SIMNPO, B, lengths[i], 2.5, 0.5);
            check_sequences(&simnpo);
        }
}

/* Far from the reference on either side: no overflow, and the limits. */
static void far_away(void **state) {
    (void)state;
    static const double losses[] = {9000, 0, 0, 0}, reference[] = {0, 0, 9000, 0};
    static const uint32_t targets[] = {1, MM_NO_TARGET, 1, MM_NO_TARGET};
    FOR_DEVICES(s) {
        struct box bl = box_row(s, MM_F32, 4, losses), br = box_row(s, MM_F32, 4, reference);
        struct box bt = box_row(s, MM_F32, 2, NULL), bw = box_row(s, MM_F32, 4, NULL);
        struct mm_sequence_loss how = {
            .fn = MM_LOSS_NPO, .beta = 0.5, .reference = br.mat.data, .scale = 1};
        s->dev->ops->sequence_loss(s->dev, &how, bl.mat.data,
                                   device_put(s, targets, sizeof targets), 2, 2, bt.mat.data,
                                   bw.mat.data);
        expect_exact(&bt, "terms", (const double[]){0, 18000});
        expect_exact(&bw, "weights", (const double[]){-0.0, -0.0, -2, -2});
    }
}

static void sequences_pass_nan_on(void **state) {
    (void)state;
    static const double losses[] = {1, 0, NAN, 0, 1, 0};
    static const uint32_t targets[] = {1, MM_NO_TARGET, 1, MM_NO_TARGET, 1, MM_NO_TARGET};
    FOR_DEVICES(s) {
        struct box bl = box_row(s, MM_F32, 6, losses), bt = box_row(s, MM_F32, 3, NULL);
        struct box bw = box_row(s, MM_F32, 6, NULL);
        struct mm_sequence_loss how = {.fn = MM_LOSS_SIMNPO, .beta = 0.5, .scale = 1};
        s->dev->ops->sequence_loss(s->dev, &how, bl.mat.data,
                                   device_put(s, targets, sizeof targets), 3, 2, bt.mat.data,
                                   bw.mat.data);
        const double *terms = box_read(&bt, "terms");
        assert_true(isfinite(terms[0]) && isnan(terms[1]) && isfinite(terms[2]));
    }
}

/* A row's gradient is that of the loss alone times its weight; the losses are as without. */
static void weighted_rows(void **state) {
    (void)state;
    enum { ROWS = 5, V = 33 };
    static const double weights[ROWS] = {1, -0.5, 0.25, 4, -1};
    static const uint32_t targets[ROWS] = {3, 0, 7, UINT32_MAX, 32};
    FOR_DTYPES(dtype) {
        struct rng r = {1};
        double *z = random_numbers(&r, dtype, (size_t)ROWS * V, 2), *want = numbers(ROWS * V);
        FOR_SUBJECTS(s, dtype)
        for (int fn = MM_LOSS_CROSS_ENTROPY; fn <= MM_LOSS_CORRECT_LOGIT_MINUS_AVG; fn++) {
            struct box bz = box_make(s, dtype, ROWS, V, 0, z);
            struct box one = box_make(s, dtype, ROWS, V, 0, NULL);
            struct box two = box_make(s, dtype, ROWS, V, 0, NULL);
            struct box l1 = box_row(s, MM_F32, ROWS, NULL), l2 = box_row(s, MM_F32, ROWS, NULL);
            struct box bw = box_row(s, MM_F32, ROWS, weights);
            uint32_t *y = device_put(s, targets, sizeof targets);
            struct mm_loss how = {.fn = (enum mm_loss_fn)fn, .scale = 0.5f};
            s->dev->ops->loss(s->dev, &how, bz.mat, y, l1.mat.data, one.mat);
            how.weights = bw.mat.data;
            s->dev->ops->loss(s->dev, &how, bz.mat, y, l2.mat.data, two.mat);
            const double *plain = box_read(&one, "dlogits");
            for (size_t i = 0; i < (size_t)ROWS * V; i++) /* by powers of two: exactly */
                want[i] = weights[i / V] * plain[i];
            expect_exact(&two, "weighted dlogits", want);
            expect_exact(&l2, "losses", box_read(&l1, "losses"));
        }
        pool_drop();
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(sequence_losses, test_end),
        cmocka_unit_test_teardown(far_away, test_end),
        cmocka_unit_test_teardown(sequences_pass_nan_on, test_end),
        cmocka_unit_test_teardown(weighted_rows, test_end),
    };
    return cmocka_run_group_tests(tests, subjects_open, subjects_close);
}
