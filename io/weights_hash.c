/* weights_hash.c - hashes of the weights of a folder; see weights.h.
 *
 * Reason: no rank reads a whole model, and the hash must not depend on how many share the reading.
 * Mechanism: every row of a tensor has a hash of its own, in which are its bytes and dtype, the
 * tensor's name and the row's number. The model's hash is the sum of them all modulo 2^128, taken
 * in two halves: sums of ranks add up, in any order. XXH3 finds damage and mix-ups; it is no
 * signature. */
#include <stdio.h>
#include <string.h>
#include <xxhash.h>

#include "io/weights_folder.h"

/* What a row's hash is of, without padding. */
struct leaf {
    XXH128_canonical_t name, row;
    unsigned char dtype, number[8];
};

static XXH128_canonical_t canonical(const void *data, size_t bytes) {
    XXH128_canonical_t all;
    XXH128_canonicalFromHash(&all, XXH3_128bits(data, bytes));
    return all;
}

void mm_weights_sum_rows(const struct mm_weights *weights, const char *name, size_t first,
                         size_t count, struct mm_weights_sum *sum) {
    const struct mm_stored_tensor *tensor = mm_weights_find(weights, name);
    MM_CHECK(tensor, "no tensor '%s'", name);
    size_t rows = mm_stored_rows_n(tensor);
    size_t bytes = rows ? tensor->elements / rows * mm_dtype_bytes(tensor->dtype) : 0;
    MM_CHECK(first + count <= rows, "rows up to %zu of %zu", first + count, rows);
    struct leaf leaf = {.name = canonical(name, strlen(name)),
                        .dtype = (unsigned char)tensor->dtype};
    const char *data = tensor->data, *kept = data + first * bytes; /* from here on in memory */
    for (size_t i = first; i < first + count; i++) {
        const char *row = data + i * bytes;
        leaf.row = canonical(row, bytes);
        for (int k = 0; k < 8; k++)
            leaf.number[k] = (unsigned char)((uint64_t)i >> 8 * k);
        XXH128_hash_t hash = XXH3_128bits(&leaf, sizeof leaf);
        sum->low += hash.low64;
        sum->high += hash.high64;
        if ((size_t)(row + bytes - kept) < MM_FILE_PIECE && i + 1 < first + count)
            continue;
        mm_safetensors_forget(kept, (size_t)(row + bytes - kept));
        kept = row + bytes;
    }
}

void mm_weights_sum_text(struct mm_weights_sum sum, char hex[33]) {
    snprintf(hex, 33, "%016llx%016llx", (unsigned long long)sum.high, (unsigned long long)sum.low);
}

uint64_t mm_weights_copy(const struct mm_weights *weights) {
    uint64_t copy = 0;
    for (size_t f = 0; f < weights->files_n; f++) {
        const struct mm_safetensors *file = &weights->files[f];
        uint64_t one[4] = {copy, file->inode, file->modified, file->bytes};
        copy = XXH3_64bits(one, sizeof one);
    }
    return copy;
}

void mm_weights_hash_files(const struct mm_weights *weights, char hex[33]) {
    XXH3_state_t *state = XXH3_createState();
    MM_CHECK(state, "out of memory");
    XXH3_128bits_reset(state);
    for (size_t f = 0; f < weights->files_n; f++) {
        XXH3_128bits_update(state, weights->files[f].map, weights->files[f].bytes);
        mm_safetensors_forget(weights->files[f].map, weights->files[f].bytes);
    }
    XXH128_hash_t hash = XXH3_128bits_digest(state);
    XXH3_freeState(state);
    mm_weights_sum_text((struct mm_weights_sum){hash.low64, hash.high64}, hex);
}
