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
from ..errors import ArgumentError, ShapeError
from ..function import Function, Spec
from .affine import affine
from .arithmetic import identity
from .convolution import convolution
from .elementwise import elementwise
from .shapes import number, shape_of, whole_number

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

_fixed_point = elementwise(
    "fixed_point_quantize", "Nearest of equally distant numbers.",
    y="minimum(maximum(where(x < 0, -floor(0.5 - x / delta), floor(x / delta + 0.5)) * delta, low),"
    " high)",
    dx="where(x > high, dy * beyond, where(x < low, dy * beyond, dy))",
    operands={"delta": 0.0625, "low": -7.9375, "high": 7.9375, "beyond": 0.0},
    example="[0.1, 9.] -> [0.125 , 7.9375]",
)  # fmt: skip
# 2 to the whole number that is nearest to the logarithm of |x|.
_POWER = "2 ** floor(log(maximum(abs(x), 1e-37)) * 1.4426950408889634 + 0.5)"
_pow2 = elementwise(
    "pow2_quantize", "Nearest power of two.",
    y=f"where(x < 0, negative, 1) * where(abs(x) < threshold, 0, minimum(maximum({_POWER}, low),"
    " high)) + where(x < 0, added, 0)",
    dx=f"where({_POWER} > high, dy * beyond, where(x < 0, dy * below, dy))",
    operands={
        "low": 1.0, "high": 2.0, "threshold": 0.0, "negative": -1.0, "added": 0.0, "beyond": 0.0,
        "below": 1.0,
    },
    example="[1.2, 9.] -> [1., 2.]",
)  # fmt: skip


@function_api
def fixed_point_quantize(
    x: Any,
    sign: bool = True,
    n: int = 8,
    delta: float = 2**-4,
    quantize: bool = True,
    ste_fine_grained: bool = True,
) -> Any:
    """Nearest multiple of delta that n bits can name, as a float.

    With `sign` from -(2^(n-1) - 1) delta to (2^(n-1) - 1) delta, else from 0 to (2^n - 1) delta.

    Args:
        x: array.
        sign: negative numbers too.
        n: number of bits.
        delta: distance of neighbours.
        quantize: False returns x's values.
        ste_fine_grained: no gradient beyond the range; False passes it through everywhere.

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> F.fixed_point_quantize(nn.NdArray.from_numpy_array(np.array([0.1, 9.]))).data
    array([0.125 , 7.9375], dtype=float32)
    """
    name = "fixed_point_quantize"
    shape_of(name, "x", x)
    n, delta = whole_number(name, "n", n), number(name, "delta", delta)
    bits = n - bool(sign)
    if bits < 1 or not delta > 0:
        raise ArgumentError(
            f"[{name}] n is {n}, sign {sign} and delta {delta}; a number needs a bit besides the "
            "sign, and delta has to be above 0"
        )
    if not quantize:
        return identity(x)
    high = (2**bits - 1) * delta
    beyond = 0.0 if ste_fine_grained else 1.0
    return _fixed_point(x, delta=delta, low=-high if sign else 0.0, high=high, beyond=beyond)


@function_api
def pow2_quantize(
    x: Any,
    sign: bool = True,
    with_zero: bool = True,
    n: int = 8,
    m: int = 1,
    quantize: bool = True,
    ste_fine_grained: bool = True,
) -> Any:
    """Nearest power of two, up to 2^m, that n bits can name, as a float.

    |y| = 2^round(log2 |x|) within [2^(m - 2^b + 1), 2^m], b = n without the bits for sign and zero.

    Args:
        x: array.
        sign: negative numbers too; else they become 0, or the smallest one.
        with_zero: 0 for what is smaller than the smallest one by the root of 2.
        n: number of bits.
        m: exponent of the largest number.
        quantize: False returns x's values.
        ste_fine_grained: no gradient beyond the range; False passes it through everywhere.

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> F.pow2_quantize(nn.NdArray.from_numpy_array(np.array([-0.3, 9.]))).data
    array([-0.25,  2.  ], dtype=float32)
    """
    name = "pow2_quantize"
    shape_of(name, "x", x)
    n, m = whole_number(name, "n", n), whole_number(name, "m", m)
    bits = n - bool(sign) - bool(with_zero)
    if bits < 1:
        raise ArgumentError(
            f"[{name}] n is {n}, sign {sign} and with_zero {with_zero}; a number needs a bit "
            "besides those of the sign and of zero"
        )
    if not quantize:
        return identity(x)
    low, beyond = 2.0 ** max(m - 2**bits + 1, -126), 0.0 if ste_fine_grained else 1.0
    return _pow2(
        x,
        low=low,
        high=2.0**m,
        threshold=low / math.sqrt(2) if with_zero else 0.0,
        negative=-1.0 if sign else 0.0,
        added=0.0 if sign or with_zero else low,
        beyond=beyond,
        below=1.0 if sign else beyond,
    )


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
