"""Winograd's minimal filtering F(4x4, 3x3) for maps of any size.

The same sums as in winograd.py, whose matrices would be large for large maps: here a map is cut
into windows of 6 x 6 pixels, 4 apart, and each is transformed alone.

    V = M windows,   P_p = V_p w_p (36 products),   4 x 4 results = A P

Backward is the adjoint, and both gradients share what dy is transformed to.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from ..threads import parallel_for, single_threaded_blas
from .winograd import cook_toom

_TILE = 4
_KERNEL = 3
_ALPHA = _TILE + _KERNEL - 1
_POINTS = _ALPHA**2
# Sums of dU that are added up at the end; a fixed number, for the sake of the bits.
_SUMS = 8
_COLUMNS = 256


@functools.lru_cache(maxsize=4)
def _matrices(dtype: np.dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For windows (36, 36), results (16, 36) and filters (36, 9)."""
    at, g, bt = cook_toom()
    into, out, filters = (np.kron(m, m).astype(dtype) for m in (bt, at, g))
    return into, out, filters


class WinogradTiles:
    """The products of one convolution: x (N, C, H, W), w (F, C, 3, 3), y (N, F, OH, OW)."""

    def __init__(
        self,
        xp: Any,
        x_shape: tuple[int, ...],
        w_shape: tuple[int, ...],
        pads: tuple[int, ...],
        dtype: np.dtype,
    ) -> None:
        self.xp, self.dtype = xp, np.dtype(dtype)
        self.images, self.channels, *self.lengths = x_shape
        self.filters = w_shape[0]
        results = [n + 2 * p - _KERNEL + 1 for n, p in zip(self.lengths, pads, strict=True)]
        self.tiles = [-(-n // _TILE) for n in results]
        self.reach = [n * _TILE + _ALPHA - _TILE for n in self.tiles]
        # Where in a padded map the image is, and what of the image that is.
        inside = [
            slice(p, max(p, min(p + n, whole)))
            for p, n, whole in zip(pads, self.lengths, self.reach, strict=True)
        ]
        self._inside: Any = (..., *inside)
        self._read: Any = (..., *(slice(s.stop - s.start) for s in inside))
        # Images that are taken at once: products with few columns would be slow.
        self.several = max(1, _COLUMNS // math.prod(self.tiles))
        self.into, self.out, self.points = _matrices(self.dtype)

    def forward(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, out: np.ndarray) -> None:
        """out = x * w + b."""
        u = self._filters(w)

        def work(i: int, j: int) -> None:
            p = self._products(u, self._windows(x[i:j]))
            self._put(self.xp.matmul(self.out, p), out[i:j])
            if b is not None:
                out[i:j] += b[:, None, None]

        self._by_image(work, self.several)

    def gradients(self, dy: Any, x: Any, w: Any, dx: Any, dw: Any) -> None:
        """dx, which takes w, and dw, which takes x: those that are not None."""
        share = max(1, -(-self.images // _SUMS))
        u = None if dx is None else self._filters(w).transpose(0, 2, 1)
        if dw is not None:
            shape = (_POINTS, self.filters, self.channels)
            sums = np.zeros((-(-self.images // share), *shape), self.dtype)

        def work(i: int, j: int) -> None:
            for a in range(i, j, self.several):
                b = min(a + self.several, j)
                dp = self.xp.matmul(self.out.T, self._tiles(dy[a:b]))
                if dw is not None:
                    v = self._windows(x[a:b]).reshape(_POINTS, self.channels, -1)
                    left = dp.reshape(_POINTS, self.filters, -1)
                    sums[i // share] += self.xp.matmul(left, v.transpose(0, 2, 1))
                if dx is not None:
                    windows = self.xp.matmul(self.into.T, self._products(u, dp))
                    self._overlapping(windows, dx[a:b])

        self._by_image(work, share)
        if dw is not None:
            du = np.add.reduce(sums, axis=0).reshape(_POINTS, -1)
            dw[...] = self.xp.matmul(self.points.T, du).T.reshape(dw.shape)

    def _by_image(self, work: Any, grain: int) -> None:
        with single_threaded_blas:
            parallel_for(work, self.images, grain)

    def _filters(self, w: np.ndarray) -> np.ndarray:
        """(36, F, C)"""
        u = self.xp.matmul(self.points, w.reshape(self.filters * self.channels, -1).T)
        return u.reshape(_POINTS, self.filters, self.channels)

    def _products(self, u: Any, points: np.ndarray) -> np.ndarray:
        """u (36, outer, inner) by (36, inner * tiles), as (36, outer * tiles)."""
        return self.xp.matmul(u, points.reshape(_POINTS, u.shape[2], -1)).reshape(_POINTS, -1)

    # -- images and their tiles: (pixels of a tile, channels * images * tiles) ----------------

    def _windows(self, x: np.ndarray) -> np.ndarray:
        """The windows of some images, transformed: 36 rows."""
        padded = self._padded(self.channels, len(x))
        padded[self._inside] = x.swapaxes(0, 1)[self._read]
        windows = self._cut(padded, _ALPHA)
        return self.xp.matmul(self.into, windows)

    def _overlapping(self, windows: np.ndarray, out: np.ndarray) -> None:
        """The adjoint of cutting into windows: add them up where they overlap."""
        windows = windows.reshape(_ALPHA, _ALPHA, self.channels, len(out), *self.tiles)
        padded = self._padded(self.channels, len(out))
        for place in np.ndindex(_ALPHA, _ALPHA):
            padded[self._every_tile(place)] += windows[place]
        out[...] = 0
        out.swapaxes(0, 1)[self._read] = padded[self._inside]

    def _tiles(self, y: np.ndarray) -> np.ndarray:
        """Results of some images in tiles: 16 rows."""
        padded = self._padded(self.filters, len(y))
        padded[..., : y.shape[2], : y.shape[3]] = y.swapaxes(0, 1)
        return self._cut(padded, _TILE)

    def _put(self, tiles: np.ndarray, out: np.ndarray) -> None:
        """The adjoint of _tiles."""
        tiles = tiles.reshape(_TILE, _TILE, self.filters, len(out), *self.tiles)
        for i, j in np.ndindex(_TILE, _TILE):
            pixels = out.swapaxes(0, 1)[..., i::_TILE, j::_TILE]
            pixels[...] = tiles[i, j, ..., : pixels.shape[2], : pixels.shape[3]]

    def _cut(self, padded: np.ndarray, length: int) -> np.ndarray:
        """Tiles of length x length pixels, 4 apart, as columns."""
        tiles = self.xp.empty((length, length, *padded.shape[:2], *self.tiles), self.dtype)
        for place in np.ndindex(length, length):
            tiles[place] = padded[self._every_tile(place)]
        return tiles.reshape(length**2, -1)

    def _padded(self, channels: int, images: int) -> np.ndarray:
        """Zeros for maps with their padding, as far as windows reach."""
        return np.zeros((channels, images, *self.reach), self.dtype)

    def _every_tile(self, place: tuple[int, ...]) -> tuple[Any, ...]:
        """A pixel of each tile, in padded maps."""
        slices = (
            slice(i, i + _TILE * (n - 1) + 1, _TILE) for i, n in zip(place, self.tiles, strict=True)
        )
        return (..., *slices)
