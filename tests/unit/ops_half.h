/* ops_half.h - bfloat16 arithmetic of the tests with explicit rounding, on doubles. */
#ifndef OPS_HALF_H
#define OPS_HALF_H

#include "tests/unit/ops_subject.h"

/* To bfloat16: 8 bits from the first, above 2^-133; of two neighbours the even one. */
static inline double half(double x) {
    int exponent;
    if (!isfinite(x) || x == 0)
        return x;
    frexp(x, &exponent);
    int unit = (exponent > -125 ? exponent : -125) - 8;
    double near = ldexp(nearbyint(ldexp(x, -unit)), unit);
    return copysign(fabs(near) >= 0x1p128 ? INFINITY : near, x);
}

/* A float32 operation on two float32 numbers, from its double result: rounding twice is harmless
 * there, 53 being more than 2·24 + 1. */
static inline double single(double x) {
    return (double)(float)x;
}

/* A bfloat16 operation as PyTorch has it: in float32, then stored. */
static inline double stored(double x) {
    return half(single(x));
}

/* Tensors of very different sizes, one empty. */
static const size_t offsets[] = {0, 1, 8, 8, 41, 16425, 16426, 40000};
#define TENSORS (sizeof offsets / sizeof *offsets - 1)

#endif
