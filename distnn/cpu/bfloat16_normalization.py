"""Batch normalization of bfloat16: statistics in float32, and one pass over memory for the rest."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ..function import Spec
from ..functions.batch_normalization import gradient_sums, input_gradient
from . import twin
from .bfloat16 import FLOAT32, bits, load, put, store, wide
from .bfloat16_simd import load_wide
from .channels import CompiledChannels
from .compiler import kernel
from .simd import LANES, broadcast
from .simd import store as store_lanes
from .twin import CpuTwin

# Elements of a part: two arrays of them are in the second cache of a core.
_PART = 262_144
# Shorter runs of a channel become no vector code.
_LEAST = 16

_maps = partial(kernel, fastmath={"contract"})


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

    def products(self, dy: Any, x: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        arrays = self._arranged(dy), self._arranged(x)
        total = self._partials(_products, *arrays, mean.reshape(-1)).sum(0)
        return total[0], total[1]

    def scale(
        self, x: np.ndarray, mean: np.ndarray, a: np.ndarray, b: np.ndarray | None, y: np.ndarray
    ) -> None:
        x, y = self._arranged(x), self._arranged(y)
        shift = np.zeros_like(mean) if b is None else b
        numbers = [n.reshape(-1) for n in (mean, a, shift)]
        self.map(lambda i, j: _scale(x[i:j], *numbers, y[i:j]))

    def combine(
        self,
        dy: np.ndarray,
        x: np.ndarray,
        mean: np.ndarray,
        numbers: tuple[np.ndarray, np.ndarray, np.ndarray],
        dx: np.ndarray,
    ) -> None:
        dy, x, dx = (self._arranged(a) for a in (dy, x, dx))
        flat = [n.reshape(-1).astype(FLOAT32, copy=False) for n in (mean, *numbers)]
        self.map(lambda i, j: _combine(dy[i:j], x[i:j], *flat, dx[i:j]))

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
        y, batch_mean, batch_variance, centre, inverse_deviation = out
        channels = Bfloat16Channels(function.blocks(x.shape))
        total, squares = channels.totals(x)
        centre[...] = channels.mean(total).reshape(centre.shape)
        spread = channels.mean(squares).astype(FLOAT32).reshape(centre.shape)
        inverse_deviation[...] = 1 / np.sqrt(spread.astype(np.float64) + eps)
        scale = inverse_deviation if gamma is None else inverse_deviation * wide(gamma)
        channels.scale(x, centre, scale, wide(beta), y)
        put(centre, batch_mean)
        put(spread, batch_variance)
        unbiased = channels.count / max(channels.count - 1, 1)
        return (
            *out,
            decay_rate * wide(mean) + (1 - decay_rate) * centre,
            decay_rate * wide(variance) + (1 - decay_rate) * unbiased * spread,
        )

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
        if dy is None:
            dy = np.zeros(x.shape, x.dtype)
        dbeta, dgamma = gradient_sums(channels, dy, x, centre, inverse_deviation)
        if need.x:
            dx = out.x if out.x.dtype == x.dtype else xp.empty(x.shape, x.dtype)
            others = (wide(d) for d in (dbatch_mean, dbatch_variance))
            input_gradient(
                channels, dy, x, wide(gamma), centre, inverse_deviation,
                (dbeta, dgamma, *others), channels.count, dx,
            )  # fmt: skip
            if dx is not out.x:
                put(dx, out.x)
        if need.beta:
            put(dbeta.astype(FLOAT32).reshape(centre.shape), out.beta)
        if need.gamma:
            put(dgamma.astype(FLOAT32).reshape(centre.shape), out.gamma)


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
    images, channels, pixels = x.shape
    whole = pixels // LANES * LANES
    lanes = np.empty(LANES, np.float32)
    for c in range(channels):
        centre = broadcast(mean[c])
        s = broadcast(np.float32(0))
        p = broadcast(np.float32(0))
        rest = np.float32(0)
        more = np.float32(0)
        for a in range(images):
            first = (a * channels + c) * pixels
            for b in range(0, whole, LANES):
                d = load_wide(dy, first + b)
                s = s + d
                p = d * (load_wide(x, first + b) - centre) + p
            for b in range(whole, pixels):
                d_rest = load(dy[a, c, b])
                rest += d_rest
                more += d_rest * (load(x[a, c, b]) - mean[c])
        store_lanes(lanes, 0, s)
        total[c] = _sum(lanes) + rest
        store_lanes(lanes, 0, p)
        product[c] = _sum(lanes) + more


@_maps
def _scale(x, mean, scale, shift, y):
    for a in range(x.shape[0]):
        for c in range(x.shape[1]):
            m, s, t = mean[c], scale[c], shift[c]
            for b in range(x.shape[2]):
                y[a, c, b] = store((load(x[a, c, b]) - m) * s + t)


@_maps
def _combine(dy, x, mean, p, q, r, dx):
    for a in range(x.shape[0]):
        for c in range(x.shape[1]):
            m, u, v, w = mean[c], p[c], q[c], r[c]
            for b in range(x.shape[2]):
                dx[a, c, b] = store(load(dy[a, c, b]) * u - (load(x[a, c, b]) - m) * v - w)
