"""Values between the host and a device, and between devices.

Batches go up through a ring of page-locked buffers on a stream of their own: the host is free as
soon as it has written the buffer, and the compute stream waits for the copy, not the host. They
land in memory that was a batch's before, while the device still works on the last one.
"""

from __future__ import annotations

import functools
import sys
from collections import deque
from contextlib import suppress
from typing import Any

import cupy
import numpy as np

from ..context import current_world
from ..errors import ContextError
from ..launching import launch_waiting
from ..transfer import device_is_used, host_dtype
from . import labels

# Arrays below this go up with an ordinary copy: the driver stages them itself.
_SMALLEST_STAGED = 64 * 1024
_BUFFERS = 3  # being filled, being copied, and one of the batch before
_LANDINGS = 4  # that are kept: images and labels, or two of images, of the batch before


def copy(target: Any, source: Any) -> None:
    """target[...] = source; at least one of the two lies on a device."""
    if isinstance(target, np.ndarray):
        np.copyto(target, to_host(source), "same_kind")
        return
    with target.device:
        if isinstance(source, np.ndarray):
            target[...] = to_device(np.broadcast_to(source, target.shape), target.dtype)
        else:
            target[...] = source


def to_host(array: Any) -> np.ndarray:
    """A NumPy copy, bfloat16 as float32.

    Waits for the device, and raises what kernels and NCCL have found.
    """
    launch_waiting()
    with array.device:
        values = array.get()
        labels.raise_found()
    values = values.astype(host_dtype(values.dtype), copy=False)
    communicator = current_world().communicator
    if communicator is not None:
        communicator.check_alive()
    return values


def to_device(array: Any, dtype: np.dtype) -> Any:
    """A C-contiguous array of `dtype` on the current device, in memory of its own."""
    if isinstance(array, np.ndarray):
        return _uploaded(array, np.dtype(dtype))
    if array.device.id != cupy.cuda.runtime.getDevice():
        array = cupy.array(array)  # between devices CuPy copies peer to peer
    return array.astype(dtype, order="C", copy=True)


def adopt(values: Any) -> Any:
    """An array of another library on a device as ours, over the same memory."""
    array = values if isinstance(values, cupy.ndarray) else cupy.asarray(values)
    device_is_used()
    current = cupy.cuda.runtime.getDevice()
    if array.device.id != current:
        raise ContextError(
            f"[NdArray.data] the array lies on device {array.device.id} but the context runs on "
            f"device {current}; copy it there first (cupy.asarray inside of cupy.cuda.Device)"
        )
    return array


def from_dlpack(tensor: Any) -> Any:
    """An array over the memory of a tensor of another library on a device."""
    return adopt(cupy.from_dlpack(tensor))


def _uploaded(array: np.ndarray, dtype: np.dtype) -> Any:
    nbytes = array.size * dtype.itemsize
    if nbytes >= _SMALLEST_STAGED:
        return _ring(cupy.cuda.runtime.getDevice()).uploaded(array, dtype)
    target = cupy.empty(array.shape, dtype)
    target.set(np.asarray(array, dtype, order="C"))
    return target


@functools.cache
def _ring(device: int) -> _Ring:
    return _Ring()


class _Ring:
    """Page-locked buffers, each with the event at which its copy is over, and landings.

    A landing is memory of the device to which values go up. When nobody has it any more it is kept,
    with an event: work that was queued until then may still read it. The next batch lands in it
    while the device works on the last one.
    """

    def __init__(self) -> None:
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._buffers: deque[tuple[Any, Any]] = deque()
        self._landings: deque[tuple[int, Any, Any]] = deque()  # bytes, memory, event
        self._lent: dict[int, Any] = {}  # memory by address, while somebody has it

    def uploaded(self, array: np.ndarray, dtype: np.dtype) -> Any:
        """The values in device memory; the host waits only for a buffer that is still in use."""
        nbytes = array.size * dtype.itemsize
        memory = self._buffer(nbytes)
        staged = np.frombuffer(memory, dtype, array.size).reshape(array.shape)
        np.copyto(staged, array, "unsafe")
        compute = cupy.cuda.get_current_stream()
        chunk, free = self._landing(nbytes, compute)
        self._lent[chunk.ptr] = chunk
        landing = cupy.cuda.MemoryPointer(_Landing(self, chunk, nbytes, compute), 0)
        self._stream.wait_event(free)
        landing.copy_from_host_async(memory.ptr, nbytes, self._stream)
        copied = self._stream.record()
        compute.wait_event(copied)
        self._buffers.append((memory, copied))
        return cupy.ndarray(array.shape, dtype, landing)

    def _buffer(self, nbytes: int) -> Any:
        """A buffer whose last copy is over."""
        if len(self._buffers) >= _BUFFERS:
            memory, copied = self._buffers.popleft()
            copied.synchronize()
            if memory.size() >= nbytes:
                return memory
        return cupy.cuda.alloc_pinned_memory(nbytes)

    def _landing(self, nbytes: int, compute: Any) -> tuple[Any, Any]:
        """Memory, and the event after which nobody reads what it held."""
        for found in list(self._landings):
            if found[0] == nbytes:
                with suppress(ValueError):  # another thread has taken it
                    self._landings.remove(found)
                    return found[1:]
        # Work that was queued when this was another array may still use it.
        return cupy.cuda.alloc(nbytes), compute.record()

    def give_back(self, nbytes: int, address: int, free: Any) -> None:
        self._landings.append((nbytes, self._lent.pop(address), free))
        if len(self._landings) > _LANDINGS:
            self._landings.popleft()

    def let_go(self) -> bool:
        """Free the landings that nobody has; whether there were any."""
        found = bool(self._landings)
        self._landings.clear()
        return found


class _Landing(cupy.cuda.UnownedMemory):
    """A landing while somebody has it; the ring keeps its memory meanwhile, not this object.

    Collected as garbage it could not keep what it alone has: that would be garbage, too.
    """

    def __init__(self, ring: _Ring, chunk: Any, nbytes: int, compute: Any) -> None:
        super().__init__(chunk.ptr, nbytes, ring, cupy.cuda.runtime.getDevice())
        self._own = ring, compute

    def __del__(self) -> None:
        ring, compute = self._own
        if not sys.is_finalizing():
            ring.give_back(self.size, self.ptr, compute.record())


def let_go_of_landings() -> bool:
    """Free the memory that waits for batches on the current device; whether there was any."""
    return _ring(cupy.cuda.runtime.getDevice()).let_go()
