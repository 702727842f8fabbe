"""Norms, and what is made of them: clipping, and weights as direction and length."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..calling import function_api
from ..errors import ArgumentError, ShapeError
from ..function import Function, Spec
from .affine import batch_matmul
from .arithmetic import (
    add_scalar,
    div2,
    maximum2,
    maximum_scalar,
    minimum2,
    minimum_scalar,
    mul2,
    pow_scalar,
)
from .mathematics import abs as absolute
from .reduction import Axis
from .reduction import sum as array_sum
from .shapes import axes_of, axis_of, number, shape_of, whole_number
from .shaping import reshape, transpose


def _power_sum(x: Any, p: float, axes: tuple[int, ...], keepdims: bool) -> Any:
    power = mul2(x, x) if p == 2 else absolute(x) if p == 1 else pow_scalar(absolute(x), p)
    return array_sum(power, axes, keepdims)


def _p_of(function: str, p: float | None) -> float:
    value = 2.0 if p is None else number(function, "p", p)
    if not value >= 1 or math.isinf(value):
        raise ArgumentError(f"[{function}] p is {p}; pass a finite number of 1 or more")
    return value


@function_api
def norm(x: Any, p: float | None = None, axis: Axis = None, keepdims: bool = False) -> Any:
    """p-norm over axes: y = (sum |x|^p)^(1/p). Where y is 0 and p > 1 it has no gradient (NaN).

    Args:
        x: array.
        p: 1 or more; 2 by default.
        axis: one axis, several, or (None) all.
        keepdims: keep these axes, with length 1.

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> F.norm(nn.NdArray.from_numpy_array(np.array([3., 4.]))).data
    array(5., dtype=float32)
    """
    p = _p_of("norm", p)
    axes = axes_of("norm", axis, len(shape_of("norm", "x", x)))
    total = _power_sum(x, p, axes, bool(keepdims))
    return total if p == 1 else pow_scalar(total, 1 / p)


@function_api
def norm_normalization(
    x: Any, p: float | None = None, axes: Axis = None, eps: float = 1e-12
) -> Any:
    """x divided by its p-norm over axes: y = x / (sum |x|^p + eps)^(1/p).

    Args:
        x: array.
        p: 1 or more; 2 by default.
        axes: one axis, several, or (None) all.
        eps: is added before the root is taken.

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> F.norm_normalization(nn.NdArray.from_numpy_array(np.array([3., 4.]))).data
    array([0.6, 0.8], dtype=float32)
    """
    p = _p_of("norm_normalization", p)
    over = axes_of("norm_normalization", axes, len(shape_of("norm_normalization", "x", x)), "axes")
    eps = number("norm_normalization", "eps", eps)
    return div2(x, pow_scalar(add_scalar(_power_sum(x, p, over, True), eps), 1 / p))


@function_api
def clip_by_value(x: Any, min: Any, max: Any) -> Any:
    """Clip: y = min where x < min, max where x > max, else x; no gradient at the bounds.

    Args:
        x: array.
        min, max: numbers, or arrays of x's shape.

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> F.clip_by_value(nn.NdArray.from_numpy_array(np.array([-2., .5, 2.])), -1, 1).data
    array([-1. ,  0.5,  1. ], dtype=float32)
    """
    shape_of("clip_by_value", "x", x)
    low = maximum2(x, min) if hasattr(min, "shape") and min.shape else maximum_scalar(x, min)
    return minimum2(low, max) if hasattr(max, "shape") and max.shape else minimum_scalar(low, max)


@function_api
def clip_by_norm(x: Any, clip_norm: Any, axis: Axis = None) -> Any:
    """Scale x down to a 2-norm of clip_norm over axes where it is larger.

    y = clip_norm x / ||x|| where ||x|| > clip_norm, else x.

    Args:
        x: array.
        clip_norm: a number above 0, or an array that broadcasts to the norms.
        axis: one axis, several, or (None) all.

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> F.clip_by_norm(nn.NdArray.from_numpy_array(np.array([3., 4.])), 1).data
    array([0.6, 0.8], dtype=float32)
    """
    axes = axes_of("clip_by_norm", axis, len(shape_of("clip_by_norm", "x", x)))
    squares = _power_sum(x, 2, axes, True)
    if hasattr(clip_norm, "shape"):
        limit = clip_norm if clip_norm.shape else reshape(clip_norm, (1,) * len(x.shape))
        # The root of what is no smaller than the limit: its gradient is finite where x is 0.
        return div2(mul2(x, limit), pow_scalar(maximum2(squares, mul2(limit, limit)), 0.5))
    value = number("clip_by_norm", "clip_norm", clip_norm)
    if not value > 0:
        raise ArgumentError(f"[clip_by_norm] clip_norm is {clip_norm}; pass a number above 0")
    return mul2(x, value * pow_scalar(maximum_scalar(squares, value * value), -0.5))


@function_api
def weight_normalization(w: Any, g: Any, dim: int = 0, eps: float = 1e-12) -> Any:
    """Weights as direction and length: y = g w / sqrt(sum w^2 + eps), for each index of `dim`.

    Salimans & Kingma, "Weight Normalization", 2016 (arXiv:1602.07868).

    Args:
        w: weights.
        g: (w.shape[dim],), lengths.
        dim: axis of the outputs.
        eps: keeps the root away from 0.

    >>> import distnn as nn, distnn.functions as F
    >>> F.weight_normalization(nn.Variable((4, 3)), nn.Variable((4,))).shape
    (4, 3)
    """
    name = "weight_normalization"
    shape = shape_of(name, "w", w)
    dim = axis_of(name, dim, len(shape), "dim")
    if shape_of(name, "g", g) != (shape[dim],):
        raise ShapeError(
            f"[{name}] g has shape {g.shape} but axis {dim} of w {shape} needs {(shape[dim],)}"
        )
    along = tuple(n if i == dim else 1 for i, n in enumerate(shape))
    others = tuple(i for i in range(len(shape)) if i != dim)
    length = pow_scalar(add_scalar(_power_sum(w, 2, others, True), number(name, "eps", eps)), -0.5)
    return mul2(w, mul2(reshape(g, along), length))


@dataclass(frozen=True)
class PowerIteration(Function):
    """Vectors u (d0) and v (d1) that come near to the first singular ones of w (d0, d1).

    Each iteration: v = w' u / ||w' u||, u = w v / ||w v||. They have no gradient.
    """

    iterations: int

    outputs = ("y", "v")

    def setup(self, w: Spec, u: Spec) -> tuple[Spec, Spec]:
        return Spec(u.shape, u.dtype), Spec((w.shape[1],), w.dtype)

    def forward(self, xp: Any, w: Any, u: Any, *, eps: float) -> Any:
        for _ in range(self.iterations):
            v = u @ w
            v = v / xp.sqrt((v * v).sum() + eps)
            u = w @ v
            u = u / xp.sqrt((u * u).sum() + eps)
        return u, v


@dataclass(frozen=True)
class UpdatedPowerIteration(PowerIteration):
    """The same; u takes its new value as an effect of forward."""

    name = "power_iteration"
    updates = ("u",)

    def forward(self, xp: Any, w: Any, u: Any, *, eps: float) -> Any:
        u, v = super().forward(xp, w, u, eps=eps)
        return u, v, u


@function_api
def spectral_norm(
    w: Any,
    u: Any,
    dim: int = 0,
    itr: int = 1,
    eps: float = 1e-12,
    test: bool = False,
    output_u: bool = False,
) -> Any:
    """Weights divided by their largest singular value: y = w / (u' W v).

    W is w as a matrix, with `dim` as its rows; u and v are estimated by power iteration from the
    given u, and count as constants in the gradient.

    Miyato et al., "Spectral Normalization for GANs", 2018 (arXiv:1802.05957).

    Args:
        w: weights.
        u: (w.shape[dim],), a leaf; forward replaces it by the new estimate.
        dim: axis of the outputs.
        itr: number of iterations.
        eps: keeps norms away from 0.
        test: leave u as it is.
        output_u: return (y, u).

    >>> import distnn as nn, distnn.functions as F
    >>> F.spectral_norm(nn.Variable((4, 3)), nn.Variable((4,))).shape
    (4, 3)
    """
    shape = shape_of("spectral_norm", "w", w)
    dim = axis_of("spectral_norm", dim, len(shape), "dim")
    if shape_of("spectral_norm", "u", u) != (shape[dim],):
        raise ShapeError(
            f"[spectral_norm] u has shape {u.shape} but axis {dim} of w {shape} needs "
            f"{(shape[dim],)}"
        )
    itr = whole_number("spectral_norm", "itr", itr)
    eps = number("spectral_norm", "eps", eps)
    if itr < 1 or not eps > 0:
        raise ArgumentError(
            f"[spectral_norm] itr is {itr} and eps {eps}; itr has to be 1 or more, eps above 0"
        )
    order = (dim, *(i for i in range(len(shape)) if i != dim))
    rows = w if dim == 0 else transpose(w, order)
    matrix = reshape(rows, (shape[dim], -1))
    iteration = PowerIteration if test else UpdatedPowerIteration
    new_u, v = iteration.of(itr)(matrix, u, eps=eps)
    length = batch_matmul(reshape(new_u, (1, -1)), batch_matmul(matrix, reshape(v, (-1, 1))))
    y = div2(w, reshape(length, (1,) * len(shape)))
    return (y, new_u) if output_u else y
