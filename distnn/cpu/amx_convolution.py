"""Convolutions of bfloat16 by tile registers: for each pixel, products of 32 images at a time.

A row of a tile is an image, so that a window is a list of pixels, whatever its shape, stride and
dilation: taps that fall outside of a map are no work, and nothing is copied into patches. Maps of
32 images lie as (pixels, channels / 32, 32 images, 32 channels) while a thread works on them;
for the gradient of the filters, images are what sums run over, and x lies with them last.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..functions.im2col import Geometry
from ..memory import pool
from ..threads import parallel_for
from . import amx
from .amx import (
    DEPTH,
    PAIR,
    SIDE,
    TILE,
    add_square,
    clear_square,
    configure,
    load_square,
    release,
    store_square,
)
from .amx_matmul import aligned
from .bfloat16 import FLOAT32, bits, store, wide
from .bfloat16_simd import move, spread, spread_floats, store_rounded
from .compiler import kernel
from .simd import LANES
from .simd import load as load_lanes
from .simd import store as store_lanes

_BLOCK = 2 * TILE  # of 32 images, or pairs of 16, and 32 channels
_SQUARE = PAIR * PAIR
# Where there are few groups of images, each is worked on by all threads.
_FEW = 4
# Sums of filters' gradients that are added up at the end; a fixed number, for the sake of the bits.
_SUMS = 4
_SUMS_BYTES = 2**26
_SUM_PART = 2**16
_GROUP_BYTES = 2**27


class List(NamedTuple):
    """Pairs of pixels by what they add to: those of number i are starts[i] to starts[i + 1]."""

    starts: np.ndarray
    taps: np.ndarray  # or pixels of y
    sources: np.ndarray  # pixels of what is added


class Lists(NamedTuple):
    """Which pixels of x and y a convolution multiplies: by pixels of y, of x, and by taps."""

    forward: List
    backward: List
    filters: List


@functools.lru_cache(maxsize=64)
def lists(geometry: Geometry, lengths: tuple[int, ...], kernel: tuple[int, ...]) -> Lists:
    results = geometry.results(lengths, kernel)
    found: list[list[np.ndarray]] = [[], [], []]
    for number, tap in enumerate(itertools.product(*map(range, kernel))):
        axes = [
            [(r, r * s + k * d - p) for r in range(o) if 0 <= r * s + k * d - p < n]
            for k, n, o, p, s, d in zip(
                tap, lengths, results, geometry.pad, geometry.stride, geometry.dilation, strict=True
            )
        ]
        pixels = np.zeros((1, 2), np.intp)  # of y, and of x
        for pairs, steps in zip(axes, zip(results, lengths, strict=True), strict=True):
            grid = pixels[:, None] * steps + np.array(pairs, np.intp).reshape(1, -1, 2)
            pixels = grid.reshape(-1, 2)
        found[0].append(np.full(len(pixels), number, np.intp))
        found[1].append(pixels[:, 1])
        found[2].append(pixels[:, 0])
    taps, xs, ys = map(np.concatenate, found)
    return Lists(
        _list(ys, math.prod(results), taps, xs),
        _list(xs, math.prod(lengths), taps, ys),
        _list(taps, math.prod(kernel), ys, xs),
    )


def _list(keys: np.ndarray, count: int, first: np.ndarray, second: np.ndarray) -> List:
    order = np.argsort(keys, kind="stable")
    starts = np.searchsorted(keys[order], np.arange(count + 1))
    return List(starts.astype(np.intp), *(a[order].astype(np.int32) for a in (first, second)))


class Maps(NamedTuple):
    """Maps of all images, (N, C, pixels)."""

    images: int
    channels: int
    pixels: int

    @property
    def blocks(self) -> int:
        return _up(self.channels, PAIR)

    @property
    def step(self) -> int:
        """From pixel to pixel of a group; not a power of two, which would use few cache lines."""
        return self.blocks * _BLOCK + DEPTH

    @property
    def size(self) -> int:
        """Of a group's tiles."""
        return _up(self.pixels, LANES) * LANES * self.step


def suits(geometry: Geometry, x_shape: tuple[int, ...], w_shape: tuple[int, ...]) -> bool:
    """Whether tiles should compute this convolution."""
    images, channels, *lengths = x_shape
    filters, _, *kernel = w_shape
    results = geometry.results(tuple(lengths), tuple(kernel))
    if geometry.group != 1 or 0 in (images, channels, filters) or min(results) < 1:
        return False
    maps = [Maps(images, channels, math.prod(lengths)), Maps(images, filters, math.prod(results))]
    # Rows of tiles that are no image are work for nothing.
    filled = images / (PAIR * _up(images, PAIR))
    return filled >= 0.4 and 2 * sum(m.size for m in maps) <= _GROUP_BYTES


class Tiles:
    """The products of one convolution: x (N, C, *S), w (F, C, *K), y (N, F, *O)."""

    def __init__(
        self, geometry: Geometry, x_shape: tuple[int, ...], w_shape: tuple[int, ...]
    ) -> None:
        lengths, kernel = tuple(x_shape[2:]), tuple(w_shape[2:])
        self.lists = lists(geometry, lengths, kernel)
        self.taps = math.prod(kernel)
        results = geometry.results(lengths, kernel)
        self.x = Maps(x_shape[0], x_shape[1], math.prod(lengths))
        self.y = Maps(x_shape[0], w_shape[0], math.prod(results))
        self.groups = _up(x_shape[0], PAIR)
        self.shapes = amx.tile_shapes()

    def forward(self, x: Any, w: Any, b: Any, out: Any) -> None:
        """out = x * w + b"""
        weights = self._weights(w, self.y, self.taps * self.x.channels, self.x, self.taps)
        bias, source, target = _padded(b, self.y), _flat(x), _flat(out)

        def work(first: int, last: int) -> None:
            tiles = aligned(self.x.size)
            for group in range(first, last):
                self._pack(source, self.x, tiles, group)
                self._gather(
                    tiles, self.x, weights, self.lists.forward, bias, target, self.y, group
                )

        self._by_group(work, 1)

    def gradients(self, dy: Any, x: Any, w: Any, dx: Any, dw: Any, bias: Any = None) -> None:
        """dx, which takes w, and dw, which takes x: those that are not None; dx begins at bias."""
        dy_flat = _flat(dy)
        if dx is not None:
            weights = self._weights(w, self.x, self.taps, self.y, self.taps * self.x.channels)
            start, target = _padded(bias, self.x), _flat(dx)
        share, shares = self._shares() if dw is not None else (1, 1)
        if dw is not None:
            x_flat = _flat(x)
            size = self.x.blocks * self.y.blocks * self.taps * _SQUARE
            sums = pool.empty((shares, size), FLOAT32)

        def work(first: int, last: int) -> None:
            tiles = aligned(self.y.size)
            if dw is not None:
                turned, pairs = aligned(self.x.size), aligned(self.y.size)
            for group in range(first, last):
                self._pack(dy_flat, self.y, tiles, group)
                if dw is not None:
                    self._pack_turned(x_flat, self.x, turned, group)
                    self._pack_pairs(tiles, pairs)
                    self._accumulate(turned, pairs, sums[first // share], group > first)
                if dx is not None:
                    self._gather(
                        tiles, self.y, weights, self.lists.backward, start, target, self.x, group
                    )

        self._by_group(work, share)
        if dw is not None:
            flat, total = bits(dw).reshape(-1), sums[0]
            parallel_for(lambda i, j: add_sums(sums, i, j), total.size, _SUM_PART)
            parallel_for(
                lambda i, j: put_filters(
                    total, self.x.channels, self.y.blocks, self.taps, flat, i, j
                ),
                self.y.channels,
                SIDE,
            )

    def _by_group(self, work: Callable[[int, int], None], share: int) -> None:
        parallel_for(work, self.groups, self.groups if self.groups < _FEW else share)

    def _shares(self) -> tuple[int, int]:
        """How many groups have a sum of their own, and how many such sums there are."""
        if self.groups < _FEW:
            return self.groups, 1
        nbytes = 4 * self.x.blocks * self.y.blocks * self.taps * _SQUARE
        share = _up(self.groups, max(1, min(_SUMS, _SUMS_BYTES // nbytes)))
        return share, _up(self.groups, share)

    # -- steps: each on all threads, unless threads share groups already -------------------------

    def _share_out(self, work: Callable[[int, int], None], length: int, grain: int) -> None:
        parallel_for(work, length, grain if self.groups < _FEW else length)

    def _weights(self, w: Any, columns: Maps, column: int, rows: Maps, row: int) -> np.ndarray:
        """Tiles of the filters; `column` and `row` are the distances from channel to channel."""
        tiles = aligned(columns.blocks * self.taps * rows.blocks * _BLOCK)
        flat = _flat(w)
        parallel_for(
            lambda i, j: pack_filters(
                flat, columns.channels, column, rows.channels, row, self.taps, tiles, i, j
            ),
            columns.blocks,
            1,
        )
        return tiles

    def _pack(self, x: np.ndarray, maps: Maps, tiles: np.ndarray, group: int) -> None:
        def work(i: int, j: int) -> None:
            pack_images(x, group * PAIR, *maps, tiles, maps.step, i, j)

        self._share_out(work, PAIR, 4)

    def _pack_turned(self, x: np.ndarray, maps: Maps, tiles: np.ndarray, group: int) -> None:
        def work(i: int, j: int) -> None:
            pack_channels(x, group * PAIR, *maps, tiles, maps.step, i, j)

        self._share_out(work, maps.blocks * PAIR, SIDE)

    def _pack_pairs(self, tiles: np.ndarray, pairs: np.ndarray) -> None:
        blocks, step = self.y.blocks, self.y.step
        parallel_for(lambda i, j: pack_pairs(tiles, blocks, step, pairs, i, j), self.y.pixels, SIDE)

    def _gather(
        self, tiles: np.ndarray, maps: Maps, weights: np.ndarray, pixels: List, bias: np.ndarray,
        target: np.ndarray, out: Maps, group: int,
    ) -> None:  # fmt: skip
        def work(i: int, j: int) -> None:
            gather(
                self.shapes, tiles, maps.step, maps.blocks, weights, self.taps, *pixels, bias,
                target, group * PAIR, *out, i, j,
            )  # fmt: skip

        self._share_out(work, out.blocks * _up(out.pixels, LANES), 1)

    def _accumulate(
        self, turned: np.ndarray, pairs: np.ndarray, sums: np.ndarray, add: bool
    ) -> None:
        def work(i: int, j: int) -> None:
            accumulate(
                self.shapes, turned, self.x.step, pairs, self.y.step, self.y.blocks,
                *self.lists.filters, sums, add, i, j,
            )  # fmt: skip

        self._share_out(work, self.x.blocks * self.y.blocks, 1)


def _up(length: int, grain: int) -> int:
    """How many of `grain` cover `length`."""
    return -(-length // grain)


def _flat(array: np.ndarray) -> np.ndarray:
    """The bits in order, in memory that may be written: one type for the compiler."""
    flat = bits(np.ascontiguousarray(array)).reshape(-1)
    return flat if flat.flags.writeable else flat.copy()


def _padded(bias: Any, maps: Maps) -> np.ndarray:
    """A bias for each channel, and zeros up to whole blocks."""
    padded = np.zeros(maps.blocks * PAIR, FLOAT32)
    if bias is not None:
        padded[: maps.channels] = wide(bias).reshape(-1)
    return padded


# -- kernels ---------------------------------------------------------------------------------------


@kernel
def _pack_strip(x, start, stride, rows, pixels, edge, out, place, step):
    """Up to 32 rows of x, each of all pixels: for each pixel a row, at out[place + p * step]."""
    for p in range(0, pixels, LANES):
        if rows == PAIR and p + LANES <= pixels:
            move(x, start + p, stride, out, place + p * step, step, 1, 1)
        else:
            edge[:] = 0
            for r in range(rows):
                for i in range(min(LANES, pixels - p)):
                    edge[r * LANES + i] = x[start + r * stride + p + i]
            move(edge, 0, LANES, out, place + p * step, step, 1, 1)


@kernel
def pack_images(x, first, images, channels, pixels, out, step, start, stop):
    """Of 32 images from `first` on, those from `start` to `stop`: an image is a row of tiles."""
    edge = np.empty(PAIR * LANES, np.uint16)
    for n in range(start, stop):
        for c in range(0, channels, PAIR):
            rows = min(PAIR, channels - c) if first + n < images else 0
            source = ((first + n) * channels + c) * pixels
            place = c // PAIR * _BLOCK + n * DEPTH
            _pack_strip(x, source, pixels, rows, pixels, edge, out, place, step)


@kernel
def pack_channels(x, first, images, channels, pixels, out, step, start, stop):
    """Of 32 images from `first` on, channels `start` to `stop`: a channel is a row of tiles."""
    edge = np.empty(PAIR * LANES, np.uint16)
    for c in range(start, stop):
        rows = min(PAIR, images - first) if c < channels else 0
        source = (first * channels + c) * pixels
        place = c // PAIR * _BLOCK + c % PAIR * DEPTH
        _pack_strip(x, source, channels * pixels, rows, pixels, edge, out, place, step)


@kernel
def pack_pairs(tiles, blocks, step, out, start, stop):
    """What pack_images has made, with two images side by side: as the right side of a product."""
    for p in range(start, stop):
        for block in range(blocks):
            place = p * step + block * _BLOCK
            move(tiles, place, DEPTH, out, place, DEPTH, 1, 0)
            move(tiles, place + LANES, DEPTH, out, place + TILE, DEPTH, 1, 0)


@kernel
def pack_filters(w, columns, column, rows, row, taps, out, start, stop):
    """Tiles (columns / 32, rows / 32, taps, 2, 16 pairs of rows, 16 columns, 2)."""
    row_blocks = -(-rows // PAIR)
    for block in range(start, stop):
        for tap in range(taps):
            for r in range(row_blocks * PAIR):
                place = ((block * row_blocks + r // PAIR) * taps + tap) * _BLOCK
                place += r % PAIR // 2 * DEPTH + r % 2
                for c in range(PAIR):
                    k = block * PAIR + c
                    inside = (r < rows) & (k < columns)
                    value = w[r * row + k * column + tap] if inside else np.uint16(0)
                    out[place + c // LANES * TILE + c % LANES * 2] = value


@kernel
def gather(
    shapes, x, x_step, x_blocks, weights, taps, starts, tap_of, source_of, bias,
    y, first, images, channels, pixels, start, stop,
):  # fmt: skip
    """y = bias + sums over each pixel's list; parts are blocks of channels by runs of pixels.

    y is float32, or rounded to bfloat16.
    """
    runs = -(-pixels // LANES)
    memory = np.empty(LANES * _SQUARE + LANES, np.float32)
    sums = memory[-(memory.ctypes.data // 4) % LANES :]  # from a line of the cache on
    z = np.empty(LANES * _BLOCK, np.uint16)
    for part in range(start, stop):
        block, run = part // runs, part % runs * LANES
        count = min(LANES, pixels - run)
        configure(shapes)
        # All pixels of the run, block by block: filters, and pixels of neighbours, stay in L1.
        for c in range(x_blocks):
            for p in range(count):
                if c == 0:
                    clear_square()
                else:
                    load_square(sums, p * _SQUARE, PAIR * LANES)
                for e in range(starts[run + p], starts[run + p + 1]):
                    source = source_of[e] * x_step + c * _BLOCK
                    filters = ((block * x_blocks + c) * taps + tap_of[e]) * _BLOCK
                    add_square(x, source, 0, TILE, weights, filters, 0, TILE, 1)
                store_square(sums, p * _SQUARE, PAIR * LANES)
        release()
        low, high = load_lanes(bias, block * PAIR), load_lanes(bias, block * PAIR + LANES)
        for p in range(count):
            for n in range(PAIR):
                place = p * _SQUARE + n * LANES
                left = load_lanes(sums, place) + low
                right = load_lanes(sums, place + PAIR * LANES) + high
                if y.itemsize == 2:
                    store_rounded(z, (p * PAIR + n) * PAIR, left)
                    store_rounded(z, (p * PAIR + n) * PAIR + LANES, right)
                else:
                    store_lanes(sums, place, left)
                    store_lanes(sums, place + PAIR * LANES, right)
        wide = min(PAIR, channels - block * PAIR)
        for n in range(min(PAIR, images - first)):
            target = ((first + n) * channels + block * PAIR) * pixels + run
            if wide == PAIR and count == LANES:
                if y.itemsize == 2:
                    spread(z, n * PAIR, _BLOCK, y, target, pixels)
                else:
                    right = target + LANES * pixels
                    spread_floats(sums, n * LANES, _SQUARE, y, target, pixels)
                    spread_floats(sums, (PAIR + n) * LANES, _SQUARE, y, right, pixels)
                continue
            for c in range(wide):
                for p in range(count):
                    if y.itemsize == 2:
                        y[target + c * pixels + p] = z[(p * PAIR + n) * PAIR + c]
                    else:
                        place = p * _SQUARE + (c // LANES * PAIR + n) * LANES + c % LANES
                        y[target + c * pixels + p] = sums[place]


@kernel
def accumulate(
    shapes, x, x_step, y, y_step, y_blocks, starts, y_of, x_of, sums, add, start, stop
):  # fmt: skip
    """sums = products over images and each tap's list, or added; parts are blocks by blocks."""
    taps = starts.size - 1
    square = np.empty(PAIR * PAIR, np.float32)
    configure(shapes)
    for part in range(start, stop):
        c, f = part // y_blocks * _BLOCK, part % y_blocks * _BLOCK
        for tap in range(taps):
            clear_square()
            for e in range(starts[tap], starts[tap + 1]):
                add_square(x, x_of[e] * x_step + c, 0, TILE, y, y_of[e] * y_step + f, 0, TILE, 1)
            store_square(square, 0, PAIR * LANES)
            place = (part * taps + tap) * PAIR * PAIR
            for i in range(0, PAIR * PAIR, LANES):
                values = load_lanes(square, i)
                if add:
                    values = values + load_lanes(sums, place + i)
                store_lanes(sums, place + i, values)
    release()


@kernel
def add_sums(sums, start, stop):
    """The first of the sums gets the others, added in order."""
    for share in range(1, sums.shape[0]):
        for i in range(start, stop):
            sums[0, i] += sums[share, i]


@kernel
def put_filters(sums, channels, y_blocks, taps, out, start, stop):
    """dw of filters `start` to `stop` as (F, C, taps), from squares of 32 channels by 32."""
    for f in range(start, stop):
        inside = f % PAIR // LANES * PAIR * LANES + f % LANES
        for c in range(channels):
            square = (c // PAIR * y_blocks + f // PAIR) * taps * _SQUARE
            place = square + inside + c % PAIR * LANES
            to = (f * channels + c) * taps
            for tap in range(taps):
                value = sums[place + tap * _SQUARE]
                if out.itemsize == 2:
                    out[to + tap] = store(value)
                else:
                    out[to + tap] = value
