/* test_ops_half.c - the steps of Algorithm 1 on a bfloat16 state, of every backend, bit by bit
 * against a scalar re-statement that rounds after each operation as docs/method.md 6 lists them;
 * and the norms and scales of lines 13 to 15 for both state types. */
#include "tests/unit/ops_half.h"

static const size_t lengths[] = {1, 7, 33, 100, 16385, 40000};
#define LENGTHS (sizeof lengths / sizeof *lengths)

/* State of all sizes: ordinary, tiny to below the normal range, large, and zeros of both signs. */
static double *half_numbers(struct rng *r, size_t n) {
    double *x = numbers(n);
    for (size_t i = 0; i < n; i++) {
        double scale = i % 5 == 1 ? 1e-38 : i % 5 == 2 ? 1e30 : 1;
        x[i] = i % 11 == 3 ? 0 : i % 11 == 4 ? -0.0 : half(single(scale * rng_normal(r)));
    }
    return x;
}

/* A float32 gradient beside it: not yet rounded, some just half-way between two bfloat16 numbers,
 * some that round to zero. */
static double *gradient_numbers(struct rng *r, size_t n) {
    double *g = random_numbers(r, MM_F32, n, 1);
    for (size_t i = 0; i < n; i++) {
        uint64_t bits = rng_next(r) % 16;
        if (bits == 0)
            g[i] = ldexp((double)(257 + 2 * (i % 128)), -8) * sign_of(g[i]);
        if (bits == 1)
            g[i] = single(g[i] * 1e-41);
        if (bits == 2)
            g[i] = 0;
        if (bits == 3)
            g[i] = single(g[i] * 1e30);
    }
    return g;
}

/* -- steps ------------------------------------------------------------------------------------- */

static void check_retain(size_t n, double momentum, double rate) {
    struct rng r = {n};
    double *m = half_numbers(&r, n), *b = half_numbers(&r, n), *g = gradient_numbers(&r, n);
    double *want_m = numbers(n), *want_b = numbers(n);
    for (size_t i = 0; i < n; i++) {
        double decayed = stored(m[i] * single(momentum));
        double fresh = stored(half(g[i]) * single(1 - momentum));
        want_m[i] = stored(decayed + fresh);
        want_b[i] = stored(b[i] - stored(single(rate) * want_m[i]));
    }
    FOR_DEVICES(s) {
        struct box bm = box_row(s, MM_BF16, n, m), bb = box_row(s, MM_BF16, n, b);
        struct box bg = box_row(s, MM_F32, n, g);
        s->dev->ops->retain_step(s->dev, box_vector(&bm), box_vector(&bb), box_vector(&bg),
                                 momentum, rate, stop_put(s, 0));
        expect_exact(&bm, "retain_step m", want_m);
        expect_exact(&bb, "retain_step b", want_b);
    }
    pool_drop();
}

static void check_adversary(size_t n, double rate, double decay) {
    struct rng r = {n};
    double *a = half_numbers(&r, n), *b = half_numbers(&r, n), *g = gradient_numbers(&r, n);
    double *want = numbers(n);
    for (size_t i = 0; i < n; i++) {
        want[i] = stored(a[i] - stored(half(g[i]) * single(rate)));
        if (decay != 1)
            want[i] = stored(stored(want[i] * single(decay)) + stored(b[i] * single(1 - decay)));
    }
    FOR_DEVICES(s) {
        struct box ba = box_row(s, MM_BF16, n, a), bb = box_row(s, MM_BF16, n, b);
        struct box bg = box_row(s, MM_F32, n, g);
        s->dev->ops->adversary_step(s->dev, box_vector(&ba), box_vector(&bb), box_vector(&bg), rate,
                                    decay, NULL, stop_put(s, 0));
        expect_exact(&ba, "adversary_step a", want);
        expect_exact(&bb, "adversary_step b", b);
    }
    pool_drop();
}

static void check_sgd(size_t n, double rate) {
    struct rng r = {n};
    double *p = half_numbers(&r, n), *g = gradient_numbers(&r, n), *want = numbers(n);
    for (size_t i = 0; i < n; i++)
        want[i] = stored(p[i] - stored(half(g[i]) * single(rate)));
    FOR_DEVICES(s) {
        struct box bp = box_row(s, MM_BF16, n, p), bg = box_row(s, MM_F32, n, g);
        s->dev->ops->sgd_step(s->dev, box_vector(&bp), box_vector(&bg), rate);
        expect_exact(&bp, "sgd_step p", want);
    }
    pool_drop();
}

static void steps(void **state) {
    (void)state;
    for (size_t i = 0; i < LENGTHS; i++) {
        check_retain(lengths[i], 0.95, 1e-3);
        check_retain(lengths[i], 0.3, 0.9);
        check_retain(lengths[i], 0, 1);
        check_adversary(lengths[i], 1e-3, 1);
        check_adversary(lengths[i], 0.37, 0.7);
        check_sgd(lengths[i], 3e-4);
        check_sgd(lengths[i], 0.7);
    }
}

/* A step below half of the last bit of b does nothing; just above it moves b by one. */
static void small_steps_vanish(void **state) {
    (void)state;
    FOR_DEVICES(s) {
        struct box bp = box_row(s, MM_BF16, 3, (const double[]){1, 1, 1});
        struct box bg = box_row(s, MM_F32, 3, (const double[]){-0x1p-8, -0x1.02p-8, -0x1.01p-8});
        s->dev->ops->sgd_step(s->dev, box_vector(&bp), box_vector(&bg), 1);
        /* 1 + 2^-8 is half-way: to the even one; 0x1.01p-8 itself rounds to 0x1p-8 first */
        expect_exact(&bp, "sgd_step", (const double[]){1, 1 + 0x1p-7, 1});
    }
}

/* -- mask, norms and the unlearning step ------------------------------------------------------- */

static void check_mask(bool masking) {
    struct rng r = {masking};
    const size_t n = offsets[TENSORS];
    const double rate = 0.03;
    double *m = half_numbers(&r, n), *b = half_numbers(&r, n), *g = gradient_numbers(&r, n);
    double *want = numbers(n), scale[TENSORS], squares = 0.25;
    struct mm_mask_sums sums[TENSORS] = {{0}};
    for (size_t t = 0; t < TENSORS; t++) {
        scale[t] = half(pow(3, (double)t - 3));
        for (size_t i = offsets[t]; i < offsets[t + 1]; i++) {
            double x = half(g[i]);
            bool kept = !masking || sign_of(x) == sign_of(m[i]);
            sums[t].raw += x * x;
            sums[t].kept += kept ? x * x : 0;
            sums[t].kept_n += kept;
            double step = stored(stored(x * scale[t]) * single(rate));
            want[i] = kept ? stored(b[i] - step) : b[i];
        }
        squares += sums[t].raw;
    }
    FOR_DEVICES(s) {
        struct box bg = box_row(s, MM_F32, n, g), bm = box_row(s, MM_BF16, n, m);
        struct box bb = box_row(s, MM_BF16, n, b);
        struct mm_mask_sums got[TENSORS], *on = device_put(s, sums, sizeof sums);
        struct mm_mask mask = {box_vector(&bm), masking, device_put(s, offsets, sizeof offsets),
                               TENSORS};
        double *sum = scalar_put(s, 0.25);
        s->dev->ops->mask_sums(s->dev, on, box_vector(&bg), &mask, NULL);
        s->dev->ops->sum_squares(s->dev, sum, box_vector(&bg), MM_BF16);
        device_get(s, got, on, sizeof got);
        expect_scalar(s, "sum_squares", scalar_get(s, sum), squares, 1e-13);
        expect_mask_sums(s, got, sums, TENSORS);
        s->dev->ops->unlearn_step(s->dev, box_vector(&bb), box_vector(&bg), &mask,
                                  device_put(s, scale, sizeof scale), rate, NULL, stop_put(s, 0));
        expect_exact(&bb, "unlearn_step b", want);
        expect_exact(&bg, "unlearn_step g", g);
        expect_exact(&bm, "unlearn_step m", m);
    }
    pool_drop();
}

static void mask(void **state) {
    (void)state;
    check_mask(true);
    check_mask(false);
}

/* A gradient that rounds to zero is zero: kept by a zero of m, of either sign, and by nothing else.
 */
static void mask_of_rounded_zeros(void **state) {
    (void)state;
    static const double g[] = {0x1p-140, -0x1p-140, 0x1p-133, -0x1p-133, 0, -0.0};
    static const double m_of[] = {0, -0.0, 1, -1};
    const size_t kinds = 6, n = 24, at[] = {0, n};
    double *g_of = numbers(n), *m = numbers(n), *b = numbers(n);
    for (size_t i = 0; i < n; i++) {
        g_of[i] = g[i % kinds];
        m[i] = m_of[i / kinds];
        b[i] = i % 2 ? 3 : -0.0;
    }
    FOR_DEVICES(s) {
        struct mm_mask_sums sums, *on = device_put(s, &sums, sizeof sums);
        struct box bg = box_row(s, MM_F32, n, g_of), bm = box_row(s, MM_BF16, n, m);
        struct box bb = box_row(s, MM_BF16, n, b);
        struct mm_mask mask = {box_vector(&bm), true, device_put(s, at, sizeof at), 1};
        s->dev->ops->mask_sums(s->dev, on, box_vector(&bg), &mask, NULL);
        device_get(s, &sums, on, sizeof sums);
        assert_true(sums.kept_n == 4 + 4 + 1 + 1);
        s->dev->ops->unlearn_step(s->dev, box_vector(&bb), box_vector(&bg), &mask, scalar_put(s, 0),
                                  1, NULL, stop_put(s, 0));
        const double *now = box_read(&bb, "b");
        for (size_t i = 0; i < n; i++)
            assert_true(now[i] == b[i]);
    }
}

/* The study code's norm(g)**2 summed over tensors, and the root: each a bfloat16 number. */
static double norm_of(const struct mm_mask_sums *sums, size_t n, bool kept, bool is_half) {
    double total = 0;
    for (size_t t = 0; t < n; t++) {
        double square = kept ? sums[t].kept : sums[t].raw;
        if (is_half) {
            double norm = half(single(sqrt(square)));
            total = stored(total + stored(norm * norm));
        } else
            total += square;
    }
    return is_half ? stored(sqrt(total)) : sqrt(total);
}

/* A number divided by a bfloat16 one: by its stored reciprocal. */
static double quotient(double factor, double norm, bool is_half) {
    return is_half ? stored(stored(1 / norm) * single(factor)) : factor / norm;
}

static void check_scale(enum mm_normalization normalization, bool study, bool is_half,
                        uint64_t seed) {
    const size_t n = 5;
    const double n_w = 1000;
    struct mm_mask_sums sums[5];
    struct rng r = {seed};
    double want[5], kept_n = 0;
    for (size_t t = 0; t < n; t++) {
        sums[t].raw = 10 * rng_uniform(&r) * pow(7, (double)t - 2);
        sums[t].kept = sums[t].raw * rng_uniform(&r);
        sums[t].kept_n = (double)(rng_next(&r) % 200);
        kept_n += sums[t].kept_n;
    }
    double raw = norm_of(sums, n, false, is_half), kept = norm_of(sums, n, true, is_half);
    double factor = study ? sqrt(n_w) : 1;
    struct mm_normalizing how = {normalization, study, n_w, is_half ? MM_BF16 : MM_F32};
    for (size_t t = 0; t < n; t++)
        want[t] = normalization == MM_NORM_GLOBAL_PRE_MASK    ? quotient(factor, raw, is_half)
                  : normalization == MM_NORM_GLOBAL_POST_MASK ? quotient(factor, kept, is_half)
                  : normalization == MM_NORM_PER_PARAMETER
                      ? quotient(1, norm_of(&sums[t], 1, true, is_half), is_half)
                      : 1;
    FOR_DEVICES(s) {
        struct mm_loop_scalars scalars = {
            .retain_loss = 1, .adversary_loss = 2, .unlearning_loss = 3, .sum_squares = 4};
        double scale[7] = {0, 0, 0, 0, 0, -5, -5};
        void *on = device_put(s, scale, sizeof scale);
        void *scalars_on = device_put(s, &scalars, sizeof scalars);
        s->dev->ops->unlearn_scale(s->dev, &how, on, device_put(s, sums, sizeof sums), n,
                                   scalars_on);
        device_get(s, scale, on, sizeof scale);
        device_get(s, &scalars, scalars_on, sizeof scalars);
        for (size_t t = 0; t < n; t++)
            expect_scalar(s, "unlearn_scale", scale[t], want[t], is_half ? 0 : 1e-14);
        expect_scalar(s, "grad_norm", scalars.grad_norm, raw, is_half ? 0 : 1e-14);
        expect_scalar(s, "mask_fraction", scalars.mask_fraction, kept_n / n_w, 1e-15);
        assert_true(scalars.stop == 0 && scale[5] == -5 && scale[6] == -5);
        assert_true(scalars.retain_loss == 1 && scalars.adversary_loss == 2 &&
                    scalars.unlearning_loss == 3 && scalars.sum_squares == 4);
    }
    pool_drop();
}

static void unlearn_scale(void **state) {
    (void)state;
    for (int normalization = MM_NORM_GLOBAL_PRE_MASK; normalization <= MM_NORM_NONE;
         normalization++)
        for (int form = 0; form < 4; form++)
            for (uint64_t seed = 0; seed < 20; seed++)
                check_scale((enum mm_normalization)normalization, form & 1, form & 2, seed);
}

/* What each normalization does about sums that cannot be divided by. */
static void unlearn_scale_guards(void **state) {
    (void)state;
    static const struct {
        struct mm_mask_sums sums[2];
        uint32_t want[4]; /* by normalization */
    } cases[] = {
        {{{4, 1, 1}, {9, 4, 1}}, {0, 0, 0, 0}},
        {{{4, 0, 0}, {9, 4, 1}}, {0, 0, MM_GUARD_ZERO_NORM, 0}},
        {{{4, 0, 0}, {9, 0, 0}}, {0, MM_GUARD_ZERO_NORM, MM_GUARD_ZERO_NORM, 0}},
        {{{0, 0, 0}, {0, 0, 0}}, {MM_GUARD_ZERO_NORM, MM_GUARD_ZERO_NORM, MM_GUARD_ZERO_NORM, 0}},
        {{{NAN, 1, 1}, {1, 1, 1}},
         {MM_GUARD_UNLEARNING_GRADIENT, MM_GUARD_UNLEARNING_GRADIENT, MM_GUARD_UNLEARNING_GRADIENT,
          MM_GUARD_UNLEARNING_GRADIENT}},
        {{{1, 1, 1}, {INFINITY, 1, 1}},
         {MM_GUARD_UNLEARNING_GRADIENT, MM_GUARD_UNLEARNING_GRADIENT, MM_GUARD_UNLEARNING_GRADIENT,
          MM_GUARD_UNLEARNING_GRADIENT}},
    };
    FOR_DEVICES(s)
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int normalization = 0; normalization < 4; normalization++)
            for (int before = 0; before < 2; before++)
                for (int dtype = MM_F32; dtype <= MM_BF16; dtype++) {
                    struct mm_loop_scalars scalars = {.stop = before ? MM_GUARD_RETAIN_LOSS : 0};
                    void *on = device_put(s, &scalars, sizeof scalars);
                    void *sums = device_put(s, cases[i].sums, sizeof cases[i].sums);
                    double scale[2];
                    struct mm_normalizing how = {(enum mm_normalization)normalization, true, 100,
                                                 (enum mm_dtype)dtype};
                    s->dev->ops->unlearn_scale(s->dev, &how, device_put(s, scale, sizeof scale),
                                               sums, 2, on);
                    device_get(s, &scalars, on, sizeof scalars);
                    uint32_t want = before ? MM_GUARD_RETAIN_LOSS : cases[i].want[normalization];
                    if (scalars.stop != want)
                        fail_msg("%s, %s: case %zu, normalization %d: stop %u, should be %u",
                                 s->dev->name, mm_dtype_name((enum mm_dtype)dtype), i,
                                 normalization, scalars.stop, want);
                }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(steps, test_end),
        cmocka_unit_test_teardown(small_steps_vanish, test_end),
        cmocka_unit_test_teardown(mask, test_end),
        cmocka_unit_test_teardown(mask_of_rounded_zeros, test_end),
        cmocka_unit_test_teardown(unlearn_scale, test_end),
        cmocka_unit_test_teardown(unlearn_scale_guards, test_end),
    };
    return cmocka_run_group_tests(tests, subjects_open, subjects_close);
}
