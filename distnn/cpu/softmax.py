"""Compiled softmax and cross entropy of float32 along the last axis; the rest is NumPy's."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types

from ..function import Spec
from ..functions.softmax import check_labels
from ..threads import parallel_for
from .compiler import kernel
from .mathematics import exp
from .twin import CpuTwin

intrinsic: Any = numba.extending.intrinsic

# Elements of a part that one thread works on.
_PART = 32_768

# Sums may be made in any order, which is the compiler's and the same in every run.
_rows = partial(kernel, fastmath={"reassoc", "contract"})


class _Softmax(CpuTwin):
    """What they share: rows of the last axis."""

    @classmethod
    def suits(cls, function: Any, *specs: Spec | None) -> bool:
        x = specs[0]
        return x is not None and x.dtype.char == "f" and function.axis == len(x.shape) - 1


def _map(body: Any, x: np.ndarray, *others: np.ndarray) -> list[Any]:
    """body(rows, *others) for parts of the rows of x, and what it returns; others have as many."""
    length = x.shape[-1]
    if x.ndim == 2 and x.size <= _PART and all(a.flags.c_contiguous for a in (x, *others)):
        return [body(x, *others)]
    count = x.size // max(1, length)
    arrays = [np.ascontiguousarray(a).reshape(count, -1) for a in (x, *others)]
    found: list[Any] = []
    parallel_for(
        lambda i, j: found.append(body(*[a[i:j] for a in arrays])),
        count,
        max(1, _PART // max(1, length)),
    )
    return found


class Softmax(_Softmax):
    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        y = xp.empty(x.shape, x.dtype) if out is None else out
        _map(_softmax, x, y)
        return y

    def backward(self, xp: Any, need: Any, dy: Any, y: Any, *, out: Any) -> None:
        _map(_softmax_gradient, dy, y, out.x)


class LogSoftmax(_Softmax):
    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        y = xp.empty(x.shape, x.dtype) if out is None else out
        _map(_log_softmax, x, y)
        return y

    def backward(self, xp: Any, need: Any, dy: Any, y: Any, *, out: Any) -> None:
        _map(_log_softmax_gradient, dy, y, out.x)


class SoftmaxCrossEntropy(_Softmax):
    def forward(self, xp: Any, x: Any, target: Any) -> Any:
        loss, peak, total = (xp.empty(target.shape, x.dtype) for _ in range(3))
        if any(_map(_cross_entropy, x, target, loss, peak, total)):
            check_labels("softmax_cross_entropy", xp, target, x.shape[-1])
        return loss, peak, total

    def backward(
        self, xp: Any, need: Any, dy: Any, x: Any, target: Any, peak: Any, total: Any, *, out: Any
    ) -> None:
        _map(_cross_entropy_gradient, x, target, peak, total, dy, out.x)


# What turns bits of negative float32 into whole numbers in the order of what they stand for.
_ALL_BUT_SIGN = np.int32(0x7FFFFFFF)
_LEAST = np.int32(-(2**31))
_31 = np.int32(31)


@numba.njit(error_model="numpy")
def _largest(row):
    """The largest number of a row; of whole numbers, since comparing floats makes no vector code.

    With a NaN it may be that, which makes no difference to their exponentials.
    """
    bits = row.view(np.int32)
    largest = _LEAST
    for k in range(bits.size):
        b = bits[k]
        largest = np.int32(max(largest, np.int32(b ^ np.int32(np.int32(b >> _31) & _ALL_BUT_SIGN))))
    return _float(np.int32(largest ^ np.int32(np.int32(largest >> _31) & _ALL_BUT_SIGN)))


@intrinsic
def _float(_, bits):
    """The float32 with these bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


# Below this e^x is no normal number, and slow to compute with.
_FAR = np.float32(-87.0)


@numba.njit(error_model="numpy")
def _exp(x):
    """e^x of a float32, 0 far below 0: there are many of these where scores are masked."""
    far = x < _FAR
    y = exp(_FAR if far else x)
    return np.float32(0) if far else y


@_rows
def _exponentials(x, i, peak, e):
    """e = exp(row i - peak); returns their sum. In one loop they would not become vector code."""
    for k in range(x.shape[1]):
        e[k] = _exp(x[i, k] - peak)
    total = 0.0
    for k in range(x.shape[1]):
        total += np.float64(e[k])
    return total


@_rows
def _softmax(x, y):
    for i in range(x.shape[0]):
        m = _largest(x[i])
        scale = np.float32(1 / _exponentials(x, i, m, y[i]))
        for k in range(x.shape[1]):
            y[i, k] *= scale


@_rows
def _softmax_gradient(dy, y, dx):
    for i in range(dy.shape[0]):
        total = 0.0
        for k in range(dy.shape[1]):
            total += np.float64(dy[i, k] * y[i, k])
        mean = np.float32(total)
        for k in range(dy.shape[1]):
            dx[i, k] = (dy[i, k] - mean) * y[i, k]


@_rows
def _log_softmax(x, y):
    for i in range(x.shape[0]):
        m = _largest(x[i])
        logarithm = np.float32(math.log(_exponentials(x, i, m, y[i])))
        for k in range(x.shape[1]):
            y[i, k] = (x[i, k] - m) - logarithm


@_rows
def _log_softmax_gradient(dy, y, dx):
    for i in range(dy.shape[0]):
        total = 0.0
        for k in range(dy.shape[1]):
            total += np.float64(dy[i, k])
        whole = np.float32(total)
        for k in range(dy.shape[1]):
            dx[i, k] = dy[i, k] - _exp(y[i, k]) * whole


@_rows
def _cross_entropy(x, target, loss, peak, total):
    """Returns the number of labels that are out of range, whose rows have no meaning."""
    e = np.empty(x.shape[1], np.float32)
    wrong = 0
    for i in range(x.shape[0]):
        m = _largest(x[i])
        t = _exponentials(x, i, m, e)
        label = target[i, 0]
        if label < -1 or label >= x.shape[1]:
            wrong += 1
            label = -1
        loss[i, 0] = 0 if label < 0 else math.log(t) - (np.float64(x[i, label]) - m)
        peak[i, 0] = m
        total[i, 0] = t
    return wrong


@_rows
def _cross_entropy_gradient(x, target, peak, total, dy, dx):
    for i in range(x.shape[0]):
        label = target[i, 0]
        m = peak[i, 0]
        d = np.float32(0) if label < 0 else dy[i, 0]
        scale = d / total[i, 0]
        for k in range(x.shape[1]):
            dx[i, k] = _exp(x[i, k] - m) * scale
        if 0 <= label < x.shape[1]:
            dx[i, label] -= d
