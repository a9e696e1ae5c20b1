/* matrix.c - matrix products. With AVX-512 they are oneDNN's, which was 5 to 40 % faster than
 * OpenBLAS at every shape that was measured (docs/benchmarks.md), and which alone multiplies
 * bfloat16. Without, and with reduction: exact, they are OpenBLAS's sgemm, after widening where
 * operands are bfloat16. */
#include "kernels/cpu/cpu.h"
#include "kernels/onednn.h"

#include <cblas.h>

#ifdef __AVX512F__
#define THROUGH_ONEDNN true
#else
#define THROUGH_ONEDNN false
#endif

/* Below this many multiply-adds one thread is faster than waking the others. */
#define PARALLEL_WORK 32768

/* Rows and columns of a piece of an exact product. */
#define PIECE ((size_t)256)

/* Elements of a and b that are widened at once. */
#define WIDENED ((size_t)4 << 20)

/* Element (row, col) of what stands for m in a product. */
static const float *operand(bool transposed, struct mm_mat m, size_t row, size_t col) {
    return transposed ? row_f32(m, col) + row : row_f32(m, row) + col;
}

/* Rows [row, row + rows) and columns [col, col + cols) of c. */
static void gemm(const struct mm_product *p, size_t row, size_t rows, size_t col, size_t cols) {
    size_t k = p->a_transposed ? p->a.rows : p->a.cols;
    cblas_sgemm(CblasRowMajor, p->a_transposed ? CblasTrans : CblasNoTrans,
                p->b_transposed ? CblasTrans : CblasNoTrans, (int)rows, (int)cols, (int)k, 1.0f,
                operand(p->a_transposed, p->a, row, 0), (int)p->a.ld,
                operand(p->b_transposed, p->b, 0, col), (int)p->b.ld,
                p->accumulate || p->bias ? 1.0f : 0.0f, row_f32(p->c, row) + col, (int)p->c.ld);
}

/* With `exact` a piece is one thread's: inside a parallel region the library takes no threads of
 * its own. A bias is in c already. */
static void float_product(const struct mm_device *dev, const struct mm_product *p) {
    if (!dev->exact) {
        gemm(p, 0, p->c.rows, 0, p->c.cols);
        return;
    }
#pragma omp parallel for schedule(static) collapse(2)
    for (size_t row = 0; row < p->c.rows; row += PIECE)
        for (size_t col = 0; col < p->c.cols; col += PIECE)
            gemm(p, row, p->c.rows - row < PIECE ? p->c.rows - row : PIECE, col,
                 p->c.cols - col < PIECE ? p->c.cols - col : PIECE);
}

static void add_bias(struct mm_mat y, const float *bias, bool accumulate) {
#pragma omp parallel for schedule(static) if (y.rows * y.cols > PARALLEL_WORK)
    for (size_t i = 0; i < y.rows; i++) {
        float *out = row_f32(y, i);
        for (size_t j = 0; j < y.cols; j++)
            out[j] = accumulate ? out[j] + bias[j] : bias[j];
    }
}

/* m in float32, rows close together, at `room`. */
static struct mm_mat widened(struct mm_mat m, float *room) {
    struct mm_mat wide = mm_mat(room, MM_F32, m.rows, m.cols);
#pragma omp parallel for schedule(static) if (m.rows * m.cols > PARALLEL_WORK)
    for (size_t i = 0; i < m.rows; i++)
        floats_from_bf16(row_f32(wide, i), part_data(m, i, 0), m.cols);
    return wide;
}

static void narrow(struct mm_mat m, struct mm_mat wide) {
#pragma omp parallel for schedule(static) if (m.rows * m.cols > PARALLEL_WORK)
    for (size_t i = 0; i < m.rows; i++)
        row_put(m, i, row_f32(wide, i));
}

/* Of the k that a product sums over, how many at once: what is widened of a and b stays small. */
static size_t depth_of(const struct mm_product *p, size_t k) {
    size_t depth = WIDENED / (p->c.rows + p->c.cols + 1) + 1;
    return depth < k ? depth : k;
}

/* Index [first, first + n) along the summed dimension of an operand. */
static struct mm_mat slice(struct mm_mat m, bool along_rows, size_t first, size_t n) {
    return along_rows ? mm_mat_rows(m, first, n) : mm_mat_cols(m, first, n);
}

/* A product of bfloat16 operands in float32 arithmetic, for processors that have no other, and for
 * reduction: exact, whose bits don't depend on the threads then. */
static void widened_product(struct mm_device *dev, const struct mm_product *p) {
    size_t k = p->a_transposed ? p->a.rows : p->a.cols, depth = depth_of(p, k);
    bool half = p->c.dtype == MM_BF16, accumulate = p->accumulate;
    size_t c_n = p->c.rows * p->c.cols, a_n = p->c.rows * depth, b_n = p->c.cols * depth;
    float *room = scratch(dev, ((half ? c_n : 0) + a_n + b_n + p->c.cols) * sizeof *room);
    struct mm_mat c = p->c;
    if (dev->dry)
        return;
    if (half)
        c = accumulate ? widened(c, room) : mm_mat(room, MM_F32, c.rows, c.cols);
    float *bias = room + (half ? c_n : 0), *a_room = bias + p->c.cols, *b_room = a_room + a_n;
    if (p->bias) {
        floats_from_bf16(bias, p->bias, c.cols);
        add_bias(c, bias, accumulate);
        accumulate = true;
    }
    for (size_t first = 0; first < k || first == 0; first += depth) {
        size_t n = k - first < depth ? k - first : depth;
        struct mm_product part = {
            .a = widened(slice(p->a, p->a_transposed, first, n), a_room),
            .a_transposed = p->a_transposed,
            .b = widened(slice(p->b, !p->b_transposed, first, n), b_room),
            .b_transposed = p->b_transposed,
            .c = c,
            .accumulate = accumulate || first > 0,
        };
        float_product(dev, &part);
    }
    if (half)
        narrow(p->c, c);
}

static void product(struct mm_device *dev, const struct mm_product *p) {
    const struct mm_mat *a = &p->a, *b = &p->b, *c = &p->c;
    MM_CHECK((p->a_transposed ? a->cols : a->rows) == c->rows &&
                 (p->b_transposed ? b->rows : b->cols) == c->cols &&
                 (p->a_transposed ? a->rows : a->cols) == (p->b_transposed ? b->cols : b->rows),
             "shapes don't match: [%zu, %zu] [%zu, %zu] -> [%zu, %zu]", a->rows, a->cols, b->rows,
             b->cols, c->rows, c->cols);
    if (THROUGH_ONEDNN && !dev->exact && mm_onednn_product(CPU_NAME(cpu_onednn)(dev), p))
        return;
    if (a->dtype == MM_BF16) {
        widened_product(dev, p);
        return;
    }
    if (dev->dry) /* it takes no room */
        return;
    if (p->bias)
        add_bias(*c, p->bias, p->accumulate);
    float_product(dev, p);
}

void CPU_NAME(cpu_linear)(struct mm_device *dev, struct mm_mat y, struct mm_mat x, struct mm_mat w,
                          const void *bias, enum mm_into into) {
    product(dev, &(struct mm_product){.a = x,
                                      .b = w,
                                      .b_transposed = true,
                                      .c = y,
                                      .bias = bias,
                                      .accumulate = into == MM_ADD});
}

void CPU_NAME(cpu_linear_dx)(struct mm_device *dev, struct mm_mat dx, struct mm_mat dy,
                             struct mm_mat w, enum mm_into into) {
    product(dev, &(struct mm_product){.a = dy, .b = w, .c = dx, .accumulate = into == MM_ADD});
}

void CPU_NAME(cpu_linear_dw)(struct mm_device *dev, struct mm_mat dw, struct mm_mat dy,
                             struct mm_mat x, enum mm_into into) {
    product(dev, &(struct mm_product){
                     .a = dy, .a_transposed = true, .b = x, .c = dw, .accumulate = into == MM_ADD});
}

void CPU_NAME(cpu_bias_db)(struct mm_device *dev, float *db, struct mm_mat dy) {
    (void)dev;
#pragma omp parallel for schedule(static) if (dy.rows * dy.cols > PARALLEL_WORK)
    for (size_t first = 0; first < dy.cols; first += LANES) {
        size_t count = dy.cols - first < LANES ? dy.cols - first : LANES;
        float room[LANES];
        for (size_t i = 0; i < dy.rows; i++) {
            const float *in = part_get(dy, i, first, count, room);
            for (size_t j = 0; j < count; j++)
                db[first + j] += in[j];
        }
    }
}
