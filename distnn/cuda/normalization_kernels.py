"""Kernels of batch normalization: statistics, the normalization, sums of gradients, the gradient.

Statistics of half precision are float32; those that users see are stored in half, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np

from ..formula import Formula
from ..formula_chain import Chain, Link
from . import channels
from .formula_source import chain_code
from .joined import IDENTITY, Text
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
  struct Items {{ Pack<T, N> x{items}; }};
  static const int lanes = N, arrays = {arrays};
  const T* x;
  const W *mean, *spread;
  int given;  // spread: the variance (given) or the inverse deviation
  W eps;
  const T *beta, *gamma;
  int shifted, scaled;
  bool whole;
  {fields}
  __device__ Constant constant(long long channel) const {{
    const W inverse = given ? 1 / square_root(spread[channel] + eps) : spread[channel];
    return Constant{{mean[channel],
                     scaled ? inverse * Number<T>::up(gamma[channel]) : inverse,
                     shifted ? Number<T>::up(beta[channel]) : (W)0}};
  }}
  __device__ Items load(long long i) const {{ return Items{{read<T, N>(x + i, whole){loads}}}; }}
  __device__ void store(long long i, const Items& items, const Constant* constants) const {{
    {packs}
    for (int l = 0; l < N; ++l) {{
      const Constant& c = constants[l];
      const W value = (Number<T>::up(items.x.element[l]) - c.mean) * c.scale + c.shift;
      {compute}
    }}
    {writes}
  }}
}};
extern "C" __global__ void {name}(const T* x, const W* mean, const W* spread, int given, W eps,
                                  const T* beta, const T* gamma, int shifted,
                                  int scaled{parameters}, {sizes}) {{
  const bool whole = aligned<{lanes}>(x){whole};
  map_columns(Normalize<{lanes}>{{x, mean, spread, given, eps, beta, gamma, shifted, scaled,
                                 whole{arguments}}}, {size_arguments});
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
  struct Items {{ Pack<T, N> x{items}; }};
  static const int lanes = N, arrays = {arrays};
  const T* x;
  const W* mean;
  bool whole;
  {fields}
  __device__ W constant(long long channel) const {{ return mean[channel]; }}
  __device__ Sums begin() const {{ return Sums::empty(); }}
  __device__ Items load(long long i) const {{ return Items{{read<T, N>(x + i, whole){loads}}}; }}
  __device__ void add(Sums& local, W mean, const Items& items, int l, long long) const {{
    {compute}
    local.dy += v0;
    local.product += v0 * (Number<T>::up(items.x.element[l]) - mean);
  }}
  __device__ Sums finish(const Sums& local, W) const {{ return local; }}
}};
"""
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
  struct Items {{ Pack<T, N> x{items}; }};
  static const int lanes = N, arrays = {arrays};
  const T* x;
  const W *mean, *numbers;
  long long channels;
  T* dx;
  int need_dx;
  bool whole;
  {fields}
  __device__ Constant constant(long long channel) const {{
    return Constant{{mean[channel], numbers[channel], numbers[channels + channel],
                     numbers[2 * channels + channel]}};
  }}
  __device__ Items load(long long i) const {{ return Items{{read<T, N>(x + i, whole){loads}}}; }}
  __device__ void store(long long i, const Items& items, const Constant* constants) const {{
    Pack<T, N> of_x;
    {packs}
    for (int l = 0; l < N; ++l) {{
      const Constant& c = constants[l];
      {compute}
      const W centred = Number<T>::up(items.x.element[l]) - c.mean;
      of_x.element[l] = Number<T>::down(v0 * c.scale - centred * c.slope - c.offset);
    }}
    if (need_dx) write<T, N>(dx + i, of_x, whole);
    {writes}
  }}
}};
extern "C" __global__ void {name}(const T* x, const W* mean, const W* numbers, long long channels,
                                  T* dx, int need_dx{parameters}, {sizes}) {{
  const bool whole = aligned<{lanes}>(x) && aligned<{lanes}>(dx){whole};
  map_columns(InputGradient<{lanes}>{{x, mean, numbers, channels, dx, need_dx,
                                     whole{arguments}}}, {size_arguments});
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


def _pieces(text: Text) -> dict[str, object]:
    return {
        "items": text.items,
        "arrays": 1 + len(text.loaded),
        "fields": text.fields,
        "loads": text.loads,
    }


def sums(name: str, dtype: str, chain: Chain, sink_text: str, sink: End) -> Reduction:
    """Sums of dy and of dy (x - mean), for a Sink of Sums, where dy is a chain's first output.

    inputs: x, mean, the chain's arrays and parameters.
    """
    text = Text(chain, dtype, given=0, taken=1, stores=False)
    return Reduction(
        name=f"{name}{text.label}_{dtype}",
        dtype=dtype,
        result=dtype,
        text=types(dtype)
        + text.functions
        + _SUMS.format(compute=text.compute(), **_pieces(text))
        + sink_text,
        state="Sums",
        state_bytes=2 * np.dtype(computing(dtype)).itemsize,
        source=End(
            f"const T* x, const W* mean{text.parameters}",
            "Terms<{lanes}>{x, mean, aligned<{lanes}>(x)"
            f"{text.whole('{lanes}')}{text.arguments}}}",
        ),
        sink=sink,
    )


@functools.lru_cache(maxsize=4096)
def gradient_numbers(dtype: str, chain: Chain) -> Reduction:
    """Gradients of beta and gamma, and three numbers a channel for that of x.

    inputs: x, mean, the chain's arrays and parameters; its first output is the gradient of y.
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
    return sums("gradients", dtype, chain, NUMBERS + _GRADIENTS, sink)


def _map_source(
    name: str, template: str, dtype: str, lanes: int, text: Text, *given: str
) -> tuple[str, str]:
    name = f"{name}{text.label}_{dtype}_{lanes}"
    body = template.format(
        name=name,
        lanes=lanes,
        packs=text.packs,
        compute=text.compute(*given),
        writes=text.writes,
        parameters=text.parameters,
        arguments=text.arguments,
        whole=text.whole(str(lanes)),
        sizes=channels.PARAMETERS,
        size_arguments=channels.ARGUMENTS,
        **_pieces(text),
    )
    return name, numbers(dtype) + channels.MAP + types(dtype) + text.functions + body


def _normalize_source(dtype: str, lanes: int, chain: Chain) -> tuple[str, str]:
    text = Text(chain, dtype, given=1, taken=0, stores=True)
    return _map_source("normalize", _NORMALIZE, dtype, lanes, text, "value")


def _input_gradient_source(dtype: str, lanes: int, chain: Chain) -> tuple[str, str]:
    text = Text(chain, dtype, given=0, taken=1, stores=True)
    return _map_source("input_gradient", _INPUT_GRADIENT, dtype, lanes, text)


@functools.lru_cache(maxsize=4096)
def normalize(dtype: str, lanes: int, chain: Chain) -> Kernel:
    """The outputs of a chain whose first array is y = (x - mean) scale + shift."""
    return kernel(*_normalize_source(dtype, lanes, chain))


@functools.lru_cache(maxsize=4096)
def input_gradient(dtype: str, lanes: int, chain: Chain) -> Kernel:
    """dx = a dy - (x - mean) b - c, where dy is a chain's first output, and its other outputs."""
    return kernel(*_input_gradient_source(dtype, lanes, chain))


@functools.lru_cache(maxsize=4096)
def settings(dtype: str, chain: Chain) -> Callable[..., list]:
    """Of a chain's numbers: its parameters in these kernels."""
    return chain_code(chain, FLOATS[dtype]).settings


# A chain with all that a chain may have, of arrays that are given and not.
_SAMPLE = Chain(
    [
        Link("s", Formula("y + z", ("y", "z"), ()).tree),
        Link("t", Formula("tanh(s) * k", ("s",), ("k",)).tree),
    ],
    ("y", "z"),
    ("k",),
    ("t", "s"),
)


def sources() -> Iterator[tuple[str, str]]:
    """Name and source of a kernel of each kind; others have other numbers of lanes, or chains."""
    for dtype in FLOATS:
        yield from statistics(dtype).sources()
        for chain in (IDENTITY, _SAMPLE):
            yield from gradient_numbers(dtype, chain).sources()
            for lanes in (1, lanes_of(1 << 10, dtype)):
                yield _input_gradient_source(dtype, lanes, chain)
                yield _normalize_source(dtype, lanes, chain)
