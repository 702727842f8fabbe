"""Parameters of special kinds: slopes, single channels, normalized and binary weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import functions as F
from ..initializer import (
    ConstantInitializer,
    NormalInitializer,
    UniformInitializer,
    WeightNormalizationScaleInitializer,
    calc_uniform_lim_glorot,
)
from ..parameter import Initializer, get_parameter_or_create
from .scope import parametric_function_api

_BINARY = [
    ("W", "Weights", "as of the layer", True),
    ("Wb", "Their signs", "as W", False),
    ("b", "Bias", "(outputs,)", True),
]
_SCALED = [*_BINARY[:2], ("alpha", "Mean of |W|", "(outputs,)", False), _BINARY[2]]


@parametric_function_api("prelu", [("slope", "Slope below 0", "() or (C,)", True)])
def prelu(
    inp: Any,
    base_axis: int = 1,
    shared: bool = True,
    fix_parameters: bool = False,
    slope_init: Initializer = None,
) -> Any:
    """Rectified linear unit with a learned slope below 0; see F.prelu.

    Args:
        inp: array.
        base_axis: axis of the channels.
        shared: one slope for all channels.
        fix_parameters: compute no gradient of the slope in this call.
        slope_init: initializer; default 0.25.

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> PF.prelu(nn.Variable((2, 3)), shared=False).shape
    (2, 3)
    """
    shape = () if shared else (inp.shape[base_axis],)
    init = ConstantInitializer(0.25) if slope_init is None else slope_init
    slope = get_parameter_or_create("slope", shape, init, True, not fix_parameters)
    return F.prelu(inp, slope, base_axis)


@parametric_function_api(
    "depthwise_conv",
    [("W", "Filters", "(C multiplier, *kernel)", True), ("b", "Bias", "(C multiplier,)", True)],
)
def depthwise_convolution(
    inp: Any,
    kernel: Sequence[int],
    pad: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    multiplier: int = 1,
    w_init: Initializer = None,
    b_init: Initializer = None,
    base_axis: int = 1,
    fix_parameters: bool = False,
    rng: Any = None,
    with_bias: bool = True,
) -> Any:
    """Convolution of each channel by itself, with parameters W and b.

    Args:
        inp: (N, C, *S).
        kernel: lengths of the filters.
        pad, stride, dilation, multiplier, base_axis: see F.depthwise_convolution.
        w_init, b_init: initializers; default uniform after Glorot, and 0.
        fix_parameters: compute no gradients of the parameters in this call.
        rng: generator of the default initializer.
        with_bias: use b.

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> PF.depthwise_convolution(nn.Variable((2, 3, 8, 8)), (3, 3), multiplier=2).shape
    (2, 6, 6, 6)
    """
    channels = inp.shape[base_axis]
    maps = channels * multiplier
    if w_init is None:
        w_init = UniformInitializer(calc_uniform_lim_glorot(channels, maps, tuple(kernel)), rng)
    w = get_parameter_or_create("W", (maps, *kernel), w_init, True, not fix_parameters)
    b = _bias((maps,), b_init, fix_parameters) if with_bias else None
    return F.depthwise_convolution(inp, w, b, base_axis, pad, stride, dilation, multiplier)


def _bias(shape: Sequence[int], init: Initializer, fix: bool) -> Any:
    init = ConstantInitializer() if init is None else init
    return get_parameter_or_create("b", shape, init, True, not fix)


@parametric_function_api(
    "spectral-norm", [("u", "First singular vector", "(w.shape[dim],)", False)]
)
def spectral_norm(
    w: Any,
    dim: int = 0,
    itr: int = 1,
    eps: float = 1e-12,
    test: bool = False,
    u_init: Initializer = None,
    fix_parameters: bool = True,
) -> Any:
    """Weights divided by their largest singular value; see F.spectral_norm.

    For `apply_w=` of PF.affine and PF.convolution.

    Args:
        w: weights.
        dim, itr, eps, test: see F.spectral_norm.
        u_init: initializer of the singular vector; default normal.
        fix_parameters: has no effect: u has no gradient.

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> PF.affine(nn.Variable((2, 3)), 4, apply_w=lambda w: PF.spectral_norm(w, dim=1)).shape
    (2, 4)
    """
    init = NormalInitializer() if u_init is None else u_init
    u = get_parameter_or_create("u", (w.shape[dim],), init, False)
    return F.spectral_norm(w, u, dim, itr, eps, test)


@parametric_function_api("wn", [("g", "Lengths", "(w.shape[dim],)", True)])
def weight_normalization(
    w: Any,
    dim: int = 0,
    eps: float = 1e-12,
    g_init: Initializer = None,
    fix_parameters: bool = False,
) -> Any:
    """Weights as direction and learned length g; see F.weight_normalization.

    For `apply_w=` of PF.affine and PF.convolution.

    Args:
        w: weights.
        dim, eps: see F.weight_normalization.
        g_init: initializer; by default g is the length that w has.
        fix_parameters: compute no gradient of g in this call.

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> PF.affine(nn.Variable((2, 3)), 4, apply_w=PF.weight_normalization).shape
    (2, 4)
    """
    init = WeightNormalizationScaleInitializer(w, dim, eps) if g_init is None else g_init
    g = get_parameter_or_create("g", (w.shape[dim],), init, True, not fix_parameters)
    return F.weight_normalization(w, g, dim, eps)


def _binary(
    shape: Sequence[int], init: Initializer, binary_init: Initializer, fix: bool
) -> tuple[Any, Any]:
    w = get_parameter_or_create("W", shape, init, True, not fix)
    return w, get_parameter_or_create("Wb", shape, binary_init, False)


def _affine_weights(
    inp: Any, n_outmaps: int | Sequence[int], base_axis: int, w_init: Any, wb_init: Any,
    rng: Any, fix: bool,
) -> tuple[Any, Any, tuple[int, ...]]:  # fmt: skip
    outputs = (n_outmaps,) if isinstance(n_outmaps, int | np.integer) else tuple(n_outmaps)
    inputs = math.prod(inp.shape[base_axis:])
    default = UniformInitializer(calc_uniform_lim_glorot(inputs, math.prod(outputs)), rng)
    first, second = (default if i is None else i for i in (w_init, wb_init))
    return *_binary((inputs, *outputs), first, second, fix), outputs


def _filters(
    inp: Any, outmaps: int, kernel: Sequence[int], group: int, base_axis: int, w_init: Any,
    wb_init: Any, rng: Any, fix: bool,
) -> tuple[Any, Any]:  # fmt: skip
    channels = inp.shape[base_axis]
    default = UniformInitializer(calc_uniform_lim_glorot(channels, outmaps, tuple(kernel)), rng)
    first, second = (default if i is None else i for i in (w_init, wb_init))
    return _binary((outmaps, channels // group, *kernel), first, second, fix)


@parametric_function_api("bicon_affine", _BINARY)
def binary_connect_affine(
    inp: Any,
    n_outmaps: int | Sequence[int],
    base_axis: int = 1,
    quantize_zero_to: float = 1.0,
    w_init: Initializer = None,
    wb_init: Initializer = None,
    b_init: Initializer = None,
    fix_parameters: bool = False,
    rng: Any = None,
    with_bias: bool = True,
) -> Any:
    """Affine map with the signs of the weights W; see F.binary_connect_affine and affine.

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> PF.binary_connect_affine(nn.Variable((2, 3)), 4).shape
    (2, 4)
    """
    w, wb, outputs = _affine_weights(
        inp, n_outmaps, base_axis, w_init, wb_init, rng, fix_parameters
    )
    b = _bias(outputs, b_init, fix_parameters) if with_bias else None
    return F.binary_connect_affine(inp, w, wb, b, base_axis, quantize_zero_to)


@parametric_function_api("bicon_conv", _BINARY)
def binary_connect_convolution(
    inp: Any,
    outmaps: int,
    kernel: Sequence[int],
    pad: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    group: int = 1,
    quantize_zero_to: float = 1.0,
    w_init: Initializer = None,
    wb_init: Initializer = None,
    b_init: Initializer = None,
    base_axis: int = 1,
    fix_parameters: bool = False,
    rng: Any = None,
    with_bias: bool = True,
) -> Any:
    """Convolution with the signs of the weights W; see F.binary_connect_convolution, convolution.

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> PF.binary_connect_convolution(nn.Variable((2, 3, 8, 8)), 5, (3, 3)).shape
    (2, 5, 6, 6)
    """
    w, wb = _filters(inp, outmaps, kernel, group, base_axis, w_init, wb_init, rng, fix_parameters)
    b = _bias((outmaps,), b_init, fix_parameters) if with_bias else None
    return F.binary_connect_convolution(
        inp, w, wb, b, base_axis, pad, stride, dilation, group, quantize_zero_to
    )


@parametric_function_api("bwn_affine", _SCALED)
def binary_weight_affine(
    inp: Any,
    n_outmaps: int | Sequence[int],
    base_axis: int = 1,
    quantize_zero_to: float = 1.0,
    w_init: Initializer = None,
    wb_init: Initializer = None,
    b_init: Initializer = None,
    fix_parameters: bool = False,
    rng: Any = None,
    with_bias: bool = True,
) -> Any:
    """Affine map with scaled signs of the weights W; see F.binary_weight_affine and affine.

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> PF.binary_weight_affine(nn.Variable((2, 3)), 4).shape
    (2, 4)
    """
    w, wb, outputs = _affine_weights(
        inp, n_outmaps, base_axis, w_init, wb_init, rng, fix_parameters
    )
    alpha = get_parameter_or_create("alpha", outputs, ConstantInitializer(), False)
    b = _bias(outputs, b_init, fix_parameters) if with_bias else None
    return F.binary_weight_affine(inp, w, wb, alpha, b, base_axis, quantize_zero_to)


@parametric_function_api("bwn_conv", _SCALED)
def binary_weight_convolution(
    inp: Any,
    outmaps: int,
    kernel: Sequence[int],
    pad: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    group: int = 1,
    quantize_zero_to: float = 1.0,
    w_init: Initializer = None,
    wb_init: Initializer = None,
    b_init: Initializer = None,
    base_axis: int = 1,
    fix_parameters: bool = False,
    rng: Any = None,
    with_bias: bool = True,
) -> Any:
    """Convolution with scaled signs of the weights; see F.binary_weight_convolution, convolution.

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> PF.binary_weight_convolution(nn.Variable((2, 3, 8, 8)), 5, (3, 3)).shape
    (2, 5, 6, 6)
    """
    w, wb = _filters(inp, outmaps, kernel, group, base_axis, w_init, wb_init, rng, fix_parameters)
    alpha = get_parameter_or_create("alpha", (outmaps,), ConstantInitializer(), False)
    b = _bias((outmaps,), b_init, fix_parameters) if with_bias else None
    return F.binary_weight_convolution(
        inp, w, wb, alpha, b, base_axis, pad, stride, dilation, group, quantize_zero_to
    )
