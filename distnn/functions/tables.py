"""Constant arrays that functions are made of: tables of indices and weights.

A table is made once for its key and shared by all graphs; on a GPU it is copied there once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ndarray import NdArray
from ..value import Value
from ..variable import Variable


def table(values: np.ndarray) -> NdArray:
    """An array for `beside`; keep it with `functools.lru_cache`."""
    return NdArray.from_numpy_array(values)


def beside(x: Any, constant: NdArray) -> Any:
    """The table as an input of a function of x: an NdArray, or a Variable where x is one."""
    if isinstance(x, NdArray):
        return constant
    value = Value(constant.shape)
    value._data = constant
    return Variable._of(value)
