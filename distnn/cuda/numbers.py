"""C++ that kernels share: numbers of every dtype, and packs of them that may not be aligned.

Half precision is computed in float and rounded at the store; a Wide is what a dtype is computed in.
"""

from __future__ import annotations

import math

from .kernels import FLOATS
from .pack import header, pack_length

_NUMBER = """
template <class T> struct Number;
template <> struct Number<float> {
  typedef float Wide;
  static __device__ float up(float v) { return v; }
  static __device__ float down(float v) { return v; }
};
template <> struct Number<double> {
  typedef double Wide;
  static __device__ double up(double v) { return v; }
  static __device__ double down(double v) { return v; }
};
__device__ inline float exponential(float v) { return expf(v); }
__device__ inline double exponential(double v) { return exp(v); }
__device__ inline float logarithm(float v) { return logf(v); }
__device__ inline double logarithm(double v) { return log(v); }
__device__ inline float square_root(float v) { return sqrtf(v); }
__device__ inline double square_root(double v) { return sqrt(v); }

template <class T, int N> __device__ Pack<T, N> read(const T* x, bool whole) {
  if (whole) return pack<N>(x);
  Pack<T, N> items;
  for (int l = 0; l < N; ++l) items.element[l] = x[l];
  return items;
}
template <class T, int N> __device__ void write(T* y, const Pack<T, N>& items, bool whole) {
  if (whole) {
    pack<N>(y) = items;
  } else {
    for (int l = 0; l < N; ++l) y[l] = items.element[l];
  }
}
"""
# Of floats of two bytes.
_NUMBER_HALF = """
template <> struct Number<__half> {
  typedef float Wide;
  static __device__ float up(__half v) { return __half2float(v); }
  static __device__ __half down(float v) { return __float2half_rn(v); }
};
"""
_NUMBER_BFLOAT = """
template <> struct Number<__nv_bfloat16> {
  typedef float Wide;
  static __device__ float up(__nv_bfloat16 v) { return __bfloat162float(v); }
  static __device__ __nv_bfloat16 down(float v) { return __float2bfloat16_rn(v); }
};
"""


def numbers(dtypes: str) -> str:
    """The text for kernels whose arrays are of `dtypes`: their characters, of kernels.FLOATS."""
    halves = {"e": _NUMBER_HALF, "E": _NUMBER_BFLOAT}
    texts = [text for char, text in halves.items() if char in dtypes]
    return "".join([header(FLOATS[char] for char in dtypes), _NUMBER, *texts])


def lanes_of(length: int, dtype: str) -> int:
    """Elements of a pack: the most, a power of two, of which `length` holds a whole number."""
    return math.gcd(length, pack_length([FLOATS[dtype]]))


def power_of_two(n: int) -> int:
    """The least power of two that is not below n; 1 for n = 0."""
    return 1 << max(n - 1, 0).bit_length()
