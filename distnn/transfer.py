"""Values between memories: the host's and those of devices.

An array is a NumPy array or an array of a device. Code that does not compute, but only moves values
or asks where they lie, does so here; what moves them on a device is in `cuda/transfer.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

device_used = False  # whether this process has used a GPU


def on_host(array: Any) -> bool:
    """True for a NumPy array."""
    return isinstance(array, np.ndarray)


def is_visible(array: Any) -> bool:
    """True where users see the memory itself, not a copy of it on the host."""
    return on_host(array) and array.dtype.char != "E"


def same_memory(a: Any, b: Any) -> bool:
    """Whether two arrays lie in the memory of one device, or both in the host's."""
    if on_host(a) or on_host(b):
        return on_host(a) and on_host(b)
    return a.device.id == b.device.id


def copy(target: Any, source: Any) -> None:
    """target[...] = source, whatever memory they are in; dtypes of the same kind."""
    if on_host(target) and on_host(source):
        np.copyto(target, source, "same_kind")
    else:
        _device().copy(target, source)


def to_host(array: Any) -> np.ndarray:
    """The values as a NumPy array: the array itself, or a copy of a device's.

    Raises: errors that kernels have found since the last such read (a label out of range).
    """
    return array if on_host(array) else _device().to_host(array)


def host_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype in which users see values of a dtype: bfloat16, which NumPy lacks, as float32."""
    return np.dtype(np.float32) if dtype.char == "E" else dtype


def address(array: Any) -> int:
    """Where the array's first element lies."""
    if on_host(array):
        return array.__array_interface__["data"][0]
    return array.data.ptr


def visible(array: Any) -> np.ndarray:
    """A copy on the host of an array that is not visible."""
    values = to_host(array)
    return values.astype(host_dtype(values.dtype), copy=False)


def backend_of(array: Any) -> Any:
    """A backend that computes in the memory in which `array` lies."""
    if on_host(array):
        return _cpu_backend()(_type_config(array.dtype))
    from .cuda.backend import cuda_backend

    return cuda_backend(_type_config(array.dtype), array.device.id)


def _type_config(dtype: np.dtype) -> str:
    return {"d": "double", "e": "half"}.get(dtype.char, "float")


def host_backend() -> Any:
    """A backend of the host's memory."""
    return _cpu_backend()("float")


@functools.cache
def _cpu_backend() -> Any:
    from .backend import cpu_backend

    return cpu_backend


def from_device(values: Any) -> Any:
    """`values` as an array of a device, if they lie on one; None if not."""
    if on_host(values) or not hasattr(values, "__cuda_array_interface__"):
        return None
    return _device().adopt(values)


def array_module(array: Any) -> Any:
    """numpy, or for an array of a device cupy."""
    return np if on_host(array) else _device().cupy


@contextmanager
def staged(arrays: Sequence[Any], down: bool = True, up: bool = True) -> Iterator[list[np.ndarray]]:
    """Arrays of the host in place of those of a device; arrays of the host are what they are.

    Args:
        down: they have the values of the device's arrays.
        up: they give their values back at the end, unless the block raises.
    """
    if all(map(on_host, arrays)):
        yield list(arrays)
    else:
        from .cuda import staging

        with staging.staged(arrays, down, up) as hosts:
            yield hosts


def device_is_used() -> None:
    """Note that this process uses a GPU."""
    global device_used
    device_used = True


def fence(streams: dict[int, Any]) -> Any:
    """A fence.Fence between what is computed here and a collective; None where no GPU is used."""
    if not device_used:
        return None
    from .cuda.fence import Fence

    return Fence(streams)


def mark() -> Any:
    """A point in the work of the device, for times; None where no GPU is used."""
    if not device_used:
        return None
    from .cuda import fence

    return fence.mark()


def from_dlpack(tensor: Any) -> Any:
    """An array over the memory of a tensor on a device."""
    return _device().from_dlpack(tensor)


def _device() -> Any:
    from .cuda import transfer

    return transfer
