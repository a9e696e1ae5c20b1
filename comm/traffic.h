/* traffic.h - what passes between the ranks: counted by kind and, where MUDMAN_CHECK_COLLECTIVES is
 * set, compared.
 *
 * All ranks must make the same calls in the same order. Where one does not, MPI or NCCL waits for
 * ever or adds up what does not belong together. In the debug mode the ranks tell each other what
 * they are about to do before each call, and the job ends at the first that differs. That costs one
 * more gather a call, of 40 bytes a rank; counting costs two additions. A recording of a device is
 * compared when it is made, not when it is replayed. */
#ifndef MM_TRAFFIC_H
#define MM_TRAFFIC_H

#include "comm/watch.h"

/* Bytes: of the matrices or numbers as each rank has them in the end, or before they are summed.
 * Among one rank there is no traffic. */
struct mm_traffic {
    struct {
        size_t calls, bytes;
    } of[MM_WATCHED_KINDS]; /* by enum mm_watched */
};

/* "3 reductions of 1024 bytes, 1 agreement": kinds without a call are left out; "nothing" where
 * there is none. The caller frees with mm_free. Local. */
char *mm_traffic_text(const struct mm_traffic *traffic);
/* What came after `before`. Local. */
struct mm_traffic mm_traffic_since(const struct mm_traffic *now, const struct mm_traffic *before);

/* A collective, as every rank must make it. */
struct mm_call {
    enum mm_watched kind;
    enum mm_over over;
    size_t bytes;
    int root;       /* of a broadcast */
    uint64_t shape; /* of a bucket's matrices: mm_shape_add of each */
};
/* Shapes in order, as one number. */
static inline uint64_t mm_shape_add(uint64_t shape, size_t rows, size_t cols, size_t element) {
    const size_t parts[3] = {rows, cols, element};
    for (int i = 0; i < 3; i++)
        shape = (shape ^ parts[i]) * 0x100000001b3u; /* FNV-1a's prime */
    return shape;
}

#endif
