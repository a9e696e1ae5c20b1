/* test_ops_vector.c - the steps of Algorithm 1 on float32 vectors, of every backend, against
 * double; the meaning of signs and zeros, the guard, and the stop flag. bfloat16: test_ops_half.c.
 */
#include "tests/unit/ops_subject.h"

static const size_t lengths[] = {1, 7, 33, 100, 16383, 16384, 16385, 40000};
#define LENGTHS (sizeof lengths / sizeof *lengths)

static uint32_t stop_get(const struct subject *s, const uint32_t *stop) {
    uint32_t value;
    device_get(s, &value, stop, sizeof value);
    return value;
}

/* -- lines 4 to 11 ----------------------------------------------------------------------------- */

static void check_retain_step(size_t n, double momentum, double rate) {
    struct rng r = {n};
    double *m = random_numbers(&r, MM_F32, n, 1e-3), *b = random_numbers(&r, MM_F32, n, 0.1);
    double *g = random_numbers(&r, MM_F32, n, 1e-2);
    double *want_m = numbers(n), *size_m = numbers(n), *want_b = numbers(n), *size_b = numbers(n);
    for (size_t i = 0; i < n; i++) {
        want_m[i] = momentum * m[i] + (1 - momentum) * g[i];
        size_m[i] = fabs(momentum * m[i]) + fabs((1 - momentum) * g[i]);
        want_b[i] = b[i] - rate * want_m[i];
        size_b[i] = fabs(b[i]) + rate * size_m[i];
    }
    FOR_DEVICES(s) {
        struct box bm = box_row(s, MM_F32, n, m), bb = box_row(s, MM_F32, n, b);
        struct box bg = box_row(s, MM_F32, n, g);
        s->dev->ops->retain_step(s->dev, box_vector(&bm), box_vector(&bb), box_vector(&bg),
                                 momentum, rate, stop_put(s, 0));
        expect_close(&bm, "retain_step m", want_m, size_m, 4);
        expect_close(&bb, "retain_step b", want_b, size_b, 4);
        expect_exact(&bg, "retain_step g", g);
    }
    pool_drop();
}

static void retain_step(void **state) {
    (void)state;
    for (size_t i = 0; i < LENGTHS; i++) {
        check_retain_step(lengths[i], 0.95, 1e-3);
        check_retain_step(lengths[i], 0, 0.7); /* m becomes g */
        check_retain_step(lengths[i], 1, 3);   /* g has no say */
    }
}

static void check_adversary_step(size_t n, double rate, double decay) {
    struct rng r = {n};
    double *a = random_numbers(&r, MM_F32, n, 0.1), *b = random_numbers(&r, MM_F32, n, 0.1);
    double *g = random_numbers(&r, MM_F32, n, 1), *want = numbers(n), *size = numbers(n);
    for (size_t i = 0; i < n; i++) {
        want[i] = decay * (a[i] - rate * g[i]) + (1 - decay) * b[i];
        size[i] = fabs(a[i]) + fabs(rate * g[i]) + fabs(b[i]);
    }
    FOR_DEVICES(s) {
        struct box ba = box_row(s, MM_F32, n, a), bb = box_row(s, MM_F32, n, b);
        struct box bg = box_row(s, MM_F32, n, g);
        s->dev->ops->adversary_step(s->dev, box_vector(&ba), box_vector(&bb), box_vector(&bg), rate,
                                    decay, NULL, stop_put(s, 0));
        expect_close(&ba, "adversary_step a", want, size, 4);
        expect_exact(&bb, "adversary_step b", b);
        expect_exact(&bg, "adversary_step g", g);
    }
    pool_drop();
}

/* Tensors of a vector, one of them empty; whole groups of four and others, that begin anywhere. */
static const size_t placed_offsets[] = {0, 1000, 1000, 1003, 1400, 5502};
#define PLACED   ((size_t)5)
#define PLACED_N ((size_t)5502)

/* The step puts the new a to its tensors as convert would; of a set stop, nothing. */
static void check_places(const struct subject *s, enum mm_dtype of, enum mm_dtype to, double decay,
                         uint32_t stop) {
    struct rng r = {stop + 1};
    struct box ba = box_row(s, of, PLACED_N, random_numbers(&r, of, PLACED_N, 0.1));
    struct box bg = box_row(s, MM_F32, PLACED_N, random_numbers(&r, MM_F32, PLACED_N, 1));
    struct box tensors[PLACED];
    void *data[PLACED];
    for (size_t t = 0; t < PLACED; t++) {
        size_t n = placed_offsets[t + 1] - placed_offsets[t];
        tensors[t] = box_make(s, to, 1, n ? n : 1, t == 3 ? 5 : 0, NULL);
        data[t] = tensors[t].mat.data;
    }
    const struct mm_places places = {to, device_put(s, data, sizeof data),
                                     device_put(s, placed_offsets, sizeof placed_offsets), PLACED};
    struct box bb = box_row(s, of, PLACED_N, random_numbers(&r, of, PLACED_N, 0.1));
    s->dev->ops->adversary_step(s->dev, box_vector(&ba), box_vector(&bb), box_vector(&bg), 0.1,
                                decay, &places, stop_put(s, stop));
    const double *a = box_read(&ba, "a");
    for (size_t t = 0; t < PLACED; t++) {
        const double *got = box_read(&tensors[t], "a tensor of a");
        for (size_t i = 0; i < tensors[t].mat.cols; i++) {
            bool untouched = stop || placed_offsets[t] == placed_offsets[t + 1];
            double want = rounded(to, a[placed_offsets[t] + i]);
            if (untouched ? !isnan(got[i]) : got[i] != want)
                fail_msg("%s: element %zu of tensor %zu is %g, a is %g", s->dev->name, i, t, got[i],
                         want);
        }
    }
    pool_drop();
}

static void adversary_places(void **state) {
    (void)state;
    FOR_DEVICES(s)
    for (enum mm_dtype of = MM_F32; of <= MM_BF16; of++)
        for (enum mm_dtype to = MM_F32; to <= MM_BF16; to++)
            for (uint32_t stop = 0; stop < 2; stop++)
                for (int decays = 0; decays < 2; decays++)
                    check_places(s, of, to, decays ? 0.7 : 1, stop);
}

static void adversary_step(void **state) {
    (void)state;
    for (size_t i = 0; i < LENGTHS; i++) {
        check_adversary_step(lengths[i], 0.01, 1); /* no decay: b isn't read */
        check_adversary_step(lengths[i], 0.3, 0.7);
        check_adversary_step(lengths[i], 0.3, 0);
    }
    FOR_DEVICES(s) { /* nor may a NaN of b pass where decay is 1 */
        struct box ba = box_row(s, MM_F32, 3, (const double[]){1, 2, 3});
        struct box bb = box_row(s, MM_F32, 3, NULL),
                   bg = box_row(s, MM_F32, 3, (double[]){1, 1, 0});
        s->dev->ops->adversary_step(s->dev, box_vector(&ba), box_vector(&bb), box_vector(&bg), 0.5,
                                    1, NULL, stop_put(s, 0));
        expect_exact(&ba, "adversary_step a", (const double[]){0.5, 1.5, 3});
        const struct mm_vector none = {0};
        s->dev->ops->adversary_step(s->dev, box_vector(&ba), none, box_vector(&bg), 0.5, 0.5, NULL,
                                    stop_put(s, 0));
        expect_exact(&ba, "adversary_step towards zeros", (const double[]){0, 0.5, 1.5});
    }
}

static void fork_copies(void **state) {
    (void)state;
    for (size_t i = 0; i < LENGTHS; i++)
        for (int dtype = MM_F32; dtype <= MM_BF16; dtype++) {
            struct rng r = {i};
            size_t n = lengths[i];
            double *b = random_numbers(&r, (enum mm_dtype)dtype, n, 1);
            b[n / 2] = -0.0;
            FOR_DEVICES(s) {
                struct box ba = box_row(s, (enum mm_dtype)dtype, n, NULL);
                struct box bb = box_row(s, (enum mm_dtype)dtype, n, b);
                s->dev->ops->fork(s->dev, box_vector(&ba), box_vector(&bb), stop_put(s, 0));
                expect_exact(&ba, "fork a", b);
                expect_exact(&bb, "fork b", b);
            }
            pool_drop();
        }
}

/* -- lines 13 to 15 ---------------------------------------------------------------------------- */

/* A g and an m of n elements of which a fifth are zeros of both signs. */
static void mask_inputs(struct rng *r, size_t n, double **g, double **m) {
    *g = random_numbers(r, MM_F32, n, 1e-2);
    *m = random_numbers(r, MM_F32, n, 1e-3);
    for (size_t i = 0; i < n; i++) {
        uint64_t bits = rng_next(r);
        if (bits % 5 == 0)
            (*g)[i] = bits & 64 ? 0 : -0.0;
        if (bits / 8 % 5 == 0)
            (*m)[i] = bits & 128 ? 0 : -0.0;
    }
}

/* Tensors of very different sizes, one empty, one longer than any chunk. */
static const size_t offsets[] = {0, 1, 8, 8, 41, 16425, 16426, 56426};
#define TENSORS (sizeof offsets / sizeof *offsets - 1)

static void check_mask(bool masking) {
    struct rng r = {masking};
    const size_t n = offsets[TENSORS];
    const double rate = 0.03;
    double *g, *m, scale[TENSORS], *want = numbers(n), *size = numbers(n);
    double *b = random_numbers(&r, MM_F32, n, 0.1);
    struct mm_mask_sums sums[TENSORS] = {{0}};
    mask_inputs(&r, n, &g, &m);
    for (size_t t = 0; t < TENSORS; t++) {
        scale[t] = pow(3, (double)t - 3);
        for (size_t i = offsets[t]; i < offsets[t + 1]; i++) {
            bool kept = !masking || sign_of(g[i]) == sign_of(m[i]);
            sums[t].raw += g[i] * g[i];
            sums[t].kept += kept ? g[i] * g[i] : 0;
            sums[t].kept_n += kept;
            want[i] = b[i] - (kept ? rate * scale[t] * g[i] : 0);
            size[i] = kept ? fabs(b[i]) + rate * scale[t] * fabs(g[i]) : 0; /* else untouched */
        }
    }
    FOR_DEVICES(s) {
        struct box bg = box_row(s, MM_F32, n, g), bm = box_row(s, MM_F32, n, m);
        struct box bb = box_row(s, MM_F32, n, b);
        struct mm_mask_sums got[TENSORS + 1], fill;
        memset(&fill, 0x5a, sizeof fill);
        for (size_t t = 0; t <= TENSORS; t++)
            got[t] = fill;
        struct mm_mask_sums *on = device_put(s, got, sizeof got);
        struct mm_mask mask = {box_vector(&bm), masking, device_put(s, offsets, sizeof offsets),
                               TENSORS};
        s->dev->ops->mask_sums(s->dev, on, box_vector(&bg), &mask, NULL);
        device_get(s, got, on, sizeof got);
        assert_memory_equal(&got[TENSORS], &fill, sizeof fill);
        expect_mask_sums(s, got, sums, TENSORS);
        s->dev->ops->unlearn_step(s->dev, box_vector(&bb), box_vector(&bg), &mask,
                                  device_put(s, scale, sizeof scale), rate, NULL, stop_put(s, 0));
        expect_close(&bb, "unlearn_step b", want, size, 4);
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

/* Every pair of: below zero, -0, 0, above, and numbers below the normal range. */
static void mask_signs(void **state) {
    (void)state;
    static const double value[] = {-2, -0x1p-149, -0.0, 0, 0x1p-149, 2};
    const size_t kinds = 6, n = kinds * kinds;
    double *g = numbers(n), *m = numbers(n), *b = numbers(n), *want = numbers(n), kept_n = 0;
    for (size_t i = 0; i < n; i++) {
        g[i] = value[i / kinds];
        m[i] = value[i % kinds];
        want[i] = b[i] = i % 3 ? -0.0 : 4;
        if (sign_of(g[i]) == sign_of(m[i])) {
            want[i] = (float)(b[i] - g[i]);
            kept_n++;
        }
    }
    const size_t at[] = {0, n};
    FOR_DEVICES(s) {
        struct box bg = box_row(s, MM_F32, n, g), bm = box_row(s, MM_F32, n, m);
        struct box bb = box_row(s, MM_F32, n, b);
        struct mm_mask_sums sums = {0}, *on = device_put(s, &sums, sizeof sums);
        struct mm_mask mask = {box_vector(&bm), true, device_put(s, at, sizeof at), 1};
        s->dev->ops->mask_sums(s->dev, on, box_vector(&bg), &mask, NULL);
        device_get(s, &sums, on, sizeof sums);
        assert_true(sums.kept_n == kept_n && kept_n == 12);
        s->dev->ops->unlearn_step(s->dev, box_vector(&bb), box_vector(&bg), &mask, scalar_put(s, 1),
                                  1, NULL, stop_put(s, 0));
        expect_exact(&bb, "unlearn_step b", want);
    }
}

/* A NaN or infinite gradient shows in the raw sum whether it is kept or not. */
static void mask_sums_pass_nan_on(void **state) {
    (void)state;
    static const double bad[] = {NAN, INFINITY, -INFINITY}, m_of[] = {-1, 0, 1};
    const size_t n = 100, at[] = {0, 50, n};
    FOR_DEVICES(s)
    for (size_t k = 0; k < 9; k++) {
        double *g = numbers(n), *m = numbers(n);
        g[70] = bad[k / 3];
        m[70] = m_of[k % 3];
        struct box bg = box_row(s, MM_F32, n, g), bm = box_row(s, MM_F32, n, m);
        struct mm_mask_sums sums[2], *on = device_put(s, sums, sizeof sums);
        double *sum = scalar_put(s, 0);
        struct mm_mask mask = {box_vector(&bm), true, device_put(s, at, sizeof at), 2};
        s->dev->ops->mask_sums(s->dev, on, box_vector(&bg), &mask, NULL);
        s->dev->ops->sum_squares(s->dev, sum, box_vector(&bg), MM_F32);
        device_get(s, sums, on, sizeof sums);
        assert_true(sums[0].raw == 0 && !isfinite(sums[1].raw) && !isfinite(scalar_get(s, sum)));
    }
}

/* -- the guard and the stop flag --------------------------------------------------------------- */

static void sum_squares(void **state) {
    (void)state;
    for (size_t i = 0; i < LENGTHS; i++) {
        struct rng r = {i};
        double *g = random_numbers(&r, MM_F32, lengths[i], 1), want = 0.5;
        for (size_t k = 0; k < lengths[i]; k++)
            want += g[k] * g[k];
        FOR_DEVICES(s) {
            struct box bg = box_row(s, MM_F32, lengths[i], g);
            double *sum = scalar_put(s, 0.5);
            s->dev->ops->sum_squares(s->dev, sum, box_vector(&bg), MM_F32);
            expect_scalar(s, "sum_squares", scalar_get(s, sum), want, 1e-13);
        }
    }
}

static void guard(void **state) {
    (void)state;
    static const double values[] = {1, -1, 1e308, 0, -0.0, NAN, INFINITY, -INFINITY};
    FOR_DEVICES(s)
    for (size_t i = 0; i < 8; i++)
        for (uint32_t before = 0; before < 2; before++) {
            uint32_t *stop = stop_put(s, before * MM_GUARD_RETAIN_LOSS);
            uint32_t want = before ? MM_GUARD_RETAIN_LOSS : i >= 5 ? MM_GUARD_ADVERSARY_LOSS : 0;
            s->dev->ops->guard(s->dev, scalar_put(s, values[i]), MM_GUARD_ADVERSARY_LOSS, stop);
            assert_int_equal(stop_get(s, stop), want);
        }
}

/* A gradient of zeros is a wreck only where there is a loss. */
static void guard_dead(void **state) {
    (void)state;
    static const double squares[] = {0, 0, 0, 0x1p-300, NAN, 0}, losses[] = {2, -2, 0, 2, 2, NAN};
    static const bool dead[] = {true, true, false, false, false, true};
    FOR_DEVICES(s)
    for (size_t i = 0; i < 6; i++)
        for (uint32_t before = 0; before < 2; before++) {
            uint32_t *stop = stop_put(s, before * MM_GUARD_RETAIN_LOSS);
            uint32_t want = before ? MM_GUARD_RETAIN_LOSS : dead[i] ? MM_GUARD_RETAIN_DEAD : 0;
            s->dev->ops->guard_dead(s->dev, scalar_put(s, squares[i]), scalar_put(s, losses[i]),
                                    MM_GUARD_RETAIN_DEAD, stop);
            assert_int_equal(stop_get(s, stop), want);
        }
}

/* Nothing is written once the flag is up, not even the same value rounded anew. */
static void stop_writes_nothing(void **state) {
    (void)state;
    const size_t n = 333, at[] = {0, 100, n};
    const double scale[] = {1, 2};
    FOR_DEVICES(s)
    for (int type = MM_F32; type <= MM_BF16; type++)
        for (int op = 0; op < 4; op++) {
            struct rng r = {1};
            const struct mm_ops *ops = s->dev->ops;
            enum mm_dtype dtype = (enum mm_dtype)type;
            double *x = random_numbers(&r, dtype, n, 1), *y = random_numbers(&r, dtype, n, 1);
            struct box one = box_row(s, dtype, n, x), two = box_row(s, dtype, n, y);
            struct box bg = box_row(s, MM_F32, n, random_numbers(&r, MM_F32, n, 1));
            struct mm_vector a = box_vector(&one), b = box_vector(&two), g = box_vector(&bg);
            struct mm_mask mask = {b, true, device_put(s, at, sizeof at), 2};
            for (uint32_t stop = MM_GUARD_ADVERSARY_DEAD + 1;
                 stop-- > 0;) { /* at last 0: it does write */
                uint32_t *flag = stop_put(s, stop);
                if (op == 0)
                    ops->fork(s->dev, a, b, flag);
                if (op == 1)
                    ops->retain_step(s->dev, a, b, g, 0.5, 0.5, flag);
                if (op == 2)
                    ops->adversary_step(s->dev, a, b, g, 0.5, 0.5, NULL, flag);
                if (op == 3)
                    ops->unlearn_step(s->dev, a, g, &mask, device_put(s, scale, sizeof scale), 0.5,
                                      NULL, flag);
                bool same = true;
                const double *now = box_read(&one, "a");
                for (size_t i = 0; i < n; i++)
                    same &= now[i] == x[i];
                if (same != (stop != 0))
                    fail_msg("%s, %s: operation %d, flag %u", s->dev->name, mm_dtype_name(dtype),
                             op, stop);
                if (stop)
                    expect_exact(&two, "b", y);
                assert_int_equal(stop_get(s, flag), stop);
            }
        }
}

/* -- relearning and pretraining ---------------------------------------------------------------- */

static void sgd_step(void **state) {
    (void)state;
    for (size_t i = 0; i < LENGTHS; i++) {
        size_t n = lengths[i];
        struct rng r = {n};
        double *p = random_numbers(&r, MM_F32, n, 0.1), *g = random_numbers(&r, MM_F32, n, 3);
        double *want = numbers(n), *size = numbers(n);
        for (size_t k = 0; k < n; k++) {
            want[k] = p[k] - 0.01 * g[k];
            size[k] = fabs(p[k]) + 0.01 * fabs(g[k]);
        }
        FOR_DEVICES(s) {
            struct box bp = box_row(s, MM_F32, n, p), bg = box_row(s, MM_F32, n, g);
            s->dev->ops->sgd_step(s->dev, box_vector(&bp), box_vector(&bg), 0.01);
            expect_close(&bp, "sgd_step", want, size, 4);
            expect_exact(&bg, "sgd_step g", g);
        }
        pool_drop();
    }
}

static void check_add(enum mm_dtype dtype, size_t n) {
    struct rng r = {n};
    double *x = random_numbers(&r, dtype, n, 3), *y = random_numbers(&r, dtype, n, 0.1);
    double *want = numbers(n);
    for (size_t k = 0; k < n; k++) {
        float sum = (float)x[k] + (float)y[k];
        want[k] = (double)(dtype == MM_BF16 ? mm_bf16_round(sum) : sum);
    }
    for (int into = 0; into < 3; into++) /* a place of its own, x, y */
        FOR_DEVICES(s) {
            struct box bx = box_row(s, dtype, n, x), by = box_row(s, dtype, n, y);
            struct box other = box_row(s, dtype, n, y), *sum[] = {&other, &bx, &by};
            s->dev->ops->add(s->dev, sum[into]->mat, bx.mat, by.mat);
            expect_exact(sum[into], "add", want);
            if (into != 1)
                expect_exact(&bx, "add x", x);
            if (into != 2)
                expect_exact(&by, "add y", y);
        }
    pool_drop();
}

static void add(void **state) {
    (void)state;
    for (size_t i = 0; i < LENGTHS; i++) {
        check_add(MM_F32, lengths[i]);
        check_add(MM_BF16, lengths[i]);
    }
}

/* Loshchilov and Hutter, Algorithm 2, with the learning rate on both terms as PyTorch has it. */
static void check_adamw(enum mm_dtype dtype, size_t n, size_t t, double weight_decay) {
    static const double betas[] = {0.9, 0.999};
    const double rate = 3e-3, epsilon = 1e-8, g_scale = 0.37;
    struct rng r = {n + t};
    double *p = random_numbers(&r, dtype, n, 0.1), *g = random_numbers(&r, MM_F32, n, 1);
    double *one = random_numbers(&r, dtype, n, t > 1 ? 0.2 : 0), *two = numbers(n);
    double *want_p = numbers(n), *want_1 = numbers(n), *want_2 = numbers(n);
    double *size_p = numbers(n), *size_1 = numbers(n);
    g[n / 2] = 0; /* nothing to divide by but epsilon, where the moments are zero too */
    for (size_t i = 0; i < n; i++) {
        double d = g_scale * g[i];
        two[i] = t > 1 ? (double)rounded(dtype, (float)(0.1 * rng_uniform(&r))) : 0;
        want_1[i] = betas[0] * one[i] + (1 - betas[0]) * d;
        size_1[i] = fabs(betas[0] * one[i]) + fabs((1 - betas[0]) * d);
        want_2[i] = betas[1] * two[i] + (1 - betas[1]) * d * d;
        double mean = want_1[i] / (1 - pow(betas[0], (double)t));
        double square = want_2[i] / (1 - pow(betas[1], (double)t));
        double step = rate / (sqrt(square) + epsilon);
        want_p[i] = p[i] - rate * weight_decay * p[i] - step * mean;
        size_p[i] = fabs(p[i]) + step * size_1[i] / (1 - pow(betas[0], (double)t));
    }
    struct mm_adamw how = {g_scale, rate, {betas[0], betas[1]}, epsilon, weight_decay, t};
    FOR_DEVICES(s) {
        struct box bp = box_row(s, dtype, n, p), bg = box_row(s, MM_F32, n, g);
        struct box b1 = box_row(s, dtype, n, one), b2 = box_row(s, dtype, n, two);
        s->dev->ops->adamw_step(s->dev, box_vector(&bp), box_vector(&b1), box_vector(&b2),
                                box_vector(&bg), &how);
        expect_close(&b1, "adamw_step first", want_1, size_1, 4);
        expect_close(&b2, "adamw_step second", want_2, want_2, 8);
        expect_close(&bp, "adamw_step p", want_p, size_p, 8);
        expect_exact(&bg, "adamw_step g", g);
    }
    pool_drop();
}

static void adamw_step(void **state) {
    (void)state;
    static const size_t steps[] = {1, 2, 10, 100000};
    for (size_t i = 0; i < LENGTHS; i++)
        for (size_t k = 0; k < 4; k++)
            for (int half = 0; half < 2; half++)
                check_adamw(half ? MM_BF16 : MM_F32, lengths[i], steps[k], k % 2 ? 0.1 : 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(retain_step, test_end),
        cmocka_unit_test_teardown(adversary_step, test_end),
        cmocka_unit_test_teardown(adversary_places, test_end),
        cmocka_unit_test_teardown(fork_copies, test_end),
        cmocka_unit_test_teardown(mask, test_end),
        cmocka_unit_test_teardown(mask_signs, test_end),
        cmocka_unit_test_teardown(mask_sums_pass_nan_on, test_end),
        cmocka_unit_test_teardown(sum_squares, test_end),
        cmocka_unit_test_teardown(guard, test_end),
        cmocka_unit_test_teardown(guard_dead, test_end),
        cmocka_unit_test_teardown(stop_writes_nothing, test_end),
        cmocka_unit_test_teardown(add, test_end),
        cmocka_unit_test_teardown(sgd_step, test_end),
        cmocka_unit_test_teardown(adamw_step, test_end),
    };
    return cmocka_run_group_tests(tests, subjects_open, subjects_close);
}
