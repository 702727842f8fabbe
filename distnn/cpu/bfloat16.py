"""Numbers of bfloat16 in kernels: the upper half of a float32, kept in uint16; and whole arrays.

Kernels load bfloat16 as float32, compute in float32 and round to the nearest bfloat16 when they
store, of two as near to the even one. ml_dtypes, whose NumPy dtype the arrays have, does the same.
One text serves all floats: it reads elements by `number`, sums from `zero` on, and stores what
`element` makes of a result; of bfloat16 it is given the `bits`.
"""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba import types

from .. import dtypes
from ..memory import pool
from ..threads import parallel_for
from .compiler import kernel

FLOAT32 = np.dtype(np.float32)
# From here on a kernel converts faster than ml_dtypes; elements of a part that a thread takes.
_LARGE = 8192
_PART = 65_536


@functools.cache
def dtype() -> np.dtype:
    """NumPy's dtype of bfloat16; raises MissingExtraError without ml_dtypes."""
    return dtypes.of_text(dtypes.BFLOAT16)


def is_bfloat16(array: Any) -> bool:
    """Whether an array, or a Spec, is of bfloat16."""
    return array.dtype.char == "E"


@kernel
def rounded(bits):
    """Bits of a float32 as those of the nearest bfloat16, of two as near the even one."""
    if bits & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000):
        return np.uint16((bits >> np.uint32(16)) | np.uint32(0x40))  # NaN, and quiet
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    return np.uint16((bits + odd + np.uint32(0x7FFF)) >> np.uint32(16))


@kernel
def load(bits):
    """The float32 of a bfloat16."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@kernel
def store(value):
    """The nearest bfloat16 of a float32."""
    return rounded(np.float32(value).view(np.uint32))


overload: Any = numba.extending.overload


def number(stored: Any) -> Any:
    """What kernels compute with: of a bfloat16 the float32, another float as it is."""


def element(value: Any, array: Any) -> Any:
    """`value` as an element of `array`, rounded if that is of bfloat16."""


def zero(array: Any) -> Any:
    """0 of the floats in which kernels compute with elements of `array`."""


@overload(number, inline="always")
def _(stored):
    if stored == types.uint16:
        return lambda stored: load(stored)
    return lambda stored: stored


@overload(element, inline="always")
def _(value, array):
    if array.dtype == types.uint16:
        return lambda value, array: store(value)
    return lambda value, array: array.dtype.type(value)


@overload(zero, inline="always")
def _(array):
    if array.dtype == types.uint16:
        return lambda array: np.float32(0)
    return lambda array: array.dtype.type(0)


@kernel
def _widen(x, y):
    for i in range(x.size):
        y[i] = load(x[i])


@kernel
def _narrow(x, y):
    for i in range(x.size):
        y[i] = store(x[i])


def bits(array: np.ndarray) -> np.ndarray:
    """An array of bfloat16 as kernels see it; one of another dtype as it is."""
    return array.view(np.uint16) if is_bfloat16(array) else array


def wide(array: Any) -> Any:
    """An array of bfloat16 in float32; anything else as it is."""
    if not isinstance(array, np.ndarray) or not is_bfloat16(array):
        return array
    return converted(array)


def converted(array: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """bfloat16 as float32, or float32 as bfloat16, in `out` of the same shape."""
    to_wide = is_bfloat16(array)
    if out is None:
        out = pool.empty(array.shape, FLOAT32 if to_wide else dtype())
    if array.size < _LARGE or not out.flags.c_contiguous:
        np.copyto(out, array, "same_kind")
        return out
    # ml_dtypes converts what does not lie in order far slower than NumPy copies it.
    x, y = np.ascontiguousarray(bits(array)).reshape(-1), bits(out).reshape(-1)
    body = _widen if to_wide else _narrow
    parallel_for(lambda i, j: body(x[i:j], y[i:j]), x.size, _PART)
    return out


def put(values: np.ndarray, out: np.ndarray) -> np.ndarray:
    """out = values, rounded if out is of bfloat16."""
    if {values.dtype, out.dtype} == {FLOAT32, dtype()} and values.shape == out.shape:
        return converted(values, out)
    np.copyto(out, values, "same_kind")
    return out
