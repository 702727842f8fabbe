"""Batch normalization whose batch is that of all ranks.

One message in forward: every rank gathers all ranks' counts, sums and sums of squares and merges
them in the order of the ranks, in float64, so all ranks hold the same statistics. One in backward:
the sums over the batch that dx needs. Both pass the communicator's queue, so where ranks call
different collectives all of them raise.

The gradient of x on a rank is that of the sum of all ranks' losses. The gradients of gamma and
beta are this rank's part of it, as those of all parameters: the all-reduce of gradients adds them.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..calling import function_api
from ..errors import ArgumentError, CommunicatorError, ShapeError
from ..function import Function, Spec
from ..transfer import array_module
from .batch_normalization import (
    BatchStatistics,
    FixedNormalization,
    checked,
    gradient_sums,
    input_gradient,
    scale_and_shift,
)
from .channels import Channels
from .precision import wide

if TYPE_CHECKING:
    from ..communicators.communicator import MultiProcessDataParallelCommunicator
    from ..communicators.header import Agreement
    from ..communicators.transport import Transport


@dataclass(frozen=True)
class Ranks:
    """A group of a communicator, as an attribute of functions: equal if it is the same object.

    The reference is weak: plans are remembered, and must not keep a communicator alive.
    """

    communicator: weakref.ref[MultiProcessDataParallelCommunicator]
    group: str

    @staticmethod
    def of(function: str, communicator: Any, group: str) -> Ranks:
        """Check a communicator that a user passed."""
        if not hasattr(communicator, "find_group"):
            raise ArgumentError(
                f"[{function}] comm is {type(communicator).__name__}; pass a communicator, for "
                "example C.MultiProcessDataParallelCommunicator() after its init()"
            )
        communicator._group(function, group)
        return Ranks(weakref.ref(communicator), group)

    def gather(self, operation: str, shape: Sequence[int], numbers: np.ndarray) -> np.ndarray:
        """The numbers of all ranks, by rank; `shape` (of x's statistics) must agree."""

        size = len(self._ranks(operation).find_group(self.group))
        found = array_module(numbers).empty((size, *numbers.shape), numbers.dtype)
        self._run(operation, shape, lambda transport, _: transport.all_gather(numbers, found))
        return found

    def sum(self, operation: str, shape: Sequence[int], numbers: np.ndarray) -> np.ndarray:
        """The sums over ranks, in place."""
        self._run(operation, shape, lambda transport, _: transport.all_reduce(numbers, "sum"))
        return numbers

    def _run(
        self, operation: str, shape: Sequence[int], job: Callable[[Transport, Agreement], Any]
    ) -> Any:
        from ..communicators.header import Schedule

        schedule = Schedule(operation, [f"statistics {shape}"], only_compared=True)
        return self._ranks(operation)._run(schedule, job, self.group)

    def _ranks(self, operation: str) -> MultiProcessDataParallelCommunicator:
        communicator = self.communicator()
        if communicator is None:
            raise CommunicatorError(f"[{operation}] its communicator is gone; keep it")
        return communicator


@dataclass(frozen=True)
class SyncBatchNormalization(BatchStatistics):
    """Batch normalization with the mean and variance of the batches of all ranks."""

    ranks: Ranks

    saved = ("centre", "inverse_deviation", "count")
    recomputable = False
    cuda = "sync_batch_normalization.SyncBatchNormalization"
    waits = False  # it meets other ranks, who must not wait for somebody here to look

    def setup(
        self, x: Spec, beta: Spec | None, gamma: Spec | None, mean: Spec, variance: Spec
    ) -> tuple[Spec, ...]:
        specs = super().setup(x, beta, gamma, mean, variance)
        return *specs, Spec((1,), np.dtype(np.float64))

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
        shape, exact = mean.shape, wide(x.dtype)
        if out is None:
            out = tuple(xp.empty(s.shape, s.dtype) for s in self.setup(x, beta, gamma, mean, mean))
        y, batch_mean, batch_variance, centre, inverse, count = out
        channels, arranged = self._arranged(xp, x)
        total, squares = channels.totals(arranged)
        mine = np.concatenate(([channels.count], total, squares))
        found = self.gather(shape, mine, x.shape)
        count[0], found_mean, found_variance = _merged(found, exact)
        centre[...], spread = found_mean.reshape(shape), found_variance.reshape(shape)
        batch_mean[...], batch_variance[...] = centre, spread
        inverse[...] = 1 / np.sqrt(spread.astype(np.float64) + eps)
        target = self._target(xp, y, channels, arranged.dtype)
        scale_and_shift(channels, arranged, centre, inverse, beta, gamma, target)
        self._put_back(target, y)
        unbiased = count[0] / max(count[0] - 1, 1)
        return (
            *out,
            decay_rate * mean.astype(exact, copy=False) + (1 - decay_rate) * centre,
            decay_rate * variance.astype(exact, copy=False) + (1 - decay_rate) * unbiased * spread,
        )

    def gather(self, shape: Sequence[int], mine: Any, x_shape: Sequence[int]) -> Any:
        """(count, sums, sums of squares) of all ranks, by rank; not all counts are 0."""
        found = self.ranks.gather(self.name, shape, mine)
        # A rank that has elements need not look at the others' counts, which may be on a device.
        if not math.prod(x_shape) and not float(found[:, 0].sum()):
            raise ShapeError(
                f"[{self.name}] x has shape {x_shape} here and is empty on all ranks: an empty "
                "batch has no mean; use batch_stat=False"
            )
        return found

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
        count: Any,
        *,
        out: Any,
    ) -> None:
        shape = centre.shape
        _, dy = self._arranged(xp, np.zeros(x.shape, x.dtype) if dy is None else dy)
        channels, x = self._arranged(xp, x)
        mean, inverse = centre, inverse_deviation
        dbeta, dgamma = gradient_sums(channels, dy, x, mean, inverse)
        if need.beta:
            out.beta[...] = dbeta.reshape(shape)
        if need.gamma:
            out.gamma[...] = dgamma.reshape(shape)
        if need.x:
            zeros = np.zeros(shape)
            others = (zeros if d is None else d for d in (dbatch_mean, dbatch_variance))
            mine = np.stack([dbeta, dgamma, *(d.reshape(-1).astype(np.float64) for d in others)])
            self.ranks.sum(f"{self.name} backward", shape, mine)
            dbeta, dgamma, dmean, dvariance = mine
            target = self._target(xp, out.x, channels, x.dtype)
            sums = (dbeta, dgamma, dmean, dvariance)
            input_gradient(channels, dy, x, gamma, mean, inverse, sums, float(count[0]), target)
            self._put_back(target, out.x)

    # As those of batch normalization, with averages over the batches of all ranks: nn.grad records
    # collectives, so all ranks must build the same graph of derivatives.

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
        average = BatchAverage.of(self.ranks, math.prod(x.shape) // math.prod(batch_mean.shape))
        inverse = (batch_variance + eps) ** -0.5
        centred = x - batch_mean
        normal = centred * inverse
        dnormal = dy if gamma is None else dy * gamma
        mean_d = xp.call(average, xp.sum(dnormal, axes, True))
        mean_dn = xp.call(average, xp.sum(dnormal * normal, axes, True))
        dx = inverse * (dnormal - mean_d - normal * mean_dn)
        dx = dx + xp.call(average, dbatch_mean)
        return dx + centred * xp.call(average, dbatch_variance) * 2

    # Sums per channel want (A, C, B) arrays of float32 or more: often x itself, else a copy.

    def _arranged(self, xp: Any, x: Any) -> tuple[Channels, Any]:
        blocks = self.blocks(x.shape)
        if blocks is None:
            x = np.array(x.transpose(self._order(x.ndim)), order="C")
            kept = math.prod(x.shape[: len(self.axes)])
            blocks = (1, kept, math.prod(x.shape[len(self.axes) :]))
        return xp.channels(blocks), x.reshape(blocks).astype(wide(x.dtype), copy=False)

    def _target(self, xp: Any, y: Any, channels: Channels, dtype: Any) -> Any:
        """What takes a result for y: y's own memory where that is arranged as needed."""
        if self.blocks(y.shape) is None or y.dtype != dtype:
            return xp.empty(channels.shape, dtype)
        return y.reshape(channels.shape)

    def _put_back(self, target: Any, y: Any) -> None:
        if self.blocks(y.shape) is None:
            order = self._order(y.ndim)
            turned = target.reshape([y.shape[i] for i in order])
            y[...] = turned.transpose(np.argsort(order))
        elif y.dtype != target.dtype:
            y[...] = target.reshape(y.shape)

    def _order(self, ndim: int) -> tuple[int, ...]:
        return (*self.axes, *self.summed(ndim))


def _mean(total: np.ndarray, count: float, dtype: Any) -> np.ndarray:
    return (total / max(count, 1)).astype(dtype)


def _merged(everybodys: np.ndarray, dtype: Any) -> tuple[float, np.ndarray, np.ndarray]:
    """Count, mean and variance of the whole batch out of (count, sums, sums of squares) by rank.

    A rank's squares are about its own mean c_r, rounded to dtype. About the whole batch's mean c
    they are larger by n_r ((m_r - c)^2 - (m_r - c_r)^2), where m_r is the rank's exact mean.
    Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979.
    """
    channels = (everybodys.shape[1] - 1) // 2
    counts = everybodys[:, 0]
    totals, squares = everybodys[:, 1 : 1 + channels], everybodys[:, 1 + channels :]
    count = float(counts.sum())
    mean = _mean(sum(totals), count, dtype)
    about_mean = np.zeros(channels)
    for n, total, square in zip(counts, totals, squares, strict=True):
        if n:
            centre = _mean(total, n, dtype).astype(np.float64)
            wanted = mean.astype(np.float64)
            about_mean += square + n * (centre - wanted) * (2 * total / n - wanted - centre)
    return count, mean, _mean(about_mean, count, dtype)


@dataclass(frozen=True)
class BatchAverage(Function):
    """y = sum over ranks of x / sum over ranks of count. Its gradient is the same average of dy."""

    ranks: Ranks
    count: int

    recomputable = False

    def setup(self, x: Spec) -> Spec:
        return x

    def forward(self, xp: Any, x: Any) -> Any:
        count = xp.full(1, self.count, np.float64)
        mine = xp.concatenate((count, x.reshape(-1).astype(np.float64)))
        total = self.ranks.sum("sync_batch_normalization gradient", x.shape, mine)
        return (total[1:] / xp.maximum(total[:1], 1)).reshape(x.shape).astype(x.dtype)

    def grad_x(self, xp: Any, dy: Any) -> Any:
        return xp.call(self, dy)


@function_api
def sync_batch_normalization(
    x: Any,
    beta: Any,
    gamma: Any,
    mean: Any,
    variance: Any,
    comm: Any,
    group: str = "world",
    axes: Sequence[int] = (1,),
    decay_rate: float = 0.9,
    eps: float = 1e-5,
    batch_stat: bool = True,
    output_stat: bool = False,
) -> Any:
    """Batch normalization over the batches of all ranks, as if one rank had them in one batch.

    Ranks may have batches of different size. All of them call it the same number of times in the
    same order; the communicator raises on all ranks where they do not.

    Gradients are those of the sum of the ranks' losses. That of x is complete. Those of beta and
    gamma are this rank's part: all-reduce them as those of other parameters. `nn.grad` works to any
    order, with collectives in its graph: all ranks must build and run the same one.

    Args:
        x: (N, C, ...) array of this rank.
        beta, gamma, mean, variance, axes, decay_rate, eps: see batch_normalization.
        comm: a communicator, after its init(); keep it as long as the graph.
        group: name of a group of ranks.
        batch_stat: False uses the running statistics, and exchanges nothing.
        output_stat: return (y, mean, variance of the whole batch).

    Ioffe & Szegedy, "Batch normalization", arXiv:1502.03167.

    >>> import distnn as nn, distnn.communicators as C, distnn.functions as F
    >>> comm = C.DataParallelCommunicator()
    >>> comm.init()
    >>> stats = [nn.Variable((1, 3, 1, 1)) for _ in range(4)]
    >>> F.sync_batch_normalization(nn.Variable((8, 3, 4, 4)), *stats, comm).shape
    (8, 3, 4, 4)
    """
    name = "sync_batch_normalization"
    where, decay_rate, eps = checked(
        name, x, mean, variance, axes, decay_rate, eps, batch_stat, output_stat
    )
    ranks = Ranks.of(name, comm, group)
    if not batch_stat:
        return FixedNormalization.of(where)(x, beta, gamma, mean, variance, eps=eps)
    function = SyncBatchNormalization.of(where, ranks)
    results = function(x, beta, gamma, mean, variance, decay_rate=decay_rate, eps=eps)
    return results if output_stat else results[0]
