"""Arguments of functions, checked and completed: arrays, numbers, shapes and axes."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from ..errors import ArgumentError, DtypeError, ShapeError
from ..ndarray import NdArray
from ..variable import Variable

_ARRAYS = (Variable, NdArray)


def shape_of(function: str, name: str, x: Any) -> tuple[int, ...]:
    """The shape of an argument that has to be a Variable or an NdArray."""
    if isinstance(x, _ARRAYS):
        return x.shape
    raise DtypeError(
        f"[{function}] {name} is {type(x).__name__}; pass a Variable or an NdArray "
        "(Variable.from_numpy_array makes one)"
    )


def shapes_of(function: str, arrays: Sequence[Any]) -> list[tuple[int, ...]]:
    """The shapes of the arrays that a function joins; there must be one or more."""
    if not arrays:
        raise ArgumentError(f"[{function}] got no inputs; pass one or more")
    if isinstance(arrays[0], list | tuple):
        raise DtypeError(
            f"[{function}] x[0] is {type(arrays[0]).__name__}; pass the arrays one by one: "
            f"F.{function}(*arrays)"
        )
    return [shape_of(function, f"x[{i}]", x) for i, x in enumerate(arrays)]


def number(function: str, name: str, value: Any) -> float:
    """A number as a float."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise DtypeError(f"[{function}] {name} is {_shown(value)}; pass a number") from None


def whole_number(function: str, name: str, value: Any) -> int:
    """A whole number as an int."""
    try:
        return operator.index(value)
    except TypeError:
        raise DtypeError(f"[{function}] {name} is {_shown(value)}; pass a whole number") from None


def whole_numbers(function: str, name: str, values: Any) -> tuple[int, ...]:
    """Several whole numbers as ints."""
    try:
        return tuple(operator.index(v) for v in values)
    except TypeError:
        raise DtypeError(
            f"[{function}] {name} is {_shown(values)}; pass a sequence of whole numbers"
        ) from None


def _shown(value: Any) -> str:
    """A value for a message; an array by its type."""
    if isinstance(value, str | int | float | list | tuple | None):
        return repr(value)
    return type(value).__name__


def per_axis(
    function: str,
    name: str,
    values: Sequence[int] | int | None,
    axes: int,
    default: int,
    least: int = 0,
) -> tuple[int, ...]:
    """One int for each spatial axis; None takes the default, one int is for all."""
    if values is None:
        return (default,) * axes
    if hasattr(values, "__index__"):
        numbers = (operator.index(values),) * axes
    else:
        numbers = whole_numbers(function, name, values)
    if len(numbers) != axes:
        raise ShapeError(
            f"[{function}] {name} is {numbers}; it needs one number for each of the {axes} "
            "spatial axes"
        )
    if min(numbers, default=least) < least:
        raise ArgumentError(f"[{function}] {name} is {numbers}; the least possible is {least}")
    return numbers


def axis_of(function: str, axis: Any, ndim: int, name: str = "axis") -> int:
    """`axis` as an int from 0 on."""
    axis = whole_number(function, name, axis)
    if not -ndim <= axis < ndim:
        allowed = f"pass {-ndim} to {ndim - 1}" if ndim else "it needs one or more"
        raise ShapeError(f"[{function}] {name} is {axis} but the array has {ndim} axes; {allowed}")
    return axis % ndim


def axes_of(function: str, axis: Any, ndim: int, name: str = "axis") -> tuple[int, ...]:
    """`axis` (an int, several, or None for all) as sorted ints from 0 on."""
    if axis is None:
        return tuple(range(ndim))
    axes = list(axis) if hasattr(axis, "__iter__") and not isinstance(axis, str) else [axis]
    numbers = tuple(sorted(axis_of(function, a, ndim, name) for a in axes))
    if len(set(numbers)) != len(numbers):
        raise ShapeError(f"[{function}] {name} {axes} names an axis twice; name each once")
    return numbers
