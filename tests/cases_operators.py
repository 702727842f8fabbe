"""Rows for the operators of Variables and NdArrays; each stands for the functions it calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cases_row import Case, Input, given

A = Input((2, 3, 4))
B = Input((2, 1, 4))
POSITIVE = Input((2, 3, 4), 0.3, 3.0)


def row(note: str, function: Callable[..., Any], *inputs: Input, **options: Any) -> Case:
    """An expression that says the same for Variables as for NumPy's arrays."""
    return Case("operator", function, list(inputs), function, note, **options)


def with_part(key: Any) -> Callable[..., Any]:
    def function(x: Any, part: Any) -> Any:
        y = x * 1
        y[key] = part
        return y

    return function


def part(key: Any, note: str, *shape: int) -> Case:
    return row(f"x[{note}]", lambda x: x[key], Input(shape))


# fmt: off
CASES = [
    row("x + y", lambda x, y: x + y, A, B),
    row("x - y", lambda x, y: x - y, A, B),
    row("x * y", lambda x, y: x * y, A, B),
    row("x / y", lambda x, y: x / y, A, Input((2, 1, 4), 0.5, 2.0)),
    row("x ** y", lambda x, y: x**y, POSITIVE, B, half=False),
    row("x + 2", lambda x: x + 2, A),
    row("2 + x", lambda x: 2 + x, A),
    row("x - 2", lambda x: x - 2, A),
    row("2 - x", lambda x: 2 - x, A),
    row("x * 3", lambda x: x * 3, A),
    row("3 * x", lambda x: 3 * x, A),
    row("x / 4", lambda x: x / 4, A),
    row("4 / x", lambda x: 4 / x, POSITIVE),
    row("x ** 3", lambda x: x**3, A),
    row("3 ** x", lambda x: 3**x, A),
    row("-x", lambda x: -x, A),
    row("x @ y", lambda x, y: x @ y, Input((2, 3)), Input((3, 4))),
    row("x @ y, batches", lambda x, y: x @ y, Input((5, 2, 3)), Input((5, 3, 4))),
    row("x @ y, one batch", lambda x, y: x @ y, Input((5, 2, 3)), Input((3, 4))),
    row("x @ y, vectors", lambda x, y: x @ y, Input((3,)), Input((3,))),
    row("x @ y, matrix and vector", lambda x, y: x @ y, Input((2, 3)), Input((3,))),
    row("x @ y, vector and matrix", lambda x, y: x @ y, Input((3,)), Input((3, 4))),
    row("x @ y, batches and vector", lambda x, y: x @ y, Input((5, 2, 3)), Input((3,))),
    part(1, "1", 4, 3),
    part(-1, "-1", 4, 3),
    part((slice(None), 2), ":, 2", 4, 3),
    part(slice(1, 3), "1:3", 4, 3),
    part((slice(None, None, -1), slice(None, None, 2)), "::-1, ::2", 4, 3),
    part((slice(3, 0, -2), slice(-2, None)), "3:0:-2, -2:", 4, 3),
    part((Ellipsis, 0), "..., 0", 2, 3, 4),
    part((0, Ellipsis), "0, ...", 2, 3, 4),
    part((None, slice(None), None, 1), "None, :, None, 1", 4, 3),
    part((1, 2), "1, 2", 4, 3),
    part(slice(3, 1), "3:1", 4, 3),
    part((slice(-9, None, -1), slice(None)), "-9::-1, :", 4, 3),
    part(np.array([2, 0, 2, -1]), "[2, 0, 2, -1]", 4, 3),
    row("x[1:3] = y", with_part(np.s_[1:3]), Input((4, 3)), Input((2, 3))),
    row("x[::-1, 1] = y", with_part(np.s_[::-1, 1]), Input((4, 3)), Input((4,))),
    row("x[3:1] = y", with_part(np.s_[3:1]), Input((4, 3)), Input((0, 3))),
    row("x[0] = number", lambda x: with_part(0)(x, 5.0), Input((4, 3))),
    row("x ** 2 at 0", lambda x: x**2, given([0.0, 1.0])),
]
# fmt: on
