"""Arguments of kernels: as CuPy packs them, held against the kernel's parameters.

cuLaunchKernel copies as many bytes as the parameter has from wherever the argument lies. A wrong
argument is silent garbage on a device; here it raises TypeError.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np

from .array import ndarray
from .compiler import Parameter
from .errors import CUDARuntimeError
from .memory import BaseMemory, MemoryPointer, current_device, find_memory, memories_named_in
from .ordering import Access
from .pinned import is_pinned

_KINDS = {"f": "f", "i": "i", "u": "u", "b": "b"}


@functools.cache
def kind_of(dtype: np.dtype) -> str:
    """The letter of parameters.h for a dtype."""
    if dtype.name == "float16":
        return "h"
    if dtype.name == "bfloat16":
        return "g"
    return _KINDS.get(dtype.kind, "s")


class Checker:
    """Packs one argument of one kernel."""

    def __init__(self, kernel: str, number: int, parameter: Parameter) -> None:
        self.kernel = kernel
        self.number = number
        self.kind = parameter.kind.decode()
        self.element = parameter.element.decode()
        self.constant = parameter.constant
        self.size = parameter.size
        self.element_size = parameter.element_size
        self.alignment = parameter.element_alignment
        spelled = re.search(r"T = ([^\];]*)", parameter.type.decode())
        self.type = spelled.group(1) if spelled else "?"

    def wrong(self, got: str, fix: str) -> TypeError:
        return TypeError(
            f"[{self.kernel}] argument {self.number + 1} is {got} but the parameter is "
            f"{self.type}; {fix}"
        )

    def pack(self, value: Any, accesses: list[Access]) -> bytes:
        """The bytes of the argument. What the kernel can reach is added to `accesses`."""
        if self.kind == "p":
            return self._pointer(value, accesses).to_bytes(8, "little")
        if isinstance(value, ndarray | MemoryPointer) or value is None:
            raise self.wrong(f"a {type(value).__name__}", "pass a NumPy scalar")
        if isinstance(value, np.ndarray):
            if value.size != 1:
                raise TypeError(
                    f"[{self.kernel}] argument {self.number + 1} is a numpy.ndarray of shape "
                    f"{value.shape}; only those of size one can be passed, by value"
                )
            value = value.reshape(())[()]
        if isinstance(value, np.void):
            return self._structure(value, accesses)
        if isinstance(value, bool):
            value = np.bool_(value)
        elif isinstance(value, int):
            value = np.int64(value) if value < 2**63 else np.uint64(value)
        elif isinstance(value, float):
            value = np.float64(value)
        elif isinstance(value, complex):
            value = np.complex128(value)
        if not isinstance(value, np.generic):
            raise TypeError(
                f"[{self.kernel}] argument {self.number + 1}: Unsupported type {type(value)}"
            )
        return self._scalar(value)

    def _scalar(self, value: Any) -> bytes:
        given = kind_of(value.dtype)
        if self.kind in "iu" and given in "iu":
            # The first bytes of a wider integer are the number, if it fits.
            bits = 8 * self.size
            low, high = (-(1 << bits - 1), 1 << bits - 1) if self.kind == "i" else (0, 1 << bits)
            if value.itemsize >= self.size and low <= int(value) < high:
                return int(value).to_bytes(self.size, "little", signed=self.kind == "i")
            raise self.wrong(f"{value!r} of {value.itemsize} bytes", f"pass {self._scalar_type()}")
        if self.kind == "b" and given in "iub" and int(value) in (0, 1):
            return int(value).to_bytes(1, "little")
        if given != self.kind or value.itemsize != self.size:
            raise self.wrong(f"{value!r} ({value.dtype})", f"pass {self._scalar_type()}")
        return bytes(value.tobytes())

    def _scalar_type(self) -> str:
        names = {"f": "float", "i": "int", "u": "uint"}
        if self.kind in names:
            return f"numpy.{names[self.kind]}{8 * self.size}"
        special = {"h": "numpy.float16", "g": "ml_dtypes.bfloat16", "b": "numpy.bool_"}
        return special.get(self.kind, f"a structured NumPy scalar of {self.size} bytes")

    def _structure(self, value: np.void, accesses: list[Access]) -> bytes:
        if self.kind != "s" or value.itemsize != self.size:
            raise self.wrong(
                f"a structure of {value.itemsize} bytes", f"it needs {self.size} bytes"
            )
        packed = np.frombuffer(value.tobytes(), np.uint8)
        self._add_named(packed, accesses)
        return packed.tobytes()

    def _add_named(self, words: np.ndarray, accesses: list[Access]) -> None:
        """A table of pointers: what it names is reached too."""
        accesses += [
            Access(memory, memory.ptr, memory.ptr + memory.size, None)
            for memory in memories_named_in(words)
        ]

    def _pointer(self, value: Any, accesses: list[Access]) -> int:
        if value is None:
            return 0
        if isinstance(value, ndarray):
            self._check_array(value)
            accesses.append(value._access(not self.constant))
            if self.element in "sp" or (self.element in "iu" and self.element_size == 8):
                self._add_named(value._memory.bytes, accesses)
            return self._aligned(value.data.ptr) if value.size else 0
        if isinstance(value, MemoryPointer):
            accesses.append(self._somewhere(value.mem, value.ptr))
            return self._aligned(value.ptr)
        if isinstance(value, int | np.integer) and not isinstance(value, bool):
            if isinstance(value, np.integer) and value.itemsize != 8:
                raise self.wrong(f"an address of {value.itemsize} bytes", "pass an int")
            address = int(value)
            memory = find_memory(address) if address else None
            if memory is not None:
                accesses.append(self._somewhere(memory, address))
            elif address and not is_pinned(address):
                raise CUDARuntimeError(
                    "cudaErrorIllegalAddress",
                    f"[{self.kernel}] argument {self.number + 1}: {address:#x} is no memory of the "
                    "device, or was freed",
                    700,
                )
            return self._aligned(address)
        if isinstance(value, np.ndarray):
            raise self.wrong("a numpy.ndarray", "it is on the host; use cupy.asarray")
        raise self.wrong(f"a {type(value).__name__}", "pass a cupy.ndarray or an address")

    def _somewhere(self, memory: BaseMemory, address: int) -> Access:
        """An address does not tell how far it reaches: one element."""
        end = memory.ptr + memory.size
        return Access(memory, address, address + self.element_size, not self.constant, end)

    def _aligned(self, address: int) -> int:
        if self.element != "v" and address % self.alignment:
            raise self.wrong(
                f"the address {address:#x}", f"it needs a multiple of {self.alignment} bytes"
            )
        return address

    def _check_array(self, array: ndarray) -> None:
        if array._memory.device_id != current_device():
            raise ValueError(
                f"[{self.kernel}] argument {self.number + 1} is on device "
                f"{array._memory.device_id}, the current device is {current_device()}"
            )
        given = kind_of(array.dtype)
        # Bytes and structures may stand for anything, an unsigned integer for bits of its size.
        if self.element in "vs" or given == "s" or self.type.startswith(("char", "unsigned char")):
            return
        if self.element == given and self.element_size == array.itemsize:
            return
        if self.element_size == array.itemsize and (
            self.element == "u"
            or (self.element == "p" and given in "iu")
            or {self.element, given} <= set("iub")
        ):
            return
        raise self.wrong(f"an array of {array.dtype}", "pass an array of the parameter's type")
