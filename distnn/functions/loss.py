"""Losses, element by element."""

from __future__ import annotations

from .elementwise import elementwise

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
