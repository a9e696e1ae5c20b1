/* layout.c - see layout.h. */
#include "src/parallel/layout.h"

#include <string.h>

struct mm_layout mm_layout_create(struct mm_comm *comm, struct mm_device *dev, size_t most) {
    return (struct mm_layout){.comm = comm,
                              .dev = dev,
                              .rows = mm_calloc(most, sizeof(size_t)),
                              .cols = mm_calloc(most, sizeof(size_t)),
                              .offsets = mm_calloc(most + 1, sizeof(size_t))};
}

void mm_layout_free(struct mm_layout *l) {
    mm_free(l->rows);
    mm_free(l->cols);
    mm_free(l->offsets);
}

void mm_layout_add(struct mm_layout *l, size_t rows, size_t cols) {
    size_t t = l->tensors_n++;
    l->rows[t] = rows;
    l->cols[t] = cols;
    l->offsets[t + 1] = l->offsets[t] + mm_layout_own(l, t).count * cols;
    l->total += (double)rows * (double)cols;
}

size_t mm_layout_elements(const struct mm_layout *l) {
    return l->offsets[l->tensors_n];
}

struct mm_rows mm_layout_own(const struct mm_layout *l, size_t t) {
    return mm_rows_of(l->rows[t], mm_comm_size(l->comm), mm_comm_rank(l->comm));
}

size_t mm_layout_own_rows(const struct mm_layout *l) {
    size_t n = 0;
    for (size_t t = 0; t < l->tensors_n; t++)
        n += mm_layout_own(l, t).count;
    return n;
}

size_t mm_layout_all_rows(const struct mm_layout *l) {
    size_t n = 0;
    for (size_t t = 0; t < l->tensors_n; t++)
        n += l->rows[t];
    return n;
}

struct mm_vector mm_layout_vector(const struct mm_layout *l, struct mm_arena *arena,
                                  enum mm_purpose purpose, enum mm_dtype dtype) {
    size_t n = mm_layout_elements(l);
    return (struct mm_vector){mm_arena_take(arena, purpose, n, mm_dtype_bytes(dtype)), n, dtype};
}

void mm_layout_gather(const struct mm_layout *l, const void *mine, size_t bytes, void *all) {
    int size = mm_comm_size(l->comm);
    size_t block = 0, *at = mm_calloc((size_t)size, sizeof *at);
    for (size_t t = 0; t < l->tensors_n; t++)
        block += mm_rows_block(l->rows[t], size);
    if (l->dev->dry) {
        mm_comm_gather_all(l->comm, mine, block * bytes, all);
        mm_free(at);
        return;
    }
    char *padded = mm_calloc(block, bytes), *parts = mm_calloc((size_t)size * block, bytes);
    char *out = all;
    memcpy(padded, mine, mm_layout_own_rows(l) * bytes);
    mm_comm_gather_all(l->comm, padded, block * bytes, parts);
    for (size_t t = 0; t < l->tensors_n; t++)
        for (int r = 0; r < size; r++) {
            size_t count = mm_rows_of(l->rows[t], size, r).count;
            memcpy(out, parts + ((size_t)r * block + at[r]) * bytes, count * bytes);
            at[r] += count;
            out += count * bytes;
        }
    mm_free(padded);
    mm_free(parts);
    mm_free(at);
}
