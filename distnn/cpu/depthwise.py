"""Convolution with one filter for each channel, by the definition: rows of 16 results at a time.

A map is copied into a plane with its padding, which stays in the cache while all taps read it. The
gradient of x is the same with dy, whose pixels lie a stride apart in their plane.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from ..functions.im2col import Geometry
from ..threads import parallel_for
from .compiler import kernel
from .panels import even_lanes, even_lanes_of_overlapping
from .simd import LANES, broadcast, load, load_part, store
from .twin import flat

_CALLS = 24  # of kernels at most: each begins under Python's lock
_STEPS = (1, 2)  # strides of columns that vectors read


class Plane(NamedTuple):
    """Maps of height x width pixels, each `spread` pixels after the last one in a plane."""

    height: int
    width: int
    spread_h: int
    spread_w: int
    above: int
    left: int
    rows: int  # of the plane
    columns: int


class Reading(NamedTuple):
    """How results read a plane: from pixel o * step on, and the taps from there."""

    rows: int
    columns: int
    step_h: int
    step_w: int


@kernel
def _spread(source, start, plane, array):
    """Copy a map into its plane; up to 15 zeros behind each row, before the next one is written."""
    room = -(-(plane.columns - plane.left) // plane.spread_w)
    count = max(0, min(plane.width, room))
    for y in range(plane.height):
        row = y * plane.spread_h + plane.above
        if row >= plane.rows:
            break
        first = row * plane.columns + plane.left
        begin = start + y * plane.width
        if plane.spread_w == 1:
            for x in range(0, count, LANES):
                store(array, first + x, load_part(source, begin + x, count - x))
        else:
            for x in range(count):
                array[first + x * plane.spread_w] = source[begin + x]


@functools.partial(kernel, forceinline=True)
def _read(array, place, step):
    if step == 1:
        return load(array, place)
    return even_lanes_of_overlapping(load(array, place), load(array, place + LANES - 1))


@functools.partial(kernel, forceinline=True)
def _read_part(array, place, step, count):
    if step == 1:
        return load_part(array, place, count)
    few = min(2 * count - 1, LANES)
    high = load_part(array, place + LANES, 2 * count - 1 - few)
    return even_lanes(load_part(array, place, few), high)


@kernel
def correlate(source, plane, filters, offsets, bias, reading, out, start, stop):
    """Results of some maps; filters (channels, taps), and where in the plane each tap reads."""
    channels, taps = filters.shape
    array = np.zeros(plane.rows * plane.columns + 3 * LANES, np.float32)
    rest = np.empty(LANES, np.float32)
    end = stop * reading.rows * reading.columns
    for part in range(start, stop):
        channel = part % channels
        _spread(source, part * plane.height * plane.width, plane, array)
        for y in range(reading.rows):
            row = y * reading.step_h * plane.columns
            target = (part * reading.rows + y) * reading.columns
            for x in range(0, reading.columns, LANES):
                place = row + x * reading.step_w
                total = broadcast(bias[channel])
                for tap in range(taps):
                    values = _read(array, place + offsets[tap], reading.step_w)
                    total = total + values * filters[channel, tap]
                # What is too much here is written again with the row, or the map, that follows.
                if target + x + LANES <= end:
                    store(out, target + x, total)
                else:
                    store(rest, 0, total)
                    for i in range(min(LANES, reading.columns - x)):
                        out[target + x + i] = rest[i]


@kernel
def correlate_filters(source, plane, offsets, dy, reading, images, out, start, stop):
    """Gradients of the filters of some channels, out (channels, taps)."""
    channels, taps = out.shape
    array = np.zeros(plane.rows * plane.columns + 3 * LANES, np.float32)
    sums = np.empty(taps * LANES, np.float32)
    for channel in range(start, stop):
        sums[:] = 0
        for image in range(images):
            number = image * channels + channel
            _spread(source, number * plane.height * plane.width, plane, array)
            for tap in range(taps):
                total = broadcast(np.float32(0))
                for y in range(reading.rows):
                    row = y * reading.step_h * plane.columns + offsets[tap]
                    begin = (number * reading.rows + y) * reading.columns
                    for x in range(0, reading.columns, LANES):
                        place, count = row + x * reading.step_w, reading.columns - x
                        if count >= LANES:
                            values = _read(array, place, reading.step_w)
                            total = total + values * load(dy, begin + x)
                        else:
                            values = _read_part(array, place, reading.step_w, count)
                            total = total + values * load_part(dy, begin + x, count)
                store(sums, tap * LANES, load(sums, tap * LANES) + total)
        for tap in range(taps):
            number = 0.0
            for i in range(LANES):
                number += sums[tap * LANES + i]
            out[channel, tap] = number


def suits(geometry: Geometry, x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> bool:
    """Whether there is one filter for each channel, and vectors can be read."""
    return (
        len(x_shape) <= 4
        and geometry.group == x_shape[1] == w_shape[0]
        and geometry.stride[-1] in _STEPS
    )


class Sizes:
    """Planes of one convolution, how they are read, and where taps are in them."""

    def __init__(
        self, geometry: Geometry, x_shape: tuple[int, ...], w_shape: tuple[int, ...]
    ) -> None:
        results = geometry.results(x_shape[2:], w_shape[2:])
        (h, w), (rows, columns), (kh, kw), (sh, sw), (dh, dw) = (
            _two(n, 1)
            for n in (x_shape[2:], results, w_shape[2:], geometry.stride, geometry.dilation)
        )
        top, left = _two(geometry.pad, 0)
        taps = [(i * dh, j * dw) for i in range(kh) for j in range(kw)]
        height, width = (rows - 1) * sh + taps[-1][0] + 1, (columns - 1) * sw + taps[-1][1] + 1
        self.x = Plane(h, w, 1, 1, top, left, height, width)
        self.y = Reading(rows, columns, sh, sw)
        self.taps = np.array([i * width + j for i, j in taps])
        # Pixel i of dx reads dy at (i + pad - tap) / stride, in a plane in which i begins at
        # the pixel that its last tap reads.
        above, before = max(0, taps[-1][0] - top), max(0, taps[-1][1] - left)
        height, width = h + top + above, w + left + before
        self.dy = Plane(rows, columns, sh, sw, above, before, height, width)
        self.dx = Reading(h, w, 1, 1)
        self.adjoint_taps = np.array(
            [(above + top - i) * width + before + left - j for i, j in taps]
        )


sizes = functools.lru_cache(maxsize=1024)(Sizes)


def _two(lengths: tuple[int, ...], fill: int) -> tuple[int, int]:
    a, b = (*(fill,) * (2 - len(lengths)), *lengths)
    return a, b


class Depthwise:
    """The sums of one convolution: x (N, C, *S), w (C, 1, *K), y (N, C, *O)."""

    def __init__(
        self, xp: Any, geometry: Geometry, x_shape: tuple[int, ...], w_shape: tuple[int, ...]
    ) -> None:
        self.images, self.channels = x_shape[:2]
        self.sizes = sizes(geometry, tuple(x_shape), tuple(w_shape))

    def forward(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, out: np.ndarray) -> None:
        """out = x * w + b"""
        s = self.sizes
        self._correlate(x, s.x, w, s.taps, b, s.y, out)

    def gradients(self, dy: Any, x: Any, w: Any, dx: Any, dw: Any) -> None:
        """dx, which takes w, and dw, which takes x: those that are not None."""
        s = self.sizes
        if dx is not None:
            self._correlate(dy, s.dy, w, s.adjoint_taps, None, s.dx, dx)
        if dw is not None:
            source, outer, out = flat(x), flat(dy), dw.reshape(self.channels, -1)
            parallel_for(
                lambda i, j: correlate_filters(
                    source, s.x, s.taps, outer, s.y, self.images, out, i, j
                ),
                self.channels,
                -(-self.channels // _CALLS),
            )

    def _correlate(
        self, source: Any, plane: Plane, w: Any, taps: Any, b: Any, reading: Reading, out: Any
    ) -> None:
        elements, target = flat(source), out.reshape(-1)
        filters = flat(w).reshape(self.channels, -1)
        bias = np.zeros(self.channels, np.float32) if b is None else flat(b)
        maps = self.images * self.channels
        parallel_for(
            lambda i, j: correlate(elements, plane, filters, taps, bias, reading, target, i, j),
            maps,
            max(1, -(-maps // _CALLS)),
        )
