/* test_ops_attention.c - causal attention of every backend: values against double, gradients
 * against central differences of the double form, one by one and along random directions. */
#include "tests/unit/ops_subject.h"

#include "tests/unit/ops_reference.h"

/* Layouts of the fused rows: Llama's [q | k | v] with and without groups, NeoX's [q k v] a head. */
static const struct layout {
    const char *name;
    struct mm_heads heads;
} layouts[] = {
    {"as many keys as queries",
     {.heads = 3,
      .kv_heads = 3,
      .head_dim = 8,
      .q_step = 8,
      .k_first = 24,
      .k_step = 8,
      .v_first = 48,
      .v_step = 8}},
    {"three queries a key",
     {.heads = 6,
      .kv_heads = 2,
      .head_dim = 5,
      .q_step = 5,
      .k_first = 30,
      .k_step = 5,
      .v_first = 40,
      .v_step = 5}},
    {"one key",
     {.heads = 4,
      .kv_heads = 1,
      .head_dim = 16,
      .q_step = 16,
      .k_first = 64,
      .k_step = 16,
      .v_first = 80,
      .v_step = 16}},
    {"interleaved",
     {.heads = 3,
      .kv_heads = 3,
      .head_dim = 7,
      .q_step = 21,
      .k_first = 7,
      .k_step = 21,
      .v_first = 14,
      .v_step = 21}},
    {"one element",
     {.heads = 2,
      .kv_heads = 1,
      .head_dim = 1,
      .q_step = 1,
      .k_first = 2,
      .k_step = 1,
      .v_first = 3,
      .v_step = 1}},
};
#define LAYOUTS (sizeof layouts / sizeof *layouts)

/* Heads of the widths that models have: whole chunks of 16 bytes, and all tile widths. */
static const struct layout wide_layouts[] = {
    {"32", {.heads = 2, .kv_heads = 1, .head_dim = 32, .q_step = 32, .k_first = 64, .v_first = 96}},
    {"64",
     {.heads = 2, .kv_heads = 1, .head_dim = 64, .q_step = 64, .k_first = 128, .v_first = 192}},
    {"96",
     {.heads = 2, .kv_heads = 1, .head_dim = 96, .q_step = 96, .k_first = 192, .v_first = 288}},
    {"104", {.heads = 1, .kv_heads = 1, .head_dim = 104, .k_first = 104, .v_first = 208}},
    {"256", {.heads = 1, .kv_heads = 1, .head_dim = 256, .k_first = 256, .v_first = 512}},
};

#define MOST_TOKENS 150

/* A batch, and the sum of dout·out over sequence `b` as a function of its qkv. */
struct attention_case {
    const struct mm_heads *heads;
    size_t B, T, cols, width, b;
    double *qkv, *dout, *out, *lse, most; /* most: the largest |score| */
    double *direction, step;
};

static double attention_objective(const void *of) {
    const struct attention_case *c = of;
    const double *dout = c->dout + c->b * c->T * c->width;
    double out[MOST_TOKENS * 256], lse[MOST_TOKENS * 6], sum = 0;
    ref_attention(c->heads, c->qkv + c->b * c->T * c->cols, c->cols, c->T, out, lse);
    for (size_t i = 0; i < c->T * c->width; i++)
        sum += dout[i] * out[i];
    return sum;
}

/* The same, c->step along c->direction. */
static double attention_along(const void *of) {
    const struct attention_case *c = of;
    struct attention_case moved = *c;
    moved.qkv = mm_calloc(c->B * c->T * c->cols, sizeof *moved.qkv);
    for (size_t i = 0; i < c->B * c->T * c->cols; i++)
        moved.qkv[i] = c->qkv[i] + c->step * c->direction[i];
    double value = attention_objective(&moved);
    mm_free(moved.qkv);
    return value;
}

/* `sharpness` widens the scores: at 1 they are of the order of 1. */
static struct attention_case attention_make(enum mm_dtype dtype, const struct mm_heads *h, size_t B,
                                            size_t T, double sharpness) {
    struct rng r = {B + 10 * T + 1000 * h->heads};
    struct attention_case c = {.heads = h,
                               .B = B,
                               .T = T,
                               .width = h->heads * h->head_dim,
                               .cols = (h->heads + 2 * h->kv_heads) * h->head_dim};
    assert_true(T <= MOST_TOKENS && c.width <= 256 && h->heads <= 6);
    c.qkv = random_numbers(&r, dtype, B * T * c.cols, 1);
    for (size_t i = 0; i < B * T; i++)
        for (size_t k = 0; k < h->heads; k++)
            for (size_t j = 0; j < h->head_dim; j++) {
                double *q = &c.qkv[i * c.cols + h->q_first + k * h->q_step + j];
                *q = rounded(dtype, sharpness * *q);
            }
    c.dout = random_numbers(&r, dtype, B * T * c.width, 1);
    c.out = numbers(B * T * c.width);
    c.lse = numbers(B * T * h->heads);
    for (size_t b = 0; b < B; b++)
        c.most = fmax(c.most, ref_attention(h, c.qkv + b * T * c.cols, c.cols, T,
                                            c.out + b * T * c.width, c.lse + b * T * h->heads));
    return c;
}

/* Gradients of at most `samples` random elements, all of them where there are no more. */
static void check_elements(struct attention_case *c, const struct box *dqkv, size_t samples) {
    const double *got = box_read(dqkv, "dqkv");
    size_t n = c->B * c->T * c->cols, count = n < samples ? n : samples;
    struct rng r = {n};
    double most = 0;
    for (size_t i = 0; i < n; i++)
        most = fmax(most, fabs(got[i]));
    for (size_t k = 0; k < count; k++) {
        size_t i = count == n ? k : rng_next(&r) % n;
        c->b = i / (c->T * c->cols);
        double want = central(attention_objective, c, &c->qkv[i], 1e-5);
        double room = (16 + 4 * c->most) * 0x1p-24 * most + 1e-9;
        if (dqkv->mat.dtype == MM_BF16) /* `out` comes rounded: sharp scores multiply that */
            room += 0x1p-7 * most * (1 + c->most / 16);
        if (!(fabs(got[i] - want) <= room))
            fail_msg("%s: dqkv[%zu, %zu] is %.9g, should be %.9g within %.2g", dqkv->on->dev->name,
                     i / c->cols, i % c->cols, got[i], want, room);
    }
}

/* Every element at once: the derivative along a random direction of ±1. */
static void check_directions(struct attention_case *c, const struct box *dqkv) {
    const double *got = box_read(dqkv, "dqkv");
    size_t n = c->T * c->cols;
    struct rng r = {n};
    c->direction = numbers(c->B * n);
    c->step = 0;
    for (c->b = 0; c->b < c->B; c->b++) {
        const double *own = got + c->b * n;
        double sum = 0, squares = 0;
        for (size_t i = 0; i < n; i++) {
            double sign = rng_next(&r) & 1 ? 1 : -1;
            c->direction[c->b * n + i] = sign;
            sum += sign * own[i];
            squares += own[i] * own[i];
        }
        double want = central(attention_along, c, &c->step, 1e-6);
        double unit = dqkv->mat.dtype == MM_BF16 ? 0x1p-8 : 0x1p-24;
        double room = (16 + 4 * c->most) * unit * sqrt(squares) + 1e-8 * sqrt((double)n);
        if (!(fabs(sum - want) <= room))
            fail_msg(
                "%s: dqkv of sequence %zu along a direction is %.9g, should be %.9g within %.2g",
                dqkv->on->dev->name, c->b, sum, want, room);
    }
}

static void check_attention(enum mm_dtype dtype, const struct layout *l, size_t B, size_t T,
                            double sharpness, size_t pad) {
    const struct mm_heads *h = &l->heads;
    struct attention_case c = attention_make(dtype, h, B, T, sharpness);
    double *size = numbers(B * T * h->heads), factor = 16 + 4 * c.most;
    for (size_t i = 0; i < B * T * h->heads; i++)
        size[i] = 1 + c.most;
    const struct subject *first = NULL;
    FOR_SUBJECTS(s, dtype) {
        struct box bq = box_make(s, dtype, B * T, c.cols, pad, c.qkv);
        struct box bo = box_make(s, dtype, B * T, c.width, pad, NULL);
        struct box bl = box_row(s, MM_F32, B * h->heads * T, NULL);
        struct box bdo = box_make(s, dtype, B * T, c.width, pad, c.dout);
        struct box bdq = box_make(s, dtype, B * T, c.cols, pad, NULL);
        s->dev->ops->attention(s->dev, bo.mat, bq.mat, bl.mat.data, h, T);
        expect_close(&bo, "attention", c.out, NULL, factor);
        expect_close(&bl, "attention's lse", c.lse, size, 8);
        expect_exact(&bq, "attention's qkv", c.qkv);
        s->dev->ops->attention_grad(s->dev, bdq.mat, bdo.mat, bo.mat, bq.mat, bl.mat.data, h, T);
        check_elements(&c, &bdq, first ? 20 : 60);
        check_directions(&c, &bdq);
        expect_exact(&bq, "attention_grad's qkv", c.qkv);
        expect_exact(&bdo, "attention_grad's dout", c.dout);
        first = s;
    }
    pool_drop();
}

static void every_length(void **state) {
    (void)state;
    static const size_t lengths[] = {1, 2, 5, 31, 32, 33, 64, 100};
    FOR_DTYPES(dtype)
    for (size_t l = 0; l < LAYOUTS; l++)
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
            check_attention(dtype, &layouts[l], 1 + (l + i) % 3, lengths[i], 1, pad_of(l + i));
}

static void every_width(void **state) {
    (void)state;
    FOR_DTYPES(dtype)
    for (size_t l = 0; l < sizeof wide_layouts / sizeof *wide_layouts; l++)
        for (size_t T = 37; T <= 100; T += 63)
            check_attention(dtype, &wide_layouts[l], 1, T, 0.3, 0);
    /* three tiles of the largest size: the place of the first is loaded into again */
    FOR_DTYPES(dtype)
    check_attention(dtype, &wide_layouts[1], 1, MOST_TOKENS, 0.3, 0);
}

/* Scores of ±80 and more: the exponentials alone would overflow. */
static void sharp_scores(void **state) {
    (void)state;
    FOR_DTYPES(dtype)
    for (size_t l = 0; l < LAYOUTS; l++)
        for (size_t T = 5; T <= 33; T += 28)
            check_attention(dtype, &layouts[l], 2, T, l == 4 ? 60 : 40, 0);
}

/* Scores all alike: every visible key weighs the same, and the values are their running mean. */
static void equal_scores(void **state) {
    (void)state;
    const struct mm_heads *h = &layouts[0].heads;
    const size_t T = 70, cols = 72, width = 24;
    FOR_DTYPES(dtype) {
        double *qkv = numbers(T * cols), *want = numbers(T * width), *lse = numbers(3 * T);
        for (size_t t = 0; t < T; t++)
            for (size_t j = 0; j < width; j++) {
                qkv[t * cols + 48 + j] = (double)((t * 5 + j) % 7);
                for (size_t i = 0; i <= t; i++)
                    want[t * width + j] += (double)((i * 5 + j) % 7) / (double)(t + 1);
            }
        for (size_t i = 0; i < 3 * T; i++)
            lse[i] = log((double)(i % T + 1));
        FOR_SUBJECTS(s, dtype) {
            struct box bq = box_make(s, dtype, T, cols, 0, qkv);
            struct box bo = box_make(s, dtype, T, width, 0, NULL);
            struct box bl = box_row(s, MM_F32, 3 * T, NULL);
            s->dev->ops->attention(s->dev, bo.mat, bq.mat, bl.mat.data, h, T);
            expect_close(&bo, "attention", want, NULL, 8);
            expect_close(&bl, "attention's lse", lse, NULL, 4);
        }
    }
}

/* Whatever comes later, outputs are the same to the bit. */
static void future_is_unseen(void **state) {
    (void)state;
    const size_t T = 75;
    FOR_DTYPES(dtype)
    for (size_t l = 0; l < LAYOUTS; l++)
        for (size_t from = 1; from < T; from += 9) {
            const struct mm_heads *h = &layouts[l].heads;
            struct attention_case c = attention_make(dtype, h, 1, T, 1);
            double *other = numbers(T * c.cols);
            for (size_t i = 0; i < T * c.cols; i++)
                other[i] = i / c.cols < from ? c.qkv[i] : 50 - c.qkv[i];
            FOR_SUBJECTS(s, dtype) {
                const double *qkv[] = {c.qkv, other}, *out[2];
                for (int k = 0; k < 2; k++) {
                    struct box bo = box_make(s, dtype, T, c.width, 0, NULL);
                    struct box bl = box_row(s, MM_F32, h->heads * T, NULL);
                    struct box bq = box_make(s, dtype, T, c.cols, 0, qkv[k]);
                    s->dev->ops->attention(s->dev, bo.mat, bq.mat, bl.mat.data, h, T);
                    out[k] = box_read(&bo, "out");
                }
                for (size_t i = 0; i < from * c.width; i++)
                    if (out[0][i] != out[1][i])
                        fail_msg("%s: output %zu sees past %zu", s->dev->name, i / c.width, from);
                assert_true(out[0][T * c.width - 1] != out[1][T * c.width - 1]);
            }
            pool_drop();
        }
}

/* A NaN in the first head's query, key or value reaches every output that reads it, and no other
 * head; earlier outputs only of its own kind: a weight of zero times a NaN value is one. */
static void passes_nan_on(void **state) {
    (void)state;
    const size_t T = 75, bad = 40;
    FOR_DTYPES(dtype)
    for (size_t part = 0; part < 3; part++) {
        const struct mm_heads *h = &layouts[0].heads;
        struct attention_case c = attention_make(dtype, h, 1, T, 1);
        c.qkv[bad * c.cols + 24 * part] = NAN;
        FOR_SUBJECTS(s, dtype) {
            struct box bo = box_make(s, dtype, T, c.width, 0, NULL);
            struct box bl = box_row(s, MM_F32, h->heads * T, NULL);
            struct box bq = box_make(s, dtype, T, c.cols, 0, c.qkv);
            s->dev->ops->attention(s->dev, bo.mat, bq.mat, bl.mat.data, h, T);
            const double *out = box_read(&bo, "out");
            for (size_t t = 0; t < T; t++) {
                bool must = part == 0 ? t == bad : t >= bad, may = must || part == 2;
                bool is = isnan(out[t * c.width]);
                if ((must && !is) || (is && !may) || isnan(out[t * c.width + 8]))
                    fail_msg("%s: part %zu, NaN at %zu: output %zu is %g", s->dev->name, part, bad,
                             t, out[t * c.width]);
            }
        }
        pool_drop();
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(every_length, test_end),
        cmocka_unit_test_teardown(every_width, test_end),
        cmocka_unit_test_teardown(sharp_scores, test_end),
        cmocka_unit_test_teardown(equal_scores, test_end),
        cmocka_unit_test_teardown(future_is_unseen, test_end),
        cmocka_unit_test_teardown(passes_nan_on, test_end),
    };
    return cmocka_run_group_tests(tests, subjects_open, subjects_close);
}
