"""Kernel: one CUDA function of our own, compiled when it first runs.

A kernel is CUDA C++ text. It is compiled by NVRTC for the device at hand, without contraction of
products and sums to fused operations (`-fmad=false`): so a formula gives the same bits whether it
runs alone or fused with its neighbours. CuPy keeps the compiled code on disk.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import cupy
import numpy as np

OPTIONS = ("--std=c++17", "-fmad=false")
THREADS = 256  # of a block, where a kernel does not want another number

# Float dtypes that arrays of functions have, by character. NumPy itself has no bfloat16.
FLOATS = {char: np.dtype(char) for char in "efd"}
try:
    import ml_dtypes

    FLOATS["E"] = np.dtype(ml_dtypes.bfloat16)
except ImportError:
    pass

# CUDA C++ names of the dtypes that arrays have.
TYPES = {
    "e": "__half",
    "E": "__nv_bfloat16",
    "f": "float",
    "d": "double",
    "?": "bool",
    "b": "signed char",
    "B": "unsigned char",
    "i": "int",
    "l": "long long",
    "q": "long long",
    "I": "unsigned int",
    "L": "unsigned long long",
    "Q": "unsigned long long",
}


class Kernel:
    """A CUDA function with C linkage: `extern "C" __global__ void name(...)`.

    Args:
        name: of the function in `source`.
        source: CUDA C++ text with all that the function needs.

    Called with blocks, threads a block, and arguments: arrays of the device (they arrive as
    pointers), and NumPy scalars, whose dtype has to be that of the parameter. Work is queued on the
    current stream.
    """

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source

    @functools.cached_property
    def _functions(self) -> dict[int, Any]:
        return {}

    def __call__(
        self, blocks: int | Sequence[int], threads: int | Sequence[int], *arguments: Any,
        shared: int = 0,
    ) -> None:  # fmt: skip
        """Run on `blocks` blocks of `threads` threads with `shared` bytes of shared memory each."""
        device = cupy.cuda.runtime.getDevice()
        function = self._functions.get(device)
        if function is None:
            module = cupy.RawModule(code=self.source, options=OPTIONS)
            function = self._functions[device] = module.get_function(self.name)
        grid = (blocks,) if isinstance(blocks, int) else tuple(blocks)
        block = (threads,) if isinstance(threads, int) else tuple(threads)
        function(grid, block, arguments, shared_mem=shared)


def scalar_types(char: str) -> str:
    """Text that begins a kernel on arrays of floats: T is their dtype, Real what it computes in."""
    return f"{includes(char)}typedef {TYPES[char]} T;\ntypedef {TYPES[computing(char)]} Real;\n"


def includes(chars: Iterable[str]) -> str:
    """What a kernel on arrays of these dtypes has to include."""
    headers = {"e": "#include <cuda_fp16.h>\n", "E": "#include <cuda_bf16.h>\n"}
    return "".join(text for char, text in headers.items() if char in chars)


def computing(char: str) -> str:
    """The dtype in which kernels compute with floats of a dtype: two bytes in float32."""
    return "d" if char == "d" else "f"


def index_dtype(*sizes: int) -> np.dtype:
    """int32 where it can count the elements of arrays of these sizes: it divides faster."""
    # A kernel's loop adds up to as much again before it ends.
    return np.dtype(np.int32 if max(sizes) < 2**30 - 1024 else np.int64)


@functools.cache
def kernel(name: str, source: str) -> Kernel:
    """The kernel of this text, made once."""
    return Kernel(name, source)


def blocks_for(size: int, threads: int = THREADS) -> int:
    """Blocks of `threads` threads for `size` elements, one each; kernels loop beyond 2^31 - 1."""
    return max(1, min(-(-size // threads), 2**31 - 1))
