"""Layer, instance and group normalization: by the mean and variance of each example.

Unlike batch normalization they do the same in training and in inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..calling import function_api
from ..errors import ArgumentError, ShapeError
from .shapes import axes_of, axis_of, number, shape_of, whole_number
from .shaping import reshape
from .tensor_normalization import TensorNormalization


def _normalized(
    name: str, x: Any, beta: Any, gamma: Any, axes: tuple[int, ...], eps: float, output_stat: bool
) -> Any:
    eps = number(name, "eps", eps)
    if not eps >= 0:
        raise ArgumentError(f"[{name}] eps is {eps}; pass 0 or more")
    results = TensorNormalization.of(name, axes)(x, beta, gamma, eps=eps)
    return results if output_stat else results[0]


@function_api
def tensor_normalization(
    x: Any,
    axes: Sequence[int] | int,
    beta: Any = None,
    gamma: Any = None,
    eps: float = 1e-5,
    output_stat: bool = False,
) -> Any:
    """Normalization y = gamma (x - mean) / sqrt(variance + eps) + beta with statistics of x itself.

    Args:
        x: array of any shape.
        axes: the axes that have statistics of their own; mean and variance go over all others.
        beta, gamma: shift and scale of x's number of axes, each of x's length or of length 1; or
            None.
        eps: added to the (biased) variance.
        output_stat: return (y, mean, variance), these of length 1 except at `axes`.

    >>> import distnn as nn, distnn.functions as F
    >>> F.tensor_normalization(nn.Variable((8, 3, 4, 4)), [0, 1]).shape
    (8, 3, 4, 4)
    """
    name = "tensor_normalization"
    where = axes_of(name, axes, len(_shape(name, x)), "axes")
    return _normalized(name, x, beta, gamma, where, eps, output_stat)


@function_api
def layer_normalization(
    x: Any,
    beta: Any,
    gamma: Any,
    batch_axis: Sequence[int] | int = 0,
    eps: float = 1e-5,
    output_stat: bool = False,
) -> Any:
    """Layer normalization: each example by its own mean and variance, over all axes of a layer.

    y = gamma (x - mean) / sqrt(variance + eps) + beta

    Args:
        x: (N, ...) array.
        beta, gamma: shift and scale: x's shape with 1 at `batch_axis`, or 1 anywhere; or None.
        batch_axis: the axes that have statistics of their own: for a transformer's (N, T, D)
            arrays pass [0, 1], which normalizes each token.
        eps: added to the (biased) variance.
        output_stat: return (y, mean, variance), these of length 1 except at `batch_axis`.

    Ba, Kiros & Hinton, "Layer normalization", arXiv:1607.06450.

    >>> import distnn as nn, distnn.functions as F
    >>> beta, gamma = nn.Variable((1, 1, 6)), nn.Variable((1, 1, 6))
    >>> F.layer_normalization(nn.Variable((8, 5, 6)), beta, gamma, batch_axis=[0, 1]).shape
    (8, 5, 6)
    """
    name = "layer_normalization"
    where = axes_of(name, batch_axis, len(_shape(name, x)), "batch_axis")
    return _normalized(name, x, beta, gamma, where, eps, output_stat)


@function_api
def instance_normalization(
    x: Any,
    beta: Any,
    gamma: Any,
    channel_axis: int = 1,
    batch_axis: Sequence[int] | int = 0,
    eps: float = 1e-5,
    output_stat: bool = False,
) -> Any:
    """Instance normalization: each channel of each example by its own mean and variance.

    y = gamma (x - mean) / sqrt(variance + eps) + beta

    Args:
        x: (N, C, ...) array.
        beta, gamma: shift and scale, of length 1 except at `channel_axis` (and `batch_axis`, if
            each example has its own); or None.
        channel_axis, batch_axis: the axes that have statistics of their own.
        eps: added to the (biased) variance.
        output_stat: return (y, mean, variance), these of length 1 at all other axes.

    Ulyanov, Vedaldi & Lempitsky, "Instance normalization", arXiv:1607.08022.

    >>> import distnn as nn, distnn.functions as F
    >>> beta, gamma = nn.Variable((1, 3, 1, 1)), nn.Variable((1, 3, 1, 1))
    >>> F.instance_normalization(nn.Variable((8, 3, 4, 4)), beta, gamma).shape
    (8, 3, 4, 4)
    """
    name = "instance_normalization"
    channel, batch = _channel_and_batch(name, _shape(name, x), channel_axis, batch_axis)
    where = tuple(sorted((channel, *batch)))
    return _normalized(name, x, beta, gamma, where, eps, output_stat)


@function_api
def group_normalization(
    x: Any,
    beta: Any,
    gamma: Any,
    num_groups: int,
    channel_axis: int = 1,
    batch_axis: Sequence[int] | int = 0,
    eps: float = 1e-5,
    output_stat: bool = False,
) -> Any:
    """Group normalization: each group of channels of each example by its own mean and variance.

    y = gamma (x - mean) / sqrt(variance + eps) + beta

    Args:
        x: (N, C, ...) array.
        beta, gamma: shift and scale, of length 1 except at `channel_axis`; or None.
        num_groups: into how many groups of neighbours the channels are divided.
        channel_axis, batch_axis: the axes of channels and examples.
        eps: added to the (biased) variance.
        output_stat: return (y, mean, variance), these with an axis of groups and one of length 1
            in place of the channels: (N, G, 1, 1, ...).
    Raises: ShapeError where num_groups does not divide the channels.

    Wu & He, "Group normalization", arXiv:1803.08494.

    >>> import distnn as nn, distnn.functions as F
    >>> beta, gamma = nn.Variable((1, 6, 1, 1)), nn.Variable((1, 6, 1, 1))
    >>> F.group_normalization(nn.Variable((8, 6, 4, 4)), beta, gamma, num_groups=2).shape
    (8, 6, 4, 4)
    """
    name = "group_normalization"
    shape = _shape(name, x)
    channel, batch = _channel_and_batch(name, shape, channel_axis, batch_axis)
    groups = whole_number(name, "num_groups", num_groups)
    if groups < 1 or shape[channel] % groups:
        raise ShapeError(
            f"[{name}] num_groups is {groups} but x {shape} has {shape[channel]} channels; pass a "
            "number that divides them"
        )
    expected = tuple(n if i == channel else 1 for i, n in enumerate(shape))
    for what, parameter in (("beta", beta), ("gamma", gamma)):
        if parameter is not None and shape_of(name, what, parameter) != expected:
            raise ShapeError(
                f"[{name}] {what} has shape {parameter.shape} but x {shape} with channel_axis "
                f"{channel} needs {expected}"
            )
    where = tuple(sorted((channel, *(a + (a > channel) for a in batch))))
    x, beta, gamma = (a if a is None else _grouped(a, channel, groups) for a in (x, beta, gamma))
    results = _normalized(name, x, beta, gamma, where, eps, True)
    y = reshape(results[0], shape)
    return (y, *results[1:]) if output_stat else y


def _shape(name: str, x: Any) -> tuple[int, ...]:
    shape = shape_of(name, "x", x)
    if not shape:
        raise ShapeError(f"[{name}] x has no axes; pass an array with one or more")
    return shape


def _channel_and_batch(
    name: str, shape: Sequence[int], channel_axis: Any, batch_axis: Any
) -> tuple[int, tuple[int, ...]]:
    channel = axis_of(name, channel_axis, len(shape), "channel_axis")
    batch = axes_of(name, batch_axis, len(shape), "batch_axis")
    if channel in batch:
        raise ShapeError(
            f"[{name}] channel_axis {channel_axis} is one of batch_axis {batch_axis}; pass axes "
            "that differ"
        )
    return channel, batch


def _grouped(x: Any, channel: int, groups: int) -> Any:
    """The channel axis as two: groups, and channels of a group."""
    shape = x.shape
    split = (groups, shape[channel] // groups)
    return reshape(x, (*shape[:channel], *split, *shape[channel + 1 :]))
