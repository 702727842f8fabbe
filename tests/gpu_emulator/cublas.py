"""Emulated cupy.cuda.cublas: the GEMMs that distnn calls, as strict as cuBLAS.

Matrices lie by columns, as cuBLAS has them. Sums are in the compute type; TF32 rounds the inputs to
10 bits of mantissa, so that a test can tell which of the two was asked for.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .errors import CUDARuntimeError
from .memory import find_memory
from .stream import capturing, get_current_stream, submit

CUBLAS_COMPUTE_32F = 68
CUBLAS_COMPUTE_64F = 70
CUBLAS_COMPUTE_32F_FAST_TF32 = 77
CUBLAS_GEMM_DEFAULT = -1

# By number of the type (cudaDataType).
DTYPES: dict[int, np.dtype] = {
    0: np.dtype(np.float32),
    1: np.dtype(np.float64),
    2: np.dtype(np.float16),
}
try:
    import ml_dtypes

    DTYPES[14] = np.dtype(ml_dtypes.bfloat16)
except ImportError:
    pass

# Types of a, b and c for each compute type.
_TYPES = {
    CUBLAS_COMPUTE_32F: {(0, 0, 0), (2, 2, 2), (2, 2, 0), (14, 14, 14), (14, 14, 0)},
    CUBLAS_COMPUTE_32F_FAST_TF32: {(0, 0, 0)},
    CUBLAS_COMPUTE_64F: {(1, 1, 1)},
}

_handles = itertools.count(1)
modes: dict[int, int] = {}  # math mode of each handle


class CUBLASError(RuntimeError):
    pass


class Matrices(NamedTuple):
    """A batch of matrices by columns, at an address."""

    pointer: int
    kind: int
    rows: int
    columns: int
    step: int
    stride: int = 0

    def array(self, batch: int) -> np.ndarray:
        """(batch, rows, columns)"""
        dtype = DTYPES[self.kind]
        size = (batch - 1) * self.stride + (self.columns - 1) * self.step + self.rows
        strides = [n * dtype.itemsize for n in (self.stride, 1, self.step)]
        shape = (batch, self.rows, self.columns)
        return np.ndarray(shape, dtype, memory(self.pointer, size * dtype.itemsize), 0, strides)


def memory(pointer: int, size: int) -> Any:
    """Device memory at an address, which has to be that of a live array."""
    found = find_memory(pointer)
    if found is None or pointer + size > found.ptr + found.size:
        raise CUDARuntimeError(
            "cudaErrorIllegalAddress", f"{size} bytes at {pointer:#x} are not allocated", 700
        )
    return (ctypes.c_char * size).from_address(pointer)


def create() -> int:
    handle = next(_handles)
    modes[handle] = 0
    return handle


def setMathMode(handle: int, mode: int) -> None:
    modes[handle] = mode


def gemmEx(
    handle, transa, transb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc,
    compute, algorithm,
) -> None:  # fmt: skip
    _library_gemm(
        "gemmEx", handle, algorithm, (transa, transb), (m, n, k), (a, a_type, lda, 0),
        (b, b_type, ldb, 0), (c, c_type, ldc, 0), (alpha, beta), 1, compute,
    )  # fmt: skip


def gemmStridedBatchedEx(
    handle, transa, transb, m, n, k, alpha, a, a_type, lda, stride_a, b, b_type, ldb, stride_b,
    beta, c, c_type, ldc, stride_c, batch, compute, algorithm,
) -> None:  # fmt: skip
    _library_gemm(
        "gemmStridedBatchedEx", handle, algorithm, (transa, transb), (m, n, k),
        (a, a_type, lda, stride_a), (b, b_type, ldb, stride_b), (c, c_type, ldc, stride_c),
        (alpha, beta), batch, compute,
    )  # fmt: skip


def _library_gemm(
    name, handle, algorithm, transposed, lengths, a, b, c, scalars, batch, compute
) -> None:
    if handle not in modes or algorithm != CUBLAS_GEMM_DEFAULT:
        raise CUBLASError("CUBLAS_STATUS_NOT_INITIALIZED")
    stream = get_current_stream().ptr
    if capturing(stream) is not None:
        raise NotImplementedError(f"[{name}] calling cuBLAS in a capture (as CuPy)")
    m, n, k = lengths
    stored = [
        Matrices(pointer, kind, *shape, step, stride)
        for (pointer, kind, step, stride), shape in zip(
            (a, b, c),
            ((k, m) if transposed[0] else (m, k), (n, k) if transposed[1] else (k, n), (m, n)),
            strict=True,
        )
    ]
    gemm(name, *stored, transposed, scalars, batch, compute, stream)


def gemm(
    name: str,
    a: Matrices,
    b: Matrices,
    c: Matrices,
    transposed: tuple[int, int],
    scalars: tuple[int, int],
    batch: int,
    compute: int,
    stream: int,
    epilogue: Callable[[np.ndarray], np.ndarray] = lambda product: product,
) -> None:
    """Queue c = epilogue(alpha op(a) op(b) + beta c); `scalars` are addresses of the factors."""
    for number in (*a[2:5], *b[2:5], *c[2:5], batch):
        if not isinstance(number, int) or not 0 < number < 2**31:
            raise CUBLASError(f"CUBLAS_STATUS_INVALID_VALUE: {number} is no length")
    for matrices in (a, b, c):
        if matrices.step < matrices.rows or matrices.stride < 0:
            raise CUBLASError(f"CUBLAS_STATUS_INVALID_VALUE: {matrices}")
    if (a.kind, b.kind, c.kind) not in _TYPES.get(compute, ()):
        raise CUBLASError(f"CUBLAS_STATUS_NOT_SUPPORTED: {a}, {b}, {c} with {compute}")
    scalar = ctypes.c_double if compute == CUBLAS_COMPUTE_64F else ctypes.c_float
    alpha, beta = (scalar.from_address(pointer).value for pointer in scalars)

    def action() -> None:
        left, right = (
            _input(x.array(batch).swapaxes(1, 2) if swapped else x.array(batch), compute)
            for x, swapped in zip((a, b), transposed, strict=True)
        )
        out = c.array(batch)
        with np.errstate(all="ignore"):
            product = alpha * np.matmul(left, right)
            if beta:
                product += beta * out.astype(product.dtype)
            out[...] = epilogue(product).astype(out.dtype)

    submit(("function", name, stream), action, stream)


def _input(x: np.ndarray, compute: int) -> np.ndarray:
    if compute == CUBLAS_COMPUTE_64F:
        return x
    x = x.astype(np.float32)
    return tf32(x) if compute == CUBLAS_COMPUTE_32F_FAST_TF32 else x


def tf32(x: np.ndarray) -> np.ndarray:
    """float32 with 10 bits of mantissa, rounded to nearest."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
