"""Values between the host and a device, and between devices.

Batches go up through a ring of page-locked buffers on a stream of their own: the host is free as
soon as it has written the buffer, and the compute stream waits for the copy, not the host.
"""

from __future__ import annotations

import functools
import math
from collections import deque
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
    target = cupy.empty(array.shape, dtype)
    if target.nbytes < _SMALLEST_STAGED:
        target.set(np.asarray(array, dtype, order="C"))
    else:
        _ring(cupy.cuda.runtime.getDevice()).upload(array, target)
    return target


@functools.cache
def _ring(device: int) -> _Ring:
    return _Ring()


class _Ring:
    """Page-locked buffers, each with the event at which its copy is over."""

    def __init__(self) -> None:
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._buffers: deque[tuple[Any, Any]] = deque()

    def upload(self, array: np.ndarray, target: Any) -> None:
        """target = array, converted; the host waits only for a buffer that is still in use."""
        memory = self._buffer(target.nbytes)
        staged = np.frombuffer(memory, target.dtype, math.prod(array.shape)).reshape(array.shape)
        np.copyto(staged, array, "unsafe")
        compute = cupy.cuda.get_current_stream()
        # The target's memory may still be read by work that was queued when it was another array.
        self._stream.wait_event(compute.record())
        target.data.copy_from_host_async(memory.ptr, target.nbytes, self._stream)
        copied = self._stream.record()
        compute.wait_event(copied)
        self._buffers.append((memory, copied))

    def _buffer(self, nbytes: int) -> Any:
        """A buffer whose last copy is over."""
        if len(self._buffers) >= _BUFFERS:
            memory, copied = self._buffers.popleft()
            copied.synchronize()
            if memory.size() >= nbytes:
                return memory
        return cupy.cuda.alloc_pinned_memory(nbytes)
