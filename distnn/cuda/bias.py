"""A bias added to an array that was computed without it, in place; one kernel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from .kernels import FLOATS, kernel, scalar_types

# Threads go along a row, so that neighbours read neighbours; each block takes some rows.
_COLUMNS, _ROWS = 32, 8
_ROWS_OF_BLOCK = 4 * _ROWS

_ADD_BIAS = """{types}
extern "C" __global__ void {name}(T* y, const T* bias, long long rows, long long columns,
                                  long long lengths) {{
  for (long long row = blockIdx.y * (long long)blockDim.y + threadIdx.y; row < rows;
       row += gridDim.y * (long long)blockDim.y)
    for (long long column = blockIdx.x * (long long)blockDim.x + threadIdx.x; column < columns;
         column += gridDim.x * (long long)blockDim.x) {{
      T* place = y + row * columns + column;
      *place = (T)((Real)*place + (Real)bias[{index}]);
    }}
}}
"""
_INDEX = {"add_to_columns": "column", "add_to_planes": "row % lengths"}


def add_to_columns(y: Any, bias: Any) -> None:
    """y[..., l] += bias[l], in place; l may be several axes, as many as bias has."""
    _add("add_to_columns", y, bias, bias.size)


def add_to_planes(y: Any, bias: Any) -> None:
    """y[n, c, ...] += bias[c], in place."""
    _add("add_to_planes", y, bias, math.prod(y.shape[2:]))


def _add(name: str, y: Any, bias: Any, columns: int) -> None:
    if y.size == 0:
        return
    rows = y.size // columns
    grid = (-(-columns // _COLUMNS), min(-(-rows // _ROWS_OF_BLOCK), 65535))
    kernel(name, _source(name, y.dtype.char))(
        grid, (_COLUMNS, _ROWS), y, bias, np.int64(rows), np.int64(columns), np.int64(bias.size)
    )


def _source(name: str, char: str) -> str:
    return _ADD_BIAS.format(types=scalar_types(char), name=name, index=_INDEX[name])


def sources() -> Iterator[tuple[str, str]]:
    """(name, CUDA source) of every kernel that can be made here."""
    for name in _INDEX:
        for char in FLOATS:
            yield name, _source(name, char)
