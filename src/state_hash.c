/* state_hash.c - see state_hash.h. */
#include "src/state_hash.h"

#include <stdio.h>
#include <xxhash.h>

/* Of this rank's rows. */
static void hash_rows(const struct mm_shard *s, enum mm_dtype dtype, const char *vector,
                      uint64_t seed, uint64_t *rows) {
    size_t n = 0;
    for (size_t t = 0; t < s->tensors_n; t++) {
        size_t bytes = s->model->params[s->param[t]].cols * mm_dtype_bytes(dtype);
        const char *first = vector + s->offsets[t] * mm_dtype_bytes(dtype);
        for (size_t i = 0; i < s->rows[t].count; i++)
            rows[n++] = XXH3_64bits_withSeed(first + i * bytes, bytes, seed);
    }
}

void mm_state_hash(const struct mm_shard *s, enum mm_dtype dtype, const void *const *vectors,
                   size_t vectors_n, char hex[33]) {
    size_t all_n = mm_shard_all_rows(s);
    uint64_t *own = mm_calloc(mm_shard_own_rows(s), sizeof *own);
    uint64_t *all = mm_calloc(all_n, sizeof *all);
    XXH3_state_t *state = XXH3_createState();
    MM_CHECK(state, "out of memory");
    XXH3_128bits_reset(state);
    for (size_t i = 0; i < vectors_n; i++) {
        if (!vectors[i])
            continue;
        hash_rows(s, dtype, vectors[i], i, own);
        mm_shard_gather(s, own, sizeof *own, all);
        XXH3_128bits_update(state, all, all_n * sizeof *all);
    }
    XXH128_hash_t hash = XXH3_128bits_digest(state);
    XXH3_freeState(state);
    mm_free(own);
    mm_free(all);
    snprintf(hex, 33, "%016llx%016llx", (unsigned long long)hash.high64,
             (unsigned long long)hash.low64);
}
