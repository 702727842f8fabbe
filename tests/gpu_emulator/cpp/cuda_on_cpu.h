// CUDA C++ as g++ sees it: put before every kernel text, precompiled.
// Threads of a block are fibers (fibers.cpp); all that waits for other threads is declared here.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __shared__ static  // compiler.py has replaced `extern __shared__`
#define __forceinline__ __inline__ __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

#include "vectors.h"

namespace emulator {

extern uint3 thread_index, block_index;
extern dim3 block_size, grid_size;
extern unsigned lane_index;
extern unsigned char dynamic_shared[];

// Why a launch failed; ends the launch.
[[noreturn]] void fail(const char *format, ...);

// What lanes of a warp do together: each brings a value, each takes one away.
enum Operation { SYNCHRONIZE, SHUFFLE, BALLOT, MATCH, ADD, MINIMUM, MAXIMUM, AND, OR, XOR };
uint64_t exchange(Operation operation, unsigned mask, uint64_t value,
                                  unsigned source);
// Waits for the threads of the block; the number of those whose predicate is true.
int barrier(int predicate, int line);
unsigned lanes_alive();

template <class To, class From>
inline To bits(From value) {
    To result;
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    memcpy(&result, &value, sizeof result);
    return result;
}

template <class T>
inline uint64_t widen(T value) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t wide = 0;
    memcpy(&wide, &value, sizeof value);
    return wide;
}

template <class T>
inline T narrow(uint64_t wide) {
    T value;
    memcpy(&value, &wide, sizeof value);
    return value;
}

}  // namespace emulator

#define threadIdx (emulator::thread_index)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)
#define warpSize 32
#define __trap() emulator::fail("__trap() was called")
#undef assert
#define assert(condition) \
    ((condition) ? (void)0 : emulator::fail("assertion failed: %s (line %d)", #condition, __LINE__))

#include "half.h"
#include "intrinsics.h"
#include "parameters.h"

#define __CUDACC__ 1
#define __CUDACC_RTC__ 1
#define __CUDA_ARCH__ 900
#define CUDART_INF_F __builtin_inff()
#define CUDART_NAN_F __builtin_nanf("")
#define CUDART_INF __builtin_inf()
#define CUDART_NAN __builtin_nan("")
