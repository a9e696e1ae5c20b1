/* sums.h - sums over the rows of the tensors of a vector on all ranks.
 *
 * Each rank sums its own rows, and the sums of the ranks are added in rank order. So the sum is cut
 * where the rows are cut, and its last bits depend on the number of ranks. On an `exact` device
 * each row is summed by itself, and the sums of the rows are added in their order, which gives the
 * same bits on any number of ranks. The cost is a gather of the sums of all rows, through
 * host memory, for which a GPU is waited for. */
#ifndef MM_SUMS_H
#define MM_SUMS_H

#include "src/parallel/layout.h"

struct mm_sums {
    const struct mm_layout *layout; /* borrowed */
    size_t *offsets;                /* [tensors_n + 1] layout->offsets, in device memory */
    size_t *row_offsets;       /* exact: [own rows + 1] where each begins in a vector, in device
                                  memory; else NULL */
    struct mm_mask_sums *rows; /* exact: [own rows], in device memory */
};

/* Memory is the arena's. Local. */
struct mm_sums mm_sums_create(struct mm_arena *arena, const struct mm_layout *layout);

/* *sum (device) = sum of the squares of g over all ranks, as ops->sum_squares. Collective. */
void mm_sums_squares(const struct mm_sums *sums, double *sum, struct mm_vector g,
                     enum mm_dtype state_dtype);

/* out [tensors_n] (device) = ops->mask_sums of all ranks. The mask's tensors are the layout's, and
 * its offsets are sums->offsets. Collective. */
void mm_sums_mask(const struct mm_sums *sums, struct mm_mask_sums *out, struct mm_vector g,
                  const struct mm_mask *mask, const struct mm_unlearn_options *options);

#endif
