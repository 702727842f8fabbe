"""What arithmetic on this machine's CPU depends on, in words; imports no compiler."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from pathlib import Path

import numpy as np
from threadpoolctl import ThreadpoolController

_ARCH_PRCTL, _SUPPORTED, _TILE_DATA = 158, 0x1021, 18


@functools.cache
def model() -> str:
    """The name of the processor."""
    name = _information().get("model name") or platform.processor() or platform.machine()
    return f"{name} ({platform.machine()})"


def libraries() -> dict[str, str]:
    """What else decides how kernels round, by name: other libraries, other instructions."""
    simd = np.show_config(mode="dicts").get("SIMD Extensions", {})
    blas = [
        f"{library['internal_api']} {library['version']} for {library.get('architecture', 'all')}"
        for library in ThreadpoolController().select(user_api="blas").info()
    ]
    asked = [os.environ.get(f"NUMBA_CPU_{name}", "") for name in ("NAME", "FEATURES")]
    return {
        "NumPy": f"{np.__version__} with {' '.join(simd.get('found', [])) or 'no extensions'}",
        "BLAS": ", ".join(blas) or "unknown",
        "code compiled for": " ".join(filter(None, asked)) or "the processor",
        "tile registers (AMX)": "there" if tile_registers() else "not there",
    }


def tile_registers() -> bool:
    """Whether the processor has them, and Linux can keep them; changes nothing."""
    if "amx_bf16" not in _information().get("flags", "").split():
        return False
    supported = ctypes.c_uint64()
    libc = ctypes.CDLL(None)
    failed = libc.syscall(_ARCH_PRCTL, _SUPPORTED, ctypes.byref(supported))
    return not failed and bool(supported.value >> _TILE_DATA & 1)


@functools.cache
def _information() -> dict[str, str]:
    """What Linux says of the first core."""
    path = Path("/proc/cpuinfo")
    if sys.platform != "linux" or not path.exists():
        return {}
    lines = path.read_text().split("\n\n")[0].splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}
