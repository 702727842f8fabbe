"""Reductions over axes: sum, mean, max, min, prod."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..calling import function_api
from ..errors import ShapeError
from ..function import Function, Spec
from .shapes import axes_of

Axis = int | Sequence[int] | None


@dataclass(frozen=True)
class _Reduction(Function, by_signature=False):
    """What reductions share: the axes, and whether they stay with length 1."""

    axes: tuple[int, ...]
    keepdims: bool

    def shape(self, x: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
        if keepdims:
            return tuple(1 if i in self.axes else n for i, n in enumerate(x))
        return tuple(n for i, n in enumerate(x) if i not in self.axes)

    def result(self, x: Spec) -> Spec:
        return Spec(self.shape(x.shape, self.keepdims), x.dtype)

    def expanded(self, xp: Any, y: Any, x_shape: Any) -> Any:
        """A result with the summed axes back, of length 1."""
        return xp.reshape(y, self.shape(x_shape, True))


@dataclass(frozen=True)
class Sum(_Reduction):
    """y = sum of x over axes."""

    def setup(self, x: Spec) -> Spec:
        return self.result(x)

    def forward(self, xp: Any, x: Any) -> Any:
        return xp.sum(x, self.axes, self.keepdims)

    def grad_x(self, xp: Any, dy: Any, x_shape: Any) -> Any:
        return xp.broadcast(self.expanded(xp, dy, x_shape), x_shape)


@dataclass(frozen=True)
class Mean(_Reduction):
    """y = mean of x over axes."""

    def setup(self, x: Spec) -> Spec:
        if math.prod(x.shape[i] for i in self.axes) == 0:
            raise ShapeError(f"[mean] x has shape {x.shape}: an empty axis has no mean")
        return self.result(x)

    def forward(self, xp: Any, x: Any) -> Any:
        count = math.prod(x.shape[i] for i in self.axes)
        return xp.sum(x, self.axes, self.keepdims) / count

    def grad_x(self, xp: Any, dy: Any, x_shape: Any) -> Any:
        count = math.prod(x_shape[i] for i in self.axes)
        return xp.broadcast(self.expanded(xp, dy, x_shape) * (1 / count), x_shape)


@function_api
def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """Sum over one axis, several, or (None) all.

    >>> import distnn as nn, distnn.functions as F
    >>> F.sum(nn.Variable((2, 3, 4)), axis=(0, 2)).shape
    (3,)
    """
    return Sum.of(axes_of("sum", axis, len(x.shape)), bool(keepdims))(x)


@function_api
def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """Mean over one axis, several, or (None) all.

    >>> import distnn as nn, distnn.functions as F
    >>> F.mean(nn.Variable((2, 3)), axis=1, keepdims=True).shape
    (2, 1)
    """
    return Mean.of(axes_of("mean", axis, len(x.shape)), bool(keepdims))(x)
