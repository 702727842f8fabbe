"""Depthwise convolution: filters of their own for each channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..calling import function_api
from ..errors import ShapeError
from .convolution import convolution
from .shapes import shape_of, whole_number
from .shaping import reshape


@function_api
def depthwise_convolution(
    x: Any,
    weight: Any,
    bias: Any = None,
    base_axis: int = 1,
    pad: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    multiplier: int = 1,
) -> Any:
    """Convolution of each channel by itself: a convolution with as many groups as channels.

    Chollet, "Xception", 2016 (arXiv:1610.02357).

    Args:
        x: (N, C, *S).
        weight: (C multiplier, *kernel).
        bias: (C multiplier,).
        base_axis, pad, stride, dilation: see F.convolution.
        multiplier: number of filters for each channel.
    Returns: (N, C multiplier, *O).

    >>> import distnn as nn, distnn.functions as F
    >>> F.depthwise_convolution(nn.Variable((2, 3, 8, 8)), nn.Variable((3, 3, 3))).shape
    (2, 3, 6, 6)
    """
    name = "depthwise_convolution"
    channels = shape_of(name, "x", x)[base_axis]
    shape = shape_of(name, "weight", weight)
    maps = channels * whole_number(name, "multiplier", multiplier)
    if not shape or shape[0] != maps:
        raise ShapeError(
            f"[{name}] weight has shape {shape} but x {x.shape} with multiplier {multiplier} needs "
            f"({maps}, *kernel)"
        )
    filters = reshape(weight, (maps, 1, *shape[1:]))
    return convolution(x, filters, bias, base_axis, pad, stride, dilation, channels)
