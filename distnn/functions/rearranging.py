"""Functions that repeat, turn around or shift the elements of axes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..calling import function_api
from ..errors import ArgumentError, ShapeError
from ..ndarray import NdArray
from .arithmetic import identity
from .indexing import Gather
from .shapes import axes_of, shape_of, whole_numbers
from .shaping import Slice, broadcast, reshape
from .tables import beside, table

BORDERS = ("nearest", "reflect")


@function_api
def flip(x: Any, axes: Sequence[int] | None = None) -> Any:
    """Turn axes around: y[..., i, ...] = x[..., n - 1 - i, ...].

    Args:
        x: array.
        axes: to turn around; the last one by default.

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> F.flip(nn.NdArray.from_numpy_array(np.array([1., 2., 3.]))).data
    array([3., 2., 1.], dtype=float32)
    """
    shape = shape_of("flip", "x", x)
    turned = axes_of("flip", [len(shape) - 1] if axes is None else axes, len(shape), "axes")
    start = tuple(max(n - 1, 0) if i in turned else 0 for i, n in enumerate(shape))
    stop = tuple((-1 if n else 0) if i in turned else n for i, n in enumerate(shape))
    step = tuple(-1 if i in turned else 1 for i in range(len(shape)))
    return Slice.of(start, stop, step)(x)


def _repeat(x: Any, before: Sequence[int], after: Sequence[int]) -> Any:
    """Repeat axes as a whole `before` times, and each element `after` times."""
    inner = [m for n in x.shape for m in (1, n, 1)]
    outer = [m for a, n, b in zip(before, x.shape, after, strict=True) for m in (a, n, b)]
    shape = [a * n * b for a, n, b in zip(before, x.shape, after, strict=True)]
    return reshape(broadcast(reshape(x, inner), outer), shape)


@function_api
def tile(x: Any, reps: int | Sequence[int]) -> Any:
    """Repeat x along its axes, as `numpy.tile` does.

    Args:
        x: array.
        reps: how often for each of the last axes; more numbers than x has axes add axes in front.

    >>> import distnn as nn, distnn.functions as F
    >>> F.tile(nn.Variable((2, 3)), (2, 1, 2)).shape
    (2, 2, 6)
    """
    shape = shape_of("tile", "x", x)
    counts = whole_numbers("tile", "reps", reps if hasattr(reps, "__iter__") else (reps,))
    if min(counts, default=1) < 1:
        raise ArgumentError(f"[tile] reps is {counts}; pass numbers of 1 or more")
    ndim = max(len(shape), len(counts))
    counts = (1,) * (ndim - len(counts)) + counts
    if ndim > len(shape):
        x = reshape(x, (1,) * (ndim - len(shape)) + shape)
    return _repeat(x, counts, (1,) * ndim)


@function_api
def unpooling(x: Any, kernel: int | Sequence[int], channel_last: bool = False) -> Any:
    """Repeat each element over a window: the inverse of pooling in shape.

    Args:
        x: (..., *spatial), or (..., *spatial, C) with `channel_last`.
        kernel: (K_1, ..., K_n), lengths of the window.
        channel_last: the channels are the last axis.
    Returns: spatial axes K_i times as long.

    >>> import distnn as nn, distnn.functions as F
    >>> F.unpooling(nn.Variable((2, 3, 4, 5)), (2, 2)).shape
    (2, 3, 8, 10)
    """
    shape = shape_of("unpooling", "x", x)
    given = kernel if isinstance(kernel, Sequence) else (kernel,)
    lengths = whole_numbers("unpooling", "kernel", given) + (1,) * bool(channel_last)
    if min(lengths, default=1) < 1:
        raise ArgumentError(f"[unpooling] kernel is {kernel}; pass numbers of 1 or more")
    if len(lengths) > len(shape):
        raise ShapeError(
            f"[unpooling] kernel is {kernel} but x has shape {shape}; pass one number for each "
            "spatial axis, which are the last ones"
        )
    lengths = (1,) * (len(shape) - len(lengths)) + lengths
    return _repeat(x, (1,) * len(shape), lengths)


def shifted_places(place: Any, n: int, shift: Any, border: str) -> Any:
    """The element, of n, that the one at a place of a shifted axis copies; arrays of numbers."""
    place = place - shift
    if border == "nearest":
        return place.clip(0, max(n - 1, 0))
    place = place % (2 * n)
    return n - 1 - abs(place - (n - 1)) + (place >= n)


@functools.lru_cache(256)
def _shift_table(n: int, shift: int, border: str) -> NdArray:
    return table(shifted_places(np.arange(n), n, shift, border))


@function_api
def shift(x: Any, shifts: Sequence[int] | None = None, border_mode: str = "nearest") -> Any:
    """Shift elements along axes: y[i] = x[i - shift].

    Args:
        x: array.
        shifts: for each of the last axes; None shifts nothing.
        border_mode: what comes in: "nearest" repeats the element at the border, "reflect" mirrors
            at the border, which is repeated.

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> F.shift(nn.NdArray.from_numpy_array(np.array([1., 2., 3.])), (1,)).data
    array([1., 1., 2.], dtype=float32)
    """
    shape = shape_of("shift", "x", x)
    amounts = whole_numbers("shift", "shifts", () if shifts is None else shifts)
    check_border("shift", border_mode)
    if len(amounts) > len(shape):
        raise ShapeError(
            f"[shift] shifts is {amounts} but x {shape} has {len(shape)} axes; pass one number for "
            "each of its last axes"
        )
    y = x
    for axis, amount in enumerate(amounts, len(shape) - len(amounts)):
        if amount and shape[axis]:
            index = _shift_table(shape[axis], amount, border_mode)
            y = Gather.of(axis)(y, beside(y, index))
    return identity(y) if y is x else y


def check_border(function: str, border: str) -> None:
    if border not in BORDERS:
        raise ArgumentError(f"[{function}] border_mode is {border!r}; use one of {list(BORDERS)}")
