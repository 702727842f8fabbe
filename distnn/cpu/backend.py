"""The host as a backend with compiled kernels: NumPy's arrays and memory, our own loops."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..backend import CpuBackend
from ..formula import Assignments, Formula
from ..formula_chain import Chain
from ..function import Function, Spec
from ..functions.channels import Channels
from ..kernels import compiler_loads
from ..namespace import NumpyNamespace
from . import twin
from .twin import implementation, worthwhile


class NumbaNamespace(NumpyNamespace):
    """As namespace.NumpyNamespace, with kernels of ours where they are faster."""

    def call(self, function: Function, *arrays: Any, **operands: Any) -> Any:
        results = implementation(function, arrays).forward(self, *arrays, **operands)
        if not isinstance(results, tuple):
            return results
        n = len(function.declaration.outputs)
        return results[0] if n == 1 else results[:n]

    def evaluate(
        self,
        formula: Formula,
        arrays: Mapping[str, np.ndarray],
        numbers: Mapping[str, float],
        out: np.ndarray,
    ) -> np.ndarray:
        if out.size >= twin.SMALLEST and compiler_loads():
            values = [arrays[name] for name in formula.arrays]
            if _loops().evaluate(formula, values, [numbers[n] for n in formula.numbers], out):
                return out
        return formula.evaluate(arrays, numbers, out)

    def evaluate_chain(
        self,
        chain: Chain,
        arrays: Sequence[np.ndarray],
        numbers: Sequence[float],
        outs: Sequence[np.ndarray],
    ) -> None:
        if outs[0].size < twin.SMALLEST or not compiler_loads():
            chain.evaluate(arrays, numbers, outs)
        elif not _loops().evaluate_chain(chain, arrays, numbers, outs):
            self._evaluate_links(chain, arrays, numbers, outs)

    def _evaluate_links(
        self,
        chain: Chain,
        arrays: Sequence[np.ndarray],
        numbers: Sequence[float],
        outs: Sequence[np.ndarray],
    ) -> None:
        """One by one: some formulas are loops here, others NumPy's."""
        values = dict(zip(chain.arrays, arrays, strict=True))
        operands = dict(zip(chain.numbers, numbers, strict=True))
        places = dict(zip(chain.outputs, outs, strict=True))
        like = outs[0]
        for target, formula in chain.formulas:
            out = places.get(target)
            out = self.empty(like.shape, like.dtype) if out is None else out
            values[target] = self.evaluate(formula, values, operands, out)

    def part_kernel(
        self, chain: Chain, numbers: Sequence[float], dtype: Any, size: int
    ) -> Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], object] | None:
        if size < twin.SMALLEST or not compiler_loads():
            return super().part_kernel(chain, numbers, dtype, size)
        return _loops().part_kernel(chain, numbers, dtype)

    def matmul(self, a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        if a.ndim == b.ndim == 2 and a.size * b.shape[1] >= twin.LARGE_PRODUCT and compiler_loads():
            from . import matmul

            if matmul.suits(a, b, out):
                out = self.empty((len(a), b.shape[1]), a.dtype) if out is None else out
                return matmul.multiply(a, b, out)
        elif a.ndim > 2 and a.size * b.shape[-1] >= twin.LARGE_PRODUCT and compiler_loads():
            from . import matmul

            if matmul.suits_batch(a, b, out):
                shape = (*a.shape[:-1], b.shape[-1])
                out = self.empty(shape, a.dtype) if out is None else out
                return matmul.multiply_batch(a, b, out)
        return super().matmul(a, b, out)

    def channels(self, blocks: tuple[int, int, int]) -> Channels:
        if math.prod(blocks) < twin.SMALLEST or not compiler_loads():
            return super().channels(blocks)
        from .channels import CompiledChannels

        return CompiledChannels(blocks)


class NumbaBackend(CpuBackend):
    """NumPy on the host, and kernels that Numba compiles."""

    kernels = "numba"
    xp = NumbaNamespace()

    def packed(self, array: Any) -> Any:
        # What kernels are given lies in one piece. A copy of a scalar would have an axis.
        return array if array.flags.c_contiguous else np.ascontiguousarray(array)

    def runs_as_text(self, size: int) -> bool:
        return size < twin.SMALLEST

    def implementation(self, function: Function, specs: Sequence[Spec | None]) -> Any:
        return implementation(function, specs)

    def run(self, rule: Assignments, jobs: Sequence[tuple[Sequence[Any], Sequence[float]]]) -> None:
        for arrays, numbers in jobs:
            loops = _loops() if arrays[0].size >= twin.SMALLEST and compiler_loads() else None
            if loops is None or not loops.run(rule, arrays, numbers):
                rule.run(arrays, numbers)

    def sums_of_squares(self, arrays: Sequence[np.ndarray]) -> list[float]:
        return [self._sum_of_squares(a) for a in arrays]

    def _sum_of_squares(self, array: np.ndarray) -> float:
        if worthwhile((array,)) and compiler_loads():
            from .reduction import sum_of_squares

            return sum_of_squares(array)
        return super().sums_of_squares([array])[0]


@functools.cache
def _loops() -> Any:
    """The module elementwise, which imports Numba; an import statement would cost each call."""
    from . import elementwise

    return elementwise
