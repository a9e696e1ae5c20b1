/* joins.cc - where the paths of a branch meet again.
 *
 * That is the branch's immediate post-dominator: the first instruction that every path to the end
 * passes. Computed over blocks of instructions as Cooper, Harvey and Kennedy do it ("A Simple, Fast
 * Dominance Algorithm"), on the reversed graph, whose root is the end. */
#include "tests/ptx/ptx.h"
#include "tests/ptx/machine.h"

#include <algorithm>

namespace ptx {

struct graph {
    std::vector<uint32_t>
        first; /* the instruction a block begins with; the last block is the end */
    std::vector<std::vector<uint32_t>> next, before;

    uint32_t block_at(uint32_t instruction) const {
        auto after = std::upper_bound(first.begin(), first.end(), instruction);
        return static_cast<uint32_t>(after - first.begin()) - 1;
    }
};

static bool ends_block(const instruction &i) {
    return i.run == branch || i.run == leave || i.run == trap;
}

static graph make_graph(const kernel &k) {
    graph g;
    uint32_t n = static_cast<uint32_t>(k.code.size());
    std::vector<bool> begins(n + 1);
    begins[0] = begins[n] = true;
    for (uint32_t at = 0; at < n; at++)
        if (ends_block(k.code[at])) {
            begins[at + 1] = true;
            if (k.code[at].run == branch)
                begins[k.code[at].target] = true;
        }
    for (uint32_t at = 0; at <= n; at++)
        if (begins[at])
            g.first.push_back(at);
    uint32_t end = static_cast<uint32_t>(g.first.size()) - 1;
    g.next.resize(end + 1);
    g.before.resize(end + 1);
    for (uint32_t b = 0; b < end; b++) {
        const instruction &last = k.code[g.first[b + 1] - 1];
        if (last.run == branch)
            g.next[b].push_back(g.block_at(last.target));
        else if (ends_block(last))
            g.next[b].push_back(end);
        if (!ends_block(last) || last.guarded)
            g.next[b].push_back(b + 1);
        for (uint32_t to : g.next[b])
            g.before[to].push_back(b);
    }
    return g;
}

/* Blocks in the order in which a walk back from the end leaves them. */
static void walk_back(const graph &g, uint32_t b, std::vector<bool> &seen,
                      std::vector<uint32_t> &order) {
    seen[b] = true;
    for (uint32_t from : g.before[b])
        if (!seen[from])
            walk_back(g, from, seen, order);
    order.push_back(b);
}

static std::vector<uint32_t> post_dominators(const graph &g) {
    const uint32_t none = UINT32_MAX, end = static_cast<uint32_t>(g.first.size()) - 1;
    std::vector<bool> seen(end + 1);
    std::vector<uint32_t> order, rank(end + 1), over(end + 1, none);
    walk_back(g, end, seen, order);
    for (uint32_t i = 0; i < order.size(); i++)
        rank[order[i]] = i;
    over[end] = end;
    for (bool changed = true; changed;) {
        changed = false;
        for (size_t i = order.size() - 1; i-- > 0;) {
            uint32_t b = order[i], joined = none;
            for (uint32_t to : g.next[b]) {
                if (over[to] == none)
                    continue;
                uint32_t other = to;
                while (joined != none && joined != other)
                    if (rank[joined] < rank[other])
                        joined = over[joined];
                    else
                        other = over[other];
                joined = other;
            }
            changed |= over[b] != joined;
            over[b] = joined;
        }
    }
    return over;
}

void find_joins(kernel &k) {
    graph g = make_graph(k);
    std::vector<uint32_t> over = post_dominators(g);
    for (uint32_t at = 0; at < k.code.size(); at++)
        if (k.code[at].run == branch) {
            uint32_t join = over[g.block_at(at)];
            k.code[at].join =
                join == UINT32_MAX ? static_cast<uint32_t>(k.code.size()) : g.first[join];
        }
}

} // namespace ptx
