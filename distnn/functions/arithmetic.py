"""Arithmetic and comparison, element by element."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from ..calling import function_api
from .elementwise import elementwise
from .shapes import shape_of, shapes_of
from .shaping import reshape

_TWO = ("x0", "x1")


def _with_two(name: str, doc: str, y: str, example: str, **gradients: str) -> Callable[..., Any]:
    return elementwise(
        name, doc, y=y, example=example, inputs=_TWO, inplace=True, operands=None, **gradients
    )


def _with_scalar(
    name: str, doc: str, y: str, example: str, default: float = 1, **gradients: str
) -> Callable[..., Any]:
    return elementwise(
        name, doc, y=y, example=example, operands={"val": default}, inplace=True, **gradients
    )


identity = elementwise(
    "identity", "The same values, copied.", y="x", example="[1., 2.] -> [1., 2.]"
)
add2 = _with_two("add2", "Sum.", "x0 + x1", "[1., 2.]; [3., 4.] -> [4., 6.]")
sub2 = _with_two("sub2", "Difference.", "x0 - x1", "[1., 2.]; [3., 5.] -> [-2., -3.]")
mul2 = _with_two("mul2", "Product.", "x0 * x1", "[1., 2.]; [3., 4.] -> [3., 8.]")
div2 = _with_two(
    "div2", "Quotient.", "x0 / x1", "[1., 2.]; [2., 4.] -> [0.5, 0.5]",
    dx1="-dy * y / x1",
)  # fmt: skip
pow2 = _with_two(
    "pow2", "Power.", "x0 ** x1", "[2., 3.]; [3., 2.] -> [8., 9.]",
    dx0="where(x1 == 0, 0, dy * x1 * x0 ** (x1 - 1))", dx1="where(x0 == 0, 0, dy * log(x0) * y)",
)  # fmt: skip

add_scalar = _with_scalar("add_scalar", "Sum with a number.", "x + val", "[1., 2.] -> [2., 3.]")
mul_scalar = _with_scalar("mul_scalar", "Product with a number.", "x * val", "[1., 2.] -> [1., 2.]")
pow_scalar = _with_scalar(
    "pow_scalar", "Power to a number.", "x ** val", "[1., 2.] -> [1., 2.]",
    dx="where(val == 0, 0, dy * val * x ** (val - 1))",
)  # fmt: skip
r_sub_scalar = _with_scalar(
    "r_sub_scalar", "Difference, a number minus x.", "val - x", "[1., 2.] -> [ 0., -1.]"
)
r_div_scalar = _with_scalar(
    "r_div_scalar", "Quotient, a number divided by x.", "val / x", "[1., 2.] -> [1. , 0.5]",
    dx="-dy * y / x",
)  # fmt: skip
r_pow_scalar = _with_scalar(
    "r_pow_scalar", "Power, a number to x.", "val ** x", "[1., 2.] -> [1., 1.]",
    dx="where(val == 0, 0, dy * log(val) * y)",
)  # fmt: skip

maximum2 = elementwise(
    "maximum2", "The larger of two; the gradient of equal ones goes to x1.",
    y="maximum(x0, x1)", inputs=_TWO, example="[1., 5.]; [3., 4.] -> [3., 5.]",
)  # fmt: skip
minimum2 = elementwise(
    "minimum2", "The smaller of two; the gradient of equal ones goes to x1.",
    y="minimum(x0, x1)", inputs=_TWO, example="[1., 5.]; [3., 4.] -> [1., 4.]",
)  # fmt: skip
maximum_scalar = elementwise(
    "maximum_scalar", "The larger of x and a number.",
    y="maximum(x, val)", operands={"val": 1.0}, example="[0., 5.] -> [1., 5.]",
)  # fmt: skip
minimum_scalar = elementwise(
    "minimum_scalar", "The smaller of x and a number.",
    y="minimum(x, val)", operands={"val": 1.0}, example="[0., 5.] -> [0., 1.]",
)  # fmt: skip


def _comparison(
    name: str, doc: str, operator: str, result: str, scalar: str
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    two = elementwise(
        name, f"1 where {doc}, else 0; no gradient.", y=f"x0 {operator} x1", inputs=_TWO,
        example=f"[1., 2., 3.]; [2., 2., 2.] -> {result}",
    )  # fmt: skip
    one = elementwise(
        f"{name}_scalar", f"1 where {doc} (a number), else 0; no gradient.",
        y=f"x0 {operator} val", inputs=("x0",), operands={"val": 1},
        example=f"[0., 1., 2.] -> {scalar}",
    )  # fmt: skip
    return two, one


greater, greater_scalar = _comparison(
    "greater", "x0 > x1", ">", "[0., 0., 1.]", "[0., 0., 1.]")  # fmt: skip
greater_equal, greater_equal_scalar = _comparison(
    "greater_equal", "x0 >= x1", ">=", "[0., 1., 1.]", "[0., 1., 1.]")  # fmt: skip
less, less_scalar = _comparison(
    "less", "x0 < x1", "<", "[1., 0., 0.]", "[1., 0., 0.]")  # fmt: skip
less_equal, less_equal_scalar = _comparison(
    "less_equal", "x0 <= x1", "<=", "[1., 1., 0.]", "[1., 1., 0.]")  # fmt: skip
equal, equal_scalar = _comparison(
    "equal", "x0 == x1", "==", "[0., 1., 0.]", "[0., 1., 0.]")  # fmt: skip
not_equal, not_equal_scalar = _comparison(
    "not_equal", "x0 != x1", "!=", "[1., 0., 1.]", "[1., 0., 1.]")  # fmt: skip


def _logical(name: str, doc: str, result: str, scalar: str) -> tuple[Callable, Callable]:
    two = elementwise(
        name, f"{doc}, as 1 and 0; every number but 0 is true. No gradient.",
        y=f"{name}(x0, x1)", inputs=_TWO,
        example=f"[0., 0., 1., 1.]; [0., 1., 0., 1.] -> {result}",
    )  # fmt: skip
    one = elementwise(
        f"{name}_scalar", f"{doc} with a number, as 1 and 0. No gradient.",
        y=f"{name}(x0, val)", inputs=("x0",), operands={"val": None},
        example=f"[0., 1.] -> {scalar}",
    )  # fmt: skip
    return two, one


logical_and, logical_and_scalar = _logical(
    "logical_and", "True where both are", "[0., 0., 0., 1.]", "[0., 1.]")  # fmt: skip
logical_or, logical_or_scalar = _logical(
    "logical_or", "True where one is", "[0., 1., 1., 1.]", "[1., 1.]")  # fmt: skip
logical_xor, logical_xor_scalar = _logical(
    "logical_xor", "True where exactly one is", "[0., 1., 1., 0.]", "[1., 0.]")  # fmt: skip
logical_not = elementwise(
    "logical_not", "1 where x0 is 0, else 0; no gradient.", y="logical_not(x0)", inputs=("x0",),
    example="[0., 2.] -> [1., 0.]",
)  # fmt: skip

_where = elementwise(
    "where", "x_true where the condition is not 0, else x_false; the condition has no gradient.",
    y="where(condition, x_true, x_false)", inputs=("condition", "x_true", "x_false"),
    example="[1., 0.]; [1., 2.]; [3., 4.] -> [1., 4.]",
)  # fmt: skip


@function_api
def where(condition: Any, x_true: Any, x_false: Any) -> Any:
    """x_true where the condition is not 0, else x_false; the condition has no gradient.

    Args:
        condition: array of the first axes of the others, or of all their axes.
        x_true, x_false: arrays; axes of length 1 broadcast.
    Returns: array of the common shape.
    Raises: ShapeError where the shapes differ in more than axes of length 1.

    >>> import distnn as nn, distnn.functions as F
    >>> F.where(nn.Variable((2,)), nn.Variable((2, 3)), nn.Variable((2, 3))).shape
    (2, 3)
    """
    shape = shape_of("where", "condition", condition)
    missing = len(shape_of("where", "x_true", x_true)) - len(shape)
    if missing > 0:
        condition = reshape(condition, (*shape, *(1,) * missing))
    return _where(condition, x_true, x_false)


isnan = elementwise(
    "isnan", "1 where x0 is not a number, else 0; no gradient.", inputs=("x0",),
    y="where(x0 == x0, 0, 1)", dx0="0", example="[1., np.nan] -> [0., 1.]",
)  # fmt: skip
isinf = elementwise(
    "isinf", "1 where x0 is infinite, else 0; no gradient.", inputs=("x0",),
    y="where(x0 == x0, where(x0 - x0 == 0, 0, 1), 0)", dx0="0", example="[1., np.inf] -> [0., 1.]",
)  # fmt: skip
reset_nan = elementwise(
    "reset_nan", "val where x0 is not a number, else x0.", inputs=("x0",), operands={"val": 0.0},
    y="where(x0 == x0, x0, val)", dx0="where(x0 == x0, dy, 0)", example="[1., np.nan] -> [1., 0.]",
)  # fmt: skip
reset_inf = elementwise(
    "reset_inf", "val where x0 is infinite, else x0.", inputs=("x0",), operands={"val": 0.0},
    y="where(x0 == x0, where(x0 - x0 == 0, x0, val), x0)",
    dx0="where(x0 - x0 == 0, dy, 0)", example="[1., np.inf] -> [1., 0.]",
)  # fmt: skip


def _of_all(name: str, x: tuple[Any, ...], two: Callable[..., Any]) -> Any:
    shapes_of(name, x)
    return functools.reduce(two, x) if len(x) > 1 else identity(x[0])


@function_api
def add_n(*x: Any) -> Any:
    """Sum of arrays of one shape, from the first to the last.

    >>> import distnn as nn, distnn.functions as F
    >>> F.add_n(nn.Variable((2,)), nn.Variable((2,)), nn.Variable((2,))).shape
    (2,)
    """
    return _of_all("add_n", x, add2)


@function_api
def mul_n(*x: Any) -> Any:
    """Product of arrays of one shape, from the first to the last.

    >>> import distnn as nn, distnn.functions as F
    >>> F.mul_n(nn.Variable((2,)), nn.Variable((2,)), nn.Variable((2,))).shape
    (2,)
    """
    return _of_all("mul_n", x, mul2)
