/* test_fast_math.c - what kernels/cpu/cpu.h says of its exponential and error function, here and as
 * each instruction set compiles them (through a loss and an activation that show them almost bare).
 */
#if defined(__x86_64__)
#define CPU_SUFFIX x86_64
#else
#define CPU_SUFFIX native
#endif

#include "tests/unit/ops_subject.h"

#include "kernels/cpu/cpu.h"

/* Distance in units of the last place of `want`, as a float32 number in the normal range. */
static double ulps(double got, double want) {
    int exponent;
    frexp(want, &exponent);
    return fabs(got - want) / ldexp(1, (exponent > -125 ? exponent : -125) - 24);
}

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

static void check_exp(float x) {
    double got = (double)fast_exp(x), want = exp((double)x);
    if (!(ulps(got, want) <= 2))
        fail_msg("fast_exp(%.9g) is %.9g, %.2f units from %.9g", (double)x, got, ulps(got, want),
                 want);
}

/* An even grid of 2^21 numbers, and every 997th float of either sign. */
static void exponential(void **state) {
    (void)state;
    for (int i = 0; i <= 1 << 21; i++)
        check_exp((float)(-87 + 175.0 * i / (1 << 21)));
    for (uint32_t bits = 0; bits <= bits_of(88.0f); bits += 997)
        check_exp(float_of(bits));
    for (uint32_t bits = bits_of(-0.0f); bits <= bits_of(-87.0f); bits += 997)
        check_exp(float_of(bits));
    check_exp(-87);
    check_exp(88);
    assert_true(fast_exp(0.0f) == 1.0f && fast_exp(-0.0f) == 1.0f);
}

static void exponential_outside(void **state) {
    (void)state;
    static const float low[] = {-87.00001f, -88, -103.97f, -200, -1e30f, -INFINITY};
    static const float high[] = {88.00001f, 88.7f, 89, 200, 1e30f, INFINITY};
    for (int i = 0; i < 6; i++) {
        assert_int_equal(bits_of(fast_exp(low[i])),
                         0); /* 0, and no number below the normal range */
        assert_true(fast_exp(high[i]) >= 1.6e38f && isfinite(fast_exp(high[i])));
    }
    assert_true(fast_exp(-87.0f) >= 0x1p-126f);
    for (uint32_t bits = 0x7f800001u; bits < 0x80000000u; bits += 9973)
        assert_true(isnan(fast_exp(float_of(bits))) && isnan(fast_exp(float_of(bits | 1u << 31))));
}

static void error_function(void **state) {
    (void)state;
    double most = 0;
    for (int i = -(1 << 21); i <= 1 << 21; i++) {
        float x = (float)(8.0 * i / (1 << 21));
        double error = fabs((double)fast_erf(x) - erf((double)x));
        if (!(error <= 4e-7))
            fail_msg("fast_erf(%.9g) is %.9g, should be %.9g", (double)x, (double)fast_erf(x),
                     erf((double)x));
        most = fmax(most, error);
        assert_true(fast_erf(-x) == -fast_erf(x));
    }
    /* Near zero it is relative: erf(x)/x is what is fitted. */
    for (uint32_t bits = 0; bits < bits_of(0.5f); bits += 997) {
        double x = (double)float_of(bits), want = erf(x);
        assert_true(fabs((double)fast_erf((float)x) - want) <= 5e-7 * fabs(want) + 0x1p-148);
    }
    static const float far[] = {3.92f, 3.93f, 10, 1e30f, INFINITY};
    for (int i = 0; i < 5; i++)
        assert_true(fabs((double)fast_erf(far[i]) - 1) <= 4e-7);
    for (uint32_t bits = 0x7f800001u; bits < 0x80000000u; bits += 9973)
        assert_true(isnan(fast_erf(float_of(bits))) && isnan(fast_erf(float_of(bits | 1u << 31))));
}

/* Beside one logit of 0 the others, below -30, leave a sum of 1: their gradients are exp(z) alone.
 */
static void exponential_of_each_set(void **state) {
    (void)state;
    const size_t V = 20001;
    const uint32_t target = 0;
    double *z = numbers(V);
    for (size_t j = 1; j < V; j++)
        z[j] = (double)(float)(-30 - 57.0 * (double)j / (double)V);
    z[V - 1] = -87;
    FOR_SUBJECTS(s, MM_F32) {
        struct box bz = box_row(s, MM_F32, V, z), bl = box_row(s, MM_F32, 1, NULL);
        struct mm_loss how = {.fn = MM_LOSS_CROSS_ENTROPY, .scale = 1};
        s->dev->ops->loss(s->dev, &how, bz.mat, device_put(s, &target, sizeof target), bl.mat.data,
                          bz.mat);
        const double *d = box_read(&bz, "exponentials");
        for (size_t j = 1; j < V; j++)
            if (!(ulps(d[j], exp(z[j])) <= 2))
                fail_msg("%s: exp(%.9g) is %.9g, %.2f units off", s->dev->name, z[j], d[j],
                         ulps(d[j], exp(z[j])));
    }
}

/* GELU(x) = x·(1 + erf(x/√2))/2: half of erf's error, times x, and two roundings. */
static void error_function_of_each_set(void **state) {
    (void)state;
    const size_t n = 40001;
    double *x = numbers(n);
    for (size_t j = 0; j < n; j++)
        x[j] = (double)(float)(-100 + 200.0 * (double)j / (double)(n - 1));
    FOR_SUBJECTS(s, MM_F32) {
        struct box bx = box_row(s, MM_F32, n, x), bh = box_row(s, MM_F32, n, NULL);
        s->dev->ops->activate(s->dev, MM_GELU, bh.mat, bx.mat);
        const double *h = box_read(&bh, "GELU");
        for (size_t j = 0; j < n; j++) {
            double want = 0.5 * x[j] * erfc(-x[j] / sqrt(2));
            if (!(fabs(h[j] - want) <= fabs(x[j]) * (2e-7 + 0x1p-24) + fabs(want) * 0x1p-23))
                fail_msg("%s: GELU(%.9g) is %.9g, should be %.9g", s->dev->name, x[j], h[j], want);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(exponential, test_end),
        cmocka_unit_test_teardown(exponential_outside, test_end),
        cmocka_unit_test_teardown(error_function, test_end),
        cmocka_unit_test_teardown(exponential_of_each_set, test_end),
        cmocka_unit_test_teardown(error_function_of_each_set, test_end),
    };
    return cmocka_run_group_tests(tests, subjects_open, subjects_close);
}
