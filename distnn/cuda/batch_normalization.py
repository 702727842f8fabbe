"""Batch normalization: statistics in one pass over memory, the normalization in a second.

Arrays are (A, C, B) blocks as on the CPU: images are A = N, B = H W; vectors and channels last are
B = 1. Each way there is one launch over the array, a small one where a channel has more elements
than one block reduces, and a second launch over the array.
"""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

from ..twin import Twin
from . import channels, normalization_kernels
from .kernels import THREADS, computing
from .numbers import lanes_of

Blocks = tuple[int, int, int]


class Layout:
    """How the arrays of a normalization lie in memory as (A, C, B) blocks.

    Where the channel axes are not neighbours, the arrays are turned first.
    """

    def __init__(self, function: Any, shape: tuple[int, ...]) -> None:
        blocks = function.blocks(shape)
        self.order: tuple[int, ...] | None = None
        self.shape = shape
        if blocks is None:
            self.order = (*function.axes, *function.summed(len(shape)))
            self.shape = tuple(shape[i] for i in self.order)
            count = int(np.prod(function.stat_shape(shape)))
            blocks = (1, count, int(np.prod(shape)) // max(count, 1))
        self.blocks: Blocks = blocks
        self.count = blocks[0] * blocks[2]

    def turned(self, x: Any) -> Any:
        """x as blocks; x itself where it lies so."""
        return x if self.order is None else cupy.ascontiguousarray(x.transpose(self.order))

    def target(self, y: Any) -> Any:
        """Memory for a result that `put_back` moves to y; y itself where it lies so."""
        return y if self.order is None else cupy.empty(self.shape, y.dtype)

    def put_back(self, target: Any, y: Any) -> None:
        if self.order is not None:
            y[...] = target.transpose(tuple(int(i) for i in np.argsort(self.order)))


def normalize(
    layout: Layout,
    x: Any,
    mean: Any,
    spread: Any,
    beta: Any,
    gamma: Any,
    y: Any,
    z: Any = None,
    relu: bool = False,
    eps: float | None = None,
) -> None:
    """y = gamma (x - mean) / deviation + beta, + z, relu.

    `spread` is the inverse deviation, or with `eps` the variance; like the mean it has the dtype
    of computing(). x and z are turned.
    """
    if not x.size:
        return
    _, c, b = layout.blocks
    lanes = lanes_of(c * b, x.dtype.char)
    run = normalization_kernels.normalize(x.dtype.char, lanes, relu, z is not None)
    blocks, sizes = channels.plan(layout.blocks, lanes)
    target = layout.target(y)
    number = np.dtype(computing(x.dtype.char)).type
    run(
        blocks, THREADS, x, mean, spread, np.int32(eps is not None), number(eps or 0),
        *optional(x, beta, gamma), target, *(() if z is None else (z,)), *sizes,
    )  # fmt: skip
    layout.put_back(target, y)


def input_gradient(
    layout: Layout, dy: Any, x: Any, mean: Any, y: Any, numbers: Any, dx: Any, dz: Any
) -> None:
    """dx = a dy - (x - mean) b - c and dz = dy, where they are wanted; dy where y > 0, if given."""
    if not x.size:
        return
    _, c, b = layout.blocks
    lanes = lanes_of(c * b, x.dtype.char)
    run = normalization_kernels.input_gradient(x.dtype.char, lanes, y is not None)
    blocks, sizes = channels.plan(layout.blocks, lanes)
    targets = [None if d is None else layout.target(d) for d in (dx, dz)]
    run(
        blocks, THREADS, dy, x, mean, *(() if y is None else (y,)), numbers, np.int64(c),
        *optional(x, *targets), *sizes,
    )  # fmt: skip
    for target, d in zip(targets, (dx, dz), strict=True):
        if d is not None:
            layout.put_back(target, d)


def optional(substitute: Any, *arrays: Any) -> tuple[Any, ...]:
    """Arrays, with a substitute for those that are None, and then which ones there are."""
    there = (np.int32(a is not None) for a in arrays)
    return (*(substitute if a is None else a for a in arrays), *there)


def forward(
    function: Any,
    x: Any,
    beta: Any,
    gamma: Any,
    mean: Any,
    variance: Any,
    z: Any,
    relu: bool,
    decay_rate: float,
    eps: float,
    out: Any,
) -> Any:
    """What both twins with batch statistics do."""
    if out is None:
        specs = function.setup(x, beta, gamma, mean, variance)
        out = tuple(cupy.empty(spec.shape, spec.dtype) for spec in specs)
    y, *results = out
    updated = [cupy.empty_like(results[-1]) for _ in range(2)]
    layout = Layout(function, x.shape)
    x = layout.turned(x)
    count = layout.count
    unbiased = (1 - decay_rate) * (count / max(count - 1, 1))
    number = np.dtype(computing(x.dtype.char)).type
    normalization_kernels.statistics(x.dtype.char).channels(
        (x,),
        (
            np.float64(count), np.float64(eps), np.float64(unbiased), number(decay_rate),
            number(1 - decay_rate), mean, variance, *results, *updated,
        ),
        *layout.blocks,
    )  # fmt: skip
    *_, centre, inverse = results
    z = None if z is None else layout.turned(z)
    normalize(layout, x, centre, inverse, beta, gamma, y, z, relu)
    return (*out, *updated)


def backward(
    function: Any,
    need: Any,
    dy: Any,
    dmean: Any,
    dvariance: Any,
    x: Any,
    gamma: Any,
    y: Any,
    mean: Any,
    inverse: Any,
    out: Any,
) -> None:
    """What both twins with batch statistics do; y, where relu follows, lets dy through."""
    need_z = y is not None and getattr(need, "z", False)
    layout = Layout(function, x.shape)
    dy = cupy.zeros(layout.shape, x.dtype) if dy is None else layout.turned(dy)
    x = layout.turned(x)
    y = None if y is None else layout.turned(y)
    c = layout.blocks[1]
    numbers = cupy.empty(3 * c, computing(x.dtype.char))
    targets = (out.beta if need.beta else None, out.gamma if need.gamma else None)
    normalization_kernels.gradient_numbers(x.dtype.char, y is not None).channels(
        (dy, x, mean, *(() if y is None else (y,))),
        (
            inverse, *optional(x, gamma, dmean, dvariance), np.float64(layout.count),
            np.int64(c), *optional(x, *targets), numbers,
        ),
        *layout.blocks,
    )  # fmt: skip
    if need.x or need_z:
        dx, dz = out.x if need.x else None, out.z if need_z else None
        input_gradient(layout, dy, x, mean, y, numbers, dx, dz)


class BatchNormalization(Twin):
    """batch_normalization.BatchNormalization."""

    def forward(
        self,
        xp: Any,
        x: Any,
        beta: Any,
        gamma: Any,
        mean: Any,
        variance: Any,
        *,
        decay_rate: float,
        eps: float,
        out: Any = None,
    ) -> Any:
        statistics = (mean, variance)
        return forward(
            self.function, x, beta, gamma, *statistics, None, False, decay_rate, eps, out
        )

    def relu(
        self, xp: Any, x: Any, beta: Any, gamma: Any, mean: Any, variance: Any, **options: Any
    ) -> Any:
        """`forward` and relu of its y, with the same bits; for plans that join the two."""
        return self.add_relu(xp, x, beta, gamma, mean, variance, None, **options)

    def add_relu(
        self,
        xp: Any,
        x: Any,
        beta: Any,
        gamma: Any,
        mean: Any,
        variance: Any,
        z: Any,
        *,
        decay_rate: float,
        eps: float,
        out: Any = None,
    ) -> Any:
        """`forward` and relu of y + z, with the same bits except in half precision."""
        statistics = (mean, variance)
        return forward(self.function, x, beta, gamma, *statistics, z, True, decay_rate, eps, out)

    def backward(
        self,
        xp: Any,
        need: Any,
        dy: Any,
        dbatch_mean: Any,
        dbatch_variance: Any,
        x: Any,
        gamma: Any,
        centre: Any,
        inverse_deviation: Any,
        *,
        out: Any,
    ) -> None:
        self.relu_backward(
            xp, need, dy, dbatch_mean, dbatch_variance, x, gamma, centre, inverse_deviation,
            y=None, out=out,
        )  # fmt: skip

    def relu_backward(
        self,
        xp: Any,
        need: Any,
        dy: Any,
        dbatch_mean: Any,
        dbatch_variance: Any,
        x: Any,
        gamma: Any,
        centre: Any,
        inverse_deviation: Any,
        *,
        y: Any,
        out: Any,
    ) -> None:
        """`backward` of what relu, with the result y, lets through of dy, with the same bits."""
        outer = (dy, dbatch_mean, dbatch_variance)
        backward(self.function, need, *outer, x, gamma, y, centre, inverse_deviation, out)


class FusedBatchNormalization(Twin):
    """fused_batch_normalization.FusedBatchNormalization."""

    def forward(
        self,
        xp: Any,
        x: Any,
        beta: Any,
        gamma: Any,
        mean: Any,
        variance: Any,
        z: Any = None,
        *,
        decay_rate: float,
        eps: float,
        out: Any = None,
    ) -> Any:
        statistics = (mean, variance)
        return forward(self.function, x, beta, gamma, *statistics, z, True, decay_rate, eps, out)

    def backward(
        self,
        xp: Any,
        need: Any,
        dy: Any,
        dbatch_mean: Any,
        dbatch_variance: Any,
        x: Any,
        gamma: Any,
        y: Any,
        centre: Any,
        inverse_deviation: Any,
        *,
        out: Any,
    ) -> None:
        outer = (dy, dbatch_mean, dbatch_variance)
        backward(self.function, need, *outer, x, gamma, y, centre, inverse_deviation, out)


class FixedNormalization(Twin):
    """batch_normalization.FixedNormalization."""

    def forward(
        self, xp: Any, x: Any, beta: Any, gamma: Any, mean: Any, variance: Any, *, eps: float
    ) -> Any:
        y = cupy.empty_like(x)
        layout = Layout(self.function, x.shape)
        mean, variance = (a.astype(computing(x.dtype.char), copy=False) for a in (mean, variance))
        normalize(layout, layout.turned(x), mean, variance, beta, gamma, y, eps=eps)
        return y
