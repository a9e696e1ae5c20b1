/* bias.cu - a bias's gradient: sums of columns, in slabs of rows that are then added in order. */
#include "kernels/cuda/block.h"

/* A block sums COLUMNS columns of SLAB rows; its thread (c, r) takes rows r, r + LINES, ... */
#define COLUMNS 32u
#define LINES   (BLOCK / COLUMNS)
#define SLAB    128u

/* sums [slabs, dy.cols] */
template <typename T> __global__ static void slab_kernel(float *sums, struct mm_mat dy) {
    __shared__ float lines[LINES][COLUMNS];
    unsigned c = threadIdx.x % COLUMNS, line = threadIdx.x / COLUMNS;
    size_t column = blockIdx.y * static_cast<size_t>(COLUMNS) + c;
    size_t first = blockIdx.x * static_cast<size_t>(SLAB);
    float sum = 0.0f;
#pragma unroll 4
    for (unsigned i = line; i < SLAB; i += LINES)
        if (first + i < dy.rows && column < dy.cols)
            sum += to_float(row_of<T>(dy, first + i)[column]);
    lines[line][c] = sum;
    __syncthreads();
    if (line > 0 || column >= dy.cols)
        return;
    for (unsigned i = 1; i < LINES; i++)
        sum += lines[i][c];
    sums[blockIdx.x * dy.cols + column] = sum;
}

__global__ static void add_slabs_kernel(float *db, const float *sums, size_t slabs, size_t cols) {
    size_t column = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x;
    if (column >= cols)
        return;
    float sum = 0.0f;
    for (size_t i = 0; i < slabs; i++)
        sum += sums[i * cols + column];
    db[column] += sum;
}

template <typename T> static void bias_db(struct mm_device *dev, float *db, struct mm_mat dy) {
    unsigned slabs = blocks_for(dy.rows, SLAB);
    float *sums = static_cast<float *>(cuda_scratch(dev, slabs * dy.cols * sizeof *sums));
    dim3 grid(slabs, blocks_for(dy.cols, COLUMNS));
    MM_LAUNCH(slab_kernel<T>, grid, BLOCK, 0, dev, sums, dy);
    MM_LAUNCH(add_slabs_kernel, blocks_for(dy.cols, BLOCK), BLOCK, 0, dev, db, sums, slabs,
              dy.cols);
}

void cuda_bias_db(struct mm_device *dev, float *db, struct mm_mat dy) {
    if (dy.rows > 0 && dy.cols > 0)
        MM_BY_DTYPE(dy.dtype, bias_db, dev, db, dy);
}
