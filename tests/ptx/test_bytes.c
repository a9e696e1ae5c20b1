/* test_bytes.c - the bytes that tests/bench/cuda_bytes.h says the launches of an operation move are
 * those that the kernels' PTX moves, within what the formulas leave out. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "kernels/queue.h"
#include "tests/ptx/bytes.h"

#define TOLERANCE 0.02

static struct mm_device *dev;
static void *taken[64];
static size_t taken_n;

static void *take(size_t bytes) {
    void *block = dev->queue->alloc(dev, bytes);
    assert_non_null(block);
    assert_true(taken_n < 64);
    return taken[taken_n++] = block;
}

static struct mm_mat matrix(enum mm_dtype dtype, size_t rows, size_t cols) {
    return mm_mat(take(rows * cols * mm_dtype_bytes(dtype)), dtype, rows, cols);
}

static struct mm_vector vector(enum mm_dtype dtype, size_t n) {
    return (struct mm_vector){take(n * mm_dtype_bytes(dtype)), n, dtype};
}

static float *floats(size_t n) {
    return take(n * sizeof(float));
}

/* 0, 1, 2, ... */
static uint32_t *tokens(size_t n) {
    uint32_t *host = mm_calloc(n, sizeof *host), *block = take(n * sizeof *host);
    for (size_t i = 0; i < n; i++)
        host[i] = (uint32_t)i;
    dev->queue->upload(dev, block, host, n * sizeof *host);
    mm_free(host);
    return block;
}

static int drop(void **state) {
    (void)state;
    while (taken_n)
        dev->queue->free(dev, taken[--taken_n]);
    return 0;
}

static void begin(void) {
    dev->queue->mark(dev, 0);
    dev->queue->wait(dev, 0);
    ptx_count_begin();
}

static void expect(const char *what, const char *which, double got, double want) {
    if (!(got >= want * (1 - 1e-9) && got <= want * (1 + TOLERANCE)))
        fail_msg("%s: the launches %s %.0f bytes, cuda_bytes.h says %.0f", what, which, got, want);
}

static void end(const char *what, struct cuda_bytes want) {
    dev->queue->mark(dev, 0);
    dev->queue->wait(dev, 0);
    struct cuda_bytes got = ptx_count_end();
    expect(what, "move", got.launched, want.launched);
    expect(what, "ask for", got.asked, want.asked);
}

static const enum mm_dtype dtypes[] = {MM_F32, MM_BF16};

/* -- layers ------------------------------------------------------------------------------------ */

static void check_norm(enum mm_dtype dtype, size_t rows, size_t cols) {
    const struct mm_ops *ops = dev->ops;
    struct mm_mat x = matrix(dtype, rows, cols), delta = matrix(dtype, rows, cols);
    struct mm_mat y = matrix(dtype, rows, cols), none = {0};
    float *stats = floats(2 * rows), *dweight = floats(cols);
    struct mm_norm how = {MM_RMS_NORM, 1e-5f, matrix(dtype, 1, cols).data, NULL, 1};
    begin();
    ops->norm(dev, &how, x, x, delta, y, stats);
    end("norm", cuda_norm_bytes(&how, x, delta));
    begin();
    ops->norm_grad(dev, &how, x, y, delta, stats, NULL, NULL);
    end("norm_grad", cuda_norm_grad_bytes(&how, x, false));
    begin();
    ops->norm_grad(dev, &how, x, y, delta, stats, dweight, NULL);
    end("norm_grad of weights", cuda_norm_grad_bytes(&how, x, true));
    how.bias = matrix(dtype, 1, cols).data;
    begin();
    ops->norm(dev, &how, none, x, none, y, stats);
    end("norm with bias", cuda_norm_bytes(&how, x, none));
}

static void check_elements(enum mm_dtype dtype, size_t rows, size_t cols) {
    const struct mm_ops *ops = dev->ops;
    struct mm_mat u = matrix(dtype, rows, 2 * cols), h = matrix(dtype, rows, cols);
    struct mm_mat du = matrix(dtype, rows, 2 * cols), dtable = matrix(MM_F32, rows, cols);
    float *db = floats(cols);
    uint32_t *t = tokens(rows);
    begin();
    ops->activate(dev, MM_SWIGLU, h, u);
    end("activate", cuda_once(mat_bytes(h) + mat_bytes(u)));
    begin();
    ops->activate_grad(dev, MM_SWIGLU, du, h, u);
    end("activate_grad", cuda_once(mat_bytes(h) + 2 * mat_bytes(u)));
    begin();
    ops->embed(dev, mm_mat_rows(h, 0, rows / 2), mm_mat_rows(h, rows / 2, rows / 2), t);
    end("embed", cuda_once(mat_bytes(h)));
    begin();
    ops->embed_grad(dev, dtable, h, t, MM_NO_TOKEN);
    end("embed_grad", cuda_embed_grad_bytes(h));
    begin();
    ops->bias_db(dev, db, h);
    end("bias_db", cuda_bias_db_bytes(h));
}

static void test_layers(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        check_norm(dtypes[i], 96, 512);
        drop(NULL);
        check_elements(dtypes[i], 320, 768);
        drop(NULL);
    }
}

/* -- attention --------------------------------------------------------------------------------- */

static void check_attention(enum mm_dtype dtype, size_t dim, size_t heads, size_t kv, size_t T) {
    struct mm_heads h = {.heads = heads,
                         .kv_heads = kv,
                         .head_dim = dim,
                         .rotary_dim = dim,
                         .q_step = dim,
                         .k_first = heads * dim,
                         .k_step = dim,
                         .v_first = (heads + kv) * dim,
                         .v_step = dim};
    size_t B = 2, n = B * T, cols = (heads + 2 * kv) * dim;
    struct mm_mat qkv = matrix(dtype, n, cols), dqkv = matrix(dtype, n, cols);
    struct mm_mat out = matrix(dtype, n, heads * dim), dout = matrix(dtype, n, heads * dim);
    float *lse = floats(n * heads), *cosine = floats(T * dim / 2), *sine = floats(T * dim / 2);
    begin();
    dev->ops->attention(dev, out, qkv, lse, &h, T);
    end("attention", cuda_attention_bytes(qkv, &h, T));
    begin();
    dev->ops->attention_grad(dev, dqkv, dout, out, qkv, lse, &h, T);
    end("attention_grad", cuda_attention_grad_bytes(qkv, &h, T));
    begin();
    dev->ops->rope(dev, qkv, &h, T, cosine, sine, MM_TURN);
    end("rope", cuda_rope_bytes(qkv, &h, T));
}

static void test_attention(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        check_attention(dtypes[i], 64, 4, 1, 100);
        drop(NULL);
        check_attention(dtypes[i], 64, 2, 2, 200);
        drop(NULL);
        check_attention(dtypes[i], 96, 2, 1, 100);
        drop(NULL);
        check_attention(dtypes[i], 128, 2, 1, 150);
        drop(NULL);
    }
}

/* -- losses ------------------------------------------------------------------------------------ */

static void test_loss(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct mm_mat logits = matrix(dtypes[i], 3, 20480), none = {0};
        struct mm_loss how = {.fn = MM_LOSS_CROSS_ENTROPY, .scale = 1};
        uint32_t *targets = tokens(3);
        float *losses = floats(3);
        begin();
        dev->ops->loss(dev, &how, logits, targets, losses, none);
        end("loss", cuda_loss_bytes(logits, none));
        begin();
        dev->ops->loss(dev, &how, logits, targets, losses, logits);
        end("loss with gradient", cuda_loss_bytes(logits, logits));
        drop(NULL);
    }
}

/* -- vectors ----------------------------------------------------------------------------------- */

#define N ((size_t)3 * 16384)

struct state {
    struct mm_vector a, b, m, f, g;
    uint32_t *stop;
    double *scalars;
    struct mm_mask_sums *sums;
    struct mm_mask mask;
};

static struct state state_make(enum mm_dtype dtype) {
    size_t offsets[] = {0, N / 2, N}, *block = take(sizeof offsets);
    struct state s = {.a = vector(dtype, N),
                      .b = vector(dtype, N),
                      .m = vector(dtype, N),
                      .f = vector(dtype, N),
                      .g = vector(MM_F32, N),
                      .stop = take(sizeof *s.stop),
                      .scalars = take(2 * sizeof *s.scalars),
                      .sums = take(2 * sizeof *s.sums)};
    dev->queue->upload(dev, block, offsets, sizeof offsets);
    s.mask = (struct mm_mask){s.m, true, block, 2};
    return s;
}

static void check_steps(const struct state *s) {
    const struct mm_ops *ops = dev->ops;
    double v = vector_bytes(s->b), g = vector_bytes(s->g);
    begin();
    ops->fork(dev, s->a, s->b, s->stop);
    end("fork", cuda_once(2 * v));
    begin();
    ops->retain_step(dev, s->m, s->b, s->g, 0.9, 0.1, s->stop);
    end("retain_step", cuda_once(4 * v + g));
    begin();
    ops->adversary_step(dev, s->a, s->b, s->g, 0.1, 1, NULL, s->stop);
    end("adversary_step", cuda_adversary_step_bytes(s->a, s->b, s->g, 1, NULL));
    void *halves[] = {take(N), take(N)}, **data = take(sizeof halves);
    struct mm_places places = {MM_BF16, data, s->mask.offsets, 2};
    dev->queue->upload(dev, data, halves, sizeof halves);
    begin();
    ops->adversary_step(dev, s->a, s->b, s->g, 0.1, 1, &places, s->stop);
    end("adversary_step with places", cuda_adversary_step_bytes(s->a, s->b, s->g, 1, &places));
    begin();
    ops->adversary_step(dev, s->a, s->b, s->g, 0.1, 0.9, NULL, s->stop);
    end("adversary_step that decays", cuda_adversary_step_bytes(s->a, s->b, s->g, 0.9, NULL));
    begin();
    ops->sgd_step(dev, s->a, s->g, 0.1);
    end("sgd_step", cuda_once(2 * v + g));
    begin();
    ops->sum_squares(dev, s->scalars, s->g, MM_F32);
    end("sum_squares", cuda_once(g));
}

static void check_mask(const struct state *s, const struct mm_unlearn_options *options) {
    begin();
    dev->ops->mask_sums(dev, s->sums, s->g, &s->mask, options);
    end("mask_sums", cuda_mask_sums_bytes(s->g, &s->mask, options));
    begin();
    dev->ops->unlearn_step(dev, s->b, s->g, &s->mask, s->scalars, 0.1, options, s->stop);
    end("unlearn_step", cuda_unlearn_step_bytes(s->b, s->g, &s->mask, options));
}

static void test_vectors(void **unused) {
    (void)unused;
    for (int i = 0; i < 2; i++) {
        struct state s = state_make(dtypes[i]);
        struct mm_unlearn_options options = {s.f, 0.5, s.b, 0.5, s.a, 0.1, s.stop};
        check_steps(&s);
        check_mask(&s, NULL);
        check_mask(&s, &options);
        drop(NULL);
    }
    struct mm_vector v = vector(MM_F32, N), w = vector(MM_BF16, N);
    begin();
    dev->ops->convert(dev, w.data, MM_BF16, v.data, MM_F32, N);
    end("convert", cuda_once(vector_bytes(v) + vector_bytes(w)));
}

int main(void) {
    struct mm_error err;
    dev = mm_device_create_cuda(0, &err);
    if (!dev)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_layers, drop),
        cmocka_unit_test_teardown(test_attention, drop),
        cmocka_unit_test_teardown(test_loss, drop),
        cmocka_unit_test_teardown(test_vectors, drop),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    mm_device_free(dev);
    return failed;
}
