"""3x3 convolution with stride 1 by Winograd's minimal filtering: transforms and 36 products.

    V_p = points of x,   P_p = V_p U_p,   y = images of P        (p = 1 ... 36)

and backward is the adjoint: dP = points of dy, dU_p = V_p^T dP_p, dV_p = dP_p U_p^T. Images pass in
groups whose points fit into some megabytes.
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
_GROUP_BYTES = 16 * 1024 * 1024
# Parts of about 100 microseconds: of points that are transformed, and of multiplications.
_POINT_PART = 2**18
_PRODUCT_PART = 2**24


class Sizes:
    """How images are cut, and how their points lie in memory, for one convolution."""

    def __init__(
        self, x_shape: tuple[int, ...], w_shape: tuple[int, ...], pads: tuple[int, ...]
    ) -> None:
        self.images, channels, height, width = x_shape
        filters = w_shape[0]
        above, left = pads
        y_height, y_width = height + 2 * above - 2, width + 2 * left - 2
        rows, columns = _up(y_height, TILE), _up(y_width, TILE)
        self.tiles = rows * columns
        blocks = _up(channels, LANES), _up(filters, LANES)
        image_bytes = 4 * _PLANES * self.tiles * LANES * sum(blocks)
        self.group = min(max(1, _GROUP_BYTES // image_bytes), self.images)
        # Some rows more than are needed: blocks and planes a power of two apart would compete for
        # the same places in the cache.
        block = (_up(self.group * self.tiles, gemm.ROWS) + 1) * gemm.ROWS * LANES
        x_plane, y_plane = (n * block + LANES for n in blocks)
        self.x = Maps(channels, height, width, above, left, POINTS, rows, columns, block, x_plane)
        self.y = Maps(filters, y_height, y_width, 0, 0, TILE, rows, columns, block, y_plane)
        self.x_blocks, self.y_blocks = blocks
        self.scratch_bytes = 4 * _PLANES * (x_plane + y_plane)


sizes = functools.lru_cache(maxsize=1024)(Sizes)


def _up(length: int, grain: int) -> int:
    """How many of `grain` cover `length`."""
    return -(-length // grain)


class Winograd:
    """The products of one convolution: x (N, C, H, W), w (F, C, 3, 3), y (N, F, OH, OW)."""

    def __init__(self, xp: Any, sizes: Sizes, scratch: np.ndarray | None) -> None:
        self.xp = xp
        self.sizes = sizes
        if scratch is None:
            scratch = xp.empty((sizes.scratch_bytes,), np.uint8)
        memory = scratch.view(np.float32)
        self.v, self.p = np.split(memory, [_PLANES * sizes.x.plane])

    def forward(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, out: np.ndarray) -> None:
        """out = x * w + b"""
        s = self.sizes
        u = self._cut_filters(w, s.y.channels, s.x.channels, column=s.x.channels * TAPS, row=TAPS)
        bias = np.zeros(s.y.channels, np.float32) if b is None else _flat(b)
        for images in self._groups():
            self._cut(x[images], self.v, s.x)
            self._multiply(self.v, s.x, u, self.p, s.y, images)
            self._join(self.p, out[images], bias, s.y)

    def gradients(self, dy: Any, x: Any, w: Any, dx: Any, dw: Any) -> None:
        """dx, which takes w, and dw, which takes x: those that are not None."""
        s = self.sizes
        if dx is not None:
            u = self._cut_filters(
                w, s.x.channels, s.y.channels, column=TAPS, row=s.x.channels * TAPS
            )
            bias = np.zeros(s.x.channels, np.float32)
        if dw is not None:
            du = self.xp.empty((_PLANES * s.y_blocks, s.x_blocks * LANES, LANES), np.float32)
        for images in self._groups():
            self._cut(dy[images], self.p, s.y)
            if dw is not None:
                self._cut(x[images], self.v, s.x)
                self._multiply_transposed(du.reshape(-1), images)
            if dx is not None:  # in the memory of x's points
                self._multiply(self.p, s.y, u, self.v, s.x, images)
                self._join(self.v, dx[images], bias, s.x)
        if dw is not None:
            self._join_filters(du.reshape(-1), dw)

    # -- steps --------------------------------------------------------------------------------

    def _groups(self) -> Iterator[slice]:
        for first in range(0, self.sizes.images, self.sizes.group):
            yield slice(first, min(first + self.sizes.group, self.sizes.images))

    def _cut(self, images: np.ndarray, points: np.ndarray, maps: Maps) -> None:
        flat = _flat(images)
        self._by_block(lambda i, j: cut(flat, points, maps, i, j), images)

    def _join(self, points: np.ndarray, images: np.ndarray, bias: np.ndarray, maps: Maps) -> None:
        flat = images.reshape(-1)
        self._by_block(lambda i, j: join(points, flat, bias, maps, i, j), images)

    def _by_block(self, body: Callable[[int, int], object], images: np.ndarray) -> None:
        grain = max(1, _POINT_PART // (_PLANES * self.sizes.tiles * LANES))
        parallel_for(body, len(images) * _up(images.shape[1], LANES), grain)

    def _multiply(
        self, a: np.ndarray, left: Maps, u: np.ndarray, c: np.ndarray, right: Maps, images: slice
    ) -> None:
        """c = a u for all points."""
        rows = (images.stop - images.start) * self.sizes.tiles
        depth, columns = _up(left.channels, LANES), _up(right.channels, LANES)

        def work(i: int, j: int) -> None:
            gemm.multiply(
                a,
                left.block,
                left.plane,
                u,
                depth,
                c,
                right.block,
                right.plane,
                rows,
                columns,
                i,
                j,
            )

        parts = gemm.row_parts(rows)
        cost = rows * depth * columns * LANES**2 // parts
        parallel_for(work, _PLANES * parts, max(1, _PRODUCT_PART // cost))

    def _multiply_transposed(self, du: np.ndarray, images: slice) -> None:
        """du = v^T p for all points; added to it after the first images."""
        s, v, p = self.sizes, self.v, self.p
        rows = (images.stop - images.start) * s.tiles

        def work(i: int, j: int) -> None:
            gemm.multiply_transposed(
                v, s.x.block, s.x.plane, p, s.y.block, s.y.plane, rows,
                du, s.x_blocks, s.y_blocks, images.start > 0, i, j,
            )  # fmt: skip

        parallel_for(work, _PLANES * gemm.block_parts(s.x_blocks), 1)

    def _cut_filters(
        self, w: np.ndarray, columns: int, rows: int, *, column: int, row: int
    ) -> np.ndarray:
        blocks = _up(columns, LANES)
        size = _PLANES * blocks * _up(rows, LANES) * LANES**2
        u, flat = self.xp.empty((size,), np.float32), _flat(w)
        parallel_for(lambda i, j: cut_filters(flat, u, columns, rows, column, row, i, j), blocks, 1)
        return u

    def _join_filters(self, du: np.ndarray, dw: np.ndarray) -> None:
        filters, channels = dw.shape[:2]
        flat = dw.reshape(-1)
        parallel_for(lambda i, j: join_filters(du, flat, channels, filters, i, j), channels, LANES)


def _flat(array: np.ndarray) -> np.ndarray:
    """The elements in order, in memory that may be written: one type for the compiler."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat if flat.flags.writeable else flat.copy()
