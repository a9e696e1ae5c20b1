/* collect.c - see collect.h. */
#include "src/parallel/collect.h"

#include <string.h>

#include "kernels/queue.h"

/* This rank's rows of tensor t, in float32; the caller frees. */
static float *own_floats(const struct mm_shard *s, struct mm_vector v, size_t t) {
    struct mm_device *dev = s->model->dev;
    size_t own = mm_layout_own(&s->layout, t).count * s->model->params[s->param[t]].cols,
           bytes = mm_dtype_bytes(v.dtype);
    float *floats = mm_calloc(own, sizeof *floats);
    mm_download_floats(dev, floats, v.dtype, (char *)v.data + s->layout.offsets[t] * bytes, own);
    return floats;
}

float *mm_collect(const struct mm_shard *s, struct mm_vector v, size_t t) {
    const struct mm_param *p = &s->model->params[s->param[t]];
    size_t size = (size_t)mm_comm_size(s->comm), own = mm_layout_own(&s->layout, t).count * p->cols;
    size_t block = mm_rows_block(p->rows, (int)size) * p->cols; /* every rank sends as much */
    float *mine = own_floats(s, v, t);
    if (size == 1)
        return mine;
    mine = mm_realloc(mine, block * sizeof *mine);
    memset(mine + own, 0, (block - own) * sizeof *mine);
    float *all = mm_calloc(size * block, sizeof *all);
    mm_comm_gather_all(s->comm, mine, block * sizeof *mine, all);
    mm_free(mine);
    return all;
}
