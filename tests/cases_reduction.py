"""Rows for reductions over axes."""

from __future__ import annotations

from typing import Any

import numpy as np
from cases_row import Case, Input, given

import distnn.functions as F

A = Input((2, 3, 4))
DISTINCT = Input((2, 3, 4), distinct=True)
ZEROS = given([[2.0, 0.0, 3.0, 0.5], [0.0, 0.0, 4.0, 1.5], [0.0, 0.0, 0.0, 1.0], [1.0, 2, 3, 4]])

# Name, function, definition and input.
FUNCTIONS: list[tuple[str, Any, Any, Input]] = [
    ("sum", F.sum, np.sum, A),
    ("mean", F.mean, np.mean, A),
    ("prod", F.prod, np.prod, A),
    ("max", F.max, np.max, DISTINCT),
    ("min", F.min, np.min, DISTINCT),
]
EXTREMES = FUNCTIONS[3:]
AXES: list[Any] = [None, 0, 1, -1, (0, 2), (1, 2), (-1, 0), (0, 1, 2), ()]


def index(x: Any, axes: tuple[int, ...], largest: bool, keepdims: bool = False) -> Any:
    """Where the first of the largest (smallest) is, counted along `axes`, flattened."""
    kept = [i for i in range(x.ndim) if i not in axes]
    rows = x.transpose(*kept, *axes).reshape(*(x.shape[i] for i in kept), -1)
    found = rows.argmax(-1) if largest else rows.argmin(-1)
    return np.expand_dims(found, axes) if keepdims else found


# fmt: off
CASES = [
    *(Case(name, lambda x, f=function, a=axis, k=keep: f(x, axis=a, keepdims=k), [x],
           lambda x, ref=ref, a=axis, k=keep: ref(x, axis=a, keepdims=k),
           f"axis {axis}{', keepdims' * keep}")
      for name, function, ref, x in FUNCTIONS for axis in AXES for keep in (False, True)),
    *(Case(name, lambda x, f=function: f(x, axis=1), [x], lambda x, ref=ref: ref(x, axis=1),
           "batch", empty=[(0, 3, 4)])
      for name, function, ref, x in FUNCTIONS),
    *(Case(name, function, [Input((), distinct=x.distinct)], lambda x: x, "number")
      for name, function, _, x in FUNCTIONS),
    # Nothing to add up or to multiply.
    Case("sum", lambda x: F.sum(x, axis=0), [Input((0, 3))], lambda x: x.sum(0), "empty axis"),
    Case("prod", lambda x: F.prod(x, axis=0), [Input((0, 3))], lambda x: x.prod(0), "empty axis"),
    Case("prod", lambda x: F.prod(x, axis=(0, 2), keepdims=True), [Input((0, 3, 2))],
         lambda x: x.prod((0, 2), keepdims=True), "empty axis, keepdims"),
    # Sums of many numbers stay near the exact ones.
    Case("sum", lambda x: F.sum(x, axis=0), [Input((30000, 3), 0.5, 1.5)],
         lambda x: x.sum(0), "many rows", second=False),
    Case("sum", lambda x: F.sum(x, axis=1), [Input((3, 30000), 0.5, 1.5)],
         lambda x: x.sum(1), "many columns", second=False),
    Case("mean", lambda x: F.mean(x, axis=(0, 2)), [Input((300, 3, 100), 0.5, 1.5)],
         lambda x: x.mean((0, 2)), "many", second=False),
    Case("prod", lambda x: F.prod(x, axis=1), [ZEROS], lambda x: x.prod(1), "zeros"),
    Case("prod", F.prod, [given([1.5, 0.0, -2.0, 0.5, 3.0])], np.prod, "a zero among five"),
    Case("prod", F.prod, [Input((7,), 0.5, 1.5)], np.prod, "seven"),
    # The first of equal elements is taken; its index counts along the axes, flattened.
    *(Case(name, lambda x, f=function: f(x, axis=1), [given([[2.0, 5, 5], [1, 1, 4], [3, 3, 3]])],
           lambda x, ref=ref: ref(x, axis=1), "ties", second=False,
           slope=lambda x, first=first: x[[0, 1, 2], first])
      for (name, function, ref, _), first in zip(EXTREMES, ([1, 2, 0], [0, 0, 0]), strict=True)),
    *(Case(name, lambda x, f=function: f(x, axis=1, with_index=True),
           [given([[2.0, 5, 5, 2], [1, 4, 1, 4]])],
           lambda x, ref=ref, n=name: (ref(x, axis=1), index(x, (1,), n == "max")),
           "index of ties", second=False,
           slope=lambda x, first=first: (x[[0, 1], first], 0 * x[:, 0]))
      for (name, function, ref, _), first in zip(EXTREMES, ([1, 1], [0, 0]), strict=True)),
    *(Case(name,
           lambda x, f=function, a=axes, k=keep: f(x, axis=a, keepdims=k, with_index=True),
           [DISTINCT],
           lambda x, ref=ref, a=axes, k=keep, n=name: (
               ref(x, axis=a, keepdims=k), index(x, a, n == "max", k)),
           f"with_index, axes {axes}{', keepdims' * keep}")
      for name, function, ref, _ in EXTREMES
      for axes in ((1,), (0, 2), (1, 2), (0, 1, 2)) for keep in (False, True)),
    *(Case(name, lambda x, f=function: f(x, axis=(0, 2), only_index=True), [DISTINCT],
           lambda x, n=name: index(x, (0, 2), n == "max"), "only_index")
      for name, function, _, _ in EXTREMES),
]
# fmt: on
