/* ops_subject.h - the devices under test, and matrices on them whose surroundings are watched.
 *
 * A subject is a device and the dtype of its matrices. Tests make their inputs in double, already
 * rounded to that dtype, compute what they want in double (ops_reference.h), and run every subject
 * of the dtype against it; adding a device to subjects_open() is all another backend needs. Nothing
 * here reads device memory but through the table. A test's memory is pooled: pool_drop() ends it.
 *
 * A box is a matrix whose padding, lead and tail hold a NaN of known bits: an operation that writes
 * there is caught by box_read(), one that reads there by the NaN. Outputs start as that NaN too, so
 * that "=" which reads its old value is caught. */
#ifndef MM_TEST_OPS_SUBJECT_H
#define MM_TEST_OPS_SUBJECT_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kernels/ops.h"
#include "kernels/queue.h"

struct subject {
    struct mm_device *dev;
    enum mm_dtype dtype;
    bool threads; /* computes with OpenMP threads of this process */
};

#define MOST_SUBJECTS 8
static struct subject subjects[MOST_SUBJECTS];
static size_t subjects_n;
static long blocks_of_subjects; /* of the host's memory */

#define FOR_DTYPES(dtype)                                                                          \
    for (enum mm_dtype dtype = MM_F32; dtype <= MM_BF16; dtype++)                                  \
        if (subject_of(dtype))
#define FOR_SUBJECTS(s, of_dtype)                                                                  \
    for (const struct subject *s = subjects; s < subjects + subjects_n; s++)                       \
        if (s->dtype == (of_dtype))
/* Vectors of Algorithm 1 are of both state types on every device. */
#define FOR_DEVICES(s)                                                                             \
    for (const struct subject *s = subjects; s < subjects + subjects_n; s++)                       \
        if (s == subjects || s->dev != s[-1].dev)

static inline bool subject_of(enum mm_dtype dtype) {
    for (size_t i = 0; i < subjects_n; i++)
        if (subjects[i].dtype == dtype)
            return true;
    return false;
}

/* reduction: exact, which devices with threads have. */
static inline void subjects_exact(bool exact) {
    for (size_t i = 0; i < subjects_n; i++)
        subjects[i].dev->exact = exact && subjects[i].threads;
}

static inline void subject_add(struct mm_device *dev, enum mm_dtype dtype, bool threads) {
    assert_true(subjects_n < MOST_SUBJECTS);
    subjects[subjects_n++] = (struct subject){dev, dtype, threads};
}

static inline void subject_add_both(struct mm_device *dev, bool threads) {
    subject_add(dev, MM_F32, threads);
    subject_add(dev, MM_BF16, threads);
}

#if defined(__x86_64__)
struct mm_device *mm_cpu_device_x86_64(void);
struct mm_device *mm_cpu_device_x86_64_v3(void);
struct mm_device *mm_cpu_device_x86_64_v4(void);

static inline void subjects_open_cpu(void) {
    subject_add_both(mm_cpu_device_x86_64(), true);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        subject_add_both(mm_cpu_device_x86_64_v3(), true);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        subject_add_both(mm_cpu_device_x86_64_v4(), true);
}
#else
static inline void subjects_open_cpu(void) {
    subject_add_both(mm_device_create_cpu(), true);
}
#endif

/* Programs compiled with MM_TEST_CUDA test the CUDA backend, on a GPU or on the host shim. */
static inline void subjects_open_cuda(void) {
    struct mm_error err;
    struct mm_device *dev = mm_device_create_cuda(0, &err);
    if (!dev) {
        fprintf(stderr, "skipped: %s\n", err.text);
        exit(77);
    }
    subject_add_both(dev, false);
}

/* cmocka's group set-up and tear-down. */
static inline int subjects_open(void **state) {
    (void)state;
#ifdef MM_TEST_CUDA
    subjects_open_cuda();
#else
    subjects_open_cpu();
#endif
    blocks_of_subjects = mm_live_blocks();
    for (size_t i = 0; i < subjects_n; i++)
        fprintf(stderr, "subject: %s, %s\n", subjects[i].dev->name,
                mm_dtype_name(subjects[i].dtype));
    return 0;
}

/* Nothing of the devices may be left. */
static inline int subjects_close(void **state) {
    (void)state;
    for (size_t i = 0; i < subjects_n; i++)
        if (i == 0 || subjects[i].dev != subjects[i - 1].dev)
            mm_device_free(subjects[i].dev);
    return mm_live_blocks() == 0 ? 0 : -1;
}

/* -- memory of a test -------------------------------------------------------------------------- */

#define MOST_POOLED 4096
static struct {
    struct mm_device *dev; /* NULL: the host's */
    void *block;
} pool[MOST_POOLED];
static size_t pool_n;

static inline void *pool_keep(struct mm_device *dev, void *block) {
    assert_true(pool_n < MOST_POOLED);
    pool[pool_n].dev = dev;
    pool[pool_n++].block = block;
    return block;
}

static inline void pool_drop(void) {
    while (pool_n > 0) {
        pool_n--;
        if (pool[pool_n].dev)
            pool[pool_n].dev->queue->free(pool[pool_n].dev, pool[pool_n].block);
        else
            mm_free(pool[pool_n].block);
    }
}

/* cmocka's tear-down of one test. What an asynchronous device keeps of its scratch is seen at the
 * end. */
static inline int test_end(void **state) {
    (void)state;
    pool_drop();
    return subjects[0].dev->asynchronous || mm_live_blocks() == blocks_of_subjects ? 0 : -1;
}

static inline double *numbers(size_t n) {
    return pool_keep(NULL, mm_calloc(n + 1, sizeof(double)));
}

/* `host` in the device's memory. */
static inline void *device_put(const struct subject *s, const void *host, size_t bytes) {
    void *block = pool_keep(s->dev, s->dev->queue->alloc(s->dev, bytes));
    s->dev->queue->upload(s->dev, block, host, bytes);
    return block;
}

static inline void device_get(const struct subject *s, void *host, const void *block,
                              size_t bytes) {
    s->dev->queue->download(s->dev, host, block, bytes);
}

/* -- inputs ------------------------------------------------------------------------------------ */

struct rng {
    uint64_t state;
};

static inline uint64_t rng_next(struct rng *r) { /* splitmix64 */
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static inline double rng_uniform(struct rng *r) { /* [0, 1) */
    return (double)(rng_next(r) >> 11) * 0x1p-53;
}

static inline double rng_normal(struct rng *r) {
    double u = 1 - rng_uniform(r), v = rng_uniform(r);
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

static inline double rounded(enum mm_dtype dtype, double x) {
    return dtype == MM_F32 ? (double)(float)x : (double)mm_bf16_round((float)x);
}

static inline double *random_numbers(struct rng *r, enum mm_dtype dtype, size_t n, double scale) {
    double *x = numbers(n);
    for (size_t i = 0; i < n; i++)
        x[i] = rounded(dtype, scale * rng_normal(r));
    return x;
}

/* -- boxes ------------------------------------------------------------------------------------- */

#define BOX_TAIL ((size_t)64)

struct box {
    const struct subject *on;
    void *block;
    size_t elements, lead;
    uint32_t number; /* 1 ... 2^17 - 1 */
    struct mm_mat mat;
};

static inline void box_encode(enum mm_dtype dtype, void *host, size_t i, double x) {
    if (dtype == MM_F32)
        ((float *)host)[i] = (float)x;
    else
        ((uint16_t *)host)[i] = mm_bf16_from_f32((float)x);
}

static inline double box_decode(enum mm_dtype dtype, const void *host, size_t i) {
    return dtype == MM_F32 ? (double)((const float *)host)[i]
                           : (double)mm_f32_from_bf16(((const uint16_t *)host)[i]);
}

/* A NaN of the box's own bits: one that came from elsewhere, as an operand, is another. */
static inline uint32_t box_guard(const struct box *b) {
    return b->mat.dtype == MM_F32 ? 0x7fc00000u | b->number << 4 : 0x7fc0u | (b->number & 63);
}

static inline bool box_guarded(const struct box *b, const void *host, size_t i) {
    return b->mat.dtype == MM_F32 ? ((const uint32_t *)host)[i] == box_guard(b)
                                  : ((const uint16_t *)host)[i] == box_guard(b);
}

static inline bool box_inside(const struct box *b, size_t i) {
    size_t at = i - b->lead;
    return i >= b->lead && at / b->mat.ld < b->mat.rows && at % b->mat.ld < b->mat.cols;
}

/* [rows, cols] with ld = cols + pad, not aligned where pad != 0; values NULL: not a number. */
static inline struct box box_make(const struct subject *s, enum mm_dtype dtype, size_t rows,
                                  size_t cols, size_t pad, const double *values) {
    size_t bytes = mm_dtype_bytes(dtype);
    static uint32_t number;
    struct box b = {.on = s, .lead = pad ? 3 : 0, .mat = mm_mat(NULL, dtype, rows, cols)};
    b.number = ++number % 0x1ffff + 1;
    b.mat.ld += pad;
    b.elements = b.lead + rows * b.mat.ld + BOX_TAIL;
    void *host = mm_calloc(b.elements, bytes);
    for (size_t i = 0; i < b.elements; i++) {
        uint32_t guard = box_guard(&b);
        memcpy((char *)host + i * bytes, &guard, bytes); /* of bfloat16 the low half */
    }
    for (size_t i = 0; values && i < rows; i++)
        for (size_t j = 0; j < cols; j++)
            box_encode(dtype, host, b.lead + i * b.mat.ld + j, values[i * cols + j]);
    b.block = device_put(s, host, b.elements * bytes);
    b.mat.data = (char *)b.block + b.lead * bytes;
    mm_free(host);
    return b;
}

/* Pads in turn: rows close together; rows that begin anywhere; rows that are whole chunks of 16
 * bytes, of which the first begins between two. */
static inline size_t pad_of(size_t turn) {
    static const size_t pads[] = {0, 5, 8, 5};
    return pads[turn % 4];
}

/* A vector of n elements. */
static inline struct box box_row(const struct subject *s, enum mm_dtype dtype, size_t n,
                                 const double *values) {
    return box_make(s, dtype, 1, n, 0, values);
}

static inline struct mm_vector box_vector(const struct box *b) {
    return (struct mm_vector){b->mat.data, b->mat.cols, b->mat.dtype};
}

/* Everything, lead and tail included, as it is in memory; pooled. */
static inline void *box_raw(const struct box *b) {
    size_t bytes = b->elements * mm_dtype_bytes(b->mat.dtype);
    void *host = pool_keep(NULL, mm_calloc(bytes + 1, 1));
    device_get(b->on, host, b->block, bytes);
    return host;
}

/* The matrix, rows close together; fails if anything around it was written. Pooled. */
static inline double *box_read(const struct box *b, const char *what) {
    enum mm_dtype dtype = b->mat.dtype;
    void *host = box_raw(b);
    double *out = numbers(b->mat.rows * b->mat.cols);
    for (size_t i = 0; i < b->elements; i++) {
        size_t at = i - b->lead;
        if (box_inside(b, i))
            out[at / b->mat.ld * b->mat.cols + at % b->mat.ld] = box_decode(dtype, host, i);
        else if (!box_guarded(b, host, i))
            fail_msg("%s: %s: element %ld, outside [%zu, %zu], was written", b->on->dev->name, what,
                     (long)i - (long)b->lead, b->mat.rows, b->mat.cols);
    }
    return out;
}

/* -- comparison -------------------------------------------------------------------------------- */

/* |got - want| <= factor · (2^-24 · size[i] + the output type's rounding of want[i]); size NULL:
 * the largest |want| for all. A wanted NaN must be one. */
static inline void expect_close(const struct box *b, const char *what, const double *want,
                                const double *size, double factor) {
    size_t n = b->mat.rows * b->mat.cols;
    const double *got = box_read(b, what);
    double most = 0, unit = b->mat.dtype == MM_BF16 ? 0x1p-9 : 0;
    for (size_t i = 0; i < n; i++)
        most = fabs(want[i]) > most ? fabs(want[i]) : most;
    for (size_t i = 0; i < n; i++) {
        double room = factor * (0x1p-24 * (size ? size[i] : most) + unit * fabs(want[i])) + 1e-36;
        if (isnan(want[i]) ? !isnan(got[i]) : !(fabs(got[i] - want[i]) <= room))
            fail_msg("%s: %s[%zu, %zu] of [%zu, %zu] is %.9g, should be %.9g within %.2g",
                     b->on->dev->name, what, i / b->mat.cols, i % b->mat.cols, b->mat.rows,
                     b->mat.cols, got[i], want[i], room);
    }
}

/* The same numbers to the bit (any NaN for a NaN; -0 is not 0). */
static inline void expect_exact(const struct box *b, const char *what, const double *want) {
    size_t n = b->mat.rows * b->mat.cols;
    const double *got = box_read(b, what);
    for (size_t i = 0; i < n; i++)
        if (isnan(want[i]) ? !isnan(got[i])
                           : got[i] != want[i] || !signbit(got[i]) != !signbit(want[i]))
            fail_msg("%s: %s[%zu, %zu] is %.9g, should be exactly %.9g", b->on->dev->name, what,
                     i / b->mat.cols, i % b->mat.cols, got[i], want[i]);
}

/* A stop flag in device memory. */
static inline uint32_t *stop_put(const struct subject *s, uint32_t stop) {
    return device_put(s, &stop, sizeof stop);
}

/* A double in device memory. */
static inline void *scalar_put(const struct subject *s, double value) {
    return device_put(s, &value, sizeof value);
}

static inline double scalar_get(const struct subject *s, const void *block) {
    double value;
    device_get(s, &value, block, sizeof value);
    return value;
}

static inline void expect_scalar(const struct subject *s, const char *what, double got, double want,
                                 double relative) {
    if (isnan(want) ? !isnan(got) : !(fabs(got - want) <= relative * fabs(want)))
        fail_msg("%s: %s is %.17g, should be %.17g", s->dev->name, what, got, want);
}

static inline int sign_of(double x) {
    return x > 0 ? 1 : x < 0 ? -1 : 0;
}

/* The sums of n tensors that mask_sums has formed. */
static inline void expect_mask_sums(const struct subject *s, const struct mm_mask_sums *got,
                                    const struct mm_mask_sums *want, size_t n) {
    for (size_t t = 0; t < n; t++) {
        expect_scalar(s, "mask_sums raw", got[t].raw, want[t].raw, 1e-13);
        expect_scalar(s, "mask_sums kept", got[t].kept, want[t].kept, 1e-13);
        expect_scalar(s, "mask_sums kept_n", got[t].kept_n, want[t].kept_n, 0);
    }
}

#endif
