/* shard.c - see shard.h. */
#include "src/shard.h"

static const struct mm_param *param_of(const struct mm_shard *s, size_t t) {
    return &s->model->params[s->param[t]];
}

struct mm_shard *mm_shard_create(struct mm_arena *arena, struct mm_comm *comm,
                                 struct mm_model *model, const bool *wanted) {
    struct mm_shard *s = mm_calloc(1, sizeof *s);
    s->comm = comm;
    s->model = model;
    s->param = mm_calloc(model->params_n, sizeof *s->param);
    s->rows = mm_calloc(model->params_n, sizeof *s->rows);
    s->offsets = mm_calloc(model->params_n + 1, sizeof *s->offsets);
    s->grads = mm_calloc(model->params_n, sizeof *s->grads);
    int size = mm_comm_size(comm), rank = mm_comm_rank(comm);
    size_t most = 0;
    for (size_t p = 0; p < model->params_n; p++) {
        if (!wanted[p])
            continue;
        const struct mm_param *param = &model->params[p];
        size_t t = s->tensors_n++;
        s->param[t] = p;
        s->rows[t] = mm_rows_of(param->rows, size, rank);
        size_t own = s->rows[t].count * param->cols;
        s->offsets[t + 1] = s->n += own;
        most = own > most ? own : most;
        s->total += (double)param->rows * (double)param->cols;
        s->grads_n += mm_rows_block(param->rows, size) * (size_t)size * param->cols;
    }
    s->grads_block = mm_arena_take(arena, MM_FOR_GRADIENTS, s->grads_n, sizeof(float));
    s->staging = mm_arena_take(arena, MM_FOR_SCRATCH, most, mm_dtype_bytes(model->dtype));
    size_t used = 0;
    for (size_t t = 0; t < s->tensors_n; t++) {
        s->grads[s->param[t]] = s->grads_block + used;
        used += mm_rows_block(param_of(s, t)->rows, size) * (size_t)size * param_of(s, t)->cols;
    }
    return s;
}

void mm_shard_free(struct mm_shard *s) {
    if (!s)
        return;
    mm_free(s->param);
    mm_free(s->rows);
    mm_free(s->offsets);
    mm_free(s->grads);
    mm_free(s);
}

struct mm_vector mm_shard_vector(const struct mm_shard *s, struct mm_arena *arena,
                                 enum mm_purpose purpose, enum mm_dtype dtype) {
    return (struct mm_vector){.data = mm_arena_take(arena, purpose, s->n, mm_dtype_bytes(dtype)),
                              .n = s->n,
                              .dtype = dtype};
}

struct mm_vector mm_shard_gradient(const struct mm_shard *s, struct mm_arena *arena) {
    if (mm_comm_size(s->comm) == 1)
        return (struct mm_vector){.data = s->grads_block, .n = s->n, .dtype = MM_F32};
    return mm_shard_vector(s, arena, MM_FOR_GRADIENTS, MM_F32);
}

/* Tensor t's part of a vector. */
static void *part_of(const struct mm_shard *s, struct mm_vector v, size_t t) {
    return (char *)v.data + s->offsets[t] * mm_dtype_bytes(v.dtype);
}

void mm_shard_load(const struct mm_shard *s, struct mm_vector v) {
    struct mm_device *dev = s->model->dev;
    for (size_t t = 0; t < s->tensors_n; t++) {
        struct mm_mat own = mm_mat_rows(param_of(s, t)->w, s->rows[t].first, s->rows[t].count);
        if (own.rows)
            dev->ops->convert(dev, part_of(s, v, t), v.dtype, own.data, own.dtype,
                              own.rows * own.cols);
    }
}

void mm_shard_store(const struct mm_shard *s, struct mm_vector v) {
    struct mm_device *dev = s->model->dev;
    for (size_t t = 0; t < s->tensors_n; t++) {
        struct mm_mat full = param_of(s, t)->w;
        const void *own = part_of(s, v, t);
        if (v.dtype != full.dtype) {
            dev->ops->convert(dev, s->staging, full.dtype, own, v.dtype,
                              s->rows[t].count * full.cols);
            own = s->staging;
        }
        mm_comm_gather_rows(s->comm, own, full);
    }
}

void mm_shard_zero_grads(const struct mm_shard *s) {
    struct mm_device *dev = s->model->dev;
    dev->ops->zero(dev, s->grads_block, s->grads_n * sizeof(float));
}

void mm_shard_reduce(const struct mm_shard *s, struct mm_vector g) {
    for (size_t t = 0; t < s->tensors_n; t++) {
        const struct mm_param *p = param_of(s, t);
        struct mm_mat full = mm_mat(s->grads[s->param[t]], MM_F32, p->rows, p->cols);
        mm_comm_reduce_rows(s->comm, full, p->rows, (float *)g.data + s->offsets[t]);
    }
}
