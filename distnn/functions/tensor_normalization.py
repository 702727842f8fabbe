"""Normalization of an array by statistics of its own, over any of its axes.

Layer, instance and group normalization are this function (`layer_normalization.py`): they differ in
which axes have statistics of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..function import Function, Spec
from ..threads import parallel_for
from .precision import wide

# Elements of a part: with a few temporaries in float32 it stays in a 1 MB cache.
_PART = 65536


@dataclass(frozen=True)
class TensorNormalization(Function):
    """y = gamma (x - mean) / sqrt(variance + eps) + beta; statistics over all axes but `axes`.

    beta and gamma have as many axes as x, each of x's length or of length 1.
    """

    called: str  # the public function
    axes: tuple[int, ...]

    outputs = ("y", "mean", "variance")
    saved = ("centre", "inverse_deviation")  # float32 in half precision
    cuda = "tensor_normalization.TensorNormalization"
    cpu = "tensor_normalization.TensorNormalization"

    @property
    def name(self) -> str:
        return self.called

    def summed(self, ndim: int) -> tuple[int, ...]:
        return tuple(i for i in range(ndim) if i not in self.axes)

    def setup(self, x: Spec, beta: Spec | None = None, gamma: Spec | None = None) -> Any:
        shape = tuple(n if i in self.axes else 1 for i, n in enumerate(x.shape))
        if not _count(x.shape, self.summed(len(x.shape))):
            raise ShapeError(
                f"[{self.name}] x has shape {x.shape}: an axis without elements has no mean; pass "
                "one element or more"
            )
        for name, spec in (("beta", beta), ("gamma", gamma)):
            if spec is not None and (
                len(spec.shape) != len(x.shape)
                or any(n not in (1, full) for n, full in zip(spec.shape, x.shape, strict=True))
            ):
                raise ShapeError(
                    f"[{self.name}] {name} has shape {spec.shape} but x {x.shape}; pass one of "
                    f"{len(x.shape)} axes, each of x's length or of length 1"
                )
        statistic, exact = Spec(shape, x.dtype), Spec(shape, wide(x.dtype))
        return Spec(x.shape, x.dtype), statistic, statistic, exact, exact

    def forward(
        self, xp: Any, x: Any, beta: Any = None, gamma: Any = None, *, eps: float, out: Any = None
    ) -> Any:
        if out is None:
            out = tuple(xp.empty(s.shape, s.dtype) for s in self.setup(x))
        y, mean, variance, centre, inverse = out
        axes, exact = self.summed(x.ndim), centre.dtype
        count = _count(x.shape, axes)

        def work(i: int, j: int) -> None:
            centred = x[i:j].astype(exact, copy=False)
            middle = xp.sum(centred, axes, True) / count
            centred = centred - middle
            spread = xp.sum(centred * centred, axes, True) / count
            deviation = np.sqrt(spread + eps)
            _rows(centre, i, j)[...] = _rows(mean, i, j)[...] = middle
            _rows(variance, i, j)[...] = spread
            _rows(inverse, i, j)[...] = 1 / deviation
            centred /= deviation
            if gamma is not None:
                centred *= _rows(gamma, i, j)
            if beta is not None:
                centred += _rows(beta, i, j)
            y[i:j] = centred

        parallel_for(work, len(x), self._grain(x))
        return out

    # With x' = (x - mean) / deviation and m elements in a mean:
    # dx = (g - sum g / m - x' sum(g x') / m) / deviation + dmean / m + 2 (x - mean) dvariance / m,
    # where g = gamma dy. What was broadcast is summed up by those who call the rules.

    def grad_x(
        self,
        xp: Any,
        dy: Any,
        dmean: Any,
        dvariance: Any,
        x: Any,
        gamma: Any,
        mean: Any,
        variance: Any,
        eps: float,
    ) -> Any:
        axes = self.summed(len(x.shape))
        m = _count(x.shape, axes)
        inverse = (variance + eps) ** -0.5
        centred = x - mean
        normal = centred * inverse
        dnormal = dy if gamma is None else dy * gamma
        mean_d = xp.sum(dnormal, axes, True) * (1 / m)
        mean_dn = xp.sum(dnormal * normal, axes, True) * (1 / m)
        dx = inverse * (dnormal - mean_d - normal * mean_dn)
        return dx + dmean * (1 / m) + centred * (dvariance * (2 / m))

    def grad_beta(self, xp: Any, dy: Any) -> Any:
        return dy

    def grad_gamma(self, xp: Any, dy: Any, x: Any, mean: Any, variance: Any, eps: float) -> Any:
        return dy * ((x - mean) * (variance + eps) ** -0.5)

    def backward(
        self,
        xp: Any,
        need: Any,
        dy: Any,
        dmean: Any,
        dvariance: Any,
        x: Any,
        gamma: Any,
        centre: Any,
        inverse_deviation: Any,
        *,
        out: Any,
    ) -> None:
        axes, exact = self.summed(x.ndim), centre.dtype
        m, grain = _count(x.shape, axes), self._grain(x)
        dy = np.zeros(x.shape, x.dtype) if dy is None else dy
        of_beta, of_gamma = (
            _Sums(target, len(x), grain, exact) if wanted else None
            for target, wanted in ((out.beta, need.beta), (out.gamma, need.gamma))
        )

        def work(i: int, j: int) -> None:
            inverse = _rows(inverse_deviation, i, j)
            normal = x[i:j] - _rows(centre, i, j)
            normal *= inverse
            dnormal = dy[i:j].astype(exact, copy=False)
            if of_beta is not None:
                of_beta.add(xp, i, j, dnormal)
            if of_gamma is not None:
                of_gamma.add(xp, i, j, dnormal * normal)
            if not need.x:
                return
            if gamma is not None:
                dnormal = dnormal * _rows(gamma, i, j)
            slope = xp.sum(dnormal * normal, axes, True) / m
            offset = xp.sum(dnormal, axes, True) / m
            if dvariance is not None:  # x - mean is x' times the deviation
                slope -= _rows(dvariance, i, j) * (2 / m) / (inverse * inverse)
            if dmean is not None:
                offset -= _rows(dmean, i, j) / m / inverse
            normal *= slope
            dx = np.subtract(dnormal, normal, out=normal)
            dx -= offset
            dx *= inverse
            out.x[i:j] = dx

        parallel_for(work, len(x), grain)
        for sums in (of_beta, of_gamma):
            if sums is not None:
                sums.store()

    def _grain(self, x: Any) -> int:
        """Rows of axis 0 that a part has: all of them where statistics go over that axis."""
        if 0 not in self.axes:
            return max(len(x), 1)
        return max(1, _PART // max(1, x.size // max(len(x), 1)))


class _Sums:
    """Sums over the axes along which a parameter was broadcast, made part by part."""

    def __init__(self, target: Any, length: int, grain: int, dtype: Any) -> None:
        self.target = target
        self.grain = grain
        self.each = len(target) == length  # examples have elements of their own
        rows = length if self.each else -(-length // grain)
        self.totals = np.zeros((rows, *target.shape[1:]), dtype)

    def add(self, xp: Any, i: int, j: int, values: Any) -> None:
        shape = (j - i if self.each else 1, *self.target.shape[1:])
        axes = tuple(k for k, n in enumerate(shape) if n != values.shape[k])
        part = slice(i, j) if self.each else i // self.grain
        self.totals[part] = (xp.sum(values, axes, True) if axes else values).reshape(
            self.totals[part].shape
        )

    def store(self) -> None:
        if self.each:
            self.target[...] = self.totals
        else:
            self.target[...] = np.add.reduce(self.totals, 0, np.float64, keepdims=True)


def _rows(a: Any, i: int, j: int) -> Any:
    """The part of a statistic or parameter for rows i to j of axis 0."""
    return a if len(a) == 1 else a[i:j]


def _count(shape: Sequence[int], axes: Sequence[int]) -> int:
    return math.prod(shape[a] for a in axes)
