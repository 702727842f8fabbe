"""The `xp` of functions: the names that a gradient rule may use, for arrays and for Variables.

A rule written with these names and `+ - * / **` computes on arrays and records on Variables, which
is what makes derivatives of any order out of one text. On arrays, `xp` also has everything of the
array module, for `forward` and for fast paths; on Variables it has these names only.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import threads
from .errors import LabelError
from .memory import pool

if TYPE_CHECKING:
    from .formula import Formula
    from .formula_chain import Chain
    from .function import Function
    from .functions.channels import Channels
    from .ndarray import NdArray

Axes = int | Sequence[int] | None


# Elements up to which to copy an array costs less than to make a view of it with strides of 0.
_COPIED = 4096


class NumpyNamespace:
    """NumPy's names, with those of the list where they differ from NumPy's."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(np, name)
        setattr(self, name, value)
        return value

    def call(self, function: Function, *arrays: Any, **operands: Any) -> Any:
        """Run another Function: its public outputs, a tuple if there are several."""
        declaration = function.declaration
        results = function.forward(self, *arrays, **operands)
        if not isinstance(results, tuple):
            return results
        n = len(declaration.outputs)
        return results[0] if n == 1 else results[:n]

    def evaluate(
        self,
        formula: Formula,
        arrays: Mapping[str, np.ndarray],
        numbers: Mapping[str, float],
        out: np.ndarray,
    ) -> np.ndarray:
        """out = formula; arrays have out's number of axes and broadcast to its shape."""
        return formula.evaluate(arrays, numbers, out)

    def evaluate_chain(
        self,
        chain: Chain,
        arrays: Sequence[np.ndarray],
        numbers: Sequence[float],
        outs: Sequence[np.ndarray],
    ) -> None:
        """Compute the outputs of a chain; arrays and numbers are in the order of its names."""
        chain.evaluate(arrays, numbers, outs)

    def part_kernel(
        self, chain: Chain, numbers: Sequence[float], dtype: Any, size: int
    ) -> Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], object] | None:
        """f(outs, arrays) for parts, with one axis, of arrays of `size` elements, on this thread.

        It has the bits of `evaluate_chain`. None where that is not done part by part: NumPy takes
        longer to compute a chain for the sums and again for the rest than to keep what it gave.
        """
        return None

    def check_range(self, indices: np.ndarray, low: int, high: int, message: str) -> None:
        """Raise LabelError(message) unless low <= indices <= high; on a GPU at the next host read.

        `{value}` in the message stands for the first wrong index, `{wrong}` for how many are.
        """
        flat = indices.reshape(-1)  # NumPy's methods min and max are Python, which costs more
        if flat.size and not low <= np.minimum.reduce(flat) <= np.maximum.reduce(flat) <= high:
            raise_label_error(indices[(indices < low) | (indices > high)], message)

    def empty(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        return pool.empty(tuple(shape), np.dtype(dtype))

    def constant(self, value: float, shape: Sequence[int], like: np.ndarray) -> np.ndarray:
        """An array of `shape` filled with `value`, of the dtype of `like`."""
        return np.full(shape, value, like.dtype)

    def given(self, array: NdArray, like: np.ndarray) -> np.ndarray:
        """The values of an NdArray that was handed to the function, in the dtype of `like`."""
        return array.read(like.dtype)

    def sum(self, x: np.ndarray, axis: Axes = None, keepdims: bool = False) -> np.ndarray:
        return array_sum(x, axis, keepdims)

    # NumPy builds index arrays for all axes, in Python, for what is a column as a rule.

    def take_along_axis(self, x: np.ndarray, index: np.ndarray, axis: int) -> np.ndarray:
        if x.ndim != 2 or axis not in (1, -1) or index.shape[1] != 1:
            return np.take_along_axis(x, index, axis)
        return x[_numbers(len(x)), index[:, 0]].reshape(-1, 1)

    def put_along_axis(
        self, x: np.ndarray, index: np.ndarray, values: np.ndarray, axis: int
    ) -> None:
        if x.ndim != 2 or axis not in (1, -1) or index.shape[1] != 1:
            np.put_along_axis(x, index, values, axis)
        else:
            x[_numbers(len(x)), index[:, 0]] = values[:, 0]

    matmul = staticmethod(threads.matmul)

    def reshape(self, x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        return x.reshape(shape)

    def broadcast(self, x: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        if math.prod(shape) > _COPIED or x.ndim > len(shape):
            return np.broadcast_to(x, shape)
        y = np.empty(shape, x.dtype)
        np.copyto(y, x)
        return y

    def channels(self, blocks: tuple[int, int, int]) -> Channels:
        """What works on the channels of (A, C, B) arrays."""
        from .functions.channels import Channels

        return Channels(blocks)

    def slice(self, x: np.ndarray, start: Sequence[int], stop: Sequence[int]) -> np.ndarray:
        """The part of x from `start` up to `stop` of every axis."""
        return x[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]


@functools.lru_cache(16)
def _numbers(n: int) -> np.ndarray:
    numbers = np.arange(n)
    numbers.flags.writeable = False
    return numbers


def raise_label_error(wrong: np.ndarray, message: str) -> None:
    """Raise LabelError with the first of the wrong values and their number."""
    raise LabelError(message.format(value=f"{wrong.flat[0]:g}", wrong=wrong.size))


class VariableNamespace:
    """The list of names a rule may use, recording functions on Variables."""

    def call(self, function: Function, *inputs: Any, **operands: Any) -> Any:
        return function(*inputs, **operands)

    def constant(self, value: float, shape: Sequence[int], like: Any) -> Any:
        from . import functions as F

        return F.constant(value, shape)

    def given(self, array: NdArray, like: Any) -> Any:
        from .variable import Variable

        variable = Variable(array.shape)
        variable.data = array
        return variable

    def transpose(self, x: Any, axes: Sequence[int] | None = None) -> Any:
        from . import functions as F

        return F.transpose(x, range(x.ndim)[::-1] if axes is None else axes)

    def __getattr__(self, name: str) -> Any:
        from . import functions as F

        if name not in _RECORDED:
            raise AttributeError(
                f"a gradient rule uses xp.{name}, which cannot be recorded; it may use "
                f"{sorted(RULE_NAMES)}"
            )
        value = getattr(F, _RECORDED[name])
        setattr(self, name, value)
        return value


# Name in a rule -> the function that records it.
_RECORDED = {
    **{name: name for name in ("sum", "reshape", "broadcast", "slice", "concatenate", "where")},
    **{name: name for name in ("exp", "log", "sqrt", "tanh", "abs", "sign")},
    **{name: name for name in ("greater", "greater_equal", "less", "less_equal")},
    **{name: name for name in ("equal", "not_equal")},
    "matmul": "batch_matmul",
    "maximum": "maximum2",
    "minimum": "minimum2",
}
RULE_NAMES = frozenset(_RECORDED) | {"call", "constant", "given", "transpose"}

variable_namespace = VariableNamespace()


# Rows added one after the other before sums are added to sums: keeps the error of float32 sums
# over many rows near that of pairwise summation.
_ROWS = 64


def array_sum(x: np.ndarray, axis: Axes = None, keepdims: bool = False) -> np.ndarray:
    """Sum over axes, with blocked summation along every axis; half precision adds in float32."""
    shape, dtype = x.shape, x.dtype
    # What the text below comes to, for gradients of small biases, along the last axis, over all.
    if axis == 0 and len(shape) == 2 and shape[0] <= _ROWS and not keepdims and dtype.char != "e":
        return np.add.reduce(x, 0)
    if axis == len(shape) - 1 and axis > 0 and dtype.char in "fd":
        return np.add.reduce(x, axis, keepdims=True) if keepdims else np.add.reduce(x, axis)
    if isinstance(axis, tuple) and len(axis) == len(shape) and not keepdims and dtype.char in "fd":
        return np.asarray(np.add.reduce(x.reshape(-1)))
    if axis is None:
        summed = list(range(x.ndim))
    else:
        summed = sorted(a % x.ndim for a in ([axis] if isinstance(axis, int) else axis))
    if dtype == np.float16:
        x = x.astype(np.float32)
    axes = list(summed)
    while axes:
        last = first = axes.pop()
        while axes and axes[-1] == first - 1:
            first = axes.pop()
        before, after = x.shape[:first], x.shape[last + 1 :]
        length = math.prod(x.shape[first : last + 1])
        if not after:
            x = np.add.reduce(x.reshape(*before, length), axis=-1)
        else:
            rows = x.reshape(math.prod(before), length, math.prod(after))
            x = _sum_rows(rows).reshape(*before, *after)
        # The summed axes are gone; those still to be summed come before them.
    if keepdims:
        x = np.reshape(x, [1 if i in summed else n for i, n in enumerate(shape)])
    return np.asarray(x, dtype)


def _sum_rows(x: np.ndarray) -> np.ndarray:
    """(A, R, C) -> (A, C)."""
    while x.shape[1] > _ROWS:
        blocks, rest = divmod(x.shape[1], _ROWS)
        head = x[:, : blocks * _ROWS].reshape(len(x), blocks, _ROWS, x.shape[2])
        partial = np.add.reduce(head, axis=2)
        if rest:
            tail = np.add.reduce(x[:, blocks * _ROWS :], axis=1, keepdims=True)
            partial = np.concatenate((partial, tail), axis=1)
        x = partial
    return np.add.reduce(x, axis=1)
