/* sums.c - see sums.h. To an operation that sums tensors, a row is a small tensor. */
#include "src/parallel/sums.h"

#include "kernels/queue.h"

static struct mm_device *device_of(const struct mm_sums *s) {
    return s->layout->dev;
}

static void find_rows(const struct mm_sums *s) {
    const struct mm_layout *l = s->layout;
    size_t n = 0, *offsets = mm_calloc(mm_layout_own_rows(l) + 1, sizeof *offsets);
    for (size_t t = 0; t < l->tensors_n; t++)
        for (size_t i = 0; i < mm_layout_own(l, t).count; i++)
            offsets[n++] = l->offsets[t] + i * l->cols[t];
    offsets[n] = mm_layout_elements(l);
    device_of(s)->queue->upload(device_of(s), s->row_offsets, offsets, (n + 1) * sizeof *offsets);
    mm_free(offsets);
}

struct mm_sums mm_sums_create(struct mm_arena *arena, const struct mm_layout *layout) {
    struct mm_sums s = {.layout = layout};
    size_t tensors = layout->tensors_n, own = mm_layout_own_rows(layout);
    s.offsets = mm_arena_take(arena, MM_FOR_SCRATCH, tensors + 1, sizeof *s.offsets);
    if (layout->dev->exact) {
        s.row_offsets = mm_arena_take(arena, MM_FOR_SCRATCH, own + 1, sizeof *s.row_offsets);
        s.rows = mm_arena_take(arena, MM_FOR_SCRATCH, own, sizeof *s.rows);
    }
    if (mm_arena_dry(arena))
        return s;
    device_of(&s)->queue->upload(device_of(&s), s.offsets, layout->offsets,
                                 (tensors + 1) * sizeof *s.offsets);
    if (s.row_offsets)
        find_rows(&s);
    return s;
}

/* Every row's sums, of all ranks, in host memory; the caller frees. g and the mask's m are this
 * rank's. */
static struct mm_mask_sums *sum_rows(const struct mm_sums *s, struct mm_vector g,
                                     struct mm_mask mask,
                                     const struct mm_unlearn_options *options) {
    struct mm_device *dev = device_of(s);
    size_t own = mm_layout_own_rows(s->layout);
    struct mm_mask_sums *mine = mm_calloc(own, sizeof *mine);
    struct mm_mask_sums *all = mm_calloc(mm_layout_all_rows(s->layout), sizeof *all);
    mask.offsets = s->row_offsets;
    mask.tensors_n = own;
    dev->ops->mask_sums(dev, s->rows, g, &mask, options);
    dev->queue->download(dev, mine, s->rows, own * sizeof *mine);
    mm_layout_gather(s->layout, mine, sizeof *mine, all);
    mm_free(mine);
    return all;
}

void mm_sums_squares(const struct mm_sums *s, double *sum, struct mm_vector g,
                     enum mm_dtype state_dtype) {
    struct mm_device *dev = device_of(s);
    if (!s->row_offsets) {
        dev->queue->zero(dev, sum, sizeof *sum);
        dev->ops->sum_squares(dev, sum, g, state_dtype);
        mm_comm_sum_device(s->layout->comm, sum, 1);
        return;
    }
    struct mm_mask none = {.m = {.n = g.n, .dtype = state_dtype}, .masking = false};
    struct mm_mask_sums *all = sum_rows(s, g, none, NULL);
    double total = 0;
    for (size_t i = 0; i < mm_layout_all_rows(s->layout); i++)
        total += all[i].raw;
    dev->queue->upload(dev, sum, &total, sizeof total);
    mm_free(all);
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
    struct mm_mask_sums *all = sum_rows(s, g, *mask, options);
    struct mm_mask_sums *totals = mm_calloc(tensors, sizeof *totals);
    for (size_t t = 0; t < tensors; t++)
        for (size_t i = 0; i < l->rows[t]; i++, row++) {
            totals[t].raw += all[row].raw;
            totals[t].kept += all[row].kept;
            totals[t].kept_n += all[row].kept_n;
        }
    dev->queue->upload(dev, out, totals, tensors * sizeof *totals);
    mm_free(totals);
    mm_free(all);
}
