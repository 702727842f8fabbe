"""3x3 convolution with stride 1 by Winograd's minimal filtering: transforms and 36 products.

    V_p = points of x,   P_p = V_p U_p,   y = images of P        (p = 1 ... 36)

and backward is the adjoint: dP = points of dy, dU_p = V_p^T dP_p, dV_p = dP_p U_p^T. A thread takes
some images through all steps: all points of what comes in stay in its second cache, those of what
goes out come a panel of channels at a time, and of U and dU a panel passes by for each.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ..threads import parallel_for
from . import gemm
from .compiler import kernel
from .simd import LANES
from .winograd_transforms import POINTS, TAPS, TILE, Maps, cut, cut_filters, join, join_filters

_PLANES = POINTS**2
# Points that a group of images has: they should fit into a core's second cache beside a panel, but
# with fewer rows than this the products would wait for U; and where there are few groups, larger
# ones occupy all cores.
_CACHE_BYTES = 5 * 2**18
_LEAST_ROWS = 64
_FEW = 4
_GROUP_BYTES = 2**26
# Blocks of channels in a panel.
_PANEL = 4
# Sums of dU that are added up at the end; a fixed number, for the sake of the bits.
_SUMS = 8
_SUMS_BYTES = 2**25
# Parts of about 100 microseconds: points that are transformed, multiplications.
_POINT_PART = 2**18
_PRODUCT_PART = 2**24


class Sizes:
    """How images are grouped and cut, and how their points lie in memory, for one convolution.

    `share` images are taken by a thread, `group` of them at a time. With `sums`, each share adds up
    a dU of its own. `x` and `y` have the points of all channels, `x_panel` and `y_panel` those of
    `panel` blocks of channels.
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
        x_plane, y_plane, panel = (
            n * block + LANES for n in (self.x_blocks, self.y_blocks, self.panel)
        )
        self.x = Maps(channels, height, width, above, left, POINTS, rows, columns, block, x_plane)
        self.y = Maps(filters, y_height, y_width, 0, 0, TILE, rows, columns, block, y_plane)
        self.x_panel, self.y_panel = self.x._replace(plane=panel), self.y._replace(plane=panel)

    def _take_shares(self, sums: bool) -> None:
        image_bytes = 4 * _PLANES * self.tiles * LANES * max(self.x_blocks, self.y_blocks)
        self.group = max(_CACHE_BYTES // image_bytes, _up(_LEAST_ROWS, self.tiles))
        shares = _up(self.images, self.group)
        if sums:
            sum_bytes = 4 * _PLANES * LANES**2 * self.x_blocks * self.y_blocks
            shares = min(shares, _SUMS, _SUMS_BYTES // sum_bytes)
        if shares >= _FEW:
            self.share = _up(self.images, shares)
            self.panel = _PANEL
        else:  # one after the other, each on all threads
            self.share = self.images
            self.group = max(1, _GROUP_BYTES // (2 * image_bytes))
            self.panel = max(self.x_blocks, self.y_blocks)
        # Groups of a share are alike: a last one of few rows would wait for U as long as others.
        self.group = _up(self.share, _up(self.share, self.group))
        self.shares = _up(self.images, self.share)


sizes = functools.lru_cache(maxsize=1024)(Sizes)


def _up(length: int, grain: int) -> int:
    """How many of `grain` cover `length`."""
    return -(-length // grain)


class Winograd:
    """The products of one convolution: x (N, C, H, W), w (F, C, 3, 3), y (N, F, OH, OW)."""

    sums_dy = True  # `gradients` takes db, too

    def __init__(
        self, xp: Any, x_shape: tuple[int, ...], w_shape: tuple[int, ...], pads: tuple[int, ...]
    ) -> None:
        self.xp = xp
        self.problem = tuple(x_shape), tuple(w_shape), pads

    def forward(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, out: np.ndarray) -> None:
        """out = x * w + b"""
        s = sizes(*self.problem, sums=False)
        channels, filters = s.x.channels, s.y.channels
        u = self._cut_filters(w, filters, channels, s.panel, column=channels * TAPS, row=TAPS)
        bias = np.zeros(filters, np.float32) if b is None else _flat(b)
        flat, result = _flat(x), out.reshape(-1)

        def work(first: int, last: int) -> None:
            v, p = self._points(s.x, s.y_panel)
            if s.shares > 1:
                _filter(flat, u, bias, result, v, p, s.x, s.y_panel, s.panel, s.group, first, last)
                return
            for i in range(first, last, s.group):
                j = min(i + s.group, last)
                _cut(x[i:j], v, s.x, bias[:0])
                _multiply(v, s.x, u, p, s.y_panel, j - i)
                _join(p, out[i:j], bias, s.y_panel)

        parallel_for(work, s.images, s.share)

    def gradients(self, dy: Any, x: Any, w: Any, dx: Any, dw: Any, db: Any = None) -> None:
        """dx, which takes w, dw, which takes x, and db: those that are not None."""
        s = sizes(*self.problem, sums=dw is not None)
        u = du = totals = nothing = np.empty(0, np.float32)
        if dx is not None:
            columns = s.x.channels * TAPS
            u = self._cut_filters(w, s.x.channels, s.y.channels, s.panel, column=TAPS, row=columns)
        if dw is not None:
            size = _PLANES * s.x_blocks * s.y_blocks * LANES**2
            du = self.xp.empty((s.shares * size,), np.float32)
        if db is not None:
            totals = self.xp.empty((s.images * s.y_blocks * LANES,), np.float32)
        bias = np.zeros(s.x.channels, np.float32)
        flat_dy, flat_x = _flat(dy), nothing if x is None else _flat(x)
        flat_dx = nothing if dx is None else dx.reshape(-1)

        def work(first: int, last: int) -> None:
            p, v = self._points(s.y, s.x_panel)
            if s.shares > 1:
                own = du if dw is None else du[first // s.share * size :][:size]
                _differentiate(
                    flat_dy, u, flat_x, bias, flat_dx, own, totals, p, v, s.y, s.x_panel,
                    s.panel, s.group, first, last,
                )  # fmt: skip
                return
            for i in range(first, last, s.group):
                j = min(i + s.group, last)
                _cut(dy[i:j], p, s.y, totals[i * s.y_blocks * LANES :])
                if dw is not None:
                    _cut(x[i:j], v, s.x_panel, nothing)
                    _multiply_transposed(v, s.x_panel, p, s.y, du, j - i, i > first)
                if dx is not None:  # in the memory of x's points
                    _multiply(p, s.y, u, v, s.x_panel, j - i)
                    _join(v, dx[i:j], bias, s.x_panel)

        parallel_for(work, s.images, s.share)
        if dw is not None:
            flat, channels, filters = dw.reshape(-1), s.x.channels, s.y.channels
            parallel_for(
                lambda i, j: join_filters(du, flat, channels, filters, s.panel, i, j),
                s.x_blocks,
                1,
            )
        if db is not None:
            each = totals.reshape(s.images, -1)[:, : s.y.channels]
            db[...] = np.add.reduce(each, axis=0, dtype=np.float64)

    def _points(self, first: Maps, second: Maps) -> tuple[np.ndarray, np.ndarray]:
        split = _PLANES * first.plane
        both = self.xp.empty((split + _PLANES * second.plane,), np.float32)
        return both[:split], both[split:]

    def _cut_filters(
        self, w: np.ndarray, columns: int, rows: int, panel: int, *, column: int, row: int
    ) -> np.ndarray:
        blocks = _up(columns, LANES)
        u = self.xp.empty((_PLANES * blocks * _up(rows, LANES) * LANES**2,), np.float32)
        flat = _flat(w)
        parallel_for(
            lambda i, j: cut_filters(flat, u, columns, rows, column, row, panel, i, j), blocks, 1
        )
        return u


# A thread takes its images through all steps.


@kernel
def _filter(x, u, bias, y, v, p, left, right, panel, group, first, last):
    """y = x * w + b for images first to last; `right` is of a panel."""
    tiles = left.tile_rows * left.tile_columns
    depth, columns = -(-left.channels // LANES), -(-right.channels // LANES)
    x_image = left.channels * left.height * left.width
    y_image = right.channels * right.height * right.width
    u_block = depth * LANES * LANES
    for i in range(first, last, group):
        images = min(group, last - i)
        rows = images * tiles
        products = POINTS * POINTS * gemm.row_parts(rows)
        cut(x[i * x_image :], v, left, 0, depth, 0, images * depth, bias[:0])
        for block in range(0, columns, panel):
            blocks = min(panel, columns - block)
            gemm.multiply(
                v, left.block, left.plane, u[POINTS * POINTS * block * u_block :], u_block,
                blocks * u_block, depth, p, right.block, right.plane, rows, blocks, 0, products,
            )  # fmt: skip
            join(p, y[i * y_image :], bias, right, block, blocks, 0, images * blocks)


@kernel
def _differentiate(dy, u, x, bias, dx, du, totals, p, v, left, right, panel, group, first, last):
    """dx, du and sums of dy of images first to last, of what has elements.

    `right` is of a panel of x.
    """
    tiles = left.tile_rows * left.tile_columns
    depth, columns = -(-left.channels // LANES), -(-right.channels // LANES)
    x_image = right.channels * right.height * right.width
    y_image = left.channels * left.height * left.width
    u_block = depth * LANES * LANES
    for i in range(first, last, group):
        images = min(group, last - i)
        rows = images * tiles
        sums = totals[i * depth * LANES :]
        cut(dy[i * y_image :], p, left, 0, depth, 0, images * depth, sums)
        for block in range(0, columns, panel):
            blocks = min(panel, columns - block)
            begin = POINTS * POINTS * block * u_block
            if len(dx):
                products = POINTS * POINTS * gemm.row_parts(rows)
                gemm.multiply(
                    p, left.block, left.plane, u[begin:], u_block, blocks * u_block, depth,
                    v, right.block, right.plane, rows, blocks, 0, products,
                )  # fmt: skip
                join(v, dx[i * x_image :], bias, right, block, blocks, 0, images * blocks)
            if len(du):
                products = POINTS * POINTS * gemm.block_parts(blocks)
                cut(x[i * x_image :], v, right, block, blocks, 0, images * blocks, bias[:0])
                gemm.multiply_transposed(
                    v, right.block, right.plane, p, left.block, left.plane, rows,
                    du[begin:], blocks, depth, i > first, 0, products,
                )  # fmt: skip


# The same steps of a group of images, each on all threads.


def _cut(images: np.ndarray, points: np.ndarray, maps: Maps, sums: np.ndarray) -> None:
    flat, blocks = _flat(images), _up(maps.channels, LANES)
    parallel_for(
        lambda i, j: cut(flat, points, maps, 0, blocks, i, j, sums),
        len(images) * blocks,
        _grain(maps),
    )


def _join(points: np.ndarray, images: np.ndarray, bias: np.ndarray, maps: Maps) -> None:
    flat, blocks = images.reshape(-1), _up(maps.channels, LANES)
    parallel_for(
        lambda i, j: join(points, flat, bias, maps, 0, blocks, i, j),
        len(images) * blocks,
        _grain(maps),
    )


def _grain(maps: Maps) -> int:
    return max(1, _POINT_PART // (_PLANES * maps.tile_rows * maps.tile_columns * LANES))


def _multiply(
    a: np.ndarray, left: Maps, u: np.ndarray, c: np.ndarray, right: Maps, images: int
) -> None:
    """c = a u for all points."""
    rows = images * left.tile_rows * left.tile_columns
    depth, columns = _up(left.channels, LANES), _up(right.channels, LANES)
    block = depth * LANES**2

    def work(i: int, j: int) -> None:
        gemm.multiply(
            a, left.block, left.plane, u, block, columns * block, depth,
            c, right.block, right.plane, rows, columns, i, j,
        )  # fmt: skip

    parts = gemm.row_parts(rows)
    cost = rows * depth * columns * LANES**2 // parts
    parallel_for(work, _PLANES * parts, max(1, _PRODUCT_PART // cost))


def _multiply_transposed(
    v: np.ndarray, left: Maps, p: np.ndarray, right: Maps, du: np.ndarray, images: int, add: bool
) -> None:
    """du = v^T p for all points, or added to it."""
    rows = images * left.tile_rows * left.tile_columns
    x_blocks, y_blocks = _up(left.channels, LANES), _up(right.channels, LANES)

    def work(i: int, j: int) -> None:
        gemm.multiply_transposed(
            v, left.block, left.plane, p, right.block, right.plane, rows,
            du, x_blocks, y_blocks, add, i, j,
        )  # fmt: skip

    parts = gemm.block_parts(x_blocks)
    cost = rows * x_blocks * y_blocks * LANES**2 // parts
    parallel_for(work, _PLANES * parts, max(1, _PRODUCT_PART // cost))


def _flat(array: np.ndarray) -> np.ndarray:
    """The elements in order, in memory that may be written: one type for the compiler."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat if flat.flags.writeable else flat.copy()
