// Functions that CUDA C++ has without an include: warps, atomics, integers, rounding, mathematics.
#pragma once

// Warps and barriers.
// The line of a barrier tells divergent threads apart: hence macros.
#define __syncthreads() ((void)emulator::barrier(1, __LINE__))
#define __syncthreads_count(predicate) (emulator::barrier(!!(predicate), __LINE__))
#define __syncthreads_or(predicate) (emulator::barrier(!!(predicate), __LINE__) > 0)
#define __syncthreads_and(predicate) (emulator::barrier(!(predicate), __LINE__) == 0)

inline void __syncwarp(unsigned mask = 0xffffffffu) {
    emulator::exchange(emulator::SYNCHRONIZE, mask, 0, 0);
}
inline unsigned __activemask() { return emulator::lanes_alive(); }

namespace emulator {
template <class T>
inline T shuffle(unsigned mask, T value, int source) {
    return narrow<T>(exchange(SHUFFLE, mask, widen(value), (unsigned)source));
}
}  // namespace emulator

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    int lane = (int)emulator::lane_index;
    return emulator::shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)));
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    int lane = (int)emulator::lane_index, first = lane & ~(width - 1), source = lane - (int)delta;
    return emulator::shuffle(mask, value, source < first ? lane : source);
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    int lane = (int)emulator::lane_index, last = lane | (width - 1), source = lane + (int)delta;
    return emulator::shuffle(mask, value, source > last ? lane : source);
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
    int lane = (int)emulator::lane_index, source = lane ^ lanes;
    return emulator::shuffle(mask, value, source > (lane | (width - 1)) ? lane : source);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return (unsigned)emulator::exchange(emulator::BALLOT, mask, predicate != 0, 0);
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }
template <class T>
inline unsigned __match_any_sync(unsigned mask, T value) {
    return (unsigned)emulator::exchange(emulator::MATCH, mask, emulator::widen(value), 0);
}
#define EMULATOR_REDUCE(name, operation, T)                                                      \
    inline T name(unsigned mask, T value) {                                                      \
        return (T)emulator::exchange(emulator::operation, mask, (uint64_t)(int64_t)value, 0);    \
    }
EMULATOR_REDUCE(__reduce_add_sync, ADD, int)
EMULATOR_REDUCE(__reduce_add_sync, ADD, unsigned)
EMULATOR_REDUCE(__reduce_min_sync, MINIMUM, int)
EMULATOR_REDUCE(__reduce_min_sync, MINIMUM, unsigned)
EMULATOR_REDUCE(__reduce_max_sync, MAXIMUM, int)
EMULATOR_REDUCE(__reduce_max_sync, MAXIMUM, unsigned)
EMULATOR_REDUCE(__reduce_and_sync, AND, unsigned)
EMULATOR_REDUCE(__reduce_or_sync, OR, unsigned)
EMULATOR_REDUCE(__reduce_xor_sync, XOR, unsigned)

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}

// Atomics: threads take turns only where they wait, so plain operations are atomic.
// The address alone decides the type, as the overloads of CUDA do.
namespace emulator {
template <class T>
struct Same {
    typedef T type;
};
}  // namespace emulator
#define EMULATOR_ATOMIC(name, expression)                                                \
    template <class T>                                                                   \
    inline T name(T *address, typename emulator::Same<T>::type value) {                  \
        T old = *address;                                                                \
        *address = (T)(expression);                                                      \
        return old;                                                                      \
    }
EMULATOR_ATOMIC(atomicAdd, old + value)
EMULATOR_ATOMIC(atomicSub, old - value)
EMULATOR_ATOMIC(atomicMax, value > old ? value : old)
EMULATOR_ATOMIC(atomicMin, value < old ? value : old)
EMULATOR_ATOMIC(atomicExch, value)
EMULATOR_ATOMIC(atomicAnd, old & value)
EMULATOR_ATOMIC(atomicOr, old | value)
EMULATOR_ATOMIC(atomicXor, old ^ value)
EMULATOR_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
EMULATOR_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
template <class T>
inline T atomicCAS(T *address, typename emulator::Same<T>::type compare,
                   typename emulator::Same<T>::type value) {
    static_assert(std::is_integral_v<T>, "atomicCAS compares integers");
    T old = *address;
    if (old == compare) *address = value;
    return old;
}

// Loads and stores with hints.
#define EMULATOR_LOAD(name)           \
    template <class T>                \
    inline T name(const T *address) { \
        return *address;              \
    }
EMULATOR_LOAD(__ldg)
EMULATOR_LOAD(__ldca)
EMULATOR_LOAD(__ldcg)
EMULATOR_LOAD(__ldcs)
EMULATOR_LOAD(__ldlu)
EMULATOR_LOAD(__ldcv)
#define EMULATOR_STORE(name)                                                    \
    template <class T>                                                          \
    inline void name(T *address, typename emulator::Same<T>::type value) {      \
        *address = value;                                                       \
    }
EMULATOR_STORE(__stwb)
EMULATOR_STORE(__stcg)
EMULATOR_STORE(__stcs)
EMULATOR_STORE(__stwt)

// Integers.
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz((unsigned)x); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned long long __brevll(unsigned long long x) {
    unsigned long long reversed = 0;
    for (int i = 0; i < 64; i++) reversed |= ((x >> i) & 1) << (63 - i);
    return reversed;
}
inline unsigned __brev(unsigned x) { return (unsigned)(__brevll(x) >> 32); }
inline int __mulhi(int a, int b) { return (int)(((long long)a * b) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) {
    return (unsigned)(((unsigned long long)a * b) >> 32);
}
inline long long __mul64hi(long long a, long long b) { return (long long)(((__int128)a * b) >> 64); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}
inline int __mul24(int a, int b) { return ((a << 8) >> 8) * ((b << 8) >> 8); }
inline unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffff) * (b & 0xffffff); }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((((unsigned long long)high << 32) | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)((((unsigned long long)high << 32) | low) >> (shift & 31));
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    unsigned long long both = ((unsigned long long)b << 32) | a;
    unsigned result = 0;
    for (int i = 0; i < 4; i++)
        result |= (unsigned)((both >> (8 * ((selector >> (4 * i)) & 7))) & 255) << (8 * i);
    return result;
}

// Bits of floating point numbers.
inline int __float_as_int(float x) { return emulator::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return emulator::bits<unsigned>(x); }
inline float __int_as_float(int x) { return emulator::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return emulator::bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulator::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulator::bits<double>(x); }
inline int __double2loint(double x) { return (int)emulator::bits<long long>(x); }
inline int __double2hiint(double x) { return (int)(emulator::bits<long long>(x) >> 32); }
inline double __hiloint2double(int high, int low) {
    return emulator::bits<double>(((unsigned long long)(unsigned)high << 32) | (unsigned)low);
}

// Rounding and conversion. The device saturates where C++ leaves the result open.
namespace emulator {
template <class I>
inline I saturate(double x) {
    if (x != x) return 0;
    const int width = 8 * (int)sizeof(I);
    const bool negative = std::is_signed_v<I>;
    const double limit = ldexp(1.0, negative ? width - 1 : width);
    if (x >= limit) return negative ? (I)(((unsigned long long)1 << (width - 1)) - 1) : (I)~(I)0;
    if (x < (negative ? -limit : 0.0)) return negative ? (I)((unsigned long long)1 << (width - 1)) : 0;
    return (I)x;
}
}  // namespace emulator
#define EMULATOR_TO_INTEGER(prefix, From, suffix, I)                                            \
    inline I prefix##2##suffix##_rn(From x) { return emulator::saturate<I>(rint((double)x)); }  \
    inline I prefix##2##suffix##_rz(From x) { return emulator::saturate<I>(trunc((double)x)); } \
    inline I prefix##2##suffix##_ru(From x) { return emulator::saturate<I>(ceil((double)x)); }  \
    inline I prefix##2##suffix##_rd(From x) { return emulator::saturate<I>(floor((double)x)); }
EMULATOR_TO_INTEGER(__float, float, int, int)
EMULATOR_TO_INTEGER(__float, float, uint, unsigned)
EMULATOR_TO_INTEGER(__float, float, ll, long long)
EMULATOR_TO_INTEGER(__float, float, ull, unsigned long long)
EMULATOR_TO_INTEGER(__double, double, int, int)
EMULATOR_TO_INTEGER(__double, double, uint, unsigned)
EMULATOR_TO_INTEGER(__double, double, ll, long long)
EMULATOR_TO_INTEGER(__double, double, ull, unsigned long long)
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }
inline float __ll2float_rn(long long x) { return (float)x; }
inline float __ull2float_rn(unsigned long long x) { return (float)x; }
inline double __int2double_rn(int x) { return (double)x; }
inline double __uint2double_rn(unsigned x) { return (double)x; }
inline double __ll2double_rn(long long x) { return (double)x; }
inline double __ull2double_rn(unsigned long long x) { return (double)x; }
inline float __double2float_rn(double x) { return (float)x; }

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __frsqrt_rn(float a) { return (float)(1.0 / sqrt((double)a)); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline double __drcp_rn(double a) { return 1.0 / a; }
inline double __dsqrt_rn(double a) { return sqrt(a); }

// Mathematics that C does not have.
inline float rsqrtf(float x) { return (float)(1.0 / sqrt((double)x)); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float rsqrt(float x) { return rsqrtf(x); }
inline float rcbrtf(float x) { return 1.0f / cbrtf(x); }
inline float sinpif(float x) { return (float)sin(M_PI * fmod((double)x, 2.0)); }
inline float cospif(float x) { return (float)cos(M_PI * fmod((double)x, 2.0)); }
inline double sinpi(double x) { return sin(M_PI * fmod(x, 2.0)); }
inline double cospi(double x) { return cos(M_PI * fmod(x, 2.0)); }
inline void sincospif(float x, float *s, float *c) { *s = sinpif(x), *c = cospif(x); }
inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678f); }
inline double normcdf(double x) { return 0.5 * erfc(-x * M_SQRT1_2); }
inline float fdividef(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanf(float x) { return tanf(x); }
inline void __sincosf(float x, float *s, float *c) { *s = sinf(x), *c = cosf(x); }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }

// min and max: a NaN gives way to a number, as on the device.
#define EMULATOR_MINIMUM(T)                                    \
    inline T min(T a, T b) { return b < a ? b : a; }           \
    inline T max(T a, T b) { return a < b ? b : a; }
EMULATOR_MINIMUM(int)
EMULATOR_MINIMUM(unsigned)
EMULATOR_MINIMUM(long)
EMULATOR_MINIMUM(unsigned long)
EMULATOR_MINIMUM(long long)
EMULATOR_MINIMUM(unsigned long long)
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(float a, double b) { return fmin(a, b); }
inline double min(double a, float b) { return fmin(a, b); }
inline double max(float a, double b) { return fmax(a, b); }
inline double max(double a, float b) { return fmax(a, b); }
inline unsigned min(int a, unsigned b) { return min((unsigned)a, b); }
inline unsigned min(unsigned a, int b) { return min(a, (unsigned)b); }
inline unsigned max(int a, unsigned b) { return max((unsigned)a, b); }
inline unsigned max(unsigned a, int b) { return max(a, (unsigned)b); }
#define EMULATOR_MINIMUM_64(A, B, R)                                 \
    inline R min(A a, B b) { return min((R)a, (R)b); }               \
    inline R max(A a, B b) { return max((R)a, (R)b); }
EMULATOR_MINIMUM_64(long, unsigned long, unsigned long)
EMULATOR_MINIMUM_64(unsigned long, long, unsigned long)
EMULATOR_MINIMUM_64(long long, unsigned long long, unsigned long long)
EMULATOR_MINIMUM_64(unsigned long long, long long, unsigned long long)
