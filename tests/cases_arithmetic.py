"""Rows for arithmetic, comparisons and logic, and for functions that set values or do nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from cases_row import Case, Input, given, whole

import distnn.functions as F

A = Input((2, 3, 4))
POSITIVE = Input((2, 3, 4), 0.3, 3.0)
FAR_FROM_0 = Input((2, 3, 4), 0.5, 3.0)
# Pairs whose elements are nowhere near each other, and pairs with a tie.
LEFT = given([[0.3, -1.2, 2.0], [1.5, 0.2, -0.7]])
RIGHT = given([[0.1, 0.9, 2.6], [-1.0, 0.9, -0.4]])
ROW = given([[0.1, 0.4, 1.0]])
TIES = [given([[1.0, 2.0, 3.0]]), given([[1.0, 3.0, 2.0]])]

Binary = Callable[[Any, Any], Any]

BINARY: list[tuple[str, Binary, Input, Input]] = [
    ("add2", lambda a, b: a + b, A, A),
    ("sub2", lambda a, b: a - b, A, A),
    ("mul2", lambda a, b: a * b, A, A),
    ("div2", lambda a, b: a / b, A, FAR_FROM_0),
    ("pow2", lambda a, b: a**b, POSITIVE, A),
]
SMALLER_LARGER: list[tuple[str, Binary]] = [
    ("maximum2", lambda a, b: np.where(a > b, a, b)),
    ("minimum2", lambda a, b: np.where(a < b, a, b)),
]
COMPARISONS: dict[str, Binary] = {
    "greater": lambda a, b: a > b,
    "greater_equal": lambda a, b: a >= b,
    "less": lambda a, b: a < b,
    "less_equal": lambda a, b: a <= b,
    "equal": lambda a, b: a == b,
    "not_equal": lambda a, b: a != b,
}
LOGIC: dict[str, Binary] = {
    "logical_and": lambda a, b: (a != 0) & (b != 0),
    "logical_or": lambda a, b: (a != 0) | (b != 0),
    "logical_xor": lambda a, b: (a != 0) != (b != 0),
}


def two(name: str, ref: Binary, a: Input, b: Input, note: str = "", **options: Any) -> Case:
    return Case(name, getattr(F, name), [a, b], ref, note, **options)


def scalar(
    name: str, ref: Any, x: Input, value: float | None, note: str = "", **options: Any
) -> Case:
    """A row for a function of an array and a number; None takes the default."""
    function = getattr(F, name)
    arguments = {} if value is None else {"val": value}
    options.setdefault("empty", [(0, *x.shape[1:])])
    return Case(name, lambda v: function(v, **arguments), [x], ref, note or f"{value}", **options)


def shaped(x: Input, *shape: int) -> Input:
    return Input(shape, x.low, x.high)


# fmt: off
TWO = [
    *(two(name, ref, a, b, empty=[(0, 3), (0, 3)], half=name != "pow2")
      for name, ref, a, b in BINARY),
    *(two(name, ref, shaped(a, 2, 1, 4), shaped(b, 1, 3, 1), "broadcast", half=name != "pow2",
          empty=[(0, 1, 4), (1, 3, 1)])
      for name, ref, a, b in BINARY),
    *(two(name, ref, shaped(a), shaped(b), "numbers", half=name != "pow2")
      for name, ref, a, b in BINARY),
    *(two(name, ref, LEFT, RIGHT, empty=[(0, 3), (0, 3)]) for name, ref in SMALLER_LARGER),
    *(two(name, ref, LEFT, ROW, "broadcast") for name, ref in SMALLER_LARGER),
    two("maximum2", np.maximum, *TIES, "tie", second=False,
        slope=lambda a, b: a * [0, 0, 1] + b * [1, 1, 0]),
    two("minimum2", np.minimum, *TIES, "tie", second=False,
        slope=lambda a, b: a * [0, 1, 0] + b * [1, 0, 1]),
    two("pow2", lambda a, b: a**b, given([[0.0, 0.0, 2.0]]), given([[2.0, 1.0, 3.0]]), "of 0",
        slope=lambda a, b: a * [0, 1, 12] + b * [0, 0, 8 * np.log(2)], second=False),
    two("pow2", lambda a, b: a**b, given([[0.0, 2.0]]), given([[0.0, 0.0]]).constant(), "to 0",
        slope=lambda a, b: 0 * a),
    # Large arrays are worked on in chunks, on several threads, along rows or columns.
    two("add2", lambda a, b: a + b, Input((3, 30000)), Input((3, 1)), "many, a number a row"),
    two("mul2", lambda a, b: a * b, Input((1, 300000)), Input((1, 300000)), "many"),
    two("mul2", lambda a, b: a * b, Input((1, 40, 1000)), Input((1, 40, 1)), "many, first axis 1"),
    two("sub2", lambda a, b: a - b, Input((40000, 1)), Input((40000, 2)), "many, narrow"),
]

ONE = [
    scalar("add_scalar", lambda x: x + 1, A, None),
    scalar("add_scalar", lambda x: x - 0.75, A, -0.75),
    scalar("mul_scalar", lambda x: x, A, None),
    scalar("mul_scalar", lambda x: x * 2.5, A, 2.5),
    scalar("pow_scalar", lambda x: x, A, None),
    scalar("pow_scalar", lambda x: x**2, A, 2),
    scalar("pow_scalar", lambda x: x**3, A, 3),
    scalar("pow_scalar", lambda x: x**0.5, POSITIVE, 0.5),
    scalar("pow_scalar", lambda x: 1 / x, FAR_FROM_0, -1),
    scalar("pow_scalar", lambda x: x**-2.5, FAR_FROM_0, -2.5),
    *(scalar("pow_scalar", lambda x, n=n: x**n, given([[0.0, 0.5]]), n, f"{n} of 0")
      for n in (0, 1, 2, 3)),
    scalar("r_sub_scalar", lambda x: 1 - x, A, None),
    scalar("r_sub_scalar", lambda x: 0.5 - x, A, 0.5),
    scalar("r_div_scalar", lambda x: 1 / x, FAR_FROM_0, None),
    scalar("r_div_scalar", lambda x: 2.5 / x, FAR_FROM_0, 2.5),
    scalar("r_pow_scalar", lambda x: 1 + 0 * x, A, None),
    scalar("r_pow_scalar", lambda x: 2.5**x, A, 2.5),
    scalar("r_pow_scalar", lambda x: 0 * x, POSITIVE, 0),
    scalar("maximum_scalar", lambda x: np.maximum(x, 1), Input((2, 3, 4), away_from=[1]), None),
    scalar("maximum_scalar", lambda x: np.maximum(x, 0.5), Input((2, 3, 4), away_from=[0.5]), 0.5),
    scalar("maximum_scalar", lambda x: np.maximum(x, 1), given([[0.0, 1.0, 2.0]]), 1.0, "tie",
           slope=lambda x: x * [0, 0, 1], second=False),
    scalar("minimum_scalar", lambda x: np.minimum(x, 1), Input((2, 3, 4), away_from=[1]), None),
    scalar("minimum_scalar", lambda x: np.minimum(x, 0.5), Input((2, 3, 4), away_from=[0.5]), 0.5),
    scalar("minimum_scalar", lambda x: np.minimum(x, 1), given([[0.0, 1.0, 2.0]]), 1.0, "tie",
           slope=lambda x: x * [1, 0, 0], second=False),
]

SMALL = whole((2, 3, 4), -1, 3)
TRUTH = [
    *(two(name, ref, SMALL, SMALL, empty=[(0, 3), (0, 3)])
      for name, ref in (*COMPARISONS.items(), *LOGIC.items())),
    *(two(name, ref, SMALL, whole((2, 1, 4), -1, 3), "broadcast")
      for name, ref in (*COMPARISONS.items(), *LOGIC.items())),
    *(scalar(f"{name}_scalar", lambda x, ref=ref: ref(x, 1), SMALL, None)
      for name, ref in COMPARISONS.items()),
    *(scalar(f"{name}_scalar", lambda x, ref=ref, v=v: ref(x, v), SMALL, v)
      for name, ref in COMPARISONS.items() for v in (0.5, -1)),
    *(scalar(f"{name}_scalar", lambda x, ref=ref, v=v: ref(x, v), SMALL, v)
      for name, ref in LOGIC.items() for v in (True, False, 2)),
    Case("logical_not", F.logical_not, [SMALL], lambda x: x == 0, empty=[(0, 3)]),
]

CONDITION = whole((2, 3), -1, 2)
WHERE = [
    Case("where", F.where, [CONDITION, Input((2, 3)), Input((2, 3))], np.where,
         empty=[(0, 3), (0, 3), (0, 3)]),
    Case("where", F.where, [CONDITION, Input((2, 1)), Input((1, 3))], np.where, "broadcast"),
    Case("where", F.where, [CONDITION, A, A], lambda c, a, b: np.where(c[..., None], a, b),
         "condition of fewer axes"),
    Case("where", F.where, [given([0, 1], integer=True), given([1.0, 2.0]), given([3.0, np.inf])],
         np.where, "not chosen, infinite"),
]

EFFECTS = [
    Case("constant", lambda: F.constant(2.5, (2, 3)), [], lambda: np.full((2, 3), 2.5)),
    Case("constant", lambda: F.constant(), [], lambda: np.zeros(()), "default"),
    # The gradient goes to dst, as if the result were dst itself.
    Case("assign", F.assign, [A, A], lambda dst, src: src, slope=lambda dst, src: dst, second=False,
         updates=lambda dst, src: {0: src}, empty=[(0, 3), (0, 3)]),
    # Gradients of sink do not follow from its value: test_functions_beyond_the_table.py.
    Case("sink", F.sink, [A.constant(), Input((3,)).constant()], lambda a, b: np.zeros(())),
    Case("dropout", lambda x: F.dropout(x, 0), [A], lambda x: x, "p = 0", empty=[(0, 3)]),
    Case("dropout", lambda x: F.dropout(x, 0.3), [A], None, "p = 0.3"),
    Case("dropout", lambda x: F.dropout(x, 0.5, seed=3), [A], None, "own seed"),
]
# fmt: on

CASES = [*TWO, *ONE, *TRUTH, *WHERE, *EFFECTS]
