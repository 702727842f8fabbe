"""cuBLAS, as CuPy has it. It cannot be recorded in a CUDA graph: CuPy refuses that."""

from __future__ import annotations

import functools
import threading
from typing import Any

import cupy

from ..errors import ContextError
from .gemm import Problem, scalars

# cublasMath_t, CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION
_NO_REDUCED_SUMS = 16


def run(p: Problem, a: int, b: int, out: int) -> None:
    """Queue a product on the current stream; a, b and out are addresses on its device."""
    cublas, handle = _library(), _handle()
    one, zero = scalars(p.compute)
    beta = one if p.accumulate else zero
    if p.batch == 1:
        cublas.gemmEx(
            handle, int(p.transpose_b), int(p.transpose_a), p.n, p.m, p.k, one,
            b, p.kind, p.ldb, a, p.kind, p.lda, beta, out, p.out_kind, p.ldout,
            p.compute, cublas.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip
    else:
        cublas.gemmStridedBatchedEx(
            handle, int(p.transpose_b), int(p.transpose_a), p.n, p.m, p.k, one,
            b, p.kind, p.ldb, p.stride_b, a, p.kind, p.lda, p.stride_a,
            beta, out, p.out_kind, p.ldout, p.stride_out, p.batch,
            p.compute, cublas.CUBLAS_GEMM_DEFAULT,
        )  # fmt: skip


@functools.cache
def _library() -> Any:
    """CuPy's binding, loaded when first needed."""
    try:
        from cupy.cuda import cublas
    except ImportError as error:
        raise ContextError(
            f"[matmul] CuPy cannot load cuBLAS ({error}); install CuPy with its libraries: "
            "pip install 'distnn[cuda13]' (or cuda12)"
        ) from None
    return cublas


_local = threading.local()


def _handle() -> int:
    """Our own handle of this thread and device.

    Its math mode makes half precision add up in float32 everywhere, parts of a sum that were
    computed apart included. CuPy's handle belongs to the user's code as well.
    """
    handles = vars(_local).setdefault("handles", {})
    device = cupy.cuda.runtime.getDevice()
    handle = handles.get(device)
    if handle is None:
        handle = handles[device] = _library().create()
        _library().setMathMode(handle, _NO_REDUCED_SUMS)
    return handle
