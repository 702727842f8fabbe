"""Convolution and its transpose, in any number of dimensions.

The gradient of a convolution with respect to its input is a transposed convolution
(Deconvolution), the one with respect to its filters a correlation (FilterGradient). Each of the
three is bilinear and has the other two for gradients, which closes derivatives of any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calling import function_api
from ..errors import ArgumentError, ShapeError
from ..function import Function, Spec
from . import winograd
from .convolution_ways import Ways, fastest_way
from .depthwise import Depthwise
from .im2col import Geometry, Patches
from .shapes import per_axis, shape_of, whole_number
from .winograd_tiles import WinogradTiles


@dataclass(frozen=True)
class Bilinear(Function, by_signature=False):
    """What the three share: the geometry, the choice of algorithm, and channel-last layout."""

    geometry: Geometry
    channel_last: bool

    def first(self, xp: Any, x: Any) -> Any:
        """An array with channels first: (N, C, *S)."""
        return xp.ascontiguousarray(xp.moveaxis(x, -1, 1)) if self.channel_last else x

    def first_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0], shape[-1], *shape[1:-1]) if self.channel_last else shape

    def last_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0], *shape[2:], shape[1]) if self.channel_last else shape

    def put(self, xp: Any, result: Any, out: Any) -> Any:
        """Copy a result with channels first into `out`, if it was not computed there."""
        if self.channel_last:
            out[...] = xp.moveaxis(result, 1, -1)
        return out

    def room(self, xp: Any, shape: tuple[int, ...], dtype: Any, out: Any) -> tuple[Any, Any]:
        """The array to compute a result in, channels first, and the one to return."""
        if out is None:
            out = xp.empty(self.last_shape(shape), dtype)
        return (xp.empty(shape, dtype) if self.channel_last else out), out

    def algorithm(
        self, xp: Any, x_shape: Any, w_shape: Any, dtype: np.dtype, scratch: Any = None
    ) -> Any:
        ways = self.ways(xp, x_shape, w_shape, dtype, scratch)
        return ways[fastest_way(ways, self.geometry, xp, x_shape, w_shape, dtype)]()

    def ways(
        self, xp: Any, x_shape: Any, w_shape: Any, dtype: np.dtype, scratch: Any = None
    ) -> Ways:
        """What computes this convolution, by name; the first is expected to be the fastest."""
        g, pads = self.geometry, self.geometry.pad
        ways: Ways = {}
        if g.group == x_shape[1] == w_shape[0] > 1:
            ways["depthwise"] = lambda: Depthwise(xp, g, x_shape, w_shape, dtype)
        ways["patches"] = lambda: Patches(xp, g, x_shape, w_shape, dtype)
        if not self.is_plain_3x3(w_shape) or dtype.itemsize < 4:
            return ways  # half precision would not survive the transforms
        expected = winograd.way(x_shape, w_shape, pads)
        minimal: Ways = {
            "maps": lambda: winograd.Winograd(xp, x_shape, w_shape, pads, dtype, scratch),
            "tiles": lambda: WinogradTiles(xp, x_shape, w_shape, pads, dtype),
        }
        first = {expected: minimal[expected]} if expected else {}
        return first | ways | {name: minimal[name] for name in winograd.possible(x_shape, pads)}

    def winograd(self, x_shape: Any, w_shape: Any, dtype: np.dtype) -> str | None:
        """How Winograd's filtering is taken, by winograd.way; None where it is not."""
        if not self.is_plain_3x3(w_shape) or dtype.itemsize < 4:
            return None
        return winograd.way(x_shape, w_shape, self.geometry.pad)

    def is_plain_3x3(self, w_shape: Any) -> bool:
        """Whether each result is a sum over 3 x 3 pixels beside each other, of all channels."""
        g = self.geometry
        return tuple(w_shape[2:]) == (3, 3) and g.stride == g.dilation == (1, 1) and g.group == 1

    def scratch_for(self, x_shape: Any, w_shape: Any, dtype: np.dtype) -> int:
        if self.winograd(x_shape, w_shape, dtype) != "maps":
            return 0
        return winograd.scratch_bytes(x_shape, w_shape, self.geometry.pad, dtype.itemsize)


@dataclass(frozen=True)
class Convolution(Bilinear):
    """y = x * w + b (cross-correlation).

    x (N, C, *S), w (F, C / group, *K), b (F,) or None -> y (N, F, *O); channel_last moves C and F
    to the end of x and y, and to the end of w.
    """

    cuda = cpu = "convolution.Convolution"

    def setup(self, x: Spec, w: Spec, b: Spec | None = None) -> Spec:
        xs, ws = self.first_shape(x.shape), self.first_shape(w.shape)
        group = self.geometry.group
        if xs[1] % group or ws[0] % group:
            raise ShapeError(
                f"[convolution] group is {group} but x {x.shape} has {xs[1]} channels and weight "
                f"{w.shape} gives {ws[0]}; it must divide both"
            )
        if xs[1] != ws[1] * group:
            raise ShapeError(
                f"[convolution] weight expects {ws[1] * group} input channels but x has {xs[1]}; "
                f"pass a weight of shape {self.last_shape((ws[0], xs[1] // group, *ws[2:]))}, or "
                "group="
            )
        if b is not None and b.shape != (ws[0],):
            raise ShapeError(
                f"[convolution] bias has shape {b.shape} but weight {w.shape} needs ({ws[0]},)"
            )
        results = self.geometry.results(xs[2:], ws[2:])
        if min(results) < 1 or min(ws[2:]) < 1:
            raise ShapeError(
                f"[convolution] the kernel {ws[2:]} with pad {self.geometry.pad} and dilation "
                f"{self.geometry.dilation} does not fit into x's {xs[2:]}; pad x or use a smaller "
                "kernel"
            )
        return Spec(self.last_shape((xs[0], ws[0], *results)), x.dtype)

    def scratch(self, x: Spec, w: Spec, b: Spec | None = None) -> int:
        return self.scratch_for(self.first_shape(x.shape), self.first_shape(w.shape), x.dtype)

    def forward(
        self, xp: Any, x: Any, w: Any, b: Any = None, *, out: Any = None, scratch: Any = None
    ) -> Any:
        x, w = self.first(xp, x), self.first(xp, w)
        shape = (len(x), len(w), *self.geometry.results(x.shape[2:], w.shape[2:]))
        y, out = self.room(xp, shape, x.dtype, out)
        self.algorithm(xp, x.shape, w.shape, x.dtype, scratch).forward(x, w, b, y)
        return self.put(xp, y, out)

    def grad_x(self, xp: Any, dy: Any, w: Any, x_shape: Any) -> Any:
        lengths = self.first_shape(x_shape)[2:]
        return xp.call(Deconvolution.of(self.geometry, self.channel_last, lengths), dy, w, None)

    def grad_w(self, xp: Any, dy: Any, x: Any, w_shape: Any) -> Any:
        kernel = self.first_shape(w_shape)[2:]
        return xp.call(FilterGradient.of(self.geometry, self.channel_last, kernel), dy, x)

    def grad_b(self, xp: Any, dy: Any) -> Any:
        return _channel_sum(xp, dy, self.channel_last)

    def backward(
        self, xp: Any, need: Any, dy: Any, x: Any, w: Any, *, out: Any, scratch: Any = None
    ) -> None:
        xs, ws = self.first_shape(x.shape), self.first_shape(w.shape)
        algorithm = self.algorithm(xp, xs, ws, dy.dtype, scratch)
        db = [out.b] if need.b and getattr(algorithm, "sums_dy", False) else []
        if need.b and not db:
            batch, filters, *spatial = self.first_shape(dy.shape)
            pixels = math.prod(spatial)
            last = self.channel_last
            blocks = (batch * pixels, filters, 1) if last else (batch, filters, pixels)
            out.b[...] = xp.channels(blocks).total(dy.reshape(blocks))
        dy, x, w = self.first(xp, dy), self.first(xp, x), self.first(xp, w)
        dx, out_x = self.room(xp, x.shape, dy.dtype, out.x) if need.x else (None, None)
        dw, out_w = self.room(xp, w.shape, dy.dtype, out.w) if need.w else (None, None)
        if need.x or need.w or db:
            algorithm.gradients(dy, x, w, dx, dw, *db)
        if need.x:
            self.put(xp, dx, out_x)
        if need.w:
            self.put(xp, dw, out_w)


@dataclass(frozen=True)
class Deconvolution(Bilinear):
    """The transpose of Convolution with respect to x, plus b.

    x (N, F, *O), w (F, C / group, *K), b (C,) or None -> y (N, C, *lengths).
    """

    lengths: tuple[int, ...]

    cuda = cpu = "convolution.Deconvolution"

    def setup(self, x: Spec, w: Spec, b: Spec | None = None) -> Spec:
        xs, ws = self.first_shape(x.shape), self.first_shape(w.shape)
        group = self.geometry.group
        if xs[1] % group:
            raise ShapeError(
                f"[deconvolution] group is {group} but x {x.shape} has {xs[1]} channels; it must "
                "divide them"
            )
        if xs[1] != ws[0]:
            raise ShapeError(
                f"[deconvolution] weight expects {ws[0]} input channels but x has {xs[1]}; pass a "
                f"weight of shape {self.last_shape((xs[1], ws[1], *ws[2:]))}"
            )
        channels = ws[1] * group
        if b is not None and b.shape != (channels,):
            raise ShapeError(
                f"[deconvolution] bias has shape {b.shape} but weight {w.shape} with group "
                f"{group} needs ({channels},)"
            )
        if self.geometry.results(self.lengths, ws[2:]) != xs[2:]:
            raise ShapeError(
                f"[deconvolution] an output of {self.lengths} does not belong to x's {xs[2:]}"
            )
        return Spec(self.last_shape((xs[0], channels, *self.lengths)), x.dtype)

    def forward(self, xp: Any, x: Any, w: Any, b: Any = None, *, out: Any = None) -> Any:
        x, w = self.first(xp, x), self.first(xp, w)
        shape = (len(x), w.shape[1] * self.geometry.group, *self.lengths)
        y, out = self.room(xp, shape, x.dtype, out)
        self.algorithm(xp, shape, w.shape, x.dtype).gradients(x, None, w, y, None)
        if b is not None:
            y += b.reshape(-1, *[1] * len(self.lengths))
        return self.put(xp, y, out)

    def grad_x(self, xp: Any, dy: Any, w: Any) -> Any:
        return xp.call(Convolution.of(self.geometry, self.channel_last), dy, w, None)

    def grad_w(self, xp: Any, dy: Any, x: Any, w_shape: Any) -> Any:
        kernel = self.first_shape(w_shape)[2:]
        return xp.call(FilterGradient.of(self.geometry, self.channel_last, kernel), x, dy)

    def grad_b(self, xp: Any, dy: Any) -> Any:
        return _channel_sum(xp, dy, self.channel_last)


@dataclass(frozen=True)
class FilterGradient(Bilinear):
    """dw of Convolution: dy (N, F, *O), x (N, C, *S) -> dw (F, C / group, *kernel)."""

    kernel: tuple[int, ...]

    cuda = cpu = "convolution.FilterGradient"
    outputs = ("v",)  # its gradient is dv: dy is an input here

    def _shape(self, dy: Any, x: Any) -> tuple[int, ...]:
        channels = self.first_shape(x.shape)[1] // self.geometry.group
        return (self.first_shape(dy.shape)[1], channels, *self.kernel)

    def setup(self, dy: Spec, x: Spec) -> Spec:
        return Spec(self.last_shape(self._shape(dy, x)), dy.dtype)

    def forward(self, xp: Any, dy: Any, x: Any, *, out: Any = None) -> Any:
        shape = self._shape(dy, x)
        dy, x = self.first(xp, dy), self.first(xp, x)
        dw, out = self.room(xp, shape, dy.dtype, out)
        self.algorithm(xp, x.shape, shape, dy.dtype).gradients(dy, x, None, None, dw)
        return self.put(xp, dw, out)

    def grad_dy(self, xp: Any, dv: Any, x: Any) -> Any:
        return xp.call(Convolution.of(self.geometry, self.channel_last), x, dv, None)

    def grad_x(self, xp: Any, dv: Any, dy: Any, x_shape: Any) -> Any:
        lengths = self.first_shape(x_shape)[2:]
        return xp.call(Deconvolution.of(self.geometry, self.channel_last, lengths), dy, dv, None)


def _channel_sum(xp: Any, dy: Any, channel_last: bool) -> Any:
    axes = range(dy.ndim - 1) if channel_last else (0, *range(2, dy.ndim))
    return xp.sum(dy, tuple(axes))


@function_api
def convolution(
    x: Any,
    weight: Any,
    bias: Any = None,
    base_axis: int = 1,
    pad: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    group: int = 1,
    channel_last: bool = False,
) -> Any:
    """N-dimensional convolution (cross-correlation) with bias.

    y[n, f, o] = b[f] + sum over c, k of x[n, c, o * stride + k * dilation - pad] w[f, c, k]

    Args:
        x: (B_1, ..., B_base_axis, C, *S), or with C last if channel_last.
        weight: (F, C / group, *K), or (F, *K, C / group) if channel_last.
        bias: (F,) or None.
        base_axis: number of batch axes.
        pad, stride, dilation: per spatial axis, in elements; default 0, 1, 1.
        group: number of groups into which channels are divided.
    Returns: (B_1, ..., F, *O), O = (S + 2 pad - dilation (K - 1) - 1) // stride + 1.
    Raises: ShapeError where channels or kernel do not fit.

    >>> import distnn as nn, distnn.functions as F
    >>> F.convolution(nn.Variable((2, 3, 8, 8)), nn.Variable((4, 3, 3, 3)), pad=(1, 1)).shape
    (2, 4, 8, 8)
    """
    geometry, batch = _geometry(
        "convolution", x, weight, bias, base_axis, pad, stride, dilation, group
    )
    x = _one_batch_axis(x, batch)
    y = Convolution.of(geometry, bool(channel_last))(x, weight, bias)
    return _batch_axes(y, batch)


@function_api
def deconvolution(
    x: Any,
    weight: Any,
    bias: Any = None,
    base_axis: int = 1,
    pad: Sequence[int] | None = None,
    stride: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    group: int = 1,
    channel_last: bool = False,
    output_padding: Sequence[int] | None = None,
) -> Any:
    """Transposed convolution with bias: the adjoint of `convolution` with respect to its input.

    Args:
        x: (B_1, ..., B_base_axis, F, *O), or with F last if channel_last.
        weight: (F, C / group, *K), or (F, *K, C / group) if channel_last.
        bias: (C,) or None.
        output_padding: added to the output's length at one side, per spatial axis; less than the
            stride.
    Returns: (B_1, ..., C, *S), S = stride (O - 1) + dilation (K - 1) + 1 - 2 pad + output_padding.
    Raises: ShapeError where channels do not fit.

    >>> import distnn as nn, distnn.functions as F
    >>> F.deconvolution(nn.Variable((2, 4, 8, 8)), nn.Variable((4, 3, 3, 3))).shape
    (2, 3, 10, 10)
    """
    geometry, batch = _geometry(
        "deconvolution", x, weight, bias, base_axis, pad, stride, dilation, group
    )
    base_axis = len(batch)
    kernel = weight.shape[1:-1] if channel_last else weight.shape[2:]
    extra = per_axis("deconvolution", "output_padding", output_padding, len(kernel), 0)
    start = base_axis if channel_last else base_axis + 1
    lengths = tuple(
        s * (n - 1) + d * (k - 1) + 1 - 2 * p + e
        for n, k, p, s, d, e in zip(
            x.shape[start : start + len(kernel)],
            kernel,
            geometry.pad,
            geometry.stride,
            geometry.dilation,
            extra,
            strict=True,
        )
    )
    if any(e >= s for e, s in zip(extra, geometry.stride, strict=True)):
        raise ArgumentError(
            f"[deconvolution] output_padding {extra} must be smaller than stride {geometry.stride}"
        )
    if min(lengths) < 1 or min(kernel) < 1:
        raise ShapeError(
            f"[deconvolution] the kernel {kernel} with pad {geometry.pad} leaves an output of "
            f"{lengths}; use less pad or a larger kernel"
        )
    x = _one_batch_axis(x, batch)
    y = Deconvolution.of(geometry, bool(channel_last), lengths)(x, weight, bias)
    return _batch_axes(y, batch)


def _geometry(
    function: str,
    x: Any,
    w: Any,
    b: Any,
    base_axis: int,
    pad: Any,
    stride: Any,
    dilation: Any,
    group: int,
) -> tuple[Geometry, tuple[int, ...]]:
    """The checked geometry, and the batch axes of x."""
    shape, spatial = shape_of(function, "x", x), len(shape_of(function, "weight", w)) - 2
    if b is not None:
        shape_of(function, "bias", b)
    base_axis = whole_number(function, "base_axis", base_axis)
    group = whole_number(function, "group", group)
    if spatial < 1:
        raise ShapeError(
            f"[{function}] weight has shape {w.shape}; it needs two axes for channels and one for "
            "each spatial axis"
        )
    if base_axis < 0 or len(shape) != base_axis + 1 + spatial:
        raise ShapeError(
            f"[{function}] x has shape {shape}; with base_axis {base_axis} and weight "
            f"{w.shape} it needs {base_axis} batch axes, channels and {spatial} spatial axes"
        )
    if group < 1:
        raise ArgumentError(f"[{function}] group is {group}; pass 1 or more")
    geometry = Geometry(
        per_axis(function, "pad", pad, spatial, 0),
        per_axis(function, "stride", stride, spatial, 1, least=1),
        per_axis(function, "dilation", dilation, spatial, 1, least=1),
        group,
    )
    return geometry, shape[:base_axis]


def _one_batch_axis(x: Any, batch: tuple[int, ...]) -> Any:
    return x if len(batch) == 1 else _reshaped(x, (int(np.prod(batch)), *x.shape[len(batch) :]))


def _batch_axes(y: Any, batch: tuple[int, ...]) -> Any:
    return y if len(batch) == 1 else _reshaped(y, (*batch, *y.shape[1:]))


def _reshaped(x: Any, shape: tuple[int, ...]) -> Any:
    from .shaping import reshape

    return reshape(x, shape)
