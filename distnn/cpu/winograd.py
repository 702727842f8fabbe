"""3x3 convolution with stride 1 by Winograd's minimal filtering: transforms and 36 products.

    V_p = points of x,   P_p = V_p U_p,   y = images of P        (p = 1 ... 36)

and backward is the adjoint: dP = points of dy, dU_p = V_p^T dP_p, dV_p = dP_p U_p^T. A thread takes
some images through all steps while their points are in its cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..threads import parallel_for
from . import gemm
from .simd import LANES
from .winograd_transforms import POINTS, TAPS, TILE, Maps, cut, cut_filters, join, join_filters

_PLANES = POINTS**2
# Points of a group of images: they should fit into a core's second cache, but with fewer rows than
# this the products would wait for U; and where there are few groups, larger ones occupy all cores.
_CACHE_BYTES = 5 * 2**19
_LEAST_ROWS = 64
_FEW = 4
_GROUP_BYTES = 2**26
# Sums of dU that are added up at the end; a fixed number, for the sake of the bits.
_SUMS = 8
_SUMS_BYTES = 2**25
# Parts of about 100 microseconds: points that are transformed, multiplications, sums to add up.
_POINT_PART = 2**18
_PRODUCT_PART = 2**24
_SUM_PART = 2**15


class Sizes:
    """How images are grouped and cut, and how their points lie in memory, for one convolution.

    `share` images are taken by a thread, `group` of them at a time. With `sums`, each share adds up
    a dU of its own.
    """

    def __init__(
        self, x_shape: tuple[int, ...], w_shape: tuple[int, ...], pads: tuple[int, ...], sums: bool
    ) -> None:
        self.images, channels, height, width = x_shape
        filters = w_shape[0]
        above, left = pads
        y_height, y_width = height + 2 * above - 2, width + 2 * left - 2
        rows, columns = _up(y_height, TILE), _up(y_width, TILE)
        self.tiles = rows * columns
        self.x_blocks, self.y_blocks = _up(channels, LANES), _up(filters, LANES)
        self._take_shares(sums)
        # Some rows more than are needed: blocks and planes a power of two apart would compete for
        # the same places in the cache.
        block = (_up(self.group * self.tiles, gemm.ROWS) + 1) * gemm.ROWS * LANES
        x_plane, y_plane = (n * block + LANES for n in (self.x_blocks, self.y_blocks))
        self.x = Maps(channels, height, width, above, left, POINTS, rows, columns, block, x_plane)
        self.y = Maps(filters, y_height, y_width, 0, 0, TILE, rows, columns, block, y_plane)

    def _take_shares(self, sums: bool) -> None:
        image_bytes = 4 * _PLANES * self.tiles * LANES * (self.x_blocks + self.y_blocks)
        self.group = max(_CACHE_BYTES // image_bytes, _up(_LEAST_ROWS, self.tiles))
        shares = _up(self.images, self.group)
        if sums:
            sum_bytes = 4 * _PLANES * LANES**2 * self.x_blocks * self.y_blocks
            shares = min(shares, _SUMS, _SUMS_BYTES // sum_bytes)
        if shares >= _FEW:
            self.share = _up(self.images, shares) if sums else self.group
        else:  # one after the other, each on all threads
            self.share = self.images
            self.group = max(1, _GROUP_BYTES // image_bytes)
        self.group = min(self.group, self.share)
        self.shares = _up(self.images, self.share)


sizes = functools.lru_cache(maxsize=1024)(Sizes)


def _up(length: int, grain: int) -> int:
    """How many of `grain` cover `length`."""
    return -(-length // grain)


class Winograd:
    """The products of one convolution: x (N, C, H, W), w (F, C, 3, 3), y (N, F, OH, OW)."""

    def __init__(
        self, xp: Any, x_shape: tuple[int, ...], w_shape: tuple[int, ...], pads: tuple[int, ...]
    ) -> None:
        self.xp = xp
        self.problem = tuple(x_shape), tuple(w_shape), pads

    def forward(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, out: np.ndarray) -> None:
        """out = x * w + b"""
        s = sizes(*self.problem, sums=False)
        u = self._cut_filters(w, s.y.channels, s.x.channels, column=s.x.channels * TAPS, row=TAPS)
        bias = np.zeros(s.y.channels, np.float32) if b is None else _flat(b)

        def work(first: int, last: int) -> None:
            v, p = self._points(s)
            for i, j in _groups(first, last, s.group):
                self._cut(x[i:j], v, s.x)
                self._multiply(v, s.x, u, p, s.y, j - i)
                self._join(p, out[i:j], bias, s.y)

        parallel_for(work, s.images, s.share)

    def gradients(self, dy: Any, x: Any, w: Any, dx: Any, dw: Any) -> None:
        """dx, which takes w, and dw, which takes x: those that are not None."""
        s = sizes(*self.problem, sums=dw is not None)
        if dx is not None:
            u = self._cut_filters(
                w, s.x.channels, s.y.channels, column=TAPS, row=s.x.channels * TAPS
            )
            bias = np.zeros(s.x.channels, np.float32)
        if dw is not None:
            plane = s.x_blocks * s.y_blocks * LANES**2
            du = self.xp.empty((s.shares, _PLANES * plane), np.float32)

        def work(first: int, last: int) -> None:
            v, p = self._points(s)
            for i, j in _groups(first, last, s.group):
                self._cut(dy[i:j], p, s.y)
                if dw is not None:
                    self._cut(x[i:j], v, s.x)
                    self._multiply_transposed(v, p, s, du[first // s.share], j - i, i > first)
                if dx is not None:  # in the memory of x's points
                    self._multiply(p, s.y, u, v, s.x, j - i)
                    self._join(v, dx[i:j], bias, s.x)

        parallel_for(work, s.images, s.share)
        if dw is not None:
            self._join_filters(du, dw)

    # -- steps: each on all threads, unless threads share images already ----------------------

    def _points(self, s: Sizes) -> tuple[np.ndarray, np.ndarray]:
        both = self.xp.empty((_PLANES * (s.x.plane + s.y.plane),), np.float32)
        split = _PLANES * s.x.plane
        return both[:split], both[split:]

    def _cut(self, images: np.ndarray, points: np.ndarray, maps: Maps) -> None:
        flat = _flat(images)
        self._by_block(lambda i, j: cut(flat, points, maps, i, j), images, maps)

    def _join(self, points: np.ndarray, images: np.ndarray, bias: np.ndarray, maps: Maps) -> None:
        flat = images.reshape(-1)
        self._by_block(lambda i, j: join(points, flat, bias, maps, i, j), images, maps)

    def _by_block(self, body: Callable[[int, int], object], images: np.ndarray, maps: Maps) -> None:
        points = _PLANES * maps.tile_rows * maps.tile_columns * LANES
        grain = max(1, _POINT_PART // points)
        parallel_for(body, len(images) * _up(maps.channels, LANES), grain)

    def _multiply(
        self, a: np.ndarray, left: Maps, u: np.ndarray, c: np.ndarray, right: Maps, images: int
    ) -> None:
        """c = a u for all points."""
        rows = images * left.tile_rows * left.tile_columns
        depth, columns = _up(left.channels, LANES), _up(right.channels, LANES)

        def work(i: int, j: int) -> None:
            gemm.multiply(
                a, left.block, left.plane, u, depth, c, right.block, right.plane, rows, columns,
                i, j,
            )  # fmt: skip

        parts = gemm.row_parts(rows)
        cost = rows * depth * columns * LANES**2 // parts
        parallel_for(work, _PLANES * parts, max(1, _PRODUCT_PART // cost))

    def _multiply_transposed(
        self, v: np.ndarray, p: np.ndarray, s: Sizes, du: np.ndarray, images: int, add: bool
    ) -> None:
        """du = v^T p for all points, or added to it."""
        rows = images * s.tiles

        def work(i: int, j: int) -> None:
            gemm.multiply_transposed(
                v, s.x.block, s.x.plane, p, s.y.block, s.y.plane, rows,
                du, s.x_blocks, s.y_blocks, add, i, j,
            )  # fmt: skip

        parts = gemm.block_parts(s.x_blocks)
        cost = rows * s.x_blocks * s.y_blocks * LANES**2 // parts
        parallel_for(work, _PLANES * parts, max(1, _PRODUCT_PART // cost))

    def _cut_filters(
        self, w: np.ndarray, columns: int, rows: int, *, column: int, row: int
    ) -> np.ndarray:
        blocks = _up(columns, LANES)
        size = _PLANES * blocks * _up(rows, LANES) * LANES**2
        u, flat = self.xp.empty((size,), np.float32), _flat(w)
        parallel_for(lambda i, j: cut_filters(flat, u, columns, rows, column, row, i, j), blocks, 1)
        return u

    def _join_filters(self, sums: np.ndarray, dw: np.ndarray) -> None:
        """dw from the shares' sums of dU."""
        filters, channels = dw.shape[:2]
        flat, du = dw.reshape(-1), sums[0]

        def add(i: int, j: int) -> None:
            for more in sums[1:, i:j]:
                du[i:j] += more

        parallel_for(add, du.size, _SUM_PART)
        parallel_for(lambda i, j: join_filters(du, flat, channels, filters, i, j), channels, LANES)


def _groups(first: int, last: int, group: int) -> Iterator[tuple[int, int]]:
    for i in range(first, last, group):
        yield i, min(i + group, last)


def _flat(array: np.ndarray) -> np.ndarray:
    """The elements in order, in memory that may be written: one type for the compiler."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat if flat.flags.writeable else flat.copy()
