"""Affine maps: large ones add the bias where the product is stored, gradients of small ones are one
kernel."""

from __future__ import annotations

import math
from typing import Any

from ..function import Spec
from .affine_gradient import LARGEST, NO_MATRIX, NO_VECTOR, SMALLEST, gradients
from .matmul import multiply, suits
from .reduction import sum_of_rows
from .twin import LARGE_PRODUCT, CpuTwin


class Affine(CpuTwin):
    """functions.affine.Affine"""

    @classmethod
    def suits(cls, function: Any, *specs: Spec | None) -> bool:
        x, w, b = specs
        assert x is not None
        assert w is not None
        work = math.prod(x.shape[: function.base_axis]) * w.size
        return _is_small(x, work) or (b is not None and work >= LARGE_PRODUCT)

    def forward(self, xp: Any, x: Any, w: Any, b: Any = None, *, out: Any = None) -> Any:
        if b is not None and x.size * b.size >= LARGE_PRODUCT:
            if out is None:
                out = xp.empty((*x.shape[: self.function.base_axis], *w.shape[1:]), x.dtype)
            matrices = x.reshape(-1, len(w)), w.reshape(len(w), -1), out.reshape(-1, b.size)
            if suits(*matrices):
                multiply(*matrices, b.reshape(-1))
                return out
        return self.function.forward(xp, x, w, b, out=out)

    def backward(self, xp: Any, need: Any, dy: Any, x: Any, w: Any, *, out: Any) -> None:
        if not _is_small(x, dy.size * len(w)):
            dy2 = dy.reshape(-1, w.size // len(w))
            if need.w and need.b:
                dw = out.w.reshape(len(w), -1)
                if suits(x.reshape(-1, len(w)).T, dy2, dw):
                    multiply(x.reshape(-1, len(w)).T, dy2, dw, sums=out.b.reshape(-1))
                    need = need._replace(w=False, b=False)
            self.function.backward(xp, need._replace(b=False), dy, x, w, out=out)
            if need.b:
                sum_of_rows(dy2, out.b.reshape(-1))
            return
        dx = NO_MATRIX if out.x is None else out.x
        dw = NO_MATRIX if out.w is None else out.w
        db = NO_VECTOR if out.b is None else out.b
        if x.ndim != 2 or w.ndim != 2:
            depth = len(w)
            dy, x, w = dy.reshape(-1, w.size // depth), x.reshape(-1, depth), w.reshape(depth, -1)
            dx = dx.reshape(x.shape) if need.x else dx
            dw = dw.reshape(w.shape) if need.w else dw
            db = db.reshape(-1)
        gradients(dy, x, w, dx, dw, db)


def _is_small(x: Any, work: int) -> bool:
    return x.dtype.char == "f" and SMALLEST <= work <= LARGEST
