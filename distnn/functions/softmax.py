"""Softmax, its logarithm, and the cross entropy of classification."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from ..calling import function_api
from ..errors import ShapeError
from ..function import Function, Spec
from .precision import wide
from .shapes import axis_of, shape_of


@dataclass(frozen=True)
class Softmax(Function):
    """y = exp(x) / sum exp(x) along an axis."""

    axis: int

    cuda = "softmax.Softmax"
    cpu = "softmax.Softmax"

    def setup(self, x: Spec) -> Spec:
        return Spec(x.shape, x.dtype)

    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        # exp(x - max) cannot overflow, and the quotient does not change.
        y = xp.subtract(x, x.max(self.axis, keepdims=True, initial=-xp.inf), out=out)
        xp.exp(y, out=y)
        y /= xp.sum(y, self.axis, True)
        return y

    def grad_x(self, xp: Any, dy: Any, y: Any) -> Any:
        return y * (dy - xp.sum(dy * y, self.axis, True))

    def backward(self, xp: Any, need: Any, dy: Any, y: Any, *, out: Any) -> None:
        dx = xp.multiply(dy, y, out=out.x)
        xp.subtract(dy, xp.sum(dx, self.axis, True), out=dx)
        dx *= y


@dataclass(frozen=True)
class LogSoftmax(Function):
    """y = x - log sum exp(x) along an axis."""

    axis: int

    cuda = "softmax.LogSoftmax"
    cpu = "softmax.LogSoftmax"

    def setup(self, x: Spec) -> Spec:
        return Spec(x.shape, x.dtype)

    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        y = xp.subtract(x, x.max(self.axis, keepdims=True, initial=-xp.inf), out=out)
        y -= xp.log(xp.sum(xp.exp(y), self.axis, True))
        return y

    def grad_x(self, xp: Any, dy: Any, y: Any) -> Any:
        return dy - xp.exp(y) * xp.sum(dy, self.axis, True)

    def backward(self, xp: Any, need: Any, dy: Any, y: Any, *, out: Any) -> None:
        dx = xp.exp(y, out=out.x)
        dx *= xp.sum(dy, self.axis, True)
        xp.subtract(dy, dx, out=dx)


@function_api
def softmax(x: Any, axis: int | None = None) -> Any:
    """Softmax y_i = exp(x_i) / sum_j exp(x_j) along `axis` (the last by default).

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> F.softmax(nn.NdArray.from_numpy_array(np.zeros((1, 2)))).data
    array([[0.5, 0.5]], dtype=float32)
    """
    ndim = len(shape_of("softmax", "x", x))
    return Softmax.of(axis_of("softmax", -1 if axis is None else axis, ndim))(x)


@function_api
def log_softmax(x: Any, axis: int | None = None) -> Any:
    """Logarithm of softmax along `axis` (the last by default): y_i = x_i - log sum_j exp(x_j).

    >>> import distnn as nn, distnn.functions as F
    >>> F.log_softmax(nn.Variable((2, 3))).shape
    (2, 3)
    """
    ndim = len(shape_of("log_softmax", "x", x))
    return LogSoftmax.of(axis_of("log_softmax", -1 if axis is None else axis, ndim))(x)


@dataclass(frozen=True)
class OneHotLike(Function):
    """y[..., i, ...] = 1 where i is the label, in x's shape; zeros where the label is -1."""

    axis: int
    length: int

    indices = ("t",)

    def setup(self, t: Spec, *, dtype: Any) -> Spec:
        return Spec((*t.shape[: self.axis], self.length, *t.shape[self.axis + 1 :]), dtype)

    def forward(self, xp: Any, t: Any) -> Any:
        shape = [1] * t.ndim
        shape[self.axis] = self.length
        return t == xp.arange(self.length).reshape(shape)


@dataclass(frozen=True)
class SoftmaxCrossEntropy(Function):
    """y = -log softmax(x)[target] along an axis, 0 where target is -1."""

    axis: int

    # Two numbers a row, of which backward makes softmax again: cheaper than to keep it.
    indices = ("target",)
    saved = ("peak", "total")
    cuda = "softmax.SoftmaxCrossEntropy"
    cpu = "softmax.SoftmaxCrossEntropy"

    def setup(self, x: Spec, target: Spec) -> tuple[Spec, Spec, Spec]:
        shape = (*x.shape[: self.axis], 1, *x.shape[self.axis + 1 :])
        if target.shape != shape:
            raise ShapeError(
                f"[softmax_cross_entropy] target has shape {target.shape} but x {x.shape} with "
                f"axis {self.axis} needs {shape}: class numbers, one for each row of x"
            )
        return Spec(shape, x.dtype), Spec(shape, x.dtype), Spec(shape, wide(x.dtype))

    def check(self, xp: Any, indices: Any, shapes: Any) -> None:
        check_labels("softmax_cross_entropy", xp, indices, shapes[0][self.axis])

    def forward(self, xp: Any, x: Any, target: Any, *, out: Any = None) -> Any:
        self.check(xp, target, (x.shape,))
        loss, peak, _ = (None, None, None) if out is None else out
        peak = x.max(self.axis, keepdims=True, initial=-xp.inf, out=peak)
        y = xp.subtract(x, peak, dtype=wide(x.dtype))
        picked = xp.take_along_axis(y, xp.maximum(target, 0), self.axis)
        total = xp.sum(xp.exp(y, out=y), self.axis, True)
        loss = xp.log(total, out=loss if total.dtype == x.dtype else None)
        loss -= picked
        loss[target < 0] = 0
        return loss, peak, total

    def grad_x(self, xp: Any, dy: Any, x: Any, target: Any, x_shape: Any) -> Any:
        hot = xp.call(OneHotLike.of(self.axis, x_shape[self.axis]), target)
        # The sum of hot along the axis is 0 for ignored labels and 1 for others.
        return dy * (xp.call(Softmax.of(self.axis), x) * xp.sum(hot, self.axis, True) - hot)

    def backward(
        self, xp: Any, need: Any, dy: Any, x: Any, target: Any, peak: Any, total: Any, *, out: Any
    ) -> None:
        exact = total.dtype
        dx = xp.subtract(x, peak, out=out.x if x.dtype == exact else None, dtype=exact)
        xp.exp(dx, out=dx)
        dy = xp.array(dy, exact)
        dy[target < 0] = 0
        dx *= dy / total
        index = xp.maximum(target, 0)
        xp.put_along_axis(dx, index, xp.take_along_axis(dx, index, self.axis) - dy, self.axis)
        if dx is not out.x:
            out.x[...] = dx


def check_labels(function: str, xp: Any, t: Any, classes: int) -> None:
    """Raise LabelError unless every label is a class number or -1."""
    xp.check_range(t, -1, classes - 1, _label_message(function, t.size, classes))


@functools.lru_cache(1024)
def _label_message(function: str, size: int, classes: int) -> str:
    return (
        f"[{function}] target holds {{value}} ({{wrong}} of {size} labels are out of range); "
        f"with {classes} classes labels are 0 to {classes - 1}, or -1 to ignore"
    )


@function_api
def softmax_cross_entropy(x: Any, target: Any, axis: int | None = None) -> Any:
    """Cross entropy of softmax(x) and class labels: y = -log softmax(x)[target].

    Args:
        x: (..., C, ...) scores; classes along `axis` (the last by default).
        target: class numbers, x's shape with length 1 at `axis`; -1 ignores the sample: its loss
            and its gradient are 0.
    Returns: losses in target's shape, no mean taken.
    Raises: ShapeError where the shapes do not fit; LabelError for a label outside -1 ... C - 1.

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> x = nn.NdArray.from_numpy_array(np.zeros((1, 4), np.float32))
    >>> F.softmax_cross_entropy(x, nn.NdArray.from_numpy_array(np.array([[2]]))).data
    array([[1.3862944]], dtype=float32)
    """
    ndim = len(shape_of("softmax_cross_entropy", "x", x))
    where = axis_of("softmax_cross_entropy", -1 if axis is None else axis, ndim)
    return SoftmaxCrossEntropy.of(where)(x, target)
