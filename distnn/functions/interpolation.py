"""Interpolation: images and other maps in another size."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..calling import function_api
from ..errors import ArgumentError, DtypeError, ShapeError
from ..ndarray import NdArray
from .arithmetic import identity
from .indexing import Gather
from .shapes import number, shape_of, whole_numbers
from .tables import beside, table

_MODES = ("linear", "nearest")


def _places(n: int, m: int, align_corners: bool, half_pixel: bool) -> np.ndarray:
    """Where the m elements of a result lie among the n of x."""
    place = np.arange(m, dtype=np.float64)
    if align_corners:
        return place * ((n - 1) / (m - 1) if m > 1 else 0.0)
    # NNabla has no scale where one element is left.
    scale = n / m if m > 1 else 0.0
    return np.maximum((place + 0.5) * scale - 0.5, 0) if half_pixel else place * scale


@functools.lru_cache(256)
def _nearest(n: int, m: int, align_corners: bool, half_pixel: bool, for_nn: bool) -> NdArray:
    if for_nn:
        place = (np.arange(m) + 0.5) * (n / m)
    else:
        place = _places(n, m, align_corners, half_pixel)
    return table(np.minimum(place.astype(np.int64), n - 1))


@functools.lru_cache(256)
def _linear(n: int, m: int, align: bool, half: bool) -> tuple[NdArray, NdArray, NdArray]:
    """The two neighbours of each element, and the weight of the second."""
    place = _places(n, m, align, half)
    low = np.minimum(place.astype(np.int64), n - 1)
    return table(low), table(np.minimum(low + 1, n - 1)), table(place - low)


@function_api
def interpolate(
    x: Any,
    scale: Sequence[float] | None = None,
    output_size: Sequence[int] | None = None,
    mode: str = "linear",
    align_corners: bool = False,
    half_pixel: bool = False,
    half_pixel_for_nn: bool = False,
    channel_last: bool = False,
) -> Any:
    """Resize the last axes by interpolation, axis by axis.

    Element i of a result of length m lies at s i among the n elements of x, s = n / m; with
    `align_corners` s = (n - 1) / (m - 1); with `half_pixel` at s (i + 1/2) - 1/2.

    Args:
        x: (..., *spatial), or (..., *spatial, C) with `channel_last`.
        scale: factor of length for each spatial axis; give it or `output_size`.
        output_size: length of each spatial axis.
        mode: "linear" or "nearest" (the element before the place).
        align_corners: the first and last elements of x and y are the same.
        half_pixel: places are those of the centers of pixels.
        half_pixel_for_nn: with "nearest" the element at s (i + 1/2).
        channel_last: the channels are the last axis.

    >>> import distnn as nn, distnn.functions as F
    >>> F.interpolate(nn.Variable((2, 3, 4, 4)), scale=(2, 2)).shape
    (2, 3, 8, 8)
    """
    shape = shape_of("interpolate", "x", x)
    if mode not in _MODES:
        raise ArgumentError(f"[interpolate] mode is {mode!r}; use one of {list(_MODES)}")
    if align_corners and half_pixel:
        raise ArgumentError(
            "[interpolate] align_corners and half_pixel are both True; choose one of them"
        )
    if (scale is None) == (output_size is None):
        raise ArgumentError(
            f"[interpolate] scale is {scale} and output_size is {output_size}; give one of them"
        )
    name = "output_size" if scale is None else "scale"
    given = output_size if scale is None else scale
    if not hasattr(given, "__len__"):
        raise DtypeError(f"[interpolate] {name} is {given}; pass a number for each spatial axis")
    last = len(shape) - bool(channel_last)
    assert given is not None
    first = last - len(given)
    if first < 0 or not given:
        raise ShapeError(
            f"[interpolate] {name} is {tuple(given)} "
            f"but x has shape {shape}; pass one number for each spatial axis, which are the last"
        )
    if scale is not None:
        factors = [number("interpolate", "scale", s) for s in scale]
        sizes = tuple(math.floor(f * n) for f, n in zip(factors, shape[first:], strict=False))
    else:
        sizes = whole_numbers("interpolate", "output_size", output_size)
    if min(sizes) < 1 or min(shape[first:last]) < 1:
        raise ShapeError(
            f"[interpolate] x has shape {shape} and the result's spatial axes are {sizes}; all "
            "need one element or more"
        )
    align, half, given_x = bool(align_corners), bool(half_pixel), x
    for axis, (n, m) in enumerate(zip(shape[first:last], sizes, strict=True), first):
        if mode == "nearest":
            index = _nearest(n, m, align, half, bool(half_pixel_for_nn))
            x = Gather.of(axis)(x, beside(x, index))
        elif n != m:
            x = _between(x, axis, *_linear(n, m, align, half))
    return identity(x) if x is given_x else x


def _between(x: Any, axis: int, low: NdArray, high: NdArray, weight: NdArray) -> Any:
    """(1 - weight) x[low] + weight x[high] along an axis."""
    a = Gather.of(axis)(x, beside(x, low))
    b = Gather.of(axis)(x, beside(x, high))
    along = [1] * len(x.shape)
    along[axis] = weight.shape[0]
    return a + (b - a) * beside(x, weight.view(along))
