/* test_ops_state.c - losses on hidden states of every backend: values and gradients against double,
 * the gradients against central differences too. */
#include "tests/unit/ops_subject.h"

#include "tests/unit/ops_reference.h"

static const char *const names[] = {"distance", "square distance", "cosine", "length"};
#define KINDS 4

/* Row `row` of h and of r (of which there is one if `shared`), dx before and after. */
struct state_case {
    enum mm_state_loss kind;
    bool shared;
    size_t rows, C, row;
    double scale, factor;
    double *h, *r, *values, *values_size, *before, *dx, *dx_size;
    uint32_t *targets; /* [rows]; of padding: nothing changes */
};

static double *h_of(const struct state_case *c) {
    return c->h + c->row * c->C;
}

static double *r_of(const struct state_case *c) {
    return c->r + (c->shared ? 0 : c->row * c->C);
}

static double objective(const void *of) {
    const struct state_case *c = of;
    return c->scale * c->factor * ref_state_loss(c->kind, h_of(c), r_of(c), c->C);
}

static double length_of(const double *x, size_t C) {
    double squares = 0;
    for (size_t j = 0; j < C; j++)
        squares += x[j] * x[j];
    return sqrt(squares);
}

/* The gradient of docs/method.md 4 by the row's h, which is scale·factor of it, and what it is made
 * of. */
static void slopes(const struct state_case *c, double *g, double *size) {
    const double *h = h_of(c), *r = r_of(c);
    double a = length_of(h, c->C), b = length_of(r, c->C), value, s = c->scale * c->factor;
    value = ref_state_loss(c->kind, h, r, c->C);
    for (size_t j = 0; j < c->C; j++) {
        double d = h[j] - r[j];
        if (c->kind == MM_STATE_SQUARE_DISTANCE)
            g[j] = 2 * d;
        else if (value == 0)
            g[j] = 0;
        else if (c->kind == MM_STATE_DISTANCE)
            g[j] = d / value;
        else if (c->kind == MM_STATE_COSINE)
            g[j] = (r[j] / b - value * h[j] / a) / a;
        else
            g[j] = h[j] / a;
        g[j] *= s;
        size[j] = c->kind == MM_STATE_COSINE && value > 0
                      ? s * (fabs(r[j]) / b + fabs(h[j]) / a) / a
                      : fabs(g[j]);
    }
}

/* Rows as they come; r beside h; r against h, whose cosine is negative; r = h; and h = 0. */
static struct state_case make(enum mm_dtype dtype, enum mm_state_loss kind, bool shared,
                              size_t rows, size_t C) {
    struct rng rng = {rows + 1000 * C + (size_t)kind};
    struct state_case c = {
        .kind = kind, .shared = shared, .rows = rows, .C = C, .scale = 0.37f, .factor = 1.5};
    size_t n = rows * C;
    c.h = random_numbers(&rng, dtype, n, 2);
    c.r = random_numbers(&rng, dtype, n, 1);
    c.before = random_numbers(&rng, dtype, n, 0.1);
    c.values = numbers(rows);
    c.values_size = numbers(rows);
    c.dx = numbers(n);
    c.dx_size = numbers(n);
    c.targets = mm_calloc(rows, sizeof *c.targets);
    double *g = numbers(C), *size = numbers(C);
    for (c.row = 0; c.row < rows; c.row++) {
        c.targets[c.row] = c.row % 2 ? MM_NO_TARGET : 3;
        double *h = h_of(&c), *r = r_of(&c);
        for (size_t j = 0; j < C && !shared; j++) {
            r[j] = c.row % 5 == 1 ? rounded(dtype, h[j] + 0.1 * r[j]) : r[j];
            r[j] = c.row % 5 == 2 ? rounded(dtype, r[j] - 2 * h[j]) : r[j];
            r[j] = c.row % 5 == 3 ? h[j] : r[j];
            h[j] = c.row % 5 == 4 ? 0 : h[j];
        }
        c.values[c.row] = ref_state_loss(kind, h, r, C);
        double reach = length_of(h, C) + length_of(r, C);
        c.values_size[c.row] = kind == MM_STATE_COSINE            ? 2
                               : kind == MM_STATE_SQUARE_DISTANCE ? c.values[c.row]
                                                                  : reach;
        slopes(&c, g, size);
        for (size_t j = 0; j < C; j++) {
            if (c.row % 5 < 3 && C < 40 && C > 1) /* away from what has no derivative */
                assert_true(fabs(central(objective, &c, &h[j], 1e-5) - g[j]) < 1e-7);
            c.dx[c.row * C + j] = c.before[c.row * C + j] + g[j];
            c.dx_size[c.row * C + j] = size[j] + fabs(c.before[c.row * C + j]);
        }
        if (c.row % 6 != 4)
            continue;
        c.targets[c.row] = MM_NO_TOKEN;
        c.values[c.row] = 0;
        memcpy(c.dx + c.row * C, c.before + c.row * C, C * sizeof *c.dx);
    }
    return c;
}

/* Values alone, the gradient alone, and both with a factor on the device. */
static void run(const struct state_case *c, enum mm_dtype dtype, size_t pad) {
    const char *name = names[c->kind];
    double room = 8 + (double)c->C / 100; /* a sum of so many terms */
    FOR_SUBJECTS(s, dtype) {
        struct mm_mat none = {0};
        struct box h = box_make(s, dtype, c->rows, c->C, pad, c->h);
        struct box r = box_make(s, dtype, c->shared ? 1 : c->rows, c->C, pad, c->r);
        struct mm_mat others = c->kind == MM_STATE_LENGTH ? none : r.mat;
        if (c->shared)
            others.ld = 0;
        struct box values = box_row(s, MM_F32, c->rows, NULL);
        uint32_t *y = device_put(s, c->targets, c->rows * sizeof *y);
        s->dev->ops->state_loss(s->dev, c->kind, h.mat, others, y, 0, NULL, values.mat.data, none);
        expect_close(&values, name, c->values, c->values_size, room);
        struct box dx = box_make(s, dtype, c->rows, c->C, pad, c->before);
        s->dev->ops->state_loss(s->dev, c->kind, h.mat, others, y, (float)(c->scale * c->factor),
                                NULL, NULL, dx.mat);
        expect_close(&dx, name, c->dx, c->dx_size, room);
        values = box_row(s, MM_F32, c->rows, NULL);
        dx = box_make(s, dtype, c->rows, c->C, pad, c->before);
        s->dev->ops->state_loss(s->dev, c->kind, h.mat, others, y, (float)c->scale,
                                scalar_put(s, c->factor), values.mat.data, dx.mat);
        expect_close(&values, name, c->values, c->values_size, room);
        expect_close(&dx, name, c->dx, c->dx_size, room);
        expect_exact(&h, name, c->h);
        expect_exact(&r, name, c->r);
    }
}

static void values_and_gradients(void **state) {
    (void)state;
    static const size_t rows[] = {1, 7, 33}, widths[] = {1, 2, 7, 16, 33, 128, 2056};
    FOR_DTYPES(dtype)
    for (int kind = 0; kind < KINDS; kind++)
        for (size_t i = 0; i < 3; i++)
            for (size_t j = 0; j < 7; j++) {
                struct state_case c =
                    make(dtype, (enum mm_state_loss)kind, j % 2, rows[i], widths[j]);
                run(&c, dtype, pad_of(i + j));
                mm_free(c.targets);
                c = make(dtype, (enum mm_state_loss)kind, false, rows[i], widths[j]);
                run(&c, dtype, 0);
                mm_free(c.targets);
                pool_drop();
            }
}

/* Where there is no derivative the gradient is exactly 0, not a division by it. */
static void nothing_to_move(void **state) {
    (void)state;
    const size_t C = 24;
    FOR_DTYPES(dtype)
    for (int kind = 0; kind < KINDS; kind++) {
        double *h = numbers(2 * C), *r = numbers(2 * C), *zero = numbers(2 * C);
        for (size_t j = 0; j < C; j++) { /* row 0: no h, row 1: no r; of distances none of d */
            h[C + j] = (double)j - 7;
            r[j] = (double)j + 1;
            if (kind == MM_STATE_DISTANCE || kind == MM_STATE_SQUARE_DISTANCE) {
                h[j] = r[j];
                r[C + j] = h[C + j];
            }
        }
        size_t rows = kind == MM_STATE_LENGTH ? 1 : 2;
        FOR_SUBJECTS(s, dtype) {
            struct box bh = box_make(s, dtype, rows, C, 0, h),
                       br = box_make(s, dtype, rows, C, 0, r);
            struct box dx = box_make(s, dtype, rows, C, 0, zero);
            struct box values = box_row(s, MM_F32, rows, NULL);
            static const uint32_t y[2] = {0};
            s->dev->ops->state_loss(s->dev, (enum mm_state_loss)kind, bh.mat, br.mat,
                                    device_put(s, y, sizeof y), 1, NULL, values.mat.data, dx.mat);
            expect_exact(&values, names[kind], zero);
            expect_close(&dx, names[kind], zero, NULL, 0);
        }
        pool_drop();
    }
}

/* The guard sees a NaN or an infinity only if it reaches the value. */
static void values_pass_nan_on(void **state) {
    (void)state;
    FOR_DTYPES(dtype)
    for (int kind = 0; kind < KINDS; kind++)
        for (size_t at = 0; at < 80; at++) {
            const size_t C = 40;
            double *h = numbers(3 * C), *r = numbers(3 * C);
            for (size_t j = 0; j < 3 * C; j++)
                h[j] = r[j] = (double)(j * j % 11) - 5;
            h[C + at % C] = at < C ? NAN : INFINITY;
            FOR_SUBJECTS(s, dtype) {
                static const uint32_t y[3] = {0};
                struct mm_mat none = {0};
                struct box bh = box_make(s, dtype, 3, C, 0, h), br = box_make(s, dtype, 3, C, 0, r);
                struct box values = box_row(s, MM_F32, 3, NULL);
                s->dev->ops->state_loss(s->dev, (enum mm_state_loss)kind, bh.mat, br.mat,
                                        device_put(s, y, sizeof y), 1, NULL, values.mat.data, none);
                const double *got = box_read(&values, names[kind]);
                assert_true(isfinite(got[0]) && !isfinite(got[1]) && isfinite(got[2]));
            }
            pool_drop();
        }
}

static void adds_squares(void **state) {
    (void)state;
    const double x[] = {3, -4, 0.5, 1e-9, 2};
    FOR_DEVICES(s) {
        double *sum = scalar_put(s, 0.25), *values = device_put(s, x, sizeof x);
        s->dev->ops->add_squares(s->dev, sum, values, 0);
        assert_true(scalar_get(s, sum) == 0.25);
        s->dev->ops->add_squares(s->dev, sum, values, 5);
        expect_scalar(s, "add_squares", scalar_get(s, sum), 29.5, 1e-15);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(values_and_gradients, test_end),
        cmocka_unit_test_teardown(nothing_to_move, test_end),
        cmocka_unit_test_teardown(values_pass_nan_on, test_end),
        cmocka_unit_test_teardown(adds_squares, test_end),
    };
    return cmocka_run_group_tests(tests, subjects_open, subjects_close);
}
