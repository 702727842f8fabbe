"""Functions with few values: roundings, signs, and layers whose weights are signs.

Their true slope is 0 almost everywhere; gradients pass through as if the function were a straight
line, within bounds (Bengio et al., arXiv:1308.3432).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..calling import function_api
from ..errors import ShapeError
from ..function import Function, Spec
from .affine import affine
from .convolution import convolution
from .elementwise import elementwise
from .shapes import number, shape_of

round = elementwise(
    "round", "Nearest whole number, halves away from 0; the gradient passes through unchanged.",
    y="where(x < 0, -floor(0.5 - x), floor(0.5 + x))", dx="dy",
    example="[-1.5, 1.2] -> [-2.,  1.]",
)  # fmt: skip
binary_tanh = elementwise(
    "binary_tanh", "1 where x > 0, else -1; the gradient is that of a line from -1 to 1.",
    y="where(x > 0, 1, -1)", dx="where(abs(x) > 1, 0, dy)",
    example="[-2., 0., 3.] -> [-1., -1.,  1.]",
)  # fmt: skip
binary_sigmoid = elementwise(
    "binary_sigmoid", "1 where x > 0, else 0; the gradient is that of a line from -1 to 1.",
    y="where(x > 0, 1, 0)", dx="where(abs(x) > 1, 0, dy * 0.5)",
    example="[-2., 0., 3.] -> [0., 0., 1.]",
)  # fmt: skip


def _same_shape(function: str, weight: Any, binary_weight: Any) -> tuple[int, ...]:
    shape = shape_of(function, "weight", weight)
    if shape_of(function, "binary_weight", binary_weight) != shape:
        raise ShapeError(
            f"[{function}] binary_weight has shape {binary_weight.shape} but weight {shape}; they "
            "must be the same"
        )
    return shape


@dataclass(frozen=True)
class BinaryWeight(Function):
    """y = sign of w, `zero` at 0, which binary takes as an effect; w has y's gradient."""

    updates = ("binary",)

    def setup(self, w: Spec, binary: Spec) -> Spec:
        return Spec(w.shape, w.dtype)

    def forward(self, xp: Any, w: Any, binary: Any, *, zero: float) -> Any:
        y = xp.where(w == 0, w.dtype.type(zero), xp.sign(w))
        return y, y

    def grad_w(self, xp: Any, dy: Any) -> Any:
        return dy


@dataclass(frozen=True)
class ScaledBinaryWeight(Function):
    """y = alpha sign of w, alpha the mean of |w| for each output; w has y's gradient."""

    axis: int  # of the outputs; -1: all but the first axis

    updates = ("binary", "alpha")

    def setup(self, w: Spec, binary: Spec, alpha: Spec) -> Spec:
        return Spec(w.shape, w.dtype)

    def forward(self, xp: Any, w: Any, binary: Any, alpha: Any, *, zero: float) -> Any:
        sign = xp.where(w == 0, w.dtype.type(zero), xp.sign(w))
        others = tuple(range(1, w.ndim)) if self.axis == 0 else (0,)
        size = xp.sum(abs(w), others, keepdims=True) / math.prod(w.shape[i] for i in others)
        return sign * size, sign, size.reshape(alpha.shape)

    def grad_w(self, xp: Any, dy: Any) -> Any:
        return dy


def _scaled(
    function: str, weight: Any, binary_weight: Any, alpha: Any, zero_to: float, axis: int
) -> Any:
    shape = _same_shape(function, weight, binary_weight)
    size = shape[0] if axis == 0 else math.prod(shape[1:])
    if math.prod(shape_of(function, "alpha", alpha)) != size:
        raise ShapeError(
            f"[{function}] alpha has shape {alpha.shape} but weight {shape} needs {size} elements, "
            "one for each output"
        )
    zero = number(function, "quantize_zero_to", zero_to)
    return ScaledBinaryWeight.of(axis)(weight, binary_weight, alpha, zero=zero)


def _binary(function: str, weight: Any, binary_weight: Any, quantize_zero_to: float) -> Any:
    _same_shape(function, weight, binary_weight)
    zero = number(function, "quantize_zero_to", quantize_zero_to)
    return BinaryWeight.of()(weight, binary_weight, zero=zero)


@function_api
def binary_connect_affine(
    x: Any,
    weight: Any,
    binary_weight: Any,
    bias: Any = None,
    base_axis: int = 1,
    quantize_zero_to: float = 1.0,
) -> Any:
    """Affine map with the signs of the weights: y = x sign(W) + b.

    Courbariaux et al., "BinaryConnect", 2015 (arXiv:1511.00363).

    Args:
        x, weight, bias, base_axis: see F.affine; weight has the gradient of its sign.
        binary_weight: a leaf of weight's shape, which takes the signs at each forward.
        quantize_zero_to: sign of 0.

    >>> import distnn as nn, distnn.functions as F
    >>> w, signs = nn.Variable((3, 4)), nn.Variable((3, 4))
    >>> F.binary_connect_affine(nn.Variable((2, 3)), w, signs).shape
    (2, 4)
    """
    binary = _binary("binary_connect_affine", weight, binary_weight, quantize_zero_to)
    return affine(x, binary, bias, base_axis)


@function_api
def binary_connect_convolution(
    x: Any,
    weight: Any,
    binary_weight: Any,
    bias: Any = None,
    base_axis: int = 1,
    pad: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    group: int = 1,
    quantize_zero_to: float = 1.0,
) -> Any:
    """Convolution with the signs of the weights; see binary_connect_affine and convolution.

    >>> import distnn as nn, distnn.functions as F
    >>> w, signs = nn.Variable((5, 3, 3, 3)), nn.Variable((5, 3, 3, 3))
    >>> F.binary_connect_convolution(nn.Variable((2, 3, 8, 8)), w, signs).shape
    (2, 5, 6, 6)
    """
    binary = _binary("binary_connect_convolution", weight, binary_weight, quantize_zero_to)
    return convolution(x, binary, bias, base_axis, pad, stride, dilation, group)


@function_api
def binary_weight_affine(
    x: Any,
    weight: Any,
    binary_weight: Any,
    alpha: Any,
    bias: Any = None,
    base_axis: int = 1,
    quantize_zero_to: float = 1.0,
) -> Any:
    """Affine map with scaled signs: y = x (alpha sign(W)) + b, alpha_j the mean of |W_ij| over i.

    Rastegari et al., "XNOR-Net", 2016 (arXiv:1603.05279).

    Args:
        x, weight, bias, base_axis: see F.affine; weight has the gradient of what takes its place.
        binary_weight: a leaf of weight's shape, which takes the signs at each forward.
        alpha: a leaf with an element for each output, which takes the means.
        quantize_zero_to: sign of 0.

    >>> import distnn as nn, distnn.functions as F
    >>> w, signs, alpha = nn.Variable((3, 4)), nn.Variable((3, 4)), nn.Variable((4,))
    >>> F.binary_weight_affine(nn.Variable((2, 3)), w, signs, alpha).shape
    (2, 4)
    """
    w = _scaled("binary_weight_affine", weight, binary_weight, alpha, quantize_zero_to, -1)
    return affine(x, w, bias, base_axis)


@function_api
def binary_weight_convolution(
    x: Any,
    weight: Any,
    binary_weight: Any,
    alpha: Any,
    bias: Any = None,
    base_axis: int = 1,
    pad: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    group: int = 1,
    quantize_zero_to: float = 1.0,
) -> Any:
    """Convolution with scaled signs of the weights; see binary_weight_affine and convolution.

    >>> import distnn as nn, distnn.functions as F
    >>> w, signs, alpha = nn.Variable((5, 3, 3, 3)), nn.Variable((5, 3, 3, 3)), nn.Variable((5,))
    >>> F.binary_weight_convolution(nn.Variable((2, 3, 8, 8)), w, signs, alpha).shape
    (2, 5, 6, 6)
    """
    w = _scaled("binary_weight_convolution", weight, binary_weight, alpha, quantize_zero_to, 0)
    return convolution(x, w, bias, base_axis, pad, stride, dilation, group)
