/* lanes.cc - the operations that every lane makes by itself: arithmetic, comparison, conversion. */
#include "tests/ptx/operations.h"
#include "tests/ptx/runtime.h"

#include <math.h>

namespace ptx {

/* -- lanes ------------------------------------------------------------------------------------- */

template <typename T> constexpr char kind_of() {
    return sizeof(T) == 8 ? LONG : WORD;
}
template <> constexpr char kind_of<bool>() {
    return PREDICATE;
}

template <typename T> static inline T value_of(const char *file, uint32_t at, unsigned lane) {
    return get<T>(file, at, lane);
}
template <> inline bool value_of<bool>(const char *file, uint32_t at, unsigned lane) {
    return *reinterpret_cast<const uint32_t *>(file + at) >> lane & 1;
}

/* d = F(a, b, c) in every lane. */
template <auto F> struct each;

template <typename R, typename A, R (*F)(A)> struct each<F> {
    static constexpr char operands[] = {kind_of<R>(), kind_of<A>(), 0};
    static inline R at(const char *file, const instruction &i, unsigned lane) {
        return F(value_of<A>(file, i.at[1], lane));
    }
    typedef R result;
};
template <typename R, typename A, typename B, R (*F)(A, B)> struct each<F> {
    static constexpr char operands[] = {kind_of<R>(), kind_of<A>(), kind_of<B>(), 0};
    static inline R at(const char *file, const instruction &i, unsigned lane) {
        return F(value_of<A>(file, i.at[1], lane), value_of<B>(file, i.at[2], lane));
    }
    typedef R result;
};
template <typename R, typename A, typename B, typename C, R (*F)(A, B, C)> struct each<F> {
    static constexpr char operands[] = {kind_of<R>(), kind_of<A>(), kind_of<B>(), kind_of<C>(), 0};
    static inline R at(const char *file, const instruction &i, unsigned lane) {
        return F(value_of<A>(file, i.at[1], lane), value_of<B>(file, i.at[2], lane),
                 value_of<C>(file, i.at[3], lane));
    }
    typedef R result;
};

template <auto F> static void run_each(warp &w, const instruction &i) {
    const instruction here = i; /* so that no store to the file seems to change it */
    char *file = w.file;
    if constexpr (std::is_same<typename each<F>::result, bool>::value) {
        uint32_t bits = 0;
        each_lane(w.mask, [&](unsigned lane) {
            bits |= static_cast<uint32_t>(each<F>::at(file, here, lane)) << lane;
        });
        uint32_t &p = predicate(file, here.at[0]);
        p = (p & ~w.mask) | bits;
    } else
        each_lane(w.mask, [&](unsigned lane) {
            put(file, here.at[0], lane, each<F>::at(file, here, lane));
        });
}

template <auto F> static void define(operations &table, const std::string &name) {
    table[name] = {run_each<F>, each<F>::operands, 0};
}

/* -- integers ---------------------------------------------------------------------------------- */

template <typename T> static T add(T a, T b) {
    return static_cast<T>(a + b);
}
template <typename T> static T sub(T a, T b) {
    return static_cast<T>(a - b);
}
template <typename T> static T mul(T a, T b) {
    return static_cast<T>(a * b);
}
template <typename T> static T mad(T a, T b, T c) {
    return static_cast<T>(a * b + c);
}
template <typename T, typename W> static W mul_wide(T a, T b) {
    return static_cast<W>(a) * static_cast<W>(b);
}
template <typename T, typename W> static T mul_high(T a, T b) {
    return static_cast<T>(mul_wide<T, W>(a, b) >> 8 * sizeof(T));
}
template <typename T> static T divide(T a, T b) { /* by 0: unspecified */
    bool minus_one = T(-1) < T(1) && b == T(-1);
    return b == 0 ? T(-1) : minus_one ? static_cast<T>(0 - static_cast<uint64_t>(a)) : a / b;
}
template <typename T> static T remainder_of(T a, T b) {
    return b == 0 || (T(-1) < T(1) && b == T(-1)) ? 0 : a % b;
}
template <typename T> static T least(T a, T b) {
    return a < b ? a : b;
}
template <typename T> static T most(T a, T b) {
    return a > b ? a : b;
}
template <typename T> static T negate(T a) {
    return static_cast<T>(-a);
}
template <typename T> static T copy_of(T a) {
    return a;
}
template <typename T> static T bit_and(T a, T b) {
    return a & b;
}
template <typename T> static T bit_or(T a, T b) {
    return a | b;
}
template <typename T> static T bit_xor(T a, T b) {
    return a ^ b;
}
template <typename T> static T bit_not(T a) {
    return static_cast<T>(~a);
}
static bool not_predicate(bool a) {
    return !a;
}
template <typename T> static T shift_left(T a, uint32_t by) {
    return by < 8 * sizeof(T) ? static_cast<T>(a << by) : 0;
}
template <typename T> static T shift_right(T a, uint32_t by) { /* of a signed T its sign comes in */
    uint32_t most_bits = 8 * sizeof(T) - 1;
    return by > most_bits ? static_cast<T>(T(-1) < 0 ? a >> most_bits : 0)
                          : static_cast<T>(a >> by);
}
template <typename T> static T choose(T a, T b, bool p) {
    return p ? a : b;
}

template <typename T> static bool is_eq(T a, T b) {
    return a == b;
}
template <typename T> static bool is_ne(T a, T b) { /* of floats: and both are numbers */
    return a < b || a > b;
}
template <typename T> static bool is_lt(T a, T b) {
    return a < b;
}
template <typename T> static bool is_le(T a, T b) {
    return a <= b;
}
template <typename T> static bool is_gt(T a, T b) {
    return a > b;
}
template <typename T> static bool is_ge(T a, T b) {
    return a >= b;
}

template <typename T> static void define_comparisons(operations &table, const std::string &type) {
    define<is_eq<T>>(table, "setp.eq" + type);
    define<is_ne<T>>(table, "setp.ne" + type);
    define<is_lt<T>>(table, "setp.lt" + type);
    define<is_le<T>>(table, "setp.le" + type);
    define<is_gt<T>>(table, "setp.gt" + type);
    define<is_ge<T>>(table, "setp.ge" + type);
}

/* S signed, U unsigned. Where the bits are the same, U computes them: it may overflow. */
template <typename S, typename U> static void define_integers(operations &table, const char *bits) {
    std::string s = std::string(".s") + bits, u = std::string(".u") + bits;
    std::string b = std::string(".b") + bits;
    for (const std::string &type : {s, u, b}) {
        define<add<U>>(table, "add" + type);
        define<sub<U>>(table, "sub" + type);
        define<mul<U>>(table, "mul.lo" + type);
        define<mad<U>>(table, "mad.lo" + type);
        define<negate<U>>(table, "neg" + type);
        define<copy_of<U>>(table, "mov" + type);
        define<bit_and<U>>(table, "and" + type);
        define<bit_or<U>>(table, "or" + type);
        define<bit_xor<U>>(table, "xor" + type);
        define<bit_not<U>>(table, "not" + type);
        define<shift_left<U>>(table, "shl" + type);
        define<choose<U>>(table, "selp" + type);
    }
    define<divide<S>>(table, "div" + s);
    define<divide<U>>(table, "div" + u);
    define<remainder_of<S>>(table, "rem" + s);
    define<remainder_of<U>>(table, "rem" + u);
    define<least<S>>(table, "min" + s);
    define<least<U>>(table, "min" + u);
    define<most<S>>(table, "max" + s);
    define<most<U>>(table, "max" + u);
    define<shift_right<S>>(table, "shr" + s);
    define<shift_right<U>>(table, "shr" + u);
    define_comparisons<S>(table, s);
    define_comparisons<U>(table, u);
    define_comparisons<U>(table, b);
}

/* -- floats ------------------------------------------------------------------------------------ */

template <typename T> static T fused(T a, T b, T c) {
    return sizeof(T) == 4
               ? static_cast<T>(__builtin_fmaf(static_cast<float>(a), static_cast<float>(b),
                                               static_cast<float>(c)))
               : static_cast<T>(__builtin_fma(a, b, c));
}
/* a·b + c rounded down: the product of floats is exact in double, and `rest` is what its sum with
 * c loses (Knuth's two-sum). */
static float fused_down(float a, float b, float c) {
    double p = static_cast<double>(a) * b, s = p + c, back = s - p;
    double rest = (p - (s - back)) + (c - back);
    float nearest = static_cast<float>(s);
    bool above = nearest > s || (nearest == s && rest < 0);
    return above ? nextafterf(nearest, -INFINITY) : nearest;
}
template <typename T> static T quotient(T a, T b) {
    return a / b;
}
template <typename T> static T reciprocal(T a) {
    return 1 / a;
}
template <typename T> static T root(T a) {
    return sizeof(T) == 4 ? static_cast<T>(sqrtf(static_cast<float>(a))) : static_cast<T>(sqrt(a));
}
template <typename T> static T absolute(T a) {
    return a < 0 || a == 0 ? -a + 0 : a;
}
template <typename T> static T float_least(T a, T b) { /* a NaN loses */
    return a < b || b != b ? a : b;
}
template <typename T> static T float_most(T a, T b) {
    return a > b || b != b ? a : b;
}
template <typename T> static T with_sign(T sign, T a) {
    return static_cast<T>(copysign(a, sign));
}
template <typename T> static bool is_ltu(T a, T b) { /* or one is no number */
    return !(a >= b);
}
template <typename T> static bool is_leu(T a, T b) {
    return !(a > b);
}
template <typename T> static bool is_gtu(T a, T b) {
    return !(a <= b);
}
template <typename T> static bool is_geu(T a, T b) {
    return !(a < b);
}
template <typename T> static bool is_neu(T a, T b) {
    return a != b;
}
template <typename T> static bool is_equ(T a, T b) {
    return !(a < b || a > b);
}
template <typename T> static bool is_number(T a, T b) {
    return a == a && b == b;
}
template <typename T> static bool is_nan(T a, T b) {
    return a != a || b != b;
}

template <typename T> static void define_floats(operations &table, const std::string &type) {
    define<add<T>>(table, "add" + type);
    define<add<T>>(table, "add.rn" + type);
    define<sub<T>>(table, "sub" + type);
    define<sub<T>>(table, "sub.rn" + type);
    define<mul<T>>(table, "mul" + type);
    define<mul<T>>(table, "mul.rn" + type);
    define<fused<T>>(table, "fma.rn" + type);
    define<quotient<T>>(table, "div.rn" + type);
    define<reciprocal<T>>(table, "rcp.rn" + type);
    define<root<T>>(table, "sqrt.rn" + type);
    define<absolute<T>>(table, "abs" + type);
    define<negate<T>>(table, "neg" + type);
    define<copy_of<T>>(table, "mov" + type);
    define<choose<T>>(table, "selp" + type);
    define<float_least<T>>(table, "min" + type);
    define<float_most<T>>(table, "max" + type);
    define<with_sign<T>>(table, "copysign" + type);
    define_comparisons<T>(table, type);
    define<is_ltu<T>>(table, "setp.ltu" + type);
    define<is_leu<T>>(table, "setp.leu" + type);
    define<is_gtu<T>>(table, "setp.gtu" + type);
    define<is_geu<T>>(table, "setp.geu" + type);
    define<is_neu<T>>(table, "setp.neu" + type);
    define<is_equ<T>>(table, "setp.equ" + type);
    define<is_number<T>>(table, "setp.num" + type);
    define<is_nan<T>>(table, "setp.nan" + type);
}

/* -- approximations: as far off as they may be, by chance (MM_NOISE) ----------------------------
 */

static float flushed(float x) { /* ftz */
    return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x;
}
static float exponential_fast(float a) {
    float x = exp2f(flushed(a));
    return flushed(a == 0 ? x : shim_noisy(x, x * 0x1p-22f));
}
static float reciprocal_fast(float a) {
    float x = 1 / flushed(a);
    return flushed(shim_noisy(x, x * 0x1p-23f));
}
/* The upper half of a double, the lower one zero. */
static double reciprocal_rough(double a) {
    uint64_t bits;
    double x = fabs(a) < 0x1p-1022 ? copysign(INFINITY, a) : 1 / a;
    memcpy(&bits, &x, 8);
    bits &= ~static_cast<uint64_t>(UINT32_MAX);
    memcpy(&x, &bits, 8);
    return x;
}

/* -- conversion -------------------------------------------------------------------------------- */

template <typename R, typename A> static R converted(A a) {
    return static_cast<R>(a);
}
static float saturated(float a) { /* NaN becomes 0 */
    return a > 0 ? (a < 1 ? a : 1) : 0;
}
static uint32_t bfloat16_bits(float a) { /* one NaN for all */
    uint32_t bits;
    memcpy(&bits, &a, 4);
    return a != a ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
static uint16_t to_bfloat16(float a) {
    return static_cast<uint16_t>(bfloat16_bits(a));
}
static uint32_t to_bfloat16_pair(float high, float low) {
    return bfloat16_bits(high) << 16 | bfloat16_bits(low);
}
static float from_bfloat16(uint16_t a) {
    uint32_t bits = static_cast<uint32_t>(a) << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

template <typename R>
static void define_from(operations &table, const std::string &to, const std::string &rounding) {
    define<converted<R, uint16_t>>(table, "cvt" + rounding + to + ".u16");
    define<converted<R, int16_t>>(table, "cvt" + rounding + to + ".s16");
    define<converted<R, uint32_t>>(table, "cvt" + rounding + to + ".u32");
    define<converted<R, int32_t>>(table, "cvt" + rounding + to + ".s32");
    define<converted<R, uint64_t>>(table, "cvt" + rounding + to + ".u64");
    define<converted<R, int64_t>>(table, "cvt" + rounding + to + ".s64");
}

static void define_conversions(operations &table) {
    define_from<uint16_t>(table, ".u16", "");
    define_from<uint32_t>(table, ".u32", "");
    define_from<int32_t>(table, ".s32", "");
    define_from<uint64_t>(table, ".u64", "");
    define_from<int64_t>(table, ".s64", "");
    define_from<float>(table, ".f32", ".rn");
    define_from<double>(table, ".f64", ".rn");
    define<converted<double, float>>(table, "cvt.f64.f32");
    define<converted<float, double>>(table, "cvt.rn.f32.f64");
    define<saturated>(table, "cvt.sat.f32.f32");
    define<to_bfloat16>(table, "cvt.rn.bf16.f32");
    define<to_bfloat16_pair>(table, "cvt.rn.bf16x2.f32");
    define<from_bfloat16>(table, "cvt.f32.bf16");
}

void define_lanes(operations &table) {
    define_integers<int16_t, uint16_t>(table, "16");
    define_integers<int32_t, uint32_t>(table, "32");
    define_integers<int64_t, uint64_t>(table, "64");
    define<mul_wide<uint32_t, uint64_t>>(table, "mul.wide.u32");
    define<mul_wide<int32_t, int64_t>>(table, "mul.wide.s32");
    define<mul_high<uint32_t, uint64_t>>(table, "mul.hi.u32");
    define<mul_high<int32_t, int64_t>>(table, "mul.hi.s32");
    define<bit_and<bool>>(table, "and.pred");
    define<bit_or<bool>>(table, "or.pred");
    define<bit_xor<bool>>(table, "xor.pred");
    define<not_predicate>(table, "not.pred");
    define<copy_of<bool>>(table, "mov.pred");
    define_floats<float>(table, ".f32");
    define_floats<double>(table, ".f64");
    define<fused_down>(table, "fma.rm.f32");
    define<exponential_fast>(table, "ex2.approx.ftz.f32");
    define<reciprocal_fast>(table, "rcp.approx.ftz.f32");
    define<reciprocal_rough>(table, "rcp.approx.ftz.f64");
    define_conversions(table);
}

} // namespace ptx
