/* layout.h - where a vector has what: this rank's rows of some tensors, one behind the other.
 *
 * Of every tensor a rank owns the rows mm_rows_of(rows, ranks, rank). The tensors are those of a
 * shard, or the A and B of adapters beside them. */
#ifndef MM_LAYOUT_H
#define MM_LAYOUT_H

#include "comm/comm.h"
#include "kernels/arena.h"

struct mm_layout {
    struct mm_comm *comm;
    struct mm_device *dev;
    size_t tensors_n;
    size_t *rows, *cols; /* [tensors_n] of the whole tensors */
    size_t *offsets;     /* [tensors_n + 1] where each tensor's own rows begin */
    double total;        /* elements over all ranks */
};

/* Nothing yet; room for so many tensors. Local, all of these. The caller frees. */
struct mm_layout mm_layout_create(struct mm_comm *comm, struct mm_device *dev, size_t most);
void mm_layout_free(struct mm_layout *layout);
/* One more tensor. */
void mm_layout_add(struct mm_layout *layout, size_t rows, size_t cols);

/* Elements of a vector. */
size_t mm_layout_elements(const struct mm_layout *layout);
/* This rank's rows of tensor t. */
struct mm_rows mm_layout_own(const struct mm_layout *layout, size_t t);
/* Rows of all tensors: this rank's, and all. */
size_t mm_layout_own_rows(const struct mm_layout *layout);
size_t mm_layout_all_rows(const struct mm_layout *layout);

/* A zeroed vector. */
struct mm_vector mm_layout_vector(const struct mm_layout *layout, struct mm_arena *arena,
                                  enum mm_purpose purpose, enum mm_dtype dtype);

/* all (=) something of every row of every tensor, `bytes` of each, tensor after tensor, in the
 * order of the rows; mine: the same of this rank's rows. Host memory. Collective. */
void mm_layout_gather(const struct mm_layout *layout, const void *mine, size_t bytes, void *all);

#endif
