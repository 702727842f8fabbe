"""Sums of bfloat16 over axes, in float32."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from .. import namespace
from ..function import Spec
from ..namespace import Axes
from ..threads import parallel_for
from . import twin
from .bfloat16 import FLOAT32, bits, is_bfloat16, number, put, wide
from .compiler import kernel
from .twin import CpuTwin

# Elements of a part: sums of parts are added in order, whatever the number of threads.
_PART = 262_144
# Rows that are added one after the other in float32.
_BLOCK = 64


def array_sum(x: np.ndarray, axis: Axes = None, keepdims: bool = False) -> np.ndarray:
    """As namespace.array_sum; of bfloat16 the sums are float32."""
    if not is_bfloat16(x) or x.size < twin.SMALLEST:
        return namespace.array_sum(wide(x), axis, keepdims)
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    summed = sorted(a % x.ndim for a in axes)
    if not summed:
        return wide(x)
    # The last axes that are neighbours, and then the others of what is left.
    last = first = summed.pop()
    while summed and summed[-1] == first - 1:
        first = summed.pop()
    total = _sum(x, first, last + 1)
    total = total.reshape(*x.shape[:first], *[1] * (last + 1 - first), *x.shape[last + 1 :])
    total = namespace.array_sum(total, tuple(summed), True) if summed else total
    if keepdims:
        return total
    gone = {a % x.ndim for a in axes}
    return total.reshape([n for i, n in enumerate(x.shape) if i not in gone])


class Mean(CpuTwin):
    """functions.reduction.Mean."""

    @classmethod
    def suits(cls, function: Any, *specs: Spec | None) -> bool:
        x = specs[0]
        return x is not None and is_bfloat16(x)

    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        function = self.function
        total = array_sum(x, function.axes, function.keepdims)
        count = math.prod(x.shape[i] for i in function.axes)
        y = xp.empty(total.shape, x.dtype) if out is None else out
        return put(np.divide(total, count, dtype=FLOAT32), y)


def _sum(x: np.ndarray, first: int, last: int) -> np.ndarray:
    """Of (A, R, C), where R are the axes from `first` to `last` - 1, the sums (A, C)."""
    blocks = tuple(math.prod(s) for s in (x.shape[:first], x.shape[first:last], x.shape[last:]))
    rows = bits(np.ascontiguousarray(x)).reshape(blocks)
    count, length, columns = blocks
    grain = max(1, _PART // max(1, count * columns))
    if count > 1 or length <= grain:
        found = np.empty((count, columns), FLOAT32)
        grain = max(1, _PART // max(1, length * columns))
        parallel_for(lambda i, j: _add_rows(rows[i:j], found[i:j]), count, grain)
        return found
    parts = np.empty((-(-length // grain), columns), FLOAT32)

    def work(i: int, j: int) -> None:
        _add_rows(rows[:, i:j], parts[i // grain : i // grain + 1])

    parallel_for(work, length, grain)
    return np.add.reduce(parts, 0, dtype=np.float64).astype(FLOAT32)


_sums = partial(kernel, fastmath={"reassoc", "contract"})


@_sums
def _add_rows(x, y):
    """y (A, C) of x (A, R, C). Sums of a block of rows are float32, those of blocks float64."""
    columns = x.shape[2]
    total = np.empty(columns, np.float64)
    block = np.empty(columns, np.float32)
    for a in range(x.shape[0]):
        if columns == 1:
            y[a, 0] = _sum_of_row(x[a].reshape(-1))
            continue
        total[:] = 0
        for start in range(0, x.shape[1], _BLOCK):
            block[:] = 0
            for row in x[a, start : start + _BLOCK]:
                for c in range(columns):
                    block[c] += number(row[c])
            for c in range(columns):
                total[c] += block[c]
        for c in range(columns):
            y[a, c] = total[c]


@_sums
def _sum_of_row(x):
    total = 0.0
    for i in range(x.size):
        total += np.float64(number(x[i]))
    return total
