"""Functions that move values without computing: shapes, orders, parts and joins of arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calling import function_api
from ..errors import ArgumentError, ShapeError
from ..function import Declaration, Function, Rule, Spec
from ..ndarray import check_shape
from .shapes import axis_of, shape_of, shapes_of, whole_number, whole_numbers


@dataclass(frozen=True)
class Reshape(Function):
    """y has x's memory in another shape."""

    shape: tuple[int, ...]

    alias = True

    def setup(self, x: Spec) -> Spec:
        return Spec(check_shape("reshape", self.shape, math.prod(x.shape)), x.dtype)

    def forward(self, xp: Any, x: Any) -> Any:
        return x.reshape(self.shape)

    def grad_x(self, xp: Any, dy: Any, x_shape: Any) -> Any:
        return xp.reshape(dy, x_shape)


@function_api
def reshape(x: Any, shape: Sequence[int], inplace: bool = True) -> Any:
    """The same values in another shape.

    Args:
        x: array of any shape.
        shape: of the result; one length may be -1 and is inferred.
        inplace: share memory with x; False copies.
    Raises: ShapeError where the sizes differ.

    >>> import distnn as nn, distnn.functions as F
    >>> F.reshape(nn.Variable((2, 6)), (3, -1)).shape
    (3, 4)
    """
    size = math.prod(shape_of("reshape", "x", x))
    y = Reshape.of(check_shape("reshape", shape, size))(x)
    if inplace:
        return y
    from .arithmetic import identity

    return identity(y)


@dataclass(frozen=True)
class Transpose(Function):
    """y's axis i is x's axis axes[i]."""

    axes: tuple[int, ...]

    def setup(self, x: Spec) -> Spec:
        if sorted(self.axes) != list(range(x.ndim)):
            raise ShapeError(
                f"[transpose] axes is {self.axes} but x {x.shape} has {x.ndim} axes; name each once"
            )
        return Spec(tuple(x.shape[a] for a in self.axes), x.dtype)

    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        y = x.transpose(self.axes)
        if out is None:
            return y
        out[...] = y
        return out

    def grad_x(self, xp: Any, dy: Any) -> Any:
        return xp.transpose(dy, tuple(int(i) for i in np.argsort(self.axes)))


@function_api
def transpose(x: Any, axes: Sequence[int]) -> Any:
    """Permute axes: y.shape[i] = x.shape[axes[i]].

    >>> import distnn as nn, distnn.functions as F
    >>> F.transpose(nn.Variable((2, 3, 4)), (2, 0, 1)).shape
    (4, 2, 3)
    """
    ndim = len(shape_of("transpose", "x", x))
    numbers = whole_numbers("transpose", "axes", axes)
    return Transpose.of(tuple(axis_of("transpose", a, ndim, "axes") for a in numbers))(x)


@dataclass(frozen=True)
class Broadcast(Function):
    """y repeats x along axes of length 1."""

    shape: tuple[int, ...]

    def setup(self, x: Spec) -> Spec:
        if x.ndim != len(self.shape) or any(
            n not in (1, m) for n, m in zip(x.shape, self.shape, strict=True)
        ):
            raise ShapeError(
                f"[broadcast] x {x.shape} does not broadcast to {self.shape}; it needs as many "
                "axes, each of the same length or of length 1"
            )
        return Spec(self.shape, x.dtype)

    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        if out is None:
            return xp.broadcast(x, self.shape)
        out[...] = x
        return out

    def grad_x(self, xp: Any, dy: Any) -> Any:
        return dy  # the driver sums it to x's shape


@function_api
def broadcast(x: Any, shape: Sequence[int]) -> Any:
    """Repeat x along its axes of length 1 up to `shape`, of as many axes; a scalar to any shape.

    >>> import distnn as nn, distnn.functions as F
    >>> F.broadcast(nn.Variable((2, 1)), (2, 3)).shape
    (2, 3)
    """
    lengths = check_shape("broadcast", shape)
    if not shape_of("broadcast", "x", x) and lengths:
        x = reshape(x, (1,) * len(lengths))
    return Broadcast.of(lengths)(x)


def _key(start: Sequence[int], stop: Sequence[int], step: Sequence[int]) -> tuple[Any, ...]:
    """The index of range(start, stop, step) on every axis.

    A stop of -1 is that of a range which goes back to the first element, not the last element.
    """
    return tuple(
        np.s_[a : b if b >= 0 else None : s] if len(range(a, b, s)) else np.s_[0:0]
        for a, b, s in zip(start, stop, step, strict=True)
    )


@dataclass(frozen=True)
class Slice(Function):
    """y = the elements of x in range(start, stop, step) of every axis."""

    start: tuple[int, ...]
    stop: tuple[int, ...]
    step: tuple[int, ...]

    def setup(self, x: Spec) -> Spec:
        lengths = tuple(
            len(range(a, b, s)) for a, b, s in zip(self.start, self.stop, self.step, strict=True)
        )
        return Spec(lengths, x.dtype)

    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        y = x[_key(self.start, self.stop, self.step)]
        if out is None:
            return y
        out[...] = y
        return out

    def grad_x(self, xp: Any, dy: Any, x_shape: Any) -> Any:
        return xp.call(Unslice.of(x_shape, self.start, self.stop, self.step), dy)


@dataclass(frozen=True)
class Unslice(Function):
    """The adjoint of Slice: y has x at those elements, and zeros elsewhere."""

    shape: tuple[int, ...]
    start: tuple[int, ...]
    stop: tuple[int, ...]
    step: tuple[int, ...]

    def setup(self, x: Spec) -> Spec:
        return Spec(self.shape, x.dtype)

    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        y = xp.empty(self.shape, x.dtype) if out is None else out
        y.fill(0)
        y[_key(self.start, self.stop, self.step)] = x
        return y

    def grad_x(self, xp: Any, dy: Any) -> Any:
        return xp.call(Slice.of(self.start, self.stop, self.step), dy)


@dataclass(frozen=True)
class SetSlice(Function):
    """y = x but for y[start:stop:step] = v."""

    start: tuple[int, ...]
    stop: tuple[int, ...]
    step: tuple[int, ...]

    inplace = (0,)

    def setup(self, x: Spec, v: Spec) -> Spec:
        return Spec(x.shape, x.dtype)

    def forward(self, xp: Any, x: Any, v: Any, *, out: Any = None) -> Any:
        y = xp.empty(x.shape, x.dtype) if out is None else out
        xp.copyto(y, x)
        y[_key(self.start, self.stop, self.step)] = v
        return y

    def grad_x(self, xp: Any, dy: Any) -> Any:
        part = xp.call(Slice.of(self.start, self.stop, self.step), dy)
        zeros = xp.constant(0, part.shape, part)
        return xp.call(SetSlice.of(self.start, self.stop, self.step), dy, zeros)

    def grad_v(self, xp: Any, dy: Any) -> Any:
        return xp.call(Slice.of(self.start, self.stop, self.step), dy)


@function_api
def slice(
    x: Any,
    start: Sequence[int] | None = None,
    stop: Sequence[int] | None = None,
    step: Sequence[int] | None = None,
) -> Any:
    """Part of an array: x[start_0:stop_0:step_0, ...].

    Args:
        start, stop, step: per axis, for the last axes if fewer than x has; None takes everything.
            A None among them takes that axis's default; negative numbers count from the end.

    >>> import distnn as nn, distnn.functions as F
    >>> F.slice(nn.Variable((4, 6)), (1, 0), (3, 6), (1, 2)).shape
    (2, 3)
    """
    shape = shape_of("slice", "x", x)
    given = [
        None if values is None else _bounds(name, values)
        for name, values in (("start", start), ("stop", stop), ("step", step))
    ]
    count = max((len(g) for g in given if g is not None), default=0)
    if count > len(shape) or any(g is not None and len(g) != count for g in given):
        raise ShapeError(
            f"[slice] start {start}, stop {stop} and step {step} need one number for each axis of "
            f"x {shape}, or for each of its last axes"
        )
    columns = [[None] * count if g is None else g for g in given]
    free = len(shape) - count
    ranges: list[range] = [range(n) for n in shape[:free]]
    for length, a, b, s in zip(shape[free:], *columns, strict=True):
        if s == 0:
            raise ArgumentError(
                f"[slice] step is {step}; pass 1 instead of 0, or a negative number to go back"
            )
        ranges.append(range(*np.s_[a:b:s].indices(length)))
    return Slice.of(
        tuple(r.start for r in ranges), tuple(r.stop for r in ranges), tuple(r.step for r in ranges)
    )(x)


def _bounds(name: str, values: Any) -> list[int | None]:
    """Whole numbers, or None for an axis's default."""
    if not hasattr(values, "__iter__"):
        values = whole_numbers("slice", name, values)  # raises
    return [None if v is None else whole_number("slice", name, v) for v in values]


@dataclass(frozen=True)
class Concatenate(Function):
    """y joins the inputs along an axis."""

    axis: int

    def setup(self, *x: Spec) -> Spec:
        rest = {(*s.shape[: self.axis], *s.shape[self.axis + 1 :]) for s in x}
        if len(rest) > 1 or len({s.ndim for s in x}) > 1:
            raise ShapeError(
                f"[concatenate] x has shapes {[s.shape for s in x]}; only axis {self.axis} may "
                "differ"
            )
        total = sum(s.shape[self.axis] for s in x)
        shape = (*x[0].shape[: self.axis], total, *x[0].shape[self.axis + 1 :])
        return Spec(shape, x[0].dtype)

    def forward(self, xp: Any, *x: Any, out: Any = None) -> Any:
        return xp.concatenate(x, self.axis) if out is None else xp.concatenate(x, self.axis, out)

    def grad_x(self, xp: Any, dy: Any, index: int, x_shape: Any) -> Any:
        start = [0] * dy.ndim
        stop = list(dy.shape)
        start[self.axis] = sum(s[self.axis] for s in x_shape[:index])
        stop[self.axis] = start[self.axis] + x_shape[index][self.axis]
        return xp.slice(dy, tuple(start), tuple(stop))


@function_api
def concatenate(*x: Any, axis: int | None = None) -> Any:
    """Join arrays along an axis (the last by default); other axes have equal lengths.

    >>> import distnn as nn, distnn.functions as F
    >>> F.concatenate(nn.Variable((2, 3)), nn.Variable((2, 4))).shape
    (2, 7)
    """
    ndim = len(shapes_of("concatenate", x)[0])
    return Concatenate.of(axis_of("concatenate", -1 if axis is None else axis, ndim))(*x)


@dataclass(frozen=True)
class Stack(Function):
    """y joins the inputs along a new axis."""

    axis: int

    def setup(self, *x: Spec) -> Spec:
        if len({s.shape for s in x}) > 1:
            raise ShapeError(f"[stack] x has shapes {[s.shape for s in x]}; they must be equal")
        shape = list(x[0].shape)
        shape.insert(self.axis, len(x))
        return Spec(tuple(shape), x[0].dtype)

    def forward(self, xp: Any, *x: Any, out: Any = None) -> Any:
        return xp.stack(x, self.axis, out=out)

    def grad_x(self, xp: Any, dy: Any, index: int, x_shape: Any) -> Any:
        start = [0] * dy.ndim
        stop = list(dy.shape)
        start[self.axis], stop[self.axis] = index, index + 1
        part = xp.slice(dy, tuple(start), tuple(stop))
        return xp.reshape(part, x_shape[index])


@function_api
def stack(*x: Any, axis: int = 0) -> Any:
    """Join arrays of one shape along a new axis.

    >>> import distnn as nn, distnn.functions as F
    >>> F.stack(nn.Variable((2, 3)), nn.Variable((2, 3)), axis=1).shape
    (2, 2, 3)
    """
    return Stack.of(axis_of("stack", axis, len(shapes_of("stack", x)[0]) + 1))(*x)


class Split(Function, by_signature=False):
    """y0, y1, ... = the parts of x along an axis, which they no longer have."""

    def __init__(self, axis: int, count: int) -> None:
        self.axis = axis
        parts = [f"y{i}" for i in range(count)]
        rule = Rule(tuple("d" + y for y in parts), _joined)
        self.declaration = Declaration(name="split", inputs="x", outputs=parts, rules={"x": rule})

    def key(self) -> tuple:
        return (Split, self.axis, len(self.declaration.outputs))

    def setup(self, x: Spec) -> tuple[Spec, ...]:
        part = Spec((*x.shape[: self.axis], *x.shape[self.axis + 1 :]), x.dtype)
        return (part,) * x.shape[self.axis]

    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        parts = [x[(*[np.s_[:]] * self.axis, i)] for i in range(x.shape[self.axis])]
        if out is None:
            return tuple(parts)
        for place, part in zip(out if isinstance(out, tuple) else (out,), parts, strict=True):
            place[...] = part
        return out


def _joined(function: Split, xp: Any, **gradients: Any) -> Any:
    return xp.call(Stack.of(function.axis), *gradients.values())


@function_api
def split(x: Any, axis: int = 0) -> Any:
    """The parts of x along an axis, which they no longer have; a tuple.

    >>> import distnn as nn, distnn.functions as F
    >>> [part.shape for part in F.split(nn.Variable((2, 3)), axis=1)]
    [(2,), (2,), (2,)]
    """
    shape = shape_of("split", "x", x)
    where = axis_of("split", axis, len(shape))
    if shape[where] == 0:
        return ()
    parts = Split.of(where, shape[where])(x)
    return parts if isinstance(parts, tuple) else (parts,)
