/* cpu.h - what the files of the CPU backend share. Each is compiled once per instruction set;
 * CPU_NAME(x) gives x the suffix of the set, so that the copies live in one binary. */
#ifndef MM_CPU_H
#define MM_CPU_H

#include "kernels/ops.h"

#include <math.h>
#include <omp.h>

#define CPU_JOIN2(name, suffix) name##_##suffix
#define CPU_JOIN(name, suffix)  CPU_JOIN2(name, suffix)
#define CPU_NAME(name)          CPU_JOIN(name, CPU_SUFFIX)

/* Sums and maxima of rows are taken in LANES interleaved partial results that are then folded in
 * order: vectorizable without reordering float arithmetic behind our back. */
#define LANES 16

/* Vectors are cut into chunks of this many elements; partial sums are added in chunk order. */
#define CHUNK ((size_t)16384)

/* Scratch of the backend, at least `bytes`, 64-byte aligned; valid until the next call. On a dry
 * device it is counted and not there: the operation must end. */
void *CPU_NAME(cpu_scratch)(struct mm_device *dev, size_t bytes);
#define scratch CPU_NAME(cpu_scratch)

/* oneDNN's products for this device. */
struct mm_onednn *CPU_NAME(cpu_onednn)(struct mm_device *dev);

static inline float *row_f32(struct mm_mat m, size_t row) {
    return (float *)m.data + row * m.ld;
}

/* -- rows of either type ------------------------------------------------------------------------
 * Everything is computed in float32. A row of float32 is worked on where it is; one of bfloat16 is
 * copied into `room`, float32, first, and rounded back afterwards. That costs a pass over what is
 * in the nearest cache, and saves half of the traffic to memory. */

/* Floats of a room for n: what other threads write is in other cache lines. */
static inline size_t room_for(size_t n) {
    return (n + LANES) / LANES * LANES;
}

/* This thread's room of n floats among those at `rooms`. */
static inline float *room_of_thread(float *rooms, size_t n) {
    return rooms + (size_t)omp_get_thread_num() * n;
}

static inline void floats_from_bf16(float *restrict out, const uint16_t *restrict in, size_t n) {
    for (size_t j = 0; j < n; j++)
        out[j] = mm_f32_from_bf16(in[j]);
}

static inline void bf16_from_floats(uint16_t *restrict out, const float *restrict in, size_t n) {
    for (size_t j = 0; j < n; j++)
        out[j] = mm_bf16_from_f32(in[j]);
}

/* The n numbers at `data`. */
static inline const float *floats_of(const void *data, enum mm_dtype dtype, size_t n, float *room) {
    if (dtype == MM_F32)
        return data;
    floats_from_bf16(room, data, n);
    return room;
}

static inline void *part_data(struct mm_mat m, size_t row, size_t first) {
    return (char *)m.data + (row * m.ld + first) * mm_dtype_bytes(m.dtype);
}

/* Columns [first, first + n) of a row, to be read. */
static inline const float *part_get(struct mm_mat m, size_t row, size_t first, size_t n,
                                    float *room) {
    return floats_of(part_data(m, row, first), m.dtype, n, room);
}

/* Where they are to be computed; what was there is not read. */
static inline float *part_at(struct mm_mat m, size_t row, size_t first, float *room) {
    return m.dtype == MM_F32 ? part_data(m, row, first) : room;
}

/* Puts there what was computed in the room. */
static inline void part_put(struct mm_mat m, size_t row, size_t first, size_t n,
                            const float *room) {
    if (m.dtype == MM_BF16)
        bf16_from_floats(part_data(m, row, first), room, n);
}

static inline const float *row_get(struct mm_mat m, size_t row, float *room) {
    return part_get(m, row, 0, m.cols, room);
}

static inline float *row_at(struct mm_mat m, size_t row, float *room) {
    return part_at(m, row, 0, room);
}

static inline void row_put(struct mm_mat m, size_t row, const float *room) {
    part_put(m, row, 0, m.cols, room);
}

/* A row to be changed: read, and to be put back. */
static inline float *row_open(struct mm_mat m, size_t row, float *room) {
    row_get(m, row, room);
    return row_at(m, row, room);
}

static inline float fold(const float lanes[LANES]) {
    float sum = lanes[0];
    for (int i = 1; i < LANES; i++)
        sum += lanes[i];
    return sum;
}

static inline float row_sum(const float *x, size_t n) {
    float lanes[LANES] = {0};
    size_t j = 0;
    for (; j + LANES <= n; j += LANES)
        for (int i = 0; i < LANES; i++)
            lanes[i] += x[j + (size_t)i];
    for (int i = 0; j < n; j++, i++)
        lanes[i] += x[j];
    return fold(lanes);
}

static inline float row_dot(const float *x, const float *y, size_t n) {
    float lanes[LANES] = {0};
    size_t j = 0;
    for (; j + LANES <= n; j += LANES)
        for (int i = 0; i < LANES; i++)
            lanes[i] += x[j + (size_t)i] * y[j + (size_t)i];
    for (int i = 0; j < n; j++, i++)
        lanes[i] += x[j] * y[j];
    return fold(lanes);
}

static inline float row_max(const float *x, size_t n) {
    float lanes[LANES];
    for (int i = 0; i < LANES; i++)
        lanes[i] = -INFINITY;
    size_t j = 0;
    for (; j + LANES <= n; j += LANES)
        for (int i = 0; i < LANES; i++)
            lanes[i] = x[j + (size_t)i] > lanes[i] ? x[j + (size_t)i] : lanes[i];
    for (int i = 0; j < n; j++, i++)
        lanes[i] = x[j] > lanes[i] ? x[j] : lanes[i];
    float most = lanes[0];
    for (int i = 1; i < LANES; i++)
        most = lanes[i] > most ? lanes[i] : most;
    return most;
}

/* e^x within 2 units in the last place; 0 below -87, the largest finite value's order above 88;
 * NaN stays NaN. Branch-free, so that loops over it vectorize: x = k·ln 2 + r, e^r by its Taylor
 * polynomial (|r| <= ln 2 / 2), 2^k by the exponent bits. */
static inline float fast_exp(float x) {
    const float shift = 0x1.8p23f;
    float clamped = x < -87.0f ? -87.0f : x;
    clamped = clamped > 88.0f ? 88.0f : clamped;
    float shifted = clamped * 0x1.715476p0f + shift;
    float k = shifted - shift;
    float r = clamped - k * 0x1.62e4p-1f;
    r = r - k * 0x1.7f7d1cp-20f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits + 127u) << 23; /* the low bits of `shifted` hold k */
    float scale;
    memcpy(&scale, &bits, 4);
    return x < -87.0f ? 0.0f : p * scale;
}

/* erf(x) within 4.1e-7: a rational function of x², fitted to erf(x)/x on [0, 3.92], where erf
 * rounds to 1 beyond. */
static inline float fast_erf(float x) {
    float c = x < -3.92f ? -3.92f : x;
    c = c > 3.92f ? 3.92f : c;
    float s = c * c;
    float p = 2.050074e-06f;
    p = p * s + 2.8488343e-04f;
    p = p * s + 3.7656645e-03f;
    p = p * s + 5.2748874e-02f;
    p = p * s + 1.9040762e-01f;
    p = p * s + 1.1283791f;
    float q = 3.8091614e-05f;
    q = q * s + 1.1625463e-03f;
    q = q * s + 1.49693135e-02f;
    q = q * s + 1.1410958e-01f;
    q = q * s + 5.020771e-01f;
    q = q * s + 1.0f;
    return c * p / q;
}

/* -- the operations, see ops.h; defined in the file named after the group -----------------------
 */
#define CPU_DECLARE(name) extern __typeof__(*((struct mm_ops *)0)->name) CPU_NAME(cpu_##name);
MM_OPERATIONS(CPU_DECLARE)
CPU_DECLARE(convert)

#endif
