"""Half precision among dtypes: NumPy's float16, and bfloat16, which the package ml_dtypes adds.

NumPy's kinds do not know bfloat16. An array that has it brings the dtype along: nothing is imported
here, and without ml_dtypes there are no such arrays.
"""

from __future__ import annotations

import numpy as np

BFLOAT16 = "bfloat16"


def is_float(dtype: np.dtype) -> bool:
    """Whether it holds floating-point numbers, bfloat16 included."""
    return dtype.kind == "f" or is_half(dtype)


def is_half(dtype: np.dtype) -> bool:
    """Whether it is float16 or bfloat16, sums of which are taken in float32."""
    return dtype.itemsize == 2 and (
        dtype.char == "e" or (dtype.kind == "V" and dtype.name == BFLOAT16)
    )


def dtype_of_sums(dtype: np.dtype) -> np.dtype:
    """In which dtype numbers are added."""
    return np.dtype(np.float32) if is_half(dtype) else dtype
