"""Arrays between host and device: array, asarray, get, set, asnumpy."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import ordering
from .array import check_dtype, ndarray
from .calls import compute
from .memory import MemoryPointer, UnownedMemory, find_memory
from .record import record
from .stream import finish_background, refuse_capture, stream_address, synchronized


def upload(values: Any, dtype: Any, order: str, stream: Any = None) -> ndarray:
    """A host array or nested list in new device memory."""
    host = np.asarray(values, dtype)
    check_dtype(host.dtype)
    if order not in "KA":
        host = np.asarray(host, order=order)
    address = stream_address(stream)
    refuse_capture(address, "copies from host to device")
    result = ndarray._copy_of(host)
    ordering.begin("asarray", address, [result._access(writes=True)])
    record.uploads += 1
    record.operations.append(("copy", "HtoD", host.nbytes, address))
    return result


def array(
    obj: Any,
    dtype: Any = None,
    copy: bool = True,
    order: str = "K",
    subok: bool = False,
    ndmin: int = 0,
    *,
    blocking: bool = False,
) -> ndarray:
    order = order or "K"
    if isinstance(obj, ndarray):
        wanted = obj.dtype if dtype is None else check_dtype(dtype)
        same = wanted == obj.dtype and (
            order in "KA"
            or (order == "C" and obj.flags.c_contiguous)
            or (order == "F" and obj.flags.f_contiguous)
        )
        if not copy and same:
            result = obj
        else:
            result = compute("array", lambda x: np.array(x, wanted, order=order), (obj,), {})
    elif hasattr(obj, "__cuda_array_interface__"):
        result = array(from_interface(obj), dtype, copy, order)
    elif isinstance(obj, list | tuple) and _holds_arrays(obj):
        result = compute("array", lambda x: np.array(x, dtype), (list(obj),), {})
    else:
        result = upload(obj, dtype, order)
    if result.ndim < ndmin:
        result = result[(None,) * (ndmin - result.ndim)]
    return result


def _holds_arrays(items: Any) -> bool:
    return any(
        isinstance(item, ndarray) or (isinstance(item, list | tuple) and _holds_arrays(item))
        for item in items
    )


def asarray(
    a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: bool = False
) -> ndarray:
    return array(a, dtype, bool(copy), order or "K")


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    _needs_device_array("ascontiguousarray", a)
    result = array(a, dtype, False, "C")
    return result if result.ndim else result.reshape(1)


def asfortranarray(a: Any, dtype: Any = None) -> ndarray:
    _needs_device_array("asfortranarray", a)
    return array(a, dtype, False, "F")


def _needs_device_array(name: str, a: Any) -> None:
    if not isinstance(a, ndarray):
        raise TypeError(f"[cupy.{name}] expected cupy.ndarray, got {type(a).__name__}")


def asnumpy(
    a: Any, stream: Any = None, order: str = "C", out: Any = None, *, blocking: bool = True
) -> np.ndarray:
    if isinstance(a, ndarray):
        return a.get(stream, order, out, blocking)
    result = np.asarray(a, order=order)  # type: ignore[call-overload]
    if out is None:
        return result
    out[...] = result
    return out


def get(a: ndarray, stream: Any, order: str, out: Any, blocking: bool) -> np.ndarray:
    if out is not None:
        if not isinstance(out, np.ndarray):
            raise TypeError("Only numpy.ndarray can be obtained from cupy.ndarray")
        if out.dtype != a.dtype:
            raise TypeError(f"{out.dtype} array cannot be obtained from {a.dtype} array")
        if out.shape != a.shape:
            raise ValueError(
                f"Shape mismatch. Expected shape: {a.shape}, actual shape: {out.shape}"
            )
        if not out.flags.c_contiguous and not out.flags.f_contiguous:
            raise RuntimeError("`out` cannot be specified when copying to non-contiguous ndarray")
    address = stream_address(stream)
    refuse_capture(address, "copies from device to host")
    finish_background(address)
    if out is None:
        out = np.empty(a.shape, a.dtype, "C" if order not in "CF" else order)  # type: ignore
    out[...] = a._host
    ordering.begin("get", address, [a._access(writes=False)])
    record.downloads += 1
    record.operations.append(("copy", "DtoH", a.nbytes, address))
    if blocking:
        synchronized("get", address)
    return out


def set_values(a: ndarray, values: np.ndarray, stream: Any) -> None:
    if not isinstance(values, np.ndarray):
        raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
    if values.dtype != a.dtype:
        raise TypeError(f"{values.dtype} array cannot be set to {a.dtype} array")
    if values.shape != a.shape:
        raise ValueError(f"Shape mismatch. Old shape: {a.shape}, new shape: {values.shape}")
    if not (a.flags.c_contiguous or a.flags.f_contiguous):
        raise RuntimeError("Cannot set to non-contiguous array")
    address = stream_address(stream)
    refuse_capture(address, "copies from host to device")
    ordering.begin("set", address, [a._access(writes=True)])
    finish_background(address)
    a._host[...] = values
    record.uploads += 1
    record.operations.append(("copy", "HtoD", a.nbytes, address))


def at_address(address: int, shape: Any, dtype: Any, strides: Any, owner: Any) -> ndarray:
    """An array over memory that is known, or that `owner` keeps."""
    dtype = np.dtype(dtype)
    memory = find_memory(address)
    if memory is None:
        size = dtype.itemsize * int(np.prod(shape)) if strides is None else 0
        for length, stride in zip(shape, strides or (), strict=False):
            size += abs(stride) * (length - 1)
        memory = UnownedMemory(address, size or dtype.itemsize, owner)  # type: ignore[assignment]
    assert memory is not None
    pointer = MemoryPointer(memory, address - memory.ptr)
    return ndarray(shape, dtype, pointer, strides)


def from_interface(obj: Any) -> ndarray:
    face = obj.__cuda_array_interface__
    return at_address(face["data"][0], face["shape"], face["typestr"], face.get("strides"), obj)
