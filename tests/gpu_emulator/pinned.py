"""Pinned host memory: plain host memory whose addresses are remembered."""

from __future__ import annotations

import bisect
import ctypes
import math
import types
import weakref
from typing import Any

import numpy as np

_ranges: list[tuple[int, int]] = []


def is_pinned(address: int) -> bool:
    index = bisect.bisect_right(_ranges, (address, 1 << 62)) - 1
    return index >= 0 and address < _ranges[index][0] + _ranges[index][1]


def alloc_pinned_memory(size: int) -> Any:
    """A buffer with `ptr`, `mem` (with a `size`) and `size()`, as CuPy's PinnedMemoryPointer."""
    # A ctypes array, since this Python cannot write a class with the buffer protocol.
    methods = {
        "ptr": property(ctypes.addressof),
        "mem": property(lambda self: types.SimpleNamespace(ptr=self.ptr, size=size)),
        "size": lambda self: size,
    }
    pointer = type("PinnedMemoryPointer", (ctypes.c_ubyte * max(int(size), 1),), methods)()
    ctypes.memset(pointer, 0xFF, ctypes.sizeof(pointer))
    entry = (ctypes.addressof(pointer), ctypes.sizeof(pointer))
    bisect.insort(_ranges, entry)
    weakref.finalize(pointer, _ranges.remove, entry).atexit = False
    return pointer


def empty_pinned(shape: Any, dtype: Any = float, order: str = "C") -> np.ndarray:
    shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    dtype = np.dtype(dtype)
    memory = alloc_pinned_memory(math.prod(shape) * dtype.itemsize)
    return np.ndarray(shape, dtype, memory, order=order)  # type: ignore[call-overload]


def zeros_pinned(shape: Any, dtype: Any = float, order: str = "C") -> np.ndarray:
    array = empty_pinned(shape, dtype, order)
    array[...] = 0
    return array


def empty_like_pinned(a: Any, dtype: Any = None, order: str = "K", **ignored: Any) -> np.ndarray:
    return empty_pinned(a.shape, dtype or a.dtype, "C" if order in "KA" else order)


def zeros_like_pinned(a: Any, dtype: Any = None, order: str = "K", **ignored: Any) -> np.ndarray:
    return zeros_pinned(a.shape, dtype or a.dtype, "C" if order in "KA" else order)


class PinnedMemoryPool:
    def malloc(self, size: int) -> Any:
        return alloc_pinned_memory(size)

    def free_all_blocks(self) -> None:
        """Nothing is kept."""

    def n_free_blocks(self) -> int:
        return 0


_default_pool = PinnedMemoryPool()


def get_default_pinned_memory_pool() -> PinnedMemoryPool:
    return _default_pool
