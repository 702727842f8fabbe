// float4, int2, ... and dim3, aligned as on the device.
#pragma once

struct uint3 {
    unsigned x, y, z;
};

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef long long longlong;
typedef unsigned long long ulonglong;

#define EMULATOR_VECTORS_124(T)                                                  \
    struct T##1 {                                                                \
        T x;                                                                     \
    };                                                                           \
    struct alignas(2 * sizeof(T)) T##2 {                                         \
        T x, y;                                                                  \
    };                                                                           \
    struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) T##4 {                    \
        T x, y, z, w;                                                            \
    };                                                                           \
    inline T##1 make_##T##1(T x) { return {x}; }                                 \
    inline T##2 make_##T##2(T x, T y) { return {x, y}; }                         \
    inline T##4 make_##T##4(T x, T y, T z, T w) { return {x, y, z, w}; }         \
    inline T##3 make_##T##3(T x, T y, T z) { return {x, y, z}; }
#define EMULATOR_VECTORS(T) \
    struct T##3 {           \
        T x, y, z;          \
    };                      \
    EMULATOR_VECTORS_124(T)

EMULATOR_VECTORS(char)
EMULATOR_VECTORS(uchar)
EMULATOR_VECTORS(short)
EMULATOR_VECTORS(ushort)
EMULATOR_VECTORS(int)
EMULATOR_VECTORS_124(uint)
EMULATOR_VECTORS(longlong)
EMULATOR_VECTORS(ulonglong)
EMULATOR_VECTORS(float)
EMULATOR_VECTORS(double)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
