/* test_convert.c - float16 and bfloat16, against a reference that computes in double. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "kernels/tensor.h"

/* A format of 16 bits: bits of mantissa, exponent of the smallest normal number, largest number. */
struct format {
    const char *name;
    int mantissa, lowest;
    double largest;
    float (*decode)(uint16_t);
    uint16_t (*encode)(float);
};

static float bf16_decode(uint16_t value) {
    return mm_f32_from_bf16(value);
}

static uint16_t bf16_encode(float value) {
    return mm_bf16_from_f32(value);
}

static const struct format formats[] = {
    {"float16", 10, -14, 65504, mm_f32_from_f16, mm_f16_from_f32},
    {"bfloat16", 7, -126, 0x1.fep127, bf16_decode, bf16_encode},
};

static double reference_decode(const struct format *f, unsigned h) {
    unsigned mantissa = h & ((1u << f->mantissa) - 1), exponent = (h & 0x7fff) >> f->mantissa;
    unsigned top = 0x7fffu >> f->mantissa;
    double value;
    if (exponent == top)
        value = mantissa ? NAN : INFINITY;
    else if (exponent == 0)
        value = ldexp(mantissa, f->lowest - f->mantissa);
    else
        value = ldexp((1u << f->mantissa) + mantissa, f->lowest - f->mantissa + (int)exponent - 1);
    return h & 0x8000 ? -value : value;
}

/* The nearest number of the format, of two the even one. Every step is exact but nearbyint. */
static double reference_round(const struct format *f, float value) {
    if (!isfinite(value) || value == 0)
        return value;
    int exponent;
    frexp(value, &exponent);
    int unit = (exponent - 1 > f->lowest ? exponent - 1 : f->lowest) - f->mantissa;
    double rounded = ldexp(nearbyint(ldexp(value, -unit)), unit);
    if (fabs(rounded) > f->largest)
        rounded = copysign(INFINITY, value);
    return copysign(rounded, value);
}

static float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static void expect_rounding(const struct format *f, float value) {
    double got = f->decode(f->encode(value)), wanted = reference_round(f, value);
    int same = isnan(wanted) ? isnan(got) : got == wanted && !signbit(got) == !signbit(wanted);
    if (!same)
        fail_msg("%s(%a) is %a, not %a", f->name, value, got, wanted);
}

static void every_value(void **state) {
    (void)state;
    for (size_t i = 0; i < 2; i++)
        for (unsigned h = 0; h < 65536; h++) {
            const struct format *f = &formats[i];
            float value = f->decode((uint16_t)h);
            double wanted = reference_decode(f, h);
            if (isnan(wanted)) {
                assert_true(isnan(value));
                assert_true(isnan(f->decode(f->encode(value))));
                continue;
            }
            assert_true(value == wanted && !signbit(value) == !signbit(wanted));
            assert_int_equal(f->encode(value), h);
        }
}

/* The middle between each number and the next, and the float32 numbers beside it. */
static void halves_go_to_even(void **state) {
    (void)state;
    for (size_t i = 0; i < 2; i++)
        for (unsigned h = 0; h < 65536; h++) {
            double low = reference_decode(&formats[i], h);
            double high = reference_decode(&formats[i], h + 1 < 65536 ? h + 1 : 0);
            if (!isfinite(low))
                continue;
            if (!isfinite(high)) /* the next one, were there one more exponent */
                high = 2 * low - reference_decode(&formats[i], h - 1);
            float middle = (float)((low + high) / 2);
            expect_rounding(&formats[i], middle);
            expect_rounding(&formats[i], nextafterf(middle, INFINITY));
            expect_rounding(&formats[i], nextafterf(middle, -INFINITY));
        }
}

/* One in 977 of all float32 bit patterns: each exponent and sign, NaN and infinity included. */
static void patterns(void **state) {
    (void)state;
    for (size_t i = 0; i < 2; i++)
        for (uint64_t bits = 0; bits <= UINT32_MAX; bits += 977)
            expect_rounding(&formats[i], float_of((uint32_t)bits));
}

static void named_values(void **state) {
    (void)state;
    assert_int_equal(mm_f16_from_f32(1), 0x3c00);
    assert_int_equal(mm_f16_from_f32(65519.996f), 0x7bff);
    assert_int_equal(mm_f16_from_f32(65520), 0x7c00);
    assert_int_equal(mm_f16_from_f32(-1e10f), 0xfc00);
    assert_int_equal(mm_f16_from_f32(0x1p-25f), 0);
    assert_int_equal(mm_f16_from_f32(0x1.000002p-25f), 1);
    assert_int_equal(mm_bf16_from_f32(-0.0f), 0x8000);
    assert_int_equal(mm_bf16_from_f32(1.00390625f), 0x3f80); /* half way: to even */
    assert_int_equal(mm_bf16_from_f32(1.01171875f), 0x3f82);
    assert_int_equal(mm_bf16_from_f32(3.4e38f), 0x7f80);
    assert_true(mm_bf16_round(1.00390625f) == 1);
    /* A NaN whose payload lies in the low bits must not become infinity. */
    assert_true(isnan(mm_f32_from_bf16(mm_bf16_from_f32(float_of(0x7f800001)))));
    assert_true(isnan(mm_f32_from_f16(mm_f16_from_f32(float_of(0xff800001)))));
}

static void arrays(void **state) {
    (void)state;
    const float values[] = {0, -1.5f, 3.25f, 1e-3f, 70000, 0.333333f};
    const enum mm_dtype dtypes[] = {MM_F32, MM_BF16, MM_F16};
    for (size_t from = 0; from < 3; from++)
        for (size_t to = 0; to < 3; to++) {
            char bytes[1 + sizeof values]; /* the source is not aligned */
            float out[7], wanted[6], back[6];
            mm_convert(wanted, dtypes[from], values, MM_F32, 6);
            memcpy(bytes + 1, wanted, 6 * mm_dtype_bytes(dtypes[from]));
            memset(out, 0x5a, sizeof out);
            mm_convert(out, dtypes[to], bytes + 1, dtypes[from], 6);
            for (size_t i = 6 * mm_dtype_bytes(dtypes[to]); i < sizeof out; i++)
                assert_int_equal(((unsigned char *)out)[i], 0x5a);
            mm_convert(back, MM_F32, out, dtypes[to], 6);
            for (size_t i = 0; i < 6; i++) {
                float value = values[i];
                if (dtypes[from] != MM_F32)
                    value = (float)reference_round(&formats[dtypes[from] == MM_BF16], value);
                if (dtypes[to] != MM_F32)
                    value = (float)reference_round(&formats[dtypes[to] == MM_BF16], value);
                assert_true(back[i] == value);
            }
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_value), cmocka_unit_test(halves_go_to_even),
        cmocka_unit_test(patterns),    cmocka_unit_test(named_values),
        cmocka_unit_test(arrays),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
