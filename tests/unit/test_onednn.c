/* Tests of oneDNN's products: against sums in double, with weights that are held and packed, and
 * with more shapes than are kept. Skipped where the processor does not multiply bfloat16. */
#include "kernels/onednn.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static struct mm_onednn *onednn;

/* The products of float32 are those of every test of the operations, with AVX-512. */
static struct mm_mat random_mat(size_t rows, size_t cols, unsigned seed) {
    uint16_t *data = mm_calloc(rows * cols, sizeof *data);
    for (size_t i = 0; i < rows * cols; i++) {
        seed = seed * 1664525u + 1013904223u;
        data[i] = mm_bf16_from_f32((float)(seed >> 16) / 32768.0f - 1.0f);
    }
    return mm_mat(data, MM_BF16, rows, cols);
}

static double at(struct mm_mat m, bool transposed, size_t row, size_t col) {
    size_t i = transposed ? col * m.ld + row : row * m.ld + col;
    return m.dtype == MM_F32 ? (double)((const float *)m.data)[i]
                             : (double)mm_f32_from_bf16(((const uint16_t *)m.data)[i]);
}

/* Within float32's rounding of the sum, and bfloat16's of the result. */
static void expect_product(const struct mm_product *p) {
    size_t depth = p->a_transposed ? p->a.rows : p->a.cols;
    assert_true(mm_onednn_product(onednn, p));
    for (size_t i = 0; i < p->c.rows; i++)
        for (size_t j = 0; j < p->c.cols; j++) {
            double want = 0, size = 0;
            for (size_t k = 0; k < depth; k++) {
                double term = at(p->a, p->a_transposed, i, k) * at(p->b, p->b_transposed, k, j);
                want += term;
                size += fabs(term);
            }
            double got = at(p->c, false, i, j);
            if (!(fabs(got - want) <= 0x1p-8 * fabs(want) + 0x1p-20 * size))
                fail_msg("[%zu, %zu] of depth %zu is %g, should be %g", i, j, depth, got, want);
        }
}

/* y = x·wᵀ and dx = dy·w of n tokens. */
static void expect_both(size_t n, struct mm_mat w) {
    struct mm_mat x = random_mat(n, w.cols, 1), dy = random_mat(n, w.rows, 2);
    struct mm_mat y = random_mat(n, w.rows, 3), dx = random_mat(n, w.cols, 4);
    expect_product(&(struct mm_product){.a = x, .b = w, .b_transposed = true, .c = y});
    expect_product(&(struct mm_product){.a = dy, .b = w, .c = dx});
    mm_free(x.data);
    mm_free(dy.data);
    mm_free(y.data);
    mm_free(dx.data);
}

static void held_weights(void **state) {
    (void)state;
    static const size_t shapes[][2] = {{1, 1}, {7, 33}, {96, 64}, {130, 200}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        struct mm_mat w = random_mat(shapes[i][0], shapes[i][1], 5);
        mm_onednn_hold(onednn, w);
        for (size_t n = 1; n < 70; n += 17) /* one packed copy serves all of them */
            expect_both(n, w);
        mm_onednn_let_go(onednn);
        ((uint16_t *)w.data)[0] = mm_bf16_from_f32(100);
        expect_both(20, w);
        mm_free(w.data);
    }
}

/* The copy is what is read, as long as the weights are held. */
static void held_weights_are_copied(void **state) {
    (void)state;
    struct mm_mat w = random_mat(64, 64, 6), x = random_mat(3, 64, 7), y = random_mat(3, 64, 8);
    struct mm_product p = {.a = x, .b = w, .b_transposed = true, .c = y};
    mm_onednn_hold(onednn, w);
    expect_product(&p);
    double before = at(y, false, 0, 0);
    ((uint16_t *)w.data)[0] = mm_bf16_from_f32(100);
    assert_true(mm_onednn_product(onednn, &p));
    assert_true(at(y, false, 0, 0) == before);
    mm_onednn_let_go(onednn);
    expect_product(&p);
    mm_free(w.data);
    mm_free(x.data);
    mm_free(y.data);
}

/* What a device holds for products of 20 tokens while weights are held, and afterwards. */
static void held_bytes(struct mm_mat w, bool dry, size_t bytes[2]) {
    struct mm_mat x = random_mat(20, w.cols, 1), y = random_mat(20, w.rows, 2);
    struct mm_device *dev = mm_device_create_cpu();
    dev->dry = dry;
    struct mm_onednn *o = mm_onednn_create(dev, true);
    mm_onednn_hold(o, w);
    for (int round = 0; round < 2; round++) {
        assert_true(mm_onednn_product(
            o, &(struct mm_product){.a = x, .b = w, .b_transposed = true, .c = y}));
        assert_true(mm_onednn_product(o, &(struct mm_product){.a = y, .b = w, .c = x}));
    }
    bytes[0] = dev->own_bytes;
    mm_onednn_let_go(o);
    assert_true(
        mm_onednn_product(o, &(struct mm_product){.a = x, .b = w, .b_transposed = true, .c = y}));
    bytes[1] = dev->own_bytes;
    mm_onednn_free(o);
    mm_device_free(dev);
    mm_free(x.data);
    mm_free(y.data);
}

/* Packed copies and room are counted, on a dry device as on one that computes. */
static void counted(void **state) {
    (void)state;
    struct mm_mat w = random_mat(512, 384, 10);
    size_t real[2], dry[2];
    held_bytes(w, false, real);
    held_bytes(w, true, dry);
    assert_int_equal(dry[0], real[0]);
    assert_int_equal(dry[1], real[1]);
    assert_true(real[0] >= real[1] && real[0] >= 2 * w.rows * w.cols * sizeof(uint16_t));
    mm_free(w.data);
}

static void more_shapes_than_are_kept(void **state) {
    (void)state;
    struct mm_mat w = random_mat(24, 40, 9);
    for (int round = 0; round < 2; round++)
        for (size_t n = 1; n <= 120; n++)
            expect_both(n, w);
    mm_free(w.data);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(held_weights),
        cmocka_unit_test(held_weights_are_copied),
        cmocka_unit_test(more_shapes_than_are_kept),
        cmocka_unit_test(counted),
    };
    if (!mm_onednn_multiplies()) {
        fprintf(stderr, "skipped: this processor does not multiply bfloat16\n");
        return 77;
    }
    struct mm_device *dev = mm_device_create_cpu();
    onednn = mm_onednn_create(dev, true);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    mm_onednn_free(onednn);
    mm_device_free(dev);
    return failed || mm_live_blocks() != 0;
}
