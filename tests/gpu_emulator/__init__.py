"""A GPU emulator for tests: a `cupy` with arrays in host memory and kernels compiled by g++.

With it the CUDA backend runs on a machine without a GPU: the logic of the host in full, kernels
with the arithmetic of the CPU (float32 denormals are zero, products are not fused into sums). It
says nothing about speed, about what NVRTC accepts, or about cuBLAS and cuDNN.

It is strict where CuPy or the device is, and where a device would silently go wrong:

- host arrays as arguments, NumPy functions that CuPy lacks, unknown keywords: TypeError;
- new memory is NaN; guard zones around allocations are checked after every launch;
- arguments of kernels are held against the parameters that the compiler sees;
- indices outside of fixed arrays, misaligned addresses, illegal addresses, divergent barriers,
  shuffles of lanes that are not in the mask, limits of blocks and shared memory: KernelError or
  CUDARuntimeError; `settings.check_races` runs each kernel in two orders and compares bits;
- `settings.check_streams`: two streams at the same bytes without an event between them, memory
  freed while another stream may use it: StreamError;
- what CUDA graphs cannot capture, and graphs launched after their memory was freed.

Use: `with gpu_emulator.emulated() as cupy: ...`, or `install()` for the rest of the process, before
anything imports cupy. `record` counts synchronizations, uploads and downloads and lists what ran;
`settings` says what the device is. Streams are synchronous: work runs when the host submits it,
except that of NCCL, whose ranks are threads (nccl.py).
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from . import cublas, driver, ordering, pinned
from .compiler import compiler
from .cuda import MODULES, cuda
from .errors import (
    CompileException,
    CUDARuntimeError,
    KernelError,
    OutOfMemoryError,
    RaceError,
    StreamError,
)
from .functions import cupy
from .kernels import RawKernel, RawModule
from .memory import check_guards
from .record import record, settings

cupy.cuda = cuda
cupy.RawModule = RawModule
cupy.RawKernel = RawKernel


def _rsqrt(x: Any) -> Any:
    return 1 / cupy.sqrt(x)


def _scatter_add(a: Any, slices: Any, value: Any) -> None:
    a.scatter_add(slices, value)


cupyx = types.ModuleType("cupyx", "Emulated cupyx: see gpu_emulator.")
cupyx.__dict__.update(
    empty_pinned=pinned.empty_pinned,
    zeros_pinned=pinned.zeros_pinned,
    empty_like_pinned=pinned.empty_like_pinned,
    zeros_like_pinned=pinned.zeros_like_pinned,
    rsqrt=_rsqrt,
    scatter_add=_scatter_add,
)
_MODULES: dict[str, types.ModuleType] = {
    "cupy": cupy,
    "cupy.linalg": cupy.linalg,
    "cupy.fft": cupy.fft,
    "cupy.random": cupy.random,
    "cupyx": cupyx,
    "cupy.cuda.cublas": cublas,
    **MODULES,
}
for _name, _module in _MODULES.items():
    _module.__spec__ = importlib.machinery.ModuleSpec(_name, None)
cupy.__path__ = []
cuda.__path__ = []


def installed() -> bool:
    return sys.modules.get("cupy") is cupy


def install() -> None:
    """From now on `import cupy` gives the emulator. Raises if the real one was imported."""
    if installed():
        return
    if "cupy" in sys.modules:
        raise RuntimeError(
            "[gpu_emulator.install] the real cupy was imported before; install the emulator first, "
            "in a process of its own"
        )
    sys.modules.update(_MODULES)


def uninstall() -> None:
    """`import cupy` gives the real one again."""
    if installed():
        for name in _MODULES:
            sys.modules.pop(name, None)


@contextmanager
def emulated(**changes: Any) -> Iterator[Any]:
    """The emulator for the duration of a `with`, with these settings: gives the module `cupy`."""
    real = {name: m for name, m in sys.modules.items() if name.split(".")[0] in ("cupy", "cupyx")}
    was_installed = installed()
    if not was_installed:
        for name in real:
            del sys.modules[name]
        install()
    record.clear()
    ordering.forget()
    try:
        with settings.using(**changes):
            yield cupy
            check_guards()
    finally:
        if not was_installed:
            uninstall()
            sys.modules.update(real)
