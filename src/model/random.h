/* random.h - random numbers that are functions of a seed and a counter. So ranks and runs agree on
 * them, whatever was asked for before. All functions are local. */
#ifndef MM_RANDOM_H
#define MM_RANDOM_H

#include <stdint.h>

/* splitmix64 (Steele, Lea, Flood 2014). */
uint64_t mm_random_bits(uint64_t seed, uint64_t counter);
/* In (0, 1): the upper 53 bits and a half, over 2^53. */
double mm_random_uniform(uint64_t seed, uint64_t counter);
/* Standard normal (Box and Muller). */
double mm_random_normal(uint64_t seed, uint64_t counter);
/* A seed for the thing that is called `name`. */
uint64_t mm_random_seed_of(uint64_t seed, const char *name);

#endif
