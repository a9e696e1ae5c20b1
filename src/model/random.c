/* random.c - see random.h. */
#include "src/model/random.h"

#include <math.h>

uint64_t mm_random_bits(uint64_t seed, uint64_t counter) {
    uint64_t z = seed + (counter + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

double mm_random_uniform(uint64_t seed, uint64_t counter) {
    return ((double)(mm_random_bits(seed, counter) >> 11) + 0.5) * 0x1p-53;
}

double mm_random_normal(uint64_t seed, uint64_t counter) {
    double u = mm_random_uniform(seed, 2 * counter);
    double v = (double)(mm_random_bits(seed, 2 * counter + 1) >> 11) * 0x1p-53;
    return sqrt(-2 * log(u)) * cos(2 * M_PI * v);
}

uint64_t mm_random_seed_of(uint64_t seed, const char *name) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (; *name; name++)
        hash = (hash ^ (unsigned char)*name) * 0x100000001b3u;
    return mm_random_bits(seed, hash);
}
