"""cuBLASLt, by NVIDIA's nvmath-python: products with a bias and relu where the result is stored.

A product is described once per thread, with the algorithm that the library recommends for it; then
a call passes addresses only. Unlike cuBLAS as CuPy has it, it can be recorded in a CUDA graph.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
from typing import Any, NamedTuple

import cupy
import numpy as np

from .gemm import DOUBLE, Problem, scalars

logger = logging.getLogger("distnn")

_WORKSPACE = 32 * 1024 * 1024  # bytes; NVIDIA's recommendation for Hopper
_ALIGNMENT = 16  # bytes; more gains nothing


class _Plan(NamedTuple):
    """Descriptors and the algorithm; descriptors live as long as the process."""

    product: int
    a: int
    b: int
    out: int
    algorithm: np.ndarray
    workspace: int


@functools.cache
def available() -> bool:
    """True if nvmath-python is there; logs once if not. DISTNN_CUBLASLT=0 switches it off."""
    if os.environ.get("DISTNN_CUBLASLT", "") == "0":
        logger.info("products of matrices use cuBLAS: cuBLASLt is off by DISTNN_CUBLASLT=0")
        return False
    try:
        _library()
    except (ImportError, RuntimeError, OSError) as error:
        logger.info(
            "products of matrices use cuBLAS, and a kernel for the bias: cuBLASLt needs "
            "`pip install nvmath-python` (%s)",
            str(error).strip() or type(error).__name__,
        )
        return False
    return True


def run(problem: Problem, a: int, b: int, out: int, bias: int = 0, relu: bool = False) -> bool:
    """Queue a product on the current stream; a, b, out and bias are addresses on its device.

    With `relu` the algorithm is that of the product without it, so the bits are those of relu of
    its result.

    Returns: False where the library has no algorithm for it, and nothing was queued.
    """
    plan = _plan(problem, a, b, out, bias, relu)
    if plan is None:
        return False
    library = _library()
    if bias:
        _set(plan.product, "BIAS_POINTER", bias)
    one, zero = scalars(problem.compute)
    # The workspace goes back to the pool as soon as the work is queued: whoever gets it next comes
    # later on this stream.
    workspace = cupy.cuda.alloc(plan.workspace) if plan.workspace else None
    library.matmul(
        _handle(cupy.cuda.runtime.getDevice()), plan.product, one, b, plan.b, a, plan.a,
        one if problem.accumulate else zero, out, plan.out, out, plan.out,
        plan.algorithm.ctypes.data, 0 if workspace is None else workspace.ptr, plan.workspace,
        cupy.cuda.get_current_stream().ptr,
    )  # fmt: skip
    return True


_local = threading.local()


def _plan(problem: Problem, a: int, b: int, out: int, bias: int, relu: bool) -> _Plan | None:
    """The plan of this thread: the bias's address is part of a descriptor."""
    plans = vars(_local).setdefault("plans", {})
    aligned = not (a | b | out | bias) % _ALIGNMENT
    key = (problem, bool(bias), relu, aligned, cupy.cuda.runtime.getDevice())
    if key not in plans:
        if relu:
            plans[key] = _with_relu(_plan(problem, a, b, out, bias, False), problem, bias, key[-1])
        else:
            plans[key] = _made(problem, bias, aligned, key[-1])
    return plans[key]


def _made(p: Problem, bias: int, aligned: bool, device: int) -> _Plan | None:
    library = _library()
    product = _product(p, bias, "BIAS" if bias else "DEFAULT")
    layouts = (
        _layout(p.kind, p.m, p.k, p.lda, p.transpose_a, p.batch, p.stride_a),
        _layout(p.kind, p.k, p.n, p.ldb, p.transpose_b, p.batch, p.stride_b),
        _layout(p.out_kind, p.m, p.n, p.ldout, False, p.batch, p.stride_out),
    )
    a, b, out = layouts
    found = np.zeros(1, library.matmul_heuristic_result_dtype)
    number = np.zeros(1, np.int32)
    preference = _preference(p, aligned)
    try:
        library.matmul_algo_get_heuristic(
            _handle(device), product, b, a, out, out, preference, 1, found.ctypes.data,
            number.ctypes.data,
        )  # fmt: skip
    except library.cuBLASLtError as error:
        logger.info("cuBLASLt has no algorithm for %s (%s): cuBLAS computes it", p, error)
        return None
    finally:
        library.matmul_preference_destroy(preference)
    if not number[0]:
        logger.info("cuBLASLt has no algorithm for %s: cuBLAS computes it", p)
        return None
    return _Plan(product, *layouts, found["algo"], int(found["workspace_size"][0]))


def _with_relu(plain: _Plan | None, p: Problem, bias: int, device: int) -> _Plan | None:
    """`plain` with relu, by the same algorithm; None where that cannot do it."""
    if plain is None:
        return None
    library = _library()
    product = _product(p, bias, "RELU_BIAS" if bias else "RELU")
    found = np.zeros(1, library.matmul_heuristic_result_dtype)
    try:
        library.matmul_algo_check(
            _handle(device), product, plain.b, plain.a, plain.out, plain.out,
            plain.algorithm.ctypes.data, found.ctypes.data,
        )  # fmt: skip
    except library.cuBLASLtError as error:
        logger.info("cuBLASLt's algorithm for %s has no relu (%s): a kernel computes it", p, error)
        return None
    workspace = int(found["workspace_size"][0])
    return plain._replace(product=product, workspace=workspace)


def _product(p: Problem, bias: int, epilogue: str) -> int:
    """The descriptor of a product and of what follows it."""
    library = _library()
    product = library.matmul_desc_create(p.compute, _SCALE[p.compute == DOUBLE])
    _set(product, "TRANSA", int(p.transpose_b))
    _set(product, "TRANSB", int(p.transpose_a))
    _set(product, "EPILOGUE", int(library.Epilogue[epilogue]))
    if bias:
        _set(product, "BIAS_POINTER", bias)
    return product


_SCALE = {False: 0, True: 1}  # cudaDataType: float32, float64


def _layout(
    kind: int, rows: int, columns: int, step: int, by_columns: bool, batch: int, stride: int
) -> int:
    """A matrix in memory by rows is its transpose by columns."""
    shape = (rows, columns) if by_columns else (columns, rows)
    library = _library()
    layout = library.matrix_layout_create(kind, *shape, step)
    if batch > 1:
        _set(layout, "BATCH_COUNT", batch, "matrix_layout")
        _set(layout, "STRIDED_BATCH_OFFSET", stride, "matrix_layout")
    return layout


def _preference(p: Problem, aligned: bool) -> int:
    """What an algorithm may use; the same result each time, and sums in the compute type."""
    library = _library()
    preference = library.matmul_preference_create()
    _set(preference, "MAX_WORKSPACE_BYTES", _WORKSPACE, "matmul_preference")
    scheme = int(library.ReductionScheme.COMPUTE_TYPE)
    _set(preference, "REDUCTION_SCHEME_MASK", scheme, "matmul_preference")
    for name in "ABCD":
        least = _ALIGNMENT if aligned else _BYTES[p.kind]
        _set(preference, f"MIN_ALIGNMENT_{name}_BYTES", least, "matmul_preference")
    return preference


_BYTES = {0: 4, 1: 8, 2: 2, 14: 2}  # of the elements of a cudaDataType
_ATTRIBUTES = {
    "matmul_desc": "MatmulDescAttribute",
    "matrix_layout": "MatrixLayoutAttribute",
    "matmul_preference": "MatmulPreferenceAttribute",
}


def _set(target: int, name: str, value: int, of: str = "matmul_desc") -> None:
    """Set an attribute of a descriptor."""
    library = _library()
    attribute = int(getattr(getattr(library, _ATTRIBUTES[of]), name))
    dtype = getattr(library, f"get_{of}_attribute_dtype")(attribute)
    buffer = np.array([value], dtype)
    set_attribute = getattr(library, f"{of}_set_attribute")
    set_attribute(target, attribute, buffer.ctypes.data, buffer.nbytes)


@functools.cache
def _library() -> Any:
    from nvmath.bindings import cublasLt

    return cublasLt


@functools.cache
def _handle(device: int) -> int:
    """The handle of a device, which is the current one; threads may share it."""
    return _library().create()
