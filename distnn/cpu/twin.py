"""Twins on the CPU: which functions our own kernels carry out, by shapes and dtypes alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..function import Function, Spec
from ..kernels import compiler_loads
from ..twin import Twin, twin_class

# Where no input has as many elements, starting a kernel costs more than it saves: see docs/cpu.md.
SMALLEST = 8192
# Where NumPy takes a dozen calls a kernel is faster for less; Numba's import takes 0.3 s, once.
_SMALLEST = {"softmax.SoftmaxCrossEntropy": 256, "affine.Affine": 256}
# Products of matrices with fewer multiplications are BLAS's: packing and threads would cost more.
LARGE_PRODUCT = 2**23
# Kernels compute in these; half precision is NumPy's.
DTYPES = "fd"


class CpuTwin(Twin):
    """Base of twins on the CPU."""

    takes_bfloat16 = False  # where it takes float32: by kernels that read and write two bytes

    @classmethod
    def suits(cls, function: Any, *specs: Spec | None) -> bool:
        """True where the kernels can take inputs of these specs and are faster than NumPy."""
        return True


def implementation(function: Function, specs: Sequence[Any]) -> Any:
    """What carries out `function`: its twin, or the function itself.

    Args:
        specs: of the inputs; arrays serve as well.
    """
    least = min(SMALLEST, _SMALLEST.get(function.cpu, SMALLEST))
    if not function.cpu or not worthwhile(specs, least) or not compiler_loads():
        return function
    twin = twin_class(function, "cpu")
    assert twin is not None
    return twin(function) if twin.suits(function, *specs) else function


def flat(array: np.ndarray) -> np.ndarray:
    """The elements in order, in memory that may be written: one type for the compiler."""
    elements = np.ascontiguousarray(array).reshape(-1)
    return elements if elements.flags.writeable else elements.copy()


def worthwhile(specs: Sequence[Any], least: int | None = None) -> bool:
    """True where some input is large, and the floats are of one dtype that kernels know."""
    floats = {spec.dtype.char for spec in specs if spec is not None and spec.dtype.kind == "f"}
    largest = max((spec.size for spec in specs if spec is not None), default=0)
    least = SMALLEST if least is None else least
    return largest >= least and len(floats) == 1 and floats <= {*DTYPES}
