/* matrix.c - matrix products: OpenBLAS's sgemm on row-major matrices. */
#include "kernels/cpu/cpu.h"

#include <cblas.h>

/* Below this many multiply-adds one thread is faster than waking the others. */
#define PARALLEL_WORK 32768

static void gemm(enum CBLAS_TRANSPOSE ta, enum CBLAS_TRANSPOSE tb, struct mm_mat a, struct mm_mat b,
                 struct mm_mat c, bool accumulate) {
    size_t k = ta == CblasNoTrans ? a.cols : a.rows;
    MM_CHECK((ta == CblasNoTrans ? a.rows : a.cols) == c.rows &&
                 (tb == CblasNoTrans ? b.cols : b.rows) == c.cols &&
                 (tb == CblasNoTrans ? b.rows : b.cols) == k,
             "shapes don't match: [%zu, %zu] [%zu, %zu] -> [%zu, %zu]", a.rows, a.cols, b.rows,
             b.cols, c.rows, c.cols);
    cblas_sgemm(CblasRowMajor, ta, tb, (int)c.rows, (int)c.cols, (int)k, 1.0f, a.data, (int)a.ld,
                b.data, (int)b.ld, accumulate ? 1.0f : 0.0f, c.data, (int)c.ld);
}

static void add_bias(struct mm_mat y, const float *bias, bool accumulate) {
#pragma omp parallel for schedule(static) if (y.rows * y.cols > PARALLEL_WORK)
    for (size_t i = 0; i < y.rows; i++) {
        float *out = row_f32(y, i);
        for (size_t j = 0; j < y.cols; j++)
            out[j] = accumulate ? out[j] + bias[j] : bias[j];
    }
}

void CPU_NAME(cpu_linear)(struct mm_device *dev, struct mm_mat y, struct mm_mat x, struct mm_mat w,
                          const void *bias, bool accumulate) {
    (void)dev;
    if (bias)
        add_bias(y, bias, accumulate);
    gemm(CblasNoTrans, CblasTrans, x, w, y, accumulate || bias);
}

void CPU_NAME(cpu_linear_dx)(struct mm_device *dev, struct mm_mat dx, struct mm_mat dy,
                             struct mm_mat w, bool accumulate) {
    (void)dev;
    gemm(CblasNoTrans, CblasNoTrans, dy, w, dx, accumulate);
}

void CPU_NAME(cpu_linear_dw)(struct mm_device *dev, struct mm_mat dw, struct mm_mat dy,
                             struct mm_mat x, bool accumulate) {
    (void)dev;
    gemm(CblasTrans, CblasNoTrans, dy, x, dw, accumulate);
}

void CPU_NAME(cpu_bias_db)(struct mm_device *dev, float *db, struct mm_mat dy) {
    (void)dev;
#pragma omp parallel for schedule(static) if (dy.rows * dy.cols > PARALLEL_WORK)
    for (size_t first = 0; first < dy.cols; first += LANES) {
        size_t count = dy.cols - first < LANES ? dy.cols - first : LANES;
        for (size_t i = 0; i < dy.rows; i++)
            for (size_t j = 0; j < count; j++)
                db[first + j] += row_f32(dy, i)[first + j];
    }
}
