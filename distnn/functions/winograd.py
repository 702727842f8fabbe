"""Winograd's minimal filtering F(4x4, 3x3) for small maps, as dense matrix products.

3x3 convolution with stride 1. For a row of tiles, padding, cutting into tiles and the input
transform together are one constant matrix M, the output transform and putting tiles together
another, A:

    V = M x,   P_p = V_p w_p (36 products),   y = A P

which takes 4 times fewer multiplications than the definition. Backward is the adjoint. Because the
matrices act on neighbouring pixels of one map, arrays stay in their (N, C, H, W) order: BLAS takes
the transposed operand. A thread takes some images through all steps, so that their points stay in
its cache. For wide maps M would be large; winograd_tiles.py serves those.

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
# Maps (one image, one channel) that a transform takes at a time: 1 MB of float32 pixels at 8x8.
_MAPS = 4096
# Tiles of one row of a group of images: products of fewer rows would be slow, and points of more
# would not stay in a cache. Where there are few groups, all images are one, on all threads.
_ROWS = 96
_FEW = 3
# Sums of the filters' gradients that are added up at the end; fixed, for the sake of the bits.
_SUMS = 8
_SUMS_BYTES = 2**25
_SUM_PART = 2**16


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


class Strip(NamedTuple):
    """Constant matrices for a row of T tiles: 36 points each."""

    into: np.ndarray  # M (36 * T, pixels that it reads)
    out: np.ndarray  # A (results, 36 * T), and a column of ones, for the bias
    pixels: slice  # of a map of H * W
    results: slice  # of a map of OH * OW


class Transforms(NamedTuple):
    """Constant matrices for one map size."""

    strips: tuple[Strip, ...]
    filters: np.ndarray  # (36, 9)
    tiles: int  # of a strip


@functools.lru_cache(maxsize=64)
def transforms(lengths: tuple[int, int], pads: tuple[int, int], dtype: np.dtype) -> Transforms:
    """The matrices for maps of `lengths` with `pads` on both sides."""
    at, g, bt = cook_toom()
    (height, width), (above, left) = lengths, pads
    rows, columns = (n + 2 * p - _KERNEL + 1 for n, p in zip(lengths, pads, strict=True))
    tiles = -(-columns // _TILE)
    bw = np.zeros((_ALPHA, tiles, width))
    aw = np.zeros((columns, _ALPHA, tiles))
    for t in range(tiles):
        for j in range(_ALPHA):
            pixel = _TILE * t + j - left
            if 0 <= pixel < width:
                bw[:, t, pixel] = bt[:, j]
        for k in range(min(_TILE, columns - _TILE * t)):
            aw[_TILE * t + k, :, t] = at[k]
    strips = []
    for first in range(0, rows, _TILE):
        begin = first - above
        window = slice(min(max(begin, 0), height), min(max(begin + _ALPHA, 0), height))
        last = min(first + _TILE, rows)
        bh, ah = bt[:, window.start - begin : window.stop - begin], at[: last - first]
        m = np.einsum("xh,yuw->xyuhw", bh, bw).reshape(_ALPHA**2 * tiles, -1)
        a = np.einsum("hx,wyu->hwxyu", ah, aw).reshape(-1, _ALPHA**2 * tiles)
        a = np.concatenate([a, np.ones((len(a), 1))], axis=1)
        pixels = slice(window.start * width, window.stop * width)
        results = slice(first * columns, last * columns)
        into, out = (np.ascontiguousarray(matrix, dtype) for matrix in (m, a))
        strips.append(Strip(into, out, pixels, results))
    filters = np.ascontiguousarray(np.einsum("xi,yj->xyij", g, g).reshape(_ALPHA**2, -1), dtype)
    return Transforms(tuple(strips), filters, tiles)


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
    # Multiplications for an image; a row of tiles reads six rows of pixels.
    read, written = min(_ALPHA * lengths[1], pixels), min(_TILE * outputs[1], results)
    maps = tiles * (both + read * channels + written * filters)
    if _ALPHA**2 * maps < _KERNEL**2 * both * results:
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
    """Memory for the points of a row of tiles, where all images are one group."""
    images, channels = x_shape[:2]
    tiles = -(-(x_shape[3] + 2 * pads[1] - _KERNEL + 1) // _TILE)
    forward, backward = _both_groups(images, tiles, w_shape, itemsize)
    if min(forward.shares, backward.shares) > 1:
        return 0
    points = _ALPHA**2 * tiles
    return itemsize * images * (points * channels + (points + 1) * w_shape[0])


class Groups(NamedTuple):
    """How images are shared out: each thread takes a share, a group of it at a time."""

    group: int
    share: int
    shares: int  # 1: one after the other, each step on all threads


def _groups(images: int, tiles: int, most: int) -> Groups:
    """Groups of images with so many tiles in a row, in `most` shares."""
    group = max(1, _ROWS // tiles)
    shares = min(-(-images // group), most)
    if shares < _FEW:
        return Groups(images, images, 1)
    share = -(-images // shares)
    return Groups(min(group, share), share, -(-images // share))


def _both_groups(
    images: int, tiles: int, w_shape: tuple[int, ...], itemsize: int
) -> tuple[Groups, Groups]:
    """Those of forward and backward, where each share has a sum of the filters' gradients."""
    sum_bytes = _ALPHA**2 * w_shape[0] * w_shape[1] * itemsize
    most = min(_SUMS, _SUMS_BYTES // max(1, sum_bytes))
    return _groups(images, tiles, images), _groups(images, tiles, most)


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
        self.xp, self.dtype, self.scratch = xp, np.dtype(dtype), scratch
        self.images, self.channels, *lengths = x_shape
        self.filters = w_shape[0]
        self.t = transforms((lengths[0], lengths[1]), (pads[0], pads[1]), self.dtype)
        self.points = _ALPHA**2 * self.t.tiles
        both = _both_groups(self.images, self.t.tiles, w_shape, self.dtype.itemsize)
        self.forward_groups, self.backward_groups = both

    def forward(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, out: np.ndarray) -> None:
        """out = x * w + b."""
        u = np.ascontiguousarray(self._filters(w).transpose(0, 2, 1))

        def work(i: int, j: int, number: int, steps: _Steps) -> None:
            v, p = self._memory(j - i, steps)
            p[-1] = 0 if b is None else np.tile(b, j - i)
            for strip in self.t.strips:
                steps.apply(strip.into, _maps(x[i:j], strip.pixels), v)
                steps.products(v, u, p[:-1])
                steps.adjoin(p, strip.out.T, _maps(out[i:j], strip.results))

        self._by_group(work, self.forward_groups)

    def gradients(self, dy: Any, x: Any, w: Any, dx: Any, dw: Any) -> None:
        """dx, which takes w, and dw, which takes x: those that are not None."""
        u = None if dx is None else self._filters(w)
        shape = (_ALPHA**2, self.channels, self.filters)
        taken = self.backward_groups
        if dw is not None:
            sums = self.xp.empty((taken.shares, *shape), self.dtype)

        def work(i: int, j: int, number: int, steps: _Steps) -> None:
            v, p = self._memory(j - i, steps)
            p, done = p[:-1], 0
            for k, strip in enumerate(self.t.strips):
                steps.apply(strip.out[:, :-1].T, _maps(dy[i:j], strip.results), p)
                if dw is not None:
                    steps.apply(strip.into, _maps(x[i:j], strip.pixels), v)
                    first = k == 0 and i % taken.share == 0
                    steps.add_filters(v, p, sums[number], not first)
                if dx is not None:  # in the memory of x's points
                    steps.products(p, u, v)
                    maps, pixels = _maps(dx[i:j], slice(0, strip.pixels.stop)), strip.pixels
                    steps.adjoin(v, strip.into, maps[:, pixels], max(0, done - pixels.start))
                    done = pixels.stop

        self._by_group(work, taken)
        if dw is not None:
            self._put_filters(sums, dw)

    def _by_group(self, work: Any, taken: Groups) -> None:
        """work(i, j, number of the share, steps) for groups of images."""
        if taken.shares == 1:
            work(0, self.images, 0, _Steps(self.xp, self.xp.matmul, self.scratch))
            return

        def share(first: int, last: int) -> None:
            for i in range(first, last, taken.group):
                j = min(i + taken.group, last)
                work(i, j, first // taken.share, _Steps(self.xp, np.matmul, None))

        with single_threaded_blas:
            parallel_for(share, self.images, taken.share)

    def _memory(self, images: int, steps: _Steps) -> tuple[np.ndarray, np.ndarray]:
        """V (36 T, N C) and P (36 T + 1, N F), with a row for the bias."""
        split = self.points * images * self.channels
        size = split + (self.points + 1) * images * self.filters
        if steps.scratch is None:
            both = self.xp.empty((size,), self.dtype)
        else:
            both = steps.scratch.view(self.dtype)[:size]
        return both[:split].reshape(self.points, -1), both[split:].reshape(self.points + 1, -1)

    def _filters(self, w: np.ndarray) -> np.ndarray:
        """(36, F, C)"""
        flat = w.reshape(self.filters * self.channels, -1).T
        return self.xp.matmul(self.t.filters, flat).reshape(-1, self.filters, self.channels)

    def _put_filters(self, sums: np.ndarray, out: np.ndarray) -> None:
        flat = sums.reshape(len(sums), -1)
        du = flat[0]
        if len(sums) > 1:
            du = self.xp.empty(du.shape, self.dtype)
            parallel_for(
                lambda i, j: np.add.reduce(flat[:, i:j], axis=0, out=du[i:j]), du.size, _SUM_PART
            )
        dw = self.xp.matmul(self.t.filters.T, du.reshape(_ALPHA**2, -1))  # (9, C F)
        out[...] = dw.reshape(_KERNEL, _KERNEL, self.channels, self.filters).transpose(3, 2, 0, 1)


class _Steps(NamedTuple):
    """What is done with the points of a group: by `matmul` on this thread, or on all."""

    xp: Any
    matmul: Any
    scratch: np.ndarray | None

    def apply(self, matrix: np.ndarray, maps: np.ndarray, out: np.ndarray) -> None:
        """out (P, maps) = matrix (P, pixels) @ maps^T, some maps at a time."""
        with single_threaded_blas:
            parallel_for(
                lambda i, j: np.matmul(matrix, maps[i:j].T, out=out[:, i:j]), len(maps), _MAPS
            )

    def adjoin(
        self, points: np.ndarray, matrix: np.ndarray, maps: np.ndarray, shared: int = 0
    ) -> None:
        """maps = points^T (maps, P) @ matrix (P, pixels); added to the first `shared` pixels."""

        def work(i: int, j: int) -> None:
            if not shared:
                np.matmul(points[:, i:j].T, matrix, out=maps[i:j])
                return
            found = self.xp.empty((j - i, matrix.shape[1]), maps.dtype)
            np.matmul(points[:, i:j].T, matrix, out=found)
            maps[i:j, :shared] += found[:, :shared]
            maps[i:j, shared:] = found[:, shared:]

        with single_threaded_blas:
            parallel_for(work, len(maps), _MAPS)

    def products(self, a: np.ndarray, u: Any, out: np.ndarray) -> None:
        """out_p = a_p u_p"""
        inner, outer = u.shape[1:]
        out = out.reshape(_ALPHA**2, -1, outer)
        self.matmul(a.reshape(_ALPHA**2, -1, inner), u, out=out)

    def add_filters(self, v: np.ndarray, p: np.ndarray, du: np.ndarray, add: bool) -> None:
        """du_p = v_p^T p_p, or added to it."""
        _, channels, filters = du.shape
        left = v.reshape(_ALPHA**2, -1, channels).transpose(0, 2, 1)
        right = p.reshape(_ALPHA**2, -1, filters)
        if add:
            du += self.matmul(left, right, out=self.xp.empty(du.shape, du.dtype))
        else:
            self.matmul(left, right, out=du)


def _maps(images: np.ndarray, pixels: slice) -> np.ndarray:
    """Some pixels of each map of images (N, C, H, W)."""
    return images.reshape(images.shape[0] * images.shape[1], -1)[:, pixels]
