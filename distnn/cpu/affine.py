"""Affine maps whose bias is added where the product is stored."""

from __future__ import annotations

import math
from typing import Any

from ..function import Spec
from .matmul import multiply, suits
from .twin import LARGE_PRODUCT, CpuTwin


class Affine(CpuTwin):
    """functions.affine.Affine"""

    @classmethod
    def suits(cls, function: Any, *specs: Spec | None) -> bool:
        x, w, b = specs
        assert x is not None
        assert w is not None
        rows = math.prod(x.shape[: function.base_axis])
        return b is not None and rows * w.size >= LARGE_PRODUCT

    def forward(self, xp: Any, x: Any, w: Any, b: Any = None, *, out: Any = None) -> Any:
        if out is None:
            out = xp.empty((*x.shape[: self.function.base_axis], *w.shape[1:]), x.dtype)
        matrices = x.reshape(-1, len(w)), w.reshape(len(w), -1), out.reshape(-1, b.size)
        if not suits(*matrices):
            return self.function.forward(xp, x, w, b, out=out)
        multiply(*matrices, b.reshape(-1))
        return out

    def backward(self, xp: Any, need: Any, dy: Any, x: Any, w: Any, *, out: Any) -> None:
        self.function.backward(xp, need, dy, x, w, out=out)
