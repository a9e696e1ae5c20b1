/* machine.h - a launch while it runs: its grid, the block at work, and that block's warps.
 *
 * Blocks run one after the other. Within one, each warp runs until it waits for the block's
 * barrier; its 32 lanes go through every instruction together, those of them that are on the path
 * at hand. Where a branch parts them, one path waits until the other has come to where both meet
 * (joins.cc). No order between warps is assumed: what a barrier should have ordered and did not is
 * found by the marks of memory (marks.h). */
#ifndef MM_TEST_PTX_MACHINE_H
#define MM_TEST_PTX_MACHINE_H

#include "tests/ptx/marks.h"
#include "tests/ptx/ptx.h"

#include <string.h>

#include <memory>

namespace ptx {

struct index3 {
    unsigned x, y, z;
};

struct launch {
    const kernel *code;
    index3 grid, block;
    size_t dynamic_bytes;
    std::vector<char> parameters;
};

/* Runs it. Anything that a GPU would not allow, or that the result may depend on by chance, ends
 * the program with a message that names the instruction. */
void run(const launch &l);

/* A block of the device's memory: [first, end), and its marks. */
struct range {
    char *first, *end;
    marks *marked;
};

/* The block of the device's memory that holds p; of no bytes where p is nobody's. */
range device_range(const void *p);

struct machine {
    const launch *now;
    index3 block; /* the one at work */
    std::unique_ptr<char[]> shared;
    size_t shared_bytes;
    marks shared_marks;
    times clock;
    range last;     /* of device memory, where the last access was */
    unsigned shift; /* log2 of the granule of marks */
};

/* Lanes [mask] go on at pc; where pc is `join`, they wait for those on the path below. */
struct path {
    uint32_t pc, join, mask;
};

/* A copy that cp.async has begun and nothing has waited for. */
struct copy {
    unsigned lane;
    uint32_t to, bytes, from_bytes; /* zeros beyond from_bytes */
    const char *from;
};

enum warp_state { RUNS, AT_BARRIER, HAS_LEFT };

struct warp {
    machine *home;
    unsigned index; /* within the block */
    warp_state state;
    uint32_t pc, join, active; /* the path at work */
    uint32_t mask;             /* lanes that the instruction at work is for */
    uint32_t living, all;      /* lanes that have not left | that the block has at all */
    std::vector<path> waiting;
    int64_t since; /* the time of its last barrier, of the warp or of the block */
    std::vector<copy> copies;
    std::vector<char> local; /* lane by lane */
    std::unique_ptr<char[]> memory;
    char *file; /* registers: 64-byte aligned within memory */
};

/* Ends the program: `lane` of w did what a GPU would not allow. */
[[noreturn]] void fault(const warp &w, const instruction &i, unsigned lane, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* Handlers that the flow of control is made of. */
void branch(warp &w, const instruction &i);
void leave(warp &w, const instruction &i);
void trap(warp &w, const instruction &i);

/* `.aligned`: every lane of the warp has come. */
void need_whole_warp(const warp &w, const instruction &i);

/* -- registers --------------------------------------------------------------------------------- */

template <typename T>
using word_of = typename std::conditional<sizeof(T) == 8, uint64_t, uint32_t>::type;

template <typename T> static inline T get(const char *file, uint32_t at, unsigned lane) {
    word_of<T> word = reinterpret_cast<const word_of<T> *>(file + at)[lane];
    T value;
    memcpy(&value, &word, sizeof value);
    return value;
}

template <typename T> static inline void put(char *file, uint32_t at, unsigned lane, T value) {
    word_of<T> word = 0;
    memcpy(&word, &value, sizeof value);
    reinterpret_cast<word_of<T> *>(file + at)[lane] = word;
}

static inline uint32_t &predicate(char *file, uint32_t at) {
    return *reinterpret_cast<uint32_t *>(file + at);
}

/* body(lane) for every lane of the mask; the loop over all of them is one for vector units. */
template <typename Body> static inline void each_lane(uint32_t mask, Body body) {
    if (mask == ALL_LANES) {
#pragma GCC ivdep
        for (unsigned lane = 0; lane < LANES; lane++)
            body(lane);
        return;
    }
    for (; mask; mask &= mask - 1)
        body(static_cast<unsigned>(__builtin_ctz(mask)));
}

} // namespace ptx

#endif
