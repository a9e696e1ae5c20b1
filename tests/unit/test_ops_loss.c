/* test_ops_loss.c - the losses of every backend: values against double, gradients against central
 * differences of the double form, and tightly against the formulas of docs/method.md 4. */
#include "tests/unit/ops_subject.h"

#include "tests/unit/ops_reference.h"

static const char *const loss_names[] = {"cross_entropy", "neg_cross_entropy", "neg_entropy",
                                         "correct_logit_minus_avg"};
#define LOSSES 4

struct loss_case {
    enum mm_loss_fn fn;
    double clip_at, scale;
    size_t rows, V, row;
    double *z;
    uint32_t targets[128];
    double *losses, *losses_size, *d, *d_size;
};

static double loss_objective(const void *of) {
    const struct loss_case *c = of;
    return c->scale * ref_loss(c->fn, c->clip_at, c->z + c->row * c->V, c->targets[c->row], c->V);
}

/* The gradient of docs/method.md 4 by the logits of the case's row. */
static void loss_slopes(const struct loss_case *c, double *d) {
    const double *z = c->z + c->row * c->V;
    uint32_t y = c->targets[c->row];
    double lse = ref_log_sum(z, c->V), value = ref_loss(c->fn, c->clip_at, z, y, c->V);
    bool logits = c->fn == MM_LOSS_CORRECT_LOGIT_MINUS_AVG;
    for (size_t j = 0; j < c->V; j++) {
        double log_p = z[j] - lse;
        if (y == MM_NO_TOKEN)
            d[j] = 0;
        else if (c->fn == MM_LOSS_NEG_ENTROPY)
            d[j] = c->scale * exp(log_p) * (log_p - value);
        else if (y == MM_NO_TARGET || (logits && value == c->clip_at))
            d[j] = 0;
        else if (logits)
            d[j] = c->scale * ((j == y) - 1 / (double)c->V);
        else
            d[j] = c->scale * (exp(log_p) - (j == y)) * (c->fn == MM_LOSS_CROSS_ENTROPY ? 1 : -1);
    }
}

/* What rounding does: the row's values are near `most`; exponents p are exact but for the rounding
 * of z - top and a few units. */
static void loss_sizes(struct loss_case *c) {
    const double *z = c->z + c->row * c->V;
    double lse = ref_log_sum(z, c->V), most = 0, top = -INFINITY;
    bool logits = c->fn == MM_LOSS_CORRECT_LOGIT_MINUS_AVG;
    for (size_t j = 0; j < c->V; j++) {
        most = fmax(most, fabs(z[j]));
        top = fmax(top, z[j]);
    }
    double loss = ref_loss(c->fn, c->clip_at, z, c->targets[c->row], c->V);
    c->losses_size[c->row] = logits ? 2 * most : 2 + fabs(loss);
    for (size_t j = 0; j < c->V; j++) {
        double p = exp(z[j] - lse), reach = 1 + fabs(z[j] - top);
        double *size = &c->d_size[c->row * c->V + j];
        *size = p * reach * (c->fn == MM_LOSS_NEG_ENTROPY ? 2 + fabs(z[j] - lse - loss) : 1);
        *size = c->scale * (logits ? 1 : *size + (j == c->targets[c->row]));
    }
}

/* Rows of several kinds: as they come, 80 up, 80 down, sharp, and nearly all alike. */
static struct loss_case loss_make(enum mm_dtype dtype, enum mm_loss_fn fn, double clip_at,
                                  size_t rows, size_t V) {
    static const double offset[] = {0, 80, -80, 0, 3}, spread[] = {1, 1, 2, 15, 0.01};
    struct rng r = {rows + 1000 * V};
    struct loss_case c = {.fn = fn, .clip_at = clip_at, .scale = 0.37f, .rows = rows, .V = V};
    c.z = random_numbers(&r, dtype, rows * V, 1);
    c.losses = numbers(rows);
    c.losses_size = numbers(rows);
    c.d = numbers(rows * V);
    c.d_size = numbers(rows * V);
    for (c.row = 0; c.row < rows; c.row++) {
        double *z = c.z + c.row * V;
        size_t kind = c.row % 5;
        for (size_t j = 0; j < V; j++)
            z[j] = rounded(dtype, offset[kind] + spread[kind] * z[j]);
        c.targets[c.row] = c.row % 14 == 5    ? MM_NO_TARGET
                           : c.row % 14 == 12 ? MM_NO_TOKEN
                           : c.row % 7 == 6   ? (uint32_t)V - 1
                                              : (uint32_t)(rng_next(&r) % V);
        c.losses[c.row] = ref_loss(fn, clip_at, z, c.targets[c.row], V);
        loss_slopes(&c, c.d + c.row * V);
        for (size_t j = 0; V <= 1000 && j < V && c.row < 7;
             j++) { /* sure to 1e-8: too coarse for a small p */
            double difference = central(loss_objective, &c, &z[j], 1e-5);
            assert_true(fabs(difference - c.d[c.row * V + j]) < 1e-8);
        }
        loss_sizes(&c);
    }
    return c;
}

/* Losses alone, with gradients, and with gradients in place of the logits. */
static void run_loss(const struct loss_case *c, enum mm_dtype dtype, size_t pad) {
    const char *name = loss_names[c->fn];
    double factor = 12 + (double)c->V / 4000; /* a sum of so many terms */
    struct mm_loss how = {.fn = c->fn, .clip_at = (float)c->clip_at, .scale = (float)c->scale};
    FOR_SUBJECTS(s, dtype) {
        struct mm_mat none = {0};
        uint32_t *targets = device_put(s, c->targets, c->rows * sizeof *targets);
        struct box bz = box_make(s, dtype, c->rows, c->V, pad, c->z);
        struct box bd = box_make(s, dtype, c->rows, c->V, pad, NULL);
        struct box bl = box_row(s, MM_F32, c->rows, NULL);
        s->dev->ops->loss(s->dev, &how, bz.mat, targets, bl.mat.data, none);
        expect_close(&bl, name, c->losses, c->losses_size, factor);
        expect_exact(&bz, name, c->z);
        bl = box_row(s, MM_F32, c->rows, NULL);
        s->dev->ops->loss(s->dev, &how, bz.mat, targets, bl.mat.data, bd.mat);
        expect_close(&bl, name, c->losses, c->losses_size, factor);
        expect_close(&bd, name, c->d, c->d_size, factor);
        expect_exact(&bz, name, c->z);
        const double *d = box_read(&bd, name);
        bl = box_row(s, MM_F32, c->rows, NULL);
        s->dev->ops->loss(s->dev, &how, bz.mat, targets, bl.mat.data, bz.mat);
        expect_close(&bl, name, c->losses, c->losses_size, factor);
        expect_exact(&bz, name, d);
    }
}

static void values_and_gradients(void **state) {
    (void)state;
    static const size_t rows[] = {1, 7, 33, 100}, vocab[] = {1, 2, 7, 16, 33, 100, 257};
    FOR_DTYPES(dtype)
    for (int fn = 0; fn < LOSSES; fn++)
        for (size_t i = 0; i < 4; i++)
            for (size_t j = 0; j < 7; j++) {
                /* far below every value: what is clipped has a test of its own */
                struct loss_case c =
                    loss_make(dtype, (enum mm_loss_fn)fn, -1000, rows[i], vocab[j]);
                run_loss(&c, dtype, pad_of(i + j));
                pool_drop();
            }
}

/* More columns than a block has under way at once; Llama 3's vocabulary. */
static void large_vocabulary(void **state) {
    (void)state;
    FOR_DTYPES(dtype)
    for (int fn = 0; fn < LOSSES; fn++)
        for (size_t pad = 0; pad <= 5; pad += 5) {
            size_t rows = pad ? 7 : 1, V = pad ? 33000 : 128256;
            struct loss_case c = loss_make(dtype, (enum mm_loss_fn)fn, -1000, rows, V);
            run_loss(&c, dtype, pad);
            pool_drop();
        }
}

/* Values above, below and exactly at the clip; there the gradient still flows (docs/method.md 4).
 */
static void clip(void **state) {
    (void)state;
    const size_t V = 16;
    FOR_DTYPES(dtype)
    for (int at = -2; at <= 3; at++) {
        struct loss_case c = {
            .fn = MM_LOSS_CORRECT_LOGIT_MINUS_AVG, .clip_at = at, .scale = 0.5, .rows = 11, .V = V};
        c.z = numbers(c.rows * V);
        c.losses = numbers(c.rows);
        c.losses_size = numbers(c.rows);
        c.d = numbers(c.rows * V);
        c.d_size = numbers(c.rows * V);
        for (size_t i = 0; i < c.rows; i++) { /* value = i/2 - 2, exactly; the mean is i */
            double value = (double)i / 2 - 2;
            for (size_t j = 0; j < V; j++)
                c.z[i * V + j] = (double)i - value / (V - 1);
            c.targets[i] = i == 10 ? UINT32_MAX : (uint32_t)i;
            c.z[i * V + i] = (double)i + value;
            c.z[i * V + (i + 1) % V] = (double)i - value; /* the others stay at the mean */
            for (size_t j = 0; j < V; j++)
                if (j != i && j != (i + 1) % V)
                    c.z[i * V + j] = (double)i;
            c.losses[i] = i == 10 ? 0 : value >= at ? value : at;
            for (size_t j = 0; j < V && value >= at && i < 10; j++)
                c.d[i * V + j] = c.scale * ((j == i) - 1.0 / V);
        }
        run_loss(&c, dtype, 0);
        pool_drop();
    }
}

/* A term that doesn't count is 0, and so is its whole gradient, whatever the logits. */
static void no_target(void **state) {
    (void)state;
    const size_t V = 37, rows = 3;
    FOR_DTYPES(dtype)
    for (int fn = 0; fn < LOSSES; fn++) {
        const uint32_t targets[] = {UINT32_MAX, UINT32_MAX, UINT32_MAX};
        double *z = numbers(rows * V), *zero = numbers(rows * V);
        for (size_t i = 0; i < rows * V; i++)
            z[i] = (double)(i % 5);
        for (int in_place = 0; in_place < 2; in_place++)
            FOR_SUBJECTS(s, dtype) {
                struct box bz = box_make(s, dtype, rows, V, 2, z), bl = box_row(s, MM_F32, 3, NULL);
                struct box bd = box_make(s, dtype, rows, V, 2, NULL);
                struct mm_loss how = {.fn = (enum mm_loss_fn)fn, .clip_at = 2, .scale = 1};
                s->dev->ops->loss(s->dev, &how, bz.mat, device_put(s, targets, sizeof targets),
                                  bl.mat.data, in_place ? bz.mat : bd.mat);
                const double *loss = box_read(&bl, "loss");
                bool counts = fn == MM_LOSS_NEG_ENTROPY;
                for (size_t i = 0; i < rows; i++)
                    assert_true(counts ? loss[i] < -2 : loss[i] == 0);
                if (!counts)
                    expect_exact(in_place ? &bz : &bd, loss_names[fn], zero);
            }
    }
}

/* The guard sees a NaN only if it reaches the loss: from any place of a row, whatever the loss. An
 * infinite logit spoils it too, except where the clip rightly hides it. */
static void losses_pass_nan_on(void **state) {
    (void)state;
    static const size_t vocab[] = {1, 7, 16, 37};
    FOR_DTYPES(dtype)
    for (int fn = 0; fn < LOSSES; fn++)
        for (size_t k = 0; k < 4; k++)
            for (size_t at = 0; at < 2 * vocab[k]; at++) {
                size_t V = vocab[k];
                const uint32_t targets[] = {0, (uint32_t)V - 1, (uint32_t)V / 2};
                bool infinite = at >= V;
                double *z = numbers(3 * V);
                for (size_t j = 0; j < 3 * V; j++)
                    z[j] = (double)(j * j % 11) - 5;
                z[V + at % V] = infinite ? INFINITY : NAN;
                if (infinite && fn == MM_LOSS_CORRECT_LOGIT_MINUS_AVG)
                    continue;
                FOR_SUBJECTS(s, dtype) {
                    struct mm_mat none = {0};
                    struct box bz = box_make(s, dtype, 3, V, 0, z),
                               bl = box_row(s, MM_F32, 3, NULL);
                    struct mm_loss how = {.fn = (enum mm_loss_fn)fn, .scale = 1};
                    s->dev->ops->loss(s->dev, &how, bz.mat, device_put(s, targets, sizeof targets),
                                      bl.mat.data, none);
                    const double *loss = box_read(&bl, "loss");
                    if (!isfinite(loss[0]) || isfinite(loss[1]) || !isfinite(loss[2]))
                        fail_msg("%s: %s, V %zu, %s at %zu: %g %g %g", s->dev->name, loss_names[fn],
                                 V, infinite ? "infinity" : "NaN", at % V, loss[0], loss[1],
                                 loss[2]);
                }
                pool_drop();
            }
}

/* A logit of -infinity (a masked token) has the probability 0: it takes no part in the loss of the
 * others, and its gradient is 0. A finite logit far below stands for it in double. */
static void minus_infinity(void **state) {
    (void)state;
    static const size_t vocab[] = {2, 16, 37, 257};
    FOR_DTYPES(dtype)
    for (int fn = MM_LOSS_CROSS_ENTROPY; fn <= MM_LOSS_NEG_ENTROPY; fn++)
        for (size_t k = 0; k < 4; k++) {
            size_t V = vocab[k], rows = 5;
            struct loss_case c = loss_make(dtype, (enum mm_loss_fn)fn, -1000, rows, V);
            for (c.row = 0; c.row < rows; c.row++) {
                double *z = c.z + c.row * V;
                c.targets[c.row] = (uint32_t)(c.row % V);
                for (size_t j = 0; j < V; j++)
                    if (j != c.row % V && (j + c.row) % 3 != 2)
                        z[j] = -1e4;
                c.losses[c.row] = ref_loss(c.fn, -1000, z, c.targets[c.row], V);
                loss_slopes(&c, c.d + c.row * V);
                loss_sizes(&c);
            }
            for (size_t i = 0; i < rows * V; i++)
                c.z[i] = c.z[i] > -1e4 ? c.z[i] : -INFINITY;
            run_loss(&c, dtype, k % 2 ? 5 : 0);
            pool_drop();
        }
}

/* Terms of the mean are separate: a row's result does not depend on the rows beside it. */
static void rows_are_separate(void **state) {
    (void)state;
    FOR_DTYPES(dtype)
    for (int fn = 0; fn < LOSSES; fn++) {
        /* a bfloat16 row can hit a clip of 0 exactly, where differences fail */
        struct loss_case c = loss_make(dtype, (enum mm_loss_fn)fn, 0.3, 33, 33);
        FOR_SUBJECTS(s, dtype) {
            uint32_t *targets = device_put(s, c.targets, sizeof c.targets);
            struct box bz = box_make(s, dtype, c.rows, c.V, 0, c.z);
            struct box bd = box_make(s, dtype, c.rows, c.V, 0, NULL);
            struct box be = box_make(s, dtype, c.rows, c.V, 0, NULL);
            struct box bl = box_row(s, MM_F32, c.rows, NULL), bm = box_row(s, MM_F32, c.rows, NULL);
            struct mm_loss how = {.fn = c.fn, .scale = 1};
            s->dev->ops->loss(s->dev, &how, bz.mat, targets, bl.mat.data, bd.mat);
            for (size_t i = 0; i < c.rows; i++)
                s->dev->ops->loss(s->dev, &how, mm_mat_rows(bz.mat, i, 1), targets + i,
                                  (float *)bm.mat.data + i, mm_mat_rows(be.mat, i, 1));
            expect_exact(&bm, loss_names[fn], box_read(&bl, "losses"));
            expect_exact(&be, loss_names[fn], box_read(&bd, "dlogits"));
        }
        pool_drop();
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(values_and_gradients, test_end),
        cmocka_unit_test_teardown(large_vocabulary, test_end),
        cmocka_unit_test_teardown(clip, test_end),
        cmocka_unit_test_teardown(no_target, test_end),
        cmocka_unit_test_teardown(losses_pass_nan_on, test_end),
        cmocka_unit_test_teardown(minus_infinity, test_end),
        cmocka_unit_test_teardown(rows_are_separate, test_end),
    };
    return cmocka_run_group_tests(tests, subjects_open, subjects_close);
}
