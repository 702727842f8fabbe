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
    """out = the sum of the rows of a matrix of float32 or float64, in float64 and in order."""
    rows, columns = matrix.shape
    matrix = np.ascontiguousarray(matrix)
    grain = max(_COLUMNS, _PART // max(1, rows))
    parallel_for(lambda i, j: _add_rows(matrix, i, j, out), columns, grain)


@kernel
def _add_rows(matrix, start, stop, out):
    total = np.zeros(stop - start)
    for row in range(matrix.shape[0]):
        part = matrix[row, start:stop]
        for k in range(total.size):
            total[k] += np.float64(part[k])
    for k in range(total.size):
        out[start + k] = total[k]
