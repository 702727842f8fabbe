"""Arena: offsets in one piece of memory for arrays of which is known from when to when they live.

To find the smallest arena is as hard as packing boxes. Here the largest arrays are placed first, or
those that live longest, each into the smallest gap between those that live at the same time. What
no plan can beat is the most that lives at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ALIGNMENT = 256  # bytes; what GPUs' kernels and allocators ask for


class Span(NamedTuple):
    """An array's bytes, and the first and the last step in which it lives."""

    nbytes: int
    first: int
    last: int


def aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def live_bytes(spans: Sequence[Span], n_steps: int) -> np.ndarray:
    """How many bytes live in each step.

    >>> live_bytes([Span(256, 0, 1), Span(512, 1, 1)], 3).tolist()
    [256, 768, 0]
    """
    change = np.zeros(n_steps + 1, np.int64)
    for span in spans:
        change[span.first] += aligned(span.nbytes)
        change[span.last + 1] -= aligned(span.nbytes)
    return np.cumsum(change)[:n_steps]


def offsets(spans: Sequence[Span]) -> list[int]:
    """Where each array starts, so that no two overlap that live at the same time.

    >>> offsets([Span(256, 0, 1), Span(512, 1, 2), Span(256, 2, 3)])
    [512, 0, 512]
    """
    sizes = [aligned(span.nbytes) for span in spans]

    def end(starts: Sequence[int]) -> int:
        return max((start + size for start, size in zip(starts, sizes, strict=True)), default=0)

    large_first = sorted(range(len(spans)), key=lambda i: (-sizes[i], spans[i].first, i))
    # Where one array is far larger than others, those that stay are better off below it.
    long_first = sorted(large_first, key=lambda i: spans[i].first - spans[i].last)
    return min((_placed(spans, sizes, order) for order in (large_first, long_first)), key=end)


def _placed(spans: Sequence[Span], sizes: Sequence[int], order: Sequence[int]) -> list[int]:
    first = np.array([span.first for span in spans], np.int64)
    last = np.array([span.last for span in spans], np.int64)
    starts = np.full(len(spans), -1, np.int64)
    for i in order:
        at_once = (starts >= 0) & (first <= last[i]) & (last >= first[i])
        placed = sorted((int(starts[j]), sizes[j]) for j in map(int, np.flatnonzero(at_once)))
        starts[i] = _smallest_gap(placed, sizes[i])
    return starts.tolist()


def _smallest_gap(placed: Sequence[tuple[int, int]], size: int) -> int:
    """The start of the smallest gap into which `size` fits; after all others if there is none."""
    found, least, end = -1, 0, 0
    for start, length in placed:
        gap = start - end
        if gap >= size and (found < 0 or gap < least):
            found, least = end, gap
        end = max(end, start + length)
    return end if found < 0 else found
