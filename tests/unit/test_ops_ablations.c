/* test_ops_ablations.c - what docs/method.md, lines 13a, 14a and 15a, adds to the mask and to the
 * unlearning step, on every backend: bit by bit on a bfloat16 state, which rounds after each
 * operation, and within rounding on a float32 one. */
#include "tests/unit/ops_half.h"

struct ablation {
    enum mm_dtype dtype;
    bool masking;
    double momentum, discard, adv_rate; /* 0, 1, 0: off */
};

#define N ((size_t)40000)
static const double rate = 0.03;

struct expected {
    double *b, *a, *m, *f, *g;           /* before */
    double *b_after, *a_after, *f_after; /* f as mask_sums leaves it, b and a as the step */
    double *b_size, *a_size, *f_size;    /* of what is rounded, for float32 */
    double scale[TENSORS];
    struct mm_mask_sums sums[TENSORS];
};

/* Numbers of which some are zeros of both signs. */
static double *with_zeros(struct rng *r, enum mm_dtype dtype, double scale) {
    double *x = random_numbers(r, dtype, N, scale);
    for (size_t i = 0; i < N; i++) {
        uint64_t bits = rng_next(r) % 16;
        x[i] = bits == 0 ? 0 : bits == 1 ? -0.0 : x[i];
    }
    return x;
}

/* One operation's result. */
static double rounds(const struct ablation *c, double x) {
    return c->dtype == MM_BF16 ? stored(x) : single(x);
}

static void expect_element(const struct ablation *c, struct expected *e, size_t t, size_t i) {
    bool state_half = c->dtype == MM_BF16;
    double x = state_half ? half(e->g[i]) : e->g[i], scale = e->scale[t];
    e->sums[t].raw += x * x;
    e->f_after[i] = e->f[i];
    if (c->momentum > 0) {
        double decayed = rounds(c, e->f[i] * single(c->momentum));
        double fresh = rounds(c, x * single(1 - c->momentum));
        e->f_size[i] = fabs(decayed) + fabs(fresh);
        x = e->f_after[i] = rounds(c, decayed + fresh);
    }
    bool kept = !c->masking || sign_of(x) == sign_of(e->m[i]);
    if (c->discard != 1 && sign_of(e->b[i]) != sign_of(x))
        x = rounds(c, x * single(c->discard));
    e->sums[t].kept += kept ? x * x : 0;
    e->sums[t].kept_n += kept;
    double step = single(state_half ? rate : rate * scale);
    double adv_step = single(state_half ? c->adv_rate : c->adv_rate * scale);
    x = state_half ? stored(x * scale) : x;
    e->b_after[i] = kept ? rounds(c, e->b[i] - rounds(c, x * step)) : e->b[i];
    e->a_after[i] = kept ? rounds(c, e->a[i] - rounds(c, x * adv_step)) : e->a[i];
    e->b_size[i] = kept ? fabs(e->b[i]) + fabs(x * step) + e->f_size[i] * step : 0;
    e->a_size[i] = kept ? fabs(e->a[i]) + fabs(x * adv_step) + e->f_size[i] * adv_step : 0;
}

static struct expected expect_all(const struct ablation *c) {
    struct rng r = {5};
    struct expected e = {.b = with_zeros(&r, c->dtype, 0.1),
                         .a = with_zeros(&r, c->dtype, 0.1),
                         .m = with_zeros(&r, c->dtype, 1e-3),
                         .f = with_zeros(&r, c->dtype, 1e-2),
                         .g = with_zeros(&r, MM_F32, 1e-2),
                         .b_after = numbers(N),
                         .a_after = numbers(N),
                         .f_after = numbers(N),
                         .b_size = numbers(N),
                         .a_size = numbers(N),
                         .f_size = numbers(N)};
    for (size_t t = 0; t < TENSORS; t++) {
        e.scale[t] = half(pow(3, (double)t - 3));
        for (size_t i = offsets[t]; i < offsets[t + 1]; i++)
            expect_element(c, &e, t, i);
    }
    return e;
}

static void expect_state(const struct ablation *c, const struct box *box, const char *what,
                         const double *want, const double *size) {
    if (c->dtype == MM_BF16)
        expect_exact(box, what, want);
    else
        expect_close(box, what, want, size, 4);
}

struct boxes {
    struct box b, a, m, f, g;
};

static struct boxes boxes_of(const struct subject *s, const struct ablation *c,
                             const struct expected *e) {
    return (struct boxes){.b = box_row(s, c->dtype, N, e->b),
                          .a = box_row(s, c->dtype, N, e->a),
                          .m = box_row(s, c->dtype, N, e->m),
                          .f = box_row(s, c->dtype, N, e->f),
                          .g = box_row(s, MM_F32, N, e->g)};
}

static struct mm_mask mask_of(const struct subject *s, const struct boxes *x, bool masking) {
    return (struct mm_mask){box_vector(&x->m), masking, device_put(s, offsets, sizeof offsets),
                            TENSORS};
}

static struct mm_unlearn_options options_of(const struct ablation *c, const struct boxes *x,
                                            const uint32_t *stop) {
    struct mm_unlearn_options o = {.momentum = c->momentum,
                                   .b = box_vector(&x->b),
                                   .discard = c->discard,
                                   .adv_rate = c->adv_rate,
                                   .stop = stop};
    if (c->momentum > 0)
        o.f = box_vector(&x->f);
    if (c->adv_rate > 0)
        o.a = box_vector(&x->a);
    return o;
}

static void check(const struct ablation *c) {
    struct expected e = expect_all(c);
    double near = c->dtype == MM_BF16 ? 1e-13 : 1e-5; /* float32 may fuse operations */
    FOR_DEVICES(s) {
        struct boxes x = boxes_of(s, c, &e);
        uint32_t *stop = stop_put(s, 0);
        struct mm_unlearn_options o = options_of(c, &x, stop);
        struct mm_mask_sums got[TENSORS], *on = device_put(s, e.sums, sizeof got);
        struct mm_mask mask = mask_of(s, &x, c->masking);
        s->dev->ops->mask_sums(s->dev, on, box_vector(&x.g), &mask, &o);
        device_get(s, got, on, sizeof got);
        for (size_t t = 0; t < TENSORS; t++) {
            expect_scalar(s, "mask_sums raw", got[t].raw, e.sums[t].raw, 1e-13);
            expect_scalar(s, "mask_sums kept", got[t].kept, e.sums[t].kept, near);
            expect_scalar(s, "mask_sums kept_n", got[t].kept_n, e.sums[t].kept_n, 0);
        }
        expect_state(c, &x.f, "mask_sums f", e.f_after, e.f_size);
        expect_exact(&x.g, "mask_sums g", c->momentum > 0 ? box_read(&x.f, "f") : e.g);
        expect_exact(&x.b, "mask_sums b", e.b);
        s->dev->ops->unlearn_step(s->dev, box_vector(&x.b), box_vector(&x.g), &mask,
                                  device_put(s, e.scale, sizeof e.scale), rate, &o, stop);
        expect_state(c, &x.b, "unlearn_step b", e.b_after, e.b_size);
        if (c->adv_rate > 0)
            expect_state(c, &x.a, "unlearn_step a", e.a_after, e.a_size);
        else
            expect_exact(&x.a, "unlearn_step a", e.a);
        expect_exact(&x.m, "unlearn_step m", e.m);
    }
    pool_drop();
}

static void ablations(void **state) {
    (void)state;
    for (int dtype = MM_F32; dtype <= MM_BF16; dtype++)
        for (int on = 0; on < 16; on++) {
            struct ablation c = {(enum mm_dtype)dtype, on & 1, on & 2 ? 0.7 : 0, on & 4 ? 0.3 : 1,
                                 on & 8 ? 0.011 : 0};
            check(&c);
        }
}

/* c = 0 leaves nothing of a step that would make a weight larger, NaN of no other vector passes. */
static void discards_all(void **state) {
    (void)state;
    static const double b[] = {2, -2, 0, -0.0, 2, -2}, g[] = {1, 1, 1, -1, -1, -1};
    static const double want[] = {1, -2, 0, 0, 2, -1};
    const size_t at[] = {0, 6};
    FOR_DEVICES(s) {
        uint32_t *stop = stop_put(s, 0);
        struct box bb = box_row(s, MM_F32, 6, b), bg = box_row(s, MM_F32, 6, g);
        struct box bm = box_row(s, MM_F32, 6, NULL);
        struct mm_unlearn_options o = {.b = box_vector(&bb), .discard = 0, .stop = stop};
        struct mm_mask mask = {box_vector(&bm), false, device_put(s, at, sizeof at), 1};
        s->dev->ops->unlearn_step(s->dev, box_vector(&bb), box_vector(&bg), &mask, scalar_put(s, 1),
                                  1, &o, stop);
        expect_exact(&bb, "unlearn_step b", want);
    }
}

/* Once the guard has seen something, f, g, a and b stay as they are. */
static void stop_writes_nothing(void **state) {
    (void)state;
    for (int dtype = MM_F32; dtype <= MM_BF16; dtype++) {
        struct ablation c = {(enum mm_dtype)dtype, true, 0.7, 0.3, 0.011};
        struct expected e = expect_all(&c);
        FOR_DEVICES(s) {
            struct boxes x = boxes_of(s, &c, &e);
            uint32_t *stop = stop_put(s, MM_GUARD_RETAIN_LOSS);
            struct mm_unlearn_options o = options_of(&c, &x, stop);
            struct mm_mask_sums *sums = device_put(s, e.sums, sizeof e.sums);
            struct mm_mask mask = mask_of(s, &x, true);
            s->dev->ops->mask_sums(s->dev, sums, box_vector(&x.g), &mask, &o);
            s->dev->ops->unlearn_step(s->dev, box_vector(&x.b), box_vector(&x.g), &mask,
                                      device_put(s, e.scale, sizeof e.scale), rate, &o, stop);
            expect_exact(&x.f, "f", e.f);
            expect_exact(&x.g, "g", e.g);
            expect_exact(&x.a, "a", e.a);
            expect_exact(&x.b, "b", e.b);
        }
        pool_drop();
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(ablations, test_end),
        cmocka_unit_test_teardown(discards_all, test_end),
        cmocka_unit_test_teardown(stop_writes_nothing, test_end),
    };
    return cmocka_run_group_tests(tests, subjects_open, subjects_close);
}
