/* test_ops_products.c - matrix products of the shapes that models have, of every backend: a GPU's
 * library takes other ways for a vocabulary of 128256, for long sums and for rows with room behind
 * them than for the small ones of test_ops.c. Some elements of each are formed in double.
 *
 * Where there is no GPU the same with a sixteenth of the sizes. */
#include "tests/unit/ops_subject.h"

#define PERIOD 4093 /* of the values: no size is a multiple */

static double values[PERIOD]; /* exact in bfloat16 */
static size_t samples;        /* of a product */

struct side {
    size_t rows, cols, pad, turn;
};

static double value_at(struct side s, size_t row, size_t col) {
    return values[(row * 1009 + col * 31 + s.turn) % PERIOD];
}

/* On the device, with `pad` elements that are not a number behind every row. */
static struct mm_mat matrix(const struct subject *s, struct side side) {
    size_t ld = side.cols + side.pad, bytes = mm_dtype_bytes(s->dtype);
    void *host = mm_calloc(side.rows * ld, bytes);
    for (size_t i = 0; i < side.rows; i++)
        for (size_t j = 0; j < ld; j++)
            box_encode(s->dtype, host, i * ld + j, j < side.cols ? value_at(side, i, j) : NAN);
    struct mm_mat m =
        mm_mat(device_put(s, host, side.rows * ld * bytes), s->dtype, side.rows, side.cols);
    m.ld = ld;
    mm_free(host);
    return m;
}

static double element(const struct subject *s, struct mm_mat m, size_t row, size_t col) {
    size_t bytes = mm_dtype_bytes(m.dtype), at = row * m.ld + col;
    char host[4];
    device_get(s, host, (char *)m.data + at * bytes, bytes);
    return box_decode(m.dtype, host, 0);
}

/* c [i, j] is the sum over k of a(i, k)·b(j, k), where a side that is `turned` has rows k. */
static void check(const struct subject *s, const char *what, struct mm_mat c, struct side a,
                  bool a_turned, struct side b, bool b_turned) {
    struct rng r = {c.rows};
    size_t k_n = a_turned ? a.rows : a.cols;
    double unit = c.dtype == MM_BF16 ? 0x1p-8 : 0;
    for (size_t n = 0; n < samples; n++) {
        size_t i = n ? rng_next(&r) % c.rows : c.rows - 1,
               j = n ? rng_next(&r) % c.cols : c.cols - 1;
        double want = 0, size = 0;
        for (size_t k = 0; k < k_n; k++) {
            double part = (a_turned ? value_at(a, k, i) : value_at(a, i, k)) *
                          (b_turned ? value_at(b, k, j) : value_at(b, j, k));
            want += part;
            size += fabs(part);
        }
        double got = element(s, c, i, j), room = 0x1p-20 * size + unit * fabs(want);
        if (!(fabs(got - want) <= room))
            fail_msg("%s: %s[%zu, %zu] of [%zu, %zu] is %.9g, should be %.9g within %.2g",
                     s->dev->name, what, i, j, c.rows, c.cols, got, want, room);
    }
}

/* Tokens, the width of a layer's input, and of its output; room behind the rows of tokens. */
static void check_layer(const struct subject *s, size_t T, size_t in, size_t out, size_t pad) {
    struct side x = {T, in, pad, 0}, w = {out, in, 0, 5}, dy = {T, out, pad, 9};
    const struct mm_ops *ops = s->dev->ops;
    struct mm_mat on_x = matrix(s, x), on_w = matrix(s, w), on_dy = matrix(s, dy);
    struct mm_mat y = matrix(s, (struct side){T, out, pad, 1});
    ops->linear(s->dev, y, on_x, on_w, NULL, MM_SET);
    check(s, "linear", y, x, false, w, false);
    struct mm_mat dx = matrix(s, (struct side){T, in, pad, 1});
    ops->linear_dx(s->dev, dx, on_dy, on_w, MM_SET);
    check(s, "linear_dx", dx, dy, false, w, true);
    struct mm_mat dw = mm_mat(
        pool_keep(s->dev, s->dev->queue->alloc(s->dev, out * in * sizeof(float))), MM_F32, out, in);
    ops->linear_dw(s->dev, dw, on_dy, on_x, MM_SET);
    check(s, "linear_dw", dw, dy, true, x, true);
    pool_drop();
}

static void shapes(void **state) {
    static const size_t sizes[][4] = {
        {1600, 512, 128256, 0}, /* the head of Llama 3.2, narrower */
        {1600, 768, 50304, 64}, /* of Pythia */
        {400, 8192, 2048, 0},   /* long sums */
        {1600, 2048, 3072, 8},  {16, 4096, 4096, 0},
    };
    (void)state;
    struct rng r = {1};
    for (size_t i = 0; i < PERIOD; i++)
        values[i] = rounded(MM_BF16, rng_normal(&r));
    for (const struct subject *s = subjects; s < subjects + subjects_n; s++) {
        bool gpu = s->dev->asynchronous && !strstr(s->dev->name, "shim");
        size_t part = gpu ? 1 : 16;
        samples = gpu ? 300 : 40;
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            check_layer(s, sizes[i][0] / part, sizes[i][1] / part, sizes[i][2] / part, sizes[i][3]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test_teardown(shapes, test_end)};
    return cmocka_run_group_tests(tests, subjects_open, subjects_close);
}
