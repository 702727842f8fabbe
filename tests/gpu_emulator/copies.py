"""Copies between addresses. A device would corrupt memory where these raise."""

from __future__ import annotations

import ctypes
from typing import Any

from .errors import CUDARuntimeError
from .memory import Memory, find_memory
from .ordering import Access
from .record import record
from .stream import refuse_capture, stream_address, submit, synchronized

HOST_TO_HOST, HOST_TO_DEVICE, DEVICE_TO_HOST, DEVICE_TO_DEVICE, DEFAULT = range(5)
_NAMES = {0: "HtoH", 1: "HtoD", 2: "DtoH", 3: "DtoD"}


def _find(address: int, size: int, on_device: bool | None, role: str) -> Memory | None:
    memory = find_memory(address) if size else None
    if size == 0:
        return None
    if on_device is not None and (memory is not None) != on_device:
        place = "on the device" if on_device else "on the host"
        raise CUDARuntimeError(
            "cudaErrorInvalidValue", f"[memcpy] the {role} {address:#x} must be {place}"
        )
    if memory is not None and address + size > memory.ptr + memory.size:
        raise CUDARuntimeError(
            "cudaErrorInvalidValue",
            f"[memcpy] {size} bytes at offset {address - memory.ptr} of the {role} pass the end of "
            f"its {memory.size} bytes",
        )
    return memory


def _accesses(*touched: tuple[Memory | None, int, bool], size: int) -> list[Access]:
    return [Access(m, address, address + size, w) for m, address, w in touched if m is not None]


def memcpy(target: int, source: int, size: int, kind: int, stream: Any) -> None:
    """As cudaMemcpyAsync; `stream` an address, a stream or None for the current one."""
    if kind not in range(5):
        raise CUDARuntimeError("cudaErrorInvalidMemcpyDirection", f"kind {kind}", 21)
    to = None if kind == DEFAULT else kind in (HOST_TO_DEVICE, DEVICE_TO_DEVICE)
    of = None if kind == DEFAULT else kind in (DEVICE_TO_HOST, DEVICE_TO_DEVICE)
    target_memory = _find(target, size, to, "target")
    source_memory = _find(source, size, of, "source")
    kind = 2 * (source_memory is not None) + (target_memory is not None)
    address = stream_address(stream)
    if kind != DEVICE_TO_DEVICE:
        refuse_capture(address, "copies between host and device (CuPy refuses them)")
    submit(
        ("copy", _NAMES[kind], size, address),
        lambda: ctypes.memmove(target, source, size) and None,
        address,
        _accesses((target_memory, target, True), (source_memory, source, False), size=size),
    )
    record.uploads += kind == HOST_TO_DEVICE
    record.downloads += kind == DEVICE_TO_HOST


def memcpy_and_wait(target: int, source: int, size: int, kind: int) -> None:
    memcpy(target, source, size, kind, 0)
    if kind != DEVICE_TO_DEVICE:
        synchronized("copy", 0)


def memset(target: int, value: int, size: int, stream: Any) -> None:
    memory = _find(target, size, True, "target")
    address = stream_address(stream)
    submit(
        ("memset", size, address),
        lambda: ctypes.memset(target, value, size) and None,
        address,
        _accesses((memory, target, True), size=size),
    )
