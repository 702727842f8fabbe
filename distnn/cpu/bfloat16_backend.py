"""The host as a backend of mixed precision: results of functions are bfloat16.

Parameters, their gradients, running statistics and sums inside of functions are float32. What has
no kernel for bfloat16 is computed in float32 and rounded once: `Widened` for functions,
`Bfloat16Backend.rule` for gradient rules.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..formula import Formula
from ..formula_chain import Chain
from ..function import Function, Rule, Spec
from ..functions.channels import Channels
from ..functions.elementwise import Elementwise
from ..twin import Twin
from . import amx_matmul, bfloat16_affine, bfloat16_normalization, bfloat16_reduction, twin
from .backend import NumbaBackend, NumbaNamespace
from .bfloat16 import FLOAT32, converted, dtype, is_bfloat16, put, wide
from .elementwise import evaluate, evaluate_chain
from .twin import implementation

if TYPE_CHECKING:
    from ..namespace import Axes

_SUM = Formula("a + b", ("a", "b"), ())
# Functions whose text, and whose gradients' text, is right for bfloat16: most move numbers only.
_AS_THEY_ARE = frozenset(
    {
        "affine", "batch_matmul", "concatenate", "embed", "gather", "reshape", "slice", "split",
        "stack", "sum", "transpose",
    }
)  # fmt: skip
# Where kernels for bfloat16 are, in this room, by the functions' class.
_TWINS = {
    "Affine": "bfloat16_affine.Affine",
    "BatchNormalization": "bfloat16_normalization.BatchNormalization",
    "Convolution": "bfloat16_convolution.Convolution",
    "Deconvolution": "bfloat16_convolution.Deconvolution",
    "FilterGradient": "bfloat16_convolution.FilterGradient",
    "Mean": "bfloat16_reduction.Mean",
}
# Their products over all steps are those of bfloat16, the rest float32.
_RECURRENT = frozenset({"gru", "lstm", "rnn"})
_RULES_AS_THEY_ARE = _AS_THEY_ARE | {"convolution", "deconvolution", "filter_gradient"}


class Bfloat16Namespace(NumbaNamespace):
    """As namespace.NumpyNamespace, for arrays of bfloat16."""

    def __init__(self, backend: Bfloat16Backend) -> None:
        self._backend = backend

    def call(self, function: Function, *arrays: Any, **operands: Any) -> Any:
        results = self._backend.implementation(function, arrays).forward(self, *arrays, **operands)
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
        if out.size >= twin.SMALLEST:
            values = [arrays[name] for name in formula.arrays]
            if evaluate(formula, values, [numbers[n] for n in formula.numbers], out):
                return out
        values_wide = {name: wide(arrays[name]) for name in formula.arrays}
        return put(formula.evaluate(values_wide, numbers, self.empty(out.shape, FLOAT32)), out)

    def evaluate_chain(
        self,
        chain: Chain,
        arrays: Sequence[np.ndarray],
        numbers: Sequence[float],
        outs: Sequence[np.ndarray],
    ) -> None:
        small = outs[0].size < twin.SMALLEST
        if small or not evaluate_chain(chain, arrays, numbers, outs):
            self._evaluate_links(chain, arrays, numbers, outs)

    def sum(self, x: np.ndarray, axis: Axes = None, keepdims: bool = False) -> np.ndarray:
        return _narrow(bfloat16_reduction.array_sum(x, axis, keepdims))

    def channels(self, blocks: tuple[int, int, int]) -> Channels:
        return bfloat16_normalization.channels(blocks) or WidenedChannels(blocks)

    def matmul(self, a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        if out is None:
            batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
            out = self.empty((*batch, a.shape[-2], b.shape[-1]), a.dtype)
        return bfloat16_affine.matmul(a, b, out)


class _Products(NumbaNamespace):
    """For arrays of float32, of which products of matrices take what is left in bfloat16."""

    def matmul(self, a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        if a.dtype != FLOAT32 or not (bfloat16_affine.uses_tiles() and amx_matmul.suits(a, b)):
            return super().matmul(a, b, out)
        if out is None:
            out = self.empty((*a.shape[:-1], b.shape[-1]), a.dtype)
        return bfloat16_affine.matmul(_rounded(a), _rounded(b), out)


_PRODUCTS = _Products()


def _rounded(matrix: np.ndarray) -> np.ndarray:
    """A matrix in bfloat16; it lies as it did where it lies by columns."""
    return converted(matrix.T).T if matrix.T.flags.c_contiguous else converted(matrix)


class WidenedChannels(Channels):
    """Sums of channels in float32."""

    def total(self, x: np.ndarray) -> np.ndarray:
        return NumbaBackend.xp.channels(self.shape).total(wide(x))


class Widened(Twin):
    """A function computed in float32 whose results are rounded."""

    def __init__(self, function: Function, carrier: Any, xp: NumbaNamespace) -> None:
        super().__init__(function)
        self._carrier, self._xp = carrier, xp

    def scratch(self, *specs: Any) -> int:
        return self._carrier.scratch(*map(_wide_spec, specs))

    def forward(self, xp: Any, *arrays: Any, out: Any = None, **options: Any) -> Any:
        places = [] if out is None else list(out) if isinstance(out, tuple) else [out]
        if places:
            temporary = [_in_float32(xp, place) for place in places]
            options["out"] = tuple(temporary) if isinstance(out, tuple) else temporary[0]
        results = self._carrier.forward(self._xp, *map(wide, arrays), **options)
        single = not isinstance(results, tuple)
        found = [results] if single else list(results)
        # Updates of running statistics follow, which stay float32.
        n = len(self.function.declaration.outputs)
        for i, place in enumerate(places):
            found[i] = place if found[i] is place else put(found[i], place)
        for i in range(len(places), n if out is None else len(places)):
            found[i] = _narrow(found[i])
        return found[0] if single else tuple(found)

    def backward(self, xp: Any, need: Any, *, out: Any, **options: Any) -> None:
        values = {name: _widened(value) for name, value in options.items()}
        places: list[Any] = [None if o is None else _in_float32(xp, o) for o in out]
        inputs = self.function.declaration.per_input(places)
        self._carrier.backward(self._xp, need, **values, out=inputs)
        for place, o in zip(places, out, strict=True):
            if place is not o:
                put(place, o)


class Bfloat16Backend(NumbaBackend):
    """NumPy on the host, with results of bfloat16 and parameters of float32."""

    chains_formulas = False  # results are rounded between formulas, which loops do not

    def __init__(self, type_config: str) -> None:
        super().__init__("float")
        self.type_config = type_config
        self.dtype = dtype()
        self.update_dtype = FLOAT32
        self.xp = Bfloat16Namespace(self)
        self._rules: dict[Rule, Rule] = {}

    def __repr__(self) -> str:
        return f"cpu:{self.type_config} (precision bf16)"

    def runs_as_text(self, size: int) -> bool:
        return False

    def takes_gradient(self, dtype: np.dtype) -> bool:
        return dtype in (self.dtype, FLOAT32)

    def add(self, a: Any, b: Any, out: np.ndarray) -> None:
        alike = {a.dtype, b.dtype, out.dtype} == {self.dtype} and out.size >= twin.SMALLEST
        if not (alike and evaluate(_SUM, (a, b), (), out)):
            put(np.add(wide(a), wide(b)), out)

    def convert(self, array: Any, dtype: np.dtype) -> np.ndarray:
        if isinstance(array, np.ndarray) and {array.dtype, dtype} == {self.dtype, FLOAT32}:
            return converted(array)
        return super().convert(array, dtype)

    def whole_numbers(self, array: np.ndarray, message: str) -> np.ndarray:
        return super().whole_numbers(wide(array), message)

    def implementation(self, function: Function, specs: Sequence[Any]) -> Any:
        found = _twin(type(function).__name__)
        if found is not None and found.suits(function, *specs):
            return found(function)
        if isinstance(function, Elementwise) or function.name in _AS_THEY_ARE or not specs:
            return function
        carrier = implementation(function, [_wide_spec(spec) for spec in specs])
        if getattr(carrier, "takes_bfloat16", False):
            return carrier
        xp = _PRODUCTS if function.name in _RECURRENT else NumbaBackend.xp
        return Widened(function, carrier, xp)

    def rule(self, rule: Rule) -> Rule:
        """A gradient rule, on arrays of bfloat16 computed in float32 and rounded once."""
        if rule.formula is not None:
            return rule
        found = self._rules.get(rule)
        if found is None:
            found = self._rules[rule] = rule._replace(compute=self._in_float32(rule.compute))
        return found

    def _in_float32(self, compute: Any) -> Any:
        @functools.wraps(compute)
        def wider(function: Function, xp: Any, **values: Any) -> Any:
            if xp is not self.xp or function.name in _RULES_AS_THEY_ARE:  # or it is recorded
                return compute(function, xp, **values)
            found = {name: _widened(value) for name, value in values.items()}
            return _narrow(compute(function, NumbaBackend.xp, **found))

        return wider

    def sums_of_squares(self, arrays: Sequence[np.ndarray]) -> list[float]:
        return super().sums_of_squares([wide(a) for a in arrays])


@functools.cache
def _twin(name: str) -> Any:
    path = _TWINS.get(name)
    if path is None:
        return None
    module, _, cls = path.rpartition(".")
    return getattr(importlib.import_module(f"{__package__}.{module}"), cls)


def _wide_spec(spec: Any) -> Spec | None:
    """Of an input in float32; arrays serve as specs."""
    if spec is None:
        return None
    return Spec(tuple(spec.shape), FLOAT32 if is_bfloat16(spec) else spec.dtype)


def _in_float32(xp: Any, place: Any) -> Any:
    """Memory for what `place` shall hold, if that is bfloat16; else `place`."""
    return xp.empty(place.shape, FLOAT32) if is_bfloat16(place) else place


def _widened(value: Any) -> Any:
    return tuple(map(wide, value)) if isinstance(value, tuple) else wide(value)


def _narrow(array: Any) -> Any:
    """float32 as bfloat16; anything else as it is."""
    if isinstance(array, np.generic):
        array = np.asarray(array)
    if isinstance(array, np.ndarray) and array.dtype == FLOAT32:
        return converted(array)
    return array
