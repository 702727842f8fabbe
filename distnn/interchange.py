"""Arrays of other libraries as ours and ours as theirs, over the same memory.

DLPack (https://dmlc.github.io/dlpack), NumPy's array interface, and CUDA's array interface
(version 3). None of them copies: who writes to one array changes the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import transfer
from .errors import ArgumentError
from .ndarray import NdArray
from .storage import Storage

_HOST, _CUDA = 1, 2  # DLPack's numbers of kinds of devices


def from_dlpack(tensor: Any) -> NdArray:
    """An NdArray over the memory of `tensor`, an array of any library that speaks DLPack.

    Args:
        tensor: on the host or on a GPU; C-contiguous, of numbers. One of PyTorch that needs a
            gradient has to be detached.
    Returns: an NdArray of the same memory, shape and dtype.
    Raises: ArgumentError for what is no such tensor, is not contiguous, or cannot be written to.

    >>> import numpy as np, distnn as nn
    >>> theirs = np.zeros(3, np.float32)
    >>> ours = nn.from_dlpack(theirs)
    >>> theirs[1] = 2
    >>> ours.data
    array([0., 2., 0.], dtype=float32)
    """
    if not hasattr(tensor, "__dlpack_device__"):
        raise ArgumentError(
            f"[from_dlpack] tensor is {type(tensor).__name__}, which has no __dlpack__; pass a "
            "tensor of PyTorch, CuPy, JAX, NumPy, ..."
        )
    kind, _ = tensor.__dlpack_device__()
    if kind not in (_HOST, _CUDA):
        raise ArgumentError(
            f"[from_dlpack] tensor lies on a device of DLPack's kind {int(kind)}; distnn takes "
            f"those of the host ({_HOST}) and of CUDA ({_CUDA})"
        )
    array = np.from_dlpack(tensor) if kind == _HOST else transfer.from_dlpack(tensor)
    if not array.flags.c_contiguous:
        raise ArgumentError(
            f"[from_dlpack] tensor of shape {array.shape} has strides {array.strides} in bytes; "
            "pass a C-contiguous one (tensor.contiguous())"
        )
    if kind == _HOST and not array.flags.writeable:
        raise ArgumentError("[from_dlpack] tensor is read-only; pass a copy of it")
    if array.dtype.kind not in "biuf":
        raise ArgumentError(
            f"[from_dlpack] tensor has dtype {array.dtype}; pass bool, integer or float numbers"
        )
    storage = Storage(array.shape, array.dtype, None)
    storage.place(array)
    storage.exported = True  # its owner may write to it at any time
    return NdArray._of(storage, array.shape)


def exported(array: NdArray) -> Any:
    """The memory of `array` as NumPy's or CuPy's array, noted as one that others may write to."""
    storage = array._storage
    values = storage.materialize()
    if not transfer.on_host(values) and transfer.backend_of(values).is_captured(values):
        values = values.copy()  # a CUDA graph is going to write to it again
        storage.place(values)
    storage.written()
    storage.exported = True
    return array._view(values)


def dlpack_device(array: NdArray) -> tuple[int, int]:
    """DLPack's kind and number of the device on which the values lie."""
    values = array._storage.materialize()
    return (_HOST, 0) if transfer.on_host(values) else (_CUDA, values.device.id)


def array_interface(array: NdArray) -> dict[str, Any]:
    """NumPy's array interface, read-only; AttributeError where the values lie on a GPU."""
    values = array._storage.materialize()
    if not transfer.on_host(values):
        raise AttributeError("__array_interface__: the array lies on a GPU; np.asarray copies it")
    values = array._view(values).view()
    values.flags.writeable = False
    # The array itself as the buffer: its memory lives as long as what is made of the interface.
    interface = dict(values.__array_interface__)
    interface["data"] = values.reshape(-1).view(np.uint8)
    return interface


def cuda_array_interface(array: NdArray) -> dict[str, Any]:
    """CUDA's array interface; AttributeError where the values lie on the host."""
    if transfer.on_host(array._storage.materialize()):
        raise AttributeError("__cuda_array_interface__: the array lies on the host")
    values = exported(array)
    # Who takes the interface holds the NdArray, and that the memory.
    array._handed_out = (*getattr(array, "_handed_out", ()), values)
    return values.__cuda_array_interface__
