"""Compiled work on the channels of (A, C, B) arrays: what batch normalization is made of.

Sums are made in float64, element by element, and need one pass over memory: a part of an array is
in the cache until mean and squares are known. Where B is short, loops run over C and B together.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from ..functions.channels import Channels, Part
from ..functions.normalization_chains import COMBINED, SCALED, SHIFTED
from ..functions.precision import wide
from .compiler import kernel
from .elementwise import evaluate

# From here on the inner loop over B is worth a vector loop.
_LONG = 16

# Sums may be made in any order, which is the compiler's and the same in every run.
_sums = partial(kernel, fastmath={"reassoc", "contract"})


class CompiledChannels(Channels):
    """As functions.channels.Channels, for C-contiguous arrays."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__(shape)
        self.rows = self.inner >= _LONG
        # (a, C, B), or (a, columns) where numbers are repeated over B.
        self.columns = self.channels if self.rows else self.channels * self.inner

    def total(self, x: np.ndarray) -> np.ndarray:
        body = _total_of_rows if self.rows else _total_of_columns
        found = self._partials(body, self._arranged(x))
        return self._of_channels(found[:, 0].sum(0))

    def totals(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        body = _totals_of_rows if self.rows else _totals_of_columns
        found = self._partials(body, self._arranged(x))
        total = self._of_channels(found[:, 0].sum(0))
        centre = self._numbers(self.mean(total), x.dtype)
        # Parts have squares about their own means: Chan, Golub & LeVeque 1979.
        counts = np.diff([*range(0, self.batch, self.grain), self.batch])[:, None]
        counts = counts * (self.inner if self.rows else 1)
        squares = found[:, 1] + counts * (found[:, 0] / counts - centre) ** 2
        return total, self._of_channels(squares.sum(0))

    def products(
        self, dy: np.ndarray | Part, x: np.ndarray, mean: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        body = _products_of_rows if self.rows else _products_of_columns
        part, x = self.part(dy), self._arranged(x)
        found = self._partials(
            body,
            lambda i, j: part(i, j).reshape(-1, *x.shape[1:]),
            x,
            self._numbers(mean, x.dtype),
        )
        total = found.sum(0)
        return self._of_channels(total[0]), self._of_channels(total[1])

    def scale(
        self, x: np.ndarray, mean: np.ndarray, a: np.ndarray, b: np.ndarray | None, y: np.ndarray
    ) -> None:
        arrays = self._with_planes([x], mean, a, *([] if b is None else [b]))
        if not evaluate(SCALED if b is None else SHIFTED, arrays, [], y):
            super().scale(x, mean, a, b, y)

    def combine(
        self,
        dy: np.ndarray,
        x: np.ndarray,
        mean: np.ndarray,
        numbers: tuple[np.ndarray, np.ndarray, np.ndarray],
        dx: np.ndarray,
    ) -> None:
        if not evaluate(COMBINED, self._with_planes([dy, x], mean, *numbers), [], dx):
            super().combine(dy, x, mean, numbers, dx)

    def plane(self, values: np.ndarray) -> np.ndarray:
        column = values.reshape(self.channels, 1)
        return column if self.rows else np.repeat(column, self.inner, axis=1)

    def _with_planes(self, arrays: list[np.ndarray], *numbers: np.ndarray) -> list[np.ndarray]:
        dtype = wide(arrays[0].dtype)
        return [*arrays, *(self.plane(n.astype(dtype, copy=False))[None] for n in numbers)]

    def _arranged(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(self.shape if self.rows else (self.batch, self.columns))

    def _numbers(self, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """A number for each channel, or each column."""
        flat = values.reshape(-1).astype(dtype, copy=False)
        return flat if self.rows else np.repeat(flat, self.inner)

    def _of_channels(self, values: np.ndarray) -> np.ndarray:
        return values if self.rows else values.reshape(self.channels, self.inner).sum(1)

    def _partials(self, body: Any, *arrays: np.ndarray | Part) -> np.ndarray:
        """(parts, 2, columns): what body(*arrays, first, second) adds to zeros, by parts of axis A.

        Arrays with one axis are whole in each part.
        """
        split = [self.part(a) for a in arrays if callable(a) or a.ndim > 1]
        whole = [a for a in arrays if not callable(a) and a.ndim == 1]
        found = np.zeros((-(-self.batch // self.grain), 2, self.columns))

        def work(i: int, j: int) -> None:
            body(*[part(i, j) for part in split], *whole, *found[i // self.grain])

        self.map(work)
        return found


@_sums
def _total_of_rows(x, total, _):
    """Of a part x (a, C, B), for each channel; here and below results are zeros before."""
    n_a, n_c, n_b = x.shape
    for a in range(n_a):
        for c in range(n_c):
            s = 0.0
            for b in range(n_b):
                s += np.float64(x[a, c, b])
            total[c] += s


@_sums
def _total_of_columns(x, total, _):
    """Of a part x (a, K), for each column."""
    n_a, n_k = x.shape
    for a in range(n_a):
        for k in range(n_k):
            total[k] += np.float64(x[a, k])


@_sums
def _totals_of_rows(x, total, squares):
    """Of a part x (a, C, B): its sums, and sums of squares about its means."""
    n_a, n_c, n_b = x.shape
    _total_of_rows(x, total, squares)
    mean = total / (n_a * n_b)
    for a in range(n_a):
        for c in range(n_c):
            m = mean[c]
            q = 0.0
            for b in range(n_b):
                centred = np.float64(x[a, c, b]) - m
                q += centred * centred
            squares[c] += q


@_sums
def _totals_of_columns(x, total, squares):
    """Of a part x (a, K), for each column."""
    n_a, n_k = x.shape
    for a in range(n_a):
        for k in range(n_k):
            total[k] += np.float64(x[a, k])
    mean = total / n_a
    for a in range(n_a):
        for k in range(n_k):
            centred = np.float64(x[a, k]) - mean[k]
            squares[k] += centred * centred


@_sums
def _products_of_rows(dy, x, mean, total, product):
    n_a, n_c, n_b = x.shape
    for a in range(n_a):
        for c in range(n_c):
            m = np.float64(mean[c])
            s = 0.0
            p = 0.0
            for b in range(n_b):
                d = np.float64(dy[a, c, b])
                s += d
                p += d * (np.float64(x[a, c, b]) - m)
            total[c] += s
            product[c] += p


@_sums
def _products_of_columns(dy, x, mean, total, product):
    n_a, n_k = x.shape
    for a in range(n_a):
        for k in range(n_k):
            d = np.float64(dy[a, k])
            total[k] += d
            product[k] += d * (np.float64(x[a, k]) - np.float64(mean[k]))
