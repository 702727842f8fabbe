// Half precision and bfloat16: stored in 16 bits, computed in float, rounded to nearest even.
// Sums, products, quotients and roots rounded to float first are still correctly rounded.
#pragma once

namespace emulator {

inline float half_to_float(unsigned short h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31, fraction = h & 1023;
    if (exponent == 31) return bits<float>(sign | 0x7f800000u | (fraction << 13));
    if (exponent != 0) return bits<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
    if (fraction == 0) return bits<float>(sign);
    int shift = __builtin_clz(fraction) - 21;
    return bits<float>(sign | ((uint32_t)(113 - shift) << 23) | (((fraction << shift) & 1023) << 13));
}

// The bits of a double, cut to `precision` bits after the leading one, no exponent below `lowest`.
inline unsigned short round_to_16(double value, int precision, int lowest, int infinite) {
    uint64_t wide = bits<uint64_t>(value);
    unsigned sign = (unsigned)(wide >> 63) << 15;
    unsigned infinity = (unsigned)infinite << precision;
    if (value != value) return 0x7fff;
    int exponent = (int)((wide >> 52) & 2047) - 1023;
    if (exponent == 1024) return (unsigned short)(sign | infinity);
    if (exponent == -1023) return (unsigned short)sign;
    uint64_t fraction = (wide & ((1ull << 52) - 1)) | (1ull << 52);
    int cut = 52 - precision + (exponent < lowest ? lowest - exponent : 0);
    if (cut > 54) return (unsigned short)sign;
    uint64_t kept = fraction >> cut, rest = fraction & ((1ull << cut) - 1), middle = 1ull << (cut - 1);
    if (rest > middle || (rest == middle && (kept & 1))) kept++;
    // `kept` carries its leading one into the exponent, so a carry of the rounding does the same.
    uint64_t result = exponent < lowest ? kept : kept + ((uint64_t)(exponent - lowest) << precision);
    return (unsigned short)(sign | (result >= infinity ? infinity : (unsigned)result));
}

// A float as a double also where arithmetic flushes denormals: conversions do not.
template <class T>
inline double exact(T value) {
    return (double)value;
}
template <>
inline double exact<float>(float value) {
    uint32_t wide = bits<uint32_t>(value);
    if ((wide & 0x7f800000u) != 0) return (double)value;
    double magnitude = (double)(wide & 0x7fffffu) * 0x1p-149;
    return wide >> 31 ? -magnitude : magnitude;
}

inline unsigned short float_to_half(double value) { return round_to_16(value, 10, -14, 31); }

inline float bfloat16_to_float(unsigned short b) { return bits<float>((uint32_t)b << 16); }

inline unsigned short float_to_bfloat16(double value) { return round_to_16(value, 7, -126, 255); }

}  // namespace emulator

#define EMULATOR_16(TYPE, RAW, TO_FLOAT, FROM_FLOAT)                                            \
    struct RAW {                                                                                \
        unsigned short x;                                                                       \
    };                                                                                          \
    struct TYPE {                                                                               \
        unsigned short x;                                                                       \
        TYPE() = default;                                                                       \
        constexpr TYPE(RAW raw) : x(raw.x) {}                                                   \
        template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>>                   \
        TYPE(T value) : x(emulator::FROM_FLOAT(emulator::exact(value))) {}                               \
        operator float() const { return emulator::TO_FLOAT(x); }                                \
        operator RAW() const { return {x}; }                                                    \
        TYPE &operator+=(TYPE b) { return *this = TYPE((float)*this + (float)b); }              \
        TYPE &operator-=(TYPE b) { return *this = TYPE((float)*this - (float)b); }              \
        TYPE &operator*=(TYPE b) { return *this = TYPE((float)*this * (float)b); }              \
        TYPE &operator/=(TYPE b) { return *this = TYPE((float)*this / (float)b); }              \
    };                                                                                          \
    inline TYPE operator+(TYPE a, TYPE b) { return TYPE((float)a + (float)b); }                 \
    inline TYPE operator-(TYPE a, TYPE b) { return TYPE((float)a - (float)b); }                 \
    inline TYPE operator*(TYPE a, TYPE b) { return TYPE((float)a * (float)b); }                 \
    inline TYPE operator/(TYPE a, TYPE b) { return TYPE((float)a / (float)b); }                 \
    inline TYPE operator-(TYPE a) { return RAW{(unsigned short)(a.x ^ 0x8000)}; }               \
    inline TYPE operator+(TYPE a) { return a; }                                                 \
    inline bool operator==(TYPE a, TYPE b) { return (float)a == (float)b; }                     \
    inline bool operator!=(TYPE a, TYPE b) { return (float)a != (float)b; }                     \
    inline bool operator<(TYPE a, TYPE b) { return (float)a < (float)b; }                       \
    inline bool operator<=(TYPE a, TYPE b) { return (float)a <= (float)b; }                     \
    inline bool operator>(TYPE a, TYPE b) { return (float)a > (float)b; }                       \
    inline bool operator>=(TYPE a, TYPE b) { return (float)a >= (float)b; }                     \
    inline TYPE __hadd(TYPE a, TYPE b) { return a + b; }                                        \
    inline TYPE __hsub(TYPE a, TYPE b) { return a - b; }                                        \
    inline TYPE __hmul(TYPE a, TYPE b) { return a * b; }                                        \
    inline TYPE __hdiv(TYPE a, TYPE b) { return a / b; }                                        \
    inline TYPE __hneg(TYPE a) { return -a; }                                                   \
    inline TYPE __habs(TYPE a) { return RAW{(unsigned short)(a.x & 0x7fff)}; }                  \
    inline TYPE __hfma(TYPE a, TYPE b, TYPE c) {                                                \
        return TYPE((double)(float)a * (double)(float)b + (double)(float)c);                    \
    }                                                                                           \
    inline bool __heq(TYPE a, TYPE b) { return a == b; }                                        \
    inline bool __hne(TYPE a, TYPE b) { return a != b; }                                        \
    inline bool __hlt(TYPE a, TYPE b) { return a < b; }                                         \
    inline bool __hle(TYPE a, TYPE b) { return a <= b; }                                        \
    inline bool __hgt(TYPE a, TYPE b) { return a > b; }                                         \
    inline bool __hge(TYPE a, TYPE b) { return a >= b; }                                        \
    inline bool __hisnan(TYPE a) { return a != a; }                                             \
    inline int __hisinf(TYPE a) { return isinf((float)a) ? ((float)a > 0 ? 1 : -1) : 0; }       \
    inline TYPE __hmax(TYPE a, TYPE b) { return TYPE(fmaxf((float)a, (float)b)); }              \
    inline TYPE __hmin(TYPE a, TYPE b) { return TYPE(fminf((float)a, (float)b)); }              \
    inline TYPE hexp(TYPE a) { return TYPE(exp((double)(float)a)); }                            \
    inline TYPE hlog(TYPE a) { return TYPE(log((double)(float)a)); }                            \
    inline TYPE hsqrt(TYPE a) { return TYPE(sqrt((double)(float)a)); }                          \
    inline TYPE hrsqrt(TYPE a) { return TYPE(1 / sqrt((double)(float)a)); }                     \
    inline TYPE hrcp(TYPE a) { return TYPE(1 / (double)(float)a); }

EMULATOR_16(__half, __half_raw, half_to_float, float_to_half)
EMULATOR_16(__nv_bfloat16, __nv_bfloat16_raw, bfloat16_to_float, float_to_bfloat16)
typedef __half half;
typedef __nv_bfloat16 nv_bfloat16;

// half2 and the like.
#define EMULATOR_PAIR(PAIR, ONE)                                                                \
    struct alignas(4) PAIR {                                                                    \
        ONE x, y;                                                                               \
        PAIR() = default;                                                                       \
        PAIR(ONE x, ONE y) : x(x), y(y) {}                                                      \
    };                                                                                          \
    inline PAIR operator+(PAIR a, PAIR b) { return {a.x + b.x, a.y + b.y}; }                    \
    inline PAIR operator-(PAIR a, PAIR b) { return {a.x - b.x, a.y - b.y}; }                    \
    inline PAIR operator*(PAIR a, PAIR b) { return {a.x * b.x, a.y * b.y}; }                    \
    inline PAIR operator/(PAIR a, PAIR b) { return {a.x / b.x, a.y / b.y}; }                    \
    inline PAIR __hadd2(PAIR a, PAIR b) { return a + b; }                                       \
    inline PAIR __hsub2(PAIR a, PAIR b) { return a - b; }                                       \
    inline PAIR __hmul2(PAIR a, PAIR b) { return a * b; }                                       \
    inline PAIR __hmax2(PAIR a, PAIR b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }        \
    inline PAIR __hmin2(PAIR a, PAIR b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }        \
    inline PAIR __hfma2(PAIR a, PAIR b, PAIR c) {                                               \
        return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};                                  \
    }

EMULATOR_PAIR(__half2, __half)
EMULATOR_PAIR(__nv_bfloat162, __nv_bfloat16)
typedef __half2 half2;
typedef __nv_bfloat162 nv_bfloat162;

inline float __half2float(__half h) { return (float)h; }
inline __half __float2half(float f) { return __half(f); }
inline __half __float2half_rn(float f) { return __half(f); }
inline __half __double2half(double d) { return __half(d); }
inline __half __int2half_rn(int i) { return __half((double)i); }
inline int __half2int_rn(__half h) { return (int)rintf((float)h); }
inline int __half2int_rz(__half h) { return (int)(float)h; }
inline unsigned short __half_as_ushort(__half h) { return h.x; }
inline short __half_as_short(__half h) { return (short)h.x; }
inline __half __ushort_as_half(unsigned short u) { return __half_raw{u}; }
inline __half __short_as_half(short u) { return __half_raw{(unsigned short)u}; }
inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __float22half2_rn(float2 f) { return {__half(f.x), __half(f.y)}; }
inline __half2 __float2half2_rn(float f) { return {__half(f), __half(f)}; }
inline float2 __half22float2(__half2 h) { return {(float)h.x, (float)h.y}; }
inline __half __low2half(__half2 h) { return h.x; }
inline __half __high2half(__half2 h) { return h.y; }
inline float __low2float(__half2 h) { return h.x; }
inline float __high2float(__half2 h) { return h.y; }

inline float __bfloat162float(__nv_bfloat16 b) { return (float)b; }
inline __nv_bfloat16 __float2bfloat16(float f) { return __nv_bfloat16(f); }
inline __nv_bfloat16 __float2bfloat16_rn(float f) { return __nv_bfloat16(f); }
inline __nv_bfloat16 __double2bfloat16(double d) { return __nv_bfloat16(d); }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 b) { return b.x; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u) { return __nv_bfloat16_raw{u}; }
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 f) { return {f.x, f.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 b) { return {(float)b.x, (float)b.y}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 b) { return b.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 b) { return b.y; }
inline float __low2float(__nv_bfloat162 b) { return b.x; }
inline float __high2float(__nv_bfloat162 b) { return b.y; }
