"""Compiled normalization of rows: layer, instance and group normalization.

A row is what has a mean of its own, and is contiguous. Its parameters are one for each of its
elements (layer normalization), or one for each segment of it (a channel of instance or group
normalization). Sums are made in float64.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from ..function import Spec
from ..threads import parallel_for
from .bfloat16 import bits, element, number, wide
from .compiler import kernel
from .twin import CpuTwin

# Elements of a part that one thread works on.
_PART = 131_072
# Segments from here on are worth a vector loop.
_LONG = 16

# Sums may be made in any order, which is the compiler's and the same in every run.
_rows = partial(kernel, fastmath={"reassoc", "contract"})


class _Layout(NamedTuple):
    """x as rows of segments; parameter number (row * segments + segment) % parameters.

    With segments of length 1 a row has as many parameters as elements.
    """

    rows: int
    segments: int
    length: int
    parameters: int


def _layout(
    axes: tuple[int, ...], shape: tuple[int, ...], parameter: tuple[int, ...] | None
) -> _Layout | None:
    """None where rows are not contiguous, or parameters do not lie along segments."""
    lead = len(axes)
    if axes != tuple(range(lead)):
        return None
    rows, row = math.prod(shape[:lead]), math.prod(shape[lead:])
    if parameter is None:
        return _Layout(rows, 1, row, 1)
    own = [i for i, n in enumerate(parameter) if n > 1]
    if not own:
        return _Layout(rows, 1, row, 1)
    first, last = own[0], own[-1] + 1
    if parameter[first:last] != shape[first:last]:
        return None
    length = math.prod(shape[last:])
    if length == 1:
        within = math.prod(parameter) == row and first >= lead
        return _Layout(rows, row, 1, row) if within else None
    if last < lead or length < _LONG:
        return None
    return _Layout(rows, row // length, length, math.prod(parameter))


class TensorNormalization(CpuTwin):
    takes_bfloat16 = True

    @classmethod
    def suits(cls, function: Any, *specs: Spec | None) -> bool:
        x, beta, gamma = (None if spec is None else spec.shape for spec in specs)
        same = beta is None or gamma is None or beta == gamma
        return same and x is not None and _layout(function.axes, x, beta or gamma) is not None

    def forward(
        self, xp: Any, x: Any, beta: Any = None, gamma: Any = None, *, eps: float, out: Any = None
    ) -> Any:
        if out is None:
            out = tuple(xp.empty(s.shape, s.dtype) for s in self.function.setup(x))
        layout = self._layout(x, beta, gamma)
        y, *statistics = out
        flat = [bits(a).reshape(-1) for a in statistics]
        dtype = statistics[-1].dtype
        numbers = _filled(gamma, 1, layout, dtype), _filled(beta, 0, layout, dtype)
        body = _normalize_elements if layout.length == 1 else _normalize_segments

        def work(i: int, j: int, x: Any, y: Any) -> None:
            body(x, *numbers, eps, i * layout.segments, y, *(a[i:j] for a in flat))

        _map(layout, work, x, y)
        return out

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
        parameter = next((a for a in (gamma, out.beta, out.gamma) if a is not None), None)
        layout = self._layout(x, parameter, parameter)
        dy = np.zeros(x.shape, x.dtype) if dy is None else dy
        dx = out.x if need.x else xp.empty(x.shape, x.dtype)
        numbers = _filled(gamma, 1, layout, centre.dtype)
        ends = [np.zeros_like(centre) if d is None else wide(d) for d in (dmean, dvariance)]
        flat = [np.ascontiguousarray(a).reshape(-1) for a in (centre, inverse_deviation, *ends)]
        grain = _grain(layout)
        totals = np.zeros((-(-layout.rows // grain), 2, layout.parameters))
        body = _element_gradients if layout.length == 1 else _segment_gradients

        def work(i: int, j: int, dy: Any, x: Any, dx: Any) -> None:
            rows = [a[i:j] for a in flat]
            body(dy, x, numbers, *rows, i * layout.segments, dx, *totals[i // grain])

        _map(layout, work, dy, x, dx)
        for target, total in ((out.beta, totals[:, 0]), (out.gamma, totals[:, 1])):
            if target is not None:
                target[...] = total.sum(0).reshape(target.shape)

    def _layout(self, x: Any, beta: Any, gamma: Any) -> _Layout:
        parameter = next((a.shape for a in (beta, gamma) if a is not None), None)
        layout = _layout(self.function.axes, x.shape, parameter)
        assert layout is not None
        return layout


def _filled(parameter: Any, value: float, layout: _Layout, dtype: np.dtype) -> np.ndarray:
    if parameter is None:
        return np.full(layout.parameters, value, dtype)
    return np.ascontiguousarray(wide(parameter)).reshape(-1)


def _grain(layout: _Layout) -> int:
    return max(1, _PART // max(1, layout.segments * layout.length))


def _map(layout: _Layout, work: Any, *arrays: np.ndarray) -> None:
    """work(i, j, *rows i to j of the arrays) for parts of the rows."""
    shape = layout[: 2 if layout.length == 1 else 3]
    rows = [np.ascontiguousarray(bits(a)).reshape(shape) for a in arrays]
    parallel_for(lambda i, j: work(i, j, *(a[i:j] for a in rows)), layout.rows, _grain(layout))


# Kernels on rows of elements (R, S), or of segments (R, S, L); `start` is the first one's number.


@_rows
def _normalize_elements(x, gamma, beta, eps, start, y, mean, variance, centre, inverse):
    for r in range(x.shape[0]):
        _statistics(x[r], eps, r, mean, variance, centre, inverse)
        m, i = centre[r], inverse[r]
        for s in range(x.shape[1]):
            y[r, s] = element((number(x[r, s]) - m) * i * gamma[s] + beta[s], y)


@_rows
def _normalize_segments(x, gamma, beta, eps, start, y, mean, variance, centre, inverse):
    for r in range(x.shape[0]):
        _statistics(x[r].reshape(-1), eps, r, mean, variance, centre, inverse)
        m, i = centre[r], inverse[r]
        for s in range(x.shape[1]):
            k = (start + r * x.shape[1] + s) % gamma.size
            g, b = i * gamma[k], beta[k]
            for t in range(x.shape[2]):
                y[r, s, t] = element((number(x[r, s, t]) - m) * g + b, y)


@_rows
def _statistics(row, eps, r, mean, variance, centre, inverse):
    """Mean and mean square of the distance from it, of sums in float64."""
    total = 0.0
    for t in range(row.size):
        total += np.float64(number(row[t]))
    m = centre.dtype.type(total / row.size)
    squares = 0.0
    for t in range(row.size):
        d = np.float64(number(row[t])) - np.float64(m)
        squares += d * d
    q = squares / row.size
    mean[r], variance[r] = element(m, mean), element(q, variance)
    centre[r], inverse[r] = m, 1 / np.sqrt(q + eps)


@_rows
def _element_gradients(dy, x, gamma, centre, inverse, dmean, dvariance, start, dx, dbeta, dgamma):
    for r in range(x.shape[0]):
        m, i = centre[r], inverse[r]
        total = 0.0
        product = 0.0
        for s in range(x.shape[1]):
            g = np.float64(number(dy[r, s]) * gamma[s])
            total += g
            product += g * ((number(x[r, s]) - m) * i)
        for s in range(x.shape[1]):
            d = number(dy[r, s])
            dbeta[s] += d
            dgamma[s] += d * ((number(x[r, s]) - m) * i)
        offset, slope = _of_row(total, product, x.shape[1], i, dmean[r], dvariance[r])
        for s in range(x.shape[1]):
            n = (number(x[r, s]) - m) * i
            dx[r, s] = element((number(dy[r, s]) * gamma[s] - n * slope - offset) * i, dx)


@_rows
def _segment_gradients(dy, x, gamma, centre, inverse, dmean, dvariance, start, dx, dbeta, dgamma):
    for r in range(x.shape[0]):
        m, i = centre[r], inverse[r]
        total = 0.0
        product = 0.0
        for s in range(x.shape[1]):
            k = (start + r * x.shape[1] + s) % gamma.size
            b = 0.0
            g = 0.0
            for t in range(x.shape[2]):
                d = np.float64(number(dy[r, s, t]))
                b += d
                g += d * ((number(x[r, s, t]) - m) * i)
            dbeta[k] += b
            dgamma[k] += g
            total += b * gamma[k]
            product += g * gamma[k]
        elements = x.shape[1] * x.shape[2]
        offset, slope = _of_row(total, product, elements, i, dmean[r], dvariance[r])
        for s in range(x.shape[1]):
            scale = gamma[(start + r * x.shape[1] + s) % gamma.size]
            for t in range(x.shape[2]):
                n = (number(x[r, s, t]) - m) * i
                dx[r, s, t] = element((number(dy[r, s, t]) * scale - n * slope - offset) * i, dx)


@_rows
def _of_row(total, product, elements, inverse, dmean, dvariance):
    """dx = (g - x' slope - offset) / deviation: offset and slope, in the dtype of `inverse`."""
    wide = np.float64(inverse)
    offset = (total - dmean / wide) / elements
    slope = (product - 2 * dvariance / (wide * wide)) / elements
    kind = type(inverse)
    return kind(offset), kind(slope)
