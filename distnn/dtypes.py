"""Half precision among dtypes: NumPy's float16, and bfloat16, which the package ml_dtypes adds.

NumPy's kinds do not know bfloat16. An array that has it brings the dtype along: ml_dtypes is
imported only where such an array is made of bytes that came from elsewhere.
"""

from __future__ import annotations

import numpy as np

from .errors import MissingExtraError

BFLOAT16 = "bfloat16"


def text_of(dtype: np.dtype) -> str:
    """What `of_text` makes the dtype of, on another rank too."""
    return dtype.name if is_half(dtype) and dtype.kind == "V" else dtype.str


def of_text(text: str) -> np.dtype:
    """The dtype of such a text; raises MissingExtraError for bfloat16 without ml_dtypes."""
    if text != BFLOAT16:
        return np.dtype(text)
    try:
        import ml_dtypes
    except ImportError:
        raise MissingExtraError(
            "an array of bfloat16 was received, which NumPy lacks; pip install ml_dtypes"
        ) from None
    return np.dtype(ml_dtypes.bfloat16)


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
