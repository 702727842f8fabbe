"""Affine map on a GPU: one product of matrices, with bias and relu where the result is stored."""

from __future__ import annotations

import math
from typing import Any

import cupy
import numpy as np

from ..formula_chain import Chain, Joined
from ..twin import Twin
from .matmul import multiply


class Affine(Twin):
    """functions.affine.Affine."""

    def forward(self, xp: Any, x: Any, w: Any, b: Any = None, *, out: Any = None) -> Any:
        return self._product(xp, x, w, b, out, relu=False)

    def joins(self, chain: Chain) -> bool:
        """The library has relu, with the bits of relu after it; see fusion.py."""
        return str(chain) == f"{chain.outputs[0]} = maximum({chain.arrays[0]}, 0)"

    def forward_joined(self, xp: Any, x: Any, w: Any, b: Any = None, *, joined: Joined) -> Any:
        return self._product(xp, x, w, b, joined.outs[0], relu=True)

    def _product(self, xp: Any, x: Any, w: Any, b: Any, out: Any, relu: bool) -> Any:
        batch = x.shape[: self.function.base_axis]
        if out is None:
            out = cupy.empty((*batch, *w.shape[1:]), x.dtype)
        rows, depth, columns = math.prod(batch), w.shape[0], math.prod(w.shape[1:])
        multiply(
            x.reshape(rows, depth), w.reshape(depth, columns), out.reshape(rows, columns),
            tf32=x.dtype == np.float32 and xp.precision != "highest",
            bias=None if b is None else b.reshape(columns), relu=relu,
        )  # fmt: skip
        return out

    def backward(self, xp: Any, need: Any, dy: Any, x: Any, w: Any, *, out: Any) -> None:
        self.function.backward(xp, need, dy, x, w, out=out)
