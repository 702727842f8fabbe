"""Arguments that give shapes and axes, checked and completed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ArgumentError, ShapeError


def per_axis(
    function: str,
    name: str,
    values: Sequence[int] | int | None,
    axes: int,
    default: int,
    least: int = 0,
) -> tuple[int, ...]:
    """One int for each spatial axis; None takes the default."""
    if values is None:
        return (default,) * axes
    numbers = (values,) * axes if isinstance(values, int) else tuple(int(v) for v in values)
    if len(numbers) != axes:
        raise ShapeError(
            f"[{function}] {name} is {tuple(numbers)}; it needs one number for each of the {axes} "
            "spatial axes"
        )
    if min(numbers, default=least) < least:
        raise ArgumentError(f"[{function}] {name} is {numbers}; the least possible is {least}")
    return numbers


def axis_of(function: str, axis: Any, ndim: int, name: str = "axis") -> int:
    """`axis` as an int from 0 on."""
    if not -ndim <= int(axis) < ndim:
        raise ShapeError(f"[{function}] {name} is {axis} but the array has {ndim} axes")
    return int(axis) % ndim


def axes_of(function: str, axis: Any, ndim: int) -> tuple[int, ...]:
    """`axis` (an int, several, or None for all) as sorted ints from 0 on."""
    if axis is None:
        return tuple(range(ndim))
    axes = [axis] if not hasattr(axis, "__iter__") else list(axis)
    numbers = tuple(sorted(axis_of(function, a, ndim) for a in axes))
    if len(set(numbers)) != len(numbers):
        raise ShapeError(f"[{function}] axis {axes} names an axis twice")
    return numbers
