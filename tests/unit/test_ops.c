/* test_ops.c - memory, conversion, matrix products, embedding and sums of every backend, against
 * double. The other operations: test_ops_layer.c and its neighbours. */
#include "tests/unit/ops_subject.h"

#include "tests/unit/ops_reference.h"

/* -- memory and conversion --------------------------------------------------------------------- */

/* Blocks that were used and freed come back zero. */
static void memory_is_zeroed(void **state) {
    (void)state;
    const size_t bytes = 20000;
    unsigned char *host = pool_keep(NULL, mm_calloc(bytes, 1));
    FOR_DEVICES(s) {
        void *used[3];
        memset(host, 0xff, bytes);
        for (int i = 0; i < 3; i++) {
            used[i] = s->dev->queue->alloc(s->dev, bytes);
            s->dev->queue->upload(s->dev, used[i], host, bytes);
        }
        for (int i = 0; i < 3; i++)
            s->dev->queue->free(s->dev, used[i]);
        for (int i = 0; i < 3; i++) {
            device_get(s, host, pool_keep(s->dev, s->dev->queue->alloc(s->dev, bytes)), bytes);
            for (size_t k = 0; k < bytes; k++)
                assert_int_equal(host[k], 0);
        }
    }
}

static void memory(void **state) {
    (void)state;
    FOR_DEVICES(s) {
        const struct mm_queue *queue = s->dev->queue;
        for (size_t bytes = 0; bytes <= 257; bytes += bytes < 3 ? 1 : 127) {
            unsigned char host[512], back[512];
            for (size_t i = 0; i < sizeof host; i++)
                host[i] = (unsigned char)(i * 7 + 1);
            char *a = pool_keep(s->dev, queue->alloc(s->dev, bytes + 8));
            char *b = pool_keep(s->dev, queue->alloc(s->dev, bytes + 8));
            assert_int_equal((uintptr_t)a % 64, 0);
            assert_int_equal((uintptr_t)b % 64, 0);
            device_get(s, back, a, bytes + 8);
            for (size_t i = 0; i < bytes + 8; i++)
                assert_int_equal(back[i], 0);
            queue->upload(s->dev, a, host, bytes + 8);
            queue->copy(s->dev, b + 4, a, bytes);
            device_get(s, back, b, bytes + 8);
            assert_memory_equal(back, "\0\0\0\0", 4);
            assert_memory_equal(back + 4, host, bytes);
            assert_memory_equal(back + 4 + bytes, "\0\0\0\0", 4);
            queue->zero(s->dev, a + 4, bytes);
            device_get(s, back, a, bytes + 8);
            assert_memory_equal(back, host, 4);
            for (size_t i = 0; i < bytes; i++)
                assert_int_equal(back[4 + i], 0);
            assert_memory_equal(back + 4 + bytes, host + 4 + bytes, 4);
        }
    }
}

/* Every pair of types over all exponents and special values; mm_convert is tested by itself. */
static void check_convert(enum mm_dtype to, enum mm_dtype from, size_t n) {
    size_t to_bytes = mm_dtype_bytes(to), from_bytes = mm_dtype_bytes(from);
    struct rng r = {n};
    char *src = pool_keep(NULL, mm_calloc(n + 4, 4)), *want = pool_keep(NULL, mm_calloc(n + 4, 4));
    char *got = pool_keep(NULL, mm_calloc(n + 4, 4));
    for (size_t i = 0; i < n * from_bytes; i++)
        src[i] = (char)(rng_next(&r) >> 20);
    memset(want, 0x5a, 4 * (n + 4));
    memcpy(got, want, 4 * (n + 4));
    mm_convert(want, to, src, from, n);
    FOR_DEVICES(s) {
        void *in = device_put(s, src, n * from_bytes), *out = device_put(s, got, 4 * (n + 4));
        char *back = pool_keep(NULL, mm_calloc(n + 4, 4));
        s->dev->ops->convert(s->dev, out, to, in, from, n);
        device_get(s, back, out, 4 * (n + 4));
        for (size_t i = 0; i < 4 * (n + 4); i++)
            if (back[i] != want[i])
                fail_msg("%s: %s to %s: element %zu of %zu", s->dev->name, mm_dtype_name(from),
                         mm_dtype_name(to), i / to_bytes, n);
    }
    pool_drop();
}

static void convert(void **state) {
    (void)state;
    static const size_t sizes[] = {1, 7, 33, 100, 16384, 16389, 40000};
    for (int to = MM_F32; to <= MM_F16; to++)
        for (int from = MM_F32; from <= MM_F16; from++)
            for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
                check_convert((enum mm_dtype)to, (enum mm_dtype)from, sizes[i]);
}

/* -- matrix products --------------------------------------------------------------------------- */

struct product {
    size_t n, in, out;
};
static const struct product products[] = {
    {1, 1, 1},   {1, 33, 7},   {7, 100, 33}, {33, 7, 100}, {100, 47, 65},
    {2, 300, 1}, {1, 129, 77}, {33, 1, 5},   {100, 33, 1}, {65, 128, 96},
};
#define PRODUCTS (sizeof products / sizeof *products)

static struct ref_operand plain(const double *x, size_t cols) {
    return (struct ref_operand){x, cols, 1};
}

static struct ref_operand transposed(const double *x, size_t cols) {
    return (struct ref_operand){x, 1, cols};
}

static void check_linear(enum mm_dtype dtype, struct product p, bool with_bias, bool accumulate,
                         size_t pad) {
    struct rng r = {p.n + 1000 * p.in + 3 * with_bias + accumulate};
    double *x = random_numbers(&r, dtype, p.n * p.in, 1);
    double *w = random_numbers(&r, dtype, p.out * p.in, 1);
    double *bias = random_numbers(&r, dtype, p.out, 1);
    double *y = random_numbers(&r, dtype, p.n * p.out, 1);
    double *want = numbers(p.n * p.out), *size = numbers(p.n * p.out);
    for (size_t i = 0; i < p.n * p.out; i++) {
        want[i] = (with_bias ? bias[i % p.out] : 0) + (accumulate ? y[i] : 0);
        size[i] = fabs(with_bias ? bias[i % p.out] : 0) + fabs(accumulate ? y[i] : 0);
    }
    ref_product(want, size, p.n, p.out, p.in, plain(x, p.in), transposed(w, p.in));
    FOR_SUBJECTS(s, dtype) {
        struct box bx = box_make(s, dtype, p.n, p.in, pad, x);
        struct box bw = box_make(s, dtype, p.out, p.in, pad, w);
        struct box bb = box_row(s, dtype, p.out, bias);
        struct box by = box_make(s, dtype, p.n, p.out, pad, accumulate ? y : NULL);
        s->dev->ops->linear(s->dev, by.mat, bx.mat, bw.mat, with_bias ? bb.mat.data : NULL,
                            accumulate ? MM_ADD : MM_SET);
        expect_close(&by, "linear y", want, size, 8);
        expect_exact(&bx, "linear x", x);
        expect_exact(&bw, "linear w", w);
        expect_exact(&bb, "linear bias", bias);
    }
    pool_drop();
}

static void linear(void **state) {
    (void)state;
    FOR_DTYPES(dtype)
    for (size_t i = 0; i < PRODUCTS; i++)
        for (int form = 0; form < 8; form++)
            check_linear(dtype, products[i], form & 1, form & 2, form & 4 ? 5 : 0);
}

static void check_linear_dx(enum mm_dtype dtype, struct product p, bool accumulate, size_t pad) {
    struct rng r = {p.n + 1000 * p.in + accumulate};
    double *dy = random_numbers(&r, dtype, p.n * p.out, 1);
    double *w = random_numbers(&r, dtype, p.out * p.in, 1);
    double *dx = random_numbers(&r, dtype, p.n * p.in, 1);
    double *want = numbers(p.n * p.in), *size = numbers(p.n * p.in);
    if (accumulate)
        memcpy(want, dx, p.n * p.in * sizeof *want);
    ref_product(want, size, p.n, p.in, p.out, plain(dy, p.out), plain(w, p.in));
    FOR_SUBJECTS(s, dtype) {
        struct box bdy = box_make(s, dtype, p.n, p.out, pad, dy);
        struct box bw = box_make(s, dtype, p.out, p.in, pad, w);
        struct box bdx = box_make(s, dtype, p.n, p.in, pad, accumulate ? dx : NULL);
        s->dev->ops->linear_dx(s->dev, bdx.mat, bdy.mat, bw.mat, accumulate ? MM_ADD : MM_SET);
        expect_close(&bdx, "linear_dx", want, size, 8);
        expect_exact(&bdy, "linear_dx dy", dy);
        expect_exact(&bw, "linear_dx w", w);
    }
    pool_drop();
}

/* db starts from what is there, dw if it is asked to. */
static void check_linear_dw(enum mm_dtype dtype, struct product p, bool accumulate, size_t pad) {
    struct rng r = {p.n + 1000 * p.in};
    double *dy = random_numbers(&r, dtype, p.n * p.out, 1), *one = numbers(p.n);
    double *x = random_numbers(&r, dtype, p.n * p.in, 1);
    double *dw = random_numbers(&r, MM_F32, p.out * p.in, 1), *size_w = numbers(p.out * p.in);
    double *db = random_numbers(&r, MM_F32, p.out, 1), *size_b = numbers(p.out);
    double *want_w = numbers(p.out * p.in), *want_b = numbers(p.out);
    for (size_t i = 0; i < p.n; i++)
        one[i] = 1;
    if (accumulate)
        memcpy(want_w, dw, p.out * p.in * sizeof *dw);
    memcpy(want_b, db, p.out * sizeof *db);
    ref_product(want_w, size_w, p.out, p.in, p.n, transposed(dy, p.out), plain(x, p.in));
    ref_product(want_b, size_b, p.out, 1, p.n, transposed(dy, p.out), plain(one, 1));
    FOR_SUBJECTS(s, dtype) {
        struct box bdy = box_make(s, dtype, p.n, p.out, pad, dy);
        struct box bx = box_make(s, dtype, p.n, p.in, pad, x);
        struct box bdw = box_make(s, MM_F32, p.out, p.in, pad, accumulate ? dw : NULL);
        struct box bdb = box_row(s, MM_F32, p.out, db);
        s->dev->ops->linear_dw(s->dev, bdw.mat, bdy.mat, bx.mat, accumulate ? MM_ADD : MM_SET);
        s->dev->ops->bias_db(s->dev, bdb.mat.data, bdy.mat);
        expect_close(&bdw, "linear_dw", want_w, size_w, 8);
        expect_close(&bdb, "bias_db", want_b, size_b, 8);
        expect_exact(&bdy, "linear_dw dy", dy);
        expect_exact(&bx, "linear_dw x", x);
    }
    pool_drop();
}

static void linear_gradients(void **state) {
    (void)state;
    FOR_DTYPES(dtype)
    for (size_t i = 0; i < PRODUCTS; i++)
        for (int form = 0; form < 4; form++) {
            check_linear_dx(dtype, products[i], form & 1, form & 2 ? 5 : 0);
            check_linear_dw(dtype, products[i], form & 1, form & 2 ? 5 : 0);
        }
    /* Enough for threads to share. */
    FOR_DTYPES(dtype)
    check_linear_dw(dtype, (struct product){333, 17, 211}, true, 3);
}

/* In pieces, along each side of the product. */
static void exact_products(void **state) {
    (void)state;
    static const struct product wide[] = {{300, 31, 517}, {5, 300, 257}, {257, 520, 3}};
    subjects_exact(true);
    FOR_DTYPES(dtype)
    for (size_t i = 0; i < 3; i++)
        for (int form = 0; form < 4; form++) {
            check_linear(dtype, wide[i], form & 2, form & 1, form & 2 ? 5 : 0);
            check_linear_dx(dtype, wide[i], form & 1, form & 2 ? 5 : 0);
            check_linear_dw(dtype, wide[i], form & 1, form & 2 ? 5 : 0);
        }
    subjects_exact(false);
}

/* A NaN or infinity reaches every output that reads it, also against zeros, and no other. */
static void products_pass_nan_on(void **state) {
    (void)state;
    static const double bad[] = {NAN, INFINITY};
    const size_t n = 9, in = 37, out = 21, row = 4, col = 35;
    FOR_DTYPES(dtype)
    for (int kind = 0; kind < 2; kind++) {
        double *x = numbers(n * in), *w = numbers(out * in), *y = numbers(n * out);
        double *dw = numbers(out * in), *dy = numbers(n * out);
        x[row * in + col] = bad[kind];
        for (size_t j = 0; j < out; j++)
            y[row * out + j] = NAN; /* 0 · infinity is none either */
        for (size_t j = 0; j < out; j++)
            dw[j * in + col] = NAN;
        FOR_SUBJECTS(s, dtype) {
            struct box bx = box_make(s, dtype, n, in, 0, x), bw = box_make(s, dtype, out, in, 0, w);
            struct box by = box_make(s, dtype, n, out, 0, NULL);
            struct box bdy = box_make(s, dtype, n, out, 0, dy);
            struct box bdw = box_make(s, MM_F32, out, in, 0, w);
            s->dev->ops->linear(s->dev, by.mat, bx.mat, bw.mat, NULL, MM_SET);
            expect_exact(&by, "linear of a NaN", y);
            s->dev->ops->linear_dw(s->dev, bdw.mat, bdy.mat, bx.mat, MM_ADD);
            expect_exact(&bdw, "linear_dw of a NaN", dw);
        }
    }
}

/* -- embedding --------------------------------------------------------------------------------- */

static void check_embed(enum mm_dtype dtype, size_t n, size_t V, size_t C, size_t pad) {
    struct rng r = {n + 77 * C};
    uint32_t tokens[1000];
    for (size_t i = 0; i < n; i++) /* the first and the last token too, and one again and again */
        tokens[i] = (uint32_t)(i % 3 == 0 ? V - 1 : i % 3 == 1 ? 0 : rng_next(&r) % V);
    double *table = random_numbers(&r, dtype, V * C, 1), *dx = random_numbers(&r, dtype, n * C, 1);
    double *dtable = random_numbers(&r, MM_F32, V * C, 1);
    uint32_t skipped = n % 2 ? tokens[0] : MM_NO_TOKEN;
    double *want_x = numbers(n * C), *want_d = numbers(V * C), *size = numbers(V * C);
    memcpy(want_d, dtable, V * C * sizeof *dtable);
    for (size_t k = 0; k < V * C; k++)
        size[k] = fabs(dtable[k]);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < C; j++) {
            want_x[i * C + j] = table[tokens[i] * C + j];
            double d = tokens[i] == skipped ? 0 : dx[i * C + j];
            want_d[tokens[i] * C + j] += d;
            size[tokens[i] * C + j] += fabs(d);
        }
    FOR_SUBJECTS(s, dtype) {
        uint32_t *on = device_put(s, tokens, n * sizeof *tokens);
        struct box bt = box_make(s, dtype, V, C, pad, table);
        struct box bx = box_make(s, dtype, n, C, pad, NULL);
        struct box bdx = box_make(s, dtype, n, C, pad, dx);
        struct box bdt = box_make(s, MM_F32, V, C, pad, dtable);
        s->dev->ops->embed(s->dev, bx.mat, bt.mat, on);
        s->dev->ops->embed_grad(s->dev, bdt.mat, bdx.mat, on, skipped);
        expect_exact(&bx, "embed", want_x);
        expect_close(&bdt, "embed_grad", want_d, size, 8);
        expect_exact(&bdx, "embed_grad dx", dx);
    }
    pool_drop();
}

static void embedding(void **state) {
    (void)state;
    static const size_t rows[] = {1, 7, 33, 100}, cols[] = {1, 7, 16, 33, 100};
    FOR_DTYPES(dtype)
    for (size_t i = 0; i < 4; i++)
        for (size_t j = 0; j < 5; j++)
            for (size_t pad = 0; pad <= 5; pad += 5)
                check_embed(dtype, rows[i], j == 0 ? 1 : 11, cols[j], pad);
    FOR_DTYPES(dtype)
    check_embed(dtype, 1000, 301, 5, 0); /* more than a block takes at once */
}

/* Float32 sums of which every other order would round otherwise. */
static void embedding_adds_in_token_order(void **state) {
    (void)state;
    static const double terms[] = {0x1p25, 1, 1, -0x1p25, 1};
    static const uint32_t tokens[] = {1, 1, 1, 1, 1};
    const size_t n = 5, C = 40;
    FOR_DTYPES(dtype) {
        double *dx = numbers(n * C), *table = numbers(3 * C), *want = numbers(3 * C);
        for (size_t i = 0; i < n * C; i++)
            dx[i] = terms[i / C];
        for (size_t j = 0; j < C; j++) {
            table[C + j] = 1; /* 1 + 2^25, + 1, + 1 are all 2^25; then 0, then 1 */
            want[C + j] = 1;
        }
        FOR_SUBJECTS(s, dtype) {
            struct box bdx = box_make(s, dtype, n, C, 0, dx);
            struct box bdt = box_make(s, MM_F32, 3, C, 0, table);
            s->dev->ops->embed_grad(s->dev, bdt.mat, bdx.mat, device_put(s, tokens, sizeof tokens),
                                    MM_NO_TOKEN);
            expect_exact(&bdt, "embed_grad in order", want);
        }
    }
}

/* -- sums and scales --------------------------------------------------------------------------- */

static void sum_in_order(void **state) {
    (void)state;
    FOR_DEVICES(s) {
        struct rng r = {5};
        const struct mm_ops *ops = s->dev->ops;
        for (size_t n = 0; n <= 1000; n = 3 * n + 1) {
            double *x = random_numbers(&r, MM_F32, n, 1), want = 0;
            for (size_t i = 0; i < n; i++)
                want += x[i];
            double *sum = scalar_put(s, 0.75);
            struct box b = box_row(s, MM_F32, n, x);
            ops->sum(s->dev, sum, b.mat.data, n, 0.3);
            expect_scalar(s, "sum", scalar_get(s, sum), 0.75 + 0.3 * want, 4e-16);
        }
        /* 1 is lost beside 2^54 in double, and kept beside the difference. */
        const float order[] = {0x1p54f, 1, -0x1p54f, 1, 0x1p54f, 1, -0x1p54f, 1};
        double *sum = scalar_put(s, 0);
        ops->sum(s->dev, sum, device_put(s, order, sizeof order), 8, 1);
        expect_scalar(s, "sum in order", scalar_get(s, sum), 1, 0);
        const float bad[] = {1, NAN, 2};
        ops->sum(s->dev, sum, device_put(s, bad, sizeof bad), 3, 1);
        expect_scalar(s, "sum of a NaN", scalar_get(s, sum), NAN, 0);
    }
}

static void scales(void **state) {
    (void)state;
    FOR_DTYPES(dtype)
    for (size_t rows = 1; rows <= 100; rows = 3 * rows + 4) {
        struct rng r = {rows};
        const size_t cols = 33;
        double *x = random_numbers(&r, dtype, rows * cols, 1), *want = numbers(rows * cols);
        x[0] = 0;
        FOR_SUBJECTS(s, dtype) {
            const struct mm_ops *ops = s->dev->ops;
            struct box bx = box_make(s, dtype, rows, cols, 0, x);
            struct box by = box_make(s, dtype, rows, cols, 0, NULL);
            for (size_t i = 0; i < rows * cols; i++)
                want[i] = -x[i]; /* and so -0 */
            ops->scale(s->dev, by.mat, bx.mat, -1);
            expect_exact(&by, "scale by -1", want);
            expect_exact(&bx, "scale x", x);
            for (size_t i = 0; i < rows * cols; i++)
                want[i] = rounded(dtype, 0.25 * x[i]);
            ops->scale(s->dev, bx.mat, bx.mat, 0.25f);
            expect_exact(&bx, "scale in place", want);
            double *in = scalar_put(s, 3), *out = scalar_put(s, NAN);
            ops->scale_scalar(s->dev, out, in, -0.1);
            expect_scalar(s, "scale_scalar", scalar_get(s, out), -0.1 * 3, 0);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(memory, test_end),
        cmocka_unit_test_teardown(memory_is_zeroed, test_end),
        cmocka_unit_test_teardown(convert, test_end),
        cmocka_unit_test_teardown(linear, test_end),
        cmocka_unit_test_teardown(linear_gradients, test_end),
        cmocka_unit_test_teardown(exact_products, test_end),
        cmocka_unit_test_teardown(products_pass_nan_on, test_end),
        cmocka_unit_test_teardown(embedding, test_end),
        cmocka_unit_test_teardown(embedding_adds_in_token_order, test_end),
        cmocka_unit_test_teardown(sum_in_order, test_end),
        cmocka_unit_test_teardown(scales, test_end),
    };
    return cmocka_run_group_tests(tests, subjects_open, subjects_close);
}
