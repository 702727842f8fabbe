"""Cumulative sums and products along an axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calling import function_api
from ..function import Function, Spec
from .arithmetic import identity
from .padding import Pad
from .rearranging import flip
from .shapes import axis_of, shape_of
from .shaping import Slice


@dataclass(frozen=True)
class Cumsum(Function):
    """y_k = sum of x_j for j <= k along an axis; backwards j >= k; exclusive without j = k."""

    axis: int
    exclusive: bool
    reverse: bool

    def setup(self, x: Spec) -> Spec:
        return x

    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        y = xp.empty(x.shape, x.dtype) if out is None else out
        way = np.s_[::-1] if self.reverse else np.s_[:]
        source, target = _first(x, self.axis)[way], _first(y, self.axis)[way]
        if self.exclusive:
            target[:1] = 0
            source, target = source[:-1], target[1:]
        if source.size:
            xp.cumsum(source, axis=0, out=target)
        return y

    def grad_x(self, xp: Any, dy: Any) -> Any:
        return xp.call(Cumsum.of(self.axis, self.exclusive, not self.reverse), dy)


@dataclass(frozen=True)
class Recurrence(Function):
    """y_k = a_k y_{k-1} + b_k along an axis, from y_{-1} = 0; backwards with y_{k+1}.

    Its gradient is another one, backwards: no division, so elements may be 0.
    """

    axis: int
    reverse: bool

    def setup(self, a: Spec, b: Spec) -> Spec:
        return b

    def forward(self, xp: Any, a: Any, b: Any, *, out: Any = None) -> Any:
        y = xp.empty(b.shape, b.dtype) if out is None else out
        way = np.s_[::-1] if self.reverse else np.s_[:]
        factors, terms, results = (_first(x, self.axis)[way] for x in (a, b, y))
        results[:1] = terms[:1]
        for k in range(1, len(results)):
            results[k] = factors[k] * results[k - 1] + terms[k]
        return y

    def grad_a(self, xp: Any, dy: Any, a: Any, y: Any) -> Any:
        before = _shifted(xp, y, self.axis, -1 if self.reverse else 1)
        return self._grad(xp, dy, a) * before

    def grad_b(self, xp: Any, dy: Any, a: Any) -> Any:
        return self._grad(xp, dy, a)

    def _grad(self, xp: Any, dy: Any, a: Any) -> Any:
        after = _shifted(xp, a, self.axis, 1 if self.reverse else -1)
        return xp.call(Recurrence.of(self.axis, not self.reverse), after, dy)


def _first(x: Any, axis: int) -> Any:
    """A view whose first axis is the one of x."""
    return x.transpose(axis, *(i for i in range(x.ndim) if i != axis))


def _shifted(xp: Any, x: Any, axis: int, by: int) -> Any:
    """Element k is that of k - by; a zero comes in."""
    ends = [(0, n) for n in x.shape]
    n = x.shape[axis]
    ends[axis] = (max(0, -by), min(n, n - by))
    part = xp.slice(x, tuple(a for a, _ in ends), tuple(b for _, b in ends))
    widths = [(0, 0)] * x.ndim
    widths[axis] = (max(0, by), max(0, -by))
    return xp.call(Pad.of(tuple(widths)), part, constant_value=0.0)


@function_api
def cumsum(x: Any, axis: int | None = None, exclusive: bool = False, reverse: bool = False) -> Any:
    """Cumulative sum along an axis: y_k = x_0 + ... + x_k.

    Args:
        x: array.
        axis: of the sum; 0 by default.
        exclusive: leave x_k out of y_k.
        reverse: from the end: y_k = x_k + ... + x_{n-1}.

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> F.cumsum(nn.NdArray.from_numpy_array(np.array([1., 2., 3.])), exclusive=True).data
    array([0., 1., 3.], dtype=float32)
    """
    axis = axis_of("cumsum", 0 if axis is None else axis, len(shape_of("cumsum", "x", x)))
    return Cumsum.of(axis, bool(exclusive), bool(reverse))(x)


@function_api
def cumprod(x: Any, axis: int | None = None, exclusive: bool = False, reverse: bool = False) -> Any:
    """Cumulative product along an axis: y_k = x_0 x_1 ... x_k; its gradient is exact at zeros.

    Args:
        x: array.
        axis: of the product; 0 by default.
        exclusive: leave x_k out of y_k.
        reverse: from the end: y_k = x_k ... x_{n-1}.

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> F.cumprod(nn.NdArray.from_numpy_array(np.array([1., 2., 3.]))).data
    array([1., 2., 6.], dtype=float32)
    """
    shape = shape_of("cumprod", "x", x)
    axis = axis_of("cumprod", 0 if axis is None else axis, len(shape))
    n = shape[axis]
    if n == 0:
        return identity(x)
    if reverse:
        x = flip(x, (axis,))
    # Exclusive: a one in front, and without the last. Else the first factor is the first term.
    front = [(0, 0)] * len(shape)
    front[axis] = (1, 0)
    stop, first = list(shape), list(shape)
    stop[axis], first[axis] = n - exclusive, 1
    zero, one = (0,) * len(shape), (1,) * len(shape)
    if exclusive:
        x = Pad.of(tuple(front))(Slice.of(zero, tuple(stop), one)(x), constant_value=1.0)
    rest = [(0, 0)] * len(shape)
    rest[axis] = (0, n - 1)
    begin = Pad.of(tuple(rest))(Slice.of(zero, tuple(first), one)(x), constant_value=0.0)
    y = Recurrence.of(axis, False)(x, begin)
    return flip(y, (axis,)) if reverse else y
