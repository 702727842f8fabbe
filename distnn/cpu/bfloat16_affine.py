"""Products of matrices of bfloat16: by tile registers, or in float32 where there are none."""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np

from .. import threads
from . import amx, amx_matmul
from .bfloat16 import FLOAT32, is_bfloat16, put, wide
from .bfloat16_reduction import array_sum
from .twin import CpuTwin

logger = logging.getLogger("distnn")


@functools.cache
def uses_tiles() -> bool:
    """Whether products are made by tile registers; says once where they are not."""
    if not amx.available():
        logger.warning(
            "precision of the context: %s; products of bfloat16 are computed in float32, which is "
            "slower than float32 itself",
            amx.problem(),
        )
        return False
    return True


def matmul(
    a: np.ndarray, b: np.ndarray, out: np.ndarray, bias: np.ndarray | None = None
) -> np.ndarray:
    """out = a @ b + bias, rounded once if out is of bfloat16; bias (N,) is float32."""
    if uses_tiles() and amx_matmul.suits(a, b):
        return amx_matmul.multiply(a, b, out, bias)
    product = np.empty(out.shape, FLOAT32) if is_bfloat16(out) else out
    threads.matmul(wide(a), wide(b), product)
    if bias is not None:
        product += bias
    return product if product is out else put(product, out)


class Affine(CpuTwin):
    """functions.affine.Affine."""

    def forward(self, xp: Any, x: Any, w: Any, b: Any = None, *, out: Any = None) -> Any:
        rows, matrix = self._views(xp, x, w)
        if out is None:
            out = xp.empty((*x.shape[: self.function.base_axis], *w.shape[1:]), x.dtype)
        bias = None if b is None else wide(b).reshape(-1)
        matmul(rows, matrix, out.reshape(len(rows), matrix.shape[1]), bias)
        return out

    def backward(self, xp: Any, need: Any, dy: Any, x: Any, w: Any, *, out: Any) -> None:
        rows, matrix = self._views(xp, x, w)
        dy = dy.reshape(len(rows), matrix.shape[1])
        if need.x:
            matmul(dy, matrix.T, out.x.reshape(rows.shape))
        if need.w:
            matmul(rows.T, dy, out.w.reshape(matrix.shape))
        if need.b:
            put(array_sum(dy, 0).reshape(out.b.shape), out.b)

    def _views(self, xp: Any, x: Any, w: Any) -> tuple[np.ndarray, np.ndarray]:
        """x and w as matrices."""
        function = self.function
        return function._rows(xp, x, x.shape), function._matrix(xp, w)
