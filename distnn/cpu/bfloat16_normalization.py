"""Batch normalization of bfloat16: statistics in float32, and one pass over memory for the rest."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..formula_chain import Chain, Joined
from ..function import Spec
from ..functions.batch_normalization import gradient_numbers, gradient_sums, input_gradient
from ..functions.channels import Part
from ..functions.normalization_chains import combine_chain, products_of_chain, scale_chain
from . import twin
from .bfloat16 import FLOAT32, bits, load, put, wide
from .bfloat16_simd import load_wide
from .channels import CompiledChannels
from .compiler import kernel
from .simd import LANES, broadcast
from .simd import load as load_lanes
from .simd import store as store_lanes
from .twin import CpuTwin

# Elements of a part: two arrays of them are in the second cache of a core.
_PART = 262_144
# Shorter runs of a channel become no vector code.
_LEAST = 16


class Bfloat16Channels(CompiledChannels):
    """As functions.channels.Channels, for arrays of bfloat16 and numbers of float32."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__(shape)
        self.grain = max(1, _PART // (self.channels * self.inner))

    def total(self, x: np.ndarray) -> np.ndarray:
        return self._partials(_total, self._arranged(x))[:, 0].sum(0)

    def totals(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = self._partials(_totals, self._arranged(x))
        total = found[:, 0].sum(0)
        centre = self.mean(total).astype(FLOAT32)
        # Parts have squares about their own means: Chan, Golub & LeVeque 1979.
        counts = np.diff([*range(0, self.batch, self.grain), self.batch])[:, None] * self.inner
        squares = found[:, 1] + counts * (found[:, 0] / counts - centre) ** 2
        return total, squares.sum(0)

    def products(
        self, dy: np.ndarray | Part, x: np.ndarray, mean: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        part = self.part(dy if callable(dy) else dy.reshape(self.shape))
        total = self._partials(
            _products, lambda i, j: bits(part(i, j)), self._arranged(x), mean.reshape(-1)
        ).sum(0)
        return total[0], total[1]

    def _arranged(self, x: np.ndarray) -> np.ndarray:
        return bits(x).reshape(self.shape)


def channels(blocks: tuple[int, int, int]) -> Bfloat16Channels | None:
    """What works on the channels of (A, C, B) arrays of bfloat16; None where B is short."""
    return Bfloat16Channels(blocks) if blocks[2] >= _LEAST else None


class BatchNormalization(CpuTwin):
    """functions.batch_normalization.BatchNormalization."""

    @classmethod
    def suits(cls, function: Any, *specs: Spec | None) -> bool:
        x = specs[0]
        assert x is not None
        blocks = function.blocks(tuple(x.shape))
        return blocks is not None and blocks[2] >= _LEAST and x.size >= twin.SMALLEST

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
        function = self.function
        if out is None:
            specs = function.setup(x, beta, gamma, mean, mean)
            out = tuple(xp.empty(s.shape, s.dtype) for s in specs)
        channels = Bfloat16Channels(function.blocks(x.shape))
        results = self._statistics(channels, x, mean, variance, decay_rate, eps, list(out[1:]))
        scale, beta = _scale(gamma, results), wide(beta)
        shape = channels.shape
        channels.scale(x.reshape(shape), results[2], scale, beta, out[0].reshape(shape))
        return (out[0], *results)

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
        channels = Bfloat16Channels(self.function.blocks(x.shape))
        results = self._statistics(channels, x, mean, variance, decay_rate, eps, list(out[1:]))
        scale_chain(xp, channels, x, results[2], _scale(gamma, results), wide(beta), joined)
        return (None, *results)

    def _statistics(
        self,
        channels: Bfloat16Channels,
        x: Any,
        mean: Any,
        variance: Any,
        decay_rate: float,
        eps: float,
        results: list[Any],
    ) -> list[Any]:
        """All results but y, and the new running statistics."""
        batch_mean, batch_variance, centre, inverse_deviation = results
        total, squares = channels.totals(x)
        centre[...] = channels.mean(total).reshape(centre.shape)
        spread = channels.mean(squares).astype(FLOAT32).reshape(centre.shape)
        inverse_deviation[...] = 1 / np.sqrt(spread.astype(np.float64) + eps)
        put(centre, batch_mean)
        put(spread, batch_variance)
        unbiased = channels.count / max(channels.count - 1, 1)
        return [
            *results,
            decay_rate * wide(mean) + (1 - decay_rate) * centre,
            decay_rate * wide(variance) + (1 - decay_rate) * unbiased * spread,
        ]

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
        channels = Bfloat16Channels(self.function.blocks(x.shape))
        dy = np.zeros(x.shape, x.dtype) if dy is None else dy
        sums = gradient_sums(channels, dy, x, centre, inverse_deviation)
        if need.x:
            dx, shape = _room(xp, out.x, x), channels.shape
            others = (wide(d) for d in (dbatch_mean, dbatch_variance))
            input_gradient(
                channels, dy.reshape(shape), x.reshape(shape), wide(gamma), centre,
                inverse_deviation, (*sums, *others), channels.count, dx,
            )  # fmt: skip
            _put_back(dx, out.x)
        _put_sums(need, sums, centre.shape, out)

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
        channels = Bfloat16Channels(self.function.blocks(x.shape))
        sums = products_of_chain(xp, channels, joined, x, centre)
        if sums is None:
            dy = xp.empty(x.shape, x.dtype)
            xp.evaluate_chain(joined.chain, joined.arrays, joined.numbers, (dy, *joined.outs))
            statistics = (centre, inverse_deviation)
            self.backward(
                xp, need, dy, dbatch_mean, dbatch_variance, x, gamma, *statistics, out=out
            )
            return
        sums[1][...] *= inverse_deviation.reshape(-1)
        others = (wide(d) for d in (dbatch_mean, dbatch_variance))
        numbers = gradient_numbers(
            wide(gamma), inverse_deviation, (*sums, *others), channels.count, x.dtype
        )
        dx = _room(xp, out.x, x) if need.x else None
        combine_chain(xp, channels, joined, x, centre, numbers, dx)
        if need.x:
            _put_back(dx, out.x)
        _put_sums(need, sums, centre.shape, out)


def _scale(gamma: Any, results: list[Any]) -> Any:
    inverse_deviation = results[3]
    return inverse_deviation if gamma is None else inverse_deviation * wide(gamma)


def _room(xp: Any, place: Any, x: Any) -> Any:
    """Memory for dx: its place, if that has the dtype of x."""
    return place if place.dtype == x.dtype else xp.empty(x.shape, x.dtype)


def _put_back(dx: Any, place: Any) -> None:
    if dx is not place:
        put(dx, place)


def _put_sums(need: Any, sums: tuple[Any, Any], shape: tuple[int, ...], out: Any) -> None:
    for wanted, total, place in ((need.beta, sums[0], out.beta), (need.gamma, sums[1], out.gamma)):
        if wanted:
            put(total.astype(FLOAT32).reshape(shape), place)


# Kernels on parts x (a, C, B), and numbers of channels. Sums of a part are float32, which is exact
# enough for numbers of 8 bits; parts are added in float64.


@kernel
def _sum(lanes):
    total = np.float32(0)
    for i in range(LANES):
        total += lanes[i]
    return total


@kernel
def _total(x, total, _):
    images, channels, pixels = x.shape
    whole = pixels // LANES * LANES
    lanes = np.empty(LANES, np.float32)
    for c in range(channels):
        s = broadcast(np.float32(0))
        rest = np.float32(0)
        for a in range(images):
            first = (a * channels + c) * pixels
            for b in range(0, whole, LANES):
                s = s + load_wide(x, first + b)
            for b in range(whole, pixels):
                rest += load(x[a, c, b])
        store_lanes(lanes, 0, s)
        total[c] = _sum(lanes) + rest


@kernel
def _totals(x, total, squares):
    """Sums, and sums of squares about their means."""
    images, channels, pixels = x.shape
    whole = pixels // LANES * LANES
    lanes = np.empty(LANES, np.float32)
    _total(x, total, squares)
    for c in range(channels):
        mean = np.float32(total[c] / (images * pixels))
        centre = broadcast(mean)
        q = broadcast(np.float32(0))
        rest = np.float32(0)
        for a in range(images):
            first = (a * channels + c) * pixels
            for b in range(0, whole, LANES):
                centred = load_wide(x, first + b) - centre
                q = centred * centred + q
            for b in range(whole, pixels):
                rest += (load(x[a, c, b]) - mean) ** 2
        store_lanes(lanes, 0, q)
        squares[c] = _sum(lanes) + rest


@kernel
def _products(dy, x, mean, total, product):
    """Image by image, as they lie in memory: each channel has vectors of sums of its own."""
    images, channels, pixels = x.shape
    whole = pixels // LANES * LANES
    lanes, rest = np.empty(2 * channels * LANES, np.float32), np.zeros((2, channels), np.float32)
    half = channels * LANES
    for i in range(0, len(lanes), LANES):
        store_lanes(lanes, i, broadcast(np.float32(0)))
    for a in range(images):
        for c in range(channels):
            first = (a * channels + c) * pixels
            centre = broadcast(mean[c])
            s, p = load_lanes(lanes, c * LANES), load_lanes(lanes, half + c * LANES)
            for b in range(0, whole, LANES):
                d = load_wide(dy, first + b)
                s = s + d
                p = d * (load_wide(x, first + b) - centre) + p
            store_lanes(lanes, c * LANES, s)
            store_lanes(lanes, half + c * LANES, p)
            for b in range(whole, pixels):
                d_rest = load(dy[a, c, b])
                rest[0, c] += d_rest
                rest[1, c] += d_rest * (load(x[a, c, b]) - mean[c])
    for c in range(channels):
        total[c] = _sum(lanes[c * LANES :]) + rest[0, c]
        product[c] = _sum(lanes[half + c * LANES :]) + rest[1, c]
