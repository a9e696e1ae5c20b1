/* machine.cc - runs a launch: see machine.h. */
#include "tests/ptx/machine.h"

#include "tests/ptx/bytes.h"

#include <cxxabi.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

namespace ptx {

void fatal(const char *format, ...) {
    va_list arguments;
    fprintf(stderr, "ptx: ");
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    abort();
}

static std::string readable(const std::string &name) {
    int status;
    char *plain = abi::__cxa_demangle(name.c_str(), NULL, NULL, &status);
    std::string text = plain ? plain : name;
    free(plain);
    return text;
}

void fault(const warp &w, const instruction &i, unsigned lane, const char *format, ...) {
    const machine &m = *w.home;
    const kernel &k = *m.now->code;
    va_list arguments;
    fprintf(stderr,
            "ptx: %s, block (%u, %u, %u), thread %u, %s:%u: %s\nptx: ", readable(k.name).c_str(),
            m.block.x, m.block.y, m.block.z, w.index * LANES + lane, k.file.c_str(), i.line,
            k.text[static_cast<size_t>(&i - k.code.data())].c_str());
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n");
    abort();
}

/* -- the flow of control ----------------------------------------------------------------------- */

void need_whole_warp(const warp &w, const instruction &i) {
    if (w.mask != w.all)
        fault(w, i, static_cast<unsigned>(__builtin_ctz(w.mask)),
              "only lanes %#x of %#x have come, and the whole warp must", w.mask, w.all);
}

static void take_path(warp &w, const path &p) {
    w.pc = p.pc;
    w.join = p.join;
    w.active = p.mask;
}

/* The lanes of the path at work have come to where they wait for others. */
static void end_path(warp &w) {
    if (w.waiting.empty()) {
        w.state = HAS_LEFT;
        return;
    }
    take_path(w, w.waiting.back());
    w.waiting.pop_back();
}

void branch(warp &w, const instruction &i) {
    uint32_t taken = w.mask, rest = w.active & ~taken, next = w.pc;
    if (!rest) {
        w.pc = i.target;
        return;
    }
    if (i.join != w.join) /* else those below wait there already */
        w.waiting.push_back({i.join, w.join, w.active});
    if (next != i.join)
        w.waiting.push_back({next, i.join, rest});
    take_path(w, {i.target, i.join, taken});
}

void leave(warp &w, const instruction &i) {
    if (!w.copies.empty())
        fault(w, i, w.copies[0].lane, "leaves while a copy is in flight");
    w.living &= ~w.mask;
    w.active &= ~w.mask;
    for (path &p : w.waiting)
        p.mask &= ~w.mask;
    while (!w.active && w.state == RUNS)
        end_path(w);
}

void trap(warp &w, const instruction &i) {
    fault(w, i, static_cast<unsigned>(__builtin_ctz(w.mask)), "trap");
}

static void run_warp(warp &w) {
    const std::vector<instruction> &code = w.home->now->code->code;
    w.state = RUNS;
    while (w.state == RUNS) {
        if (w.pc == w.join) {
            end_path(w);
            continue;
        }
        const instruction &i = code[w.pc++];
        w.mask = w.active;
        if (i.guarded) {
            uint32_t p = predicate(w.file, i.guard);
            w.mask &= i.unless ? ~p : p;
            if (!w.mask)
                continue;
        }
        i.run(w, i);
    }
}

/* -- blocks ------------------------------------------------------------------------------------ */

static unsigned special_value(const launch &l, index3 block, const std::string &name,
                              unsigned thread) {
    index3 in = {thread % l.block.x, thread / l.block.x % l.block.y,
                 thread / l.block.x / l.block.y};
    const index3 &of = name.find("%tid") == 0     ? in
                       : name.find("%ntid") == 0  ? l.block
                       : name.find("%ctaid") == 0 ? block
                                                  : l.grid;
    return name == "%laneid"    ? thread % LANES
           : name.back() == 'x' ? of.x
           : name.back() == 'y' ? of.y
                                : of.z;
}

/* What doesn't change from block to block. */
static void make_warp(warp &w, machine &m, unsigned index, unsigned threads) {
    const kernel &k = *m.now->code;
    unsigned first = index * LANES, lanes = threads - first < LANES ? threads - first : LANES;
    w.home = &m;
    w.index = index;
    w.all = lanes == LANES ? ALL_LANES : (1u << lanes) - 1;
    w.memory.reset(new char[k.file_bytes + 64]());
    w.file = w.memory.get() + 63;
    w.file -= reinterpret_cast<uintptr_t>(w.file) % 64;
    w.local.resize(LANES * k.local_bytes);
    for (const constant &c : k.constants)
        if (c.kind == PREDICATE)
            predicate(w.file, c.at) = c.value ? ALL_LANES : 0;
        else
            for (unsigned lane = 0; lane < LANES; lane++)
                if (c.kind == WORD)
                    put<uint32_t>(w.file, c.at, lane, static_cast<uint32_t>(c.value));
                else
                    put<uint64_t>(w.file, c.at, lane, c.value);
}

static void start_warp(warp &w) {
    const machine &m = *w.home;
    const kernel &k = *m.now->code;
    for (const auto &special : k.special)
        for (unsigned lane = 0; lane < LANES; lane++)
            put<uint32_t>(w.file, special.second, lane,
                          special_value(*m.now, m.block, special.first, w.index * LANES + lane));
    w.living = w.all;
    w.since = m.clock.barrier;
    w.waiting.clear();
    take_path(w, {0, static_cast<uint32_t>(k.code.size()), w.all});
}

/* All wait for the same barrier: they go on. All have left: false. */
static bool pass_barrier(machine &m, std::vector<warp> &warps) {
    const warp *first = NULL;
    bool left = false;
    for (const warp &w : warps) {
        left |= w.living != w.all;
        if (w.state == AT_BARRIER && !first)
            first = &w;
    }
    if (!first)
        return false;
    const instruction &at = m.now->code->code[first->pc - 1];
    for (const warp &w : warps)
        if (left || w.pc != first->pc)
            fault(*first, at, 0, "waits, and another thread %s", left ? "has left" : "elsewhere");
    m.clock.barrier = m.clock.step();
    for (warp &w : warps)
        w.since = m.clock.barrier;
    return true;
}

static void run_block(machine &m, std::vector<warp> &warps) {
    m.clock.block = m.clock.barrier = m.clock.step();
    for (warp &w : warps)
        start_warp(w);
    do
        for (warp &w : warps)
            run_warp(w);
    while (pass_barrier(m, warps));
}

static void check_launch(const launch &l, size_t shared_bytes) {
    size_t threads = static_cast<size_t>(l.block.x) * l.block.y * l.block.z;
    const index3 &g = l.grid;
    if (!g.x || !g.y || !g.z || g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535 || !threads ||
        threads > l.code->most_threads || shared_bytes > 227 * 1024)
        fatal("%s: a GPU takes no grid of %u x %u x %u blocks of %zu threads, %zu bytes",
              readable(l.code->name).c_str(), g.x, g.y, g.z, threads, shared_bytes);
}

void run(const launch &l) {
    count_launch();
    static machine m; /* its clock goes on, so that old marks are old */
    const kernel &k = *l.code;
    m.now = &l;
    m.shared_bytes = k.shared_bytes + l.dynamic_bytes;
    check_launch(l, m.shared_bytes);
    m.shared.reset(new char[m.shared_bytes + 16]);
    m.shift = k.granule == 4 ? 2 : k.granule == 2 ? 1 : 0;
    size_t granules = (m.shared_bytes >> m.shift) + 1;
    m.shared_marks.written.assign(granules, 0);
    m.shared_marks.read.assign(granules, 0);
    m.last = {};
    m.clock.launch = m.clock.step();
    unsigned threads = l.block.x * l.block.y * l.block.z;
    std::vector<warp> warps((threads + LANES - 1) / LANES);
    for (unsigned i = 0; i < warps.size(); i++)
        make_warp(warps[i], m, i, threads);
    for (m.block.z = 0; m.block.z < l.grid.z; m.block.z++)
        for (m.block.y = 0; m.block.y < l.grid.y; m.block.y++)
            for (m.block.x = 0; m.block.x < l.grid.x; m.block.x++)
                run_block(m, warps);
}

} // namespace ptx
