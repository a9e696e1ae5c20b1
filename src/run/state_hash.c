/* state_hash.c - hashes rows where they are and gathers the hashes; see state_hash.h. */
#include "src/run/state_hash.h"

#include "io/files.h"

#include <xxhash.h>

#include "kernels/queue.h"

struct mm_hasher {
    struct mm_comm *comm;
    struct mm_device *dev;
    struct mm_hash *hash;
    uint64_t place; /* of the next tensor */
};

struct mm_hasher *mm_hasher_create(struct mm_comm *comm, struct mm_device *dev) {
    struct mm_hasher *h = mm_calloc(1, sizeof *h);
    *h = (struct mm_hasher){.comm = comm, .dev = dev, .hash = mm_hash_begin()};
    return h;
}

static void add_tensor(struct mm_hasher *h, size_t rows, size_t cols, enum mm_dtype dtype,
                       const void *own) {
    int size = mm_comm_size(h->comm);
    size_t block = mm_rows_block(rows, size), bytes = cols * mm_dtype_bytes(dtype);
    size_t count = mm_rows_of(rows, size, mm_comm_rank(h->comm)).count;
    size_t most = bytes < MM_HOST_PIECE ? MM_HOST_PIECE / bytes : 1;
    char *copy = mm_calloc(most < count ? most : count, bytes);
    uint64_t *mine = mm_calloc(block, sizeof *mine);
    uint64_t *all = mm_calloc((size_t)size * block, sizeof *all);
    for (size_t i = 0, n; i < count; i += n) {
        n = count - i < most ? count - i : most;
        h->dev->queue->download(h->dev, copy, (const char *)own + i * bytes, n * bytes);
        for (size_t k = 0; k < n; k++)
            mine[i + k] = XXH3_64bits_withSeed(copy + k * bytes, bytes, h->place);
    }
    mm_comm_gather_all(h->comm, mine, block * sizeof *mine, all);
    mm_hash_add(h->hash, all, rows * sizeof *all); /* the padding is behind */
    h->place++;
    mm_free(copy);
    mm_free(mine);
    mm_free(all);
}

void mm_hasher_add_vector(struct mm_hasher *h, const struct mm_layout *l, struct mm_vector v) {
    for (size_t t = 0; t < l->tensors_n && v.data; t++)
        add_tensor(h, l->rows[t], l->cols[t], v.dtype,
                   (const char *)v.data + l->offsets[t] * mm_dtype_bytes(v.dtype));
    if (!v.data)
        h->place += l->tensors_n;
}

void mm_hasher_end(struct mm_hasher *h, char hex[33]) {
    mm_hash_end(h->hash, hex);
    mm_free(h);
}

void mm_state_hash(const struct mm_state_list *state, struct mm_comm *comm, struct mm_device *dev,
                   char hex[33]) {
    struct mm_hasher *h = mm_hasher_create(comm, dev);
    for (const struct mm_state_part *part = state->parts; part < state->parts + state->n; part++) {
        size_t sets = part->sets ? part->sets : 1, n = mm_layout_elements(part->layout);
        for (size_t set = 0; set < sets; set++) {
            struct mm_vector one = part->vector;
            if (one.data)
                one.data = (char *)one.data + set * n * mm_dtype_bytes(one.dtype);
            mm_hasher_add_vector(h, part->layout, one);
        }
    }
    mm_hasher_end(h, hex);
}
