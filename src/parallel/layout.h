/* layout.h - says where a vector holds what: this rank's rows of some tensors, one behind the
 * other.
 *
 * Of every tensor a rank owns the rows mm_rows_of(rows, ranks, rank). The tensors are those of a
 * shard, or the A and B of adapters beside them. */
#ifndef MM_LAYOUT_H
#define MM_LAYOUT_H

#include "comm/comm.h"
#include "kernels/arena.h"
#include "kernels/ops.h"

struct mm_layout {
    struct mm_comm *comm;
    struct mm_device *dev;
    size_t tensors_n;
    size_t *rows, *cols; /* [tensors_n] of the whole tensors */
    size_t *offsets;     /* [tensors_n + 1] where each tensor's own rows begin */
    double total;        /* elements over all ranks */
};

/* An empty layout with room for `most` tensors. The caller frees it. All functions up to
 * mm_layout_gather are local. */
struct mm_layout mm_layout_create(struct mm_comm *comm, struct mm_device *dev, size_t most);
void mm_layout_free(struct mm_layout *layout);
/* Adds a tensor. */
void mm_layout_add(struct mm_layout *layout, size_t rows, size_t cols);

/* The number of elements of a vector on this rank. */
size_t mm_layout_elements(const struct mm_layout *layout);
/* The rows of tensor t that this rank owns. */
struct mm_rows mm_layout_own(const struct mm_layout *layout, size_t t);
/* The number of rows of all tensors together: this rank's, and those of all ranks. */
size_t mm_layout_own_rows(const struct mm_layout *layout);
size_t mm_layout_all_rows(const struct mm_layout *layout);

/* A zeroed vector. */
struct mm_vector mm_layout_vector(const struct mm_layout *layout, struct mm_arena *arena,
                                  enum mm_purpose purpose, enum mm_dtype dtype);

/* Gathers something of every row, `bytes` of each: all (=) that of every row of every tensor,
 * tensor after tensor, in the order of the rows. `mine` has that of this rank's rows. Host memory.
 * Collective. */
void mm_layout_gather(const struct mm_layout *layout, const void *mine, size_t bytes, void *all);

#endif
