"""What a product of matrices is to the libraries: lengths, strides, dtypes, without addresses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

# library_types.h, cudaDataType
KINDS = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
# cublas_api.h, cublasComputeType_t: CUBLAS_COMPUTE_32F, _64F and _32F_FAST_TF32
FLOAT, DOUBLE, TF32 = 68, 70, 77


class Problem(NamedTuple):
    """out (m, n) = a (m, k) @ b (k, n), or out += with `accumulate`; lengths are in elements.

    The libraries think by columns: what lies by rows is its own transpose there. So they are asked
    for out^T = b^T a^T, with b as their first operand.
    """

    m: int
    n: int
    k: int
    transpose_a: bool  # a lies in memory by columns
    transpose_b: bool
    lda: int  # from one row (by columns: column) to the next
    ldb: int
    ldout: int
    batch: int
    stride_a: int  # from one matrix of the batch to the next
    stride_b: int
    stride_out: int
    kind: int  # of a and b
    out_kind: int
    compute: int
    accumulate: bool


_SCALARS = {
    compute: np.array([1, 0], np.float64 if compute == DOUBLE else np.float32)
    for compute in (FLOAT, DOUBLE, TF32)
}


def scalars(compute: int) -> tuple[int, int]:
    """Host addresses of 1 and 0, in the dtype in which a product adds up."""
    array = _SCALARS[compute]
    return array.ctypes.data, array.ctypes.data + array.itemsize
