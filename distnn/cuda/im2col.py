"""Convolution as matrix products over patches (im2col), for every configuration there is.

Arrays have channels last: x (N, *S, C), w (F, *K, C / group), y (N, *O, F). The patches of some
images are the rows of a matrix (images * O, group * K * C / group), whose columns are in the order
of w's; so each of the three operations is one product of matrices per group, without moving y.
A gradient with respect to x is gathered: each pixel adds up the patches it is in, in the order of
the taps, so that the result has the same bits every time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np

from . import patches_source
from .kernels import THREADS, blocks_for, index_dtype, kernel
from .matmul import multiply
from .problem import Problem

# Of a matrix of patches. The number of images that it holds is a matter of shapes alone.
_PATCH_BYTES = 128 * 1024 * 1024


class Patches:
    """The matrix products of one convolution on arrays with channels last."""

    def __init__(self, problem: Problem) -> None:
        geometry = problem.geometry
        self.tf32 = problem.tf32
        self.dtype = problem.dtype
        self.images, self.channels, *lengths = problem.x
        self.filters, self.group_channels, *kernel_lengths = problem.w
        self.group = geometry.group
        results = problem.y[2:]
        self.pixels = math.prod(results)
        self.taps = math.prod(kernel_lengths) * self.group_channels
        self.plain = (
            math.prod(kernel_lengths) == 1
            and not any(geometry.pad)
            and all(s == 1 for s in geometry.stride)
        )
        self.ndim = len(results)
        self.lengths = [
            np.int64(n)
            for n in (
                *lengths, *results, *kernel_lengths,
                *geometry.pad, *geometry.stride, *geometry.dilation,
            )
        ]  # fmt: skip
        image_bytes = self.group * self.taps * self.pixels * self.dtype.itemsize
        self.several = max(1, min(self.images, _PATCH_BYTES // image_bytes))

    def run(self, kind: str, first: Any, second: Any, result: Any) -> None:
        """One of problem.KINDS, without bias."""
        compute = {
            "forward": self.forward,
            "data gradient": self.data_gradient,
            "filter gradient": self.filter_gradient,
        }[kind]
        compute(first, second, result)

    def forward(self, x: Any, w: Any, y: Any) -> None:
        """y = x * w."""
        filters = self._filters(w).swapaxes(1, 2)
        for i, j in self._parts():
            multiply(self._gather(x[i:j]), filters, self._by_group(y[i:j]), self.tf32)

    def data_gradient(self, dy: Any, w: Any, dx: Any) -> None:
        """dx = the sum of the gradients of all patches that a pixel is in."""
        filters = self._filters(w)
        for i, j in self._parts():
            patches = self._patches(dx[i:j])
            multiply(self._by_group(dy[i:j]), filters, patches, self.tf32)
            self._scatter(patches, dx[i:j])

    def filter_gradient(self, x: Any, dy: Any, dw: Any) -> None:
        """dw, added up part by part; in half precision in float32, and rounded once."""
        total = self._filters(dw)
        if self.several < self.images and self.dtype.itemsize < 4:
            total = cupy.empty(total.shape, np.float32)
        for i, j in self._parts():
            rows = self._by_group(dy[i:j]).swapaxes(1, 2)
            multiply(rows, self._gather(x[i:j]), total, self.tf32, accumulate=i > 0)
        if total.dtype != self.dtype:
            self._filters(dw)[...] = total

    # -- layouts ------------------------------------------------------------------------------

    def _parts(self) -> Iterator[tuple[int, int]]:
        for i in range(0, self.images, self.several):
            yield i, min(i + self.several, self.images)

    def _filters(self, w: Any) -> Any:
        """(F, *K, C / group) -> (group, F / group, taps)"""
        return w.reshape(self.group, self.filters // self.group, self.taps)

    def _by_group(self, y: Any) -> Any:
        """(n, *O, F) -> (group, n O, F / group), a view"""
        rows = y.reshape(len(y) * self.pixels, self.group, self.filters // self.group)
        return rows.transpose(1, 0, 2)

    def _patches(self, x: Any) -> Any:
        """Memory for the patches of x: (group, n O, taps). Where they are x's own pixels, x."""
        shape = (len(x) * self.pixels, self.group, self.taps)
        rows = x.reshape(shape) if self.plain else cupy.empty(shape, self.dtype)
        return rows.transpose(1, 0, 2)

    def _gather(self, x: Any) -> Any:
        """(n, *S, C) -> patches (group, n O, taps)"""
        patches = self._patches(x)
        if not self.plain:
            self._run("gather_patches", x, patches, len(x) * self.pixels)
        return patches

    def _scatter(self, patches: Any, dx: Any) -> None:
        """The adjoint of _gather."""
        if not self.plain:
            self._run("add_patches", patches, dx, dx.size // self.channels)

    def _run(self, name: str, source: Any, target: Any, rows: int) -> None:
        """One thread for each channel of a patch, or of a pixel."""
        index = index_dtype(source.size, target.size)
        run = kernel(name, patches_source.source(name, self.ndim, self.dtype, index))
        run(
            blocks_for(rows * self.channels), THREADS, source, target, np.int64(rows),
            np.int64(self.channels), np.int64(self.group_channels), *self.lengths,
        )  # fmt: skip
