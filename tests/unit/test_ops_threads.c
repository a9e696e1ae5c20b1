/* test_ops_threads.c - results do not depend on the number of threads: to the bit for everything
 * but the matrix products, whose order of additions is the library's and only has to be repeatable
 * at one number of threads, unless the device is exact. */
#include "tests/unit/ops_subject.h"

#include <omp.h>

/* What a round of operations left behind, box by box. */
#define MOST_RESULTS 32
struct results {
    size_t n;
    const char *name[MOST_RESULTS];
    void *raw[MOST_RESULTS];
    size_t bytes[MOST_RESULTS];
};

static void keep(struct results *r, const char *name, const struct box *b) {
    assert_true(r->n < MOST_RESULTS);
    r->name[r->n] = name;
    r->raw[r->n] = box_read(b, name);
    r->bytes[r->n++] = b->mat.rows * b->mat.cols * sizeof(double);
}

static struct box random_box(const struct subject *s, struct rng *r, enum mm_dtype dtype,
                             size_t rows, size_t cols) {
    return box_make(s, dtype, rows, cols, 0, random_numbers(r, dtype, rows * cols, 1));
}

static void run_norms(const struct subject *s, size_t n, size_t C, struct results *out) {
    const struct mm_ops *ops = s->dev->ops;
    for (int kind = MM_RMS_NORM; kind <= MM_LAYER_NORM; kind++) {
        struct rng r = {7};
        struct box x = random_box(s, &r, s->dtype, n, C), w = random_box(s, &r, s->dtype, 1, C);
        struct box delta = random_box(s, &r, s->dtype, n, C),
                   dx = random_box(s, &r, s->dtype, n, C);
        struct box bias = random_box(s, &r, s->dtype, 1, C), y = random_box(s, &r, s->dtype, n, C);
        struct box stats = random_box(s, &r, MM_F32, n, 2), dw = random_box(s, &r, MM_F32, 1, C);
        struct box db = random_box(s, &r, MM_F32, 1, C);
        bool layer = kind == MM_LAYER_NORM;
        struct mm_norm how = {(enum mm_norm_kind)kind, 1e-5f, w.mat.data,
                              layer ? bias.mat.data : NULL, 1};
        ops->norm(s->dev, &how, x.mat, x.mat, delta.mat, y.mat, stats.mat.data);
        ops->norm_grad(s->dev, &how, dx.mat, y.mat, x.mat, stats.mat.data, dw.mat.data,
                       layer ? db.mat.data : NULL);
        keep(out, "norm sum", &x);
        keep(out, "norm y", &y);
        keep(out, "norm stats", &stats);
        keep(out, "norm dx", &dx);
        keep(out, "norm dweight", &dw);
        keep(out, "norm dbias", &db);
    }
}

static void run_layers(const struct subject *s, size_t n, size_t C, struct results *out) {
    const struct mm_ops *ops = s->dev->ops;
    struct rng r = {8};
    struct mm_heads heads = {.heads = 3,
                             .kv_heads = 1,
                             .head_dim = 8,
                             .rotary_dim = 8,
                             .q_step = 8,
                             .k_first = 24,
                             .k_step = 8,
                             .v_first = 32,
                             .v_step = 8};
    struct box u = random_box(s, &r, s->dtype, n, 2 * C), h = random_box(s, &r, s->dtype, n, C);
    struct box du = random_box(s, &r, s->dtype, n, 2 * C), qkv = random_box(s, &r, s->dtype, n, 40);
    struct box angles = random_box(s, &r, MM_F32, n, 4), db = random_box(s, &r, MM_F32, 1, 2 * C);
    struct box dtable = random_box(s, &r, MM_F32, 7, C);
    uint32_t *tokens = pool_keep(NULL, mm_calloc(n, sizeof *tokens));
    for (size_t i = 0; i < n; i++)
        tokens[i] = (uint32_t)(rng_next(&r) % 7);
    ops->activate(s->dev, MM_SWIGLU, h.mat, u.mat);
    ops->activate_grad(s->dev, MM_SWIGLU, du.mat, h.mat, u.mat);
    ops->bias_db(s->dev, db.mat.data, du.mat);
    ops->embed_grad(s->dev, dtable.mat, h.mat, device_put(s, tokens, n * sizeof *tokens), 3);
    ops->rope(s->dev, qkv.mat, &heads, n, angles.mat.data, angles.mat.data, MM_TURN);
    keep(out, "SwiGLU", &h);
    keep(out, "SwiGLU gradient", &du);
    keep(out, "bias_db", &db);
    keep(out, "embed_grad", &dtable);
    keep(out, "rope", &qkv);
    struct box x = random_box(s, &r, s->dtype, n, C), y = random_box(s, &r, s->dtype, n, C);
    ops->activate(s->dev, MM_GELU, y.mat, x.mat);
    ops->activate_grad(s->dev, MM_GELU, h.mat, y.mat, x.mat);
    ops->scale(s->dev, x.mat, y.mat, 0.3f);
    keep(out, "GELU", &y);
    keep(out, "GELU gradient", &h);
    keep(out, "scale", &x);
}

static void run_losses(const struct subject *s, size_t n, size_t V, struct results *out) {
    static const char *const names[] = {"cross_entropy", "neg_cross_entropy", "neg_entropy",
                                        "correct_logit_minus_avg"};
    for (int fn = 0; fn < 4; fn++) {
        struct rng r = {9};
        uint32_t *targets = pool_keep(NULL, mm_calloc(n, sizeof *targets));
        for (size_t i = 0; i < n; i++)
            targets[i] = i % 9 ? (uint32_t)(rng_next(&r) % V) : UINT32_MAX;
        struct box z = random_box(s, &r, s->dtype, n, V), losses = random_box(s, &r, MM_F32, 1, n);
        struct mm_loss how = {.fn = (enum mm_loss_fn)fn, .scale = 0.01f};
        s->dev->ops->loss(s->dev, &how, z.mat, device_put(s, targets, n * sizeof *targets),
                          losses.mat.data, z.mat);
        keep(out, names[fn], &losses);
        keep(out, names[fn], &z);
    }
}

static void keep_block(struct results *out, const char *name, const struct subject *s,
                       const void *block, size_t bytes) {
    out->name[out->n] = name;
    out->raw[out->n] = pool_keep(NULL, mm_calloc(bytes, 1));
    out->bytes[out->n] = bytes;
    device_get(s, out->raw[out->n++], block, bytes);
}

static void run_vectors(const struct subject *s, enum mm_dtype dtype, size_t n,
                        struct results *out) {
    const struct mm_ops *ops = s->dev->ops;
    struct rng r = {10};
    const size_t at[] = {0, n / 3, n / 3 + 1, n};
    struct box m = random_box(s, &r, dtype, 1, n), b = random_box(s, &r, dtype, 1, n);
    struct box a = random_box(s, &r, dtype, 1, n), g = random_box(s, &r, MM_F32, 1, n);
    struct mm_loop_scalars scalars = {0};
    struct mm_mask_sums sums[3] = {{0}};
    double scale[3] = {0};
    uint32_t *stop = device_put(s, &scalars.stop, sizeof *stop);
    const struct mm_mask mask = {box_vector(&m), true, device_put(s, at, sizeof at), 3};
    const struct mm_normalizing norm = {MM_NORM_PER_PARAMETER, false, (double)n, dtype};
    void *sums_on = device_put(s, sums, sizeof sums),
         *scale_on = device_put(s, scale, sizeof scale);
    double *sum = scalar_put(s, 0);
    ops->sum_squares(s->dev, sum, box_vector(&g), dtype);
    keep_block(out, "sum_squares", s, sum, sizeof *sum);
    ops->fork(s->dev, box_vector(&a), box_vector(&b), stop);
    ops->retain_step(s->dev, box_vector(&m), box_vector(&b), box_vector(&g), 0.9, 0.1, stop);
    ops->adversary_step(s->dev, box_vector(&a), box_vector(&b), box_vector(&g), 0.2, 0.7, NULL,
                        stop);
    ops->scale(s->dev, g.mat, g.mat, 1.7f);
    ops->mask_sums(s->dev, sums_on, box_vector(&g), &mask, NULL);
    keep_block(out, "mask_sums", s, sums_on, sizeof sums);
    ops->unlearn_scale(s->dev, &norm, scale_on, sums_on, 3,
                       device_put(s, &scalars, sizeof scalars));
    ops->unlearn_step(s->dev, box_vector(&b), box_vector(&g), &mask, scale_on, 0.5, NULL, stop);
    struct box f = random_box(s, &r, dtype, 1, n);
    const struct mm_unlearn_options options = {
        box_vector(&f), 0.6, box_vector(&b), 0.3, box_vector(&a), 0.2, stop};
    ops->mask_sums(s->dev, sums_on, box_vector(&g), &mask, &options);
    keep_block(out, "mask_sums with options", s, sums_on, sizeof sums);
    ops->unlearn_step(s->dev, box_vector(&b), box_vector(&g), &mask, scale_on, 0.5, &options, stop);
    keep(out, "f", &f);
    ops->sgd_step(s->dev, box_vector(&a), box_vector(&g), 0.3);
    keep(out, "m", &m);
    keep(out, "b", &b);
    keep(out, "a", &a);
    struct box p = random_box(s, &r, MM_F32, 1, n), one = random_box(s, &r, MM_F32, 1, n);
    struct box two = random_box(s, &r, MM_F32, 1, n), half = random_box(s, &r, MM_BF16, 1, n);
    ops->scale(s->dev, two.mat, p.mat, 1); /* moments of squares are not below zero */
    double *square = box_read(&two, "second");
    for (size_t i = 0; i < n; i++)
        square[i] *= square[i];
    two = box_row(s, MM_F32, n, square);
    ops->adamw_step(s->dev, box_vector(&p), box_vector(&one), box_vector(&two), box_vector(&g),
                    &(struct mm_adamw){0.3, 1e-3, {0.9, 0.95}, 1e-8, 0.1, 5});
    ops->convert(s->dev, half.mat.data, MM_BF16, p.mat.data, MM_F32, n);
    keep(out, "adamw p", &p);
    keep(out, "adamw first", &one);
    keep(out, "adamw second", &two);
    keep(out, "convert", &half);
}

static void run_attention(const struct subject *s, size_t n, size_t T, struct results *out) {
    const struct mm_ops *ops = s->dev->ops;
    struct rng r = {11};
    struct mm_heads heads = {.heads = 4,
                             .kv_heads = 2,
                             .head_dim = 8,
                             .q_step = 8,
                             .k_first = 32,
                             .k_step = 8,
                             .v_first = 48,
                             .v_step = 8};
    struct box qkv = random_box(s, &r, s->dtype, n, 64), att = random_box(s, &r, s->dtype, n, 32);
    struct box dqkv = random_box(s, &r, s->dtype, n, 64), lse = random_box(s, &r, MM_F32, 4, n);
    ops->attention(s->dev, att.mat, qkv.mat, lse.mat.data, &heads, T);
    ops->attention_grad(s->dev, dqkv.mat, att.mat, att.mat, qkv.mat, lse.mat.data, &heads, T);
    keep(out, "attention", &att);
    keep(out, "attention's lse", &lse);
    keep(out, "attention_grad", &dqkv);
}

static void run_products(const struct subject *s, size_t n, size_t C, struct results *out) {
    const struct mm_ops *ops = s->dev->ops;
    struct rng r = {12};
    struct box x = random_box(s, &r, s->dtype, n, C), w = random_box(s, &r, s->dtype, 64, C);
    struct box y = random_box(s, &r, s->dtype, n, 64), dw = random_box(s, &r, MM_F32, 64, C);
    struct box bias = random_box(s, &r, s->dtype, 1, 64);
    ops->linear(s->dev, y.mat, x.mat, w.mat, bias.mat.data, MM_SET);
    ops->linear_dw(s->dev, dw.mat, y.mat, x.mat, MM_ADD);
    ops->linear_dx(s->dev, x.mat, y.mat, w.mat, MM_ADD);
    keep(out, "linear", &y);
    keep(out, "linear_dw", &dw);
    keep(out, "linear_dx", &x);
}

static void compare(const struct subject *s, const struct results *want, const struct results *got,
                    int threads) {
    assert_int_equal(want->n, got->n);
    for (size_t i = 0; i < want->n; i++)
        if (memcmp(want->raw[i], got->raw[i], want->bytes[i]) != 0)
            fail_msg("%s: %s differs with %d threads", s->dev->name, want->name[i], threads);
}

typedef void round_of(const struct subject *s, size_t n, size_t C, struct results *out);

static void run_half_vectors(const struct subject *s, size_t n, size_t C, struct results *out) {
    run_vectors(s, MM_BF16, n * C, out);
}

static void run_single_vectors(const struct subject *s, size_t n, size_t C, struct results *out) {
    run_vectors(s, MM_F32, n * C, out);
}

/* A device without threads runs twice: it must be repeatable. */
static void check_round(round_of *run, size_t n, size_t C) {
    static const int counts[] = {1, 1, 2, 3, 4, 8};
    int before = omp_get_max_threads();
    for (const struct subject *s = subjects; s < subjects + subjects_n; s++) {
        struct results want = {0};
        for (size_t i = 0; i < (s->threads ? 6 : 2); i++) {
            struct results got = {0};
            omp_set_num_threads(s->threads ? counts[i] : before);
            run(s, n, C, &got);
            if (i == 0)
                want = got;
            compare(s, &want, &got, counts[i]);
        }
        omp_set_num_threads(before);
        pool_drop();
    }
}

static void layers(void **state) {
    (void)state;
    check_round(run_norms, 100, 33);
    check_round(run_norms, 3, 257);
    check_round(run_layers, 100, 33);
    check_round(run_layers, 5, 999);
    check_round(run_losses, 101, 37);
    check_round(run_attention, 150, 50);
    check_round(run_attention, 70, 70);
}

static void vectors(void **state) {
    (void)state;
    check_round(run_single_vectors, 1, 100001);
    check_round(run_single_vectors, 1, 61);
    check_round(run_half_vectors, 1, 100001);
    check_round(run_half_vectors, 1, 61);
}

/* Products of one piece, and of several whose last are small. */
static void exact_products(void **state) {
    (void)state;
    subjects_exact(true);
    check_round(run_products, 100, 200);
    check_round(run_products, 300, 999);
    check_round(run_products, 777, 33);
    subjects_exact(false);
}

/* The same number of threads, the same bits. */
static void products_repeat(void **state) {
    (void)state;
    static const int counts[] = {1, 2, 4, 8};
    int before = omp_get_max_threads();
    for (const struct subject *s = subjects; s < subjects + subjects_n; s++)
        for (size_t i = 0; i < 4; i++) {
            struct results want = {0};
            omp_set_num_threads(counts[i]);
            for (int again = 0; again < 3; again++) {
                struct results got = {0};
                run_products(s, 150, 129, &got);
                if (again == 0)
                    want = got;
                compare(s, &want, &got, counts[i]);
            }
            omp_set_num_threads(before);
            pool_drop();
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(layers, test_end),
        cmocka_unit_test_teardown(vectors, test_end),
        cmocka_unit_test_teardown(exact_products, test_end),
        cmocka_unit_test_teardown(products_repeat, test_end),
    };
    return cmocka_run_group_tests(tests, subjects_open, subjects_close);
}
