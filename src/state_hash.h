/* state_hash.h - one number for the state of a run, the same however it is spread over ranks. */
#ifndef MM_STATE_HASH_H
#define MM_STATE_HASH_H

#include "src/shard.h"

/* hex (=) 32 digits of a hash of the bits of vectors over the shard (b, a, m, f), of `dtype` and in
 * host memory, NULL where there is none: XXH3 128 of the XXH3 64 of each row, of the first vector's
 * tensors in their order, then of the next one's; the seed of a row is its vector's index.
 * Collective. */
void mm_state_hash(const struct mm_shard *shard, enum mm_dtype dtype, const void *const *vectors,
                   size_t vectors_n, char hex[33]);

#endif
