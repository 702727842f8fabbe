"""Channels first and channels last: the same array with its axes in another order in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np

from .kernels import kernel

_TILE = 32  # a tile passes through shared memory: both sides of the copy run along memory
_ROWS = 8  # of a tile, at a time

# Elements are moved, not computed with: only their size matters.
_WORDS = {1: "unsigned char", 2: "unsigned short", 4: "unsigned int", 8: "unsigned long long"}

_SWAP = """
extern "C" __global__ void swap_axes(const {word}* x, {word}* y, long long rows, long long columns,
                                     long long down, long long tiles) {{
  __shared__ {word} tile[{tile}][{tile} + 1];
  long long across = (columns + {tile} - 1) / {tile};
  for (long long t = blockIdx.x; t < tiles; t += gridDim.x) {{
    long long matrix = t / (down * across), place = t % (down * across);
    long long top = place / across * {tile}, left = place % across * {tile};
    long long start = matrix * rows * columns;
    for (int i = threadIdx.y; i < {tile}; i += {height})
      if (top + i < rows && left + threadIdx.x < columns)
        tile[i][threadIdx.x] = x[start + (top + i) * columns + left + threadIdx.x];
    __syncthreads();
    for (int i = threadIdx.y; i < {tile}; i += {height})
      if (left + i < columns && top + threadIdx.x < rows)
        y[start + (left + i) * rows + top + threadIdx.x] = tile[threadIdx.x][i];
    __syncthreads();
  }}
}}
"""


def convert(x: Any, channel_last: bool, out: Any = None) -> Any:
    """(N, C, *S) -> (N, *S, C) if channel_last, else the way back; C-contiguous.

    Without `out` the result is x's own memory where the order of elements is the same.
    """
    batch, rows, columns = _matrices(x, channel_last)
    if rows == 1 or columns == 1:
        same = x.reshape(_converted(x, channel_last))
        if out is None:
            return same
        out[...] = same
        return out
    if out is None:
        out = cupy.empty(_converted(x, channel_last), x.dtype)
    down = -(-rows // _TILE)
    tiles = batch * down * -(-columns // _TILE)
    if tiles:
        kernel("swap_axes", _source(x.dtype.itemsize))(
            min(tiles, 2**31 - 1), (_TILE, _ROWS), x, out,
            np.int64(rows), np.int64(columns), np.int64(down), np.int64(tiles),
        )  # fmt: skip
    return out


def blank(x: Any, channel_last: bool) -> Any:
    """Memory for convert(x, channel_last): x's own where the order of elements is the same."""
    _, rows, columns = _matrices(x, channel_last)
    shape = _converted(x, channel_last)
    return x.reshape(shape) if rows == 1 or columns == 1 else cupy.empty(shape, x.dtype)


def _converted(x: Any, channel_last: bool) -> tuple[int, ...]:
    if channel_last:
        return (x.shape[0], *x.shape[2:], x.shape[1])
    return (x.shape[0], x.shape[-1], *x.shape[1:-1])


def _matrices(x: Any, channel_last: bool) -> tuple[int, int, int]:
    """x as a batch of matrices to be transposed: (N, C, S) or (N, S, C)."""
    channels = x.shape[1] if channel_last else x.shape[-1]
    pixels = math.prod(x.shape[2:] if channel_last else x.shape[1:-1])
    return (x.shape[0], channels, pixels) if channel_last else (x.shape[0], pixels, channels)


def _source(itemsize: int) -> str:
    return _SWAP.format(word=_WORDS[itemsize], tile=_TILE, height=_ROWS)


def sources() -> Iterator[tuple[str, str]]:
    """(name, CUDA source) of every kernel that can be made here."""
    for itemsize in (2, 4, 8):
        yield "swap_axes", _source(itemsize)
