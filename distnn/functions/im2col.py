"""Convolution of any kind as matrix products over patches (im2col), some images at a time.

x (N, C, *S), w (F, C / group, *K), y (N, F, *O). The patches of a few images are laid out as a
matrix (C / group * K, images * O) for each group, so one product serves several images, and the
matrix stays small: 2 MB, made again for each gradient instead of being kept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..threads import parallel_for, single_threaded_blas

_PATCH_BYTES = 2 * 1024 * 1024
# Parts whose filter gradients are added up at the end; a fixed number, for the sake of the bits.
_SUMS = 8
_SLIM = 32  # pixels of a map below which images are joined to one matrix
# Parts of products in place: about so many, of so many columns at least.
_CUTS, _COLUMNS = 32, 256


class Geometry(NamedTuple):
    """How a window moves over the spatial axes; one number per axis."""

    pad: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    group: int

    def results(self, lengths: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
        """Lengths of the output's spatial axes."""
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, p, s, d in zip(
                lengths, kernel, self.pad, self.stride, self.dilation, strict=True
            )
        )

    def copies_nothing(self, kernel: tuple[int, ...]) -> bool:
        """Whether patches of an image are the image: a kernel of one pixel that skips none."""
        return math.prod(kernel) == 1 and not any(self.pad) and set(self.stride) == {1}


class Patches:
    """The matrix products of one convolution."""

    def __init__(
        self,
        xp: Any,
        geometry: Geometry,
        x_shape: tuple[int, ...],
        w_shape: tuple[int, ...],
        dtype: np.dtype,
    ) -> None:
        self.xp = xp
        self.geometry = geometry
        self.images, self.channels = x_shape[:2]
        self.lengths = x_shape[2:]
        self.filters = w_shape[0]
        self.kernel = w_shape[2:]
        self.results = geometry.results(self.lengths, self.kernel)
        self.dtype = dtype
        self.pixels = math.prod(self.results)
        self.taps = self.channels // geometry.group * math.prod(self.kernel)
        # Filters of a group. Lengths are spelled out: -1 cannot be inferred for an empty batch.
        self.rows = self.filters // geometry.group
        self.plain = geometry.copies_nothing(self.kernel)
        # Images' matrices are multiplied where they are, unless they are slim.
        self.in_place = self.plain and self.pixels >= _SLIM
        column = geometry.group * self.taps * self.pixels * dtype.itemsize
        self.several = max(1, _PATCH_BYTES // max(column, 1))

    def forward(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, out: np.ndarray) -> None:
        """out = x * w + b."""
        filters = w.reshape(self.geometry.group, self.rows, self.taps)
        y = out.reshape(self.images, self.geometry.group, self.rows, self.pixels)
        bias = None if b is None else b.reshape(1, self.geometry.group, self.rows, 1)

        if self.in_place:
            self._multiply_in_place(filters, x, y, bias)
            return

        def work(i: int, j: int) -> None:
            product = filters @ self._gather(x[i:j])
            y[i:j] = self._by_image(product, j - i)
            if bias is not None:
                y[i:j] += bias

        with single_threaded_blas:
            parallel_for(work, self.images, self.several)

    def _multiply_in_place(
        self, filters: np.ndarray, x: np.ndarray, y: np.ndarray, bias: np.ndarray | None
    ) -> None:
        """y = filters x + bias for each image and group, some columns of pixels at a time."""
        x = x.reshape(self.images, self.geometry.group, filters.shape[2], self.pixels)
        cuts = max(1, min(_CUTS // max(self.images, 1), self.pixels // _COLUMNS))
        width = -(-self.pixels // cuts)

        def work(i: int, j: int) -> None:
            for part in range(i, j):
                image, cut = divmod(part, cuts)
                columns = slice(cut * width, (cut + 1) * width)
                result = y[image, ..., columns]
                np.matmul(filters, x[image, ..., columns], out=result)
                if bias is not None:
                    result += bias[0]

        with single_threaded_blas:
            parallel_for(work, self.images * cuts, max(1, self.images * cuts // _CUTS))

    def gradients(self, dy: Any, x: Any, w: Any, dx: Any, dw: Any) -> None:
        """dx, which takes w, and dw, which takes x: those that are not None."""
        if dw is not None:
            self._filter_gradient(dy, x, dw)
        if dx is not None:
            self._data_gradient(dy, w, dx)

    def _data_gradient(self, dy: np.ndarray, w: np.ndarray, out: np.ndarray) -> None:
        """out = dx, by adding the gradients of all patches a pixel is in."""
        filters = w.reshape(self.geometry.group, self.rows, self.taps).transpose(0, 2, 1)
        if self.in_place:
            dx = out.reshape(self.images, self.geometry.group, self.taps, self.pixels)
            self._multiply_in_place(filters, dy, dx, None)
            return

        def work(i: int, j: int) -> None:
            self._scatter(filters @ self._by_group(dy[i:j]), out[i:j])

        with single_threaded_blas:
            parallel_for(work, self.images, self.several)

    def _filter_gradient(self, dy: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
        """out = dw, summed over images part by part in a fixed order."""
        share = max(1, -(-self.images // _SUMS))
        parts = -(-self.images // share)
        shape = (self.geometry.group, self.rows, self.taps)
        sums = np.zeros((parts, *shape), self.dtype)

        def work(i: int, j: int) -> None:
            total = sums[i // share]
            if self.in_place:
                for image in range(i, j):
                    left = dy[image].reshape(*shape[:2], self.pixels)
                    right = x[image].reshape(shape[0], self.taps, self.pixels)
                    total += left @ right.transpose(0, 2, 1)
                return
            for a in range(i, j, self.several):
                b = min(a + self.several, j)
                patches = self._gather(x[a:b]).transpose(0, 2, 1)
                total += self._by_group(dy[a:b]) @ patches

        with single_threaded_blas:
            parallel_for(work, self.images, share)
        np.add.reduce(sums, axis=0, out=out.reshape(shape))

    # -- layouts ------------------------------------------------------------------------------

    def _by_group(self, y: np.ndarray) -> np.ndarray:
        """(n, F, *O) -> (group, F / group, n O)"""
        group, pixels = self.geometry.group, self.pixels
        rows = y.shape[1] // group
        y = y.reshape(len(y), group, rows, pixels)
        return y.transpose(1, 2, 0, 3).reshape(group, rows, len(y) * pixels)

    def _by_image(self, y: np.ndarray, images: int) -> np.ndarray:
        """(group, F / group, n O) -> (n, group, F / group, O)"""
        return y.reshape(self.geometry.group, -1, images, self.pixels).transpose(2, 0, 1, 3)

    def _windows(self) -> Iterator[tuple[tuple[int, ...], list[Any], list[Any]]]:
        """For each tap: its place in the kernel, the results it reaches, the pixels it reads."""
        g = self.geometry
        for tap in itertools.product(*map(range, self.kernel)):
            results, pixels = [], []
            for k, n, o, p, s, d in zip(
                tap, self.lengths, self.results, g.pad, g.stride, g.dilation, strict=True
            ):
                shift = k * d - p  # result r reads pixel r * s + shift
                first = max(0, -(shift // s))
                stop = max(first, min(o, (n - 1 - shift) // s + 1))
                results.append(slice(first, stop))
                pixels.append(slice(first * s + shift, max(0, (stop - 1) * s + shift + 1), s))
            if all(r.start < r.stop for r in results):
                yield tap, results, pixels

    def _at(self, tap: tuple[int, ...], results: list[slice]) -> tuple[Any, ...]:
        """Index of a tap's results in patches (C, *K, n, *O)."""
        return (slice(None), *tap, slice(None), *results)

    def _gather(self, x: np.ndarray) -> np.ndarray:
        """(n, C, *S) -> patches (group, taps, n O)"""
        n = len(x)
        group = self.geometry.group
        if self.plain:
            return self._by_group(x)
        patches = self.xp.empty((self.channels, *self.kernel, n, *self.results), self.dtype)
        if any(self.geometry.pad) or 0 in self.results:
            patches.fill(0)
        x = x.swapaxes(0, 1)
        for tap, results, pixels in self._windows():
            patches[self._at(tap, results)] = x[(..., *pixels)]
        return patches.reshape(group, self.taps, n * self.pixels)

    def _scatter(self, patches: np.ndarray, out: np.ndarray) -> None:
        """The adjoint of _gather: add patches (group, taps, n O) into out (n, C, *S)."""
        n = len(out)
        if self.plain:
            out[...] = self._by_image(patches, n).reshape(out.shape)
            return
        patches = patches.reshape(self.channels, *self.kernel, n, *self.results)
        out.fill(0)
        x = out.swapaxes(0, 1)
        for tap, results, pixels in self._windows():
            x[(..., *pixels)] += patches[self._at(tap, results)]
