"""Host memory for large arrays: taken from the system once, used again and again.

An array from here returns its memory when the last view of it dies, whoever holds that view: the
engine, the communication thread or the user. So nothing is given back by hand, and an array that a
user got from `.d` is never overwritten behind the user's back.

Asking the system anew for every array would cost a page fault for each 4 KiB that is written.
"""

from __future__ import annotations

import bisect
import math
import mmap
import threading
from collections import deque
from typing import ClassVar, NamedTuple

import numpy as np

# Below this NumPy's own allocator is faster, and its memory stays in the process anyway.
SMALLEST = 64 * 1024
_GRAIN = 4096
_HUGE_PAGE = 2 * 1024 * 1024
_LEAST_REGION = 8 * 1024 * 1024
# Python's maps are shared with forked processes, which would write into each other's arrays. Nor do
# shared maps get huge pages, without which a kernel that writes in many places waits for addresses.
_PRIVATE: dict[str, int] = (
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
)


class _Range(NamedTuple):
    """A free or used part of a region; ordered by size, for best fit."""

    size: int
    region: int
    start: int


class _Block(np.ndarray):
    """The one array over a range of memory; all others are views whose base chain ends here.

    NumPy shortens chains of bases as long as they have the type of the view, so a subclass (over
    memory that is no array) is what a chain stops at.
    """

    range: _Range
    # Blocks die anywhere, also inside of the pool's own methods when the garbage collector runs
    # there, and after this module at the end of the process: they only leave a note.
    returned: ClassVar[deque[_Range]] = deque()

    def __del__(self) -> None:
        self.returned.append(self.range)


class Pool:
    """Best fit in large memory maps, with neighbouring free ranges joined."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: list[mmap.mmap | None] = []
        self._free: list[_Range] = []  # sorted
        self._starts: dict[tuple[int, int], int] = {}  # (region, start) of a free range -> size
        self._stops: dict[tuple[int, int], int] = {}  # (region, stop) of a free range -> size
        self.mapped_bytes = 0
        self.used_bytes = 0
        self.peak_bytes = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An uninitialised C-contiguous array, aligned to a page when it is large."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < SMALLEST:
            return np.empty(shape, dtype)
        size = -(-nbytes // _GRAIN) * _GRAIN
        with self._lock:
            self._collect()
            found = self._take(size)
            self.used_bytes += size
            self.peak_bytes = max(self.peak_bytes, self.used_bytes)
            memory = self._regions[found.region]
        block = np.ndarray.__new__(_Block, (size,), np.uint8, memory, found.start)
        block.range = found
        return np.ndarray(shape, dtype, block)

    def restart_peak(self) -> int:
        """Let `peak_bytes` begin anew from what is used now; returns that."""
        with self._lock:
            self._collect()
            self.peak_bytes = self.used_bytes
            return self.used_bytes

    def release(self) -> None:
        """Return regions in which nothing is used to the system."""
        with self._lock:
            self._collect()
            for free in list(self._free):
                memory = self._regions[free.region]
                if memory is not None and len(memory) == free.size:
                    self._remove(free)
                    self._regions[free.region] = None
                    self.mapped_bytes -= free.size

    def _take(self, size: int) -> _Range:
        at = bisect.bisect_left(self._free, (size,))
        if at == len(self._free):
            self._map(size)
            at = bisect.bisect_left(self._free, (size,))
        free = self._free[at]
        self._remove(free)
        if free.size > size:
            self._add(_Range(free.size - size, free.region, free.start + size))
        return _Range(size, free.region, free.start)

    def _map(self, size: int) -> None:
        """A new region. Only what is written to takes memory, so it may be larger than asked."""
        size = max(size, _LEAST_REGION, self.mapped_bytes // 8)
        size = -(-size // _HUGE_PAGE) * _HUGE_PAGE
        memory = mmap.mmap(-1, size, **_PRIVATE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._regions.append(memory)
        self.mapped_bytes += size
        self._add(_Range(size, len(self._regions) - 1, 0))

    def _collect(self) -> None:
        """Take back what died, and join it with free neighbours."""
        while _Block.returned:
            size, region, start = _Block.returned.popleft()
            self.used_bytes -= size
            before = self._stops.get((region, start))
            if before is not None:
                start -= before
                self._remove(_Range(before, region, start))
                size += before
            after = self._starts.get((region, start + size))
            if after is not None:
                self._remove(_Range(after, region, start + size))
                size += after
            self._add(_Range(size, region, start))

    def _add(self, free: _Range) -> None:
        bisect.insort(self._free, free)
        self._starts[free.region, free.start] = free.size
        self._stops[free.region, free.start + free.size] = free.size

    def _remove(self, free: _Range) -> None:
        del self._free[bisect.bisect_left(self._free, free)]
        del self._starts[free.region, free.start]
        del self._stops[free.region, free.start + free.size]


def owns_memory(array: np.ndarray) -> bool:
    """True if `array` is no view of another array: who holds it alone may write to it."""
    return array.base is None or isinstance(array.base, _Block)


pool = Pool()
