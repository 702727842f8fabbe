"""Memory of the emulated device: NumPy bytes between guard zones, known by their addresses.

New memory is filled with 0xFF, which is NaN in every floating point type. 256 guard bytes on both
sides tell whether a kernel wrote outside of its array.
"""

from __future__ import annotations

import bisect
import ctypes
import mmap
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .errors import CUDARuntimeError, OutOfMemoryError
from .record import settings

GUARD = 256
_GUARD_BYTE = 0xA5
_ALIGNMENT = 512
_PAGE = mmap.PAGESIZE

_here = threading.local()
_lock = threading.RLock()


def current_device() -> int:
    return getattr(_here, "device", 0)


def set_device(number: int) -> None:
    if not 0 <= number < settings.device_count:
        raise CUDARuntimeError("cudaErrorInvalidDevice", "invalid device ordinal", 101)
    _here.device = number


class BaseMemory:
    """Bytes of a device: `ptr`, `size`, `device_id`; and `bytes`, which CuPy does not have."""

    ptr: int
    size: int
    device_id: int
    bytes: np.ndarray

    @property
    def device(self) -> Any:
        from .device import Device

        return Device(self.device_id)

    @property
    def allocation(self) -> BaseMemory:
        """Whose end frees the bytes."""
        return self

    def damage(self) -> str | None:
        """Which guard zone was written to, if one was."""
        return None


class Memory(BaseMemory):
    """Allocated memory. Freed with the last array that uses it."""

    def __init__(self, size: int) -> None:

        self.size = size
        self.device_id = current_device()
        self.stream = _current_stream()
        if settings.guard_pages:
            self._place_before_guard_page(size)
        else:
            whole = np.empty(size + 2 * GUARD + _ALIGNMENT, np.uint8)
            start = GUARD + -(whole.ctypes.data + GUARD) % _ALIGNMENT
            self._zones = [whole[start - GUARD : start], whole[start + size : start + size + GUARD]]
            self.bytes = whole[start : start + size]
        self.bytes[:] = 0xFF
        for zone in self._zones:
            zone[:] = _GUARD_BYTE
        self.ptr = self.bytes.ctypes.data
        _register(self)

    def _place_before_guard_page(self, size: int) -> None:
        """The end at a page without access, up to the alignment of the largest vector type."""
        readable = -(-(size + GUARD) // _PAGE) * _PAGE
        whole = np.frombuffer(mmap.mmap(-1, readable + _PAGE), np.uint8)
        base = whole.ctypes.data
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(base + readable), ctypes.c_size_t(_PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
        start = readable - -(-size // 16) * 16
        self.bytes = whole[start : start + size]
        self._zones = [whole[start - GUARD : start], whole[start + size : readable]]

    def damage(self) -> str | None:
        for zone, side in zip(self._zones, ("before", "behind"), strict=True):
            if zone.tobytes() != bytes([_GUARD_BYTE]) * len(zone):
                wrong = np.flatnonzero(zone != _GUARD_BYTE)
                near = len(zone) - wrong[-1] if side == "before" else wrong[0] + 1
                zone[:] = _GUARD_BYTE
                return f"byte {near} {side}"
        return None


def _current_stream() -> int:
    from .stream import get_current_stream

    return get_current_stream().ptr


class UnownedMemory(BaseMemory):
    """Memory that somebody else owns, at an address."""

    def __init__(self, ptr: int, size: int, owner: Any, device_id: int = -1) -> None:
        self.ptr = int(ptr)
        self.size = int(size)
        self.owner = owner
        self.device_id = current_device() if device_id < 0 else device_id
        self.bytes = _bytes_at(self.ptr, self.size)

    @property
    def allocation(self) -> BaseMemory:
        return find_memory(self.ptr) or self


def _bytes_at(address: int, size: int) -> np.ndarray:
    if size == 0:
        return np.empty(0, np.uint8)
    return np.frombuffer((ctypes.c_ubyte * size).from_address(address), np.uint8)


# Allocations by address. Weak, so that memory is freed as on a device.
_bases: list[int] = []
_memories: dict[int, weakref.ref[Memory]] = {}


def _register(memory: Memory) -> None:
    base = memory.ptr
    with _lock:
        bisect.insort(_bases, base)
        _memories[base] = weakref.ref(memory)
    weakref.finalize(memory, _forget, base).atexit = False


def _forget(base: int) -> None:
    with _lock:
        _memories.pop(base, None)
        index = bisect.bisect_left(_bases, base)
        if index < len(_bases) and _bases[index] == base:
            del _bases[index]


def find_memory(address: int) -> Memory | None:
    """The allocation that holds an address."""
    with _lock:
        index = bisect.bisect_right(_bases, address) - 1
        memory = _memories[_bases[index]]() if index >= 0 else None
    if memory is None or address > memory.ptr + memory.size:
        return None
    return memory


def memories_named_in(table: np.ndarray) -> list[Memory]:
    """Allocations whose addresses stand in bytes, as in a table of pointers."""
    words = table[: len(table) // 8 * 8].view(np.uint64)
    with _lock:
        bases = np.array(_bases, np.uint64)
    if len(bases) == 0:
        return []
    inside = words[(words >= bases[0]) & (words <= bases[-1] + np.uint64(1 << 40))]
    found = {m.ptr: m for m in map(find_memory, map(int, np.unique(inside))) if m is not None}
    return list(found.values())


def live_memories() -> list[Memory]:
    with _lock:
        found = [reference() for reference in _memories.values()]
    return [memory for memory in found if memory is not None]


def check_guards() -> None:
    """Raises if a guard zone of any live allocation was written to."""
    for memory in live_memories():
        damage = memory.damage()
        if damage:
            raise CUDARuntimeError(
                "cudaErrorIllegalAddress",
                f"{damage} an allocation of {memory.size} bytes was written to",
                700,
            )


class MemoryPointer:
    """A place in memory. Its copies are in `copies.py`."""

    def __init__(self, mem: BaseMemory, offset: int) -> None:
        if not 0 <= offset <= mem.size:
            raise ValueError(f"offset {offset} lies outside of {mem.size} bytes")
        self.mem = mem
        self.ptr = mem.ptr + offset

    @property
    def device_id(self) -> int:
        return self.mem.device_id

    @property
    def device(self) -> Any:
        return self.mem.device

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)

    def __sub__(self, offset: int) -> MemoryPointer:
        return self + -offset

    def __int__(self) -> int:
        return self.ptr

    def copy_from_device(self, src: MemoryPointer, size: int) -> None:
        _copies().memcpy_and_wait(self.ptr, src.ptr, size, 3)

    def copy_from_device_async(self, src: MemoryPointer, size: int, stream: Any = None) -> None:
        _copies().memcpy(self.ptr, src.ptr, size, 3, stream)

    def copy_from_host(self, mem: Any, size: int) -> None:
        _copies().memcpy_and_wait(self.ptr, host_address(mem), size, 1)

    def copy_from_host_async(self, mem: Any, size: int, stream: Any = None) -> None:
        _copies().memcpy(self.ptr, host_address(mem), size, 1, stream)

    def copy_to_host(self, mem: Any, size: int) -> None:
        _copies().memcpy_and_wait(host_address(mem), self.ptr, size, 2)

    def copy_to_host_async(self, mem: Any, size: int, stream: Any = None) -> None:
        _copies().memcpy(host_address(mem), self.ptr, size, 2, stream)

    def copy_from(self, mem: Any, size: int) -> None:
        is_device = isinstance(mem, MemoryPointer)
        (self.copy_from_device if is_device else self.copy_from_host)(mem, size)

    def copy_from_async(self, mem: Any, size: int, stream: Any = None) -> None:
        is_device = isinstance(mem, MemoryPointer)
        (self.copy_from_device_async if is_device else self.copy_from_host_async)(mem, size, stream)

    def memset(self, value: int, size: int) -> None:
        _copies().memset(self.ptr, value, size, 0)

    def memset_async(self, value: int, size: int, stream: Any = None) -> None:
        _copies().memset(self.ptr, value, size, stream)


def _copies() -> Any:
    from . import copies

    return copies


def host_address(memory: Any) -> int:
    """As CuPy: an address, an object with `ptr` (pinned memory) or a ctypes pointer."""
    if isinstance(memory, int):
        return memory
    if hasattr(memory, "ptr"):
        return int(memory.ptr)
    value = getattr(memory, "value", None)
    if value is None:
        raise TypeError(f"needs a host address as ctypes.c_void_p, got {type(memory).__name__}")
    return int(value)


class MemoryPool:
    """Counts what is in use; kept but free memory is a number only."""

    def __init__(self, allocator: Callable[[int], MemoryPointer] | None = None) -> None:
        self._used: dict[int, int] = {}
        self._total: dict[int, int] = {}
        self._limit: dict[int, int] = {}
        _pools.add(self)

    def malloc(self, size: int) -> MemoryPointer:
        device = current_device()
        rounded = -(-size // _ALIGNMENT) * _ALIGNMENT
        with _lock:
            used = self._used.get(device, 0) + rounded
            limit = self._limit.get(device, 0)
            if limit and used > limit:
                raise OutOfMemoryError(rounded, self._total.get(device, 0), limit)
            if used > self._total.get(device, 0):
                grown = used - self._total.get(device, 0)
                if device_memory_in_use(device) + grown > settings.device_memory:
                    for pool in list(_pools):
                        pool.free_all_blocks()
                    if device_memory_in_use(device) + rounded > settings.device_memory:
                        raise OutOfMemoryError(rounded, self._total.get(device, 0))
                self._total[device] = max(self._total.get(device, 0), used)
            self._used[device] = used
        memory = Memory(size)
        weakref.finalize(memory, self._release, device, rounded).atexit = False
        return MemoryPointer(memory, 0)

    def _release(self, device: int, size: int) -> None:
        with _lock:
            self._used[device] -= size

    def free_all_blocks(self, stream: Any = None) -> None:
        with _lock:
            self._total = dict(self._used)

    def free_all_free(self) -> None:
        self.free_all_blocks()

    def n_free_blocks(self) -> int:
        return int(self.free_bytes() > 0)

    def used_bytes(self) -> int:
        return self._used.get(current_device(), 0)

    def total_bytes(self) -> int:
        return self._total.get(current_device(), 0)

    def free_bytes(self) -> int:
        return self.total_bytes() - self.used_bytes()

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        if (size is None) == (fraction is None):
            raise ValueError("give either size or fraction")
        limit = int(settings.device_memory * fraction) if fraction is not None else int(size or 0)
        self._limit[current_device()] = limit

    def get_limit(self) -> int:
        return self._limit.get(current_device(), 0)


_pools: weakref.WeakSet[MemoryPool] = weakref.WeakSet()
_default_pool = MemoryPool()
_unpooled = MemoryPool()


def device_memory_in_use(device: int) -> int:
    return sum(pool._total.get(device, 0) for pool in list(_pools))


def get_default_memory_pool() -> MemoryPool:
    return _default_pool


def malloc_unpooled(size: int) -> MemoryPointer:
    """What a None allocator gives: memory that goes back to the device at once."""
    pointer = _unpooled.malloc(size)
    weakref.finalize(pointer.mem, _unpooled.free_all_blocks).atexit = False
    return pointer


_allocator: Callable[[int], MemoryPointer] = _default_pool.malloc


def get_allocator() -> Callable[[int], MemoryPointer]:
    return getattr(_here, "allocator", None) or _allocator


def set_allocator(allocator: Callable[[int], MemoryPointer] | None = None) -> None:
    global _allocator
    if getattr(_here, "allocator", None):
        raise ValueError("set_allocator cannot be called inside using_allocator")
    _allocator = allocator or malloc_unpooled


@contextmanager
def using_allocator(allocator: Callable[[int], MemoryPointer] | None = None) -> Iterator[None]:
    before = getattr(_here, "allocator", None)
    _here.allocator = allocator or malloc_unpooled
    try:
        yield
    finally:
        _here.allocator = before


def alloc(size: int) -> MemoryPointer:
    return get_allocator()(int(size))
