"""Affine map and products of matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..calling import function_api
from ..errors import ShapeError
from ..function import Function, Spec
from .shapes import shape_of, whole_number


@dataclass(frozen=True)
class Affine(Function):
    """y = x w + b.   x (M..., D...), w (D, L...), b (L...) or None -> y (M..., L...)"""

    base_axis: int

    cuda = "affine.Affine"
    cpu = "affine.Affine"

    def setup(self, x: Spec, w: Spec, b: Spec | None = None) -> Spec:
        depth = math.prod(x.shape[self.base_axis :])
        if not w.shape or w.shape[0] != depth:
            raise ShapeError(
                f"[affine] weight has {w.shape[0] if w.shape else 0} rows but x {x.shape} has "
                f"{depth} elements from axis {self.base_axis} on; pass a weight of shape "
                f"({depth}, outputs)"
            )
        if b is not None and b.shape != w.shape[1:]:
            raise ShapeError(
                f"[affine] bias has shape {b.shape} but weight {w.shape} needs {w.shape[1:]}"
            )
        return Spec((*x.shape[: self.base_axis], *w.shape[1:]), x.dtype)

    def forward(self, xp: Any, x: Any, w: Any, b: Any = None, *, out: Any = None) -> Any:
        if out is None:
            out = xp.empty((*x.shape[: self.base_axis], *w.shape[1:]), x.dtype)
        flat = self._rows(xp, out, out.shape)
        xp.matmul(self._rows(xp, x, x.shape), self._matrix(xp, w), out=flat)
        if b is not None:
            xp.add(flat, b if b.ndim == 1 else b.reshape(-1), out=flat)
        return out

    def grad_x(self, xp: Any, dy: Any, w: Any, x_shape: Any) -> Any:
        dx = xp.matmul(self._rows(xp, dy, dy.shape), xp.transpose(self._matrix(xp, w)))
        return xp.reshape(dx, x_shape)

    def grad_w(self, xp: Any, dy: Any, x: Any, w_shape: Any) -> Any:
        dw = xp.matmul(xp.transpose(self._rows(xp, x, x.shape)), self._rows(xp, dy, dy.shape))
        return xp.reshape(dw, w_shape)

    def grad_b(self, xp: Any, dy: Any) -> Any:
        return xp.sum(dy, tuple(range(self.base_axis)))

    def backward(self, xp: Any, need: Any, dy: Any, x: Any, w: Any, *, out: Any) -> None:
        dy2 = self._rows(xp, dy, dy.shape)
        if need.x:
            dx2 = self._rows(xp, out.x, out.x.shape)
            xp.matmul(dy2, self._matrix(xp, w).T, out=dx2)
        if need.w:
            xp.matmul(self._rows(xp, x, x.shape).T, dy2, out=self._matrix(xp, out.w))
        if need.b:
            out.b.reshape(-1)[...] = xp.sum(dy2, 0)

    def _rows(self, xp: Any, a: Any, shape: tuple[int, ...]) -> Any:
        axis = self.base_axis
        if axis == 1 and len(shape) == 2:
            return a
        return xp.reshape(a, (math.prod(shape[:axis]), math.prod(shape[axis:])))

    def _matrix(self, xp: Any, w: Any) -> Any:
        if w.ndim == 2:
            return w
        return xp.reshape(w, (w.shape[0], math.prod(w.shape[1:])))


@function_api
def affine(x: Any, weight: Any, bias: Any = None, base_axis: int = 1) -> Any:
    """Affine map y = x W + b; axes from `base_axis` on are flattened.

    Args:
        x: (M_1, ..., D_1, ...) array; the M axes come before `base_axis`.
        weight: (D_1 * ..., L_1, ...).
        bias: (L_1, ...) or None.
    Returns: (M_1, ..., L_1, ...).
    Raises: ShapeError when the rows of the weight differ from the flattened size of x.

    >>> import distnn as nn, distnn.functions as F
    >>> F.affine(nn.Variable((2, 3)), nn.Variable((3, 4)), nn.Variable((4,))).shape
    (2, 4)
    """
    shape = shape_of("affine", "x", x)
    shape_of("affine", "weight", weight)
    if bias is not None:
        shape_of("affine", "bias", bias)
    axis = whole_number("affine", "base_axis", base_axis)
    if not 0 <= axis <= len(shape):
        raise ShapeError(f"[affine] base_axis is {axis} but x is {shape}; pass 0 to {len(shape)}")
    return Affine.of(axis)(x, weight, bias)


@dataclass(frozen=True)
class BatchMatmul(Function):
    """y = op(a) op(b) for each matrix of a batch; op transposes on request.

    a (..., N, M), b (..., M, P) -> y (..., N, P); leading axes of length 1 broadcast.
    """

    transpose_a: bool
    transpose_b: bool

    def setup(self, a: Spec, b: Spec) -> Spec:
        if a.ndim != b.ndim or a.ndim < 2:
            raise ShapeError(
                f"[batch_matmul] a {a.shape} and b {b.shape} need as many axes each, two or more: "
                "(..., N, M) and (..., M, P)"
            )
        n, inner = a.shape[-2:][:: -1 if self.transpose_a else 1]
        inner_b, p = b.shape[-2:][:: -1 if self.transpose_b else 1]
        batch = [
            max(m, k) if 1 in (m, k) else (m if m == k else -1)
            for m, k in zip(a.shape[:-2], b.shape[:-2], strict=True)
        ]
        given = (
            f"[batch_matmul] a {a.shape} and b {b.shape} with transpose_a={self.transpose_a}, "
            f"transpose_b={self.transpose_b}: "
        )
        if inner != inner_b:
            raise ShapeError(f"{given}{inner} columns meet {inner_b} rows; they must be as many")
        if -1 in batch:
            raise ShapeError(f"{given}axes before the last two must be equal or of length 1")
        return Spec((*batch, n, p), a.dtype)

    def forward(self, xp: Any, a: Any, b: Any, *, out: Any = None) -> Any:
        a = a.swapaxes(-1, -2) if self.transpose_a else a
        b = b.swapaxes(-1, -2) if self.transpose_b else b
        return xp.matmul(a, b, out=out)

    def grad_a(self, xp: Any, dy: Any, b: Any) -> Any:
        if self.transpose_a:
            return xp.call(BatchMatmul.of(self.transpose_b, True), b, dy)
        return xp.call(BatchMatmul.of(False, not self.transpose_b), dy, b)

    def grad_b(self, xp: Any, dy: Any, a: Any) -> Any:
        if self.transpose_b:
            return xp.call(BatchMatmul.of(True, self.transpose_a), dy, a)
        return xp.call(BatchMatmul.of(not self.transpose_a, False), a, dy)


@function_api
def batch_matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    """Matrix product of each pair of matrices in two batches.

    Args:
        a: (..., N, M), or (..., M, N) with transpose_a.
        b: (..., M, P), or (..., P, M) with transpose_b; leading axes of length 1 broadcast.
    Returns: (..., N, P).
    Raises: ShapeError where the inner lengths differ.

    >>> import distnn as nn, distnn.functions as F
    >>> F.batch_matmul(nn.Variable((5, 2, 3)), nn.Variable((5, 3, 4))).shape
    (5, 2, 4)
    """
    return BatchMatmul.of(bool(transpose_a), bool(transpose_b))(a, b)
