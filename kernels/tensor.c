/* tensor.c - conversions between float32, bfloat16 and float16 in host memory. */
#include "kernels/tensor.h"

const char *mm_dtype_name(enum mm_dtype dtype) {
    static const char *const names[] = {"float32", "bfloat16", "float16"};
    return names[dtype];
}

float mm_f32_from_f16(uint16_t value) {
    uint32_t sign = (uint32_t)(value & 0x8000u) << 16;
    uint32_t exponent = value >> 10 & 31u, mantissa = value & 1023u, bits;
    if (exponent == 31)
        bits = sign | 0x7f800000u | mantissa << 13;
    else if (exponent)
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    else {
        /* Subnormal: mantissa · 2^-24 is exact in float32. */
        float magnitude = (float)mantissa * 0x1p-24f;
        memcpy(&bits, &magnitude, 4);
        bits |= sign;
    }
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

uint16_t mm_f16_from_f32(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u)
        return sign | 0x7e00u;
    if (bits >= 0x477ff000u) /* 65520: rounds beyond the largest finite value */
        return sign | 0x7c00u;
    if (bits < 0x38800000u) { /* below 2^-14: adding 1/2 aligns the units of 2^-24 */
        float magnitude;
        memcpy(&magnitude, &bits, 4);
        magnitude += 0.5f;
        memcpy(&bits, &magnitude, 4);
        return sign | (uint16_t)(bits - 0x3f000000u);
    }
    bits += 0xfffu + (bits >> 13 & 1u);
    return sign | (uint16_t)((bits - 0x38000000u) >> 13);
}

static float load(const void *src, enum mm_dtype dtype, size_t i) {
    if (dtype == MM_F32) {
        float value;
        memcpy(&value, (const char *)src + 4 * i, 4);
        return value;
    }
    uint16_t half;
    memcpy(&half, (const char *)src + 2 * i, 2);
    return dtype == MM_BF16 ? mm_f32_from_bf16(half) : mm_f32_from_f16(half);
}

void mm_convert(void *dst, enum mm_dtype dst_dtype, const void *src, enum mm_dtype src_dtype,
                size_t n) {
    if (dst_dtype == src_dtype) {
        memcpy(dst, src, n * mm_dtype_bytes(dst_dtype));
        return;
    }
    for (size_t i = 0; i < n; i++) {
        float value = load(src, src_dtype, i);
        if (dst_dtype == MM_F32)
            ((float *)dst)[i] = value;
        else
            ((uint16_t *)dst)[i] =
                dst_dtype == MM_BF16 ? mm_bf16_from_f32(value) : mm_f16_from_f32(value);
    }
}
