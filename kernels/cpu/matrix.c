/* matrix.c - matrix products: OpenBLAS's sgemm on row-major matrices. */
#include "kernels/cpu/cpu.h"

#include <cblas.h>

/* Below this many multiply-adds one thread is faster than waking the others. */
#define PARALLEL_WORK 32768

/* Rows and columns of a piece of an exact product. */
#define PIECE ((size_t)256)

/* Element (row, col) of what stands for m in a product. */
static const float *operand(enum CBLAS_TRANSPOSE t, struct mm_mat m, size_t row, size_t col) {
    return t == CblasNoTrans ? row_f32(m, row) + col : row_f32(m, col) + row;
}

/* A piece is one thread's: inside a parallel region the library takes no threads of its own. */
static void gemm_in_pieces(enum CBLAS_TRANSPOSE ta, enum CBLAS_TRANSPOSE tb, struct mm_mat a,
                           struct mm_mat b, struct mm_mat c, size_t k, bool accumulate) {
#pragma omp parallel for schedule(static) collapse(2)
    for (size_t row = 0; row < c.rows; row += PIECE)
        for (size_t col = 0; col < c.cols; col += PIECE) {
            size_t rows = c.rows - row < PIECE ? c.rows - row : PIECE;
            size_t cols = c.cols - col < PIECE ? c.cols - col : PIECE;
            cblas_sgemm(CblasRowMajor, ta, tb, (int)rows, (int)cols, (int)k, 1.0f,
                        operand(ta, a, row, 0), (int)a.ld, operand(tb, b, 0, col), (int)b.ld,
                        accumulate ? 1.0f : 0.0f, row_f32(c, row) + col, (int)c.ld);
        }
}

static void gemm(const struct mm_device *dev, enum CBLAS_TRANSPOSE ta, enum CBLAS_TRANSPOSE tb,
                 struct mm_mat a, struct mm_mat b, struct mm_mat c, bool accumulate) {
    size_t k = ta == CblasNoTrans ? a.cols : a.rows;
    MM_CHECK((ta == CblasNoTrans ? a.rows : a.cols) == c.rows &&
                 (tb == CblasNoTrans ? b.cols : b.rows) == c.cols &&
                 (tb == CblasNoTrans ? b.rows : b.cols) == k,
             "shapes don't match: [%zu, %zu] [%zu, %zu] -> [%zu, %zu]", a.rows, a.cols, b.rows,
             b.cols, c.rows, c.cols);
    if (dev->exact)
        gemm_in_pieces(ta, tb, a, b, c, k, accumulate);
    else
        cblas_sgemm(CblasRowMajor, ta, tb, (int)c.rows, (int)c.cols, (int)k, 1.0f, a.data,
                    (int)a.ld, b.data, (int)b.ld, accumulate ? 1.0f : 0.0f, c.data, (int)c.ld);
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
    if (bias)
        add_bias(y, bias, accumulate);
    gemm(dev, CblasNoTrans, CblasTrans, x, w, y, accumulate || bias);
}

void CPU_NAME(cpu_linear_dx)(struct mm_device *dev, struct mm_mat dx, struct mm_mat dy,
                             struct mm_mat w, bool accumulate) {
    gemm(dev, CblasNoTrans, CblasNoTrans, dy, w, dx, accumulate);
}

void CPU_NAME(cpu_linear_dw)(struct mm_device *dev, struct mm_mat dw, struct mm_mat dy,
                             struct mm_mat x, bool accumulate) {
    gemm(dev, CblasTrans, CblasNoTrans, dy, x, dw, accumulate);
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
