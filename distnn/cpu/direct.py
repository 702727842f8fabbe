"""Convolution of images of few channels, as first layers have it, without laying out patches.

Some rows of an image are copied into planes with their padding, one for each channel and, with a
stride, for each phase of columns, so that neighbouring results read neighbouring pixels. What an
addend reads for 16 results is then a vector of a plane, and tiles are multiplied in place.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from ..functions.im2col import Geometry
from ..threads import parallel_for
from .compiler import kernel
from .patches import Patches
from .pixel_tiles import (
    ROWS,
    cut_filters,
    multiply_row,
    multiply_tile,
    transpose,
    vectors_of,
)
from .simd import LANES
from .twin import flat

Shape = tuple[int, ...]

_MOST_CHANNELS, _LEAST_COLUMNS = 8, 32
_MOST_ADDENDS = 512
_DEPTH = 256  # addends that are added up in registers
_PLANE_BYTES = 2**17  # of the rows that a part reads: they stay in the nearest caches
_CALLS = 24  # of kernels at most: each begins under Python's lock
_SUMS = 8  # of the filters' gradient, added up at the end; a fixed number, for the sake of the bits


class Planes(NamedTuple):
    """How rows of images lie in planes, and which results a part of the work has."""

    channels: int
    height: int
    width: int
    above: int
    left: int
    step_h: int
    step_w: int
    plane_rows: int
    pitch: int  # elements of a plane's row
    rows: int  # results of an image: rows x columns
    columns: int
    part: int  # rows of results


def suits(geometry: Geometry, x_shape: Shape, w_shape: Shape) -> bool:
    """Whether images have few channels and wide results."""
    return (
        len(x_shape) == 4
        and geometry.group == 1
        and x_shape[1] <= _MOST_CHANNELS
        and math.prod(w_shape[2:]) > 1
        and math.prod(w_shape[1:]) <= _MOST_ADDENDS
        and geometry.results(x_shape[2:], w_shape[2:])[1] >= _LEAST_COLUMNS
    )


@kernel
def _fill(x, image, first, planes, room):
    """Copy what the results from row `first` on read into their planes."""
    width, pitch, step = planes.width, planes.pitch, planes.step_w
    target = 0
    for channel in range(planes.channels):
        base = (image * planes.channels + channel) * planes.height
        for phase in range(step):
            # Column q of a plane is pixel q * step + phase - left.
            begin = -((phase - planes.left) // step)
            end = max(begin, min((width - 1 - phase + planes.left) // step + 1, pitch))
            for i in range(planes.plane_rows):
                row = room[target : target + pitch]
                target += pitch
                y = first * planes.step_h + i - planes.above
                if y < 0 or y >= planes.height:
                    row[:] = 0
                    continue
                source = (base + y) * width + phase - planes.left
                row[:begin] = 0
                row[end:] = 0
                for q in range(begin, end):
                    row[q] = x[source + q * step]


@kernel
def correlate(x, filters, places, bias, planes, rows, depth, room, out, start, stop):
    """out = x * filters + bias, some rows of results at a time; parts number images x such."""
    parts = -(-planes.rows // planes.part)
    pixels = planes.rows * planes.columns
    for part in range(start, stop):
        image, number = divmod(part, parts)
        first = number * planes.part
        _fill(x, image, first, planes, room)
        for y in range(first, min(first + planes.part, planes.rows)):
            line = (y - first) * planes.step_h * planes.pitch
            column = 0
            while column < planes.columns:
                vectors = vectors_of(planes.columns - column)
                few = min(vectors * LANES, planes.columns - column)
                lanes = few - (vectors - 1) * LANES
                target = image * rows * pixels + y * planes.columns + column
                for k in range(0, depth, _DEPTH):
                    count, add = min(_DEPTH, depth - k), 1 if k else 0
                    for r in range(0, rows, ROWS):
                        f, c, h = r * depth + k * ROWS, target + r * pixels, min(ROWS, rows - r)
                        multiply_tile(
                            vectors, filters, f, room, line + column, places, k, bias, r, out, c,
                            1, ROWS, pixels, count, h, lanes, add,
                        )  # fmt: skip
                column += few


@kernel
def correlate_filters(x, dy, places, planes, filters, depth, share, room, right, out, start, stop):
    """Gradients of filters; a share of the parts of `correlate` has an out (depth, filters)."""
    parts = -(-planes.rows // planes.part)
    pixels = planes.rows * planes.columns
    block = (planes.columns + LANES) * LANES
    for part in range(start, stop):
        image, number = divmod(part, parts)
        first = number * planes.part
        sums = part // share * depth * filters
        _fill(x, image, first, planes, room)
        for y in range(first, min(first + planes.part, planes.rows)):
            line = (y - first) * planes.step_h * planes.pitch
            begin = image * filters * pixels + y * planes.columns
            transpose(dy, begin, filters, pixels, planes.columns, right, block)
            add = 1 if part % share or y > first else 0
            for k in range(0, depth, ROWS):
                multiply_row(
                    room, line, places, k, right, out, sums + k * filters, block, filters,
                    planes.columns, min(ROWS, depth - k), add,
                )  # fmt: skip


class Sizes:
    """What Direct needs to know of a convolution."""

    def __init__(self, geometry: Geometry, x_shape: Shape, w_shape: Shape) -> None:
        images, channels, height, width = x_shape
        rows, columns = geometry.results(x_shape[2:], w_shape[2:])
        (above, left), (step_h, step_w), (by_h, by_w) = geometry[:3]
        reach_h, reach_w = ((k - 1) * d for k, d in zip(w_shape[2:], (by_h, by_w), strict=True))
        # Vectors of the last results begin in a row, and may end 15 elements behind it.
        pitch = reach_w // step_w + -(-columns // LANES) * LANES
        line = 4 * channels * step_w * pitch
        part = max(1, min(rows, (_PLANE_BYTES // line - reach_h) // step_h))
        plane_rows = (part - 1) * step_h + reach_h + 1
        self.planes = Planes(
            channels, height, width, above, left, step_h, step_w, plane_rows, pitch, rows, columns,
            part,
        )  # fmt: skip
        self.parts = images * -(-rows // part)
        self.room = channels * step_w * plane_rows * pitch + LANES
        self.places = np.array(
            [
                ((c * step_w + j * by_w % step_w) * plane_rows + i * by_h) * pitch
                + j * by_w // step_w
                for c, i, j in itertools.product(*map(range, w_shape[1:]))
            ]
        )
        self.share = -(-self.parts // _SUMS)
        self.shares = -(-self.parts // self.share) if self.parts else 0


sizes = functools.lru_cache(maxsize=1024)(Sizes)


class Direct:
    """The products of one convolution: x (N, C, H, W), w (F, C, KH, KW), y (N, F, OH, OW)."""

    def __init__(self, xp: Any, geometry: Geometry, x_shape: Shape, w_shape: Shape) -> None:
        self.xp, self.filters = xp, w_shape[0]
        self.sizes = sizes(geometry, tuple(x_shape), tuple(w_shape))
        self.depth = len(self.sizes.places)
        # First layers need no dx.
        self.patches = Patches(xp, geometry, x_shape, w_shape)

    def forward(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, out: np.ndarray) -> None:
        """out = x * w + b"""
        s, rows, depth = self.sizes, self.filters, self.depth
        tiles = -(-rows // ROWS)
        filters, bias = self._empty(tiles * ROWS * depth), np.zeros(tiles * ROWS, np.float32)
        cut_filters(flat(w), filters, rows, depth, depth, 1, 0, tiles)
        if b is not None:
            bias[:rows] = b
        source, target = flat(x), out.reshape(-1)

        def work(i: int, j: int) -> None:
            room = self._empty(s.room)
            correlate(source, filters, s.places, bias, s.planes, rows, depth, room, target, i, j)

        parallel_for(work, s.parts, max(1, s.parts // _CALLS))

    def gradients(self, dy: Any, x: Any, w: Any, dx: Any, dw: Any) -> None:
        """dx, which takes w, and dw, which takes x: those that are not None."""
        if dw is not None:
            self._filter_gradient(dy, x, dw)
        if dx is not None:
            self.patches.gradients(dy, None, w, dx, None)

    def _filter_gradient(self, dy: np.ndarray, x: np.ndarray, dw: np.ndarray) -> None:
        s, filters, depth = self.sizes, self.filters, self.depth
        if not s.parts:
            dw.fill(0)
            return
        out, source, outer = self._empty(s.shares * depth * filters), flat(x), flat(dy)

        def work(i: int, j: int) -> None:
            room = self._empty(s.room)
            right = self._empty(-(-filters // LANES) * (s.planes.columns + LANES) * LANES)
            correlate_filters(
                source, outer, s.places, s.planes, filters, depth, s.share, room, right, out, i, j
            )

        parallel_for(work, s.parts, s.share)
        total = np.add.reduce(out.reshape(s.shares, depth, filters), axis=0)
        dw.reshape(filters, depth)[...] = total.T

    def _empty(self, size: int) -> np.ndarray:
        return self.xp.empty((size,), np.float32)
