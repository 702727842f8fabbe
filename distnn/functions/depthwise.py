"""Convolution with one filter for each channel: taps one after the other, as sums of whole arrays.

One product of matrices for each channel, as im2col.py has them for groups, would be a very small
one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..threads import parallel_for
from .im2col import Patches

_BYTES = 2**19  # of the images that a part takes: they should stay in a cache
_SUMS = 8  # parts of filters' gradients; a fixed number, for the sake of the bits


class Depthwise(Patches):
    """The sums of one convolution: x (N, C, *S), w (C, 1, *K), y (N, C, *O)."""

    @property
    def _grain(self) -> int:
        image = self.channels * max(self.pixels, 1) * self.dtype.itemsize
        return max(1, _BYTES // max(image, 1))

    def forward(self, x: Any, w: Any, b: np.ndarray | None, out: Any) -> None:
        """out = x * w + b."""

        def work(i: int, j: int) -> None:
            y = out[i:j]
            y[...] = 0 if b is None else self._by_channel(b)
            for tap, results, pixels in self._windows():
                y[(..., *results)] += x[(slice(i, j), ..., *pixels)] * self._tap(w, tap)

        parallel_for(work, self.images, self._grain)

    def _data_gradient(self, dy: Any, w: Any, out: Any) -> None:
        def work(i: int, j: int) -> None:
            dx = out[i:j]
            dx.fill(0)
            for tap, results, pixels in self._windows():
                dx[(..., *pixels)] += dy[(slice(i, j), ..., *results)] * self._tap(w, tap)

        parallel_for(work, self.images, self._grain)

    def _filter_gradient(self, dy: Any, x: Any, out: Any) -> None:
        share = max(1, -(-self.images // _SUMS))
        sums: Any = np.zeros((-(-self.images // share), *out.shape), self.dtype)

        def work(i: int, j: int) -> None:
            for a in range(i, j, self._grain):
                images = slice(a, min(a + self._grain, j))
                for tap, results, pixels in self._windows():
                    products = dy[(images, ..., *results)] * x[(images, ..., *pixels)]
                    flat = products.reshape(*products.shape[:2], -1)
                    sums[(i // share, slice(None), 0, *tap)] += flat.sum(2).sum(0)

        parallel_for(work, self.images, share)
        np.add.reduce(sums, axis=0, out=out)

    def _tap(self, w: Any, tap: tuple[int, ...]) -> np.ndarray:
        return self._by_channel(w[(slice(None), 0, *tap)])

    def _by_channel(self, numbers: np.ndarray) -> np.ndarray:
        return numbers.reshape(-1, *[1] * len(self.lengths))
