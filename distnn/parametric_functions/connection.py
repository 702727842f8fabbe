"""Affine map, convolution, its transpose and embedding with their parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .. import functions as F
from ..initializer import UniformInitializer, calc_uniform_lim_glorot
from ..parameter import Initializer, get_parameter_or_create
from .scope import parametric_function_api

Apply = Callable[[Any], Any] | None


def _glorot(inputs: int, outputs: int, kernel: Sequence[int], rng: Any, shape: Any) -> Any:
    """First values, which only a new parameter needs."""
    return UniformInitializer(calc_uniform_lim_glorot(inputs, outputs, tuple(kernel)), rng)(shape)


def _parameter(
    name: str, shape: Sequence[int], initializer: Initializer, fix: bool, apply: Apply = None
) -> Any:
    parameter = get_parameter_or_create(name, shape, initializer, True, not fix)
    return parameter if apply is None else apply(parameter)


@parametric_function_api(
    "affine",
    [("W", "Weight", "(inputs, *outputs)", True), ("b", "Bias", "(*outputs,)", True)],
)
def affine(
    inp: Any,
    n_outmaps: int | Sequence[int],
    base_axis: int = 1,
    w_init: Initializer = None,
    b_init: Initializer = None,
    fix_parameters: bool = False,
    rng: Any = None,
    with_bias: bool = True,
    apply_w: Apply = None,
    apply_b: Apply = None,
) -> Any:
    """Affine map y = x W + b with parameters W and b; axes from `base_axis` on are flattened.

    Args:
        inp: (M_1, ..., D_1, ...) array; the M axes come before `base_axis`.
        n_outmaps: number of outputs, or their shape.
        w_init, b_init: initializers; default uniform after Glorot, and 0.
        fix_parameters: compute no gradients of the parameters in this call.
        rng: generator of the default initializer.
        with_bias: use b.
        apply_w, apply_b: functions of the parameter that give the W or b to use.
    Returns: (M_1, ..., *n_outmaps).

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> PF.affine(nn.Variable((2, 3)), 4).shape
    (2, 4)
    """
    outputs = (n_outmaps,) if isinstance(n_outmaps, int | np.integer) else tuple(n_outmaps)
    inputs = math.prod(inp.shape[base_axis:])
    if w_init is None:
        w_init = partial(_glorot, inputs, math.prod(outputs), (1, 1), rng)
    w = _parameter("W", (inputs, *outputs), w_init, fix_parameters, apply_w)
    b = None
    if with_bias:
        b = _parameter("b", outputs, b_init, fix_parameters, apply_b)
    return F.affine(inp, w, b, base_axis)


@parametric_function_api(
    "conv",
    [
        ("W", "Filters", "(outmaps, inputs / group, *kernel)", True),
        ("b", "Bias", "(outmaps,)", True),
    ],
)
def convolution(
    inp: Any,
    outmaps: int,
    kernel: Sequence[int],
    pad: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    group: int = 1,
    channel_last: bool = False,
    w_init: Initializer = None,
    b_init: Initializer = None,
    base_axis: int = 1,
    fix_parameters: bool = False,
    rng: Any = None,
    with_bias: bool = True,
    apply_w: Apply = None,
    apply_b: Apply = None,
) -> Any:
    """N-dimensional convolution with parameters W and b; see F.convolution.

    Args:
        inp: (N, C, *S), or (N, *S, C) if channel_last.
        outmaps: number of output channels.
        kernel: lengths of the filters.
        pad, stride, dilation, group, base_axis: see F.convolution.
        w_init, b_init: initializers; default uniform after Glorot, and 0.
        fix_parameters: compute no gradients of the parameters in this call.
        rng: generator of the default initializer.
        with_bias: use b.
        apply_w, apply_b: functions of the parameter that give the W or b to use.

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> PF.convolution(nn.Variable((2, 3, 8, 8)), 16, (3, 3), pad=(1, 1)).shape
    (2, 16, 8, 8)
    """
    channels = inp.shape[-1 if channel_last else base_axis]
    if w_init is None:
        w_init = partial(_glorot, channels, outmaps, tuple(kernel), rng)
    shape = _filter_shape(outmaps, channels // group, kernel, channel_last)
    w = _parameter("W", shape, w_init, fix_parameters, apply_w)
    b = None
    if with_bias:
        b = _parameter("b", (outmaps,), b_init, fix_parameters, apply_b)
    return F.convolution(inp, w, b, base_axis, pad, stride, dilation, group, channel_last)


@parametric_function_api(
    "deconv",
    [
        ("W", "Filters", "(inputs, outmaps / group, *kernel)", True),
        ("b", "Bias", "(outmaps,)", True),
    ],
)
def deconvolution(
    inp: Any,
    outmaps: int,
    kernel: Sequence[int],
    pad: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    group: int = 1,
    channel_last: bool = False,
    output_padding: Sequence[int] | None = None,
    w_init: Initializer = None,
    b_init: Initializer = None,
    base_axis: int = 1,
    fix_parameters: bool = False,
    rng: Any = None,
    with_bias: bool = True,
    apply_w: Apply = None,
    apply_b: Apply = None,
) -> Any:
    """N-dimensional transposed convolution with parameters W and b; see F.deconvolution.

    Args:
        inp: (N, C, *O), or (N, *O, C) if channel_last.
        outmaps: number of output channels.
        kernel: lengths of the filters.
        pad, stride, dilation, group, output_padding, base_axis: see F.deconvolution.
        w_init, b_init: initializers; default uniform after Glorot, and 0.
        fix_parameters: compute no gradients of the parameters in this call.
        rng: generator of the default initializer.
        with_bias: use b.
        apply_w, apply_b: functions of the parameter that give the W or b to use.

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> PF.deconvolution(nn.Variable((2, 3, 8, 8)), 16, (3, 3)).shape
    (2, 16, 10, 10)
    """
    channels = inp.shape[-1 if channel_last else base_axis]
    if w_init is None:
        w_init = partial(_glorot, channels, outmaps, tuple(kernel), rng)
    shape = _filter_shape(channels, outmaps // group, kernel, channel_last)
    w = _parameter("W", shape, w_init, fix_parameters, apply_w)
    b = None
    if with_bias:
        b = _parameter("b", (outmaps,), b_init, fix_parameters, apply_b)
    return F.deconvolution(
        inp, w, b, base_axis, pad, stride, dilation, group, channel_last, output_padding
    )


@parametric_function_api("embed", [("W", "Table", "(n_inputs, n_features)", True)])
def embed(
    inp: Any,
    n_inputs: int,
    n_features: int,
    initializer: Initializer = None,
    fix_parameters: bool = False,
    apply_w: Apply = None,
) -> Any:
    """Rows of a learned table by index.

    Args:
        inp: whole numbers of any shape (I, ...), 0 to n_inputs - 1.
        n_inputs: number of rows.
        n_features: length of a row.
        initializer: of the table; default uniform in [-sqrt(3), sqrt(3)).
        fix_parameters: compute no gradient of the table in this call.
        apply_w: function of the parameter that gives the table to use.
    Returns: (I, ..., n_features).

    >>> import distnn as nn, distnn.parametric_functions as PF
    >>> PF.embed(nn.Variable((4,)), 10, 3).shape
    (4, 3)
    """
    if initializer is None:
        initializer = UniformInitializer((-(3**0.5), 3**0.5))
    w = _parameter("W", (n_inputs, n_features), initializer, fix_parameters, apply_w)
    return F.embed(inp, w)


def _filter_shape(
    first: int, second: int, kernel: Sequence[int], channel_last: bool
) -> tuple[int, ...]:
    return (first, *kernel, second) if channel_last else (first, second, *kernel)
