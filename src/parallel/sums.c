/* sums.c - see sums.h. To an operation that sums tensors, a row is a small tensor. */
#include "src/parallel/sums.h"

#include "kernels/queue.h"

static struct mm_device *device_of(const struct mm_sums *s) {
    return s->layout->dev;
}

static void find_rows(const struct mm_sums *s) {
    const struct mm_layout *l = s->layout;
    size_t n = 0;
    for (size_t t = 0; t < l->tensors_n; t++)
        for (size_t i = 0; i < mm_layout_own(l, t).count; i++)
            s->row_offsets[n++] = l->offsets[t] + i * l->cols[t];
    s->row_offsets[n] = mm_layout_elements(l);
}

struct mm_sums mm_sums_create(struct mm_arena *arena, const struct mm_layout *layout) {
    struct mm_sums s = {.layout = layout};
    size_t tensors = layout->tensors_n, own = mm_layout_own_rows(layout);
    s.offsets = mm_arena_take(arena, MM_FOR_SCRATCH, tensors + 1, sizeof *s.offsets);
    if (layout->dev->exact) {
        s.row_offsets = mm_arena_take(arena, MM_FOR_SCRATCH, own + 1, sizeof *s.row_offsets);
        s.rows = mm_arena_take(arena, MM_FOR_SCRATCH, own, sizeof *s.rows);
        s.all = mm_arena_take(arena, MM_FOR_SCRATCH, mm_layout_all_rows(layout), sizeof *s.all);
    }
    if (mm_arena_dry(arena))
        return s;
    device_of(&s)->queue->upload(device_of(&s), s.offsets, layout->offsets,
                                 (tensors + 1) * sizeof *s.offsets);
    if (s.row_offsets)
        find_rows(&s);
    return s;
}

/* all = every row's sums; g and the mask's m are this rank's. The device is the CPU. */
static void sum_rows(const struct mm_sums *s, struct mm_vector g, struct mm_mask mask,
                     const struct mm_unlearn_options *options) {
    struct mm_device *dev = device_of(s);
    mask.offsets = s->row_offsets;
    mask.tensors_n = mm_layout_own_rows(s->layout);
    dev->ops->mask_sums(dev, s->rows, g, &mask, options);
    mm_layout_gather(s->layout, s->rows, sizeof *s->rows, s->all);
}

void mm_sums_squares(const struct mm_sums *s, double *sum, struct mm_vector g,
                     enum mm_dtype state_dtype) {
    struct mm_device *dev = device_of(s);
    dev->queue->zero(dev, sum, sizeof *sum);
    if (!s->row_offsets) {
        dev->ops->sum_squares(dev, sum, g, state_dtype);
        mm_comm_sum_device(s->layout->comm, sum, 1);
        return;
    }
    struct mm_mask none = {.m = {.n = g.n, .dtype = state_dtype}, .masking = false};
    sum_rows(s, g, none, NULL);
    if (dev->dry)
        return;
    for (size_t i = 0; i < mm_layout_all_rows(s->layout); i++)
        *sum += s->all[i].raw;
}

void mm_sums_mask(const struct mm_sums *s, struct mm_mask_sums *out, struct mm_vector g,
                  const struct mm_mask *mask, const struct mm_unlearn_options *options) {
    struct mm_device *dev = device_of(s);
    const struct mm_layout *l = s->layout;
    size_t tensors = l->tensors_n, row = 0;
    if (!s->row_offsets) {
        dev->ops->mask_sums(dev, out, g, mask, options);
        mm_comm_sum_device(l->comm, (double *)out, tensors * sizeof *out / sizeof(double));
        return;
    }
    sum_rows(s, g, *mask, options);
    if (dev->dry)
        return;
    for (size_t t = 0; t < tensors; t++) {
        out[t] = (struct mm_mask_sums){0};
        for (size_t i = 0; i < l->rows[t]; i++, row++) {
            out[t].raw += s->all[row].raw;
            out[t].kept += s->all[row].kept;
            out[t].kept_n += s->all[row].kept_n;
        }
    }
}
