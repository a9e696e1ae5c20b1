/* memory.cc - loads, stores and asynchronous copies, each checked: alignment, bounds, what nobody
 * wrote, what is still on its way, and what another thread may touch at the same time. */
#include "tests/ptx/bytes.h"
#include "tests/ptx/operations.h"

namespace ptx {

/* -- places ------------------------------------------------------------------------------------ */

static uint64_t address(const warp &w, const instruction &i, unsigned operand, unsigned which,
                        unsigned lane) {
    uint64_t base = i.long_address[which] ? get<uint64_t>(w.file, i.at[operand], lane)
                                          : get<uint32_t>(w.file, i.at[operand], lane);
    return base + static_cast<uint64_t>(i.offset[which]);
}

static void need_aligned(const warp &w, const instruction &i, unsigned lane, uint64_t at,
                         unsigned bytes) {
    if (at % bytes)
        fault(w, i, lane, "address %#llx is not a multiple of %u",
              static_cast<unsigned long long>(at), bytes);
}

/* Bytes of memory: where they are, and their marks. */
struct spot {
    char *data;
    marks *marked;
    size_t granule;
    bool shared;
};

static spot shared_spot(const warp &w, const instruction &i, unsigned lane, uint64_t at,
                        unsigned bytes) {
    machine &m = *w.home;
    need_aligned(w, i, lane, at, bytes);
    if (at + bytes > m.shared_bytes || at + bytes < at)
        fault(w, i, lane, "bytes %llu ... of %zu of shared memory",
              static_cast<unsigned long long>(at), m.shared_bytes);
    return {m.shared.get() + at, &m.shared_marks, at >> m.shift, true};
}

/* `bytes` of them are accessed, in a unit that is aligned as `unit` bytes. */
static spot global_spot(const warp &w, const instruction &i, unsigned lane, uint64_t at,
                        unsigned bytes, unsigned unit) {
    machine &m = *w.home;
    char *p = reinterpret_cast<char *>(at);
    need_aligned(w, i, lane, at, unit);
    if (p < m.last.first || p + bytes > m.last.end) {
        m.last = device_range(p);
        if (!m.last.first || p + bytes > m.last.end)
            fault(w, i, lane, "%u bytes at %p, outside the blocks of the device's memory%s", bytes,
                  static_cast<void *>(p), m.last.first ? ", which end before" : "");
        size_t granules = (static_cast<size_t>(m.last.end - m.last.first) >> m.shift) + 1;
        if (m.last.marked->written.size() < granules) {
            m.last.marked->written.resize(granules);
            m.last.marked->read.resize(granules);
        }
    }
    return {p, m.last.marked, static_cast<size_t>(p - m.last.first) >> m.shift, false};
}

/* -- collisions -------------------------------------------------------------------------------- */

static view view_of(const warp &w, unsigned lane, bool shared, bool reads) {
    const times &clock = w.home->clock;
    int64_t nothing = shared ? clock.block : clock.launch;
    return {clock.now | static_cast<int64_t>(w.index * LANES + lane),
            nothing,
            shared && reads ? INT64_MIN : nothing,
            clock.block,
            clock.barrier,
            w.since};
}

/* Says what is wrong with an access to granules that mark_read or mark_write found fault with. */
[[noreturn]] static void collide(const warp &w, const instruction &i, unsigned lane,
                                 int64_t written, const view &v, bool writes) {
    const times &clock = w.home->clock;
    const char *what = writes ? "writes" : "reads";
    if (written == IN_FLIGHT)
        fault(w, i, lane, "%s where an asynchronous copy is in flight", what);
    if (written < clock.block && v.unwritten == INT64_MIN)
        fault(w, i, lane, "reads shared memory that nobody wrote");
    if (!after_write(written, v) && written < clock.block)
        fault(w, i, lane, "%s what another block wrote", what);
    if (!after_write(written, v))
        fault(w, i, lane, "%s what thread %d wrote, and no barrier lies between", what,
              static_cast<int>(written & MARK_THREAD));
    fault(w, i, lane, "writes what another thread or block has read, and no barrier lies between");
}

template <unsigned N>
static void mark(const warp &w, const instruction &i, unsigned lane, const spot &at, bool writes) {
    view v = view_of(w, lane, at.shared, !writes);
    int64_t before[N];
    memcpy(before, &at.marked->written[at.granule], sizeof before);
    if (writes ? mark_write<N>(*at.marked, at.granule, v) : mark_read<N>(*at.marked, at.granule, v))
        return;
    unsigned n = 0;
    while (n + 1 < N && after_write(before[n], v))
        n++;
    /* Two lanes of one instruction may have met: the last mark says so. */
    collide(w, i, lane, before[n], v, writes);
}

static void mark_bytes(const warp &w, const instruction &i, unsigned lane, const spot &at,
                       unsigned bytes, bool writes) {
    switch (bytes >> w.home->shift) {
    case 1:
        return mark<1>(w, i, lane, at, writes);
    case 2:
        return mark<2>(w, i, lane, at, writes);
    case 4:
        return mark<4>(w, i, lane, at, writes);
    case 8:
        return mark<8>(w, i, lane, at, writes);
    case 16:
        return mark<16>(w, i, lane, at, writes);
    default:
        fault(w, i, lane, "an access of %u bytes", bytes);
    }
}

/* -- loads and stores -------------------------------------------------------------------------- */

enum space { GLOBAL, SHARED, LOCAL, PARAMETER };

template <space S>
static char *data_at(warp &w, const instruction &i, unsigned lane, uint64_t at, unsigned bytes,
                     bool writes) {
    const machine &m = *w.home;
    if (S == GLOBAL || S == SHARED) {
        spot to = S == SHARED ? shared_spot(w, i, lane, at, bytes)
                              : global_spot(w, i, lane, at, bytes, bytes);
        mark_bytes(w, i, lane, to, bytes, writes);
        return to.data;
    }
    size_t size = S == LOCAL ? m.now->code->local_bytes : m.now->parameters.size();
    need_aligned(w, i, lane, at, bytes);
    if (at + bytes > size || at + bytes < at)
        fault(w, i, lane, "bytes %llu ... of %zu", static_cast<unsigned long long>(at), size);
    return S == LOCAL ? &w.local[lane * size + at] : const_cast<char *>(&m.now->parameters[at]);
}

/* Into registers of R: as wide as T or wider, with T's sign. */
template <space S, typename R, typename T, unsigned N>
static void load(warp &w, const instruction &i) {
    access all(N * sizeof(T), false);
    for (uint32_t rest = w.mask; rest; rest &= rest - 1) {
        unsigned lane = static_cast<unsigned>(__builtin_ctz(rest));
        uint64_t at = address(w, i, N, 0, lane);
        const char *from = data_at<S>(w, i, lane, at, N * sizeof(T), false);
        all.at[all.n++] = at;
        for (unsigned n = 0; n < N; n++) {
            T value;
            memcpy(&value, from + n * sizeof value, sizeof value);
            put(w.file, i.at[n], lane, static_cast<R>(value));
        }
    }
    if (S == GLOBAL && counting())
        count(all);
}

template <space S, typename T, unsigned N> static void store(warp &w, const instruction &i) {
    access all(N * sizeof(T), true);
    for (uint32_t rest = w.mask; rest; rest &= rest - 1) {
        unsigned lane = static_cast<unsigned>(__builtin_ctz(rest));
        uint64_t at = address(w, i, 0, 0, lane);
        char *to = data_at<S>(w, i, lane, at, N * sizeof(T), true);
        all.at[all.n++] = at;
        for (unsigned n = 0; n < N; n++) {
            T value = get<T>(w.file, i.at[1 + n], lane);
            memcpy(to + n * sizeof value, &value, sizeof value);
        }
    }
    if (S == GLOBAL && counting())
        count(all);
}

template <space S, typename T, unsigned N>
static void define_access(operations &table, const std::string &name) {
    std::string registers(N, sizeof(T) == 8 ? LONG : WORD);
    unsigned bytes = S == GLOBAL || S == SHARED ? N * sizeof(T) : 0;
    typedef typename std::conditional<sizeof(T) == 8, uint64_t, uint32_t>::type R;
    table["ld" + name] = {load<S, R, T, N>, registers + char(ADDRESS), bytes};
    table["ld" + name + " long"] = {load<S, uint64_t, T, N>, std::string(N, LONG) + char(ADDRESS),
                                    bytes};
    table["st" + name] = {store<S, T, N>, char(ADDRESS) + registers, bytes};
}

template <space S, typename T>
static void define_widths(operations &table, const std::string &of, const std::string &type) {
    define_access<S, T, 1>(table, of + type);
    define_access<S, T, 2>(table, of + ".v2" + type);
    if constexpr (sizeof(T) <= 4)
        define_access<S, T, 4>(table, of + ".v4" + type);
}

template <space S> static void define_space(operations &table, const std::string &of) {
    define_widths<S, uint8_t>(table, of, ".u8");
    define_widths<S, int8_t>(table, of, ".s8");
    define_widths<S, uint8_t>(table, of, ".b8");
    for (const char *type : {".u16", ".b16"})
        define_widths<S, uint16_t>(table, of, type);
    define_widths<S, int16_t>(table, of, ".s16");
    define_widths<S, int32_t>(table, of, ".s32");
    for (const char *type : {".u32", ".b32", ".f32"})
        define_widths<S, uint32_t>(table, of, type);
    for (const char *type : {".u64", ".b64", ".s64", ".f64"})
        define_widths<S, uint64_t>(table, of, type);
}

/* -- asynchronous copies: there as late as they may be -------------------------------------------
 */

/* Marks a copy's bytes as on their way, or as written by the lane that has waited for them. */
static void mark_copy(const warp &w, uint32_t to, uint32_t bytes, int64_t as) {
    machine &m = *w.home;
    for (uint32_t at = to >> m.shift; at < (to + bytes) >> m.shift; at++)
        m.shared_marks.written[at] = as;
}

/* cp.async [to], [from], bytes (, bytes that are read: zeros follow them) */
template <bool PARTIAL> static void copy_begin(warp &w, const instruction &i) {
    access all(i.number, false);
    for (uint32_t rest = w.mask; rest; rest &= rest - 1) {
        unsigned lane = static_cast<unsigned>(__builtin_ctz(rest));
        uint32_t read = PARTIAL ? get<uint32_t>(w.file, i.at[3], lane) : i.number;
        uint64_t to = address(w, i, 0, 0, lane), from = address(w, i, 1, 1, lane);
        if (read > i.number)
            fault(w, i, lane, "reads %u bytes for %u", read, i.number);
        mark_bytes(w, i, lane, shared_spot(w, i, lane, to, i.number), i.number, true);
        need_aligned(w, i, lane, from, i.number);
        if (read) {
            mark_bytes(w, i, lane, global_spot(w, i, lane, from, read, i.number), read, false);
            all.at[all.n++] = from;
        }
        mark_copy(w, static_cast<uint32_t>(to), i.number, IN_FLIGHT);
        w.copies.push_back({lane, static_cast<uint32_t>(to), i.number, read,
                            reinterpret_cast<const char *>(from)});
    }
    if (counting())
        count(all);
}

static void copies_wait(warp &w, const instruction &) {
    std::vector<copy> others;
    for (const copy &c : w.copies) {
        if (!(w.mask >> c.lane & 1)) {
            others.push_back(c);
            continue;
        }
        char *to = w.home->shared.get() + c.to;
        memset(to, 0, c.bytes);
        if (c.from_bytes)
            memcpy(to, c.from, c.from_bytes);
        mark_copy(w, c.to, c.bytes,
                  w.home->clock.now | static_cast<int64_t>(w.index * LANES + c.lane));
    }
    w.copies.swap(others);
}

/* -- matrices ---------------------------------------------------------------------------------- */

/* ldmatrix: four 8 x 8 matrices of 16-bit elements; lane 8·m + r names row r of matrix m. A lane
 * gets of each elements 2·t and 2·t + 1 of row g, with g = lane / 4 and t = lane % 4; TRANSPOSED,
 * of rows 2·t and 2·t + 1 element g. */
template <bool TRANSPOSED> static void load_matrices(warp &w, const instruction &i) {
    uint16_t all[4][8][8];
    need_whole_warp(w, i);
    for (unsigned lane = 0; lane < LANES; lane++) {
        spot row = shared_spot(w, i, lane, address(w, i, 4, 0, lane), 16);
        mark_bytes(w, i, lane, row, 16, false);
        mark_bytes(w, i, lane ^ 1, row, 16, false); /* others read it too */
        memcpy(all[lane / 8][lane % 8], row.data, 16);
    }
    for (unsigned lane = 0; lane < LANES; lane++)
        for (unsigned n = 0; n < 4; n++) {
            unsigned g = lane / 4, t = lane % 4 * 2;
            uint16_t low = TRANSPOSED ? all[n][t][g] : all[n][g][t];
            uint16_t high = TRANSPOSED ? all[n][t + 1][g] : all[n][g][t + 1];
            put<uint32_t>(w.file, i.at[n], lane, static_cast<uint32_t>(high) << 16 | low);
        }
}

void define_memory(operations &table) {
    define_space<GLOBAL>(table, ".global");
    define_space<SHARED>(table, ".shared");
    define_space<LOCAL>(table, ".local");
    define_space<PARAMETER>(table, ".param");
    for (const char *cache : {".ca", ".cg"}) {
        std::string name = std::string("cp.async") + cache + ".shared.global";
        table[name] = {copy_begin<false>, "aan", 4};
        table[name + " partial"] = {copy_begin<true>, "aanw", 4};
    }
    table["cp.async.wait_all"] = {copies_wait, "", 0};
    std::string matrices = "ldmatrix.sync.aligned.m8n8.x4";
    table[matrices + ".shared.b16"] = {load_matrices<false>, "wwwwa", 2};
    table[matrices + ".trans.shared.b16"] = {load_matrices<true>, "wwwwa", 2};
}

} // namespace ptx
