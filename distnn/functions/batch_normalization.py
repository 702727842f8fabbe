"""Batch normalization, with batch statistics (training) and with running ones (inference)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..calling import function_api
from ..errors import ArgumentError, ShapeError
from ..formula_chain import Chain, Joined
from ..function import Function, Spec
from .channels import Channels
from .normalization_chains import combine_chain, products_of_chain, scale_chain
from .precision import wide
from .shapes import axes_of, number, shape_of


@dataclass(frozen=True)
class Normalization(Function, by_signature=False):
    """What all share: the channel axes, and how statistics lie in memory."""

    axes: tuple[int, ...]

    optional = ("beta", "gamma")

    def stat_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(n if i in self.axes else 1 for i, n in enumerate(shape))

    def summed(self, ndim: int) -> tuple[int, ...]:
        return tuple(i for i in range(ndim) if i not in self.axes)

    def check(self, x: Spec, **statistics: Spec | None) -> tuple[int, ...]:
        shape = self.stat_shape(x.shape)
        for name, spec in statistics.items():
            if spec is not None and spec.shape != shape:
                raise ShapeError(
                    f"[{self.name}] {name} has shape {spec.shape} but x {x.shape} with "
                    f"axes {list(self.axes)} needs {shape}"
                )
        return shape

    def blocks(self, shape: tuple[int, ...]) -> tuple[int, int, int] | None:
        """x as (A, C, B) without moving data; None where the channel axes are not neighbours."""
        first, last = self.axes[0], self.axes[-1]
        if last - first + 1 != len(self.axes):
            return None
        return (
            math.prod(shape[:first]),
            math.prod(shape[first : last + 1]),
            math.prod(shape[last + 1 :]),
        )

    def grad_beta(self, xp: Any, dy: Any) -> Any:
        return xp.sum(dy, self.summed(len(dy.shape)), True)


@dataclass(frozen=True)
class BatchStatistics(Normalization, by_signature=False):
    """Normalization by the statistics of batches, which update the running ones.

    In half precision the statistics that are saved, and those that update the running ones, are
    float32: a channel's mean may be far larger than its deviation. Public results have the
    context's dtype.
    """

    outputs = ("y", "batch_mean", "batch_variance")
    saved: ClassVar[tuple[str, ...]] = ("centre", "inverse_deviation")
    updates = ("mean", "variance")
    recomputable = True

    def setup(
        self, x: Spec, beta: Spec | None, gamma: Spec | None, mean: Spec, variance: Spec
    ) -> tuple[Spec, ...]:
        shape = self.check(x, beta=beta, gamma=gamma, mean=mean, variance=variance)
        statistic, exact = Spec(shape, x.dtype), Spec(shape, wide(x.dtype))
        return Spec(x.shape, x.dtype), statistic, statistic, exact, exact

    def grad_gamma(
        self, xp: Any, dy: Any, x: Any, batch_mean: Any, batch_variance: Any, eps: float
    ) -> Any:
        normal = (x - batch_mean) * (batch_variance + eps) ** -0.5
        return xp.sum(dy * normal, self.summed(len(dy.shape)), True)


@dataclass(frozen=True)
class BatchNormalization(BatchStatistics):
    """y = gamma (x - mean) / sqrt(variance + eps) + beta with the batch's own mean and variance.

    Updates the running statistics: running = decay_rate running + (1 - decay_rate) batch, where the
    batch variance is the unbiased one.
    """

    cuda = "batch_normalization.BatchNormalization"

    def setup(
        self, x: Spec, beta: Spec | None, gamma: Spec | None, mean: Spec, variance: Spec
    ) -> tuple[Spec, ...]:
        specs = super().setup(x, beta, gamma, mean, variance)
        if math.prod(x.shape) == 0:
            raise ShapeError(
                f"[{self.name}] x has shape {x.shape}: an empty batch has no mean; use "
                "batch_stat=False"
            )
        return specs

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
        if out is None:
            out = tuple(xp.empty(s.shape, s.dtype) for s in self.setup(x, beta, gamma, mean, mean))
        y, *results = out
        centre, inverse_deviation = results[2:]
        channels = self.direct(xp, x)
        if channels is None:
            axes = self.summed(x.ndim)
            x = x.astype(centre.dtype, copy=False)
            count = x.size // centre.size
            centre[...] = xp.sum(x, axes, True) / count
            centred = x - centre
            spread = xp.sum(centred * centred, axes, True) / count
            inverse_deviation[...] = 1 / xp.sqrt(spread + eps)
            scaled = centred * inverse_deviation
            scaled = scaled if gamma is None else scaled * gamma
            y[...] = scaled if beta is None else scaled + beta
        else:
            spread = _statistics(channels, x, eps, centre, inverse_deviation)
            scale_and_shift(channels, x, centre, inverse_deviation, beta, gamma, y)
        return (y, *self._with_updates(x, spread, mean, variance, decay_rate, results))

    def direct(self, xp: Any, x: Any) -> Channels | None:
        """Work on x as it lies in memory; None where it has to be moved or widened first."""
        blocks = self.blocks(x.shape)
        return None if blocks is None or x.dtype != wide(x.dtype) else xp.channels(blocks)

    def _with_updates(
        self, x: Any, spread: Any, mean: Any, variance: Any, decay_rate: float, results: list
    ) -> tuple:
        """The results after y, and the new running statistics."""
        batch_mean, batch_variance, centre, _ = results
        exact = centre.dtype
        count = x.size // centre.size
        batch_mean[...], batch_variance[...] = centre, spread
        unbiased = count / max(count - 1, 1)
        return (
            *results,
            decay_rate * mean.astype(exact, copy=False) + (1 - decay_rate) * centre,
            decay_rate * variance.astype(exact, copy=False) + (1 - decay_rate) * unbiased * spread,
        )

    # Batch normalization takes every chain (see fusion.py).

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
        results = list(out[1:])
        channels = self.direct(xp, x)
        if channels is None:
            y = xp.empty(x.shape, x.dtype)
            y, *results = BatchNormalization.forward(
                self, xp, x, beta, gamma, mean, variance,
                decay_rate=decay_rate, eps=eps, out=(y, *results),
            )  # fmt: skip
            xp.evaluate_chain(joined.chain, [y, *joined.arrays], joined.numbers, joined.outs)
            return (None, *results)
        centre, inverse = results[2:]
        spread = _statistics(channels, x, eps, centre, inverse)
        scale = inverse if gamma is None else inverse * gamma
        scale_chain(xp, channels, x, centre, scale, beta, joined)
        return (None, *self._with_updates(x, spread, mean, variance, decay_rate, results))

    def joins_backward(self, chain: Chain) -> bool:
        return True

    def backward_joined(
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
        joined: Joined,
        out: Any,
    ) -> None:
        channels = self.direct(xp, x)
        found = None if channels is None else products_of_chain(xp, channels, joined, x, centre)
        if channels is None or found is None:
            dy = xp.empty(x.shape, x.dtype)
            xp.evaluate_chain(joined.chain, joined.arrays, joined.numbers, (dy, *joined.outs))
            statistics = (centre, inverse_deviation)
            BatchNormalization.backward(
                self, xp, need, dy, dbatch_mean, dbatch_variance, x, gamma, *statistics, out=out
            )
            return
        dbeta, dgamma = found
        dgamma *= inverse_deviation.reshape(-1)
        sums = (dbeta, dgamma, dbatch_mean, dbatch_variance)
        numbers = gradient_numbers(gamma, inverse_deviation, sums, channels.count, x.dtype)
        combine_chain(xp, channels, joined, x, centre, numbers, out.x if need.x else None)
        if need.beta:
            out.beta[...] = dbeta.reshape(centre.shape)
        if need.gamma:
            out.gamma[...] = dgamma.reshape(centre.shape)

    # With x' = (x - mean) / deviation and m elements a channel:
    # dx = gamma / deviation (dy - sum dy / m - x' sum(dy x') / m)
    #      + dmean / m + 2 (x - mean) dvariance / m

    def grad_x(
        self,
        xp: Any,
        dy: Any,
        dbatch_mean: Any,
        dbatch_variance: Any,
        x: Any,
        gamma: Any,
        batch_mean: Any,
        batch_variance: Any,
        eps: float,
    ) -> Any:
        axes = self.summed(len(x.shape))
        m = math.prod(x.shape) // math.prod(batch_mean.shape)
        inverse = (batch_variance + eps) ** -0.5
        centred = x - batch_mean
        normal = centred * inverse
        dnormal = dy if gamma is None else dy * gamma
        mean_d = xp.sum(dnormal, axes, True) * (1 / m)
        mean_dn = xp.sum(dnormal * normal, axes, True) * (1 / m)
        dx = inverse * (dnormal - mean_d - normal * mean_dn)
        return dx + dbatch_mean * (1 / m) + centred * (dbatch_variance * (2 / m))

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
        shape = centre.shape
        blocks = self.blocks(x.shape)
        order = tuple(range(x.ndim))
        if blocks is None:
            order = (*self.axes, *self.summed(x.ndim))
            blocks = (1, centre.size, x.size // centre.size)
        if dy is None:
            dy = np.zeros(x.shape, x.dtype)
        # Sums of half precision are made in float32.
        exact = wide(x.dtype)
        direct = order == tuple(range(x.ndim)) and exact == x.dtype
        dx = out.x
        if not direct:
            dy, x = (np.array(a.transpose(order), exact, order="C") for a in (dy, x))
            dx = None if dx is None else xp.empty(x.shape, exact)
        channels, others = xp.channels(blocks), (dbatch_mean, dbatch_variance)
        dbeta, dgamma = _gradient(channels, dy, x, gamma, centre, inverse_deviation, *others, dx)
        if need.beta:
            out.beta[...] = dbeta.reshape(shape)
        if need.gamma:
            out.gamma[...] = dgamma.reshape(shape)
        if not direct and dx is not None:
            out.x[...] = dx.transpose(np.argsort(order))


def _statistics(channels: Channels, x: Any, eps: float, mean: Any, inverse: Any) -> np.ndarray:
    """Write mean and inverse deviation; returns the variance."""
    total, squares = channels.totals(x.reshape(channels.shape))
    mean[...] = channels.mean(total).reshape(mean.shape)
    variance = channels.mean(squares).astype(x.dtype).reshape(mean.shape)
    inverse[...] = 1 / np.sqrt(variance.astype(np.float64) + eps)
    return variance


def scale_and_shift(
    channels: Channels, x: Any, mean: Any, inverse: Any, beta: Any, gamma: Any, y: Any
) -> None:
    """y = gamma (x - mean) inverse + beta."""
    x, y = x.reshape(channels.shape), y.reshape(channels.shape)
    channels.scale(x, mean, inverse if gamma is None else inverse * gamma, beta, y)


def _gradient(
    channels: Channels,
    dy: Any,
    x: Any,
    gamma: Any,
    mean: Any,
    inverse: Any,
    dmean: Any,
    dvariance: Any,
    dx: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Write dx, if wanted; return the sums of dy and of dy x', which are dbeta and dgamma."""
    dy, x = dy.reshape(channels.shape), x.reshape(channels.shape)
    dbeta, dgamma = gradient_sums(channels, dy, x, mean, inverse)
    if dx is not None:
        sums = (dbeta, dgamma, dmean, dvariance)
        input_gradient(channels, dy, x, gamma, mean, inverse, sums, channels.count, dx)
    return dbeta, dgamma


def gradient_sums(
    channels: Channels, dy: Any, x: Any, mean: Any, inverse: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Per channel, in float64, the sums of dy and of dy x'."""
    dbeta, dgamma = channels.products(dy, x, mean)
    dgamma *= inverse.reshape(-1)
    return dbeta, dgamma


def input_gradient(
    channels: Channels,
    dy: Any,
    x: Any,
    gamma: Any,
    mean: Any,
    inverse: Any,
    sums: tuple[Any, Any, Any, Any],
    m: float,
    dx: Any,
) -> None:
    """Write dx of a batch of m elements a channel; `sums` over it: dy, dy x', dmean, dvariance."""
    numbers = gradient_numbers(gamma, inverse, sums, m, x.dtype)
    channels.combine(dy, x, mean, numbers, dx.reshape(channels.shape))


def gradient_numbers(
    gamma: Any, inverse: Any, sums: tuple[Any, Any, Any, Any], m: float, dtype: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(a, b, c) per channel in dx = dy a - (x - mean) b - c; `sums` as for input_gradient."""
    dbeta, dgamma, dmean, dvariance = sums
    scale = (inverse if gamma is None else inverse * gamma).reshape(-1).astype(np.float64)
    of_centred = scale * inverse.reshape(-1) * dgamma / m
    constant = scale * dbeta / m
    if dvariance is not None:
        of_centred -= 2 / m * dvariance.reshape(-1)
    if dmean is not None:
        constant -= dmean.reshape(-1) / m
    a, b, c = (v.astype(wide(dtype)) for v in (scale, of_centred, constant))
    return a, b, c


@dataclass(frozen=True)
class FixedNormalization(Normalization):
    """y = gamma (x - mean) / sqrt(variance + eps) + beta with given statistics."""

    name = "batch_normalization"
    cuda = "batch_normalization.FixedNormalization"

    def setup(
        self, x: Spec, beta: Spec | None, gamma: Spec | None, mean: Spec, variance: Spec
    ) -> Spec:
        self.check(x, beta=beta, gamma=gamma, mean=mean, variance=variance)
        return Spec(x.shape, x.dtype)

    def forward(
        self, xp: Any, x: Any, beta: Any, gamma: Any, mean: Any, variance: Any, *, eps: float
    ) -> Any:
        y = (x - mean) * (variance + eps) ** -0.5
        y = y if gamma is None else y * gamma
        return y if beta is None else y + beta

    def grad_x(self, xp: Any, dy: Any, gamma: Any, variance: Any, eps: float) -> Any:
        inverse = (variance + eps) ** -0.5
        return dy * (inverse if gamma is None else inverse * gamma)

    def grad_gamma(self, xp: Any, dy: Any, x: Any, mean: Any, variance: Any, eps: float) -> Any:
        normal = (x - mean) * (variance + eps) ** -0.5
        return xp.sum(dy * normal, self.summed(len(dy.shape)), True)

    def grad_mean(self, xp: Any, dy: Any, gamma: Any, variance: Any, eps: float) -> Any:
        inverse = (variance + eps) ** -0.5
        total = xp.sum(dy, self.summed(len(dy.shape)), True)
        return total * -(inverse if gamma is None else inverse * gamma)

    def grad_variance(
        self, xp: Any, dy: Any, x: Any, gamma: Any, mean: Any, variance: Any, eps: float
    ) -> Any:
        total = xp.sum(dy * (x - mean), self.summed(len(dy.shape)), True)
        cubed = (variance + eps) ** -1.5 * -0.5
        return total * (cubed if gamma is None else cubed * gamma)


@function_api
def batch_normalization(
    x: Any,
    beta: Any,
    gamma: Any,
    mean: Any,
    variance: Any,
    axes: Sequence[int] = (1,),
    decay_rate: float = 0.9,
    eps: float = 1e-5,
    batch_stat: bool = True,
    output_stat: bool = False,
) -> Any:
    """Batch normalization: y = gamma (x - mean) / sqrt(variance + eps) + beta.

    With `batch_stat` mean and variance are those of the batch, over all axes but `axes`, and the
    running statistics are updated in place:
    running = decay_rate running + (1 - decay_rate) batch, with the unbiased batch variance.

    Args:
        x: (N, C, ...) array.
        beta, gamma: shift and scale, of x's number of axes, length 1 except at `axes`; or None.
        mean, variance: running statistics, of the same shape.
        axes: the axes that have their own statistics.
        decay_rate: weight of the old running statistics.
        eps: added to the variance.
        batch_stat: False uses the running statistics, which are then constants of no gradient
            unless they need one.
        output_stat: return (y, batch mean, batch variance).

    Ioffe & Szegedy, "Batch normalization", arXiv:1502.03167.

    >>> import distnn as nn, distnn.functions as F
    >>> stats = [nn.Variable((1, 3, 1, 1)) for _ in range(4)]
    >>> F.batch_normalization(nn.Variable((8, 3, 4, 4)), *stats).shape
    (8, 3, 4, 4)
    """
    where, decay_rate, eps = checked(
        "batch_normalization", x, mean, variance, axes, decay_rate, eps, batch_stat, output_stat
    )
    if not batch_stat:
        return FixedNormalization.of(where)(x, beta, gamma, mean, variance, eps=eps)
    function = BatchNormalization.of(where)
    results = function(x, beta, gamma, mean, variance, decay_rate=decay_rate, eps=eps)
    return results if output_stat else results[0]


def checked(
    function: str,
    x: Any,
    mean: Any,
    variance: Any,
    axes: Sequence[int],
    decay_rate: float,
    eps: float,
    batch_stat: bool,
    output_stat: bool,
) -> tuple[tuple[int, ...], float, float]:
    """The arguments of a batch normalization, checked: axes from 0 on, decay_rate, eps."""
    shape = shape_of(function, "x", x)
    shape_of(function, "mean", mean)
    shape_of(function, "variance", variance)
    where = axes_of(function, axes, len(shape), "axes")
    if not where:
        raise ArgumentError(f"[{function}] axes is empty; pass the channel axis: axes=[1]")
    decay_rate = number(function, "decay_rate", decay_rate)
    eps = number(function, "eps", eps)
    if not 0 <= decay_rate <= 1:
        raise ArgumentError(f"[{function}] decay_rate is {decay_rate}; pass 0 to 1")
    if not eps >= 0:
        raise ArgumentError(f"[{function}] eps is {eps}; pass 0 or more")
    if output_stat and not batch_stat:
        raise ArgumentError(
            f"[{function}] output_stat=True returns batch statistics, which batch_stat=False does "
            "not compute; pass one of the two"
        )
    return where, decay_rate, eps
