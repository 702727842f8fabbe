"""The host as a backend with compiled kernels: NumPy's arrays and memory, our own loops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import CpuBackend
from ..function import Function, Spec
from ..namespace import NumpyNamespace
from .twin import implementation


class NumbaNamespace(NumpyNamespace):
    """As namespace.NumpyNamespace, with kernels of ours where they are faster."""

    def call(self, function: Function, *arrays: Any, **operands: Any) -> Any:
        results = implementation(function, arrays).forward(self, *arrays, **operands)
        if not isinstance(results, tuple):
            return results
        n = len(function.declaration.outputs)
        return results[0] if n == 1 else results[:n]


class NumbaBackend(CpuBackend):
    """NumPy on the host, and kernels that Numba compiles."""

    kernels = "numba"
    xp = NumbaNamespace()

    def packed(self, array: Any) -> Any:
        return np.ascontiguousarray(array)  # what kernels are given lies in one piece

    def implementation(self, function: Function, specs: Sequence[Spec | None]) -> Any:
        return implementation(function, specs)
