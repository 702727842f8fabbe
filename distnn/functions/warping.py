"""Warping: images and volumes at places that are computed, with gradients for both.

Jaderberg et al., "Spatial Transformer Networks", 2015 (arXiv:1506.02025).
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..calling import function_api
from ..errors import ArgumentError, ShapeError
from ..ndarray import NdArray
from .affine import batch_matmul
from .arithmetic import equal
from .creation import Unlink
from .mathematics import abs as absolute
from .mathematics import floor
from .norm import clip_by_value
from .places import PlaceOfCoordinates, gather_samples
from .shapes import shape_of, whole_numbers
from .shaping import reshape, stack, transpose
from .tables import beside, table

_MODES, _PADDINGS = ("linear", "nearest"), ("zero", "repeat", "reflect")


@functools.lru_cache(64)
def _base_grid(size: tuple[int, ...], align_corners: bool) -> NdArray:
    """(1, prod(size), d + 1): coordinates of all pixels from -1 to 1, the last axis first; 1."""
    axes = []
    for n in size:
        ends = 1.0 if align_corners else (n - 1) / n
        axes.append(np.linspace(-ends, ends, n) if n > 1 else np.zeros(1))
    grids = np.meshgrid(*axes, indexing="ij")
    columns = [g.ravel() for g in reversed(grids)] + [np.ones(math.prod(size))]
    return table(np.stack(columns, 1)[None])


@function_api
def affine_grid(theta: Any, size: Sequence[int], align_corners: bool = False) -> Any:
    """Places of an image's or a volume's pixels under affine maps, for F.warp_by_grid.

    Args:
        theta: (B, 2, 3) or (B, 3, 4): maps of (x, y, 1) or (x, y, z, 1), coordinates from -1 to 1.
        size: (H, W) or (D, H, W) of the result.
        align_corners: -1 and 1 are the centers of the first and last pixels, not their outer edges.
    Returns: (B, *size, 2 or 3) coordinates, x first.

    >>> import distnn as nn, distnn.functions as F
    >>> F.affine_grid(nn.Variable((5, 2, 3)), (8, 9)).shape
    (5, 8, 9, 2)
    """
    shape = shape_of("affine_grid", "theta", theta)
    lengths = whole_numbers("affine_grid", "size", size)
    d = len(lengths)
    if d not in (2, 3) or shape[1:] != (d, d + 1) or min(lengths) < 1:
        raise ShapeError(
            f"[affine_grid] theta has shape {shape} and size is {lengths}; pass (B, 2, 3) for "
            "(H, W), or (B, 3, 4) for (D, H, W)"
        )
    base = beside(theta, _base_grid(lengths, bool(align_corners)))
    places = batch_matmul(base, theta, transpose_b=True)
    return reshape(places, (shape[0], *lengths, d))


def _pixels(grid: Any, n: int, align_corners: bool) -> Any:
    """Coordinates from -1 to 1 as numbers of pixels."""
    return (grid + 1) * ((n - 1) / 2) if align_corners else grid * (n / 2) + (n - 1) / 2


def _inside(place: Any, n: int, padding: str, align_corners: bool) -> Any:
    """Places moved into the image, as the padding says."""
    if padding == "reflect":
        # Mirrored at the outer pixels' centers, or at their outer edges.
        low, length = (0.0, n - 1) if align_corners else (-0.5, n)
        if length == 0:
            return place * 0
        turn = (place - low) * (1 / (2 * length))
        turn = turn - Unlink.of()(floor(turn))  # from 0 to 1: once there and back
        place = (1 - absolute(turn * 2 - 1)) * length + low
    return clip_by_value(place, 0, n - 1) if padding != "zero" else place


@function_api
def warp_by_grid(
    x: Any,
    grid: Any,
    mode: str = "linear",
    padding_mode: str = "zero",
    align_corners: bool = False,
    channel_last: bool = False,
) -> Any:
    """An image or a volume at places: y[b, c, o] = x[b, c, at grid[b, o]], with both gradients.

    Args:
        x: (B, C, H, W) or (B, C, D, H, W).
        grid: (B, *O, 2 or 3) coordinates from -1 to 1, x first; see F.affine_grid.
        mode: "linear" interpolation, or the "nearest" pixel (no gradient for the grid).
        padding_mode: what lies outside: "zero", "repeat" the border, or "reflect" at it.
        align_corners: -1 and 1 are the centers of the first and last pixels, not their outer edges.
        channel_last: x is (B, H, W, C), and so is the result.
    Returns: (B, C, *O).

    >>> import distnn as nn, distnn.functions as F
    >>> F.warp_by_grid(nn.Variable((5, 3, 8, 8)), nn.Variable((5, 6, 7, 2))).shape
    (5, 3, 6, 7)
    """
    name = "warp_by_grid"
    shape, places = shape_of(name, "x", x), shape_of(name, "grid", grid)
    if mode not in _MODES:
        raise ArgumentError(f"[{name}] mode is {mode!r}; use one of {list(_MODES)}")
    if padding_mode not in _PADDINGS:
        raise ArgumentError(
            f"[{name}] padding_mode is {padding_mode!r}; use one of {list(_PADDINGS)}"
        )
    d = len(shape) - 2
    if d not in (2, 3) or len(places) < 2 or places[-1] != d or places[0] != shape[0]:
        raise ShapeError(
            f"[{name}] x has shape {shape} and grid {places}; pass (B, C, H, W) and (B, ..., 2), "
            "or (B, C, D, H, W) and (B, ..., 3)"
        )
    if channel_last:
        x = transpose(x, (0, d + 1, *range(1, d + 1)))
        shape = x.shape
    size, batch, count = shape[2:], shape[0], math.prod(places[1:-1])
    if 0 in size:
        raise ShapeError(f"[{name}] x has shape {shape}: nothing to look at; pass pixels")
    flat = transpose(reshape(grid, (batch, count, d)), (2, 0, 1))
    align = bool(align_corners)
    at = []
    for axis, n in enumerate(size):
        coordinate = reshape(flat[d - 1 - axis : d - axis], (batch, count))
        at.append(_inside(_pixels(coordinate, n, align), n, padding_mode, align))
    images = reshape(x, (batch, shape[1], math.prod(size)))
    y = _nearest(images, at, size) if mode == "nearest" else _between(images, at, size)
    y = reshape(y, (batch, shape[1], *places[1:-1]))
    return transpose(y, (0, *range(2, len(y.shape)), 1)) if channel_last else y


def _pick(images: Any, corners: Sequence[Any], size: Sequence[int]) -> tuple[Any, Any]:
    """The pixels at whole numbers, and 1 where they lie in the image, 0 where they do not."""
    present: Any = 1.0
    clipped = []
    for corner, n in zip(corners, size, strict=True):
        inside = clip_by_value(corner, 0, n - 1)
        clipped.append(inside)
        present = equal(corner, inside) * present
    place = PlaceOfCoordinates.of(tuple(size), "warp_by_grid")(stack(*clipped))
    return gather_samples(images, place, 2, 1), present


def _nearest(images: Any, at: Sequence[Any], size: Sequence[int]) -> Any:
    values, present = _pick(images, [Unlink.of()(floor(p + 0.5)) for p in at], size)
    return values * reshape(present, (present.shape[0], 1, present.shape[1]))


def _between(images: Any, at: Sequence[Any], size: Sequence[int]) -> Any:
    low = [Unlink.of()(floor(place)) for place in at]
    rest = [place - corner for place, corner in zip(at, low, strict=True)]
    total: Any = None
    for bits in itertools.product((0, 1), repeat=len(size)):
        corners = [corner + bit for corner, bit in zip(low, bits, strict=True)]
        values, weight = _pick(images, corners, size)
        for part, bit in zip(rest, bits, strict=True):
            weight = weight * (part if bit else 1 - part)
        term = values * reshape(weight, (weight.shape[0], 1, weight.shape[1]))
        total = term if total is None else total + term
    return total
