"""Convolution of maps of few pixels with many channels, as last layers have it: images are lanes.

Where a map is as small as its kernel most taps fall outside of it. With the images beside each
other a result is a sum over those pixels that are there, and none over padding; filters, which are
the bulk of the memory, are read where they lie, and only once.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np

from ..functions.im2col import Geometry
from ..threads import parallel_for
from .compiler import kernel
from .panels import fetch
from .pixel_tiles import ROWS, multiply_row, multiply_tile, vectors_of
from .simd import LANES, load_at, store_transposed
from .twin import flat

Shape = tuple[int, ...]

_MOST_PIXELS, _MOST_RESULTS, _MOST_TAPS = 64, 16, LANES
_LEAST_WEIGHTS = 2**15
_FULL = 0.75  # of the lanes
_DEPTH = 256  # addends that are added up in registers
_CALLS = 24  # of kernels at most: each begins under Python's lock


def suits(geometry: Geometry, x_shape: Shape, w_shape: Shape) -> bool:
    """Whether maps are small, and images fill the lanes."""
    images, taps = x_shape[0], math.prod(w_shape[2:])
    lanes = -(-images // LANES) * LANES
    return (
        geometry.group == 1
        and 1 < taps <= _MOST_TAPS
        and math.prod(x_shape[2:]) <= _MOST_PIXELS
        and math.prod(geometry.results(x_shape[2:], w_shape[2:])) <= _MOST_RESULTS
        and math.prod(w_shape) >= _LEAST_WEIGHTS
        and images > 0
        and images >= _FULL * lanes
    )


@kernel
def multiply(
    x, w, pairs, starts, places, bias, rows, row, depth, step, lanes, tap_step, out, start, stop
):
    """out (results, rows, lanes) = sums over pairs of a tap and a pixel of w[tap] x[pixel] + bias.

    x (pixels, depth, lanes); parts number tiles of rows, which are `row` elements apart in w, their
    addends `step`, and taps `tap_step`. Pairs of a result are those from its start to the next.
    """
    results = len(starts) - 1
    for part in range(start, stop):
        r = part * ROWS
        height = min(ROWS, rows - r)
        following = 0
        share = -(-depth // max(1, starts[results]))
        for o in range(results):
            if starts[o] == starts[o + 1]:  # of padding alone
                for i in range(height):
                    c = (o * rows + r + i) * lanes
                    out[c : c + lanes] = bias[r + i]
            for pair in range(starts[o], starts[o + 1]):
                f = r * row + pairs[pair, 0] * tap_step
                a = pairs[pair, 1] * depth * lanes
                if row < step:  # rows of the next tile lie beside these, as far apart as addends
                    for k in range(following, min(following + share, depth)):
                        for i in range(0, ROWS * row + LANES, LANES):
                            fetch(w, (r + ROWS) * row + k * step + i, 0)
                    following += share
                for k in range(0, depth, _DEPTH):
                    count, add = min(_DEPTH, depth - k), 1 if k or pair > starts[o] else 0
                    n = 0
                    while n < lanes:
                        vectors = vectors_of(lanes - n)
                        multiply_tile(
                            vectors, w, f + k * step, x, a + n, places, k, bias, r, out,
                            (o * rows + r) * lanes + n, row, step, lanes, count, height, LANES, add,
                        )  # fmt: skip
                        n += vectors * LANES


@kernel
def multiply_maps(dy, x, pairs, starts, places, filters, channels, lanes, sums, out, start, stop):
    """Gradients of filters, out (filters, channels, taps); parts number tiles of filters.

    dy (results, filters, lanes), x (pixels, channels / 16, lanes, 16). Pairs of a tap are those of
    a result and a pixel from its start to the next.
    """
    taps = len(starts) - 1
    columns = -(-channels // LANES) * LANES
    tap_rows = np.zeros(LANES, np.int64)  # where a row of each tap begins
    for tap in range(taps):
        tap_rows[tap] = tap * ROWS * columns
    for part in range(start, stop):
        r = part * ROWS
        height = min(ROWS, filters - r)
        for tap in range(taps):
            if starts[tap] == starts[tap + 1]:  # that reaches nothing
                sums[tap * ROWS * columns : (tap + 1) * ROWS * columns] = 0
            for pair in range(starts[tap], starts[tap + 1]):
                multiply_row(
                    dy, pairs[pair, 0] * filters * lanes, places, r,
                    x[pairs[pair, 1] * columns * lanes :], sums, tap * ROWS * columns,
                    lanes * LANES, columns, lanes, height, 1 if pair > starts[tap] else 0,
                )  # fmt: skip
        for i in range(height):
            for c in range(0, channels, LANES):
                values = load_at(sums, i * columns + c, tap_rows, 0)
                place = ((r + i) * channels + c) * taps
                store_transposed(out, place, taps, min(LANES, channels - c), taps, values)


class Pairs:
    """Which pixel a result reads by a tap: for each of the three, pairs of the others."""

    def __init__(self, geometry: Geometry, x_shape: Shape, w_shape: Shape) -> None:
        lengths, kernel = x_shape[2:], w_shape[2:]
        self.of_results = geometry.results(lengths, kernel)
        found = []
        for result in np.ndindex(self.of_results):
            for tap in np.ndindex(kernel):
                pixel = [
                    o * s + k * d - p
                    for o, k, p, s, d in zip(result, tap, *geometry[:3], strict=True)
                ]
                if all(0 <= i < n for i, n in zip(pixel, lengths, strict=True)):
                    found.append(
                        [
                            int(np.ravel_multi_index(place, shape))
                            for place, shape in (
                                (result, self.of_results), (tap, kernel), (pixel, lengths),
                            )
                        ]
                    )  # fmt: skip
        results, taps, pixels = (math.prod(shape) for shape in (self.of_results, kernel, lengths))
        self.forward = _grouped(found, 0, (1, 2), results)
        self.data = _grouped(found, 2, (1, 0), pixels)
        self.filters = _grouped(found, 1, (0, 2), taps)


def _grouped(
    found: list[list[int]], by: int, others: tuple[int, int], number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs in the order of what they belong to, and where those of each begin."""
    ordered = sorted(found, key=lambda triple: triple[by])
    counts = np.bincount([triple[by] for triple in ordered], minlength=number)
    starts = np.array([0, *itertools.accumulate(counts.tolist())])
    pairs = [[triple[i] for i in others] for triple in ordered]
    return np.array(pairs, np.int64).reshape(-1, 2), starts


pairs_of = functools.lru_cache(maxsize=1024)(Pairs)


class TinyMaps:
    """The products of one convolution: x (N, C, *S), w (F, C, *K), y (N, F, *O)."""

    def __init__(self, xp: Any, geometry: Geometry, x_shape: Shape, w_shape: Shape) -> None:
        self.xp = xp
        self.images, self.channels = x_shape[:2]
        self.filters, self.taps = w_shape[0], math.prod(w_shape[2:])
        self.lanes = -(-self.images // LANES) * LANES
        self.pairs = pairs_of(geometry, tuple(x_shape), tuple(w_shape))

    def forward(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, out: np.ndarray) -> None:
        """out = x * w + b"""
        depth = self.channels
        sizes = (self.filters, depth * self.taps, depth, self.taps)
        self._multiply(x, w, self.pairs.forward, b, sizes, out)

    def gradients(self, dy: Any, x: Any, w: Any, dx: Any, dw: Any) -> None:
        """dx, which takes w, and dw, which takes x: those that are not None."""
        if dw is not None:
            self._filter_gradient(dy, x, dw)
        if dx is not None:
            sizes = (self.channels, self.taps, self.filters, self.channels * self.taps)
            self._multiply(dy, w, self.pairs.data, None, sizes, dx)

    def _multiply(
        self, x: np.ndarray, w: np.ndarray, pairs: tuple[np.ndarray, np.ndarray], b: Any,
        sizes: tuple[int, int, int, int], out: np.ndarray,
    ) -> None:  # fmt: skip
        rows, row, depth, step = sizes
        source, weights, lanes = self._by_lanes(x), flat(w), self.lanes
        tiles = -(-rows // ROWS)
        results = len(pairs[1]) - 1
        target, bias = self._empty(results, rows, lanes), np.zeros(tiles * ROWS, np.float32)
        if b is not None:
            bias[:rows] = b
        places, elements = np.arange(depth) * lanes, target.reshape(-1)
        parallel_for(
            lambda i, j: multiply(
                source, weights, *pairs, places, bias, rows, row, depth, step, lanes, 1, elements,
                i, j,
            ),
            tiles,
            -(-tiles // _CALLS),
        )  # fmt: skip
        out.reshape(self.images, rows, results)[...] = target[..., : self.images].transpose(2, 1, 0)

    def _filter_gradient(self, dy: np.ndarray, x: np.ndarray, dw: np.ndarray) -> None:
        lanes, channels, filters = self.lanes, self.channels, self.filters
        blocks = -(-channels // LANES)
        pixels = math.prod(x.shape[2:])
        right = np.zeros((pixels, blocks, lanes, LANES), np.float32)
        by_pixel = x.reshape(self.images, channels, pixels).transpose(2, 0, 1)
        for block in range(blocks):
            part = by_pixel[..., block * LANES : (block + 1) * LANES]
            right[:, block, : self.images, : part.shape[2]] = part
        left, elements, out = self._by_lanes(dy), right.reshape(-1), dw.reshape(-1)
        places, tiles = np.arange(filters) * lanes, -(-filters // ROWS)

        def work(i: int, j: int) -> None:
            sums = self._empty(max(self.taps, 1) * ROWS * blocks * LANES)
            multiply_maps(
                left, elements, *self.pairs.filters, places, filters, channels, lanes, sums, out,
                i, j,
            )  # fmt: skip

        parallel_for(work, tiles, -(-tiles // _CALLS))

    def _by_lanes(self, maps: np.ndarray) -> np.ndarray:
        """(N, C, *S) as (S, C, lanes), flat."""
        pixels = math.prod(maps.shape[2:])
        found = np.zeros((pixels, maps.shape[1], self.lanes), np.float32)
        found[..., : self.images] = maps.reshape(*maps.shape[:2], pixels).transpose(2, 1, 0)
        return found.reshape(-1)

    def _empty(self, *shape: int) -> np.ndarray:
        return self.xp.empty(shape, np.float32)
