"""Losses, element by element."""

from __future__ import annotations

from .elementwise import elementwise

_TWO = ("x0", "x1")

squared_error = elementwise(
    "squared_error", "Square of the difference.", inputs=_TWO, y="(x0 - x1) * (x0 - x1)",
    dx0="dy * 2 * (x0 - x1)", dx1="dy * 2 * (x1 - x0)", example="[1., 2.]; [3., 2.] -> [4., 0.]",
)  # fmt: skip
absolute_error = elementwise(
    "absolute_error", "Absolute value of the difference.", inputs=_TWO, y="abs(x0 - x1)",
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
    dx="dy * (1 / (1 + exp(-x)) - target)", dtarget="0",
    example="[0., 2.]; [1., 0.] -> [0.6931, 2.1269]",
)  # fmt: skip
binary_cross_entropy = elementwise(
    "binary_cross_entropy",
    "Cross entropy of a probability x and a target in [0, 1]; the target has no gradient.",
    inputs=("x", "target"), y="-(target * log(x) + (1 - target) * log(1 - x))",
    dx="dy * (x - target) / (x * (1 - x))", dtarget="0",
    example="[0.5]; [1.] -> [0.6931]",
)  # fmt: skip
