"""The GPU as a backend: CuPy arrays, the names that functions use on them, and device memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import cupy
import numpy as np

from ..backend import Backend, output_dtype
from ..formula import Assignments
from ..function import Function, Spec
from ..random import Draw
from ..transfer import device_is_used
from . import (
    arena,
    elementwise,
    job_tables,
    labels,
    memory,
    multi_tensor,
    random,
    recording,
    transfer,
    twin,
    words,
)
from .device import check_device, check_libraries
from .namespace import CudaNamespace


class CudaBackend(Backend):
    """CuPy arrays on one device, computed by kernels of ours and by NVIDIA's libraries."""

    captures = True

    def __init__(self, type_config: str, device: int, precision: str) -> None:
        self.type_config = type_config
        self.device = device
        self.precision = precision
        self.name = f"cuda:{device}"
        self.dtype = self.update_dtype = output_dtype("cudnn", type_config, precision)
        self.parameter_dtype = np.dtype(np.float64 if type_config == "double" else np.float32)
        self.xp = CudaNamespace(self)
        device_is_used()

    def __repr__(self) -> str:
        return f"cudnn:{self.type_config} (device {self.device}, precision {self.precision})"

    def select(self) -> None:
        cupy.cuda.Device(self.device).use()

    def holds(self, array: Any) -> bool:
        return isinstance(array, cupy.ndarray) and array.device.id == self.device

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        return cupy.empty(shape, dtype)

    def zeros(self, size: int, dtype: np.dtype) -> Any:
        return cupy.zeros(size, dtype)

    def full(self, shape: tuple[int, ...], value: float, dtype: np.dtype) -> Any:
        return cupy.full(shape, value, dtype)

    def add(self, a: Any, b: Any, out: Any) -> None:
        elementwise.add(self.owned(a, a.dtype), self.owned(b, b.dtype), out)

    def convert(self, array: Any, dtype: np.dtype) -> Any:
        return transfer.to_device(array, dtype)

    def packed(self, array: Any) -> Any:
        # Kernels are given addresses, not strides. CuPy's copy of a scalar would have an axis.
        return array if array.flags.c_contiguous else cupy.ascontiguousarray(array)

    def implementation(self, function: Function, specs: Sequence[Spec | None]) -> Any:
        return twin.implementation(function)

    def draw(self, draw: Draw) -> Any:
        return random.DeviceDraw(*draw)

    def whole_numbers(self, array: Any, message: str) -> Any:
        return labels.whole_numbers(array, message)

    def run(self, rule: Assignments, jobs: Sequence[tuple[Sequence[Any], Sequence[float]]]) -> None:
        multi_tensor.run(rule, jobs)

    def sums_of_squares(self, arrays: Sequence[Any]) -> list[float]:
        return multi_tensor.sums_of_squares(arrays)

    def any_of(self, test: str, arrays: Sequence[Any]) -> bool:
        return multi_tensor.any_of(test, arrays)

    def clip(self, scale: Assignments, arrays: Sequence[Any], norm: float) -> None:
        multi_tensor.clip(scale, arrays, norm)

    def guard(self) -> Any:
        return multi_tensor.Guard()

    def recorded_work(self, work: Callable[[], None]) -> Any:
        return job_tables.RecordedWork(work)

    def recording(self) -> Any:
        return recording.Recording()

    def is_captured(self, array: Any) -> bool:
        return arena.is_block(array)

    def words(self, count: int) -> Any:
        return words.Words(count)

    def draw_in_memory(self, words: Any, start: int) -> Any:
        return random.DrawInMemory.at(words.array[start : start + 3])

    def total_memory(self) -> int:
        return cupy.cuda.Device(self.device).mem_info[1]


@functools.cache
def cuda_backend(type_config: str, device: int, precision: str = "highest") -> CudaBackend:
    """The backend of a device, made once; raises ContextError if it cannot be used."""
    check_device(device)
    check_libraries()
    memory.install()
    return CudaBackend(type_config, device, precision)
