"""Samples changed at random, one by one: flips, shifts and crops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calling import function_api
from ..errors import ShapeError
from ..function import Function, Spec
from ..random import Draw
from .arithmetic import where
from .padding import pad
from .places import elements_at
from .rearranging import check_border, flip, shifted_places
from .shapes import axes_of, axis_of, shape_of, whole_number, whole_numbers
from .shaping import broadcast

_PLACE = np.dtype(np.int64)


@dataclass(frozen=True)
class Coins(Function):
    """y = 1 or 0 for each sample of x, with probability 1/2."""

    base: int
    seed: int

    random = True

    def setup(self, x: Spec) -> Spec:
        return Spec((*x.shape[: self.base], *(1,) * (x.ndim - self.base)), x.dtype)

    def forward(self, xp: Any, x: Any, *, random: Draw) -> Any:
        return random.bernoulli(0.5, (*x.shape[: self.base], *(1,) * (x.ndim - self.base)))


@function_api
def random_flip(
    x: Any, axes: Sequence[int] | None = None, base_axis: int = 1, seed: int = -1
) -> Any:
    """Turn axes of each sample around with probability 1/2, each axis by itself.

    Args:
        x: array; the axes before `base_axis` number the samples.
        axes: to turn around, from `base_axis` on; the last one by default.
        base_axis: first axis of a sample.
        seed: start of this call's own random numbers; -1 uses those of `nn.seed`.

    >>> import distnn as nn, distnn.functions as F
    >>> F.random_flip(nn.Variable((4, 3, 8, 8)), axes=(2, 3)).shape
    (4, 3, 8, 8)
    """
    shape = shape_of("random_flip", "x", x)
    base = axis_of("random_flip", base_axis, len(shape), "base_axis")
    seed = whole_number("random_flip", "seed", seed)
    turned = axes_of("random_flip", [len(shape) - 1] if axes is None else axes, len(shape), "axes")
    if min(turned, default=base) < base:
        raise ShapeError(
            f"[random_flip] axes is {tuple(axes or ())} and base_axis {base}; an axis of the "
            "samples is turned around, no axis before base_axis"
        )
    given = x
    for number_, axis in enumerate(turned):
        own = seed if seed < 0 else seed + number_
        x = where(broadcast(Coins.of(base, own)(given), shape), flip(x, (axis,)), x)
    return x


def _below(random: Draw, shape: tuple[int, ...], base: int, limits: Sequence[int]) -> list[Any]:
    """For each limit a random whole number below it for each sample, with x's number of axes."""
    samples = shape[:base]
    words = random.words(math.prod(samples) * len(limits)).astype(np.uint64)
    words = words.reshape(*samples, *(1,) * (len(shape) - base), len(limits))
    return [
        ((words[..., i] * np.uint64(n)) >> np.uint64(32)).astype(_PLACE)
        for i, n in enumerate(limits)
    ]


def _along(xp: Any, axis: int, n: int, ndim: int) -> Any:
    """0, 1, ... along an axis."""
    return xp.arange(n).reshape([n if i == axis else 1 for i in range(ndim)])


@dataclass(frozen=True)
class RandomShiftPlaces(Function):
    """y = the place in x that each element of a shifted x copies, shifted sample by sample."""

    shifts: tuple[int, ...]  # largest, of the last axes
    border: str
    base: int
    seed: int

    random = True

    def setup(self, x: Spec) -> Spec:
        return Spec(x.shape, _PLACE)

    def forward(self, xp: Any, x: Any, *, random: Draw) -> Any:
        first = x.ndim - len(self.shifts)
        drawn = _below(random, x.shape, self.base, [2 * most + 1 for most in self.shifts])
        place = 0
        for axis, n in enumerate(x.shape):
            index = _along(xp, axis, n, x.ndim)
            if axis >= first:
                by = drawn[axis - first] - self.shifts[axis - first]
                index = shifted_places(index, n, by, self.border)
            place = place * n + index
        return place


@function_api
def random_shift(
    x: Any,
    shifts: Sequence[int] | None = None,
    border_mode: str = "nearest",
    constant_value: float = 0,
    base_axis: int = 1,
    seed: int = -1,
) -> Any:
    """Shift each sample by random numbers of elements; see F.shift.

    Args:
        x: array; the axes before `base_axis` number the samples.
        shifts: largest shift, either way, of each of the last axes.
        border_mode: "nearest", "reflect" or "constant".
        constant_value: what comes in with "constant".
        base_axis: first axis of a sample.
        seed: start of this call's own random numbers; -1 uses those of `nn.seed`.

    >>> import distnn as nn, distnn.functions as F
    >>> F.random_shift(nn.Variable((4, 3, 8, 8)), (2, 2)).shape
    (4, 3, 8, 8)
    """
    shape = shape_of("random_shift", "x", x)
    base = axis_of("random_shift", base_axis, len(shape), "base_axis")
    most = whole_numbers("random_shift", "shifts", () if shifts is None else shifts)
    if len(most) > len(shape) - base or min(most, default=0) < 0:
        raise ShapeError(
            f"[random_shift] shifts is {most}; pass a number of 0 or more for each of the last "
            f"axes of x {shape}, at most {len(shape) - base} (base_axis is {base})"
        )
    seed = whole_number("random_shift", "seed", seed)
    if border_mode == "constant":
        widths = [w for m in most for w in (m, m)]
        return random_crop(
            pad(x, widths, "constant", constant_value), shape[len(shape) - len(most) :], base, seed
        )
    check_border("random_shift", border_mode)
    return elements_at(x, RandomShiftPlaces.of(most, border_mode, base, seed)(x))


@dataclass(frozen=True)
class RandomCropPlaces(Function):
    """y = the places in x of a part of `lengths` along the last axes, chosen sample by sample."""

    lengths: tuple[int, ...]
    base: int
    seed: int

    random = True

    def setup(self, x: Spec) -> Spec:
        return Spec((*x.shape[: x.ndim - len(self.lengths)], *self.lengths), _PLACE)

    def forward(self, xp: Any, x: Any, *, random: Draw) -> Any:
        first = x.ndim - len(self.lengths)
        free = [n - m + 1 for n, m in zip(x.shape[first:], self.lengths, strict=True)]
        drawn = _below(random, x.shape, self.base, free)
        place = 0
        for axis, n in enumerate(x.shape):
            cut = axis >= first
            index = _along(xp, axis, self.lengths[axis - first] if cut else n, x.ndim)
            if cut:
                index = index + drawn[axis - first]
            place = place * n + index
        return place


@function_api
def random_crop(
    x: Any, shape: Sequence[int] | None = None, base_axis: int = 1, seed: int = -1
) -> Any:
    """A part of each sample, at a random position.

    Args:
        x: array; the axes before `base_axis` number the samples.
        shape: lengths of the part, for the last axes.
        base_axis: first axis of a sample.
        seed: start of this call's own random numbers; -1 uses those of `nn.seed`.

    >>> import distnn as nn, distnn.functions as F
    >>> F.random_crop(nn.Variable((4, 3, 8, 8)), (3, 6, 6)).shape
    (4, 3, 6, 6)
    """
    whole = shape_of("random_crop", "x", x)
    base = axis_of("random_crop", base_axis, len(whole), "base_axis")
    lengths = whole_numbers("random_crop", "shape", () if shape is None else shape)
    axes = len(whole) - len(lengths)
    if axes < base or any(not 1 <= m <= n for m, n in zip(lengths, whole[axes:], strict=True)):
        raise ShapeError(
            f"[random_crop] shape is {lengths}; pass lengths within those of the last axes of x "
            f"{whole}, at most {len(whole) - base} (base_axis is {base})"
        )
    seed = whole_number("random_crop", "seed", seed)
    return elements_at(x, RandomCropPlaces.of(lengths, base, seed)(x))
