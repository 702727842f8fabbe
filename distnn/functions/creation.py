"""Constants, and functions that exist for their effect: assign and sink."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..calling import function_api
from ..errors import ArgumentError, DtypeError, ShapeError
from ..function import Function, Spec
from ..ndarray import NdArray, check_shape
from ..variable import Variable
from .shapes import number, shapes_of, whole_number


@dataclass(frozen=True)
class Constant(Function):
    """y = val everywhere."""

    shape: tuple[int, ...]

    def setup(self, *, dtype: Any) -> Spec:
        return Spec(self.shape, dtype)

    def forward(self, xp: Any, *, val: float, out: Any) -> Any:
        out.fill(val)
        return out


@function_api
def constant(val: float = 0, shape: Sequence[int] = ()) -> Any:
    """An array filled with a number; no gradient.

    >>> import distnn as nn, distnn.functions as F
    >>> y = F.constant(2, (3,))
    >>> y.forward(); y.d
    array([2., 2., 2.], dtype=float32)
    """
    return Constant.of(check_shape("constant", shape))(val=number("constant", "val", val))


@dataclass(frozen=True)
class Assign(Function):
    """dst = src as an effect of forward; y = src, with the gradient of dst."""

    updates = ("dst",)
    recomputable = True

    def setup(self, dst: Spec, src: Spec) -> Spec:
        if dst.shape != src.shape:
            raise ShapeError(
                f"[assign] src has shape {src.shape} but dst {dst.shape}; they must be the same"
            )
        return Spec(dst.shape, dst.dtype)

    def forward(self, xp: Any, dst: Any, src: Any) -> Any:
        return src, src

    def grad_dst(self, xp: Any, dy: Any) -> Any:
        return dy


@function_api
def assign(dst: Any, src: Any) -> Any:
    """Copy src into dst, a leaf, whenever the result is computed; returns the values.

    The gradient of the result goes to dst, and none to src.

    >>> import distnn as nn, distnn.functions as F
    >>> x = nn.Variable((2,))
    >>> F.assign(x, F.constant(3, (2,))).forward()
    >>> x.d
    array([3., 3.], dtype=float32)
    """
    return Assign.of()(dst, src)


class Sink(Function):
    """A scalar that depends on all inputs, to compute several results in one forward."""

    protects = True

    def __init__(self, gradients: tuple[NdArray | None, ...] | None) -> None:
        # Of the inputs; None: ones. Leaves have None: they keep what they have.
        self.gradients = gradients

    def setup(self, *x: Spec) -> Spec:
        return Spec((), x[0].dtype)

    def forward(self, xp: Any, *x: Any) -> Any:
        return xp.constant(0, (), x[0])

    def grad_x(self, xp: Any, index: int, dy: Any, x_shape: Any) -> Any:
        if self.gradients is None:
            return xp.constant(1, x_shape[index], dy)
        gradient = self.gradients[index]
        return xp.constant(0, x_shape[index], dy) if gradient is None else xp.given(gradient, dy)


@function_api
def sink(*x: Any, one_input_grad: bool = True) -> Any:
    """A scalar 0 that depends on all inputs: its forward computes, its backward reaches, them all.

    Buffers of the inputs are not cleared.

    Args:
        one_input_grad: backward starts with ones at every input; False starts with the present `g`
            of each.

    >>> import distnn as nn, distnn.functions as F
    >>> x = nn.Variable((2,), need_grad=True)
    >>> F.sink(x * 2, x * 3).shape
    ()
    """
    shapes_of("sink", x)
    if one_input_grad:
        return Sink.of(None)(*x)
    if not all(isinstance(v, Variable) for v in x):
        raise DtypeError("[sink] one_input_grad=False needs gradients; pass Variables, no NdArrays")
    return Sink(tuple(None if v.parent is None else v.grad for v in x))(*x)


@dataclass(frozen=True)
class Arange(Function):
    """y_i = start + i step."""

    count: int

    def setup(self, *, dtype: Any) -> Spec:
        return Spec((self.count,), dtype)

    def forward(self, xp: Any, *, start: float, step: float) -> Any:
        return xp.arange(self.count) * step + start


@function_api
def arange(start: float, stop: float, step: float = 1) -> Any:
    """Numbers from start up to but without stop, `step` apart; no gradient.

    >>> import distnn as nn, distnn.functions as F
    >>> y = F.arange(0, 3)
    >>> y.forward(); y.d
    array([0., 1., 2.], dtype=float32)
    """
    start, stop, step = (
        number("arange", name, value)
        for name, value in (("start", start), ("stop", stop), ("step", step))
    )
    if step == 0:
        raise ArgumentError("[arange] step is 0; pass another number")
    count = max(0, math.ceil((stop - start) / step))
    return Arange.of(count)(start=start, step=step)


@function_api
def linspace(start: float, stop: float, num: int) -> Any:
    """`num` numbers from start to stop, both included, equally far apart; no gradient.

    >>> import distnn as nn, distnn.functions as F
    >>> y = F.linspace(0, 1, 5)
    >>> y.forward(); y.d
    array([0.  , 0.25, 0.5 , 0.75, 1.  ], dtype=float32)
    """
    start, stop = number("linspace", "start", start), number("linspace", "stop", stop)
    num = whole_number("linspace", "num", num)
    if num < 0:
        raise ArgumentError(f"[linspace] num is {num}; pass 0 or more")
    return Arange.of(num)(start=start, step=(stop - start) / (num - 1) if num > 1 else 0.0)


@dataclass(frozen=True)
class Unlink(Function):
    """y = x, without a gradient."""

    def setup(self, x: Spec) -> Spec:
        return x

    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        y = xp.empty(x.shape, x.dtype) if out is None else out
        y[...] = x
        return y


@function_api
def unlink(x: Any) -> Any:
    """The same values, as a result through which no gradient flows.

    >>> import distnn as nn, distnn.functions as F
    >>> F.unlink(nn.Variable((2,), need_grad=True)).need_grad
    False
    """
    return Unlink.of()(x)
