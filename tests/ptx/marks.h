/* marks.h - who touched which bytes of memory last, and so, whether an access may collide.
 *
 * Time counts barriers: it goes on at every barrier of a block or of a warp and where a block
 * begins. A mark is the time of an access and its thread. Two accesses to the same bytes by
 * different threads, one of them a write, collide unless a barrier of their block, or one of the
 * warp that both belong to, lies between; of different blocks they collide always. Marks are kept
 * for every granule, which is the smallest access that the kernel makes. */
#ifndef MM_TEST_PTX_MARKS_H
#define MM_TEST_PTX_MARKS_H

#include <stddef.h>
#include <stdint.h>

#include <vector>

namespace ptx {

/* A mark, from the lowest bit: the thread (10), what else is known of readers (3), the time. */
constexpr int64_t MARK_THREAD = 0x3ff, MARK_WARP = 0x3e0;
constexpr int64_t MARK_LANES = 1 << 10;  /* other lanes read it too, since the warp's barrier */
constexpr int64_t MARK_WARPS = 1 << 11;  /* other warps of the block, since the block's */
constexpr int64_t MARK_BLOCKS = 1 << 12; /* other blocks of the launch */
constexpr int64_t MARK_TIME = 1 << 13;   /* a unit of time */
constexpr int64_t IN_FLIGHT = INT64_MAX; /* an asynchronous copy is on its way there */

/* Times of a launch, in marks. */
struct times {
    int64_t now = MARK_TIME, launch = 0, block = 0, barrier = 0;

    int64_t step() {
        return now += MARK_TIME;
    }
};

struct marks {
    std::vector<int64_t> written, read;
};

/* What an access is held against. */
struct view {
    int64_t mine;      /* the time and the thread */
    int64_t nothing;   /* marks before it are of nobody */
    int64_t unwritten; /* the same of writes; INT64_MIN: what nobody wrote may not be read */
    int64_t block, barrier, warp; /* the times these last began */
};

/* A write that v comes after: none, its own, or one that a barrier parts from it. */
static inline bool after_write(int64_t mark, const view &v) {
    bool own = ((mark ^ v.mine) & MARK_THREAD) == 0 && mark != IN_FLIGHT;
    bool same_warp = ((mark ^ v.mine) & MARK_WARP) == 0;
    bool parted = (mark < v.barrier) | own | (same_warp & (mark < v.warp));
    return (mark < v.unwritten) | ((mark >= v.block) & parted);
}

/* The same of reads: v is a write. */
static inline bool after_reads(int64_t mark, const view &v) {
    bool own = ((mark ^ v.mine) & MARK_THREAD) == 0 && !(mark & MARK_LANES);
    bool same_warp = ((mark ^ v.mine) & MARK_WARP) == 0 && !(mark & MARK_WARPS);
    bool parted = (mark < v.barrier) | (same_warp & (own | (mark < v.warp)));
    return (mark < v.nothing) | ((mark >= v.block) & !(mark & MARK_BLOCKS) & parted);
}

/* The mark of readers once v has read too. */
static inline int64_t joined_read(int64_t mark, const view &v) {
    bool same_warp = ((mark ^ v.mine) & MARK_WARP) == 0, own = ((mark ^ v.mine) & MARK_THREAD) == 0;
    int64_t blocks = mark >= v.block ? mark & MARK_BLOCKS : MARK_BLOCKS;
    int64_t lanes = mark < v.warp ? 0 : (mark & MARK_LANES) | (own ? 0 : MARK_LANES);
    int64_t within = (mark & MARK_WARPS) | (same_warp ? lanes : MARK_WARPS);
    return v.mine | (mark < v.nothing ? 0 : blocks) | (mark < v.barrier ? 0 : within);
}

/* Marks N granules from `at` on as read; false where a write may collide. */
template <unsigned N> static inline bool mark_read(marks &m, size_t at, const view &v) {
    int64_t *written = &m.written[at], *read = &m.read[at];
    bool fine = true;
    for (unsigned n = 0; n < N; n++) {
        fine &= after_write(written[n], v);
        read[n] = joined_read(read[n], v);
    }
    return fine;
}

/* Marks them as written; false where an access may collide. */
template <unsigned N> static inline bool mark_write(marks &m, size_t at, const view &v) {
    int64_t *written = &m.written[at], *read = &m.read[at];
    bool fine = true;
    for (unsigned n = 0; n < N; n++) {
        fine &= after_write(written[n], v) & after_reads(read[n], v);
        written[n] = v.mine;
    }
    return fine;
}

} // namespace ptx

#endif
