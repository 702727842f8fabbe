"""DLPack capsules that say CUDA: NumPy's own, with the kind of device written over."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .array import ndarray

CPU, CUDA = 1, 2
_VERSIONED = b"dltensor_versioned"

_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype = ctypes.c_void_p
_get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype = ctypes.c_int
_is_valid.argtypes = [ctypes.py_object, ctypes.c_char_p]


def _write_device(capsule: Any, kind: int) -> None:
    # DLTensor starts with its data pointer, then the kind of device. In a versioned capsule it
    # follows version, context, deleter and flags.
    versioned = bool(_is_valid(capsule, _VERSIONED))
    start = _get_pointer(capsule, _VERSIONED if versioned else b"dltensor")
    ctypes.c_int32.from_address(start + (32 if versioned else 0) + 8).value = kind


def export(array: ndarray, max_version: Any) -> Any:
    if array.dtype.kind == "V":
        raise BufferError(f"DLPack capsules of {array.dtype} are not emulated")
    if max_version is None:
        capsule = array._host.__dlpack__()
    else:
        capsule = array._host.__dlpack__(max_version=max_version)
    _write_device(capsule, CUDA)
    return capsule


class _OnHost:
    """A capsule as NumPy takes it."""

    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule

    def __dlpack__(self, **options: Any) -> Any:
        return self.capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU, 0


def from_dlpack(array: Any, *, device: Any = None, copy: Any = None) -> ndarray:
    from .transfers import at_address

    if hasattr(array, "__dlpack__"):
        if array.__dlpack_device__()[0] != CUDA:
            raise BufferError("[cupy.from_dlpack] the array is not on a CUDA device")
        capsule = array.__dlpack__(stream=None)
    else:
        capsule = array
    _write_device(capsule, CPU)
    host = np.from_dlpack(_OnHost(capsule))
    result = at_address(host.ctypes.data, host.shape, host.dtype, host.strides, host)
    return result.copy() if copy else result
