/* rooms.c - see rooms.h. */
#include "comm/rooms.h"

/* A row of every rank's block. */
static size_t row_of_all(const struct mm_reduction *r, int size, enum mm_dtype dtype) {
    return r->full.cols * (size_t)size * mm_dtype_bytes(dtype);
}

size_t mm_mpi_rows_at_once(const struct mm_reduction *r, int size, enum mm_dtype dtype) {
    size_t each = row_of_all(r, size, dtype), block = mm_rows_block(r->rows, size);
    size_t most = mm_inbox_bytes > each ? mm_inbox_bytes / each : 1;
    return block < most ? block : most;
}

size_t mm_mpi_inbox(const struct mm_reduction *r, int size, enum mm_dtype dtype) {
    return mm_mpi_rows_at_once(r, size, dtype) * row_of_all(r, size, dtype);
}

size_t mm_mpi_outbox(const struct mm_reduction *r, int size, enum mm_dtype dtype) {
    return dtype == MM_F32 ? 0 : mm_rows_block(r->rows, size) * row_of_all(r, size, dtype);
}

size_t mm_stage_of_reduction(const struct mm_reduction *r, int size, int rank) {
    size_t own = mm_rows_of(r->rows, size, rank).count;
    return (r->full.rows + own) * r->full.cols * sizeof(float);
}

size_t mm_stage_of_gather(const struct mm_mat *m) {
    return m->rows * m->cols * mm_dtype_bytes(m->dtype);
}

size_t mm_nccl_outbox(const struct mm_reduction *tensors, size_t n, int size, enum mm_dtype dtype) {
    size_t elements = 0;
    for (size_t i = 0; i < n && size > 1 && dtype != MM_F32; i++)
        elements += tensors[i].rows * tensors[i].full.cols;
    return elements * mm_dtype_bytes(dtype);
}

size_t mm_nccl_inbox(const struct mm_reduction *tensors, size_t n, int size, int rank) {
    size_t elements = 0;
    for (size_t i = 0; i < n && tensors[0].ranks; i++)
        elements += mm_rows_of(tensors[i].rows, size, rank).count * tensors[i].full.cols;
    return elements * (size_t)size * sizeof(float);
}

size_t mm_nccl_room(const struct mm_mat *tensors, size_t n, int size) {
    size_t most = 0;
    for (const struct mm_mat *m = tensors; m < tensors + n; m++) {
        size_t rows = mm_rows_block(m->rows, size) * (size_t)size;
        size_t bytes = rows * m->cols * mm_dtype_bytes(m->dtype);
        if (m->rows % (size_t)size && bytes > most)
            most = bytes;
    }
    return most;
}
