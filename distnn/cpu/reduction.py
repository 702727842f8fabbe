"""Compiled sums over whole arrays, and over the rows of a matrix."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..threads import parallel_for
from .compiler import kernel

# Elements of a part: sums of parts are added in order, whatever the number of threads.
_PART = 262_144
# Columns whose sums one thread makes at least.
_COLUMNS = 128
# Rows that are added up before they are added to others, as matmul.py does.
_FEW, _MANY = 16, 256


def sum_of_squares(array: np.ndarray) -> float:
    """The sum of squares in float64, of an array of float32 or float64."""
    flat = np.ascontiguousarray(array).reshape(-1)
    found = np.zeros(-(-flat.size // _PART))

    def work(i: int, j: int) -> None:
        found[i // _PART] = _squares(flat[i:j])

    parallel_for(work, flat.size, _PART)
    return float(found.sum())


@partial(kernel, fastmath={"reassoc", "contract"})
def _squares(x):
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(x[i])
    return total


def sum_of_rows(matrix: np.ndarray, out: np.ndarray) -> None:
    """out = the sum of the rows of a matrix, of 16 rows at a time and of 256."""
    rows, columns = matrix.shape
    matrix = np.ascontiguousarray(matrix)
    grain = max(_COLUMNS, _PART // max(1, rows))
    parallel_for(lambda i, j: _add_rows(matrix, i, j, out), columns, grain)


@kernel
def _add_rows(matrix, start, stop, out):
    out[start:stop] = 0
    part = np.empty(stop - start, out.dtype)
    piece = np.empty(stop - start, out.dtype)
    for row in range(matrix.shape[0]):
        x = matrix[row, start:stop]
        if row % _FEW == 0:
            part[:] = x
        else:
            for k in range(part.size):
                part[k] += x[k]
        if row % _FEW == _FEW - 1 or row == matrix.shape[0] - 1:
            if row % _MANY < _FEW:
                piece[:] = 0
            for k in range(part.size):
                piece[k] += part[k]
        if row % _MANY == _MANY - 1 or row == matrix.shape[0] - 1:
            for k in range(part.size):
                out[start + k] += piece[k]
