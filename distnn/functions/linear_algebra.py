"""Matrices: products of any number of axes, inverses, determinants, diagonals and triangles."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calling import function_api
from ..dtypes import is_half
from ..errors import ShapeError
from ..function import Function, Spec
from ..ndarray import NdArray
from .affine import batch_matmul
from .arithmetic import mul2
from .creation import Unlink
from .reduction import sum as array_sum
from .shapes import shape_of, whole_number
from .shaping import broadcast, reshape, transpose
from .tables import beside, table


def _check_square(function: str, x: Spec) -> None:
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ShapeError(f"[{function}] x has shape {x.shape}; pass square matrices (..., N, N)")


def _wide(x: Any) -> Any:
    """LAPACK and its kind know no half precision."""
    return x.astype(np.float32) if is_half(x.dtype) else x


def _transposed(xp: Any, x: Any) -> Any:
    return xp.transpose(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


@dataclass(frozen=True)
class BatchInv(Function):
    """y = inverse of each matrix of x (..., N, N)."""

    def setup(self, x: Spec) -> Spec:
        _check_square("batch_inv", x)
        return x

    def forward(self, xp: Any, x: Any) -> Any:
        return xp.linalg.inv(_wide(x))

    def grad_x(self, xp: Any, dy: Any, y: Any) -> Any:
        back = _transposed(xp, y)
        return -xp.matmul(xp.matmul(back, dy), back)


@dataclass(frozen=True)
class BatchDet(Function):
    """y (...,) = determinant of each matrix of x (..., N, N)."""

    def setup(self, x: Spec) -> Spec:
        _check_square("batch_det", x)
        return Spec(x.shape[:-2], x.dtype)

    def forward(self, xp: Any, x: Any) -> Any:
        return xp.linalg.det(_wide(x))

    def grad_x(self, xp: Any, dy: Any, x: Any, y: Any) -> Any:
        factor = xp.reshape(dy * y, (*dy.shape, 1, 1))
        return factor * _transposed(xp, xp.call(BatchInv.of(), x))


@dataclass(frozen=True)
class BatchLogdet(Function):
    """y (...,) = logarithm of the determinant's absolute value."""

    def setup(self, x: Spec) -> Spec:
        _check_square("batch_logdet", x)
        return Spec(x.shape[:-2], x.dtype)

    def forward(self, xp: Any, x: Any) -> Any:
        return xp.linalg.slogdet(_wide(x))[1]

    def grad_x(self, xp: Any, dy: Any, x: Any) -> Any:
        factor = xp.reshape(dy, (*dy.shape, 1, 1))
        return factor * _transposed(xp, xp.call(BatchInv.of(), x))


@function_api
def batch_inv(x: Any) -> Any:
    """Inverse of each matrix of a batch.

    Args:
        x: (..., N, N), regular matrices.

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> F.batch_inv(nn.NdArray.from_numpy_array(np.array([[[2., 0.], [0., 4.]]]))).data
    array([[[0.5 , 0.  ],
            [0.  , 0.25]]], dtype=float32)
    """
    return BatchInv.of()(x)


@function_api
def batch_det(x: Any) -> Any:
    """Determinant of each matrix of a batch; its gradient needs regular matrices.

    Args:
        x: (..., N, N).
    Returns: (...,).

    >>> import distnn as nn, distnn.functions as F
    >>> F.batch_det(nn.Variable((5, 3, 3))).shape
    (5,)
    """
    return BatchDet.of()(x)


@function_api
def batch_logdet(x: Any) -> Any:
    """Logarithm of the absolute value of each determinant; see batch_det.

    >>> import distnn as nn, distnn.functions as F
    >>> F.batch_logdet(nn.Variable((5, 3, 3))).shape
    (5,)
    """
    return BatchLogdet.of()(x)


@function_api
def dot(a: Any, b: Any, out: Any = None) -> Any:
    """Product over a's last axis and b's second last (or only) one, as `numpy.dot`.

    Args:
        a: (..., K), or a number's shape ().
        b: (K,) or (..., K, P).
        out: an array that takes the result.
    Raises: ShapeError where the lengths differ.

    >>> import distnn as nn, distnn.functions as F
    >>> F.dot(nn.Variable((2, 3)), nn.Variable((4, 3, 5))).shape
    (2, 4, 5)
    """
    left, right = shape_of("dot", "a", a), shape_of("dot", "b", b)
    if not left or not right:
        number, other = (a, b) if not left else (b, a)
        shape = right or left
        y = mul2(broadcast(number, shape), other) if shape else mul2(a, b)
    else:
        k = left[-1]
        rest = (*right[:-2], *right[-1:]) if len(right) > 1 else ()
        if right[-2 if len(right) > 1 else -1] != k:
            raise ShapeError(
                f"[dot] a {left} and b {right}: a's last axis and b's second last (or only) one "
                "must be as long as each other"
            )
        if len(right) > 2:
            b = transpose(b, (len(right) - 2, *range(len(right) - 2), len(right) - 1))
        rows, columns = math.prod(left[:-1]), math.prod(rest)
        product = batch_matmul(reshape(a, (rows, k)), reshape(b, (k, columns)))
        y = reshape(product, (*left[:-1], *rest))
    if out is None:
        return y
    from ..calling import into

    return into("dot", y, out)


@functools.lru_cache(64)
def _eye(rows: int, columns: int, k: int) -> NdArray:
    return table(np.eye(rows, columns, k))


@functools.lru_cache(64)
def _triangle(rows: int, columns: int, k: int, upper: bool) -> NdArray:
    ones = np.ones((rows, columns))
    return table(np.triu(ones, k) if upper else np.tril(ones, k))


def _of_matrices(x: Any, constant: NdArray) -> Any:
    """A table (rows, columns) with as many axes as x."""
    return beside(x, constant.view((1,) * (len(x.shape) - 2) + constant.shape))


@function_api
def matrix_diag(x: Any) -> Any:
    """Matrices with x on their diagonal: (..., N) -> (..., N, N).

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> F.matrix_diag(nn.NdArray.from_numpy_array(np.array([1., 2.]))).data
    array([[1., 0.],
           [0., 2.]], dtype=float32)
    """
    shape = shape_of("matrix_diag", "x", x)
    if not shape:
        raise ShapeError("[matrix_diag] x has shape (); pass (..., N)")
    columns = reshape(x, (*shape, 1))
    return mul2(columns, _of_matrices(columns, _eye(shape[-1], shape[-1], 0)))


@function_api
def matrix_diag_part(x: Any) -> Any:
    """The diagonals of matrices: (..., N, N) -> (..., N).

    >>> import distnn as nn, distnn.functions as F
    >>> F.matrix_diag_part(nn.Variable((5, 3, 3))).shape
    (5, 3)
    """
    shape = shape_of("matrix_diag_part", "x", x)
    _check_square("matrix_diag_part", Spec(shape, np.dtype(np.float32)))
    return array_sum(mul2(x, _of_matrices(x, _eye(shape[-1], shape[-1], 0))), -1)


@function_api
def trilu(x: Any, k: int = 0, upper: bool = True) -> Any:
    """The upper or lower triangles of matrices, zeros elsewhere.

    Args:
        x: (..., N, M).
        k: number of the diagonal from which it goes up, or (lower) up to which; 0 is the main one.
        upper: False keeps the lower triangle.

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> F.trilu(nn.NdArray.from_numpy_array(np.ones((2, 2)))).data
    array([[1., 1.],
           [0., 1.]], dtype=float32)
    """
    shape = shape_of("trilu", "x", x)
    if len(shape) < 2:
        raise ShapeError(f"[trilu] x has shape {shape}; pass matrices (..., N, M)")
    k = whole_number("trilu", "k", k)
    return mul2(x, _of_matrices(x, _triangle(*shape[-2:], k, bool(upper))))


@function_api
def eye_like(x: Any, k: int = 0) -> Any:
    """Matrices of x's shape with ones on a diagonal, zeros elsewhere; no gradient.

    Args:
        x: (..., N, M).
        k: number of the diagonal; 0 is the main one, 1 the one above it.

    >>> import distnn as nn, distnn.functions as F
    >>> F.eye_like(nn.Variable((5, 3, 4))).shape
    (5, 3, 4)
    """
    shape = shape_of("eye_like", "x", x)
    if len(shape) < 2:
        raise ShapeError(f"[eye_like] x has shape {shape}; pass matrices (..., N, M)")
    eye = _of_matrices(x, _eye(*shape[-2:], whole_number("eye_like", "k", k)))
    return Unlink.of()(broadcast(eye, shape))
