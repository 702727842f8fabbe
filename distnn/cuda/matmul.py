"""Products of matrices: which GEMM of a library computes a product of arrays, without copies.

Arrays of two or more axes, with any strides. Matrices that lie in memory by rows or by columns go
to the library as they are (a transposed view costs nothing), batch axes are joined as far as their
strides allow, and an operand that is broadcast is read again instead of being repeated in memory.
"""

from __future__ import annotations

import enum
import functools
import itertools
from typing import Any, NamedTuple

import cupy
import numpy as np

from ..formula import Formula
from . import cublas, cublaslt, gemm
from .bias import add_to_columns
from .elementwise import evaluate

_LARGEST = 2**31 - 1  # lengths and strides within a matrix are int in the library
_FLOAT = np.dtype(np.float32)

_RELU = Formula("maximum(y, 0)", ("y",), ())

Ints = tuple[int, ...]


class Done(enum.IntEnum):
    """How far a library went in product, bias and relu."""

    PRODUCT = 0
    BIAS = 1  # or there is none
    RELU = 2


class _Plan(NamedTuple):
    """How to compute a product of arrays with given shapes, strides and dtypes."""

    problem: gemm.Problem | None
    offsets: tuple[Ints, ...] = ()  # bytes from the arrays' starts to those of each GEMM
    copied: tuple[bool, bool, bool] = (False, False, False)  # what no GEMM reads as it is
    swapped: bool = False  # the result lies by columns: compute its transpose


def matmul(a: Any, b: Any, out: Any = None, precision: str = "highest") -> Any:
    """out = a @ b for each pair of matrices.

    Args:
        a: (..., M, K).
        b: (..., K, N) of the dtype of a; axes before the last two broadcast.
        out: (..., M, N) of the same dtype, sharing no memory with a and b; None makes one.
        precision: "highest" computes float32 in float32, anything else on tensor cores, which
            round the inputs to TF32. Half precision adds up in float32, float64 in float64.
    Returns: out.
    """
    if out is None:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        out = cupy.empty((*batch, a.shape[-2], b.shape[-1]), a.dtype)
    return multiply(a, b, out, precision != "highest" and a.dtype == _FLOAT)


def multiply(
    a: Any,
    b: Any,
    out: Any,
    tf32: bool,
    accumulate: bool = False,
    bias: Any = None,
    relu: bool = False,
) -> Any:
    """matmul into `out`, whose dtype may be float32 for inputs in half precision.

    Args:
        tf32: compute float32 on tensor cores.
        accumulate: add the product to what `out` holds.
        bias: (N,), added to each row; out has to be C-contiguous then.
        relu: apply relu at last, to the bits of relu of the product without it.
    """
    if out.size == 0:
        return out
    if a.size:
        done = _multiply(a, b, out, tf32, accumulate, bias, relu)
    else:
        done = Done.PRODUCT
        if not accumulate:
            out.fill(0)
    if bias is not None and done < Done.BIAS:
        add_to_columns(out, bias, relu)
    elif relu and done < Done.RELU:
        evaluate(_RELU, {"y": out}, {}, out)
    return out


def _multiply(
    a: Any, b: Any, out: Any, tf32: bool, accumulate: bool, bias: Any, relu: bool
) -> Done:
    plan = _plan(
        a.shape, a.strides, b.shape, b.strides, out.shape, out.strides,
        a.dtype, out.dtype, tf32, accumulate,
    )  # fmt: skip
    if plan.problem is not None:
        pointers = a.data.ptr, b.data.ptr, out.data.ptr
        bias_pointer = 0 if bias is None else bias.data.ptr
        done = Done.RELU
        for offset in plan.offsets:
            at_a, at_b, at_out = map(int.__add__, pointers, offset)
            done = min(done, _run(plan.problem, at_a, at_b, at_out, bias_pointer, relu))
        return done
    if plan.swapped:
        a, b, out = b.swapaxes(-1, -2), a.swapaxes(-1, -2), out.swapaxes(-1, -2)
        _multiply(a, b, out, tf32, accumulate, None, False)
        return Done.PRODUCT
    a, b, target = (
        cupy.ascontiguousarray(x) if copied else x
        for x, copied in zip((a, b, out), plan.copied, strict=True)
    )
    done = _multiply(a, b, target, tf32, accumulate, bias, relu)
    if target is not out:
        out[...] = target
    return done


def _run(problem: gemm.Problem, a: int, b: int, out: int, bias: int, relu: bool) -> Done:
    """Queue a product of matrices at these addresses, with what may follow it."""
    if cublaslt.available():
        if relu and cublaslt.run(problem, a, b, out, bias, relu=True):
            return Done.RELU
        if cublaslt.run(problem, a, b, out, bias):
            return Done.BIAS
    cublas.run(problem, a, b, out)
    return Done.PRODUCT


@functools.lru_cache(maxsize=16384)
def _plan(
    a_shape: Ints,
    a_strides: Ints,
    b_shape: Ints,
    b_strides: Ints,
    out_shape: Ints,
    out_strides: Ints,
    dtype: np.dtype,
    out_dtype: np.dtype,
    tf32: bool,
    accumulate: bool,
) -> _Plan:
    a = _Matrices(a_shape, a_strides, dtype.itemsize)
    b = _Matrices(b_shape, b_strides, dtype.itemsize)
    out = _Matrices(out_shape, out_strides, out_dtype.itemsize)
    if not (a.usable and b.usable and out.usable):
        return _Plan(None, copied=(not a.usable, not b.usable, not out.usable))
    if out.by_columns:
        return _Plan(None, swapped=True)
    m, k, n = a.rows, a.columns, b.columns
    axes = _join(out_shape[:-2], [x.batch_strides(len(out_shape) - 2) for x in (a, b, out)])
    if axes and axes[-1][2] == 0 and not a.by_columns:
        # One right-hand matrix for consecutive blocks of rows: one product with more rows.
        length, a_stride, _, out_stride = axes[-1]
        if a_stride == m * a.step and out_stride == m * out.step and length * m <= _LARGEST:
            m *= length
            axes.pop()
    axes.sort()  # the longest is the library's, the others are loops
    batch = axes.pop() if axes else (1, 0, 0, 0)
    if dtype == np.float64:
        compute = gemm.DOUBLE
    else:
        compute = gemm.TF32 if tf32 else gemm.FLOAT
    problem = gemm.Problem(
        m, n, k, a.by_columns, b.by_columns, a.step, b.step, out.step, *batch,
        gemm.KINDS[dtype.name], gemm.KINDS[out_dtype.name], compute, accumulate,
    )  # fmt: skip
    sizes = dtype.itemsize, dtype.itemsize, out_dtype.itemsize
    offsets = tuple(
        tuple(
            size * sum(i * axis[1 + x] for i, axis in zip(index, axes, strict=True))
            for x, size in enumerate(sizes)
        )
        for index in itertools.product(*(range(axis[0]) for axis in axes))
    )
    return _Plan(problem, offsets)


class _Matrices:
    """How the matrices of an array lie in memory.

    `step` is the number of elements from one row to the next, or `by_columns` from one column to
    the next; not `usable` are matrices with gaps between elements both ways, and broadcast ones.
    """

    def __init__(self, shape: Ints, strides: Ints, itemsize: int) -> None:
        self.rows, self.columns = shape[-2:]
        self._batch = [
            0 if length == 1 else stride // itemsize
            for length, stride in zip(shape[:-2], strides[:-2], strict=True)
        ]
        row, column = (stride // itemsize for stride in strides[-2:])
        by_rows = (column == 1 or self.columns == 1) and (row >= self.columns or self.rows == 1)
        by_columns = (row == 1 or self.rows == 1) and (column >= self.rows or self.columns == 1)
        self.by_columns = not by_rows
        if by_rows:
            self.step = row if self.rows > 1 else self.columns
        else:
            self.step = column if self.columns > 1 else self.rows
        self.usable = (
            (by_rows or by_columns) and self.step <= _LARGEST and min(self._batch, default=0) >= 0
        )

    def batch_strides(self, ndim: int) -> list[int]:
        """Elements from one matrix to the next along each of `ndim` batch axes."""
        return [0] * (ndim - len(self._batch)) + self._batch


def _join(lengths: Ints, strides: list[list[int]]) -> list[tuple[int, int, int, int]]:
    """Batch axes as (length, strides of a, b and out), joined where all three allow it."""
    axes: list[tuple[int, int, int, int]] = []
    for length, a, b, out in reversed(list(zip(lengths, *strides, strict=True))):
        if length == 1:
            continue
        if axes:
            inner, *steps = axes[-1]
            if [a, b, out] == [inner * step for step in steps]:
                axes[-1] = (inner * length, *axes[-1][1:])
                continue
        axes.append((length, a, b, out))
    return axes[::-1]
