"""Losses: element by element, and of distributions."""

from __future__ import annotations

from typing import Any

from ..calling import function_api
from ..errors import ShapeError
from .arithmetic import maximum_scalar
from .elementwise import elementwise
from .mathematics import log
from .places import PlaceAlongAxis, elements_at
from .reduction import sum as array_sum
from .shapes import axis_of, shape_of
from .shaping import reshape

_TWO = ("x0", "x1")
# log(1.1754944e-38), of the smallest normal float32: what NNabla's logarithms end at.
_LOG_X, _LOG_REST = "maximum(log(x), -87.33654475055311)", "maximum(log(1 - x), -87.33654475055311)"

squared_error = elementwise(
    "squared_error", "Square of the difference.", inputs=_TWO, y="(x0 - x1) * (x0 - x1)",
    dx0="dy * 2 * (x0 - x1)", dx1="dy * 2 * (x1 - x0)", example="[1., 2.]; [3., 2.] -> [4., 0.]",
)  # fmt: skip
absolute_error = elementwise(
    "absolute_error", "Absolute value of the difference; at 0 its slope is that of x0 < x1.",
    inputs=_TWO, y="abs(x0 - x1)", dx0="where(x0 > x1, dy, -dy)", dx1="where(x0 > x1, -dy, dy)",
    example="[1., 2.]; [3., 2.] -> [2., 0.]",
)  # fmt: skip
huber_loss = elementwise(
    "huber_loss", "Squared error near 0, linear beyond delta; twice the usual definition.",
    inputs=_TWO, operands={"delta": 1.0},
    y="where(abs(x0 - x1) < delta, (x0 - x1) * (x0 - x1), delta * (2 * abs(x0 - x1) - delta))",
    dx0="dy * 2 * minimum(maximum(x0 - x1, -delta), delta)",
    dx1="dy * 2 * minimum(maximum(x1 - x0, -delta), delta)",
    example="[1., 2.]; [4., 2.5] -> [5.  , 0.25]",
)  # fmt: skip
sigmoid_cross_entropy = elementwise(
    "sigmoid_cross_entropy",
    "Cross entropy of sigmoid(x) and a target in [0, 1]; the target has no gradient.",
    inputs=("x", "target"), y="maximum(x, 0) - x * target + log1p(exp(-abs(x)))",
    dx="dy * (sigmoid(x) - target)", dtarget="0",
    example="[0., 2.]; [1., 0.] -> [0.6931, 2.1269]",
)  # fmt: skip
binary_cross_entropy = elementwise(
    "binary_cross_entropy",
    "Cross entropy of a probability x and a target in [0, 1]; logarithms stop where a float32"
    " underflows.",
    inputs=("x", "target"),
    y=f"-(target * {_LOG_X} + (1 - target) * {_LOG_REST})",
    # No 0 / 0 where x is 0 or 1 and right.
    dx="dy * (where(target == 1, 0, (1 - target) / maximum(1 - x, 1e-37))"
    " - where(target == 0, 0, target / maximum(x, 1e-37)))",
    dtarget=f"dy * ({_LOG_REST} - {_LOG_X})",
    example="[0.5]; [1.] -> [0.6931]",
)  # fmt: skip

epsilon_insensitive_loss = elementwise(
    "epsilon_insensitive_loss", "Absolute value of the difference beyond epsilon, 0 below it.",
    inputs=_TWO, operands={"epsilon": None}, y="maximum(abs(x0 - x1) - epsilon, 0)",
    dx0="where(abs(x0 - x1) > epsilon, where(x0 > x1, dy, -dy), 0)",
    dx1="where(abs(x0 - x1) > epsilon, where(x0 > x1, -dy, dy), 0)",
    example="[1., 5.]; [2., 2.] -> [0., 1.]",
)  # fmt: skip
binary_error = elementwise(
    "binary_error", "1 where one of x and target is 0.5 or more and the other less; no gradient.",
    inputs=("x", "target"),
    y="where(x >= 0.5, where(target >= 0.5, 0, 1), where(target >= 0.5, 1, 0))",
    dx="0", dtarget="0", example="[0.2, 0.9]; [1., 1.] -> [1., 0.]",
)  # fmt: skip


@function_api
def categorical_cross_entropy(x: Any, target: Any, axis: int | None = None) -> Any:
    """Cross entropy of probabilities and labels: y = -log x[target]; the label has no gradient.

    Args:
        x: (..., C, ...) probabilities; classes along `axis` (the last by default). The logarithm
            stops where a float32 underflows.
        target: class numbers, x's shape with length 1 at `axis`.
    Raises: LabelError for a label out of range.

    >>> import distnn as nn, distnn.functions as F
    >>> F.categorical_cross_entropy(nn.Variable((8, 3)), nn.Variable((8, 1))).shape
    (8, 1)
    """
    name = "categorical_cross_entropy"
    shape = shape_of(name, "x", x)
    axis = axis_of(name, -1 if axis is None else axis, len(shape))
    expected = (*shape[:axis], 1, *shape[axis + 1 :])
    if shape_of(name, "target", target) != expected:
        raise ShapeError(
            f"[{name}] target has shape {target.shape} but x {shape} with axis {axis} needs "
            f"{expected}: class numbers, one for each row of x"
        )
    picked = elements_at(x, PlaceAlongAxis.of(shape, axis, name)(target))
    return -log(maximum_scalar(picked, 1.1754943508222875e-38))


@function_api
def kl_multinomial(p: Any, q: Any, base_axis: int = 1) -> Any:
    """Kullback-Leibler divergence of multinomial distributions: y = sum p (log p - log q).

    1e-8 is added to p and q before the logarithm.

    Args:
        p, q: probabilities of one shape; the axes before `base_axis` number the distributions.
        base_axis: first axis of a distribution.
    Returns: (*p.shape[:base_axis], 1).

    >>> import distnn as nn, distnn.functions as F
    >>> F.kl_multinomial(nn.Variable((8, 3)), nn.Variable((8, 3))).shape
    (8, 1)
    """
    shape = shape_of("kl_multinomial", "p", p)
    base = axis_of("kl_multinomial", base_axis, len(shape), "base_axis")
    if shape_of("kl_multinomial", "q", q) != shape:
        raise ShapeError(f"[kl_multinomial] p has shape {shape} but q {q.shape}; pass equal ones")
    terms = p * (log(p + 1e-8) - log(q + 1e-8))
    total = array_sum(terms, tuple(range(base, len(shape))))
    return reshape(total, (*shape[:base], 1))
