"""Batch normalization over the batches of all ranks: what they exchange never visits the host."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np

from ..formula_chain import Chain, Joined
from ..twin import Twin
from .batch_normalization import (
    Layout,
    alone,
    input_gradient,
    memory,
    normalize,
    optional,
    parameters,
)
from .joined import IDENTITY
from .kernels import FLOATS, THREADS, Kernel, blocks_for, computing, kernel
from .normalization_kernels import NUMBERS, moments, sums, types
from .numbers import numbers
from .tree import End, Reduction

# Count, sums, and sums of squares about the mean, which is rounded to W: what
# functions/sync_batch_normalization.py exchanges.
_LOCAL_MOMENTS = """
struct Message {
  long long channels;
  double* message;
  __device__ void store(long long i, const Moments& found) const {
    const double n = (double)found.n, mean = found.mean;
    const double apart = mean - (double)(W)mean;
    if (i == 0) message[0] = n;
    message[1 + i] = mean * n;
    message[1 + channels + i] = (double)found.squares + n * apart * apart;
  }
};
"""
_MERGE = """
__device__ inline double rounded(double value) {{ return (double)(W)value; }}
extern "C" __global__ void {name}(const double* messages, long long ranks, long long channels,
                                  double eps, double decay, const T* old_mean,
                                  const T* old_variance, T* mean, T* variance, W* centre,
                                  W* inverse, double* count, W* new_mean, W* new_variance) {{
  typedef Number<T> N;
  const long long step = 1 + 2 * channels;
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < channels;
       i += (long long)blockDim.x * gridDim.x) {{
    double all = 0, total = 0, squares = 0;
    for (long long r = 0; r < ranks; ++r) {{
      all += messages[r * step];
      total += messages[r * step + 1 + i];
    }}
    const double wanted = rounded(total / all);
    for (long long r = 0; r < ranks; ++r) {{
      const double n = messages[r * step], sum = messages[r * step + 1 + i];
      if (n > 0) {{
        const double centre = rounded(sum / n);
        squares += messages[r * step + 1 + channels + i] +
                   n * (centre - wanted) * (2 * sum / n - wanted - centre);
      }}
    }}
    const double spread = rounded(squares / all), unbiased = all / (all > 2 ? all - 1 : 1);
    mean[i] = N::down((W)wanted);
    variance[i] = N::down((W)spread);
    centre[i] = (W)wanted;
    inverse[i] = (W)(1 / sqrt(spread + eps));
    if (i == 0) count[0] = all;
    new_mean[i] = (W)decay * N::up(old_mean[i]) + (W)(1 - decay) * (W)wanted;
    new_variance[i] =
        (W)decay * N::up(old_variance[i]) + (W)((1 - decay) * unbiased) * (W)spread;
  }}
}}
"""
_LOCAL_SUMS = """
// Sums of dy and of dy x': the first and the second row of an array.
struct Message {
  const W* inverse;
  long long channels;
  double* message;
  __device__ void store(long long i, const Sums& found) const {
    message[i] = (double)found.dy;
    message[channels + i] = (double)found.product * (double)inverse[i];
  }
};
"""
# The rows of `message` are sums over all ranks of dy, dy x', dmean and dvariance.
_NUMBERS = """
extern "C" __global__ void {name}(const double* message, const double* count, const W* inverse,
                                  const T* gamma, int scaled, long long channels, W* numbers) {{
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < channels;
       i += (long long)blockDim.x * gridDim.x) {{
    const W deviation = inverse[i];
    const W scale = scaled ? deviation * Number<T>::up(gamma[i]) : deviation;
    set_numbers(numbers, channels, i, count[0], deviation, scale, message[i],
                message[channels + i], message[2 * channels + i], message[3 * channels + i]);
  }}
}}
"""


@functools.cache
def _local_moments(dtype: str) -> Reduction:
    """input: x. outputs: C, the message."""
    sink = End("long long channels, double* message", "Message{channels, message}")
    return moments("local_moments", dtype, _LOCAL_MOMENTS, sink)


@functools.lru_cache(maxsize=4096)
def _local_sums(dtype: str, chain: Chain) -> Reduction:
    """inputs: as of normalization_kernels.sums. outputs: inverse deviation, C, the message."""
    sink = End(
        "const W* inverse, long long channels, double* message",
        "Message{inverse, channels, message}",
    )
    return sums("local_sums", dtype, chain, _LOCAL_SUMS, sink)


def _source(name: str, text: str, dtype: str) -> tuple[str, str]:
    name = f"{name}_{dtype}"
    return name, numbers(dtype) + types(dtype) + text.format(name=name)


# NUMBERS is plain text, what follows it a format.
_SET_NUMBERS = NUMBERS.replace("{", "{{").replace("}", "}}") + _NUMBERS


@functools.cache
def _merge(dtype: str) -> Kernel:
    return kernel(*_source("merge_moments", _MERGE, dtype))


@functools.cache
def _numbers(dtype: str) -> Kernel:
    return kernel(*_source("gradient_numbers", _SET_NUMBERS, dtype))


def sources() -> Iterator[tuple[str, str]]:
    """Name and source of a kernel of each kind; others have other numbers of lanes."""
    for dtype in FLOATS:
        yield from _local_moments(dtype).sources()
        yield from _local_sums(dtype, IDENTITY).sources()
        yield _source("merge_moments", _MERGE, dtype)
        yield _source("gradient_numbers", _SET_NUMBERS, dtype)


class SyncBatchNormalization(Twin):
    """sync_batch_normalization.SyncBatchNormalization; it takes every chain (see fusion.py)."""

    def forward(
        self,
        xp: Any,
        x: Any,
        beta: Any,
        gamma: Any,
        mean: Any,
        variance: Any,
        *,
        decay_rate: float,
        eps: float,
        out: Any = None,
    ) -> Any:
        inputs = (x, beta, gamma, mean, variance)
        y, *results = memory(self.function, *inputs) if out is None else out
        joined, options = Joined(IDENTITY, (), (), (y,)), {"decay_rate": decay_rate, "eps": eps}
        _, *results = self.forward_joined(
            xp, *inputs, joined=joined, out=(None, *results), **options
        )
        return (y, *results)

    def joins(self, chain: Chain) -> bool:
        return True

    def forward_joined(
        self,
        xp: Any,
        x: Any,
        beta: Any,
        gamma: Any,
        mean: Any,
        variance: Any,
        *,
        joined: Joined,
        decay_rate: float,
        eps: float,
        out: Any,
    ) -> Any:
        shape, dtype = mean.shape, x.dtype.char
        _, *results = out
        updated = [cupy.empty(shape, computing(dtype)) for _ in range(2)]
        layout = Layout(self.function, x.shape)
        x = layout.turned(x)
        c = layout.blocks[1]
        mine = cupy.zeros(1 + 2 * c, np.float64)
        if x.size:
            _local_moments(dtype).channels((x,), (np.int64(c), mine), *layout.blocks)
        found = self.function.gather(shape, mine, x.shape)
        _merge(dtype)(
            blocks_for(c), THREADS, found, np.int64(len(found)), np.int64(c), np.float64(eps),
            np.float64(decay_rate), mean, variance, *results, *updated,
        )  # fmt: skip
        *_, centre, inverse, _ = results
        normalize(layout, x, centre, inverse, beta, gamma, joined)
        return (None, *results, *updated)

    def backward(
        self,
        xp: Any,
        need: Any,
        dy: Any,
        dbatch_mean: Any,
        dbatch_variance: Any,
        x: Any,
        gamma: Any,
        centre: Any,
        inverse_deviation: Any,
        count: Any,
        *,
        out: Any,
    ) -> None:
        self.backward_joined(
            xp, need, None, dbatch_mean, dbatch_variance, x, gamma, centre, inverse_deviation,
            count, joined=alone(dy, x), out=out,
        )  # fmt: skip

    def joins_backward(self, chain: Chain) -> bool:
        return True

    def backward_joined(
        self,
        xp: Any,
        need: Any,
        dy: None,
        dbatch_mean: Any,
        dbatch_variance: Any,
        x: Any,
        gamma: Any,
        centre: Any,
        inverse_deviation: Any,
        count: Any,
        *,
        joined: Joined,
        out: Any,
    ) -> None:
        shape, dtype = centre.shape, x.dtype.char
        layout = Layout(self.function, x.shape)
        x = layout.turned(x)
        joined = joined._replace(arrays=[layout.turned(a) for a in joined.arrays])
        c = layout.blocks[1]
        mine = cupy.zeros((4, c), np.float64)
        if x.size:
            inputs = (x, centre, *joined.arrays, *parameters(dtype, joined))
            outputs = (inverse_deviation, np.int64(c), mine)
            _local_sums(dtype, joined.chain).channels(inputs, outputs, *layout.blocks)
        if need.beta:
            out.beta[...] = mine[0].reshape(shape)
        if need.gamma:
            out.gamma[...] = mine[1].reshape(shape)
        of_channels = cupy.empty(3 * c, computing(dtype))
        if need.x:
            for row, outer in ((2, dbatch_mean), (3, dbatch_variance)):
                if outer is not None:
                    mine[row] = outer.reshape(-1)
            self.function.ranks.sum(f"{self.name} backward", shape, mine)
            _numbers(dtype)(
                blocks_for(c), THREADS, mine, count, inverse_deviation,
                *optional(x, gamma), np.int64(c), of_channels,
            )  # fmt: skip
        if need.x or joined.outs:
            dx = out.x if need.x else None
            input_gradient(layout, x, centre, of_channels, dx, joined)
