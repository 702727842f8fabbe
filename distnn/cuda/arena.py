"""Arena: memory of a captured graph, which nobody else is given as long as the graph lives.

CuPy's pool does not know of graphs: an array that is let go after a capture goes to the next who
asks, and the graph overwrites it at every launch. So what is allocated during a capture comes from
here. What is let go during the capture is given again in the same one, since the graph's work runs
in that order; the rest stays the graph's.
"""

from __future__ import annotations

import bisect
import threading
import weakref
from typing import Any

import cupy

_UNIT = 512  # bytes; as CuPy's pool, and aligned for every vector type
# Below a mebibyte allocations share chunks, which are not split for larger ones: a small result
# that somebody keeps holds little else.
_LARGE, _SHARED = 1 << 20, 2 << 20


class Arena:
    """Chunks of device memory, handed out in blocks: the smallest free one that fits."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._allocate = cupy.cuda.get_allocator()  # which this one is going to replace
        # (bytes, address, chunk), sorted; of shared chunks, and of those of large arrays.
        self._free: dict[bool, list[tuple[int, int, Any]]] = {False: [], True: []}
        self._lock = threading.RLock()  # blocks are let go by whichever thread holds them last

    def malloc(self, size: int) -> Any:
        """A MemoryPointer, as CuPy's allocators return it."""
        size = -(-max(size, 1) // _UNIT) * _UNIT
        large = size >= _LARGE
        with self._lock:
            free = self._free[large]
            found = bisect.bisect_left(free, (size, 0, None))
            if found < len(free):
                length, start, chunk = free.pop(found)
            else:
                length = size if large else _SHARED
                chunk = self._allocate(length)
                start = chunk.ptr
                self.nbytes += length
            if length > size:
                bisect.insort(free, (length - size, start + size, chunk))
        return cupy.cuda.MemoryPointer(Block(self, chunk, start, size), 0)

    def release(self, chunk: Any, start: int, size: int) -> None:
        """Take a block back, joined with the free ones beside it."""
        with self._lock:
            free = self._free[size >= _LARGE]
            for beside in [entry for entry in free if entry[2] is chunk]:
                length, address, _ = beside
                if address == start + size:
                    size += length
                elif address + length == start:
                    start, size = address, size + length
                else:
                    continue
                free.remove(beside)
            bisect.insort(free, (size, start, chunk))


class Block(cupy.cuda.UnownedMemory):
    """A piece of a chunk, which it keeps alive, also longer than the arena."""

    def __init__(self, arena: Arena, chunk: Any, start: int, size: int) -> None:
        super().__init__(start, size, chunk, cupy.cuda.runtime.getDevice())
        self._arena = weakref.ref(arena)
        self._place = chunk, start, size

    def __del__(self) -> None:
        arena = self._arena()
        if arena is not None:
            arena.release(*self._place)


def is_block(array: Any) -> bool:
    """Whether an array lies in an arena: a graph may overwrite it."""
    return isinstance(array.data.mem, Block)
