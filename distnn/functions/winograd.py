"""Winograd's minimal filtering F(4x4, 3x3) for small maps, as dense matrix products.

3x3 convolution with stride 1. Padding, cutting into tiles and the input transform together are one
constant matrix M, the output transform and putting tiles together another, A:

    V = M x,   P_p = V_p w_p (36 products),   y = A P

which takes 4 times fewer multiplications than the definition. Backward is the adjoint. Because the
matrices act on the pixels of one map, arrays stay in their (N, C, H, W) order: BLAS takes the
transposed operand. For large maps M would be large; winograd_tiles.py serves those.

Lavin & Gray, "Fast algorithms for convolutional neural networks", arXiv:1509.09308. The points 0,
+-5/8, +-5/4 and infinity instead of 0, +-1, +-2 reduce the rounding error: rms 1.3e-6 relative to
the result at 128 channels in float32, against 3e-7 by definition.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from ..threads import parallel_for, single_threaded_blas

_POINTS = (0.0, 0.625, -0.625, 1.25, -1.25)
_TILE = 4
_KERNEL = 3
_ALPHA = _TILE + _KERNEL - 1  # points per axis, infinity included
_COPY = 50  # what it costs to lay out a number anew, in multiplications by BLAS; measured
_LEAST_TILES = 40  # of a map: with fewer, products have few columns, and are slow
_MOST_PIXELS = 1024  # of a map as a vector: its matrices have three times their square elements
# Maps (one image, one channel) that a transform takes at a time: 0.5 MB of float32 pixels at 8x8.
_MAPS = 2048


def cook_toom() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices of F(4, 3) in float64: y = AT [(G g) * (BT d)]. AT (4, 6), G (6, 3), BT (6, 6)."""
    last = _ALPHA - 1
    at = np.zeros((_TILE, _ALPHA))
    g = np.zeros((_ALPHA, _KERNEL))
    bt = np.zeros((_ALPHA, _ALPHA))
    for i, p in enumerate(_POINTS):
        others = [q for q in _POINTS if q != p]
        at[:, i] = [p**k for k in range(_TILE)]
        g[i] = [p**k / np.prod([p - q for q in others]) for k in range(_KERNEL)]
        bt[i, :last] = np.poly(others)[::-1]  # coefficients of the product of (x - q)
    at[-1, last] = g[last, -1] = 1
    bt[last] = np.poly(_POINTS)[::-1]
    return at, g, bt


class Transforms(NamedTuple):
    """Constant matrices for one map size. T tiles, 36 points."""

    into: np.ndarray  # M (36 * T, H * W)
    out: np.ndarray  # A (OH * OW, 36 * T)
    filters: np.ndarray  # (36, 9)
    tiles: int


@functools.lru_cache(maxsize=64)
def transforms(lengths: tuple[int, int], pads: tuple[int, int], dtype: np.dtype) -> Transforms:
    """The matrices for maps of `lengths` with `pads` on both sides."""
    at, g, bt = cook_toom()
    into, out = [], []
    for length, pad in zip(lengths, pads, strict=True):
        result = length + 2 * pad - _KERNEL + 1
        tiles = -(-result // _TILE)
        b = np.zeros((_ALPHA, tiles, length))
        a = np.zeros((result, _ALPHA, tiles))
        for t in range(tiles):
            for j in range(_ALPHA):
                pixel = _TILE * t + j - pad
                if 0 <= pixel < length:
                    b[:, t, pixel] = bt[:, j]
            for k in range(min(_TILE, result - _TILE * t)):
                a[_TILE * t + k, :, t] = at[k]
        into.append(b)
        out.append(a)
    (bh, bw), (ah, aw) = into, out
    m = np.einsum("xth,yuw->xytuhw", bh, bw)
    a = np.einsum("hxt,wyu->hwxytu", ah, aw)
    return Transforms(
        np.ascontiguousarray(m.reshape(-1, lengths[0] * lengths[1]), dtype),
        np.ascontiguousarray(a.reshape(a.shape[0] * a.shape[1], -1), dtype),
        np.ascontiguousarray(np.einsum("xi,yj->xyij", g, g).reshape(_ALPHA**2, -1), dtype),
        bh.shape[1] * bw.shape[1],
    )


def way(x_shape: tuple[int, ...], w_shape: tuple[int, ...], pads: tuple[int, ...]) -> str | None:
    """ "maps" or "tiles", where this takes clearly less time than the definition; else None.

    "maps": as here; "tiles": as in winograd_tiles.py, where each pixel of a tile is also copied.
    """
    images, channels, *lengths = x_shape
    outputs = [n + 2 * p - _KERNEL + 1 for n, p in zip(lengths, pads, strict=True)]
    if images == 0 or min(outputs) < 1:
        return None
    pixels, results = math.prod(lengths), math.prod(outputs)
    tiles = math.prod(-(-n // _TILE) for n in outputs)
    filters = w_shape[0]
    both = channels * filters
    # Multiplications for an image.
    maps = tiles * (both + pixels * channels + results * filters)
    if _ALPHA**2 * maps < 0.75 * _KERNEL**2 * both * results:
        return "maps"
    shared = (_KERNEL**2 + _COPY) * both / images  # for the filters
    windows = _ALPHA**2 * (tiles * (both + 2 * _COPY * (channels + filters)) + shared)
    patches = _KERNEL**2 * results * (both + _COPY // 2 * channels)
    return "tiles" if tiles >= _LEAST_TILES and windows < 0.9 * patches else None


def possible(x_shape: tuple[int, ...], pads: tuple[int, ...]) -> tuple[str, ...]:
    """Which of "maps" and "tiles" can compute such a convolution in reasonable memory."""
    lengths = [n + 2 * p for n, p in zip(x_shape[2:], pads, strict=True)]
    if x_shape[0] == 0 or min(lengths) < _KERNEL:
        return ()
    return ("maps", "tiles") if math.prod(lengths) <= _MOST_PIXELS else ("tiles",)


def scratch_bytes(
    x_shape: tuple[int, ...], w_shape: tuple[int, ...], pads: tuple[int, ...], itemsize: int
) -> int:
    """Memory for the transformed images and results."""
    outputs = [n + 2 * p - _KERNEL + 1 for n, p in zip(x_shape[2:], pads, strict=True)]
    points = _ALPHA**2 * int(np.prod([-(-n // _TILE) for n in outputs]))
    return itemsize * points * x_shape[0] * (x_shape[1] + w_shape[0])


class Winograd:
    """The products of one convolution: x (N, C, H, W), w (F, C, 3, 3), y (N, F, OH, OW)."""

    def __init__(
        self,
        xp: Any,
        x_shape: tuple[int, ...],
        w_shape: tuple[int, ...],
        pads: tuple[int, ...],
        dtype: np.dtype,
        scratch: np.ndarray | None,
    ) -> None:
        self.xp = xp
        self.images, self.channels, *lengths = x_shape
        self.filters = w_shape[0]
        self.t = transforms((lengths[0], lengths[1]), (pads[0], pads[1]), np.dtype(dtype))
        if scratch is None:
            scratch = xp.empty((scratch_bytes(x_shape, w_shape, pads, dtype.itemsize),), np.uint8)
        points = _ALPHA**2 * self.t.tiles
        split = points * self.images * self.channels
        memory = scratch.view(dtype)
        self.v = memory[:split].reshape(points, -1)  # (36 T, N C)
        self.p = memory[split:].reshape(points, -1)  # (36 T, N F)

    def forward(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, out: np.ndarray) -> None:
        """out = x * w + b."""
        self._apply(self.t.into, x, self.v)
        self._products(self.v, self._filters(w), self.p, self.channels, self.filters)
        self._adjoint(self.t.out.T, self.p, out, b)

    def gradients(self, dy: Any, x: Any, w: Any, dx: Any, dw: Any) -> None:
        """dx, which takes w, and dw, which takes x: those that are not None."""
        self._apply(self.t.out.T, dy, self.p)
        if dw is not None:
            self._filter_gradient(x, dw)
        if dx is not None:  # in the memory of x's points
            u = self._filters(w).transpose(0, 2, 1)
            self._products(self.p, u, self.v, self.filters, self.channels)
            self._adjoint(self.t.into, self.v, dx, None)

    def _filter_gradient(self, x: np.ndarray, out: np.ndarray) -> None:
        self._apply(self.t.into, x, self.v)
        du = self.xp.empty((_ALPHA**2, self.channels, self.filters), out.dtype)
        v = self.v.reshape(_ALPHA**2, -1, self.channels)
        p = self.p.reshape(_ALPHA**2, -1, self.filters)
        self.xp.matmul(v.transpose(0, 2, 1), p, out=du)
        dw = self.xp.matmul(self.t.filters.T, du.reshape(_ALPHA**2, -1))  # (9, C F)
        out[...] = dw.reshape(_KERNEL, _KERNEL, self.channels, self.filters).transpose(3, 2, 0, 1)

    def _filters(self, w: np.ndarray) -> np.ndarray:
        """(36, C, F)"""
        flat = w.reshape(self.filters * self.channels, -1).T
        u = self.xp.matmul(self.t.filters, flat)
        u = u.reshape(_ALPHA**2, self.filters, self.channels)
        return np.ascontiguousarray(u.transpose(0, 2, 1))

    def _products(
        self, a: np.ndarray, u: np.ndarray, out: np.ndarray, inner: int, outer: int
    ) -> None:
        self.xp.matmul(a.reshape(_ALPHA**2, -1, inner), u, out=out.reshape(_ALPHA**2, -1, outer))

    def _apply(self, matrix: np.ndarray, maps: np.ndarray, out: np.ndarray) -> None:
        """out (P, N C) = matrix (P, pixels) @ maps^T, some maps at a time."""
        flat = maps.reshape(-1, matrix.shape[1])
        with single_threaded_blas:
            parallel_for(
                lambda i, j: np.matmul(matrix, flat[i:j].T, out=out[:, i:j]), len(flat), _MAPS
            )

    def _adjoint(
        self, matrix: np.ndarray, points: np.ndarray, out: np.ndarray, b: np.ndarray | None
    ) -> None:
        """out maps (N C, pixels) = points^T @ matrix (P, pixels), plus a number per channel."""
        flat = out.reshape(-1, matrix.shape[1])
        bias = None if b is None else np.resize(b, len(flat))[:, None]

        def work(i: int, j: int) -> None:
            np.matmul(points[:, i:j].T, matrix, out=flat[i:j])
            if bias is not None:
                flat[i:j] += bias[i:j]

        with single_threaded_blas:
            parallel_for(work, len(flat), _MAPS)
