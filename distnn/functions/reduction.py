"""Reductions over axes: sum, mean, product, and largest and smallest elements."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calling import function_api
from ..errors import ShapeError
from ..function import Function, Spec
from .arithmetic import add_scalar, mul2
from .shapes import axes_of, shape_of
from .shaping import concatenate, reshape, slice, transpose

Axis = int | Sequence[int] | None


@dataclass(frozen=True)
class _Reduction(Function, by_signature=False):
    """What reductions share: the axes, and whether they stay with length 1."""

    axes: tuple[int, ...]
    keepdims: bool

    def shape(self, x: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
        return _reduced_shape(x, self.axes, keepdims)

    def result(self, x: Spec) -> Spec:
        return Spec(self.shape(x.shape, self.keepdims), x.dtype)

    def expanded(self, xp: Any, y: Any, x_shape: Any) -> Any:
        """A result with the summed axes back, of length 1."""
        return xp.reshape(y, self.shape(x_shape, True))


@functools.lru_cache(4096)
def _reduced_shape(x: tuple[int, ...], axes: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
    if keepdims:
        return tuple(1 if i in axes else n for i, n in enumerate(x))
    return tuple(n for i, n in enumerate(x) if i not in axes)


@functools.lru_cache(4096)
def _count(x: tuple[int, ...], axes: tuple[int, ...]) -> int:
    """Number of elements that are reduced to one."""
    return math.prod(x[i] for i in axes)


@dataclass(frozen=True)
class Sum(_Reduction):
    """y = sum of x over axes."""

    cuda = "reduction.Sum"

    def setup(self, x: Spec) -> Spec:
        return self.result(x)

    def forward(self, xp: Any, x: Any) -> Any:
        return xp.sum(x, self.axes, self.keepdims)

    def grad_x(self, xp: Any, dy: Any, x_shape: Any) -> Any:
        return xp.broadcast(self.expanded(xp, dy, x_shape), x_shape)


@dataclass(frozen=True)
class Mean(_Reduction):
    """y = mean of x over axes."""

    cuda = "reduction.Mean"

    def setup(self, x: Spec) -> Spec:
        if _count(x.shape, self.axes) == 0:
            raise ShapeError(
                f"[mean] x has shape {x.shape} and axis is {self.axes}: an empty axis has no mean; "
                "pass one element or more"
            )
        return self.result(x)

    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        count = _count(x.shape, self.axes)
        return xp.divide(xp.sum(x, self.axes, self.keepdims), count, out=out)

    def grad_x(self, xp: Any, dy: Any, x_shape: Any) -> Any:
        part = 1 / _count(x_shape, self.axes)
        return xp.broadcast(self.expanded(xp, dy, x_shape) * part, x_shape)


@function_api
def sum(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """Sum over one axis, several, or (None) all.

    >>> import distnn as nn, distnn.functions as F
    >>> F.sum(nn.Variable((2, 3, 4)), axis=(0, 2)).shape
    (3,)
    """
    ndim = len(shape_of("sum", "x", x))
    return Sum.of(axes_of("sum", axis, ndim), bool(keepdims))(x)


@function_api
def mean(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """Mean over one axis, several, or (None) all.

    >>> import distnn as nn, distnn.functions as F
    >>> F.mean(nn.Variable((2, 3)), axis=1, keepdims=True).shape
    (2, 1)
    """
    ndim = len(shape_of("mean", "x", x))
    return Mean.of(axes_of("mean", axis, ndim), bool(keepdims))(x)


@function_api
def prod(x: Any, axis: Axis = None, keepdims: bool = False) -> Any:
    """Product over one axis, several, or (None) all.

    Elements are multiplied in pairs, pairs of pairs and so on, by functions whose gradients are
    exact where elements are 0.

    >>> import distnn as nn, distnn.functions as F
    >>> F.prod(nn.Variable((2, 3)), axis=1).shape
    (2,)
    """
    axes = axes_of("prod", axis, len(shape_of("prod", "x", x)))
    kept = [i for i in range(len(x.shape)) if i not in axes]
    shape = [n if i in kept else 1 for i, n in enumerate(x.shape) if keepdims or i in kept]
    rest = math.prod(x.shape[i] for i in kept)
    y = reshape(transpose(x, (*axes, *kept)), (math.prod(x.shape[i] for i in axes), rest))
    if y.shape[0] == 0:
        return add_scalar(sum(x, axes, keepdims), 1)
    while y.shape[0] > 1:
        half = y.shape[0] // 2
        pairs = mul2(slice(y, (0, 0), (half, rest)), slice(y, (half, 0), (2 * half, rest)))
        if y.shape[0] % 2:
            pairs = concatenate(pairs, slice(y, (2 * half, 0), (2 * half + 1, rest)), axis=0)
        y = pairs
    return reshape(y, shape)


@dataclass(frozen=True)
class Extreme(_Reduction):
    """y = largest (or smallest) element over axes, the first of equal ones, and its flat index."""

    largest: bool

    outputs = ("y", "index")
    cuda = "reduction.Extreme"

    @property
    def name(self) -> str:
        return "max" if self.largest else "min"

    def setup(self, x: Spec) -> tuple[Spec, Spec]:
        if _count(x.shape, self.axes) == 0:
            raise ShapeError(
                f"[{self.name}] x has shape {x.shape} and axis is {self.axes}: an empty axis has "
                f"no {self.name}; pass one element or more"
            )
        y = self.result(x)
        return y, Spec(y.shape, np.dtype(np.int64))

    def forward(self, xp: Any, x: Any) -> Any:
        rows = _rows(xp, x, self.axes)
        index = rows.argmax(-1) if self.largest else rows.argmin(-1)
        y = xp.take_along_axis(rows, index[:, None], 1)
        shape = self.shape(x.shape, self.keepdims)
        return y.reshape(shape), index.reshape(shape)

    def grad_x(self, xp: Any, dy: Any, index: Any, x_shape: Any) -> Any:
        return xp.call(PutAlong.of(self.axes, x_shape), dy, index)


@dataclass(frozen=True)
class PutAlong(Function):
    """y = zeros of `shape` with each x at its index along axes."""

    axes: tuple[int, ...]
    x_shape: tuple[int, ...]

    indices = ("index",)

    def setup(self, x: Spec, index: Spec) -> Spec:
        return Spec(self.x_shape, x.dtype)

    def forward(self, xp: Any, x: Any, index: Any) -> Any:
        order, rows = _row_order(self.x_shape, self.axes)
        flat = xp.zeros(rows, x.dtype)
        xp.put_along_axis(flat, index.reshape(-1, 1), x.reshape(-1, 1), 1)
        moved = flat.reshape([self.x_shape[i] for i in order])
        return moved.transpose([int(i) for i in np.argsort(order)])

    def grad_x(self, xp: Any, dy: Any, index: Any) -> Any:
        return xp.call(PickAlong.of(self.axes), dy, index)


@dataclass(frozen=True)
class PickAlong(Function):
    """y = the element of x at each index along axes: the adjoint of PutAlong."""

    axes: tuple[int, ...]

    indices = ("index",)

    def setup(self, x: Spec, index: Spec) -> Spec:
        return Spec(index.shape, x.dtype)

    def forward(self, xp: Any, x: Any, index: Any) -> Any:
        rows = _rows(xp, x, self.axes)
        return xp.take_along_axis(rows, index.reshape(-1, 1), 1).reshape(index.shape)

    def grad_x(self, xp: Any, dy: Any, index: Any, x_shape: Any) -> Any:
        return xp.call(PutAlong.of(self.axes, x_shape), dy, index)


def _row_order(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[list[int], tuple[int, int]]:
    """The order of axes that brings `axes` last, and the shape of the rows that makes."""
    kept = [i for i in range(len(shape)) if i not in axes]
    rows = math.prod(shape[i] for i in kept), math.prod(shape[i] for i in axes)
    return [*kept, *axes], rows


def _rows(xp: Any, x: Any, axes: tuple[int, ...]) -> Any:
    order, rows = _row_order(x.shape, axes)
    return x.transpose(order).reshape(rows)


@function_api
def max(
    x: Any,
    axis: Axis = None,
    keepdims: bool = False,
    with_index: bool = False,
    only_index: bool = False,
) -> Any:
    """Largest element over one axis, several, or (None) all; the first of equal ones.

    Args:
        with_index: return (values, indices); an index counts along the axes, flattened.
        only_index: return the indices.

    >>> import distnn as nn, distnn.functions as F
    >>> F.max(nn.Variable((2, 3)), axis=1).shape
    (2,)
    """
    return _extreme("max", True, x, axis, keepdims, with_index, only_index)


@function_api
def min(
    x: Any,
    axis: Axis = None,
    keepdims: bool = False,
    with_index: bool = False,
    only_index: bool = False,
) -> Any:
    """Smallest element over one axis, several, or (None) all; the first of equal ones.

    Args:
        with_index: return (values, indices); an index counts along the axes, flattened.
        only_index: return the indices.

    >>> import distnn as nn, distnn.functions as F
    >>> F.min(nn.Variable((2, 3)), axis=1).shape
    (2,)
    """
    return _extreme("min", False, x, axis, keepdims, with_index, only_index)


def _extreme(
    name: str, largest: bool, x: Any, axis: Axis, keepdims: bool, both: bool, index: bool
) -> Any:
    axes = axes_of(name, axis, len(shape_of(name, "x", x)))
    results = Extreme.of(axes, bool(keepdims), largest)(x)
    if index:
        return results[1]
    return results if both else results[0]
