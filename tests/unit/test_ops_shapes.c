/* test_ops_shapes.c - attention at the widths of heads that models have, and at the lengths where
 * kernels take another path: one token, about one tile, a third tile, whose place in memory was
 * used before, and more. With MM_SHAPES=full in the environment all of them; else a few. */
#include "tests/unit/ops_subject.h"

#include "tests/unit/ops_reference.h"

/* Two query heads that share a key, [q q | k | v], of one sequence; a row's length in elements. */
struct shape {
    size_t dim, tokens, pad; /* pad: between rows; not whole chunks of 16 bytes */
    enum mm_dtype dtype;
};

static struct mm_heads heads_of(size_t dim) {
    return (struct mm_heads){.heads = 2,
                             .kv_heads = 1,
                             .head_dim = dim,
                             .q_step = dim,
                             .k_first = 2 * dim,
                             .v_first = 3 * dim};
}

static double dot(const double *x, const double *y, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i] * y[i];
    return sum;
}

/* to += factor·x */
static void add_to(double *to, const double *x, size_t n, double factor) {
    for (size_t i = 0; i < n; i++)
        to[i] += factor * x[i];
}

/* dqkv of one sequence, from weights p = exp(score - lse): dv = p·dout, and of a score
 * p·(dout·v - dout·out). */
static void ref_attention_grad(const struct mm_heads *h, const double *qkv, size_t T,
                               const double *out, const double *lse, const double *dout,
                               double *dqkv) {
    size_t d = h->head_dim, cols = 4 * d, width = 2 * d;
    double scale = 1 / sqrt((double)d);
    for (size_t head = 0; head < 2; head++)
        for (size_t t = 0; t < T; t++) {
            const double *q = qkv + t * cols + head * d, *up = dout + t * width + head * d;
            double through = dot(up, out + t * width + head * d, d);
            for (size_t i = 0; i <= t; i++) {
                const double *k = qkv + i * cols + 2 * d, *v = k + d;
                double *dk = dqkv + i * cols + 2 * d;
                double p = exp(scale * dot(q, k, d) - lse[head * T + t]);
                double score = scale * p * (dot(up, v, d) - through);
                add_to(dk + d, up, d, p);
                add_to(dk, q, d, score);
                add_to(dqkv + t * cols + head * d, k, d, score);
            }
        }
}

/* As far off as the largest element allows: weights are rounded before they are multiplied. */
static void expect_gradient(const struct box *b, const double *want, double factor) {
    const double *got = box_read(b, "dqkv");
    double most = 0, unit = b->mat.dtype == MM_BF16 ? 0x1p-8 : 0x1p-24;
    size_t n = b->mat.rows * b->mat.cols;
    for (size_t i = 0; i < n; i++)
        most = fmax(most, fabs(want[i]));
    for (size_t i = 0; i < n; i++)
        if (!(fabs(got[i] - want[i]) <= factor * unit * most))
            fail_msg("%s: dqkv[%zu, %zu] is %.9g, should be %.9g within %.2g", b->on->dev->name,
                     i / b->mat.cols, i % b->mat.cols, got[i], want[i], factor * unit * most);
}

static void check_shape(struct shape is) {
    struct mm_heads h = heads_of(is.dim);
    size_t T = is.tokens, cols = 4 * is.dim, width = 2 * is.dim;
    struct rng r = {is.dim + 1000 * T};
    double *qkv = random_numbers(&r, is.dtype, T * cols, 1), *out = numbers(T * width);
    double *dout = random_numbers(&r, is.dtype, T * width, 1), *lse = numbers(2 * T);
    double *size = numbers(2 * T), *dqkv = numbers(T * cols);
    double most = ref_attention(&h, qkv, cols, T, out, lse), factor = 16 + 4 * most;
    ref_attention_grad(&h, qkv, T, out, lse, dout, dqkv);
    for (size_t i = 0; i < 2 * T; i++)
        size[i] = 1 + most;
    FOR_SUBJECTS(s, is.dtype) {
        struct box bq = box_make(s, is.dtype, T, cols, is.pad, qkv);
        struct box bo = box_make(s, is.dtype, T, width, is.pad, NULL);
        struct box bl = box_row(s, MM_F32, 2 * T, NULL);
        struct box bdo = box_make(s, is.dtype, T, width, is.pad, dout);
        struct box bdq = box_make(s, is.dtype, T, cols, is.pad, NULL);
        s->dev->ops->attention(s->dev, bo.mat, bq.mat, bl.mat.data, &h, T);
        expect_close(&bo, "attention", out, NULL, factor);
        expect_close(&bl, "attention's lse", lse, size, 8);
        s->dev->ops->attention_grad(s->dev, bdq.mat, bdo.mat, bo.mat, bq.mat, bl.mat.data, &h, T);
        expect_gradient(&bdq, dqkv, is.dtype == MM_BF16 ? 4 : factor);
    }
    pool_drop();
}

/* Llama's path to a third tile; a width between two that are compiled, row by row. */
static void few_shapes(void **state) {
    (void)state;
    FOR_DTYPES(dtype) {
        check_shape((struct shape){64, 129, 0, dtype});
        check_shape((struct shape){80, 65, 6, dtype});
    }
    if (subject_of(MM_BF16)) {
        check_shape((struct shape){64, 300, 0, MM_BF16});
        check_shape((struct shape){96, 129, 0, MM_BF16});
    }
}

static void every_shape(void **state) {
    (void)state;
    static const size_t lengths[] = {1, 63, 64, 65, 129, 300}, dims[] = {64, 80, 96, 128, 256};
    const char *which = getenv("MM_SHAPES");
    if (!which || strcmp(which, "full") != 0)
        skip();
    FOR_DTYPES(dtype)
    for (size_t d = 0; d < 5; d++)
        for (size_t t = 0; t < 6; t++)
            for (size_t pad = 0; pad <= 6; pad += 6)
                check_shape((struct shape){dims[d], lengths[t], pad, dtype});
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(few_shapes, test_end),
        cmocka_unit_test_teardown(every_shape, test_end),
    };
    return cmocka_run_group_tests(tests, subjects_open, subjects_close);
}
