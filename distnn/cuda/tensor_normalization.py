"""Layer, instance and group normalization: one launch forward, one backward and sums of parameters.

Rows with a mean of their own are the middle axis of (A, C, B) arrays. Where the axes of a mean are
not neighbours, the arrays are turned first.
"""

from __future__ import annotations

import math
from typing import Any

import cupy
import numpy as np

from ..twin import Twin
from . import tensor_normalization_kernels as kernels
from .batch_normalization import optional
from .kernels import computing
from .reduction import array_sum


class _Layout:
    """How the arrays of a call lie in memory."""

    def __init__(self, own: tuple[int, ...], summed: tuple[int, ...], shape: Any) -> None:
        neighbours = not summed or summed[-1] - summed[0] + 1 == len(summed)
        self.order = None if neighbours else (*own, *summed)
        self.shape = tuple(shape[i] for i in self.order or range(len(shape)))
        first = (summed[0] if summed else len(shape)) if neighbours else len(own)
        last = first + len(summed)
        self.blocks = (
            math.prod(self.shape[:first]),
            math.prod(self.shape[first:last]),
            math.prod(self.shape[last:]),
        )

    def turned(self, x: Any) -> Any:
        return x if self.order is None else cupy.ascontiguousarray(x.transpose(self.order))

    def back(self, x: Any) -> Any:
        """A view of what is turned as it was before."""
        return x if self.order is None else x.transpose([int(i) for i in np.argsort(self.order)])

    def parameter(self, values: Any) -> tuple[Any, np.int64, np.int64]:
        """beta or gamma as an array, and its place: element i has number (i / inner) % count."""
        if values is None:
            return None, np.int64(1), np.int64(1)
        values = self.turned(values)
        full = [i for i, n in enumerate(values.shape) if n > 1]
        if not full:
            return values, np.int64(1), np.int64(1)
        first, stop = full[0], full[-1] + 1
        common = (*values.shape[:first], *self.shape[first:stop], *values.shape[stop:])
        if common != values.shape:
            values = cupy.ascontiguousarray(cupy.broadcast_to(values, common))
        return values, np.int64(math.prod(self.shape[stop:])), np.int64(values.size)


class TensorNormalization(Twin):
    """tensor_normalization.TensorNormalization."""

    def forward(
        self, xp: Any, x: Any, beta: Any = None, gamma: Any = None, *, eps: float, out: Any = None
    ) -> Any:
        if out is None:
            specs = self.function.setup(x, beta, gamma)
            out = tuple(cupy.empty(spec.shape, spec.dtype) for spec in specs)
        if not x.size:
            return out
        y, *statistics = out
        layout = self._layout(x)
        x = layout.turned(x)
        target = y if layout.order is None else cupy.empty_like(x)
        beta, *of_beta = layout.parameter(beta)
        gamma, *of_gamma = layout.parameter(gamma)
        dtype = x.dtype.char
        kernels.NORMALIZE.run(
            dtype, layout.blocks, x, *optional(x, beta, gamma), *of_beta, *of_gamma,
            _number(dtype, eps), target, *statistics,
        )  # fmt: skip
        if target is not y:
            y[...] = layout.back(target)
        return out

    def backward(
        self,
        xp: Any,
        need: Any,
        dy: Any,
        dmean: Any,
        dvariance: Any,
        x: Any,
        gamma: Any,
        centre: Any,
        inverse_deviation: Any,
        *,
        out: Any,
    ) -> None:
        layout, dtype = self._layout(x), x.dtype.char
        dy = cupy.zeros(layout.shape, x.dtype) if dy is None else layout.turned(dy)
        x = layout.turned(x)
        if x.size and (need.x or need.gamma):
            direct = layout.order is None
            dx = (out.x if direct else cupy.empty_like(x)) if need.x else None
            product = cupy.empty(x.shape, computing(dtype)) if need.gamma else None
            gamma, *place = layout.parameter(gamma)
            kernels.GRADIENT.run(
                dtype, layout.blocks, dy, x, *optional(x, gamma, dmean, dvariance), *place,
                centre, inverse_deviation, _number(dtype, layout.blocks[1]),
                x if dx is None else dx, centre if product is None else product,
                np.int32(need.x), np.int32(need.gamma),
            )  # fmt: skip
            if need.x and not direct:
                out.x[...] = layout.back(dx)
        else:
            product = dy
        if need.beta:
            _sum(layout, dy, out.beta)
        if need.gamma:
            _sum(layout, product, out.gamma)

    def _layout(self, x: Any) -> _Layout:
        return _Layout(self.function.axes, self.function.summed(x.ndim), x.shape)


def _sum(layout: _Layout, values: Any, target: Any) -> None:
    """target = values, summed up over the axes along which the target was broadcast."""
    values_shape, shape = layout.back(values).shape, target.shape
    broadcast = [n != full for n, full in zip(shape, values_shape, strict=True)]
    order = layout.order or range(len(shape))
    axes = tuple(i for i, axis in enumerate(order) if broadcast[axis])
    target[...] = layout.back(array_sum(values, axes, True))


def _number(dtype: str, value: float) -> Any:
    return np.dtype(computing(dtype)).type(value)
