"""Convolution with kernels of one pixel: products with an image's own memory, without a copy.

Of an image, maps are the rows of a matrix x: y = w x, dx = w^T dy, and dw, summed over images,
dy x^T. Only filters are laid out anew, and in dw one of the two factors, piece by piece. With a
stride, the pixels that are read are copied together first, or those of dx are spread in the end.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..functions.im2col import Geometry
from ..threads import parallel_for
from .compiler import kernel
from .panels import fetch
from .pixel_tiles import (
    ROWS,
    VECTORS,
    cut_filters,
    multiply_row,
    multiply_tile,
    transpose,
    vectors_of,
)
from .simd import LANES
from .twin import flat

# Addends that are added up in registers: channels of a product, and pixels of dw.
_DEPTH, _PIXELS = 128, 256
_CALLS = 24  # of kernels at most: each begins under Python's lock
# Rows of a part of dw, and how many parts there should be.
_SUM_ROWS = 256
_PARTS = 8
_WIDE = 256  # filters for which it pays to transpose maps of x
# Maps may be shorter where patches are laid out; larger filters pass by too often, BLAS is faster.
_LEAST_PIXELS, _MOST_WEIGHTS = 128, 2**17


def suits(geometry: Geometry, x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> bool:
    """Whether kernels have one pixel, maps are long, and filters few enough."""
    kernel, results = w_shape[2:], geometry.results(x_shape[2:], w_shape[2:])
    return (
        math.prod(kernel) == 1
        and not any(geometry.pad)
        and math.prod(results) >= _LEAST_PIXELS
        and w_shape[0] // geometry.group * w_shape[1] <= _MOST_WEIGHTS
    )


@kernel
def multiply(filters, x, places, bias, out, groups, rows, depth, pixels, chunk, start, stop):
    """out = filters x + bias; parts number the maps' images and groups x chunks of pixels.

    filters (groups, rows / ROWS, depth, ROWS), x (*, depth, pixels), out (*, rows, pixels); places
    says where the maps of a group begin.
    """
    chunks = -(-pixels // chunk)
    tiles = -(-rows // ROWS)
    pieces = -(-depth // _DEPTH)
    share = -(-depth // (tiles * pieces))
    for part in range(start, stop):
        image, number = divmod(part, chunks)
        group = image % groups
        p, last = number * chunk, min((number + 1) * chunk, pixels)
        while p < last:
            vectors = vectors_of(last - p)
            few = min(vectors * LANES, last - p)
            lanes = few - (vectors - 1) * LANES
            source, target = image * depth * pixels + p, image * rows * pixels + p
            following = source + few
            for k in range(0, depth, _DEPTH):
                count, add = min(_DEPTH, depth - k), 1 if k else 0
                for tile in range(tiles):
                    for _ in range(share):  # what the next vectors begin with
                        for i in range(VECTORS + 1):
                            fetch(x, following + i * LANES, 0)
                        following += pixels
                    r = tile * ROWS
                    f = (group * tiles + tile) * depth * ROWS + k * ROWS
                    c, b, h = target + r * pixels, group * rows + r, min(ROWS, rows - r)
                    multiply_tile(
                        vectors, filters, f, x, source, places, k, bias, b, out, c, 1, ROWS,
                        pixels, count, h, lanes, add,
                    )  # fmt: skip
            p += few


@kernel
def multiply_maps(
    left, right, places, rows, columns, groups, images, pixels, shares, room, out, start, stop
):
    """left right^T, summed over images; parts number groups x parts of rows x shares of images.

    left (images, groups, rows, pixels), right (images, groups, columns, pixels); each share has an
    out of its own, (shares, groups, rows, columns).
    """
    row_parts = -(-rows // _SUM_ROWS)
    share = -(-images // shares)
    distance = (_PIXELS + 1) * LANES
    for part in range(start, stop):
        rest, number = divmod(part, shares)
        group, row_part = divmod(rest, row_parts)
        row = row_part * _SUM_ROWS
        begin = number * share
        target = (number * groups + group) * rows * columns
        for image in range(begin, min(begin + share, images)):
            matrix = image * groups + group
            for p in range(0, pixels, _PIXELS):
                count = min(_PIXELS, pixels - p)
                add = 1 if image > begin or p else 0
                transpose(
                    right, matrix * columns * pixels + p, columns, pixels, count, room, distance
                )
                a = matrix * rows * pixels + p
                for r in range(row, min(row + _SUM_ROWS, rows), ROWS):
                    h, c = min(ROWS, rows - r), target + r * columns
                    multiply_row(left, a, places, r, room, out, c, distance, columns, count, h, add)


class Pointwise:
    """The products of one convolution: x (N, C, *S), w (F, C / group, 1...), y (N, F, *O)."""

    def __init__(
        self, xp: Any, geometry: Geometry, x_shape: tuple[int, ...], w_shape: tuple[int, ...]
    ) -> None:
        self.xp, self.groups = xp, geometry.group
        results = geometry.results(x_shape[2:], w_shape[2:])
        self.images, self.pixels = x_shape[0], math.prod(results)
        # Of images, the pixels that results read.
        steps = [slice(None, None, n) for n in geometry.stride]
        self.read: tuple[Any, ...] = (slice(None), slice(None), *steps)
        self.strided = set(geometry.stride) != {1}
        self.read_shape = (*x_shape[:2], *results)
        self.filters, self.channels = w_shape[0] // geometry.group, w_shape[1]

    def forward(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, out: np.ndarray) -> None:
        """out = x * w + b"""
        rows, depth = self.filters, self.channels
        filters = self._cut(w, rows, depth, depth, 1)
        self._multiply(self._together(x), filters, rows, depth, b, out)

    def gradients(self, dy: Any, x: Any, w: Any, dx: Any, dw: Any) -> None:
        """dx, which takes w, and dw, which takes x: those that are not None."""
        if dw is not None:
            self._sum_up(dy, self._together(x), dw)
        if dx is not None:
            rows, depth = self.channels, self.filters
            read = self.xp.empty(self.read_shape, np.float32) if self.strided else dx
            self._multiply(dy, self._cut(w, rows, depth, 1, rows), rows, depth, None, read)
            if self.strided:
                self._spread(read, dx)

    def _together(self, x: np.ndarray) -> np.ndarray:
        """The pixels that results read."""
        if not self.strided:
            return x
        read = self.xp.empty(self.read_shape, np.float32)
        parallel_for(lambda i, j: np.copyto(read[i:j], x[i:j][self.read]), self.images, 1)
        return read

    def _spread(self, read: np.ndarray, dx: np.ndarray) -> None:
        def work(i: int, j: int) -> None:
            dx[i:j] = 0
            dx[i:j][self.read] = read[i:j]

        parallel_for(work, self.images, 1)

    def _cut(self, w: np.ndarray, rows: int, depth: int, row: int, column: int) -> np.ndarray:
        tiles = self.groups * -(-rows // ROWS)
        filters, elements = self._empty(tiles * ROWS * depth), flat(w)
        parallel_for(
            lambda i, j: cut_filters(elements, filters, rows, depth, row, column, i, j),
            tiles,
            -(-tiles // _PARTS),
        )
        return filters

    def _multiply(
        self, x: np.ndarray, filters: np.ndarray, rows: int, depth: int, b: Any, out: np.ndarray
    ) -> None:
        maps, pixels = self.images * self.groups, self.pixels
        panel = VECTORS * LANES
        chunks = max(1, min(_CALLS // max(maps, 1), pixels // panel))
        chunk = -(-pixels // (chunks * panel)) * panel
        source, target = flat(x), out.reshape(-1)
        bias = np.zeros(self.groups * rows + ROWS, np.float32)
        if b is not None:
            bias[: b.size] = b.reshape(-1)
        places, parts = np.arange(depth) * pixels, maps * -(-pixels // chunk)
        parallel_for(
            lambda i, j: multiply(
                filters, source, places, bias, target, self.groups, rows, depth, pixels, chunk, i, j
            ),
            parts,
            max(1, parts // _CALLS),
        )

    def _sum_up(self, dy: np.ndarray, x: np.ndarray, dw: np.ndarray) -> None:
        """dw = dy x^T, or the transpose of x dy^T: it is the second factor that costs a copy."""
        if not self.images:
            dw.fill(0)
            return
        by_filters = self.filters >= min(self.channels, _WIDE)
        rows, columns = self.filters, self.channels
        left, right = flat(dy), flat(x)
        if not by_filters:
            rows, columns, left, right = columns, rows, right, left
        parts = self.groups * -(-rows // _SUM_ROWS)
        share = -(-self.images // min(self.images, -(-_PARTS // parts)))
        shares = -(-self.images // share)
        places = np.arange(rows) * self.pixels
        direct = by_filters and shares == 1
        out = dw.reshape(-1) if direct else self._empty(shares * dw.size)

        def work(i: int, j: int) -> None:
            room = self._empty(-(-columns // LANES) * (_PIXELS + 1) * LANES)
            multiply_maps(
                left, right, places, rows, columns, self.groups, self.images, self.pixels, shares,
                room, out, i, j,
            )  # fmt: skip

        parallel_for(work, parts * shares, -(-parts * shares // _CALLS))
        if not direct:
            sums = out.reshape(shares, self.groups, rows, columns)
            total = np.add.reduce(sums, axis=0)
            dw.reshape(self.groups, self.filters, self.channels)[...] = (
                total if by_filters else total.transpose(0, 2, 1)
            )

    def _empty(self, size: int) -> np.ndarray:
        return self.xp.empty((size,), np.float32)
