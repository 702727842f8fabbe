"""A stand-in for `nvmath.bindings.cublasLt` on memory of the emulator, for what distnn calls.

Descriptors are objects behind numbers, as in C; a wrong size of an attribute, a shape that does not
fit, or an address that is less aligned than was promised raises.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import numpy as np
from gpu_emulator import cublas

MatmulDescAttribute = enum.IntEnum(
    "MatmulDescAttribute", {"TRANSA": 3, "TRANSB": 4, "EPILOGUE": 7, "BIAS_POINTER": 8}
)
MatrixLayoutAttribute = enum.IntEnum(
    "MatrixLayoutAttribute", {"BATCH_COUNT": 5, "STRIDED_BATCH_OFFSET": 6}
)
MatmulPreferenceAttribute = enum.IntEnum(
    "MatmulPreferenceAttribute",
    {"MAX_WORKSPACE_BYTES": 1, "REDUCTION_SCHEME_MASK": 3}
    | {f"MIN_ALIGNMENT_{name}_BYTES": 5 + i for i, name in enumerate("ABCD")},
)
Epilogue = enum.IntEnum("Epilogue", {"DEFAULT": 1, "RELU": 2, "BIAS": 4, "RELU_BIAS": 6})
ReductionScheme = enum.IntEnum("ReductionScheme", {"COMPUTE_TYPE": 2})
matmul_heuristic_result_dtype = np.dtype(
    [("algo", [("data_", "<u8", (8,))]), ("workspace_size", "<u8"), ("state", "<i4")]
)

WORKSPACE = 4096
calls: list[tuple[int, bool]] = []  # (compute type, with bias) of each product
queries: list[tuple[int, int]] = []  # number of matrices, and alignment, of each heuristic query
nothing_for: set[int] = set()  # kinds (dtypes) that no algorithm is found for
no_relu_for: set[int] = set()  # kinds whose algorithms have no relu
_objects: dict[int, SimpleNamespace] = {}
_numbers = itertools.count(1)


class cuBLASLtError(Exception):
    pass


def installed(monkeypatch) -> Iterator[ModuleType]:
    """This module in place of nvmath-python's, for a fixture to yield from."""
    from distnn.cuda import cublaslt

    def forget() -> None:
        """Whether cuBLASLt is there was not asked, and it made no plan."""
        for cache in (cublaslt.available, cublaslt._library, cublaslt._handle):
            cache.cache_clear()
        cublaslt._local.__dict__.clear()

    package = ModuleType("nvmath")
    package.bindings = ModuleType("nvmath.bindings")
    package.bindings.cublasLt = sys.modules[__name__]
    for name, module in {
        "nvmath": package,
        "nvmath.bindings": package.bindings,
        "nvmath.bindings.cublasLt": sys.modules[__name__],
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("DISTNN_CUBLASLT", raising=False)
    for noted in (calls, queries, nothing_for, no_relu_for):
        noted.clear()
    forget()
    yield sys.modules[__name__]
    forget()


def _new(**values) -> int:
    number = next(_numbers)
    _objects[number] = SimpleNamespace(attributes={}, **values)
    return number


def _host(pointer: int, size: int) -> ctypes.Array:
    return (ctypes.c_char * size).from_address(pointer)


def create() -> int:
    return _new(handle=True)


def matmul_desc_create(compute: int, scale: int) -> int:
    return _new(compute=compute, scale=scale)


def matrix_layout_create(kind: int, rows: int, columns: int, step: int) -> int:
    if step < rows:
        raise cuBLASLtError(f"leading dimension {step} is less than {rows} rows")
    return _new(kind=kind, rows=rows, columns=columns, step=step)


def matmul_preference_create() -> int:
    return _new(preference=True)


def matmul_preference_destroy(number: int) -> None:
    del _objects[number]


def _dtype(attribute: enum.IntEnum) -> type:
    wide = {"BIAS_POINTER": np.int64, "STRIDED_BATCH_OFFSET": np.int64}
    return {**wide, "MAX_WORKSPACE_BYTES": np.uint64}.get(attribute.name, np.int32)


def get_matmul_desc_attribute_dtype(attribute: int) -> type:
    return _dtype(MatmulDescAttribute(attribute))


def get_matrix_layout_attribute_dtype(attribute: int) -> type:
    return _dtype(MatrixLayoutAttribute(attribute))


def get_matmul_preference_attribute_dtype(attribute: int) -> type:
    return _dtype(MatmulPreferenceAttribute(attribute))


def _set(number: int, attribute: enum.IntEnum, pointer: int, size: int) -> None:
    dtype = np.dtype(_dtype(attribute))
    if size != dtype.itemsize:
        raise cuBLASLtError(f"{attribute.name} has {dtype.itemsize} bytes, not {size}")
    value = np.ndarray((), dtype, _host(pointer, size))
    _objects[number].attributes[attribute.name] = int(value)


def matmul_desc_set_attribute(number: int, attribute: int, pointer: int, size: int) -> None:
    _set(number, MatmulDescAttribute(attribute), pointer, size)


def matrix_layout_set_attribute(number: int, attribute: int, pointer: int, size: int) -> None:
    _set(number, MatrixLayoutAttribute(attribute), pointer, size)


def matmul_preference_set_attribute(number: int, attribute: int, pointer: int, size: int) -> None:
    _set(number, MatmulPreferenceAttribute(attribute), pointer, size)


def matmul_algo_get_heuristic(
    handle, product, a, b, c, d, preference, requested, results, returned
) -> None:
    if not hasattr(_objects[handle], "handle") or requested != 1:
        raise cuBLASLtError("CUBLAS_STATUS_INVALID_VALUE")
    wanted = _objects[preference].attributes
    alignment = {wanted[f"MIN_ALIGNMENT_{name}_BYTES"] for name in "ABCD"}
    queries.append((_objects[a].attributes.get("BATCH_COUNT", 1), max(alignment)))
    found = np.ndarray((), np.int32, _host(returned, 4))
    found[...] = 0 if _objects[a].kind in nothing_for else 1
    result = np.ndarray(
        (), matmul_heuristic_result_dtype, _host(results, matmul_heuristic_result_dtype.itemsize)
    )
    result["algo"]["data_"] = max(alignment)  # what the algorithm counts on
    result["workspace_size"] = WORKSPACE


def matmul_algo_check(handle, product, a, b, c, d, algorithm, result) -> None:
    if _objects[a].kind in no_relu_for:
        raise cuBLASLtError("CUBLAS_STATUS_NOT_SUPPORTED")
    np.ndarray(8, np.uint64, _host(algorithm, 64))  # can be read
    found = np.ndarray(
        (), matmul_heuristic_result_dtype, _host(result, matmul_heuristic_result_dtype.itemsize)
    )
    found["workspace_size"] = WORKSPACE


def matmul(
    handle, product, alpha, a, adesc, b, bdesc, beta, c, cdesc, d, ddesc, algorithm, workspace,
    workspace_size, stream,
) -> None:  # fmt: skip
    desc, first, second, out = (_objects[i] for i in (product, adesc, bdesc, ddesc))
    alignment = int(np.ndarray(8, np.uint64, _host(algorithm, 64))[0])
    epilogue = desc.attributes.get("EPILOGUE", Epilogue.DEFAULT)
    bias = desc.attributes["BIAS_POINTER"] if epilogue & Epilogue.BIAS else 0
    if any(pointer % alignment for pointer in (a, b, d, bias)):
        raise cuBLASLtError(f"misaligned address: {alignment} bytes were promised")
    if not workspace or workspace_size < WORKSPACE or (c, cdesc) != (d, ddesc):
        raise cuBLASLtError("CUBLAS_STATUS_INVALID_VALUE")
    cublas.memory(workspace, workspace_size)
    transposed = tuple(desc.attributes.get(name, 0) for name in ("TRANSA", "TRANSB"))
    m, k = (first.rows, first.columns)[:: -1 if transposed[0] else 1]
    k2, n = (second.rows, second.columns)[:: -1 if transposed[1] else 1]
    batches = {x.attributes.get("BATCH_COUNT", 1) for x in (first, second, out)}
    if k != k2 or (out.rows, out.columns) != (m, n) or len(batches) > 1:
        raise cuBLASLtError("CUBLAS_STATUS_INVALID_VALUE: shapes")
    stored = [
        cublas.Matrices(
            pointer, x.kind, x.rows, x.columns, x.step, x.attributes.get("STRIDED_BATCH_OFFSET", 0)
        )
        for pointer, x in ((a, first), (b, second), (d, out))
    ]

    def finish(result: np.ndarray) -> np.ndarray:
        if bias:
            values = cublas.Matrices(bias, out.kind, m, 1, m).array(1)
            result = result + values.astype(result.dtype)
        return np.maximum(result, 0) if epilogue & Epilogue.RELU else result

    cublas.gemm(
        "cublasLtMatmul", *stored, transposed, (alpha, beta), *batches, desc.compute, stream,
        finish,
    )  # fmt: skip
    calls.append((desc.compute, bool(bias)))
