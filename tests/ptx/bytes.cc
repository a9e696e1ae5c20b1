/* bytes.cc - see bytes.h. */
#include "tests/ptx/bytes.h"

#include <algorithm>
#include <unordered_map>

namespace ptx {

/* Bytes that a launch has touched: of each 64 bytes of memory, a bit a byte. */
typedef std::unordered_map<uint64_t, uint64_t> touched;

static struct {
    bool on;
    touched read, written;
    cuda_bytes sum;
} counter;

bool counting() {
    return counter.on;
}

static void touch(touched &all, uint64_t at, unsigned bytes) {
    uint64_t mask = (~uint64_t(0) >> (64 - bytes)) << at % 64, &seen = all[at / 64];
    counter.sum.launched += __builtin_popcountll(mask & ~seen);
    seen |= mask;
}

void count_launch() {
    counter.read.clear();
    counter.written.clear();
}

/* Of a whole warp that asks for the same, nothing: a single number. */
void count(access &a) {
    std::sort(a.at, a.at + a.n);
    uint64_t *end = std::unique(a.at, a.at + a.n);
    if (end - a.at <= 1)
        return;
    counter.sum.asked += static_cast<double>(end - a.at) * a.bytes;
    for (uint64_t *at = a.at; at < end; at++)
        touch(a.writes ? counter.written : counter.read, *at, a.bytes);
}

} // namespace ptx

void ptx_count_begin(void) {
    ptx::counter.sum = {};
    ptx::counter.on = true;
}

struct cuda_bytes ptx_count_end(void) {
    ptx::counter.on = false;
    return ptx::counter.sum;
}
