/* test_ops_layer.c - norms, rotation and activations of every backend: values against double,
 * gradients against central differences of the double forms. */
#include "tests/unit/ops_subject.h"

#include "tests/unit/ops_reference.h"

/* -- norms ------------------------------------------------------------------------------------- */

/* A norm of n rows, or of n/parts rows of that many parts, and the sum of dy·y over rows
 * [first, first + count) of the n as a function of it. */
struct norm_case {
    enum mm_norm_kind kind;
    double epsilon;
    size_t n, C, parts, first, count;
    double *x, *weight, *bias, *dy;
};

static double norm_objective(const void *of) {
    const struct norm_case *c = of;
    double sum = 0, y[8448], stats[2];
    for (size_t i = c->first; i < c->first + c->count; i++) {
        ref_norm_row(c->kind, c->epsilon, c->x + i * c->C, c->weight, c->bias, c->C, y, stats);
        for (size_t j = 0; j < c->C; j++)
            sum += c->dy[i * c->C + j] * y[j];
    }
    return sum;
}

static struct norm_case norm_make(enum mm_dtype dtype, enum mm_norm_kind kind, size_t n, size_t C) {
    struct rng r = {n + 100 * C + (size_t)kind};
    struct norm_case c = {.kind = kind, .epsilon = 1e-5f, .n = n, .C = C, .parts = 1};
    c.x = random_numbers(&r, dtype, n * C, 1);
    for (size_t i = 0; i < n; i++) /* rows small beside epsilon, large, and far off the mean */
        for (size_t j = 0; j < C; j++) {
            double *x = &c.x[i * C + j], scale = i % 4 == 1 ? 1e-3 : i % 4 == 2 ? 1e3 : 1;
            *x = rounded(dtype, scale * *x + (i % 4 == 3 ? 20 : 0));
        }
    c.weight = random_numbers(&r, dtype, C, 1);
    c.bias = kind == MM_LAYER_NORM ? random_numbers(&r, dtype, C, 1) : NULL;
    c.dy = random_numbers(&r, dtype, n * C, 1);
    return c;
}

static struct box norm_box(const struct subject *s, const struct norm_case *c, enum mm_dtype dtype,
                           size_t pad, const double *values) {
    return box_make(s, dtype, c->n / c->parts, c->C * c->parts, pad, values);
}

/* Values with the sum in a matrix of its own, in x itself, and without one, as parts have it. */
static void check_norm(const struct norm_case *c, enum mm_dtype dtype, size_t pad) {
    size_t n = c->n, C = c->C;
    struct rng r = {C};
    double *delta = random_numbers(&r, dtype, n * C, 1), *x = numbers(n * C), *y = numbers(n * C);
    double *size = numbers(n * C), *stats = numbers(2 * n), *stats_size = numbers(2 * n);
    for (size_t i = 0; i < n * C; i++) { /* x + delta is exactly c->x */
        delta[i] = rounded(dtype, i % 5 ? delta[i] : 0);
        x[i] = rounded(dtype, c->x[i] - delta[i]);
        if (rounded(dtype, x[i] + delta[i]) != c->x[i] || x[i] + delta[i] != c->x[i]) {
            x[i] = c->x[i];
            delta[i] = 0;
        }
    }
    for (size_t i = 0; i < n; i++) {
        ref_norm_row(c->kind, c->epsilon, c->x + i * C, c->weight, c->bias, C, y + i * C,
                     stats + 2 * i);
        stats_size[2 * i + 1] = stats[2 * i + 1] * (1 + fabs(stats[2 * i]) * stats[2 * i + 1]);
        for (size_t j = 0; j < C; j++) {
            double reach = fabs(c->x[i * C + j]) + fabs(stats[2 * i]);
            stats_size[2 * i] += fabs(c->x[i * C + j]) / (double)C;
            size[i * C + j] = reach * stats[2 * i + 1] * fabs(c->weight[j]) * 2 +
                              (c->bias ? fabs(c->bias[j]) : 0);
        }
    }
    for (int form = c->parts > 1 ? 2 : 0; form < 3; form++)
        FOR_SUBJECTS(s, dtype) {
            struct mm_mat none = {0};
            struct box bx = norm_box(s, c, dtype, pad, form == 2 ? c->x : x);
            struct box bd = norm_box(s, c, dtype, pad, delta);
            struct box bs = norm_box(s, c, dtype, pad, NULL);
            struct box by = norm_box(s, c, dtype, pad, NULL);
            struct box bstats = box_make(s, MM_F32, n, 2, 0, NULL);
            struct box bw = box_row(s, dtype, C, c->weight);
            struct box bb = c->bias ? box_row(s, dtype, C, c->bias) : (struct box){0};
            struct mm_norm how = {c->kind, (float)c->epsilon, bw.mat.data, bb.mat.data, c->parts};
            s->dev->ops->norm(s->dev, &how, form ? bx.mat : bs.mat, bx.mat,
                              form == 2 ? none : bd.mat, by.mat, bstats.mat.data);
            expect_exact(form ? &bx : &bs, "norm sum", c->x);
            expect_close(&by, "norm y", y, size, 8);
            expect_close(&bstats, "norm stats", stats, stats_size, 8);
            if (form == 0)
                expect_exact(&bx, "norm x", x);
            expect_exact(&bd, "norm delta", delta);
        }
}

/* Against differences; dx, dweight and dbias start from what is there, or aren't wanted. */
static void check_norm_grad(struct norm_case *c, enum mm_dtype dtype, size_t pad) {
    size_t n = c->n, C = c->C;
    struct rng r = {n};
    double *dx = random_numbers(&r, dtype, n * C, 1), *want = numbers(n * C),
           *size = numbers(n * C);
    double *dw = random_numbers(&r, MM_F32, C, 1), *db = random_numbers(&r, MM_F32, C, 1);
    double *want_w = numbers(C), *want_b = numbers(C), *size_w = numbers(C), *size_b = numbers(C);
    double *stats = numbers(2 * n), *y = numbers(C);
    for (c->first = 0, c->count = 1; c->first < n; c->first++) {
        double *x = c->x + c->first * C, *row = stats + 2 * c->first, slope = 0, most = 1;
        ref_norm_row(c->kind, c->epsilon, x, c->weight, c->bias, C, y, row);
        for (size_t j = 0; j < C; j++) {
            double u = (fabs(x[j]) + fabs(row[0])) * row[1], dy = c->dy[c->first * C + j];
            slope = fmax(slope, fabs(c->weight[j] * dy));
            most = fmax(most, u);
            size_w[j] += u * fabs(dy);
            size_b[j] += fabs(dy);
        }
        for (size_t j = 0; j < C; j++) {
            double step = central(norm_objective, c, &x[j], 1e-5 / row[1]);
            want[c->first * C + j] = dx[c->first * C + j] + step;
            size[c->first * C + j] = fabs(dx[c->first * C + j]) + row[1] * slope * most * most;
        }
    }
    c->first = 0;
    c->count = n;
    for (size_t j = 0; j < C; j++) {
        want_w[j] = dw[j] + central(norm_objective, c, &c->weight[j], 1e-3);
        want_b[j] = db[j] + (c->bias ? central(norm_objective, c, &c->bias[j], 1e-3) : 0);
        size_w[j] += fabs(dw[j]);
        size_b[j] += fabs(db[j]);
    }
    for (int wanted = 0; wanted < 4; wanted++)
        FOR_SUBJECTS(s, dtype) {
            bool w = wanted & 1, b = wanted & 2;
            struct box bx = norm_box(s, c, dtype, pad, c->x);
            struct box bdy = norm_box(s, c, dtype, pad, c->dy);
            struct box bdx = norm_box(s, c, dtype, pad, dx);
            struct box bstats = box_make(s, MM_F32, n, 2, 0, stats);
            struct box bw = box_row(s, dtype, C, c->weight);
            struct box bdw = box_row(s, MM_F32, C, dw), bdb = box_row(s, MM_F32, C, db);
            if (b && !c->bias)
                continue;
            struct mm_norm how = {c->kind, (float)c->epsilon, bw.mat.data, NULL, c->parts};
            s->dev->ops->norm_grad(s->dev, &how, bdx.mat, bdy.mat, bx.mat, bstats.mat.data,
                                   w ? bdw.mat.data : NULL, b ? bdb.mat.data : NULL);
            expect_close(&bdx, "norm_grad dx", want, size, 16);
            expect_close(&bdw, "norm_grad dweight", w ? want_w : dw, size_w, w ? 8 : 0);
            expect_close(&bdb, "norm_grad dbias", b ? want_b : db, size_b, b ? 8 : 0);
            expect_exact(&bx, "norm_grad x", c->x);
            expect_exact(&bdy, "norm_grad dy", c->dy);
        }
}

static void norms(void **state) {
    (void)state;
    static const size_t rows[] = {1, 7, 33, 100}, cols[] = {1, 2, 7, 16, 33, 100, 264};
    FOR_DTYPES(dtype)
    for (int kind = MM_RMS_NORM; kind <= MM_LAYER_NORM; kind++)
        for (size_t i = 0; i < 4; i++)
            for (size_t j = 0; j < 7; j++) {
                size_t pad = pad_of(i + j);
                struct norm_case c = norm_make(dtype, (enum mm_norm_kind)kind, rows[i], cols[j]);
                check_norm(&c, dtype, pad);
                check_norm_grad(&c, dtype, pad);
                pool_drop();
            }
}

/* Rows of several parts, as heads are, each normalized by itself. */
static void norms_of_parts(void **state) {
    (void)state;
    static const size_t rows[] = {1, 7, 33}, parts[] = {2, 3, 40}, cols[] = {1, 8, 33, 128};
    FOR_DTYPES(dtype)
    for (size_t i = 0; i < 3; i++)
        for (size_t j = 0; j < 4; j++) {
            struct norm_case c = norm_make(dtype, MM_RMS_NORM, rows[i] * parts[i], cols[j]);
            c.parts = parts[i];
            check_norm(&c, dtype, j % 2 ? 5 : 0);
            check_norm_grad(&c, dtype, j % 2 ? 5 : 0);
            pool_drop();
        }
}

/* Rows of more elements than a block has threads for at once. */
static void wide_norms(void **state) {
    (void)state;
    FOR_DTYPES(dtype)
    for (int kind = MM_RMS_NORM; kind <= MM_LAYER_NORM; kind++)
        for (size_t cols = 8208; cols <= 8209; cols++) {
            struct norm_case c = norm_make(dtype, (enum mm_norm_kind)kind, 1, cols);
            check_norm(&c, dtype, 0);
            if (kind == MM_LAYER_NORM && cols % 8 == 0) /* central differences take seconds */
                check_norm_grad(&c, dtype, 0);
            pool_drop();
        }
}

/* The guard sees only losses and gradients: a NaN anywhere in a row must spoil the row, and so must
 * an infinity and a finite number whose square is one. */
static void norms_pass_nan_on(void **state) {
    (void)state;
    const size_t n = 3, C = 37;
    FOR_DTYPES(dtype)
    for (int kind = MM_RMS_NORM; kind <= MM_LAYER_NORM; kind++)
        for (size_t at = 0; at < C; at++) {
            struct norm_case c = norm_make(dtype, (enum mm_norm_kind)kind, n, C);
            double *bad = numbers(n * C), *stats = numbers(2 * n), *zero = numbers(n * C);
            memcpy(bad, c.dy, n * C * sizeof *bad);
            c.x[C + at] = at % 3 == 0 ? NAN : at % 3 == 1 ? INFINITY : -0x1p100;
            bad[C + at] = NAN;
            for (size_t i = 0; i < n; i++)
                stats[2 * i + 1] = 1;
            FOR_SUBJECTS(s, dtype) {
                struct mm_mat none = {0};
                struct box bx = box_make(s, dtype, n, C, 0, c.x);
                struct box by = box_make(s, dtype, n, C, 0, NULL);
                struct box bw = box_row(s, dtype, C, c.weight);
                struct box bs = box_make(s, MM_F32, n, 2, 0, NULL);
                struct mm_norm how = {c.kind, 1e-5f, bw.mat.data,
                                      c.bias ? box_row(s, dtype, C, c.bias).mat.data : NULL, 1};
                s->dev->ops->norm(s->dev, &how, none, bx.mat, none, by.mat, bs.mat.data);
                const double *y = box_read(&by, "norm");
                size_t nans = 0;
                for (size_t j = 0; j < C; j++) {
                    assert_true(isfinite(y[j]) && isfinite(y[2 * C + j]));
                    nans += isnan(y[C + j]);
                }
                if (nans < C || !isnan(box_read(&bs, "stats")[3]))
                    fail_msg("%s: norm: %zu NaN of %zu", s->dev->name, nans, C);

                struct box bdx = box_make(s, dtype, n, C, 0, zero);
                struct box bdy = box_make(s, dtype, n, C, 0, bad);
                bx = box_make(s, dtype, n, C, 0, c.dy);
                bs = box_make(s, MM_F32, n, 2, 0, stats);
                s->dev->ops->norm_grad(s->dev, &how, bdx.mat, bdy.mat, bx.mat, bs.mat.data, NULL,
                                       NULL);
                const double *dx = box_read(&bdx, "norm_grad");
                for (size_t j = 0; j < C; j++)
                    assert_true(isfinite(dx[j]) && isnan(dx[C + j]) && isfinite(dx[2 * C + j]));
            }
            pool_drop();
        }
}

/* -- rotation ---------------------------------------------------------------------------------- */

static const struct mm_heads llama_heads = {.heads = 6,
                                            .kv_heads = 2,
                                            .head_dim = 8,
                                            .rotary_dim = 8,
                                            .q_step = 8,
                                            .k_first = 48,
                                            .k_step = 8,
                                            .v_first = 64,
                                            .v_step = 8};
static const struct mm_heads neox_heads = {.heads = 3,
                                           .kv_heads = 3,
                                           .head_dim = 12,
                                           .rotary_dim = 6,
                                           .q_step = 36,
                                           .k_first = 12,
                                           .k_step = 36,
                                           .v_first = 24,
                                           .v_step = 36};

static void check_rope(enum mm_dtype dtype, const struct mm_heads *h, size_t B, size_t T,
                       size_t pad) {
    size_t cols = (h->heads + 2 * h->kv_heads) * h->head_dim, half = h->rotary_dim / 2, n = B * T;
    struct rng r = {n};
    double *x = random_numbers(&r, dtype, n * cols, 1), *want = numbers(n * cols);
    double *angle = numbers(T * half), *cosine = numbers(T * half), *sine = numbers(T * half);
    double *size = numbers(n * cols), most = 0; /* an element turns into its pair, and rounds so */
    for (size_t i = 0; i < n * cols; i++)
        most = fmax(most, fabs(x[i]));
    for (size_t i = 0; i < n * cols; i++)
        size[i] = (dtype == MM_BF16 ? 0x1p15 : 1) * most;
    for (size_t i = 0; i < T * half; i++) {
        angle[i] = (double)(i / half) * pow(100, -(double)(i % half) / (double)half);
        cosine[i] = cos(angle[i]);
        sine[i] = sin(angle[i]);
    }
    for (int inverse = 0; inverse < 2; inverse++) {
        memcpy(want, x, n * cols * sizeof *x);
        for (size_t i = 0; i < n; i++) {
            double *row = want + i * cols, *at = angle + i % T * half;
            for (size_t k = 0; k < h->heads; k++)
                ref_rotate(row + h->q_first + k * h->q_step, half, at, inverse);
            for (size_t k = 0; k < h->kv_heads; k++)
                ref_rotate(row + h->k_first + k * h->k_step, half, at, inverse);
        }
        FOR_SUBJECTS(s, dtype) {
            struct box bx = box_make(s, dtype, n, cols, pad, x);
            struct box bc = box_row(s, MM_F32, T * half, cosine);
            struct box bs = box_row(s, MM_F32, T * half, sine);
            s->dev->ops->rope(s->dev, bx.mat, h, T, bc.mat.data, bs.mat.data,
                              inverse ? MM_TURN_BACK : MM_TURN);
            expect_close(&bx, "rope", want, NULL, 2);
            const double *got = box_read(&bx, "rope");
            for (size_t i = 0; i < n * cols; i++) /* what isn't turned is left alone */
                if (fabs(want[i] - x[i]) == 0 && got[i] != x[i])
                    fail_msg("%s: rope changed [%zu, %zu]", s->dev->name, i / cols, i % cols);
            s->dev->ops->rope(s->dev, bx.mat, h, T, bc.mat.data, bs.mat.data,
                              inverse ? MM_TURN : MM_TURN_BACK);
            expect_close(&bx, "rope there and back", x, size, 4);
        }
    }
    pool_drop();
}

/* A rotation's inverse is its transpose, so the values of both directions are the backward too. */
static void rotation(void **state) {
    (void)state;
    FOR_DTYPES(dtype)
    for (size_t T = 1; T <= 33; T += 16)
        for (size_t B = 1; B <= 3; B += 2) {
            check_rope(dtype, &llama_heads, B, T, T % 5);
            check_rope(dtype, &neox_heads, B, T, T % 5);
        }
}

/* -- activations ------------------------------------------------------------------------------- */

struct activation_at {
    enum mm_activation kind;
    double x, up;
};

static double activation_of(const void *of) {
    const struct activation_at *at = of;
    return ref_activate(at->kind, at->x, at->up);
}

/* Inputs: a fine grid over [-100, 100], powers of two of both signs, zeros. */
static double wide_input(size_t i, size_t n) {
    static const double special[] = {0, -0.0, 20, -20, 80, -80, 87.5, -87.5, 300, -300, 1e-40};
    size_t specials = sizeof special / sizeof *special;
    if (i < specials)
        return special[i];
    if (i < specials + 64)
        return ldexp(i % 2 ? 1.3 : -1.3, (int)(i - specials) / 2 - 26);
    return -100 + 200.0 * (double)i / (double)n;
}

/* The size of rounding: of SWIGLU relative to the value (below exp's range to 10^-36), of GELU the
 * promised 4e-7 of erf, times x. */
static double activation_size(enum mm_activation kind, double x, double up, double value) {
    return kind == MM_SWIGLU ? fabs(value) + 1e-29 * fabs(up) : fabs(value) + 0.5 * fabs(x);
}

static void check_activate(enum mm_dtype dtype, enum mm_activation kind, size_t rows, size_t M,
                           size_t pad) {
    size_t cols = kind == MM_SWIGLU ? 2 * M : M;
    struct rng r = {M};
    double *u = random_numbers(&r, dtype, rows * cols, 2), *h = numbers(rows * M);
    double *dh = random_numbers(&r, dtype, rows * M, 1), *du = numbers(rows * cols);
    double *size_h = numbers(rows * M), *size = numbers(rows * cols);
    for (size_t i = 0; i < rows * M; i++) {
        double *x = &u[i / M * cols + i % M], *up = kind == MM_SWIGLU ? x + M : NULL;
        *x = rounded(dtype, wide_input(i, rows * M));
        struct activation_at at = {kind, *x, up ? *up : 1};
        h[i] = activation_of(&at);
        size_h[i] = activation_size(kind, at.x, at.up, h[i]);
        size_t j = i / M * cols + i % M;
        du[j] = dh[i] * central(activation_of, &at, &at.x, 1e-5);
        size[j] = fabs(dh[i]) *
                  (kind == MM_GELU
                       ? 2
                       : fabs(at.up) * ref_sigmoid(at.x) * (1 + fabs(at.x)) + 1e-29 * fabs(at.up));
        if (!up)
            continue;
        du[j + M] = dh[i] * central(activation_of, &at, &at.up, 1e-3);
        size[j + M] = fabs(du[j + M]) + 1e-29 * fabs(dh[i]);
    }
    FOR_SUBJECTS(s, dtype) {
        struct box bu = box_make(s, dtype, rows, cols, pad, u);
        struct box bh = box_make(s, dtype, rows, M, pad, NULL);
        struct box bdh = box_make(s, dtype, rows, M, pad, dh);
        struct box bdu = box_make(s, dtype, rows, cols, pad, NULL);
        s->dev->ops->activate(s->dev, kind, bh.mat, bu.mat);
        s->dev->ops->activate_grad(s->dev, kind, bdu.mat, bdh.mat, bu.mat);
        expect_close(&bh, kind == MM_SWIGLU ? "SwiGLU" : "GELU", h, size_h, 8);
        expect_close(&bdu, kind == MM_SWIGLU ? "SwiGLU gradient" : "GELU gradient", du, size, 16);
        expect_exact(&bu, "activation u", u);
        expect_exact(&bdh, "activation dh", dh);
    }
    pool_drop();
}

static void activations(void **state) {
    (void)state;
    static const size_t rows[] = {1, 7, 33, 100}, cols[] = {1, 7, 16, 33, 100};
    FOR_DTYPES(dtype)
    for (int kind = MM_SWIGLU; kind <= MM_GELU; kind++)
        for (size_t i = 0; i < 4; i++)
            for (size_t j = 0; j < 5; j++)
                check_activate(dtype, (enum mm_activation)kind, rows[i], cols[j], pad_of(i + j));
}

static void activations_pass_nan_on(void **state) {
    (void)state;
    const size_t M = 37;
    FOR_DTYPES(dtype)
    for (int kind = MM_SWIGLU; kind <= MM_GELU; kind++) {
        double *u = numbers(2 * M), *dh = numbers(M);
        for (size_t j = 0; j < M; j++) {
            u[j] = j % 5 == 2 ? NAN : 1;
            u[j + M] = dh[j] = 1;
        }
        FOR_SUBJECTS(s, dtype) {
            size_t cols = kind == MM_SWIGLU ? 2 * M : M;
            struct box bu = box_make(s, dtype, 1, cols, 0, u), bh = box_row(s, dtype, M, u);
            struct box bdh = box_row(s, dtype, M, dh), bdu = box_make(s, dtype, 1, cols, 0, NULL);
            s->dev->ops->activate(s->dev, (enum mm_activation)kind, bh.mat, bu.mat);
            s->dev->ops->activate_grad(s->dev, (enum mm_activation)kind, bdu.mat, bdh.mat, bu.mat);
            const double *h = box_read(&bh, "h"), *du = box_read(&bdu, "du");
            for (size_t j = 0; j < M; j++)
                assert_true(isnan(h[j]) == isnan(u[j]) && isnan(du[j]) == isnan(u[j]));
        }
    }
}

/* More tokens than a block has threads; whole numbers, so that sums are exact. */
static void embed_grad_of_many(void **state) {
    (void)state;
    const size_t n = 700, V = 40, C = 16;
    FOR_DTYPES(dtype) {
        struct rng r = {n};
        uint32_t *tokens = pool_keep(NULL, mm_calloc(n, sizeof *tokens));
        double *dx = numbers(n * C), *want = numbers(V * C);
        for (size_t i = 0; i < n; i++) {
            tokens[i] = (uint32_t)(rng_next(&r) % (V - 1)); /* the last one doesn't occur */
            for (size_t j = 0; j < C; j++) {
                dx[i * C + j] = (double)(rng_next(&r) % 200) - 100;
                want[tokens[i] * C + j] += dx[i * C + j];
            }
        }
        FOR_SUBJECTS(s, dtype) {
            uint32_t *on = device_put(s, tokens, n * sizeof *tokens);
            struct box bdx = box_make(s, dtype, n, C, 0, dx);
            struct box bdt = box_make(s, MM_F32, V, C, 0, numbers(V * C));
            s->dev->ops->embed_grad(s->dev, bdt.mat, bdx.mat, on, MM_NO_TOKEN);
            expect_exact(&bdt, "embed_grad of many", want);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(embed_grad_of_many, test_end),
        cmocka_unit_test_teardown(norms, test_end),
        cmocka_unit_test_teardown(norms_of_parts, test_end),
        cmocka_unit_test_teardown(wide_norms, test_end),
        cmocka_unit_test_teardown(norms_pass_nan_on, test_end),
        cmocka_unit_test_teardown(rotation, test_end),
        cmocka_unit_test_teardown(activations, test_end),
        cmocka_unit_test_teardown(activations_pass_nan_on, test_end),
    };
    return cmocka_run_group_tests(tests, subjects_open, subjects_close);
}
