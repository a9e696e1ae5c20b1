/* golden_adapters.h - adapters of src/lora.h against traces, for test_golden.c: every set's A and B
 * of each tensor, as "<prefix>/<tensor>.lora_A.<set>". */
#ifndef MM_TEST_GOLDEN_ADAPTERS_H
#define MM_TEST_GOLDEN_ADAPTERS_H

#include "tests/golden_device.h"

#include "src/lora.h"

/* Tolerances as in expect_tensor, the last one of all tensors together. */
static inline void check_adapters(const char *what, hid_t group, const char *prefix,
                                  const struct mm_lora *l, double tolerance,
                                  double half_tolerance) {
    struct size s = {0, 0};
    float *host = fetch(l->all.data, MM_F32, l->all.n);
    size_t tensors = 2 * l->shard->tensors_n, sets = l->p.n ? l->all.n / l->p.n : 0;
    for (size_t i = 0; i < sets * tensors; i++) {
        struct mm_lora_tensor t = mm_lora_tensor(l, i % tensors);
        struct mm_rows own = mm_rows_of(t.rows, mm_comm_size(l->comm), mm_comm_rank(l->comm));
        char *path = mm_format("%s/%s.lora_%c.%zu", prefix, t.adapted, t.matrix, i / tensors);
        double *want = trace_read(group, path, NULL, NULL);
        assert_non_null(want);
        const float *got = host + i / tensors * l->p.n + l->at[i % tensors];
        if (arithmetic == MM_F32)
            trace_close(what, path, got, want + own.first * t.cols, own.count * t.cols, tolerance);
        size_add(&s, got, want + own.first * t.cols, own.count * t.cols);
        mm_free(want);
        mm_free(path);
    }
    if (arithmetic == MM_BF16)
        expect_size(what, prefix, s, half_tolerance);
    mm_free(host);
}

#endif
