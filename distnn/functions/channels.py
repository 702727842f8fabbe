"""Sums and affine maps per channel of (A, C, B) arrays, in cache-sized parts on several threads.

What batch normalization is made of on the CPU, and gradients of biases, by NumPy
(distnn/cpu/channels.py has the same compiled). A array of images (N, C, H, W) is A = N, B = H W; a
batch of vectors (N, C) is B = 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..namespace import array_sum
from ..threads import parallel_for

# Elements of a part: with two arrays and a temporary in float32 it stays in a 1 MB cache.
_PART = 65536
# From here on NumPy's inner loops over B are long enough to broadcast a number per channel.
_LONG = 128

Body = Callable[[int, int], tuple[np.ndarray, ...]]
Part = Callable[[int, int], np.ndarray]


class Channels:
    """Per-channel work on arrays of one shape (A, C, B)."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self.batch, self.channels, self.inner = shape
        self.grain = max(1, _PART // max(1, self.channels * self.inner))
        self.count = self.batch * self.inner

    def plane(self, values: np.ndarray) -> np.ndarray:
        """A number per channel in the shape in which it combines with (a, C, B) arrays."""
        column = values.reshape(self.channels, 1)
        if self.inner >= _LONG:
            return column
        return np.repeat(column, self.inner, axis=1)

    def sums(self, body: Body, number: int) -> list[np.ndarray]:
        """The sums per channel, in float64, of the `number` arrays body(i, j) of parts."""
        parts = -(-self.batch // self.grain)
        totals = [np.zeros((parts, self.channels), np.float64) for _ in range(number)]

        def work(i: int, j: int) -> None:
            for total, values in zip(totals, body(i, j), strict=True):
                if self.inner >= _LONG:
                    rows = np.add.reduce(values, axis=2)
                    total[i // self.grain] = np.add.reduce(rows, axis=0, dtype=np.float64)
                else:
                    plane = array_sum(values, 0)
                    total[i // self.grain] = np.add.reduce(plane, axis=1, dtype=np.float64)

        parallel_for(work, self.batch, self.grain)
        return [np.add.reduce(total, axis=0) for total in totals]

    def mean(self, total: np.ndarray) -> np.ndarray:
        return total / max(self.count, 1)

    def total(self, x: np.ndarray) -> np.ndarray:
        """Per channel, in float64, the sum."""
        return self.sums(lambda i, j: (x[i:j],), 1)[0]

    def totals(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Per channel, in float64, the sum and the sum of squares about the mean in x's dtype."""
        total = self.total(x)
        centre = self.plane(self.mean(total).astype(x.dtype))

        def squares(i: int, j: int) -> tuple[np.ndarray]:
            centred = x[i:j] - centre
            return (np.multiply(centred, centred, out=centred),)

        return total, self.sums(squares, 1)[0]

    def products(
        self, dy: np.ndarray | Part, x: np.ndarray, mean: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Per channel, in float64, the sums of dy and of dy (x - mean); dy may give its parts."""
        centre, part = self.plane(mean), self.part(dy)

        def products(i: int, j: int) -> tuple[np.ndarray, np.ndarray]:
            d, centred = part(i, j), x[i:j] - centre
            return d, np.multiply(centred, d, out=centred)

        total, product = self.sums(products, 2)
        return total, product

    def part(self, array: np.ndarray | Part) -> Part:
        """The function of a part's bounds that gives it."""
        return array if callable(array) else lambda i, j: array[i:j]

    # In the two below there is one number per channel of `mean` and of a, b, c.

    def scale(
        self, x: np.ndarray, mean: np.ndarray, a: np.ndarray, b: np.ndarray | None, y: np.ndarray
    ) -> None:
        """y = (x - mean) a + b."""
        centre, factor = self.plane(mean), self.plane(a)
        shift = None if b is None else self.plane(b)

        def work(i: int, j: int) -> None:
            part = np.subtract(x[i:j], centre, out=y[i:j])
            part *= factor
            if shift is not None:
                part += shift

        self.map(work)

    def combine(
        self,
        dy: np.ndarray,
        x: np.ndarray,
        mean: np.ndarray,
        numbers: tuple[np.ndarray, np.ndarray, np.ndarray],
        dx: np.ndarray,
    ) -> None:
        """dx = a dy - (x - mean) b - c for numbers (a, b, c)."""
        centre = self.plane(mean)
        a, b, c = (self.plane(n) for n in numbers)

        def work(i: int, j: int) -> None:
            centred = x[i:j] - centre
            centred *= b
            part = np.multiply(dy[i:j], a, out=dx[i:j])
            part -= centred
            part -= c

        self.map(work)

    def map(self, body: Callable[[int, int], object]) -> None:
        """Call body(i, j) for each part of axis A."""
        parallel_for(body, self.batch, self.grain)
