"""Rows for functions of one array, element by element, and for losses of two."""

from __future__ import annotations

from typing import Any

import numpy as np
from cases_row import Case, Input, given

import distnn.functions as F

A = Input((2, 3, 4))
POSITIVE = Input((2, 3, 4), 0.3, 3.0)
# Far from 0, where exp overflows in float32 (beyond 88) and in float64 (beyond 709).
FAR = given([[-800.0, -95.0, -30.0, 0.25, 30.0, 95.0, 800.0]])
MANY = Input((3, 30000))  # more than a chunk of the cache, and several chunks a thread
AT_0 = given([[-1.5, 0.0, 1.5]])


def unary(name: str, ref: Any, x: Input = A, note: str = "", /, **options: Any) -> Case:
    """A row for a function of one array, with the arguments in `with_`."""
    arguments = options.pop("with_", {})
    function = getattr(F, name)
    options.setdefault("empty", [(0, *x.shape[1:])])
    return Case(name, lambda v: function(v, **arguments), [x], ref, note, **options)


def away(*kinks: float, low: float = -2.0, high: float = 2.0) -> Input:
    return Input((2, 3, 4), low, high, away_from=kinks)


def sigmoid(x: Any) -> Any:
    return np.where(x < 0, np.exp(np.minimum(x, 0)), 1) / (1 + np.exp(-np.abs(x)))


def softplus(x: Any) -> Any:
    return np.logaddexp(0, x)


def elu(x: Any, alpha: float = 1.0) -> Any:
    return np.where(x > 0, x, alpha * (np.exp(np.minimum(x, 0)) - 1))


def gelu(x: Any) -> Any:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def prelu_4d(x: Any, slope: Any) -> Any:
    return np.maximum(x, 0) + slope[None, :, None, None] * np.minimum(x, 0)


SELU_SCALE, SELU_ALPHA = 1.05070098735548, 1.673263242354377

ACTIVATIONS = [
    unary("relu", lambda x: np.maximum(x, 0), away(0)),
    unary("relu", lambda x: np.maximum(x, 0), AT_0, "at 0", slope=lambda x: x * [0, 0, 1.0],
          second=False),
    unary("relu", lambda x: np.maximum(x, 0), MANY, "many", second=False,
          slope=lambda x: np.maximum(x, 0)),
    unary("leaky_relu", lambda x: np.where(x > 0, x, 0.1 * x), away(0)),
    unary("leaky_relu", lambda x: np.where(x > 0, x, 0.3 * x), away(0), "alpha",
          with_={"alpha": 0.3}),
    unary("leaky_relu", lambda x: np.where(x > 0, x, 0.1 * x), AT_0, "at 0",
          slope=lambda x: x * [0.1, 0.1, 1], second=False),
    unary("relu6", lambda x: np.minimum(np.maximum(x, 0), 6), away(0, 6, low=-3, high=9)),
    unary("relu6", lambda x: np.minimum(np.maximum(x, 0), 6), given([[0.0, 3.0, 6.0]]), "bounds",
          slope=lambda x: x * [0, 1, 0], second=False),
    unary("elu", elu, away(0)),
    unary("elu", lambda x: elu(x, 0.5), away(0), "alpha", with_={"alpha": 0.5}),
    unary("elu", lambda x: elu(x, 0.5), AT_0, "at 0", with_={"alpha": 0.5},
          slope=lambda x: x * [0.5 * np.exp(-1.5), 1, 1], second=False),
    unary("elu", elu, FAR, "far"),
    unary("selu", lambda x: SELU_SCALE * elu(x, SELU_ALPHA), away(0)),
    unary("selu", lambda x: 1.5 * elu(x, 0.5), away(0), "scale and alpha",
          with_={"scale": 1.5, "alpha": 0.5}),
    unary("selu", lambda x: SELU_SCALE * elu(x, SELU_ALPHA), FAR, "far"),
    unary("celu", lambda x: np.concatenate([elu(x), elu(-x)], 1), away(0)),
    unary("celu", lambda x: np.concatenate([elu(x, 0.5), elu(-x, 0.5)], -1), away(0),
          "last axis", with_={"alpha": 0.5, "axis": -1}),
    unary("crelu", lambda x: np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], 1), away(0)),
    unary("crelu", lambda x: np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], 0), away(0),
          "axis 0", with_={"axis": 0}),
    unary("sigmoid", lambda x: 1 / (1 + np.exp(-x))),
    unary("sigmoid", sigmoid, FAR, "far"),
    unary("log_sigmoid", lambda x: np.log(1 / (1 + np.exp(-x)))),
    unary("log_sigmoid", lambda x: -softplus(-x), FAR, "far"),
    unary("tanh", np.tanh),
    unary("tanh", np.tanh, FAR, "far"),
    unary("tanh", np.tanh, MANY, "many", second=False),
    unary("tanh_shrink", lambda x: x - np.tanh(x)),
    unary("softplus", lambda x: np.log(1 + np.exp(x))),
    unary("softplus", lambda x: np.log(1 + np.exp(3 * x)) / 3, A, "beta", with_={"beta": 3.0}),
    unary("softplus", lambda x: np.log(1 + np.exp(-2 * x)) / -2, A, "negative beta",
          with_={"beta": -2.0}),
    unary("softplus", softplus, FAR, "far"),
    unary("softsign", lambda x: x / (1 + np.abs(x)), away(0)),
    unary("swish", lambda x: x / (1 + np.exp(-x))),
    unary("swish", lambda x: x * sigmoid(x), FAR, "far"),
    unary("mish", lambda x: x * np.tanh(np.log(1 + np.exp(x)))),
    unary("mish", lambda x: x * np.tanh(softplus(x)), FAR, "far"),
    unary("gelu", gelu),
    unary("gelu", gelu, FAR, "far"),
    unary("hard_sigmoid", lambda x: np.clip(0.2 * x + 0.5, 0, 1), away(-2.5, 2.5, low=-4, high=4)),
    unary("hard_sigmoid", lambda x: np.clip(0.2 * x + 0.5, 0, 1), given([[-2.5, 0.5, 2.5]]),
          "bounds", slope=lambda x: 0.2 * x, second=False),
    unary("hard_tanh", lambda x: np.clip(x, -1, 1), away(-1, 1)),
    unary("hard_tanh", lambda x: np.clip(x, -1, 1), given([[-1.0, 0.5, 1.0]]), "bounds",
          slope=lambda x: x, second=False),
]  # fmt: skip

PRELU = [
    Case(
        "prelu",
        F.prelu,
        [away(0), Input(())],
        lambda x, a: np.maximum(x, 0) + a * np.minimum(x, 0),
        "shared",
        empty=[(0, 3), ()],
    ),
    Case(
        "prelu",
        F.prelu,
        [away(0), Input((1,))],
        lambda x, a: np.maximum(x, 0) + a * np.minimum(x, 0),
        "shared, one element",
    ),
    Case(
        "prelu",
        F.prelu,
        [Input((2, 3, 2, 2), away_from=[0]), Input((3,))],
        prelu_4d,
        "per channel",
        empty=[(0, 3, 2, 2), (3,)],
    ),
    Case(
        "prelu",
        lambda x, a: F.prelu(x, a, base_axis=-1),
        [away(0), Input((4,))],
        lambda x, a: np.maximum(x, 0) + a * np.minimum(x, 0),
        "last axis",
    ),
    Case(
        "prelu",
        F.prelu,
        [AT_0, given(0.5)],
        lambda x, a: np.maximum(x, 0) + a * np.minimum(x, 0),
        "at 0",
        slope=lambda x, a: x * [0.5, 1, 1] + a * np.array([-1.5, 0, 0]),
        second=False,
    ),
]

MATHEMATICS = [
    unary("exp", np.exp),
    unary("log", np.log, POSITIVE),
    unary("sqrt", np.sqrt, POSITIVE),
    unary("sin", np.sin),
    unary("cos", np.cos),
    unary("tan", np.tan, Input((2, 3, 4), -1.2, 1.2), half=False),
    unary("sinh", np.sinh),
    unary("cosh", np.cosh),
    unary("asin", np.arcsin, Input((2, 3, 4), -0.9, 0.9)),
    unary("acos", np.arccos, Input((2, 3, 4), -0.9, 0.9)),
    unary("atan", np.arctan),
    unary("asinh", np.arcsinh),
    unary("acosh", np.arccosh, Input((2, 3, 4), 1.2, 4)),
    unary("atanh", np.arctanh, Input((2, 3, 4), -0.8, 0.8)),
    unary("abs", np.abs, away(0)),
    unary("abs", np.abs, AT_0, "at 0", slope=lambda x: x * [-1, 1, 1], second=False),
    unary("sign", np.sign, away(0), slope=lambda x: x, second=False),
    unary("sign", lambda x: np.sign(x) + 0.5 * (x == 0), AT_0, "alpha at 0",
          with_={"alpha": 0.5}, slope=lambda x: x, second=False),
    unary("floor", np.floor, away(-1, 0, 1), slope=lambda x: x, second=False),
    unary("ceil", np.ceil, away(-1, 0, 1), slope=lambda x: x, second=False),
    unary("identity", lambda x: x),
]  # fmt: skip

# Pairs whose difference stays away from 0 and from the bends of the Huber loss at 1 and 0.5.
PAIR = [
    given([[0.3, -1.2, 2.0], [1.5, 0.2, -0.7]]),
    given([[0.1, 0.9, 1.2], [-1.0, 0.9, -0.4]]),
]
TARGET = Input((2, 3, 4), 0.0, 1.0)
TIES = [given([[1.0, 2.0, 3.0]]), given([[1.0, 3.0, 2.0]])]
# Binary cross entropy with logarithms cut off where a float32 would underflow.
LEAST_LOG = np.log(np.float64(np.finfo(np.float32).tiny))


def huber(x: Any, y: Any, delta: float) -> Any:
    d = np.abs(x - y)
    return np.where(d < delta, d**2, delta * (2 * d - delta))


def binary_cross_entropy(x: Any, t: Any) -> Any:
    with np.errstate(divide="ignore"):
        log_x, log_rest = (np.maximum(np.log(v), LEAST_LOG) for v in (x, 1 - x))
    return -(t * log_x + (1 - t) * log_rest)


LOSSES = [
    Case(
        "squared_error",
        F.squared_error,
        [A, A],
        lambda a, b: (a - b) ** 2,
        empty=[(0, 3), (0, 3)],
    ),
    Case(
        "squared_error",
        F.squared_error,
        [A, Input((2, 1, 4))],
        lambda a, b: (a - b) ** 2,
        "broadcast",
    ),
    Case("absolute_error", F.absolute_error, PAIR, lambda a, b: np.abs(a - b)),
    Case(
        "absolute_error",
        F.absolute_error,
        TIES,
        lambda a, b: np.abs(a - b),
        "tie",
        slope=lambda a, b: a * [-1, -1, 1] + b * [1, 1, -1],
        second=False,
    ),
    Case("huber_loss", F.huber_loss, PAIR, lambda a, b: huber(a, b, 1.0)),
    Case(
        "huber_loss",
        lambda a, b: F.huber_loss(a, b, delta=0.5),
        PAIR,
        lambda a, b: huber(a, b, 0.5),
        "delta",
    ),
    Case(
        "sigmoid_cross_entropy",
        F.sigmoid_cross_entropy,
        [A, TARGET.constant()],
        lambda x, t: -(t * np.log(1 / (1 + np.exp(-x))) + (1 - t) * np.log(1 / (1 + np.exp(x)))),
        empty=[(0, 3), (0, 3)],
    ),
    Case(
        "sigmoid_cross_entropy",
        F.sigmoid_cross_entropy,
        [FAR, given([[0, 1, 0, 1, 0, 1, 0]], integer=True)],
        lambda x, t: t * softplus(-x) + (1 - t) * softplus(x),
        "far",
    ),
    Case(
        "binary_cross_entropy",
        F.binary_cross_entropy,
        [Input((2, 3, 4), 0.1, 0.9), TARGET],
        lambda x, t: -(t * np.log(x) + (1 - t) * np.log(1 - x)),
        empty=[(0, 3), (0, 3)],
    ),
    Case(
        "binary_cross_entropy",
        F.binary_cross_entropy,
        [given([[0.0, 1.0]]), given([[0.0, 1.0]]).constant()],
        lambda x, t: np.zeros((1, 2)),
        "certain and right",
        slope=lambda x, t: x * [1, -1],  # of -log(1 - x) at 0 and of -log(x) at 1
        second=False,
    ),
    Case(
        "binary_cross_entropy",
        F.binary_cross_entropy,
        [given([[0.0, 1.0]]).constant(), given([[1.0, 0.25]])],
        binary_cross_entropy,
        "certain and wrong",
        half=False,
    ),
]

CASES = [*ACTIVATIONS, *PRELU, *MATHEMATICS, *LOSSES]
