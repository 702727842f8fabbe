"""Kernels of batch normalization: statistics, the normalization, sums of gradients, the gradient.

Statistics of half precision are float32; those that users see are stored in half, too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np

from . import channels
from .kernels import FLOATS, TYPES, Kernel, computing, kernel
from .numbers import lanes_of, numbers
from .tree import End, Reduction

# Mean and sum of squares about it, of n elements. A thread adds up differences to the first of its
# elements, which are of the size of the deviations and so lose nothing to a large mean; what it
# has found is merged with what others have by Chan, Golub & LeVeque's formula ("Updating formulae
# and a pairwise algorithm for computing sample variances", 1979).
_MOMENTS = """
struct Moments {
  double mean;
  W n, squares;
  static __device__ Moments empty() { return Moments{0, 0, 0}; }
};
__device__ inline Moments combine(const Moments& a, const Moments& b) {
  if (b.n == 0) return a;
  if (a.n == 0) return b;
  const W n = a.n + b.n, apart = (W)(b.mean - a.mean), part = b.n / n;
  return Moments{a.mean + (double)(apart * part), n,
                 a.squares + b.squares + apart * apart * (a.n * part)};
}
template <int N> struct Elements {
  typedef Moments State;
  struct Local { W n, first, sum, squares; };
  typedef int Constant;
  typedef Pack<T, N> Items;
  static const int lanes = N, arrays = 1;
  const T* x;
  bool whole;
  __device__ int constant(long long) const { return 0; }
  __device__ Local begin() const { return Local{0, 0, 0, 0}; }
  __device__ Items load(long long i) const { return read<T, N>(x + i, whole); }
  __device__ void add(Local& local, int, const Items& items, int l, long long) const {
    const W value = Number<T>::up(items.element[l]);
    if (local.n == 0) local.first = value;
    const W difference = value - local.first;
    local.n += 1;
    local.sum += difference;
    local.squares += difference * difference;
  }
  __device__ Moments finish(const Local& local, int) const {
    if (local.n == 0) return Moments::empty();
    const W mean = local.sum / local.n, squares = local.squares - local.sum * mean;
    return Moments{(double)local.first + (double)mean, local.n, squares < 0 ? (W)0 : squares};
  }
};
"""
_STATISTICS = """
// The statistics of a channel, and the new running ones.
struct Statistics {
  double count, eps, unbiased;
  W decay, fresh;
  const T *old_mean, *old_variance;
  T *mean, *variance;
  W *centre, *inverse, *new_mean, *new_variance;
  __device__ void store(long long i, const Moments& found) const {
    typedef Number<T> N;
    const W m = (W)found.mean, v = (W)((double)found.squares / count);
    mean[i] = N::down(m);
    variance[i] = N::down(v);
    centre[i] = m;
    inverse[i] = (W)(1 / sqrt((double)v + eps));
    new_mean[i] = decay * N::up(old_mean[i]) + fresh * m;
    new_variance[i] = decay * N::up(old_variance[i]) + (W)unbiased * v;
  }
};
"""
_NORMALIZE = """
template <int N> struct Normalize {{
  struct Constant {{ W mean, scale, shift; }};
  struct Items {{ Pack<T, N> x{z_item}; }};
  static const int lanes = N, arrays = {arrays};
  const T* x;
  const W *mean, *spread;
  int given;  // spread: the variance (given) or the inverse deviation
  W eps;
  const T *beta, *gamma;
  int shifted, scaled;
  T* y;
  {z_field}
  bool whole;
  __device__ Constant constant(long long channel) const {{
    const W inverse = given ? 1 / square_root(spread[channel] + eps) : spread[channel];
    return Constant{{mean[channel],
                     scaled ? inverse * Number<T>::up(gamma[channel]) : inverse,
                     shifted ? Number<T>::up(beta[channel]) : (W)0}};
  }}
  __device__ Items load(long long i) const {{ return Items{{read<T, N>(x + i, whole){z_load}}}; }}
  __device__ void store(long long i, const Items& items, const Constant* constants) const {{
    Pack<T, N> result;
    for (int l = 0; l < N; ++l) {{
      const Constant& c = constants[l];
      W value = (Number<T>::up(items.x.element[l]) - c.mean) * c.scale + c.shift;
      {after}
      result.element[l] = Number<T>::down(value);
    }}
    write<T, N>(y + i, result, whole);
  }}
}};
extern "C" __global__ void {name}(const T* x, const W* mean, const W* spread, int given, W eps,
                                  const T* beta, const T* gamma, int shifted, int scaled, T* y,
                                  {z_parameter}{parameters}) {{
  const bool whole = aligned<{lanes}>(x) && aligned<{lanes}>(y){z_whole};
  map_columns(Normalize<{lanes}>{{x, mean, spread, given, eps, beta, gamma, shifted, scaled, y,
                                 {z_argument}whole}}, {arguments});
}}
"""
# Sums over a channel: of dy, and of dy (x - mean).
_SUMS = """
struct Sums {{
  W dy, product;
  static __device__ Sums empty() {{ return Sums{{0, 0}}; }}
}};
__device__ inline Sums combine(const Sums& a, const Sums& b) {{
  return Sums{{a.dy + b.dy, a.product + b.product}};
}}
template <int N> struct Terms {{
  typedef Sums State;
  typedef Sums Local;
  typedef W Constant;
  struct Items {{ Pack<T, N> dy, x{y_item}; }};
  static const int lanes = N, arrays = 2;
  const T *dy, *x;
  const W* mean;
  {y_field}
  bool whole;
  __device__ W constant(long long channel) const {{ return mean[channel]; }}
  __device__ Sums begin() const {{ return Sums::empty(); }}
  __device__ Items load(long long i) const {{
    return Items{{read<T, N>(dy + i, whole), read<T, N>(x + i, whole){y_load}}};
  }}
  __device__ void add(Sums& local, W mean, const Items& items, int l, long long) const {{
    const W dy = {passed};
    local.dy += dy;
    local.product += dy * (Number<T>::up(items.x.element[l]) - mean);
  }}
  __device__ Sums finish(const Sums& local, W) const {{ return local; }}
}};
"""
_PASSED = "Number<T>::up(items.dy.element[l])"
_RELU_PASSED = f"Number<T>::up(items.y.element[l]) > 0 ? {_PASSED} : (W)0"
# dx = a dy - (x - mean) b - c with three numbers a channel, out of sums over a batch of `count`.
NUMBERS = """
__device__ inline void set_numbers(W* numbers, long long channels, long long i, double count,
                                   double deviation, W factor, double dy, double product,
                                   double dmean, double dvariance) {
  const double scale = factor;  // rounded already: dx of a single element is exactly 0
  numbers[i] = factor;
  numbers[channels + i] = (W)(scale * deviation * product / count - 2 / count * dvariance);
  numbers[2 * channels + i] = (W)(scale * dy / count - dmean / count);
}
"""
_GRADIENTS = """
// dbeta and dgamma, and the numbers of dx.
struct Gradients {
  const W* inverse;
  const T *gamma, *dmean, *dvariance;
  int scaled, with_dmean, with_dvariance;
  double count;
  long long channels;
  T *dbeta, *dgamma;
  int need_beta, need_gamma;
  W* numbers;
  __device__ void store(long long i, const Sums& sums) const {
    typedef Number<T> N;
    const double deviation = inverse[i], product = (double)sums.product * deviation;
    const W scale = scaled ? inverse[i] * N::up(gamma[i]) : inverse[i];
    set_numbers(numbers, channels, i, count, deviation, scale, (double)sums.dy, product,
                with_dmean ? (double)N::up(dmean[i]) : 0,
                with_dvariance ? (double)N::up(dvariance[i]) : 0);
    if (need_beta) dbeta[i] = N::down(sums.dy);
    if (need_gamma) dgamma[i] = N::down((W)product);
  }
};
"""
_INPUT_GRADIENT = """
template <int N> struct InputGradient {{
  struct Constant {{ W mean, scale, slope, offset; }};
  struct Items {{ Pack<T, N> dy, x{y_item}; }};
  static const int lanes = N, arrays = 2;
  const T *dy, *x;
  const W* mean;
  {y_field}
  const W* numbers;
  long long channels;
  T *dx, *dz;
  int need_dx, need_dz;
  bool whole;
  __device__ Constant constant(long long channel) const {{
    return Constant{{mean[channel], numbers[channel], numbers[channels + channel],
                     numbers[2 * channels + channel]}};
  }}
  __device__ Items load(long long i) const {{
    return Items{{read<T, N>(dy + i, whole), read<T, N>(x + i, whole){y_load}}};
  }}
  __device__ void store(long long i, const Items& items, const Constant* constants) const {{
    Pack<T, N> of_x, of_z;
    for (int l = 0; l < N; ++l) {{
      const Constant& c = constants[l];
      const W dy = {passed};
      const W centred = Number<T>::up(items.x.element[l]) - c.mean;
      of_x.element[l] = Number<T>::down(dy * c.scale - centred * c.slope - c.offset);
      of_z.element[l] = Number<T>::down(dy);
    }}
    if (need_dx) write<T, N>(dx + i, of_x, whole);
    if (need_dz) write<T, N>(dz + i, of_z, whole);
  }}
}};
extern "C" __global__ void {name}(const T* dy, const T* x, const W* mean, {y_parameter}
                                  const W* numbers, long long channels, T* dx, T* dz, int need_dx,
                                  int need_dz, {parameters}) {{
  const bool whole = aligned<{lanes}>(dy) && aligned<{lanes}>(x){y_whole} &&
                     aligned<{lanes}>(dx) && aligned<{lanes}>(dz);
  map_columns(InputGradient<{lanes}>{{dy, x, mean, {y_argument}numbers, channels, dx, dz, need_dx,
                                     need_dz, whole}}, {arguments});
}}
"""


def types(dtype: str) -> str:
    """T, the numbers of the arrays, and W, those that they are computed in."""
    return f"\ntypedef {TYPES[dtype]} T;\ntypedef {TYPES[computing(dtype)]} W;\n"


def moments(name: str, dtype: str, sink_text: str, sink: End) -> Reduction:
    """Count, mean and sum of squares of each channel, for a Sink of Moments; input: x."""
    return Reduction(
        name=f"{name}_{dtype}",
        dtype=dtype,
        result=dtype,
        text=types(dtype) + _MOMENTS + sink_text,
        state="Moments",
        state_bytes=8 + 2 * np.dtype(computing(dtype)).itemsize,
        source=End("const T* x", "Elements<{lanes}>{x, aligned<{lanes}>(x)}"),
        sink=sink,
    )


@functools.cache
def statistics(dtype: str) -> Reduction:
    """Mean, variance, inverse deviation and new running statistics of each channel.

    input: x.
    outputs: count, eps, (1 - decay_rate) count / (count - 1), decay_rate, 1 - decay_rate, the
        running mean and variance, and the six results.
    """
    sink = End(
        "double count, double eps, double unbiased, W decay, "
        "W fresh, const T* old_mean, const T* old_variance, T* mean, T* variance, W* centre, "
        "W* inverse, W* new_mean, W* new_variance",
        "Statistics{count, eps, unbiased, decay, fresh, old_mean, old_variance, "
        "mean, variance, centre, inverse, new_mean, new_variance}",
    )
    return moments("statistics", dtype, _STATISTICS, sink)


def sums(name: str, dtype: str, relu: bool, sink_text: str, sink: End) -> Reduction:
    """Sums of dy and of dy (x - mean), for a Sink of Sums; inputs: dy, x, mean, y before relu."""
    y = ", y" * relu
    return Reduction(
        name=f"{name}{'_relu' * relu}_{dtype}",
        dtype=dtype,
        result=dtype,
        text=types(dtype) + _with_mask(_SUMS, relu) + sink_text,
        state="Sums",
        state_bytes=2 * np.dtype(computing(dtype)).itemsize,
        source=End(
            f"const T* dy, const T* x, const W* mean{', const T* y' * relu}",
            f"Terms<{{lanes}}>{{dy, x, mean{y}, aligned<{{lanes}}>(dy) && "
            f"aligned<{{lanes}}>(x){' && aligned<{lanes}>(y)' * relu}}}",
        ),
        sink=sink,
    )


def _with_mask(text: str, relu: bool, **options: str) -> str:
    """`text` with what reads y, the result of relu, where there is one."""
    return text.format(
        y_item=", y" * relu,
        y_field="const T* y;" * relu,
        y_load=", read<T, N>(y + i, whole)" * relu,
        y_parameter="const T* y," * relu,
        y_argument="y, " * relu,
        y_whole=f" && aligned<{options.get('lanes')}>(y)" * relu,
        passed=_RELU_PASSED if relu else _PASSED,
        **options,
    )


@functools.cache
def gradient_numbers(dtype: str, relu: bool) -> Reduction:
    """Gradients of beta and gamma, and three numbers a channel for that of x.

    inputs: dy, x, mean, and y where relu follows.
    outputs: inverse deviation, gamma, dmean, dvariance, whether there are these three, count, C,
        dbeta, dgamma, whether these are wanted, and the numbers.
    """
    sink = End(
        "const W* inverse, const T* gamma, const T* dmean, const T* dvariance, int scaled, "
        "int with_dmean, int with_dvariance, double count, long long channels, T* dbeta, "
        "T* dgamma, int need_beta, int need_gamma, W* numbers",
        "Gradients{inverse, gamma, dmean, dvariance, scaled, with_dmean, with_dvariance, count, "
        "channels, dbeta, dgamma, need_beta, need_gamma, numbers}",
    )
    return sums("gradients", dtype, relu, NUMBERS + _GRADIENTS, sink)


def _normalize_source(dtype: str, lanes: int, relu: bool, added: bool) -> tuple[str, str]:
    name = f"normalize{'_add' * added}{'_relu' * relu}_{dtype}_{lanes}"
    after = "value = value + Number<T>::up(items.z.element[l]);" * added
    after += "if (value <= 0) value = 0;" * relu
    text = _NORMALIZE.format(
        name=name,
        lanes=lanes,
        parameters=channels.PARAMETERS,
        arguments=channels.ARGUMENTS,
        after=after,
        arrays=1 + added,
        z_item=", z" * added,
        z_field="const T* z;" * added,
        z_load=", read<T, N>(z + i, whole)" * added,
        z_parameter="const T* z, " * added,
        z_argument="z, " * added,
        z_whole=f" && aligned<{lanes}>(z)" * added,
    )
    return name, numbers(dtype) + channels.MAP + types(dtype) + text


@functools.cache
def normalize(dtype: str, lanes: int, relu: bool, added: bool) -> Kernel:
    """y = (x - mean) scale + shift, then + z and relu where wanted."""
    return kernel(*_normalize_source(dtype, lanes, relu, added))


def _input_gradient_source(dtype: str, lanes: int, relu: bool) -> tuple[str, str]:
    name = f"input_gradient{'_relu' * relu}_{dtype}_{lanes}"
    text = _with_mask(
        _INPUT_GRADIENT,
        relu,
        name=name,
        lanes=str(lanes),
        parameters=channels.PARAMETERS,
        arguments=channels.ARGUMENTS,
    )
    return name, numbers(dtype) + channels.MAP + types(dtype) + text


@functools.cache
def input_gradient(dtype: str, lanes: int, relu: bool) -> Kernel:
    """dx = a dy - (x - mean) b - c, and dz = dy, where dy is what relu lets through."""
    return kernel(*_input_gradient_source(dtype, lanes, relu))


def sources() -> Iterator[tuple[str, str]]:
    """Name and source of a kernel of each kind; others have other numbers of lanes."""
    for dtype in FLOATS:
        yield from statistics(dtype).sources()
        for relu in (False, True):
            yield from gradient_numbers(dtype, relu).sources()
            for lanes in (1, lanes_of(1 << 10, dtype)):
                yield _input_gradient_source(dtype, lanes, relu)
                for added in (False, True)[: 1 + relu]:
                    yield _normalize_source(dtype, lanes, relu, added)
