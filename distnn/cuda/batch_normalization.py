"""Batch normalization: statistics in one pass over memory, the normalization in a second.

Arrays are (A, C, B) blocks as on the CPU: images are A = N, B = H W; vectors and channels last are
B = 1. Each way there is one launch over the array, a small one where a channel has more elements
than one block reduces, and a second launch over the array.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cupy
import numpy as np

from ..formula import Formula
from ..formula_chain import Chain, Joined, Link
from ..twin import Twin
from . import channels, normalization_kernels
from .joined import IDENTITY
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
    joined: Joined,
    eps: float | None = None,
) -> None:
    """The outputs of a chain of y = gamma (x - mean) / deviation + beta.

    `spread` is the inverse deviation, or with `eps` the variance; like the mean it has the dtype
    of computing(). x is turned.
    """
    if not x.size:
        return
    dtype, (_, c, b) = x.dtype.char, layout.blocks
    lanes = lanes_of(c * b, dtype)
    blocks, sizes = channels.plan(layout.blocks, lanes)
    targets = [layout.target(out) for out in joined.outs]
    normalization_kernels.normalize(dtype, lanes, joined.chain)(
        blocks, THREADS, x, mean, spread, np.int32(eps is not None),
        np.dtype(computing(dtype)).type(eps or 0), *optional(x, beta, gamma),
        *map(layout.turned, joined.arrays), *targets, *parameters(dtype, joined), *sizes,
    )  # fmt: skip
    for target, out in zip(targets, joined.outs, strict=True):
        layout.put_back(target, out)


def input_gradient(
    layout: Layout, x: Any, mean: Any, numbers: Any, dx: Any, joined: Joined
) -> None:
    """dx = a dy - (x - mean) b - c, if wanted, where dy is a chain's first output; and the others.

    x and the chain's arrays are turned.
    """
    if not x.size:
        return
    dtype, (_, c, b) = x.dtype.char, layout.blocks
    lanes = lanes_of(c * b, dtype)
    blocks, sizes = channels.plan(layout.blocks, lanes)
    outs = [*([] if dx is None else [dx]), *joined.outs]
    targets = [layout.target(out) for out in outs]
    of_x, *others = targets if dx is not None else (None, *targets)
    normalization_kernels.input_gradient(dtype, lanes, joined.chain)(
        blocks, THREADS, x, mean, numbers, np.int64(c), *optional(x, of_x),
        *joined.arrays, *others, *parameters(dtype, joined), *sizes,
    )  # fmt: skip
    for target, out in zip(targets, outs, strict=True):
        layout.put_back(target, out)


def parameters(dtype: str, joined: Joined) -> list[Any]:
    """Of a chain, as the kernels take them."""
    return normalization_kernels.settings(dtype, joined.chain)(*joined.numbers)


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
    joined: Joined,
    decay_rate: float,
    eps: float,
    results: Sequence[Any],
) -> Any:
    """What twins with batch statistics do; `results` are those after y, which `joined` writes."""
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
    normalize(layout, x, centre, inverse, beta, gamma, joined)
    return (*results, *updated)


def backward(
    function: Any,
    need: Any,
    joined: Joined,
    dmean: Any,
    dvariance: Any,
    x: Any,
    gamma: Any,
    mean: Any,
    inverse: Any,
    out: Any,
) -> None:
    """What twins with batch statistics do; the first output of `joined` is the gradient of y."""
    layout = Layout(function, x.shape)
    x = layout.turned(x)
    joined = joined._replace(arrays=[layout.turned(a) for a in joined.arrays])
    dtype, c = x.dtype.char, layout.blocks[1]
    numbers = cupy.empty(3 * c, computing(dtype))
    targets = (out.beta if need.beta else None, out.gamma if need.gamma else None)
    normalization_kernels.gradient_numbers(dtype, joined.chain).channels(
        (x, mean, *joined.arrays, *parameters(dtype, joined)),
        (
            inverse, *optional(x, gamma, dmean, dvariance), np.float64(layout.count),
            np.int64(c), *optional(x, *targets), numbers,
        ),
        *layout.blocks,
    )  # fmt: skip
    if need.x or joined.outs:
        input_gradient(layout, x, mean, numbers, out.x if need.x else None, joined)


def alone(dy: Any, like: Any) -> Joined:
    """dy, or zeros like an array where there is none, as it is."""
    return Joined(IDENTITY, (cupy.zeros_like(like) if dy is None else dy,), (), ())


class BatchNormalization(Twin):
    """batch_normalization.BatchNormalization; it takes every chain (see fusion.py)."""

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
        y, *results = memory(self.function, x, beta, gamma, mean, variance) if out is None else out
        joined, options = Joined(IDENTITY, (), (), (y,)), (decay_rate, eps, results)
        return (y, *forward(self.function, x, beta, gamma, mean, variance, joined, *options))

    def joins(self, chain: Chain) -> bool:
        return True

    def forward_joined(
        self,
        xp: Any,
        x: Any,
        beta: Any,
        gamma: Any,
        mean: Any,
        variance: Any,
        *,
        joined: Joined,
        decay_rate: float,
        eps: float,
        out: Any,
    ) -> Any:
        options = (decay_rate, eps, out[1:])
        return (None, *forward(self.function, x, beta, gamma, mean, variance, joined, *options))

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
        statistics = (dbatch_mean, dbatch_variance, x, gamma, centre, inverse_deviation)
        backward(self.function, need, alone(dy, x), *statistics, out)

    def joins_backward(self, chain: Chain) -> bool:
        return True

    def backward_joined(
        self,
        xp: Any,
        need: Any,
        dy: None,
        dbatch_mean: Any,
        dbatch_variance: Any,
        x: Any,
        gamma: Any,
        centre: Any,
        inverse_deviation: Any,
        *,
        joined: Joined,
        out: Any,
    ) -> None:
        statistics = (dbatch_mean, dbatch_variance, x, gamma, centre, inverse_deviation)
        backward(self.function, need, joined, *statistics, out)


def memory(function: Any, *inputs: Any) -> list[Any]:
    """Memory for the results of a function."""
    return [cupy.empty(spec.shape, spec.dtype) for spec in function.setup(*inputs)]


# What the function of a residual block computes of y, and of dy where its result y is positive.
_SUM = Link("s", Formula("y + z", ("y", "z"), ()).tree)
_RELU = Chain([Link("r", Formula("maximum(y, 0)", ("y",), ()).tree)], ("y",), (), ("r",))
_ADD_RELU = Chain(
    [_SUM, Link("r", Formula("maximum(s, 0)", ("s",), ()).tree)], ("y", "z"), (), ("r",)
)
_MASK = Link("r", Formula("where(y > 0, dy, 0)", ("dy", "y"), ()).tree)
_PASSED, _PASSED_ON = (Chain([_MASK], ("dy", "y"), (), ("r",) * n) for n in (1, 2))


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
        y, *results = memory(self.function, x, beta, gamma, mean, variance) if out is None else out
        joined = Joined(_RELU, (), (), (y,)) if z is None else Joined(_ADD_RELU, (z,), (), (y,))
        options = (decay_rate, eps, results)
        return (y, *forward(self.function, x, beta, gamma, mean, variance, joined, *options))

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
        dy = cupy.zeros_like(x) if dy is None else dy
        with_z = getattr(need, "z", False)
        outs = (out.z,) if with_z else ()
        joined = Joined(_PASSED_ON if with_z else _PASSED, (dy, y), (), outs)
        statistics = (dbatch_mean, dbatch_variance, x, gamma, centre, inverse_deviation)
        backward(self.function, need, joined, *statistics, out)


class FixedNormalization(Twin):
    """batch_normalization.FixedNormalization; it takes every chain (see fusion.py)."""

    def forward(
        self, xp: Any, x: Any, beta: Any, gamma: Any, mean: Any, variance: Any, *, eps: float
    ) -> Any:
        y = cupy.empty_like(x)
        joined = Joined(IDENTITY, (), (), (y,))
        self.forward_joined(xp, x, beta, gamma, mean, variance, joined=joined, eps=eps)
        return y

    def joins(self, chain: Chain) -> bool:
        return True

    def forward_joined(
        self,
        xp: Any,
        x: Any,
        beta: Any,
        gamma: Any,
        mean: Any,
        variance: Any,
        *,
        joined: Joined,
        eps: float,
    ) -> None:
        layout = Layout(self.function, x.shape)
        mean, variance = (a.astype(computing(x.dtype.char), copy=False) for a in (mean, variance))
        normalize(layout, layout.turned(x), mean, variance, beta, gamma, joined, eps)
