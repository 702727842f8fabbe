"""What follows a product: a bias, and relu, in place; one kernel."""

from __future__ import annotations

import functools
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
      {value}
    }}
}}
"""
_INDEX = {"add_to_columns": "column", "add_to_planes": "row % lengths"}
_SUM = "*place = (T)((Real)*place + (Real)bias[{index}]);"
# As functions.relu: a NaN passes.
_RELU_OF_SUM = """const Real sum = (Real)*place + (Real)bias[{index}];
      *place = (T)(sum > 0 || sum != sum ? sum : (Real)0);"""


def add_to_columns(y: Any, bias: Any, relu: bool = False) -> None:
    """y[..., l] += bias[l], in place, and relu if wanted; l may be as many axes as bias has."""
    _add("add_to_columns", y, bias, bias.size, relu)


def add_to_planes(y: Any, bias: Any, relu: bool = False) -> None:
    """y[n, c, ...] += bias[c], in place, and relu if wanted."""
    _add("add_to_planes", y, bias, math.prod(y.shape[2:]), relu)


def _add(name: str, y: Any, bias: Any, columns: int, relu: bool) -> None:
    if y.size == 0:
        return
    rows = y.size // columns
    grid = (-(-columns // _COLUMNS), min(-(-rows // _ROWS_OF_BLOCK), 65535))
    kernel(*_source(name, y.dtype.char, relu))(
        grid, (_COLUMNS, _ROWS), y, bias, np.int64(rows), np.int64(columns), np.int64(bias.size)
    )


@functools.cache
def _source(name: str, char: str, relu: bool) -> tuple[str, str]:
    """Name and CUDA source."""
    value = (_RELU_OF_SUM if relu else _SUM).format(index=_INDEX[name])
    name += "_relu" * relu
    return name, _ADD_BIAS.format(types=scalar_types(char), name=name, value=value)


def sources() -> Iterator[tuple[str, str]]:
    """(name, CUDA source) of every kernel that can be made here."""
    for name in _INDEX:
        for char in FLOATS:
            for relu in (False, True):
                yield _source(name, char, relu)
