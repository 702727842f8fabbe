"""Compiled softmax and cross entropy along the last axis, of float32 and bfloat16."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types

from ..function import Spec
from ..functions.precision import wide
from ..functions.softmax import check_labels
from ..threads import parallel_for
from .bfloat16 import bits, element, is_bfloat16, number
from .compiler import kernel
from .mathematics import exp
from .twin import CpuTwin

intrinsic: Any = numba.extending.intrinsic

# Elements of a part that one thread works on.
_PART = 131_072

# Sums may be made in any order, which is the compiler's and the same in every run.
_rows = partial(kernel, fastmath={"reassoc", "contract"})


class _Softmax(CpuTwin):
    """What they share: rows of the last axis."""

    takes_bfloat16 = True

    @classmethod
    def suits(cls, function: Any, *specs: Spec | None) -> bool:
        x = specs[0]
        return x is not None and x.dtype.char == "f" and function.axis == len(x.shape) - 1


def _map(body: Any, x: np.ndarray, *others: np.ndarray) -> list[Any]:
    """body(rows, *others) for parts of the rows of x, and what it returns; others have as many."""
    length = x.shape[-1]
    arrays: Sequence[np.ndarray] = (x, *others)
    if is_bfloat16(x):
        arrays = [bits(a) for a in arrays]
    if x.ndim == 2 and x.size <= _PART:
        for a in arrays:  # a generator would cost as much as the kernel takes
            if not a.flags.c_contiguous:
                break
        else:
            return [body(*arrays)]
    count = x.size // max(1, length)
    arrays = [np.ascontiguousarray(a).reshape(count, -1) for a in arrays]
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
    def forward(self, xp: Any, x: Any, target: Any, *, out: Any = None) -> Any:
        if out is None:
            kinds = x.dtype, x.dtype, wide(x.dtype)
            out = tuple(xp.empty(target.shape, kind) for kind in kinds)
        if any(_map(_cross_entropy, x, target, *out)):
            check_labels("softmax_cross_entropy", xp, target, x.shape[-1])
        return out

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
    largest = _LEAST
    for k in range(row.size):
        b = _word(number(row[k]))
        largest = np.int32(max(largest, np.int32(b ^ np.int32(np.int32(b >> _31) & _ALL_BUT_SIGN))))
    return _float(np.int32(largest ^ np.int32(np.int32(largest >> _31) & _ALL_BUT_SIGN)))


@intrinsic
def _word(_, x):
    """The bits of a float32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


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
        e[k] = _exp(number(x[i, k]) - peak)
    total = 0.0
    for k in range(x.shape[1]):
        total += np.float64(e[k])
    return total


@_rows
def _softmax(x, y):
    e = np.empty(x.shape[1], np.float32)
    for i in range(x.shape[0]):
        scale = np.float32(1 / _exponentials(x, i, _largest(x[i]), e))
        for k in range(x.shape[1]):
            y[i, k] = element(e[k] * scale, y)


@_rows
def _softmax_gradient(dy, y, dx):
    for i in range(dy.shape[0]):
        total = 0.0
        for k in range(dy.shape[1]):
            total += np.float64(number(dy[i, k]) * number(y[i, k]))
        mean = np.float32(total)
        for k in range(dy.shape[1]):
            dx[i, k] = element((number(dy[i, k]) - mean) * number(y[i, k]), dx)


@_rows
def _log_softmax(x, y):
    e = np.empty(x.shape[1], np.float32)
    for i in range(x.shape[0]):
        m = _largest(x[i])
        logarithm = np.float32(math.log(_exponentials(x, i, m, e)))
        for k in range(x.shape[1]):
            y[i, k] = element((number(x[i, k]) - m) - logarithm, y)


@_rows
def _log_softmax_gradient(dy, y, dx):
    for i in range(dy.shape[0]):
        total = 0.0
        for k in range(dy.shape[1]):
            total += np.float64(number(dy[i, k]))
        whole = np.float32(total)
        for k in range(dy.shape[1]):
            dx[i, k] = element(number(dy[i, k]) - _exp(number(y[i, k])) * whole, dx)


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
        picked = 0.0 if label < 0 else math.log(t) - (np.float64(number(x[i, label])) - m)
        loss[i, 0] = element(picked, loss)
        peak[i, 0] = element(m, peak)
        total[i, 0] = t
    return wrong


@_rows
def _cross_entropy_gradient(x, target, peak, total, dy, dx):
    for i in range(x.shape[0]):
        label = target[i, 0]
        m = number(peak[i, 0])
        d = np.float32(0) if label < 0 else number(dy[i, 0])
        scale = d / total[i, 0]
        for k in range(x.shape[1]):
            dx[i, k] = element(_exp(number(x[i, k]) - m) * scale, dx)
        if 0 <= label < x.shape[1]:
            e = _exp(number(x[i, label]) - m) * scale
            dx[i, label] = element(e - d, dx)
