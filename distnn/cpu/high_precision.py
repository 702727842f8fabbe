"""Precision "high": products of float32 by tile registers, each number as two of bfloat16.

x = h + l, where h is x rounded to bfloat16 and l what that leaves, rounded too. Of a product
x x' = l h' + h l' + h h' + l l' the last is smaller than the errors of the others, and left out.
In convolutions three products are one sum of three times as many addends, so the kernels are those
of bfloat16; products of matrices pack both parts of each number once (amx_matmul.py). Where
float32's own kernels are faster they do the work.
Henry, Tang & Heinecke, arXiv:1904.06376. An infinite number makes NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..function import Function, Spec
from ..functions.im2col import Geometry
from ..memory import pool
from ..threads import parallel_for
from . import amx_convolution, amx_matmul, bfloat16_affine
from .backend import NumbaBackend, NumbaNamespace
from .bfloat16 import FLOAT32, bits, dtype, load, store
from .bfloat16_affine import uses_tiles
from .bfloat16_convolution import Convolution, Deconvolution, FilterGradient
from .compiler import kernel

_PART = 65_536
# From here on a product of matrices is faster than in float32, which packs no number twice: as many
# products for each number of either side, and addends.
_PRODUCTS = 200
_ADDENDS = 128
# And a convolution: taps for each pixel of x, and channels and filters, which fill tiles.
_TAPS = 16
_CHANNELS = 32


def pays(rows: int, depth: int, columns: int) -> bool:
    """Whether tiles multiply (rows, depth) by (depth, columns) faster than float32's kernels."""
    enough = rows * columns >= _PRODUCTS * (rows + columns) and depth >= _ADDENDS
    return enough and uses_tiles()


class HighNamespace(NumbaNamespace):
    """As namespace.NumpyNamespace, with products of float32 by tiles."""

    def __init__(self, backend: HighBackend) -> None:
        self._backend = backend

    def call(self, function: Function, *arrays: Any, **operands: Any) -> Any:
        results = self._backend.implementation(function, arrays).forward(self, *arrays, **operands)
        if not isinstance(results, tuple):
            return results
        n = len(function.declaration.outputs)
        return results[0] if n == 1 else results[:n]

    def matmul(self, a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        if a.dtype != FLOAT32 or not pays(a.shape[-2], a.shape[-1], b.shape[-1]):
            return super().matmul(a, b, out)
        if out is None:
            batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
            out = self.empty((*batch, a.shape[-2], b.shape[-1]), FLOAT32)
        return amx_matmul.multiply(a, b, out)


class HighTiles:
    """The products of one convolution: as amx_convolution.Tiles, for arrays of float32."""

    def __init__(
        self, geometry: Geometry, x_shape: tuple[int, ...], w_shape: tuple[int, ...]
    ) -> None:
        self.geometry = geometry
        self.x_shape, self.w_shape = x_shape, w_shape

    def forward(self, x: Any, w: Any, b: Any, out: Any) -> None:
        """out = x * w + b: a sum over channels of x."""
        x, w = split(x, 1, True), split(w, 1, False)
        self._tiles(x.shape, w.shape).forward(x, w, b, out)

    def gradients(self, dy: Any, x: Any, w: Any, dx: Any, dw: Any, bias: Any = None) -> None:
        """dx, a sum over filters, and dw, a sum over images: those that are not None."""
        if dx is not None:
            filters = split(w, 0, False)
            tiles = self._tiles(self.x_shape, filters.shape)
            tiles.gradients(split(dy, 1, True), None, filters, dx, None, bias)
        if dw is not None:
            images = split(x, 0, True)
            tiles = self._tiles(images.shape, self.w_shape)
            tiles.gradients(split(dy, 0, False), images, None, None, dw)

    def _tiles(self, x_shape: Any, w_shape: Any) -> amx_convolution.Tiles:
        return amx_convolution.Tiles(self.geometry, tuple(x_shape), tuple(w_shape))


class _High:
    """What the three twins share."""

    geometry: Geometry

    @classmethod
    def can(cls, function: Any, x_shape: Any, w_shape: Any) -> bool:
        """Whether tiles compute it, and faster than float32, whose 3x3 is Winograd's."""
        w = function.first_shape(w_shape)
        read = math.prod(w[2:]) // math.prod(function.geometry.stride)
        pays = read >= _TAPS and min(w[:2]) >= _CHANNELS
        return pays and super().can(function, x_shape, w_shape)  # type: ignore[misc]

    def algorithm(
        self, xp: Any, x_shape: Any, w_shape: Any, dtype: np.dtype, scratch: Any = None
    ) -> Any:
        return HighTiles(self.geometry, tuple(x_shape), tuple(w_shape))


class HighConvolution(_High, Convolution):
    """functions.convolution.Convolution."""


class HighDeconvolution(_High, Deconvolution):
    """functions.convolution.Deconvolution."""


class HighFilterGradient(_High, FilterGradient):
    """functions.convolution.FilterGradient."""


class HighAffine(bfloat16_affine.Affine):
    """functions.affine.Affine."""

    @classmethod
    def suits(cls, function: Any, *specs: Spec | None) -> bool:
        x, w, *_ = specs
        assert x is not None
        assert w is not None
        rows, depth = math.prod(x.shape[: function.base_axis]), w.shape[0]
        return x.dtype == FLOAT32 and pays(rows, depth, w.size // max(1, depth))


_TWINS: dict[str, Any] = {
    "Affine": HighAffine,
    "Convolution": HighConvolution,
    "Deconvolution": HighDeconvolution,
    "FilterGradient": HighFilterGradient,
}


class HighBackend(NumbaBackend):
    """NumPy on the host in float32, with products by tile registers."""

    def __init__(self, type_config: str) -> None:
        super().__init__(type_config)
        self.xp = HighNamespace(self)

    def __repr__(self) -> str:
        return f"{super().__repr__()} (precision high)"

    def implementation(self, function: Function, specs: Sequence[Any]) -> Any:
        twin = _TWINS.get(type(function).__name__)
        if twin is not None and twin.suits(function, *specs):
            return twin(function)
        return super().implementation(function, specs)


def split(x: np.ndarray, axis: int, left: bool) -> np.ndarray:
    """(l, h, h) of x, or (h, l, h) for a product's right side, side by side along an axis."""
    if not x.flags.c_contiguous and x.ndim > 1:
        last = x.ndim - 2, x.ndim - 1
        turned = x.swapaxes(*last)
        if turned.flags.c_contiguous and axis in last:
            return split(turned, sum(last) - axis, left).swapaxes(*last)
    shape = x.shape
    flat = np.ascontiguousarray(x).reshape(-1)
    flat = flat if flat.flags.writeable else flat.copy()  # one type for the compiler
    parts = pool.empty((*shape[:axis], 3 * shape[axis], *shape[axis + 1 :]), dtype())
    length = int(np.prod(shape[axis:]))
    count = flat.size // max(1, length)
    target = bits(parts).reshape(-1)
    if count == 1:
        parallel_for(lambda i, j: split_rows(flat, target, 1, length, left, i, j), length, _PART)
    else:
        grain = max(1, _PART // max(1, length))

        def work(i: int, j: int) -> None:
            rows = flat[i * length : j * length], target[3 * i * length : 3 * j * length]
            split_rows(*rows, j - i, length, left, 0, length)

        parallel_for(work, count, grain)
    return parts


@kernel
def split_rows(x, y, rows, length, left, start, stop):
    """Elements `start` to `stop` of rows of this length, each three times as long in y."""
    for r in range(rows):
        first = 3 * r * length
        low = first + (0 if left else length)
        high = first + (length if left else 0)
        for i in range(start, stop):
            value = x[r * length + i]
            h = store(value)
            y[low + i] = store(value - load(h))
            y[high + i] = h
            y[first + 2 * length + i] = h
