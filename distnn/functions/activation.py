"""Activation functions."""

from __future__ import annotations

import math
from typing import Any

from ..calling import function_api
from ..errors import ShapeError
from .elementwise import elementwise
from .shapes import axis_of, number, shape_of
from .shaping import concatenate, reshape

relu = elementwise(
    "relu", "Rectified linear unit.", y="maximum(x, 0)", dx="where(y > 0, dy, 0)", inplace=True,
    example="[-1., 2.] -> [0., 2.]",
)  # fmt: skip
leaky_relu = elementwise(
    "leaky_relu", "Leaky rectified linear unit.", y="where(x > 0, x, alpha * x)",
    operands={"alpha": 0.1}, inplace=True, example="[-1., 2.] -> [-0.1,  2. ]",
)  # fmt: skip
relu6 = elementwise(
    "relu6", "Rectified linear unit with a ceiling of 6.", y="minimum(maximum(x, 0), 6)",
    dx="where(x > 0, where(x < 6, dy, 0), 0)", example="[-1., 2., 9.] -> [0., 2., 6.]",
)  # fmt: skip
elu = elementwise(
    "elu", "Exponential linear unit (arXiv:1511.07289).",
    y="where(x >= 0, x, alpha * expm1(minimum(x, 0)))",
    dx="where(x >= 0, dy, dy * alpha * exp(minimum(x, 0)))", operands={"alpha": 1.0},
    example="[-1., 2.] -> [-0.6321,  2.    ]",
)  # fmt: skip
selu = elementwise(
    "selu", "Scaled exponential linear unit (arXiv:1706.02515).",
    y="scale * where(x > 0, x, alpha * expm1(minimum(x, 0)))",
    dx="scale * where(x > 0, dy, dy * alpha * exp(minimum(x, 0)))",
    operands={"scale": 1.05070098735548, "alpha": 1.673263242354377},
    example="[-1., 2.] -> [-1.1113,  2.1014]",
)  # fmt: skip
sigmoid = elementwise(
    "sigmoid", "Logistic sigmoid.", y="sigmoid(x)", dx="dy * y * (1 - y)",
    example="[0., 1.] -> [0.5   , 0.7311]",
)  # fmt: skip
log_sigmoid = elementwise(
    "log_sigmoid", "Logarithm of the logistic sigmoid.",
    y="minimum(x, 0) - log1p(exp(-abs(x)))", dx="dy * sigmoid(-x)",
    example="[0., 1.] -> [-0.6931, -0.3133]",
)  # fmt: skip
tanh = elementwise(
    "tanh", "Hyperbolic tangent.", y="tanh(x)", dx="dy * (1 - y * y)",
    example="[0., 1.] -> [0.    , 0.7616]",
)  # fmt: skip
tanh_shrink = elementwise(
    "tanh_shrink", "x minus its hyperbolic tangent.", y="x - tanh(x)", dx="dy * tanh(x) * tanh(x)",
    example="[0., 1.] -> [0.    , 0.2384]",
)  # fmt: skip
softplus = elementwise(
    "softplus", "Smooth rectified linear unit, log(1 + exp(beta x)) / beta.",
    y="(maximum(beta * x, 0) + log1p(exp(-abs(beta * x)))) / beta", dx="dy * sigmoid(beta * x)",
    operands={"beta": 1.0}, example="[0., 1.] -> [0.6931, 1.3133]",
)  # fmt: skip
softsign = elementwise(
    "softsign", "x over one plus its absolute value.", y="x / (1 + abs(x))",
    dx="dy / ((1 + abs(x)) * (1 + abs(x)))", example="[-1., 3.] -> [-0.5 ,  0.75]",
)  # fmt: skip
swish = elementwise(
    "swish", "x times its logistic sigmoid (arXiv:1710.05941).", y="x / (1 + exp(-x))",
    dx="dy * sigmoid(x) * (1 + x * sigmoid(-x))", example="[0., 1.] -> [0.    , 0.7311]",
)  # fmt: skip
mish = elementwise(
    "mish", "x times tanh(softplus(x)) (arXiv:1908.08681).",
    y="x * tanh(maximum(x, 0) + log1p(exp(-abs(x))))",
    # t = tanh(softplus(x)): its derivative is (1 - t t) sigmoid(x)
    dx="dy * (tanh(maximum(x, 0) + log1p(exp(-abs(x))))"
    " + x * (1 - tanh(maximum(x, 0) + log1p(exp(-abs(x))))"
    " * tanh(maximum(x, 0) + log1p(exp(-abs(x))))) * sigmoid(x))",
    example="[0., 1.] -> [0.    , 0.8651]",
)  # fmt: skip
_ROOT = math.sqrt(2 / math.pi)
# Beyond 20 the tanh is 1 in any dtype: without a bound its slope there is 0 * inf in float16.
_TANH = f"tanh({_ROOT!r} * x * (1 + 0.044715 * minimum(x * x, 400)))"
gelu = elementwise(
    "gelu", "Gaussian error linear unit, in its tanh approximation (arXiv:1606.08415).",
    y=f"0.5 * x * (1 + {_TANH})",
    dx=f"dy * 0.5 * (1 + {_TANH})"
    f" * (1 + maximum(x, -20) * (1 - {_TANH}) * {_ROOT!r} * (1 + 0.134145 * minimum(x * x, 400)))",
    example="[0., 1.] -> [0.    , 0.8412]",
)  # fmt: skip
hard_sigmoid = elementwise(
    "hard_sigmoid", "Piecewise linear sigmoid.", y="minimum(maximum(0.2 * x + 0.5, 0), 1)",
    dx="where(x >= -2.5, where(x <= 2.5, 0.2 * dy, 0), 0)", example="[0., 9.] -> [0.5, 1. ]",
)  # fmt: skip
hard_tanh = elementwise(
    "hard_tanh", "Piecewise linear hyperbolic tangent.", y="minimum(maximum(x, -1), 1)",
    dx="where(x >= -1, where(x <= 1, dy, 0), 0)", example="[-2., 0.5] -> [-1. ,  0.5]",
)  # fmt: skip


_prelu = elementwise(
    "prelu", "x0 where it is not negative, else x0 x1.", y="where(x0 >= 0, x0, x0 * x1)",
    inputs=("x0", "x1"), example="[-1., 2.]; [0.5, 0.5] -> [-0.5,  2. ]",
)  # fmt: skip


@function_api
def prelu(x0: Any, x1: Any, base_axis: int = 1) -> Any:
    """Rectified linear unit with learned slope: y = max(x0, 0) + x1 min(x0, 0).

    Args:
        x0: array.
        x1: slope of negative values: one, of shape () or (1,), or (C,).
        base_axis: axis of x0 that the slopes belong to.

    He et al., "Delving deep into rectifiers", arXiv:1502.01852.

    >>> import distnn as nn, distnn.functions as F
    >>> F.prelu(nn.Variable((2, 3)), nn.Variable((3,))).shape
    (2, 3)
    """
    shape, slopes = shape_of("prelu", "x0", x0), shape_of("prelu", "x1", x1)
    axis = axis_of("prelu", base_axis, len(shape), "base_axis")
    if slopes not in ((), (1,), (shape[axis],)):
        raise ShapeError(
            f"[prelu] x1 has shape {slopes} but x0 {shape} with base_axis {axis} needs "
            f"({shape[axis]},), or () for one slope"
        )
    column = [1] * len(shape)
    column[axis] = slopes[0] if slopes else 1
    return _prelu(x0, reshape(x1, column))


@function_api
def crelu(x: Any, axis: int = 1) -> Any:
    """relu(x) and relu(-x), joined along `axis` (arXiv:1603.05201).

    >>> import distnn as nn, distnn.functions as F
    >>> F.crelu(nn.Variable((2, 3))).shape
    (2, 6)
    """
    where = axis_of("crelu", axis, len(shape_of("crelu", "x", x)))
    return concatenate(relu(x), relu(-x), axis=where)


@function_api
def celu(x: Any, alpha: float = 1.0, axis: int = 1) -> Any:
    """elu(x) and elu(-x), joined along `axis`.

    >>> import distnn as nn, distnn.functions as F
    >>> F.celu(nn.Variable((2, 3))).shape
    (2, 6)
    """
    where = axis_of("celu", axis, len(shape_of("celu", "x", x)))
    alpha = number("celu", "alpha", alpha)
    return concatenate(elu(x, alpha), elu(-x, alpha), axis=where)
