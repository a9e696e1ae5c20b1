/* tensor.h - the dtype, shape and place of a matrix, and conversions of single values. */
#ifndef MM_TENSOR_H
#define MM_TENSOR_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum mm_dtype { MM_F32, MM_BF16, MM_F16 };

/* A row-major matrix of `rows` x `cols`. Row r starts at element r·ld, where ld >= cols. A matrix
 * never owns its memory. data == NULL means that it is absent. */
struct mm_mat {
    void *data;
    size_t rows, cols, ld;
    enum mm_dtype dtype;
};

static inline size_t mm_dtype_bytes(enum mm_dtype dtype) {
    return dtype == MM_F32 ? 4 : 2;
}

const char *mm_dtype_name(enum mm_dtype dtype); /* "float32" | "bfloat16" | "float16" */

static inline struct mm_mat mm_mat(void *data, enum mm_dtype dtype, size_t rows, size_t cols) {
    struct mm_mat m = {data, rows, cols, cols, dtype};
    return m;
}

/* Rows [first, first + count) of m. */
static inline struct mm_mat mm_mat_rows(struct mm_mat m, size_t first, size_t count) {
    m.data = (char *)m.data + first * m.ld * mm_dtype_bytes(m.dtype);
    m.rows = count;
    return m;
}

/* Columns [first, first + count) of m. */
static inline struct mm_mat mm_mat_cols(struct mm_mat m, size_t first, size_t count) {
    m.data = (char *)m.data + first * mm_dtype_bytes(m.dtype);
    m.cols = count;
    return m;
}

/* Rounds to nearest even; a NaN stays a NaN. */
static inline uint16_t mm_bf16_from_f32(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    /* both without a branch, so that loops over it vectorize */
    uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1u), nan = bits | 0x400000u;
    return (uint16_t)(((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded) >> 16);
}

static inline float mm_f32_from_bf16(uint16_t value) {
    uint32_t bits = (uint32_t)value << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

/* `value` after a round trip through bfloat16. */
static inline float mm_bf16_round(float value) {
    return mm_f32_from_bf16(mm_bf16_from_f32(value));
}

float mm_f32_from_f16(uint16_t value);
uint16_t mm_f16_from_f32(float value); /* rounds to nearest even; overflow becomes infinity */

/* dst[i] = src[i] converted, i < n, in host memory; dst and src don't overlap. */
void mm_convert(void *dst, enum mm_dtype dst_dtype, const void *src, enum mm_dtype src_dtype,
                size_t n);

#endif
