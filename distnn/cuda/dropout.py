"""Dropout on a GPU: result and mask by one kernel, with the bits of the CPU."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np

from ..random import threshold
from ..twin import Twin
from .kernels import FLOATS, THREADS, blocks_for, kernel, scalar_types
from .pack import header
from .random import BY_VALUE, IN_MEMORY, PHILOX, WORDS, DeviceDraw

# A thread makes the numbers of one step of the generator, and moves the step's elements together
# where it can.
_FORWARD = """{types}{packs}{philox}
__device__ void element(T x, unsigned int word, unsigned long long threshold, Real scale, T* y,
                        bool* mask) {{
  *mask = word >= threshold;
  *y = (T)((Real)x * (Real)*mask * scale);
}}

extern "C" __global__ void dropout(const T* x, T* y, bool* mask, long long size,
                                   unsigned long long threshold, Real scale,
                                   {draw_parameters}) {{
  {draw_values}
  const bool packed = aligned<{words}>(x) && aligned<{words}>(y) && aligned<{words}>(mask);
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i * {words} < size;
       i += (long long)gridDim.x * blockDim.x) {{
    unsigned int words[{words}];
    philox(seed, worker, draw, i + 1, words);
    long long first = i * {words};
    if (packed && first + {words} <= size) {{
      const Pack<T, {words}> from = pack<{words}>(x + first);
      Pack<T, {words}> to;
      Pack<bool, {words}> kept;
      for (int j = 0; j < {words}; ++j)
        element(from.element[j], words[j], threshold, scale, to.element + j, kept.element + j);
      pack<{words}>(y + first) = to;
      pack<{words}>(mask + first) = kept;
    }} else {{
      for (int j = 0; j < {words} && first + j < size; ++j)
        element(x[first + j], words[j], threshold, scale, y + first + j, mask + first + j);
    }}
  }}
}}
"""

_BACKWARD = """{types}
extern "C" __global__ void dropout_backward(const T* dy, const bool* mask, T* dx, long long size,
                                            Real scale) {{
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < size;
       i += (long long)gridDim.x * blockDim.x)
    dx[i] = (T)((Real)dy[i] * (Real)mask[i] * scale);
}}
"""


class Dropout(Twin):
    """Twin of functions.dropout.Dropout."""

    def forward(self, xp: Any, x: Any, *, p: float, random: DeviceDraw) -> Any:
        y, mask = cupy.empty(x.shape, x.dtype), cupy.empty(x.shape, np.bool_)
        if x.size:
            kernel("dropout", _source(_FORWARD, x.dtype.char, random.passing is IN_MEMORY))(
                blocks_for(-(-x.size // WORDS)), THREADS, x, y, mask, np.int64(x.size),
                np.uint64(threshold(p)), _scale(p, x.dtype), *random.numbers(),
            )  # fmt: skip
        return y, mask

    def backward(self, xp: Any, need: Any, dy: Any, mask: Any, p: float, *, out: Any) -> None:
        if dy.size:
            kernel("dropout_backward", _source(_BACKWARD, dy.dtype.char))(
                blocks_for(dy.size), THREADS, cupy.ascontiguousarray(dy), mask, out.x,
                np.int64(dy.size), _scale(p, dy.dtype),
            )  # fmt: skip


def _scale(p: float, dtype: np.dtype) -> np.floating:
    """1 / (1 - p), rounded to the dtype, as a kernel computes with it."""
    scale = dtype.type(1 / (1 - p))
    return scale if dtype.char == "d" else np.float32(scale)


@functools.cache
def _source(text: str, char: str, in_memory: bool = False) -> str:
    return text.format(
        types=scalar_types(char), packs=header([FLOATS[char]]), philox=PHILOX, words=WORDS,
        **(IN_MEMORY if in_memory else BY_VALUE),
    )  # fmt: skip


def sources() -> Iterator[tuple[str, str]]:
    """(name, CUDA source) of every kernel that can be made here."""
    for char in FLOATS:
        for in_memory in (False, True):
            yield "dropout", _source(_FORWARD, char, in_memory)
        yield "dropout_backward", _source(_BACKWARD, char)
