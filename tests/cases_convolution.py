"""Rows for convolution and its transpose, with the definition as loops over pixels and taps."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from cases_row import Case, Input

import distnn.functions as F

Ints = Sequence[int]


def convolution(
    x: Any,
    w: Any,
    b: Any = None,
    pad: Ints = (),
    stride: Ints = (),
    dilation: Ints = (),
    group: int = 1,
) -> Any:
    """y[n, f, o] = b[f] + sum over c, k of x[n, c, o stride + k dilation - pad] w[f, c, k]."""
    kernel = w.shape[2:]
    pad, stride, dilation = completed(len(kernel), pad, stride, dilation)
    padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in pad)])
    lengths = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(padded.shape[2:], kernel, stride, dilation, strict=True)
    ]
    filters, channels = w.shape[0] // group, w.shape[1]
    y = np.zeros((len(x), w.shape[0], *lengths))
    for o in itertools.product(*map(range, lengths)):
        window = padded[(..., *taps(o, kernel, stride, dilation))]
        for g in range(group):
            part = w[g * filters : (g + 1) * filters]
            seen = window[:, g * channels : (g + 1) * channels]
            result = seen.reshape(len(x), -1) @ part.reshape(filters, -1).T
            y[(slice(None), slice(g * filters, (g + 1) * filters), *o)] = result
    return y if b is None else y + b.reshape(-1, *[1] * len(kernel))


def deconvolution(
    x: Any,
    w: Any,
    b: Any = None,
    pad: Ints = (),
    stride: Ints = (),
    dilation: Ints = (),
    group: int = 1,
    output_padding: Ints = (),
) -> Any:
    """Each x[n, f, o] adds x[n, f, o] w[f, c, k] to y[n, c, o stride + k dilation - pad]."""
    kernel = w.shape[2:]
    pad, stride, dilation = completed(len(kernel), pad, stride, dilation)
    extra = output_padding or [0] * len(kernel)
    lengths = [
        s * (n - 1) + d * (k - 1) + 1 + e
        for n, k, s, d, e in zip(x.shape[2:], kernel, stride, dilation, extra, strict=True)
    ]
    filters, channels = w.shape[0] // group, w.shape[1]
    padded = np.zeros((len(x), channels * group, *lengths))
    for o in itertools.product(*map(range, x.shape[2:])):
        window = padded[(..., *taps(o, kernel, stride, dilation))]
        for g in range(group):
            part = w[g * filters : (g + 1) * filters].reshape(filters, -1)
            seen = x[(slice(None), slice(g * filters, (g + 1) * filters), *o)]
            result = (seen @ part).reshape(len(x), channels, *kernel)
            window[:, g * channels : (g + 1) * channels] += result
    cut = (slice(p, n - p) for p, n in zip(pad, lengths, strict=True))
    y = padded[(..., *cut)]
    return y if b is None else y + b.reshape(-1, *[1] * len(kernel))


def taps(o: Ints, kernel: Ints, stride: Ints, dilation: Ints) -> list[slice]:
    """The elements that the window of result o reads, along each axis."""
    return [
        slice(i * s, i * s + d * (k - 1) + 1, d)
        for i, k, s, d in zip(o, kernel, stride, dilation, strict=True)
    ]


def completed(ndim: int, pad: Ints, stride: Ints, dilation: Ints) -> tuple[Ints, Ints, Ints]:
    return pad or [0] * ndim, stride or [1] * ndim, dilation or [1] * ndim


def first(x: Any) -> Any:
    """An array with the channels after the batch axis instead of at the end."""
    return np.moveaxis(x, -1, 1)


def row(
    name: str,
    note: str,
    x: Ints,
    w: Ints,
    bias: int | None = None,
    base_axis: int = 1,
    channel_last: bool = False,
    rtol: float = 2e-6,
    empty: bool = False,
    **geometry: Any,
) -> Case:
    function = {"convolution": F.convolution, "deconvolution": F.deconvolution}[name]
    definition = {"convolution": convolution, "deconvolution": deconvolution}[name]
    arguments = dict(geometry)
    if base_axis != 1:
        arguments["base_axis"] = base_axis
    if channel_last:
        arguments["channel_last"] = True

    def ref(x: Any, w: Any, b: Any = None) -> Any:
        batch = x.shape[:base_axis]
        x = x.reshape(-1, *x.shape[base_axis:])
        if channel_last:
            y = np.moveaxis(definition(first(x), first(w), b, **geometry), 1, -1)
        else:
            y = definition(x, w, b, **geometry)
        return y.reshape(*batch, *y.shape[1:])

    shapes = [tuple(x), tuple(w)] + ([] if bias is None else [(bias,)])
    return Case(
        name,
        lambda *inputs: function(*inputs, **arguments),
        [Input(shape) for shape in shapes],
        ref,
        note,
        rtol=rtol,
        empty=[(0, *x[1:]), *shapes[1:]] if empty else None,
        half=np.prod(w[1:]) < 100,
    )


# fmt: off
CONVOLUTION = [
    row("convolution", "1-D", (2, 3, 9), (4, 3, 3), 4, empty=True),
    row("convolution", "1-D, everything", (2, 4, 11), (6, 2, 3), 6,
        pad=(2,), stride=(2,), dilation=(2,), group=2),
    row("convolution", "2-D", (2, 3, 6, 7), (4, 3, 3, 2), 4, empty=True),
    row("convolution", "no bias", (2, 3, 6, 7), (4, 3, 3, 2), empty=True),
    row("convolution", "pad", (2, 3, 5, 6), (4, 3, 3, 3), 4, pad=(1, 2)),
    row("convolution", "stride", (2, 3, 7, 8), (4, 3, 3, 3), 4, stride=(2, 3)),
    row("convolution", "stride leaves pixels out", (1, 2, 8, 9), (2, 2, 2, 2), stride=(3, 3)),
    row("convolution", "stride wider than the kernel", (1, 2, 7, 7), (2, 2, 1, 2), stride=(3, 3)),
    row("convolution", "dilation", (2, 3, 8, 9), (4, 3, 3, 2), 4, dilation=(2, 3)),
    row("convolution", "pad, stride and dilation", (2, 3, 8, 9), (4, 3, 3, 3), 4,
        pad=(2, 3), stride=(2, 3), dilation=(2, 1)),
    row("convolution", "groups", (2, 6, 5, 5), (4, 3, 3, 3), 4, pad=(1, 1), group=2),
    row("convolution", "a group a channel", (2, 4, 5, 5), (8, 1, 3, 3), 8, group=4),
    row("convolution", "3-D", (2, 2, 4, 5, 4), (3, 2, 2, 3, 2), 3, empty=True),
    row("convolution", "3-D, everything", (2, 4, 5, 6, 5), (4, 2, 2, 3, 2), 4,
        pad=(1, 0, 1), stride=(2, 1, 2), dilation=(1, 2, 2), group=2),
    row("convolution", "channel_last", (2, 6, 7, 3), (4, 3, 2, 3), 4, channel_last=True,
        empty=True),
    row("convolution", "channel_last, everything", (2, 8, 9, 4), (6, 3, 2, 2), 6,
        channel_last=True, pad=(1, 2), stride=(2, 2), dilation=(2, 1), group=2),
    row("convolution", "channel_last, 1-D", (2, 9, 3), (4, 3, 3), 4, channel_last=True),
    row("convolution", "base_axis 0", (3, 6, 7), (4, 3, 3, 2), 4, base_axis=0),
    row("convolution", "base_axis 2", (2, 2, 3, 6, 7), (4, 3, 3, 2), 4, base_axis=2, empty=True),
    row("convolution", "base_axis 2, channel_last", (2, 2, 6, 7, 3), (4, 3, 2, 3), 4,
        base_axis=2, channel_last=True),
    row("convolution", "1x1", (2, 3, 4, 5), (4, 3, 1, 1), 4, empty=True),
    row("convolution", "1x1 with groups", (2, 4, 4, 5), (6, 2, 1, 1), 6, group=2),
    row("convolution", "1x1 with stride", (2, 3, 5, 6), (4, 3, 1, 1), 4, stride=(2, 2)),
    row("convolution", "1x1 with pad", (2, 3, 3, 4), (4, 3, 1, 1), 4, pad=(1, 1)),
    row("convolution", "kernel as large as the map", (3, 2, 4, 5), (3, 2, 4, 5), 3),
    row("convolution", "kernel as large as the padded map", (3, 2, 3, 3), (3, 2, 5, 5), 3,
        pad=(1, 1)),
    row("convolution", "padding wider than the kernel", (1, 2, 3, 3), (2, 2, 2, 2), pad=(3, 3)),
    row("convolution", "3x3, few channels", (2, 3, 8, 8), (4, 3, 3, 3), 4, pad=(1, 1)),
    row("convolution", "many images", (40, 2, 12, 12), (3, 2, 5, 5), 3, pad=(2, 2)),
    # 3x3 with stride 1, many channels and small maps: Winograd (winograd.way).
    row("convolution", "Winograd 8x8", (2, 80, 8, 8), (72, 80, 3, 3), 72, pad=(1, 1), rtol=1e-5),
    row("convolution", "Winograd 7x5", (1, 120, 7, 5), (128, 120, 3, 3), 128, pad=(1, 1),
        rtol=1e-5),
    row("convolution", "Winograd 4x4", (3, 24, 4, 4), (20, 24, 3, 3), 20, pad=(1, 1), rtol=1e-5,
        empty=True),
    row("convolution", "Winograd, many images", (110, 24, 4, 4), (20, 24, 3, 3), 20, pad=(1, 1),
        rtol=1e-5),
    row("convolution", "Winograd, no bias", (3, 24, 4, 4), (20, 24, 3, 3), pad=(1, 1), rtol=1e-5),
    row("convolution", "Winograd, pad 0", (2, 40, 6, 6), (36, 40, 3, 3), 36, pad=(0, 0),
        rtol=1e-5),
    row("convolution", "Winograd, pad 2", (2, 40, 2, 2), (36, 40, 3, 3), 36, pad=(2, 2),
        rtol=1e-5),
    row("convolution", "Winograd, unequal pads", (2, 48, 4, 6), (36, 48, 3, 3), 36, pad=(1, 0),
        rtol=1e-5),
    row("convolution", "Winograd, channel_last", (2, 4, 4, 24), (20, 3, 3, 24), 20, pad=(1, 1),
        channel_last=True, rtol=1e-5),
    row("convolution", "3x3 and many channels, stride 2", (2, 24, 4, 4), (20, 24, 3, 3), 20,
        pad=(1, 1), stride=(2, 2), rtol=1e-5),
    row("convolution", "3x3 and many channels, dilation 2", (2, 24, 6, 6), (20, 24, 3, 3), 20,
        pad=(1, 1), dilation=(2, 2), rtol=1e-5),
    row("convolution", "3x3 and many channels, groups", (2, 48, 4, 4), (40, 24, 3, 3), 40,
        pad=(1, 1), group=2, rtol=1e-5),
]

DECONVOLUTION = [
    row("deconvolution", "1-D", (2, 3, 5), (3, 4, 3), 4, empty=True),
    row("deconvolution", "1-D, everything", (2, 4, 5), (4, 3, 3), 6,
        pad=(1,), stride=(3,), dilation=(2,), group=2, output_padding=(2,)),
    row("deconvolution", "2-D", (2, 3, 4, 5), (3, 4, 3, 2), 4, empty=True),
    row("deconvolution", "no bias", (2, 3, 4, 5), (3, 4, 3, 2), empty=True),
    row("deconvolution", "pad", (2, 3, 4, 5), (3, 4, 3, 4), 4, pad=(1, 2)),
    row("deconvolution", "stride", (2, 3, 3, 4), (3, 4, 3, 2), 4, stride=(2, 3)),
    row("deconvolution", "output_padding", (2, 3, 3, 4), (3, 4, 3, 3), 4, pad=(1, 1),
        stride=(2, 3), output_padding=(1, 2)),
    row("deconvolution", "dilation", (2, 3, 3, 4), (3, 4, 3, 2), 4, dilation=(2, 3)),
    row("deconvolution", "groups", (2, 6, 4, 4), (6, 2, 3, 3), 4, pad=(1, 1), group=2),
    row("deconvolution", "3-D", (2, 2, 3, 2, 3), (2, 3, 2, 3, 2), 3, empty=True),
    row("deconvolution", "3-D, everything", (2, 4, 3, 2, 3), (4, 2, 2, 3, 2), 4,
        pad=(1, 0, 1), stride=(2, 1, 2), dilation=(1, 2, 2), group=2),
    row("deconvolution", "channel_last", (2, 4, 5, 3), (3, 3, 2, 4), 4, channel_last=True),
    row("deconvolution", "channel_last, everything", (2, 4, 3, 4), (4, 3, 2, 3), 6,
        channel_last=True, pad=(1, 1), stride=(2, 3), dilation=(2, 1), group=2,
        output_padding=(1, 2)),
    row("deconvolution", "base_axis 0", (3, 4, 5), (3, 4, 3, 2), 4, base_axis=0),
    row("deconvolution", "base_axis 2", (2, 2, 3, 4, 5), (3, 4, 3, 2), 4, base_axis=2),
    row("deconvolution", "1x1", (2, 3, 4, 5), (3, 4, 1, 1), 4),
    row("deconvolution", "of a single pixel", (3, 2, 1, 1), (2, 3, 4, 5), 3),
    row("deconvolution", "Winograd", (3, 24, 4, 4), (24, 20, 3, 3), 20, pad=(1, 1), rtol=1e-5,
        empty=True),
    row("deconvolution", "Winograd, pad 0", (2, 40, 4, 4), (40, 36, 3, 3), 36, rtol=1e-5),
]
DEPTHWISE = [
    Case("depthwise_convolution",
         lambda x, w, b, m=m, a=arguments: F.depthwise_convolution(x, w, b, multiplier=m, **a),
         [Input((2, 3, 5, 6)), Input((3 * m, 3, 2)), Input((3 * m,))],
         lambda x, w, b, a=arguments: convolution(x, w[:, None], b, group=3, **a),
         f"multiplier {m}", empty=[(0, 3, 5, 6), (3 * m, 3, 2), (3 * m,)])
    for m, arguments in ((1, {}), (2, {"pad": (1, 2), "stride": (2, 1), "dilation": (1, 2)}))
]
# fmt: on

CASES = [*CONVOLUTION, *DECONVOLUTION, *DEPTHWISE]
