/* golden_adapters.h - adapters of src/method/lora.h against traces, for test_golden.c: A and B of
 * each tensor as "<prefix>/<tensor>.lora_A", of sets as "<prefix>/<tensor>.lora_A.<set>". */
#ifndef MM_TEST_GOLDEN_ADAPTERS_H
#define MM_TEST_GOLDEN_ADAPTERS_H

#include "tests/golden/golden_device.h"

#include "src/method/lora.h"

/* v: all sets, or with `single` a vector like one. Tolerances as in expect_tensor, the last one of
 * all tensors together. */
static inline void check_adapters(const char *what, hid_t group, const char *prefix,
                                  const struct mm_lora *l, struct mm_vector v, bool single,
                                  double tolerance, double half_tolerance) {
    struct size s = {0, 0};
    float *host = fetch(v.data, MM_F32, v.n);
    size_t tensors = l->layout.tensors_n, sets = l->p.n ? v.n / l->p.n : 0;
    for (size_t k = 0; k < sets * tensors; k++) {
        size_t set = k / tensors, i = k % tensors, cols = l->layout.cols[i];
        struct mm_lora_tensor t = mm_lora_tensor(l, i);
        struct mm_rows own = mm_layout_own(&l->layout, i);
        char *path = single ? mm_format("%s/%s.lora_%c", prefix, t.adapted, t.matrix)
                            : mm_format("%s/%s.lora_%c.%zu", prefix, t.adapted, t.matrix, set);
        double *want = trace_read(group, path, NULL, NULL);
        assert_non_null(want);
        const float *got = host + set * l->p.n + l->layout.offsets[i];
        if (arithmetic == MM_F32)
            trace_close(what, path, got, want + own.first * cols, own.count * cols, tolerance);
        size_add(&s, got, want + own.first * cols, own.count * cols);
        mm_free(want);
        mm_free(path);
    }
    if (arithmetic == MM_BF16)
        expect_size(what, prefix, s, half_tolerance);
    mm_free(host);
}

#endif
