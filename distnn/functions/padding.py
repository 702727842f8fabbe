"""Padding at the ends of axes: with a constant, by reflection or by repetition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calling import function_api
from ..errors import ArgumentError, ShapeError
from ..function import Function, Spec
from .shapes import number, shape_of, whole_numbers

_MODES = ("constant", "reflect", "repeat")


@dataclass(frozen=True)
class Pad(Function):
    """y is x with `widths` (before, after) more elements per axis, set to a constant."""

    widths: tuple[tuple[int, int], ...]

    def setup(self, x: Spec) -> Spec:
        shape = tuple(n + a + b for n, (a, b) in zip(x.shape, self.widths, strict=True))
        return Spec(shape, x.dtype)

    def forward(self, xp: Any, x: Any, *, constant_value: float, out: Any = None) -> Any:
        shape = [n + a + b for n, (a, b) in zip(x.shape, self.widths, strict=True)]
        y = xp.empty(shape, x.dtype) if out is None else out
        y.fill(constant_value)
        y[tuple(slice(a, a + n) for n, (a, _) in zip(x.shape, self.widths, strict=True))] = x
        return y

    def grad_x(self, xp: Any, dy: Any, x_shape: Any) -> Any:
        start = tuple(a for a, _ in self.widths)
        stop = tuple(a + n for a, n in zip(start, x_shape, strict=True))
        return xp.slice(dy, start, stop)


@dataclass(frozen=True)
class MirrorPad(Function):
    """y continues x beyond its ends, mirrored at the last element or repeating it."""

    widths: tuple[tuple[int, int], ...]
    mode: str

    name = "pad"

    def setup(self, x: Spec) -> Spec:
        for axis, (n, width) in enumerate(zip(x.shape, self.widths, strict=True)):
            if any(width) and n == 0:
                raise ShapeError(
                    f"[pad] axis {axis} of x {x.shape} is empty: nothing to {self.mode}; use "
                    'mode="constant"'
                )
        shape = tuple(n + a + b for n, (a, b) in zip(x.shape, self.widths, strict=True))
        return Spec(shape, x.dtype)

    def sources(self, axis: int, length: int) -> np.ndarray:
        """For each element of y along an axis the element of x it copies."""
        before, after = self.widths[axis]
        place = np.arange(-before, length + after)
        if self.mode == "repeat" or length == 1:
            return np.clip(place, 0, length - 1)
        period = 2 * (length - 1)
        place %= period
        return np.minimum(place, period - place)

    def runs(self, axis: int, length: int) -> Iterator[tuple[slice, slice]]:
        """Parts of y along an axis, each with what it copies: neighbours in x, or one element."""
        sources = self.sources(axis, length)
        cuts = np.flatnonzero(np.diff(sources, n=2)) + 2
        for first, stop in zip((0, *cuts), (*cuts, len(sources)), strict=True):
            a, b = int(sources[first]), int(sources[stop - 1])
            down = slice(a, b - 1 if b else None, -1)
            yield slice(first, stop), slice(a, b + 1) if a <= b else down

    def forward(self, xp: Any, x: Any) -> Any:
        for axis, width in enumerate(self.widths):
            if any(width):
                length = x.shape[axis]
                y = xp.empty(_with_length(x.shape, axis, length + sum(width)), x.dtype)
                for places, sources in self.runs(axis, length):
                    y[_along(axis, places)] = x[_along(axis, sources)]
                x = y
        return x

    def grad_x(self, xp: Any, dy: Any, x_shape: Any) -> Any:
        return xp.call(MirrorUnpad.of(self.widths, self.mode, x_shape), dy)


@dataclass(frozen=True)
class MirrorUnpad(Function):
    """The adjoint of MirrorPad: copies are added to the element they came from."""

    widths: tuple[tuple[int, int], ...]
    mode: str
    shape: tuple[int, ...]

    def setup(self, x: Spec) -> Spec:
        return Spec(self.shape, x.dtype)

    def forward(self, xp: Any, x: Any) -> Any:
        forward = MirrorPad.of(self.widths, self.mode)
        for axis, width in enumerate(self.widths):
            if not any(width):
                continue
            length = self.shape[axis]
            y = xp.empty(_with_length(x.shape, axis, length), x.dtype)
            y.fill(0)
            for places, sources in forward.runs(axis, length):
                elements, copies = y[_along(axis, sources)], x[_along(axis, places)]
                if elements.shape != copies.shape:
                    copies = xp.sum(copies, axis, keepdims=True)
                elements += copies
            x = y
        return x

    def grad_x(self, xp: Any, dy: Any) -> Any:
        return xp.call(MirrorPad.of(self.widths, self.mode), dy)


def _with_length(shape: tuple[int, ...], axis: int, length: int) -> tuple[int, ...]:
    return (*shape[:axis], length, *shape[axis + 1 :])


def _along(axis: int, part: slice) -> tuple[slice, ...]:
    """The index of a part along an axis."""
    return (*(slice(None),) * axis, part)


@function_api
def pad(x: Any, pad_width: Sequence[int], mode: str = "constant", constant_value: float = 0) -> Any:
    """Add elements at the ends of axes.

    Args:
        x: array.
        pad_width: (before, after) for each of the last axes, flat: (2, 1) pads the last axis only.
        mode: "constant"; "reflect" mirrors at the last element, which is not repeated; "repeat"
            repeats the last element.
        constant_value: for mode "constant".

    >>> import distnn as nn, distnn.functions as F
    >>> F.pad(nn.Variable((2, 3)), (1, 1, 2, 0)).shape
    (4, 5)
    """
    shape = shape_of("pad", "x", x)
    flat = whole_numbers("pad", "pad_width", pad_width)
    ndim = len(shape)
    if len(flat) % 2 or len(flat) > 2 * ndim or min(flat, default=0) < 0:
        raise ShapeError(
            f"[pad] pad_width is {flat}; pass two numbers of 0 or more, before and after, for each "
            f"of the last axes of x {shape}"
        )
    if mode not in _MODES:
        raise ArgumentError(f"[pad] mode is {mode!r}; use one of {list(_MODES)}")
    flat = (0,) * (2 * ndim - len(flat)) + flat
    widths = tuple(zip(flat[::2], flat[1::2], strict=True))
    if mode == "constant":
        value = number("pad", "constant_value", constant_value)
        return Pad.of(widths)(x, constant_value=value)
    return MirrorPad.of(widths, mode)(x)
