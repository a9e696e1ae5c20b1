/* collect.c - see collect.h. A tensor at a time, so that no rank holds all of them whole. */
#include "src/parallel/collect.h"

#include "kernels/queue.h"

float *mm_collect(const struct mm_shard *s, struct mm_vector v, size_t t) {
    const struct mm_param *p = &s->model->params[s->param[t]];
    struct mm_device *dev = s->model->dev;
    size_t size = (size_t)mm_comm_size(s->comm), bytes = mm_dtype_bytes(v.dtype);
    size_t block = mm_rows_block(p->rows, (int)size) * p->cols,
           own = mm_layout_own(&s->layout, t).count * p->cols;
    void *stored = mm_calloc(own, bytes);
    float *mine = mm_calloc(block, sizeof *mine); /* padded: every rank sends as much */
    dev->queue->download(dev, stored, (char *)v.data + s->layout.offsets[t] * bytes, own * bytes);
    mm_convert(mine, MM_F32, stored, v.dtype, own);
    mm_free(stored);
    if (size == 1)
        return mine;
    float *all = mm_calloc(size * block, sizeof *all);
    mm_comm_gather_all(s->comm, mine, block * sizeof *mine, all);
    mm_free(mine);
    return all;
}
