/* cuda_shim_matrix.cc - in place of kernels/cuda/matrix.cu, whose library needs a GPU. */
#include "kernels/cuda/cuda.h"

#include <math.h>

#include <vector>

static double get(struct mm_mat m, size_t row, size_t col) {
    size_t at = row * m.ld + col;
    return m.dtype == MM_F32 ? static_cast<float *>(m.data)[at]
                             : __bfloat162float(static_cast<bf16 *>(m.data)[at]);
}

static void put(struct mm_mat m, size_t row, size_t col, double x) {
    size_t at = row * m.ld + col;
    if (m.dtype == MM_F32)
        static_cast<float *>(m.data)[at] = static_cast<float>(x);
    else
        static_cast<bf16 *>(m.data)[at] = __float2bfloat16_rn(static_cast<float>(x));
}

/* c = a · b (+ c) (+ bias); a and b as they are or transposed. */
static void product(struct mm_mat c, struct mm_mat a, bool a_turned, struct mm_mat b, bool b_turned,
                    const void *bias, bool accumulate) {
    size_t k = a_turned ? a.rows : a.cols;
    struct mm_mat row = mm_mat(const_cast<void *>(bias), c.dtype, 1, c.cols);
    std::vector<double> left(c.rows * k), right(c.cols * k);
    for (size_t i = 0; i < c.rows * k; i++)
        left[i] = a_turned ? get(a, i % k, i / k) : get(a, i / k, i % k);
    for (size_t i = 0; i < c.cols * k; i++)
        right[i] = b_turned ? get(b, i / k, i % k) : get(b, i % k, i / k);
    for (size_t i = 0; i < c.rows; i++)
        for (size_t j = 0; j < c.cols; j++) {
            double sum = (bias ? get(row, 0, j) : 0) + (accumulate ? get(c, i, j) : 0);
            double size = 0;
            for (size_t l = 0; l < k; l++) {
                double part = left[i * k + l] * right[j * k + l];
                sum += part;
                size += fabs(part);
            }
            put(c, i, j, shim_noisy(static_cast<float>(sum), static_cast<float>(size * 0x1p-23)));
        }
}

static void multiply(struct mm_device *dev, struct mm_mat c, struct mm_mat a, bool a_turned,
                     struct mm_mat b, bool b_turned, const void *bias, bool accumulate) {
    MM_CHECK((a_turned ? a.cols : a.rows) == c.rows &&
                 (b_turned ? b.cols : b.rows) == (a_turned ? a.rows : a.cols) &&
                 (b_turned ? b.rows : b.cols) == c.cols,
             "shapes don't match");
    shim_enqueue(cuda_context(dev)->stream,
                 [=] { product(c, a, a_turned, b, b_turned, bias, accumulate); });
}

void cuda_linear(struct mm_device *dev, struct mm_mat y, struct mm_mat x, struct mm_mat w,
                 const void *bias, enum mm_into into) {
    multiply(dev, y, x, false, w, true, bias, into == MM_ADD);
}

void cuda_linear_dx(struct mm_device *dev, struct mm_mat dx, struct mm_mat dy, struct mm_mat w,
                    enum mm_into into) {
    multiply(dev, dx, dy, false, w, false, NULL, into == MM_ADD);
}

void cuda_linear_dw(struct mm_device *dev, struct mm_mat dw, struct mm_mat dy, struct mm_mat x,
                    enum mm_into into) {
    multiply(dev, dw, dy, true, x, false, NULL, into == MM_ADD);
}
