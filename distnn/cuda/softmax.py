"""Softmax, its logarithm and its cross entropy: one launch each way, whatever the class axis."""

from __future__ import annotations

import math
from typing import Any

import cupy
import numpy as np

from ..functions.softmax import check_labels
from ..twin import Twin
from . import softmax_kernels as kernels
from .kernels import computing


def _blocks(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


class _Softmax(Twin):
    """What softmax and its logarithm share."""

    row_map: kernels.RowMap
    gradient: kernels.RowMap

    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        y = cupy.empty_like(x) if out is None else out
        if x.size:
            self.row_map.run(x.dtype.char, _blocks(x.shape, self.function.axis), x, y)
        return y

    def backward(self, xp: Any, need: Any, dy: Any, y: Any, *, out: Any) -> None:
        if y.size:
            blocks = _blocks(y.shape, self.function.axis)
            self.gradient.run(y.dtype.char, blocks, y, dy, out.x)


class Softmax(_Softmax):
    """softmax.Softmax."""

    row_map = kernels.SOFTMAX
    gradient = kernels.SOFTMAX_GRADIENT


class LogSoftmax(_Softmax):
    """softmax.LogSoftmax."""

    row_map = kernels.LOG_SOFTMAX
    gradient = kernels.LOG_SOFTMAX_GRADIENT


class SoftmaxCrossEntropy(Twin):
    """softmax.SoftmaxCrossEntropy. Labels out of range are reported, and not followed."""

    def forward(self, xp: Any, x: Any, target: Any, *, out: Any = None) -> Any:
        classes, dtype = x.shape[self.function.axis], x.dtype.char
        check_labels("softmax_cross_entropy", xp, target, classes)
        if out is None:
            dtypes = x.dtype, x.dtype, computing(dtype)
            out = tuple(cupy.empty(target.shape, each) for each in dtypes)
        if x.size:
            blocks = _blocks(x.shape, self.function.axis)
            kernels.CROSS_ENTROPY.run(dtype, blocks, x, target, *out, np.int64(classes))
        return out

    def backward(
        self, xp: Any, need: Any, dy: Any, x: Any, target: Any, peak: Any, total: Any, *, out: Any
    ) -> None:
        if x.size:
            blocks = _blocks(x.shape, self.function.axis)
            arrays = (x, dy, target, peak, total, out.x)
            kernels.CROSS_ENTROPY_GRADIENT.run(x.dtype.char, blocks, *arrays)
