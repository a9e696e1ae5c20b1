/* collect.h - brings tensors that are spread over the ranks to host memory, to be written. */
#ifndef MM_COLLECT_H
#define MM_COLLECT_H

#include "src/parallel/shard.h"

/* Returns tensor t of the shard's set, as the v of all ranks hold it: [rows, cols] in float32, in
 * host memory, which the caller frees with mm_free. Values of a bfloat16 v are exact. Collective.
 */
float *mm_collect(const struct mm_shard *shard, struct mm_vector v, size_t t);

#endif
