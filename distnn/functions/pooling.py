"""Pooling over windows: average, sum and maximum, in any number of dimensions.

Average and sum are linear; their gradient is the adjoint map, whose gradient is the pooling again.
The maximum remembers which element of a window it took, and its gradient follows that index.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calling import function_api
from ..errors import ArgumentError, ShapeError
from ..function import Function, Spec
from .reduction import mean
from .shapes import per_axis, shape_of, whole_numbers

Index = tuple[Any, ...]


@dataclass(frozen=True)
class _Windows(Function, by_signature=False):
    """Windows over the last axes of x, or over those before the last if channel_last."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    pad: tuple[int, ...]
    ignore_border: bool
    channel_last: bool

    def axes(self, ndim: int) -> range:
        """The axes of an array that windows lie on."""
        stop = ndim - self.channel_last
        return range(stop - len(self.kernel), stop)

    def result_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        lengths = list(shape)
        for a, k, s, p in zip(
            self.axes(len(shape)), self.kernel, self.stride, self.pad, strict=True
        ):
            n = shape[a] + 2 * p
            lengths[a] = (n - k) // s + 1 if self.ignore_border else -(-n // s)
        return tuple(lengths)

    def spec(self, x: Spec, needs_elements: bool) -> Spec:
        if x.ndim < len(self.kernel) + self.channel_last:
            raise ShapeError(
                f"[{self.name}] x has shape {x.shape} but the kernel {self.kernel} needs "
                f"{len(self.kernel)} spatial axes{' and channels' * self.channel_last}; pass a "
                "shorter kernel"
            )
        shape = self.result_shape(x.shape)
        if any(shape[a] < 1 for a in self.axes(x.ndim)):
            raise ShapeError(
                f"[{self.name}] the kernel {self.kernel} with pad {self.pad} does not fit into x "
                f"{x.shape}; pad x or use a smaller kernel"
            )
        for a, s, p in zip(self.axes(x.ndim), self.stride, self.pad, strict=True):
            if needs_elements and (shape[a] - 1) * s - p >= x.shape[a] > 0:
                raise ShapeError(
                    f"[{self.name}] with ignore_border=False the last window of axis {a} of x "
                    f"{x.shape} lies in the pad of {p} alone; use ignore_border=True, less pad or "
                    "another stride"
                )
        return Spec(shape, x.dtype)

    def taps(self, x_shape: tuple[int, ...]) -> Iterator[tuple[int, Index, Index]]:
        """For each element of a window: its number, the results it enters, the elements of x."""
        axes = self.axes(len(x_shape))
        y_shape = self.result_shape(x_shape)
        for number, tap in enumerate(itertools.product(*map(range, self.kernel))):
            results: list[Any] = [slice(None)] * len(x_shape)
            elements: list[Any] = [slice(None)] * len(x_shape)
            for a, k, s, p in zip(axes, tap, self.stride, self.pad, strict=True):
                shift = k - p  # result r takes element r * s + shift
                first = max(0, -(shift // s))
                stop = min(y_shape[a], (x_shape[a] - 1 - shift) // s + 1)
                if stop <= first:
                    break
                results[a] = slice(first, stop)
                elements[a] = slice(first * s + shift, (stop - 1) * s + shift + 1, s)
            else:
                yield number, tuple(results), tuple(elements)

    def counts(self, x_shape: tuple[int, ...], including_pad: bool) -> np.ndarray:
        """Elements in each window, in a shape that broadcasts over results."""
        total = np.ones((1,) * len(x_shape))
        y_shape = self.result_shape(x_shape)
        for a, k, s, p in zip(
            self.axes(len(x_shape)), self.kernel, self.stride, self.pad, strict=True
        ):
            start = np.arange(y_shape[a]) * s - p
            stop = np.minimum(start + k, x_shape[a] + p)
            if not including_pad:
                start, stop = np.maximum(start, 0), np.minimum(stop, x_shape[a])
            column = [1] * len(x_shape)
            column[a] = -1
            total = total * (stop - start).reshape(column)
        return total


@dataclass(frozen=True)
class LinearPooling(_Windows):
    """y = sum over a window, divided by the number of its elements if `average`."""

    average: bool
    including_pad: bool

    cuda = "pooling.LinearPooling"
    cpu = "pooling.LinearPooling"

    @property
    def name(self) -> str:
        return "average_pooling" if self.average else "sum_pooling"

    def setup(self, x: Spec) -> Spec:
        return self.spec(x, self.average and not self.including_pad)

    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        y = xp.empty(self.result_shape(x.shape), x.dtype) if out is None else out
        y.fill(0)
        for _, results, elements in self.taps(x.shape):
            y[results] += x[elements]
        if self.average:
            y /= xp.asarray(self.counts(x.shape, self.including_pad), y.dtype)
        return y

    def grad_x(self, xp: Any, dy: Any, x_shape: Any) -> Any:
        return xp.call(LinearUnpooling.of(*_fields(self), x_shape), dy)


@dataclass(frozen=True)
class LinearUnpooling(_Windows):
    """The adjoint of LinearPooling."""

    average: bool
    including_pad: bool
    x_shape: tuple[int, ...]

    cuda = "pooling.LinearUnpooling"
    cpu = "pooling.LinearUnpooling"

    def setup(self, x: Spec) -> Spec:
        return Spec(self.x_shape, x.dtype)

    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        y = xp.empty(self.x_shape, x.dtype) if out is None else out
        y.fill(0)
        if self.average:
            x = x / xp.asarray(self.counts(self.x_shape, self.including_pad), x.dtype)
        for _, results, elements in self.taps(self.x_shape):
            y[elements] += x[results]
        return y

    def grad_x(self, xp: Any, dy: Any) -> Any:
        return xp.call(LinearPooling.of(*_fields(self)[:-1]), dy)


@dataclass(frozen=True)
class MaxPooling(_Windows):
    """y = largest element of a window, the first of equal ones."""

    outputs = ("y", "index")
    cuda = "pooling.MaxPooling"
    cpu = "pooling.MaxPooling"

    def setup(self, x: Spec) -> tuple[Spec, Spec]:
        y = self.spec(x, True)
        return y, Spec(y.shape, np.dtype(np.int32))

    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        if out is None:
            shape = self.result_shape(x.shape)
            out = xp.empty(shape, x.dtype), xp.empty(shape, np.int32)
        y, index = out
        y.fill(-xp.inf)
        index.fill(0)
        for number, results, elements in self.taps(x.shape):
            largest = y[results]
            larger = xp.maximum(largest, x[elements])
            xp.copyto(index[results], number, where=larger != largest)
            largest[...] = larger  # NaN stays NaN
        return out

    def grad_x(self, xp: Any, dy: Any, index: Any, x_shape: Any) -> Any:
        return xp.call(MaxUnpooling.of(*_fields(self), x_shape), dy, index)


@dataclass(frozen=True)
class MaxUnpooling(_Windows):
    """y has each element of x at the place of its window that the index names."""

    x_shape: tuple[int, ...]

    indices = ("index",)
    cuda = "pooling.MaxUnpooling"
    cpu = "pooling.MaxUnpooling"

    def setup(self, x: Spec, index: Spec) -> Spec:
        return Spec(self.x_shape, x.dtype)

    def forward(self, xp: Any, x: Any, index: Any, *, out: Any = None) -> Any:
        y = xp.empty(self.x_shape, x.dtype) if out is None else out
        y.fill(0)
        for number, results, elements in self.taps(self.x_shape):
            y[elements] += xp.where(index[results] == number, x[results], x.dtype.type(0))
        return y

    def grad_x(self, xp: Any, dy: Any, index: Any) -> Any:
        return xp.call(PickFromWindows.of(*_fields(self)[:-1]), dy, index)


@dataclass(frozen=True)
class PickFromWindows(_Windows):
    """y = the element of each window that the index names: the adjoint of MaxUnpooling."""

    indices = ("index",)
    cuda = "pooling.PickFromWindows"

    def setup(self, x: Spec, index: Spec) -> Spec:
        return Spec(index.shape, x.dtype)

    def forward(self, xp: Any, x: Any, index: Any, *, out: Any = None) -> Any:
        y = xp.empty(index.shape, x.dtype) if out is None else out
        y.fill(0)
        for number, results, elements in self.taps(x.shape):
            xp.copyto(y[results], x[elements], where=index[results] == number)
        return y

    def grad_x(self, xp: Any, dy: Any, index: Any, x_shape: Any) -> Any:
        return xp.call(MaxUnpooling.of(*_fields(self), x_shape), dy, index)


def _fields(function: Any) -> tuple[Any, ...]:
    return tuple(getattr(function, name) for name in function.__dataclass_fields__)


def _windows(
    function: str, kernel: Sequence[int], stride: Any, pad: Any, ignore_border: bool, last: bool
) -> tuple[Any, ...]:
    lengths = whole_numbers(function, "kernel", kernel)
    if not lengths or min(lengths) < 1:
        raise ArgumentError(
            f"[{function}] kernel is {lengths}; pass 1 or more for each spatial axis: (2, 2)"
        )
    steps = (
        lengths
        if stride is None
        else per_axis(function, "stride", stride, len(lengths), 1, least=1)
    )
    pads = per_axis(function, "pad", pad, len(lengths), 0)
    if any(p >= k for p, k in zip(pads, lengths, strict=True)):
        raise ArgumentError(f"[{function}] pad {pads} must be smaller than the kernel {lengths}")
    return lengths, steps, pads, bool(ignore_border), bool(last)


@function_api
def average_pooling(
    x: Any,
    kernel: Sequence[int],
    stride: Sequence[int] | None = None,
    ignore_border: bool = True,
    pad: Sequence[int] | None = None,
    channel_last: bool = False,
    including_pad: bool = True,
) -> Any:
    """Mean over windows.

    Args:
        x: (..., *S), or (..., *S, C) if channel_last.
        kernel: lengths of a window.
        stride: between windows; the kernel by default.
        ignore_border: leave out windows that reach over the end. Otherwise there are
            ceil((S + 2 pad) / stride) of them, cut off at the end of the padding.
        pad: zeros at both ends, per axis.
        including_pad: count padding as elements of a window.
    Raises: ShapeError where no window fits, or where one has no element but padding that is not
        counted.

    >>> import distnn as nn, distnn.functions as F
    >>> F.average_pooling(nn.Variable((2, 3, 8, 8)), (2, 2)).shape
    (2, 3, 4, 4)
    """
    windows = _windows("average_pooling", kernel, stride, pad, ignore_border, channel_last)
    return LinearPooling.of(*windows, True, bool(including_pad))(x)


@function_api
def sum_pooling(
    x: Any,
    kernel: Sequence[int],
    stride: Sequence[int] | None = None,
    ignore_border: bool = True,
    pad: Sequence[int] | None = None,
    channel_last: bool = False,
) -> Any:
    """Sum over windows; arguments as in `average_pooling`.

    >>> import distnn as nn, distnn.functions as F
    >>> F.sum_pooling(nn.Variable((2, 3, 8, 8)), (2, 2)).shape
    (2, 3, 4, 4)
    """
    windows = _windows("sum_pooling", kernel, stride, pad, ignore_border, channel_last)
    return LinearPooling.of(*windows, False, True)(x)


@function_api
def max_pooling(
    x: Any,
    kernel: Sequence[int],
    stride: Sequence[int] | None = None,
    ignore_border: bool = True,
    pad: Sequence[int] | None = None,
    channel_last: bool = False,
) -> Any:
    """Largest element of each window; padding is never it, and the first of equal ones is taken.

    Arguments as in `average_pooling`.

    >>> import distnn as nn, distnn.functions as F
    >>> F.max_pooling(nn.Variable((2, 3, 8, 8)), (2, 2)).shape
    (2, 3, 4, 4)
    """
    windows = _windows("max_pooling", kernel, stride, pad, ignore_border, channel_last)
    return MaxPooling.of(*windows)(x)[0]


@function_api
def global_average_pooling(x: Any) -> Any:
    """Mean over all spatial axes, which stay with length 1: (N, C, *S) -> (N, C, 1, ...).

    >>> import distnn as nn, distnn.functions as F
    >>> F.global_average_pooling(nn.Variable((2, 3, 8, 8))).shape
    (2, 3, 1, 1)
    """
    shape = shape_of("global_average_pooling", "x", x)
    if len(shape) < 2 or 0 in shape[2:]:
        raise ShapeError(
            f"[global_average_pooling] x has shape {shape}; pass (N, C, *S) with one element or "
            "more to take the mean of"
        )
    return mean(x, axis=tuple(range(2, len(shape))), keepdims=True)
