/* collectives.cc - what the lanes of a warp, or the warps of a block, do together; the flow of
 * control; and the table of all operations. */
#include "tests/ptx/operations.h"

namespace ptx {

/* -- barriers ---------------------------------------------------------------------------------- */

static void block_barrier(warp &w, const instruction &i) {
    need_whole_warp(w, i);
    w.state = AT_BARRIER;
}

/* Of the lanes of a mask; the kernels only ever name all of them. */
static void warp_barrier(warp &w, const instruction &i) {
    uint32_t named = get<uint32_t>(w.file, i.at[0], static_cast<unsigned>(__builtin_ctz(w.mask)));
    if ((named & w.all) != w.all)
        fault(w, i, 0, "the interpreter knows no barrier of a part of a warp, %#x", named);
    need_whole_warp(w, i);
    w.since = w.home->clock.step();
}

/* -- exchanges --------------------------------------------------------------------------------- */

enum direction { BUTTERFLY, DOWN, UP, TO };

/* The lane that `lane` asks, and whether there is one; from the operands b and c of shfl. */
template <direction D>
static bool source_of(unsigned lane, uint32_t b, uint32_t c, unsigned &source) {
    unsigned segment = c >> 8 & 31, by = b & 31, clamp = c & 31;
    unsigned last = (lane & segment) | (clamp & ~segment), first = lane & segment;
    bool there;
    if (D == UP) {
        there = lane >= by && lane - by >= last;
        source = lane - by;
    } else {
        source = D == BUTTERFLY ? lane ^ by : D == DOWN ? lane + by : first | (by & ~segment);
        there = source <= last;
    }
    if (!there)
        source = lane;
    return there;
}

/* shfl.sync d|p, a, b, c, mask: d = a of the lane asked. That lane must have come, too. */
template <direction D> static void exchange(warp &w, const instruction &i) {
    uint32_t values[LANES], found = 0;
    for (unsigned lane = 0; lane < LANES; lane++)
        values[lane] = get<uint32_t>(w.file, i.at[2], lane);
    for (uint32_t rest = w.mask; rest; rest &= rest - 1) {
        unsigned lane = static_cast<unsigned>(__builtin_ctz(rest)), source;
        uint32_t named = get<uint32_t>(w.file, i.at[5], lane) & w.all;
        if ((named & w.mask) != named || !(named >> lane & 1))
            fault(w, i, lane, "lanes %#x exchange, and only %#x have come", named, w.mask);
        bool there = source_of<D>(lane, get<uint32_t>(w.file, i.at[3], lane),
                                  get<uint32_t>(w.file, i.at[4], lane), source);
        if (!(named >> source & 1))
            fault(w, i, lane, "asks lane %u, which is not among %#x", source, named);
        put<uint32_t>(w.file, i.at[0], lane, values[source]);
        found |= static_cast<uint32_t>(there) << lane;
    }
    uint32_t &p = predicate(w.file, i.at[1]);
    p = (p & ~w.mask) | found;
}

/* -- tensor cores ------------------------------------------------------------------------------ */

static float low_of(uint32_t pair) {
    float x;
    pair <<= 16;
    memcpy(&x, &pair, 4);
    return x;
}
static float high_of(uint32_t pair) {
    float x;
    pair &= 0xffff0000u;
    memcpy(&x, &pair, 4);
    return x;
}

/* mma.m16n8k16 d, a, b, c: d [16, 8] = a [16, 16] · b [16, 8] + c. With g = lane / 4 and
 * t = lane % 4 a lane holds, in register n: of a, columns 2·t and 2·t + 1, 8 later if n >= 2, of
 * row g, 8 later if n is odd; of b, the same rows, 8 later if n = 1, of column g; of c and d,
 * column 2·t + n % 2 of row g, 8 later if n >= 2. */
static void multiply(warp &w, const instruction &i) {
    float a[16][16], b[16][8], c[16][8];
    need_whole_warp(w, i);
    for (unsigned lane = 0; lane < LANES; lane++) {
        unsigned g = lane / 4, t = lane % 4 * 2;
        for (unsigned n = 0; n < 4; n++) {
            uint32_t pair = get<uint32_t>(w.file, i.at[4 + n], lane);
            float *to = &a[g + n % 2 * 8][t + n / 2 * 8];
            to[0] = low_of(pair), to[1] = high_of(pair);
            c[g + n / 2 * 8][t + n % 2] = get<float>(w.file, i.at[10 + n], lane);
        }
        for (unsigned n = 0; n < 2; n++) {
            uint32_t pair = get<uint32_t>(w.file, i.at[8 + n], lane);
            b[t + 8 * n][g] = low_of(pair), b[t + 8 * n + 1][g] = high_of(pair);
        }
    }
    for (unsigned row = 0; row < 16; row++)
        for (unsigned k = 0; k < 16; k++)
            for (unsigned col = 0; col < 8; col++)
                c[row][col] += a[row][k] * b[k][col];
    for (unsigned lane = 0; lane < LANES; lane++)
        for (unsigned n = 0; n < 4; n++)
            put(w.file, i.at[n], lane, c[lane / 4 + n / 2 * 8][lane % 4 * 2 + n % 2]);
}

/* -- moves between registers of two widths -------------------------------------------------------
 */

template <typename Whole, typename Half> static void pack(warp &w, const instruction &i) {
    each_lane(w.mask, [&](unsigned lane) {
        Whole high = get<Half>(w.file, i.at[2], lane), low = get<Half>(w.file, i.at[1], lane);
        put<Whole>(w.file, i.at[0], lane, high << 8 * sizeof(Half) | low);
    });
}

template <typename Whole, typename Half> static void unpack(warp &w, const instruction &i) {
    each_lane(w.mask, [&](unsigned lane) {
        Whole whole = get<Whole>(w.file, i.at[2], lane);
        put<Half>(w.file, i.at[0], lane, static_cast<Half>(whole));
        put<Half>(w.file, i.at[1], lane, static_cast<Half>(whole >> 8 * sizeof(Half)));
    });
}

/* cvta.to.global: the two kinds of addresses are the same here. */
static void same_address(warp &w, const instruction &i) {
    each_lane(w.mask, [&](unsigned lane) {
        put(w.file, i.at[0], lane, get<uint64_t>(w.file, i.at[1], lane));
    });
}

/* -- the table --------------------------------------------------------------------------------- */

void define_collectives(operations &table) {
    table["bra"] = table["bra.uni"] = {branch, "b", 0};
    table["ret"] = table["exit"] = {leave, "", 0};
    table["trap"] = {trap, "", 0};
    table["bar.sync"] = {block_barrier, "n", 0};
    table["bar.warp.sync"] = {warp_barrier, "w", 0};
    table["shfl.sync.bfly.b32"] = {exchange<BUTTERFLY>, "wpwwww", 0};
    table["shfl.sync.down.b32"] = {exchange<DOWN>, "wpwwww", 0};
    table["shfl.sync.up.b32"] = {exchange<UP>, "wpwwww", 0};
    table["shfl.sync.idx.b32"] = {exchange<TO>, "wpwwww", 0};
    table["mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"] = {multiply, "wwwwwwwwwwwwww", 0};
    table["mov.b32 {d}"] = {unpack<uint32_t, uint16_t>, "www", 0};
    table["mov.b32 {a}"] = {pack<uint32_t, uint16_t>, "www", 0};
    table["mov.b64 {d}"] = {unpack<uint64_t, uint32_t>, "wwl", 0};
    table["mov.b64 {a}"] = {pack<uint64_t, uint32_t>, "lww", 0};
    table["cvta.to.global.u64"] = {same_address, "ll", 0};
}

const operation *find_operation(const std::string &name) {
    static const operations table = [] {
        operations made;
        define_lanes(made);
        define_memory(made);
        define_collectives(made);
        return made;
    }();
    auto found = table.find(name);
    return found == table.end() ? NULL : &found->second;
}

} // namespace ptx
