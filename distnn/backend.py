"""Backend: what a context resolves to. An array module, a float dtype and memory.

Functions never ask which backend they run on; they use the `xp` it hands them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import transfer
from .dtypes import BFLOAT16, of_text
from .errors import ContextError, MissingExtraError
from .formula import CHUNK, Assignments, Formula, run_chunks
from .function import Function, Rule, Spec
from .kernels import backends, compiler_loads, get_cpu_kernels, numba_problem
from .memory import SMALLEST, pool
from .namespace import NumpyNamespace, raise_label_error
from .random import Draw

_DTYPES = {
    "float": np.float32,
    "half": np.float16,
    "mixed_half": np.float16,  # NNabla's: parameters stay float32, which they do with half as well
    "double": np.float64,
}


class Backend:
    """Abstract: the arrays, their float dtype and where their memory comes from."""

    device = 0  # its number
    chains_formulas = True  # a formula in a chain has the bits that it has alone
    name: str  # of the memory: parameters of backends of one name share slabs
    dtype: np.dtype  # of function outputs
    parameter_dtype: np.dtype  # of parameters and their gradients
    update_dtype: np.dtype  # in which functions read what they update: running statistics
    xp: Any
    captures = False  # whether programs become graphs that are launched as a whole (capture.py)
    current = True  # False once it gave way to another, which contexts then ask for

    def select(self) -> None:
        """Make the calling thread work on this backend's device."""

    def holds(self, array: Any) -> bool:
        """True if `array` lies in this backend's memory."""
        raise NotImplementedError

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Any:
        """An uninitialised C-contiguous array."""
        raise NotImplementedError

    def allocator(self, nbytes: int) -> Callable[..., Any]:
        """What makes arrays of this size; `empty`, or what it comes to for this size."""
        return self.empty

    def runs_as_text(self, size: int) -> bool:
        """Whether formulas of so many elements are computed as their NumPy text stands."""
        return False

    def recomputes(self, formula: Formula, size: int) -> bool:
        """Whether to compute a formula again costs less than to keep its result of this size."""
        return True

    def zeros(self, size: int, dtype: np.dtype) -> Any:
        """A flat array of zeros whose memory is not touched before it is written."""
        raise NotImplementedError

    def full(self, shape: tuple[int, ...], value: float, dtype: np.dtype) -> Any:
        """An array filled with a number."""
        raise NotImplementedError

    def add(self, a: Any, b: Any, out: Any) -> None:
        """out = a + b, rounded to the dtype of out; a and b may lie elsewhere."""
        raise NotImplementedError

    def convert(self, array: Any, dtype: np.dtype) -> Any:
        """A copy of `array`, wherever it lies, in this backend's memory and in `dtype`."""
        raise NotImplementedError

    def owned(self, array: Any, dtype: np.dtype) -> Any:
        """`array` itself if it is of `dtype` and lies in this backend's memory, else a copy."""
        if array.dtype == dtype and self.holds(array):
            return array
        return self.convert(array, dtype)

    def takes_gradient(self, dtype: np.dtype) -> bool:
        """Whether fast backwards write gradients of this dtype."""
        return dtype == self.dtype

    def rule(self, rule: Rule) -> Rule:
        """A gradient rule as this backend computes it."""
        return rule

    def packed(self, array: Any) -> Any:
        """`array`, or a C-contiguous copy where a fast backward needs its gradients to be so."""
        return array

    def whole_numbers(self, array: Any, message: str) -> Any:
        """Floats of this backend as int64; LabelError(message) where they are not whole.

        `{value}` in the message stands for the first value that is not.
        """
        raise NotImplementedError

    def implementation(self, function: Function, specs: Sequence[Spec | None]) -> Any:
        """What carries out `function` on inputs of `specs`: it has its forward and backward."""
        raise NotImplementedError

    def draw(self, draw: Draw) -> Any:
        """The random numbers of a draw, as arrays of this backend."""
        raise NotImplementedError

    def run(self, rule: Assignments, jobs: Sequence[tuple[Sequence[Any], Sequence[float]]]) -> None:
        """Run a rule on each job: its arrays, written in place, and its numbers."""
        raise NotImplementedError

    def sums_of_squares(self, arrays: Sequence[Any]) -> list[float]:
        """The sum of squares of each array, in float64."""
        raise NotImplementedError

    def any_of(self, test: str, arrays: Sequence[Any]) -> bool:
        """True if some element is infinite ("isinf"), NaN ("isnan") or either ("not isfinite")."""
        raise NotImplementedError

    def clip(self, scale: Assignments, arrays: Sequence[Any], norm: float) -> None:
        """Scale each array down to `norm`, by the rule `scale`, where its own is larger."""
        squares = self.sums_of_squares(arrays)
        self.run(
            scale,
            [
                ([array.reshape(-1)], [norm / math.sqrt(square)])
                for array, square in zip(arrays, squares, strict=True)
                if square > norm * norm
            ],
        )

    # -- only where it captures -----------------------------------------------------------------

    def guard(self) -> Any:
        """A multi_tensor.Guard: within it nothing is updated where some element is not finite."""
        raise NotImplementedError

    def recorded_work(self, work: Callable[[], None]) -> Any:
        """Work of a solver for a graph: job_tables.RecordedWork."""
        raise NotImplementedError

    def recording(self) -> Any:
        """A new recording.Recording."""
        raise NotImplementedError

    def is_captured(self, array: Any) -> bool:
        """Whether a graph has made `array`, and will write to it when it is launched again."""
        return False

    def words(self, count: int) -> Any:
        """Numbers that graphs read: words.Words."""
        raise NotImplementedError

    def draw_in_memory(self, words: Any, start: int) -> Any:
        """The random numbers of a draw whose seed, worker and number are words from `start` on."""
        raise NotImplementedError

    def total_memory(self) -> int:
        """Bytes of the device."""
        raise NotImplementedError


class CpuBackend(Backend):
    """NumPy on the host."""

    name = "cpu"
    kernels = "numpy"
    xp = NumpyNamespace()

    def __init__(self, type_config: str) -> None:
        self.type_config = type_config
        self.dtype = self.update_dtype = float_dtype("cpu", type_config)
        # Half precision is for activations; an optimizer needs float32 weights.
        self.parameter_dtype = np.dtype(np.float64 if type_config == "double" else np.float32)

    def __repr__(self) -> str:
        return f"cpu:{self.type_config}"

    def holds(self, array: Any) -> bool:
        return isinstance(array, np.ndarray)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return pool.empty(shape, dtype)

    def allocator(self, nbytes: int) -> Callable[..., Any]:
        return np.empty if nbytes < SMALLEST else self.empty

    def runs_as_text(self, size: int) -> bool:
        return size < 2 * CHUNK

    def recomputes(self, formula: Formula, size: int) -> bool:
        return formula.is_arithmetic and not self.runs_as_text(size)

    def zeros(self, size: int, dtype: np.dtype) -> np.ndarray:
        return np.zeros(size, dtype)

    def full(self, shape: tuple[int, ...], value: float, dtype: np.dtype) -> np.ndarray:
        array = pool.empty(shape, dtype)
        array.fill(value)
        return array

    def add(self, a: Any, b: Any, out: np.ndarray) -> None:
        run_chunks(_add, out, (transfer.to_host(a), transfer.to_host(b)))

    def convert(self, array: Any, dtype: np.dtype) -> np.ndarray:
        if transfer.on_host(array):
            return array.astype(dtype, order="C")
        return transfer.to_host(array).astype(dtype, copy=False)

    def whole_numbers(self, array: np.ndarray, message: str) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            whole = array.astype(np.int64)
        if not np.array_equal(whole, array):
            raise_label_error(array[whole != array], message)
        return whole

    def implementation(self, function: Function, specs: Sequence[Spec | None]) -> Any:
        return function

    def draw(self, draw: Draw) -> Draw:
        return draw

    def run(self, rule: Assignments, jobs: Sequence[tuple[Sequence[Any], Sequence[float]]]) -> None:
        for arrays, numbers in jobs:
            rule.run(arrays, numbers)

    def sums_of_squares(self, arrays: Sequence[np.ndarray]) -> list[float]:
        return [float(np.add.reduce(np.square(a.reshape(-1), dtype=np.float64))) for a in arrays]

    def any_of(self, test: str, arrays: Sequence[np.ndarray]) -> bool:
        return any(bool(_TESTS[test](a).any()) for a in arrays)


_TESTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "isinf": np.isinf,
    "isnan": np.isnan,
    "not isfinite": lambda a: ~np.isfinite(a),
}


def _add(out: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    np.add(a, b, out=out, casting="same_kind")


def float_dtype(name: str, type_config: str) -> np.dtype:
    """The dtype of function outputs; raises ContextError for an unknown type configuration."""
    if type_config not in _DTYPES:
        raise ContextError(
            f"[Context] type_config is {type_config!r}; the {name} backend knows "
            f"{', '.join(sorted(_DTYPES))}"
        )
    return np.dtype(_DTYPES[type_config])


def output_dtype(name: str, type_config: str, precision: str) -> np.dtype:
    """The dtype of function outputs: precision "bf16" and "fp16" make of float32 what they say.

    type_config "half" asks for two bytes: NNabla's float16, unless precision says "bf16".
    """
    dtype = float_dtype(name, type_config)
    if precision not in ("bf16", "fp16"):
        return dtype
    if dtype == np.float64:
        raise ContextError(
            f"[Context] precision is {precision!r} but type_config {type_config!r}, which asks for "
            f"{dtype}; pass type_config='float' with it"
        )
    return np.dtype(np.float16) if precision == "fp16" else _bfloat16(precision)


def _bfloat16(precision: str) -> np.dtype:
    try:
        return of_text(BFLOAT16)
    except MissingExtraError:
        raise MissingExtraError(
            f"[Context] precision {precision!r} needs the package ml_dtypes, which has NumPy's "
            "dtype of bfloat16; pip install ml_dtypes"
        ) from None


def cpu_backend(type_config: str, precision: str = "highest") -> CpuBackend:
    """The backend of the host with the kernels that are chosen now."""
    if precision == "highest":
        return _cpu_backend(type_config, "", get_cpu_kernels())
    kernels = get_cpu_kernels()
    dtype = output_dtype("cpu", type_config, precision)
    if dtype == np.float16:
        type_config = "half" if type_config == "float" else type_config
    if precision == "high" and dtype == np.float32:
        _bfloat16(precision)  # of which its products are
    elif precision != "bf16":
        precision = ""
    if precision:
        _require_compiler(precision, kernels)
    return _cpu_backend(type_config, precision, kernels)


def _require_compiler(precision: str, kernels: str) -> None:
    needs = f"[Context] precision {precision!r} on the CPU needs compiled kernels, but "
    if numba_problem() is not None:
        raise MissingExtraError(f"{needs}{numba_problem()}; pip install 'distnn[cpu]'")
    if kernels != "numba":
        raise ContextError(
            f"{needs}kernels {kernels!r} are chosen; call nn.set_cpu_kernels('numba')"
        )
    if not compiler_loads():
        raise MissingExtraError(f"{needs}Numba cannot be imported; pip install 'distnn[cpu]'")


@functools.cache
def _cpu_backend(type_config: str, precision: str, kernels: str) -> CpuBackend:
    backend = CpuBackend(type_config)
    if precision == "high":
        from .cpu.high_precision import HighBackend

        backend = HighBackend(type_config)
    elif precision:
        from .cpu.bfloat16_backend import Bfloat16Backend

        backend = Bfloat16Backend(type_config)
    elif kernels == "numba":
        from .cpu.backend import NumbaBackend

        backend = NumbaBackend(type_config)
    backends.append(backend)
    return backend
