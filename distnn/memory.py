"""Host memory for large arrays: taken from the system once, used again and again.

An array from here returns its memory when the last view of it dies, whoever holds that view: the
engine, the communication thread or the user. So nothing is given back by hand, and an array that a
user got from `.d` is never overwritten behind the user's back.

Asking the system anew for every array would cost a page fault for each 4 KiB that is written.
"""

from __future__ import annotations

import math
import mmap

import numpy as np

# Below this NumPy's own allocator is faster, and its memory stays in the process anyway.
SMALLEST = 64 * 1024
_HUGE_PAGES = 4 * 1024 * 1024


class _Block(np.ndarray):
    """The one array over a piece of memory; all others are views whose base chain ends here.

    NumPy shortens chains of bases as long as they have the type of the view, so a subclass (over
    memory that is no array) is what a chain stops at.
    """

    def __del__(self) -> None:
        pool.give(self.base)  # type: ignore[arg-type]  # the memory map it was made over


class Pool:
    """Memory maps by size, eight sizes an octave."""

    def __init__(self) -> None:
        self._idle: dict[int, list[mmap.mmap]] = {}
        self.mapped_bytes = 0  # asked of the system, ever
        self.used_bytes = 0
        self.idle_bytes = 0
        self.peak_bytes = 0

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An uninitialised C-contiguous array, aligned to a page when it is large."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < SMALLEST:
            return np.empty(shape, dtype)
        size = _rounded(nbytes)
        idle = self._idle.get(size)
        try:
            memory = idle.pop()  # type: ignore[union-attr]
            self.idle_bytes -= size
        except (AttributeError, IndexError):
            memory = mmap.mmap(-1, size)
            self.mapped_bytes += size
            if size >= _HUGE_PAGES and hasattr(mmap, "MADV_HUGEPAGE"):
                memory.madvise(mmap.MADV_HUGEPAGE)
        self.used_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        block = np.ndarray.__new__(_Block, (size,), np.uint8, memory)
        return np.ndarray(shape, dtype, block)  # type: ignore[arg-type]

    def give(self, memory: mmap.mmap) -> None:
        """Keep `memory` for later, or let the system have it when much lies idle already."""
        size = len(memory)
        self.used_bytes -= size
        if self.idle_bytes + size <= self.peak_bytes:
            self.idle_bytes += size
            self._idle.setdefault(size, []).append(memory)

    def release(self) -> None:
        """Return all idle memory to the system."""
        self._idle.clear()
        self.idle_bytes = 0


def _rounded(nbytes: int) -> int:
    step = max(mmap.PAGESIZE, 1 << (nbytes.bit_length() - 4))
    return -(-nbytes // step) * step


def owns_memory(array: np.ndarray) -> bool:
    """True if `array` is no view of another array: who holds it alone may write to it."""
    return array.base is None or isinstance(array.base, _Block)


pool = Pool()
