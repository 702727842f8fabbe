"""Convolution of any kind as products over panels of patches, straight from and to (N, C, *S).

The matrix of all patches is never made, nor are images transposed: correlation.py.

The gradient of x is a convolution of dy. With a stride there is one for each phase, which is what
results have in common that lie a stride apart: they are reached by the same taps.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..functions.im2col import Geometry
from ..functions.im2col import Patches as NumpyPatches
from ..threads import get_num_threads, parallel_for
from .correlation import (
    COLUMNS,
    DEPTH,
    FAR,
    Cut,
    Target,
    correlate,
    correlate_filters,
    cut_adjoint,
    cut_filters,
)
from .gemm import ROWS
from .panels import Window
from .simd import LANES
from .twin import flat

# Blocks of results and rows of filters that a part has at most.
_BLOCKS = 32
_ROWS = 512
_PIECE_BYTES = 2**20  # of panels and sums: they should stay in the second cache
# What it costs to lay out 16 lanes, to read a filter's addend and to put 16 results in their place,
# beside the product of 16 lanes with a number.
_PACK, _READ, _PUT = 24.0, 0.7, 16.0
_POINTWISE = 128  # pixels of a map from which BLAS is faster, with a kernel of one pixel
_CALLS = 24  # of kernels at most: each begins under Python's lock
# The same of the filters' gradient, where addends are the rows and results are summed up; how many
# parts there should be, and how small a sum may be.
_SUMMED_BLOCKS = 16
_PARTS = 12
_LEAST_RESULTS = 1024


class Correlation(NamedTuple):
    """One call of `correlate`, whose filters lie at `filters` in what cut_... made."""

    window: Window
    offsets: np.ndarray
    target: Target
    filters: int


class Sizes:
    """What Patches needs to know of a convolution."""

    def __init__(
        self, geometry: Geometry, x_shape: tuple[int, ...], w_shape: tuple[int, ...]
    ) -> None:
        self.groups = groups = geometry.group
        self.rows, self.channels = w_shape[0] // groups, w_shape[1]
        self.taps = math.prod(w_shape[2:])
        self.addends = self.channels * self.taps
        results = geometry.results(x_shape[2:], w_shape[2:])
        self.kernel, stride, dilation = (
            _three(n, 1) for n in (w_shape[2:], geometry.stride, geometry.dilation)
        )
        pad = _three(geometry.pad, 0)
        source, maps = _three(x_shape[2:], 1), _three(results, 1)
        offsets = np.array(
            [
                [k * d - p for k, d, p in zip(tap, dilation, pad, strict=True)]
                for tap in itertools.product(*map(range, self.kernel))
            ]
        )
        images = x_shape[0]
        # Then BLAS has matrices in their places, and loses little by laying them out itself.
        self.pointwise = geometry.copies_nothing(w_shape[2:]) and math.prod(maps) >= _POINTWISE
        # Panels of dy would cost more than so few rows of products with them.
        self.slim = groups == 1 and self.channels < ROWS and self.taps > 1
        self.forward = _correlation(
            Window(images, groups, self.channels, *source, *maps, *stride, self.taps, 0),
            offsets,
            Target(self.rows, *maps, 1, 1, 1, 0, 0, 0),
            0,
        )
        self.phases: list[Correlation] = []
        self.first = np.full(self.taps, FAR)
        self.distance = np.zeros(self.taps, np.int64)
        self.filters = 0  # elements of those of all phases
        self.unreached = False  # pixels that no result reads
        for first in np.ndindex(*stride):
            found = [
                [i for i in range(k) if (r + p - i * d) % s == 0]
                for k, r, p, d, s in zip(self.kernel, first, pad, dilation, stride, strict=True)
            ]
            lengths = _three(
                [-(-(n - r) // s) for n, r, s in zip(source, first, stride, strict=True)], 1
            )
            taps = list(itertools.product(*found))
            if min(lengths) < 1:
                continue
            if not taps:
                self.unreached = True
                continue
            steps = [
                [(r + p - i * d) // s
                 for i, r, p, d, s in zip(tap, first, pad, dilation, stride, strict=True)]
                for tap in taps
            ]  # fmt: skip
            window = Window(images, groups, self.rows, *maps, *lengths, 1, 1, 1, len(taps), 1)
            target = Target(self.channels, *source, *stride, *_three(first, 0))
            phase = _correlation(window, np.array(steps), target, self.filters)
            self.phases.append(phase)
            slice_size = _up(self.rows, LANES) * LANES * _up(self.channels, ROWS) * ROWS
            for number, tap in enumerate(taps):
                index = np.ravel_multi_index(tap, self.kernel)
                self.first[index] = self.filters + number * slice_size
                self.distance[index] = len(taps) * slice_size
            self.filters += groups * len(taps) * slice_size
        self._cut_sums(self.forward.window)

    def _cut_sums(self, window: Window) -> None:
        """The parts of the filters' gradient."""
        height = _up(self.addends, LANES) * LANES
        rows = min(_ROWS, height)
        ranges = self.groups * _up(height, rows) * _up(self.rows, COLUMNS)
        blocks = _up(window.results, LANES)
        shares = max(1, min(_up(_PARTS, ranges), window.results // _LEAST_RESULTS))
        self.shares = _up(blocks, _up(blocks, shares)) if blocks else 0
        self.cut = Cut(max(1, min(_SUMMED_BLOCKS, blocks)), rows)
        self.sum_parts = ranges * self.shares


sizes = functools.lru_cache(maxsize=1024)(Sizes)


def _three(lengths: Sequence[int], fill: int) -> tuple[int, int, int]:
    """Of three spatial axes."""
    a, b, c = (*(fill,) * (3 - len(lengths)), *lengths)
    return a, b, c


def _up(length: int, grain: int) -> int:
    """How many of `grain` cover `length`."""
    return -(-length // grain)


def _correlation(window: Window, offsets: np.ndarray, target: Target, filters: int) -> Correlation:
    if window.taps == 1 and not offsets.any() and window[3:6] == window[6:9] == target[1:4]:
        # Each result reads the pixel in its own place: then maps are lines, which need fewer spans.
        pixels = window.layers * window.rows * window.columns
        window = window._replace(depth=1, height=1, width=pixels, layers=1, rows=1, columns=pixels)
        target = target._replace(depth=1, height=1, width=pixels)
    return Correlation(window, offsets, target, filters)


@functools.lru_cache(maxsize=4096)
def _cut(window: Window, rows: int, threads: int) -> Cut:
    """The parts that take the least time; no bit depends on them."""
    all_blocks, addends = _up(window.results, LANES), window.addends

    def cost(cut: Cut) -> float:
        parts = window.groups * _up(all_blocks, cut.blocks) * _up(rows, cut.rows)
        part = cut.blocks * cut.rows * (addends + _PUT)
        part += addends * (_PACK * cut.blocks + _READ * cut.rows)
        # A thread may be late, and the others should not have to wait for a large part of it.
        return (_up(parts, threads) + 0.1) * part

    def bytes_of(cut: Cut) -> int:
        return 4 * LANES * cut.blocks * (cut.rows + min(addends, DEPTH))

    cuts = {
        Cut(_up(all_blocks, blocks), _up(_up(rows, row_parts), ROWS) * ROWS)
        for blocks in _shares(all_blocks, _BLOCKS)
        for row_parts in _shares(rows, _ROWS)
    }
    small = [cut for cut in cuts if bytes_of(cut) <= _PIECE_BYTES]
    return min(small or cuts, key=lambda cut: (cost(cut), cut))


def _shares(length: int, most: int) -> list[int]:
    """In how many pieces a length may be cut, so that none is above `most`."""
    fewest = max(1, _up(length, most))
    return [min(length, fewest * i) or 1 for i in (1, 2, 3, 4, 6, 8, 16)]


class Patches:
    """The products of one convolution: x (N, C, *S), w (F, C / group, *K), y (N, F, *O)."""

    def __init__(
        self, xp: Any, geometry: Geometry, x_shape: tuple[int, ...], w_shape: tuple[int, ...]
    ) -> None:
        self.xp = xp
        self.sizes = sizes(geometry, tuple(x_shape), tuple(w_shape))
        self.numpy = NumpyPatches(xp, geometry, x_shape, w_shape, np.dtype(np.float32))

    def forward(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, out: np.ndarray) -> None:
        """out = x * w + b"""
        s = self.sizes
        if s.pointwise:
            self.numpy.forward(x, w, b, out)
            return
        blocks = s.groups * _up(s.addends, LANES)
        filters = self._empty(blocks * _up(s.rows, ROWS) * ROWS * LANES)
        elements = flat(w)
        parallel_for(
            lambda i, j: cut_filters(elements, filters, s.rows, s.addends, i, j),
            blocks,
            _up(blocks, _PARTS),
        )
        bias = np.zeros(s.groups * s.rows, np.float32) if b is None else flat(b)
        self._correlate(s.forward, flat(x), filters, bias, out)

    def gradients(self, dy: Any, x: Any, w: Any, dx: Any, dw: Any) -> None:
        """dx, which takes w, and dw, which takes x: those that are not None."""
        if dw is not None:
            self._filter_gradient(dy, x, dw)
        if dx is not None:
            self._data_gradient(dy, w, dx)

    def _data_gradient(self, dy: np.ndarray, w: np.ndarray, dx: np.ndarray) -> None:
        s = self.sizes
        if s.pointwise or s.slim:
            self.numpy.gradients(dy, None, w, dx, None)
            return
        if s.unreached:
            dx.fill(0)
        filters, elements, source = self._empty(s.filters), flat(w), flat(dy)
        blocks = s.groups * _up(s.rows, LANES)
        parallel_for(
            lambda i, j: cut_adjoint(
                elements, filters, s.rows, s.channels, s.taps, s.first, s.distance, i, j
            ),
            blocks,
            _up(blocks, _PARTS),
        )
        bias = np.zeros(s.groups * s.channels, np.float32)
        for phase in s.phases:
            self._correlate(phase, source, filters[phase.filters :], bias, dx)

    def _correlate(
        self, c: Correlation, source: np.ndarray, filters: np.ndarray, bias: Any, out: np.ndarray
    ) -> None:
        if c.window.results == 0:
            return
        elements, rows = out.reshape(-1), c.target.rows
        cut = _cut(c.window, rows, get_num_threads())

        def work(i: int, j: int) -> None:
            panels, sums = self._rooms(
                cut.blocks * (DEPTH + 1) * LANES, cut.blocks * (cut.rows + ROWS) * LANES
            )
            correlate(
                source,
                c.window,
                c.offsets,
                filters,
                bias,
                elements,
                c.target,
                cut,
                panels,
                sums,
                i,
                j,
            )

        parts = (
            c.window.groups * _up(_up(c.window.results, LANES), cut.blocks) * _up(rows, cut.rows)
        )
        parallel_for(work, parts, max(1, _up(parts, _CALLS)))

    def _filter_gradient(self, dy: np.ndarray, x: np.ndarray, dw: np.ndarray) -> None:
        s, window = self.sizes, self.sizes.forward.window
        if not s.shares:
            dw.fill(0)
            return
        source, outer = flat(x), flat(dy)
        several = s.shares > 1
        out = self._empty(s.shares * dw.size) if several else dw.reshape(-1)

        def work(i: int, j: int) -> None:
            columns = COLUMNS // LANES
            panels, right, sums = self._rooms(
                s.cut.blocks * (s.cut.rows + ROWS) * LANES,
                columns * (s.cut.blocks + 1) * LANES * LANES,
                columns * (s.cut.rows + ROWS) * LANES,
            )
            correlate_filters(
                source, window, s.forward.offsets, outer, s.rows, s.cut, s.shares, panels, right,
                sums, out, i, j,
            )  # fmt: skip

        parallel_for(work, s.sum_parts, _up(s.sum_parts, _CALLS))
        if several:
            np.add.reduce(out.reshape(s.shares, -1), axis=0, out=dw.reshape(-1))

    def _rooms(self, *sizes: int) -> list[np.ndarray]:
        """Arrays for one part, by one call: parts of small maps take not much longer than that."""
        room = self._empty(sum(sizes))
        ends = list(itertools.accumulate(sizes))
        return [room[end - size : end] for size, end in zip(sizes, ends, strict=True)]

    def _empty(self, size: int) -> np.ndarray:
        return self.xp.empty((size,), np.float32)
