"""Compiled pooling over one or two spatial axes that come last; other layouts are NumPy's."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..function import Spec
from ..functions.precision import wide
from ..threads import parallel_for
from .bfloat16 import FLOAT32, bits, converted, element, is_bfloat16, number, zero
from .compiler import kernel
from .twin import CpuTwin

# Elements of a part that one thread works on.
_PART = 65_536
_INFINITE = np.float32(np.inf)


class _Windows:
    """Windows on the planes (H, W) of arrays (..., H, W); with one spatial axis H is 1.

    `rows` and `columns` have a column for each window along an axis: its first element of x, the
    one after the last, how many lie in the padding before the first, and how many count.
    """

    def __init__(self, function: Any, shape: tuple[int, ...], including_pad: bool) -> None:
        lead = len(shape) - len(function.kernel)
        missing = 2 - len(function.kernel)
        planes = math.prod(shape[:lead])
        self.elements = (planes, *(1,) * missing, *shape[lead:])
        self.results = (planes, *(1,) * missing, *function.result_shape(shape)[lead:])
        axes = [(1, 1, 1, 1, 0)] * missing
        axes += zip(
            shape[lead:], self.results[1 + missing :], function.kernel, function.stride,
            function.pad, strict=True,
        )  # fmt: skip
        self.rows, self.columns = (_windows_along(*axis, including_pad) for axis in axes)
        self.width = np.uint64(axes[1][2])  # of a window
        # Small windows side by side without padding have kernels made for their lengths.
        beside = all(k == s <= 4 and p == 0 and n == r * k for n, r, k, s, p in axes)
        self.tiles = _of_tiles(axes[0][2], axes[1][2]) if beside else None

    def run(
        self, body: Any, of_elements: np.ndarray, *of_results: np.ndarray, **numbers: Any
    ) -> None:
        """body(elements, *results, rows, columns, *numbers) on parts of the planes."""
        self.map(body, of_elements, *of_results, fixed=(self.rows, self.columns, *numbers.values()))

    def map(
        self, body: Any, of_elements: np.ndarray, *of_results: np.ndarray, fixed: tuple = ()
    ) -> None:
        """body(elements, *results, *fixed) on parts of the planes."""
        elements = bits(of_elements).reshape(self.elements)
        results = [bits(a).reshape(self.results) for a in of_results]
        grain = max(1, _PART // max(1, math.prod(self.elements[1:])))

        def work(i: int, j: int) -> None:
            body(elements[i:j], *[a[i:j] for a in results], *fixed)

        parallel_for(work, self.elements[0], grain)

    def add(self, body: Any, sums: np.ndarray, *of_results: np.ndarray, **numbers: Any) -> None:
        """As run; the body adds to elements, which of bfloat16 are float32 for that long."""
        if not is_bfloat16(sums):
            return self.run(body, sums, *of_results, **numbers)

        def added(elements: np.ndarray, *others: Any) -> None:
            exact = np.empty(elements.shape, FLOAT32)
            body(exact, *others)
            converted(exact, elements.view(sums.dtype))

        return self.run(added, sums, *of_results, **numbers)


def _windows_along(
    length: int, results: int, kernel: int, stride: int, pad: int, including_pad: bool
) -> np.ndarray:
    start = np.arange(results) * stride - pad
    stop = np.minimum(start + kernel, length + pad)
    first, last = np.maximum(start, 0), np.minimum(stop, length)
    count = stop - start if including_pad else last - first
    return np.stack([first, np.maximum(first, last), first - start, count]).astype(np.uint64)


class _Pooling(CpuTwin):
    """What they share: the layouts that kernels know."""

    takes_bfloat16 = True

    @classmethod
    def suits(cls, function: Any, *specs: Spec | None) -> bool:
        return len(function.kernel) <= 2 and not function.channel_last

    def windows(self, shape: Sequence[int]) -> _Windows:
        including_pad = getattr(self.function, "including_pad", True)
        return _windows(self.function, tuple(shape), including_pad)


@functools.lru_cache(maxsize=1024)
def _windows(function: Any, shape: tuple[int, ...], including_pad: bool) -> _Windows:
    return _Windows(function, shape, including_pad)


class LinearPooling(_Pooling):
    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        y = xp.empty(self.function.result_shape(x.shape), x.dtype) if out is None else out
        windows, x = self.windows(x.shape), np.ascontiguousarray(x)
        if windows.tiles is None:
            windows.run(_add_up, x, y, average=self.function.average)
        else:
            windows.map(windows.tiles.add_up, x, y, fixed=self.divisor(x.dtype))
        return y

    def divisor(self, dtype: np.dtype) -> tuple[Any]:
        """What the sum of a tile is divided by."""
        kind = wide(dtype).type
        return (kind(math.prod(self.function.kernel) if self.function.average else 1),)


class LinearUnpooling(LinearPooling):
    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        shape = self.function.x_shape
        y = xp.empty(shape, x.dtype) if out is None else out
        windows, x = self.windows(shape), np.ascontiguousarray(x)
        if windows.tiles is None:
            windows.add(_share_out, y, x, average=self.function.average)
        else:
            windows.map(windows.tiles.share_out, y, x, fixed=self.divisor(x.dtype))
        return y


class MaxPooling(_Pooling):
    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        if out is None:
            shape = self.function.result_shape(x.shape)
            out = xp.empty(shape, x.dtype), xp.empty(shape, np.int32)
        windows, x = self.windows(x.shape), np.ascontiguousarray(x)
        if windows.tiles is None:
            windows.run(_take_largest, x, *out, width=windows.width)
        else:
            windows.map(windows.tiles.take_largest, x, *out)
        return out


class MaxUnpooling(_Pooling):
    def forward(self, xp: Any, x: Any, index: Any, *, out: Any = None) -> Any:
        shape = self.function.x_shape
        y = xp.empty(shape, x.dtype) if out is None else out
        windows = self.windows(shape)
        arrays = np.ascontiguousarray(x), np.ascontiguousarray(index)
        if windows.tiles is None:
            windows.add(_put_back, y, *arrays, width=windows.width)
        else:
            windows.map(windows.tiles.put_back, y, *arrays)
        return y


# Kernels on planes x (P, H, W) and results y (P, R, C). Unsigned numbers spare a test for negative
# indices at each access.


@kernel
def _add_up(x, y, rows, columns, average):
    for p in range(y.shape[0]):
        for r in range(y.shape[1]):
            for c in range(y.shape[2]):
                total = zero(x)
                for h in range(rows[0, r], rows[1, r]):
                    for w in range(columns[0, c], columns[1, c]):
                        total += number(x[p, h, w])
                count = rows[3, r] * columns[3, c] if average else np.uint64(1)
                y[p, r, c] = element(total / count, y)


@kernel
def _share_out(x, y, rows, columns, average):
    x[:] = 0
    for p in range(y.shape[0]):
        for r in range(y.shape[1]):
            for c in range(y.shape[2]):
                value = x.dtype.type(number(y[p, r, c]))
                if average:
                    value = x.dtype.type(value / (rows[3, r] * columns[3, c]))
                for h in range(rows[0, r], rows[1, r]):
                    for w in range(columns[0, c], columns[1, c]):
                        x[p, h, w] += value


@kernel
def _take_largest(x, y, index, rows, columns, width):
    for p in range(y.shape[0]):
        for r in range(y.shape[1]):
            for c in range(y.shape[2]):
                largest = zero(x) - _INFINITE
                place = np.uint64(0)
                for h in range(rows[0, r], rows[1, r]):
                    begin = (h - rows[0, r] + rows[2, r]) * width + columns[2, c] - columns[0, c]
                    for w in range(columns[0, c], columns[1, c]):
                        value = number(x[p, h, w])
                        # NaN stays, and its place is the last one, as in NumPy's text.
                        larger = not value <= largest
                        place = begin + w if larger else place
                        largest = value if larger & (largest == largest) else largest
                y[p, r, c] = element(largest, y)
                index[p, r, c] = place


@kernel
def _put_back(x, y, index, rows, columns, width):
    x[:] = 0
    for p in range(y.shape[0]):
        for r in range(y.shape[1]):
            for c in range(y.shape[2]):
                place = np.uint64(index[p, r, c])
                h = rows[0, r] + place // width - rows[2, r]
                w = columns[0, c] + place % width - columns[2, c]
                # A window of -inf alone may have its place in the padding.
                if rows[0, r] <= h < rows[1, r] and columns[0, c] <= w < columns[1, c]:
                    x[p, h, w] += number(y[p, r, c])


class _Tiles(NamedTuple):
    """The four kernels for windows side by side of these lengths, which become vector code."""

    add_up: Any
    share_out: Any
    take_largest: Any
    put_back: Any


@functools.cache
def _of_tiles(height: int, width: int) -> _Tiles:
    @kernel
    def add_up(x, y, divisor):
        for p in range(y.shape[0]):
            for r in range(y.shape[1]):
                for c in range(y.shape[2]):
                    total = zero(x)
                    for h in range(height):
                        for w in range(width):
                            total += number(x[p, r * height + h, c * width + w])
                    y[p, r, c] = element(total / divisor, y)

    @kernel
    def share_out(x, y, divisor):
        for p in range(y.shape[0]):
            for r in range(y.shape[1]):
                for c in range(y.shape[2]):
                    value = element(number(y[p, r, c]) / divisor, x)
                    for h in range(height):
                        for w in range(width):
                            x[p, r * height + h, c * width + w] = value

    @kernel
    def take_largest(x, y, index):
        for p in range(y.shape[0]):
            for r in range(y.shape[1]):
                for c in range(y.shape[2]):
                    largest = zero(x) - _INFINITE
                    place = 0
                    for h in range(height):
                        for w in range(width):
                            value = number(x[p, r * height + h, c * width + w])
                            larger = not value <= largest
                            place = h * width + w if larger else place
                            largest = value if larger & (largest == largest) else largest
                    y[p, r, c] = element(largest, y)
                    index[p, r, c] = place

    @kernel
    def put_back(x, y, index):
        for p in range(y.shape[0]):
            for r in range(y.shape[1]):
                for c in range(y.shape[2]):
                    value, place = element(number(y[p, r, c]), x), index[p, r, c]
                    for h in range(height):
                        for w in range(width):
                            there = place == h * width + w
                            own = value if there else element(zero(x), x)
                            x[p, r * height + h, c * width + w] = own

    return _Tiles(add_up, share_out, take_largest, put_back)
