"""The `xp` of functions on a GPU: CuPy's names, with those of the list where they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cupy

from ..capture import Refused
from ..formula import Formula
from ..formula_chain import Chain
from ..function import Function
from ..ndarray import NdArray
from . import elementwise, labels, matmul, recording, reduction
from .twin import implementation

if TYPE_CHECKING:
    from .backend import CudaBackend

Axes = int | Sequence[int] | None


class CudaNamespace:
    """As namespace.NumpyNamespace, on arrays of one device."""

    def __init__(self, backend: CudaBackend) -> None:
        self._backend = backend
        self.precision = backend.precision

    def __getattr__(self, name: str) -> Any:
        value = getattr(cupy, name)
        setattr(self, name, value)
        return value

    def call(self, function: Function, *arrays: Any, **operands: Any) -> Any:
        results = implementation(function).forward(self, *arrays, **operands)
        if not isinstance(results, tuple):
            return results
        n = len(function.declaration.outputs)
        return results[0] if n == 1 else results[:n]

    def evaluate(
        self, formula: Formula, arrays: Mapping[str, Any], numbers: Mapping[str, float], out: Any
    ) -> Any:
        return elementwise.evaluate(formula, arrays, numbers, out)

    def evaluate_chain(
        self, chain: Chain, arrays: Sequence[Any], numbers: Sequence[float], outs: Sequence[Any]
    ) -> None:
        elementwise.evaluate_chain(chain, arrays, numbers, outs)

    def empty(self, shape: Sequence[int], dtype: Any) -> Any:
        return cupy.empty(tuple(shape), dtype)

    def constant(self, value: float, shape: Sequence[int], like: Any) -> Any:
        return cupy.full(tuple(shape), value, like.dtype)

    def given(self, array: NdArray, like: Any) -> Any:
        if recording.in_progress():
            raise Refused("a gradient of F.sink is read from an array that may be another one")
        return array.read(like.dtype, self._backend)

    def asarray(self, values: Any, dtype: Any = None) -> Any:
        """`values`, which may be NumPy's, on the device."""
        return cupy.asarray(values, dtype)

    def sum(self, x: Any, axis: Axes = None, keepdims: bool = False) -> Any:
        return reduction.array_sum(x, axis, keepdims)

    def matmul(self, a: Any, b: Any, out: Any = None) -> Any:
        return matmul.matmul(a, b, out, self.precision)

    def broadcast(self, x: Any, shape: Sequence[int]) -> Any:
        return cupy.broadcast_to(x, tuple(shape))

    def slice(self, x: Any, start: Sequence[int], stop: Sequence[int]) -> Any:
        return x[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]

    def check_range(self, indices: Any, low: int, high: int, message: str) -> None:
        """See namespace.NumpyNamespace; found on the device, raised at the next host read."""
        labels.check_range(indices, low, high, message)
