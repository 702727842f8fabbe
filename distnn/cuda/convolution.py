"""Convolution on a GPU: by cuDNN, or as products over patches where cuDNN is missing.

Whoever computes an operation says in which order of axes it wants the arrays. Arrays in the other
order are converted before, once for both gradients, and the result after.
"""

from __future__ import annotations

import functools
from typing import Any

import cupy
import numpy as np

from ..twin import Twin
from . import channel_order, cudnn
from .bias import add_to_columns, add_to_planes
from .im2col import Patches
from .problem import BIAS, FIRST, RESULT, SECOND, Problem

_MOST_AXES = 5  # of arrays that cuDNN convolves: three spatial ones


class _Bilinear(Twin):
    """What the three twins share."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self._problems: dict[Any, Problem] = {}

    def problem(self, xp: Any, x_shape: Any, w_shape: Any, dtype: np.dtype) -> Problem:
        """The convolution of x and w; shapes have channels first."""
        key = (x_shape, w_shape, dtype, xp.precision)
        problem = self._problems.get(key)
        if problem is None:
            problem = self._problems[key] = Problem(
                tuple(x_shape), tuple(w_shape), self.function.geometry, dtype,
                dtype == np.float32 and xp.precision != "highest", self.function.channel_last,
            )  # fmt: skip
        return problem

    def laid(self, array: Any) -> _Laid:
        return _Laid(array, self.function.channel_last)

    def room(self, shape: tuple[int, ...], dtype: np.dtype, out: Any) -> Any:
        """`out`, or memory for a result whose shape is `shape` with channels first."""
        return cupy.empty(self.function.last_shape(shape), dtype) if out is None else out


class Convolution(_Bilinear):
    """functions.convolution.Convolution."""

    def forward(
        self, xp: Any, x: Any, w: Any, b: Any = None, *, out: Any = None, scratch: Any = None
    ) -> Any:
        first = self.function.first_shape
        problem = self.problem(xp, first(x.shape), first(w.shape), x.dtype)
        out = self.room(problem.y, x.dtype, out)
        _compute("forward", problem, self.laid(x), self.laid(w), b, self.laid(out))
        return out

    def backward(
        self, xp: Any, need: Any, dy: Any, x: Any, w: Any, *, out: Any, scratch: Any = None
    ) -> None:
        first = self.function.first_shape
        problem = self.problem(xp, first(x.shape), first(w.shape), x.dtype)
        if need.b:
            out.b[...] = self.function.grad_b(xp, dy)
        dy = self.laid(dy)
        if need.w:
            _compute("filter gradient", problem, self.laid(x), dy, None, self.laid(out.w))
        if need.x:
            _compute("data gradient", problem, dy, self.laid(w), None, self.laid(out.x))


class Deconvolution(_Bilinear):
    """functions.convolution.Deconvolution."""

    def forward(self, xp: Any, x: Any, w: Any, b: Any = None, *, out: Any = None) -> Any:
        function = self.function
        w_shape = function.first_shape(w.shape)
        shape = (len(x), w_shape[1] * function.geometry.group, *function.lengths)
        out = self.room(shape, x.dtype, out)
        problem = self.problem(xp, shape, w_shape, x.dtype)
        _compute("data gradient", problem, self.laid(x), self.laid(w), b, self.laid(out))
        return out


class FilterGradient(_Bilinear):
    """functions.convolution.FilterGradient."""

    def forward(self, xp: Any, dy: Any, x: Any, *, out: Any = None) -> Any:
        function = self.function
        x_shape = function.first_shape(x.shape)
        filters = function.first_shape(dy.shape)[1]
        shape = (filters, x_shape[1] // function.geometry.group, *function.kernel)
        out = self.room(shape, dy.dtype, out)
        problem = self.problem(xp, x_shape, shape, dy.dtype)
        _compute("filter gradient", problem, self.laid(x), self.laid(dy), None, self.laid(out))
        return out


class _Laid:
    """An array in both orders of axes; converted when the other is first asked for."""

    def __init__(self, array: Any, channel_last: bool) -> None:
        self.array = array
        self.channel_last = channel_last
        self._other: Any = None

    def order(self, channel_last: bool) -> Any:
        """The array with its axes in this order."""
        if channel_last == self.channel_last:
            return self.array
        if self._other is None:
            self._other = channel_order.convert(self.array, channel_last)
        return self._other

    def blank(self, channel_last: bool) -> Any:
        """Memory to compute the array in, with its axes in this order; then comes `settle`."""
        if channel_last == self.channel_last:
            return self.array
        return channel_order.blank(self.array, channel_last)

    def settle(self, result: Any) -> None:
        """Put what was computed into the array, if it is not there."""
        if result.data.ptr != self.array.data.ptr:
            channel_order.convert(result, self.channel_last, self.array)


def _compute(
    kind: str, problem: Problem, first: _Laid, second: _Laid, bias: Any, out: _Laid
) -> None:
    """out = the result of an operation, plus `bias` per channel."""
    if out.array.size == 0:
        return
    fused = kind == "forward" and bias is not None
    if first.array.size == 0 or second.array.size == 0:
        out.array.fill(0)
    elif fused and _by_cudnn("forward with bias", problem, first, second, bias, out):
        return
    elif not _by_cudnn(kind, problem, first, second, None, out):
        _by_patches(kind, problem, first, second, out)
    if bias is not None:
        add = add_to_columns if out.channel_last else add_to_planes
        add(out.array, bias)


def _by_cudnn(
    kind: str, problem: Problem, first: _Laid, second: _Laid, bias: Any, out: _Laid
) -> bool:
    """False where cuDNN is missing or has no engine."""
    if len(problem.x) > _MOST_AXES or not cudnn.available():
        return False
    # Tensor cores read channels last: in the other order cuDNN transposes arrays in workspace, in
    # each operation. Its other engines are as good or better with channels first.
    channel_last = problem.channel_last or problem.tf32 or problem.dtype.itemsize == 2
    problem = problem._replace(channel_last=channel_last)
    result = out.blank(channel_last)
    arrays = {
        FIRST: first.order(channel_last), SECOND: second.order(channel_last), RESULT: result,
    }  # fmt: skip
    if bias is not None:
        arrays[BIAS] = bias
    plan = cudnn.plan(kind, problem, arrays)
    if plan is None:
        return False
    cudnn.run(plan, arrays)
    out.settle(result)
    return True


def _by_patches(kind: str, problem: Problem, first: _Laid, second: _Laid, out: _Laid) -> None:
    patches = _patches(problem._replace(channel_last=True))
    result = out.blank(True)
    patches.run(kind, first.order(True), second.order(True), result)
    out.settle(result)


_patches = functools.lru_cache(maxsize=4096)(Patches)
