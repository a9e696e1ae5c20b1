/* golden_vectors.h - vectors over a shard against traces, for test_golden.c: each tensor's own rows
 * as rows of "<prefix>/<tensor>". */
#ifndef MM_TEST_GOLDEN_VECTORS_H
#define MM_TEST_GOLDEN_VECTORS_H

#include "tests/golden/golden_device.h"

#include "src/parallel/shard.h"

/* Every tensor of a vector, in any state type. */
static inline void check_vector(const char *what, hid_t group, const char *prefix,
                                const struct mm_shard *shard, struct mm_vector v,
                                double tolerance) {
    float *host = fetch(v.data, v.dtype, v.n);
    for (size_t t = 0; t < shard->tensors_n; t++) {
        const struct mm_param *param = &shard->model->params[shard->param[t]];
        char *path = mm_format("%s/%s", prefix, param->name);
        double *want = trace_read(group, path, NULL, NULL);
        struct mm_rows own = mm_layout_own(&shard->layout, t);
        assert_non_null(want);
        trace_close(what, path, host + shard->layout.offsets[t], want + own.first * param->cols,
                    own.count * param->cols, tolerance);
        mm_free(want);
        mm_free(path);
    }
    mm_free(host);
}

/* bfloat16 arithmetic: how far a vector has come from the weights of the start, which it holds
 * rounded (`moved`; else from zero), all tensors together. */
static inline void check_change(const char *what, hid_t group, const char *prefix,
                                struct fixture *f, const struct mm_shard *shard, struct mm_vector v,
                                bool moved, double tolerance) {
    struct size s = {0, 0};
    float *host = fetch(v.data, v.dtype, v.n);
    for (size_t t = 0; t < shard->tensors_n; t++) {
        const struct mm_param *param = &f->exact->params[shard->param[t]];
        char *path = mm_format("%s/%s", prefix, param->name);
        double *want = trace_read(group, path, NULL, NULL);
        float *start = fetch(param->w.data, MM_F32, param->rows * param->cols);
        float *own = host + shard->layout.offsets[t];
        struct mm_rows rows = mm_layout_own(&shard->layout, t);
        size_t first = rows.first * param->cols, n = rows.count * param->cols;
        for (size_t i = 0; i < n && moved; i++) {
            float rounded = mm_bf16_round(start[first + i]);
            want[first + i] -= (double)(v.dtype == MM_F32 ? start[first + i] : rounded);
            own[i] -= rounded;
        }
        size_add(&s, own, want + first, n);
        mm_free(start);
        mm_free(want);
        mm_free(path);
    }
    expect_size(what, prefix, s, tolerance);
    mm_free(host);
}

/* A float32 model rounds about one gradient element in a thousand to the other neighbour in
 * bfloat16, so whole runs agree but for a few last bits; check_replay of test_golden.c is exact. */
static inline void check_half(const char *what, hid_t group, const char *prefix,
                              const struct mm_shard *shard, struct mm_vector v) {
    size_t different = 0;
    float *host = fetch(v.data, v.dtype, v.n);
    for (size_t t = 0; t < shard->tensors_n; t++) {
        const struct mm_param *param = &shard->model->params[shard->param[t]];
        char *path = mm_format("%s/%s", prefix, param->name);
        double *want = trace_read(group, path, NULL, NULL);
        const float *own = host + shard->layout.offsets[t];
        struct mm_rows rows = mm_layout_own(&shard->layout, t);
        double largest = 0;
        for (size_t i = 0; i < param->rows * param->cols; i++)
            largest = fmax(largest, fabs(want[i]));
        for (size_t i = 0; i < rows.count * param->cols; i++) {
            double w = want[rows.first * param->cols + i];
            double x = (double)own[i];
            different += x != w;
            if (!(fabs(x - w) <= 0x1p-7 * largest))
                fail_msg("%s %s[%zu]: %.9g, should be %.9g", what, path, i, x, w);
        }
        mm_free(want);
        mm_free(path);
    }
    mm_free(host);
    if (different > v.n / 100 + 2)
        fail_msg("%s %s: %zu of %zu elements differ", what, prefix, different, v.n);
}

#endif
