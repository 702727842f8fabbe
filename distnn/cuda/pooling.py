"""Pooling on a GPU: one kernel for each function of functions/pooling.py.

A thread computes one element of its result from all that contribute to it, in the order of the taps
of a window: so no two threads add to one element, and the sums are those of the CPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import cupy
import numpy as np

from ..twin import Twin
from .kernels import FLOATS, THREADS, TYPES, blocks_for, index_dtype, kernel, scalar_types

_KERNEL = """{types}
typedef {index} Index;
typedef {choice} Choice;

// Elements of a window along an axis: with those in the padding, or (average = 2) without.
__device__ Index elements(Index start, Index input, Index kernel, Index pad, Index average) {{
  Index stop = start + kernel < input + pad ? start + kernel : input + pad;
  if (average == 2) {{
    start = start > 0 ? start : 0;
    stop = stop < input ? stop : input;
  }}
  return stop - start;
}}

extern "C" __global__ void {name}({arrays}, Index size, Index average, Index inner{lengths}) {{
  for (Index i = blockIdx.x * (Index)blockDim.x + threadIdx.x; i < size;
       i += (Index)gridDim.x * blockDim.x) {{
    Index last = i % inner, outer = i / inner;
    {places}
    {before}
    {loop} {{
      {tap}
      {body}
    }}
    {after}
  }}
}}
"""

# Arrays of a kernel; whether a thread belongs to a window, of which it goes over the elements, or
# to an element, of which it goes over the windows; and statements before, in and after that loop,
# in which `tap` is the number of the element in the window. COUNT is the number of elements of a
# window.
_TEXTS = {
    "linear_pooling": (
        "const T* x, T* y", "window",
        "Real total = 0;",
        "total += (Real)x[element];",
        "y[i] = (T)(average ? total / (Real)COUNT : total);",
    ),
    "linear_unpooling": (
        "const T* x, T* y", "element",
        "Real total = 0;",
        "total += average ? (Real)x[window] / (Real)COUNT : (Real)x[window];",
        "y[i] = (T)total;",
    ),
    "max_pooling": (
        "const T* x, T* y, Choice* index", "window",
        "Real largest = (Real)(-1.0 / 0.0); Index chosen = 0;",
        # What is not a number is larger than all numbers, and stays so.
        "Real value = (Real)x[element]; if (!(value <= largest)) { chosen = tap;"
        " if (largest == largest) largest = value; }",
        "y[i] = (T)largest; index[i] = (Choice)chosen;",
    ),
    "max_unpooling": (
        "const T* x, const Choice* index, T* y", "element",
        "Real total = 0;",
        "if (index[window] == (Choice)tap) total += (Real)x[window];",
        "y[i] = (T)total;",
    ),
    "pick_from_windows": (
        "const T* x, const Choice* index, T* y", "window",
        "T value = (T)(Real)0;",
        "if (index[i] == (Choice)tap) value = x[element];",
        "y[i] = value;",
    ),
}  # fmt: skip


class _Pooling(Twin):
    """Launches kernels over the windows of its function."""

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self._lengths = functools.cache(self._lengths_of)

    def _run(
        self, name: str, x_shape: tuple[int, ...], arrays: Sequence[Any], choice: Any = np.int32,
        average: int = 0,
    ) -> Any:  # fmt: skip
        """Run a kernel on `arrays`, of which the last is the result that has a thread per element.

        Args:
            x_shape: of the array that the windows lie on.
            choice: dtype of the numbers of taps.
            average: how a sum is divided; see the kernel.
        """
        result = arrays[-1] if name != "max_pooling" else arrays[1]
        if result.size == 0:
            return
        index, lengths = self._lengths(x_shape)
        source = _source(
            name, result.dtype.char, len(self.function.kernel), index, np.dtype(choice).char
        )
        kernel(name, source)(
            blocks_for(result.size), THREADS, *arrays, index.type(result.size),
            index.type(average), *lengths,
        )  # fmt: skip

    def _lengths_of(self, x_shape: tuple[int, ...]) -> tuple[np.dtype, tuple[Any, ...]]:
        """The dtype of indices, and inner, then of each axis input, output, kernel, stride, pad."""
        function = self.function
        y_shape = function.result_shape(x_shape)
        numbers = [x_shape[-1] if function.channel_last else 1]
        for axis, *window in zip(
            function.axes(len(x_shape)), function.kernel, function.stride, function.pad,
            strict=True,
        ):  # fmt: skip
            numbers += [x_shape[axis], y_shape[axis], *window]
        index = index_dtype(math.prod(x_shape), math.prod(y_shape))
        return index, tuple(map(index.type, numbers))

    def _average(self) -> int:
        """Of linear functions: 0 without division, else as the kernel takes it."""
        return (1 if self.function.including_pad else 2) if self.function.average else 0


class LinearPooling(_Pooling):
    """Twin of functions.pooling.LinearPooling."""

    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        y = cupy.empty(self.function.result_shape(x.shape), x.dtype) if out is None else out
        x = cupy.ascontiguousarray(x)
        self._run("linear_pooling", x.shape, (x, y), average=self._average())
        return y


class LinearUnpooling(_Pooling):
    """Twin of functions.pooling.LinearUnpooling."""

    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        y = cupy.empty(self.function.x_shape, x.dtype) if out is None else out
        x = cupy.ascontiguousarray(x)
        self._run("linear_unpooling", y.shape, (x, y), average=self._average())
        return y


class MaxPooling(_Pooling):
    """Twin of functions.pooling.MaxPooling."""

    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        if out is None:
            shape = self.function.result_shape(x.shape)
            out = cupy.empty(shape, x.dtype), cupy.empty(shape, np.int32)
        self._run("max_pooling", x.shape, (cupy.ascontiguousarray(x), *out))
        return out


class MaxUnpooling(_Pooling):
    """Twin of functions.pooling.MaxUnpooling."""

    def forward(self, xp: Any, x: Any, index: Any, *, out: Any = None) -> Any:
        y = cupy.empty(self.function.x_shape, x.dtype) if out is None else out
        arrays = cupy.ascontiguousarray(x), cupy.ascontiguousarray(index), y
        self._run("max_unpooling", y.shape, arrays, index.dtype)
        return y


class PickFromWindows(_Pooling):
    """Twin of functions.pooling.PickFromWindows."""

    def forward(self, xp: Any, x: Any, index: Any, *, out: Any = None) -> Any:
        y = cupy.empty(index.shape, x.dtype) if out is None else out
        arrays = cupy.ascontiguousarray(x), cupy.ascontiguousarray(index), y
        self._run("pick_from_windows", x.shape, arrays, index.dtype)
        return y


@functools.cache
def _source(name: str, char: str, axes: int, index: np.dtype, choice: str) -> str:
    """The kernel `name` for arrays of dtype `char` and windows over a number of axes."""
    arrays, thread, *texts = _TEXTS[name]
    places, loop, tap = (_of_a_window if thread == "window" else _of_an_element)(axes)
    counts = (
        f"elements(window{a} * stride{a} - pad{a}, input{a}, kernel{a}, pad{a}, average)"
        for a in range(axes)
    )
    count = f"({' * '.join(counts)})"
    before, body, after = (text.replace("COUNT", count) for text in texts)
    lengths = "".join(
        f", Index input{a}, Index output{a}, Index kernel{a}, Index stride{a}, Index pad{a}"
        for a in range(axes)
    )
    return _KERNEL.format(
        types=scalar_types(char), index=TYPES[index.char], choice=TYPES[choice], name=name,
        arrays=arrays, lengths=lengths, places=places, loop=loop, tap=tap, before=before,
        body=body, after=after,
    )  # fmt: skip


def _of_a_window(axes: int) -> tuple[str, str, str]:
    """Statements that find a thread's window, a loop over its elements, and which one it is at."""
    places = _split("window", "output", axes)
    loop = ""
    for a in range(axes):
        places += f" Index start{a} = window{a} * stride{a} - pad{a};"
        loop += (
            f"for (Index k{a} = start{a} < 0 ? -start{a} : 0;"
            f" k{a} < kernel{a} && start{a} + k{a} < input{a}; ++k{a}) "
        )
    element = _joined("outer", "input", [f"(start{a} + k{a})" for a in range(axes)])
    return places, loop, f"Index tap = {_tap(axes)}, element = ({element}) * inner + last;"


def _of_an_element(axes: int) -> tuple[str, str, str]:
    """Statements that find a thread's element, a loop over its windows, and which one it is at."""
    places = _split("place", "input", axes)
    loop = ""
    for a in range(axes):
        places += f" Index end{a} = place{a} + pad{a};"
        # Tap k of window w is at the element if w * stride + k = end.
        loop += (
            f"for (Index k{a} = end{a} % stride{a}; k{a} < kernel{a} && k{a} <= end{a};"
            f" k{a} += stride{a}) if (Index window{a} = (end{a} - k{a}) / stride{a};"
            f" window{a} < output{a}) "
        )
    window = _joined("outer", "output", [f"window{a}" for a in range(axes)])
    return places, loop, f"Index tap = {_tap(axes)}, window = ({window}) * inner + last;"


def _split(name: str, length: str, axes: int) -> str:
    """Statements that take the place along each axis off `outer`."""
    return " ".join(
        f"Index {name}{a} = outer % {length}{a}; outer /= {length}{a};"
        for a in reversed(range(axes))
    )


def _joined(first: str, length: str, places: Sequence[str]) -> str:
    """The number of an element from its places along axes."""
    number = first
    for a, place in enumerate(places):
        number = f"({number}) * {length}{a} + {place}"
    return number


def _tap(axes: int) -> str:
    return _joined("0", "kernel", [f"k{a}" for a in range(axes)])


def sources() -> Iterator[tuple[str, str]]:
    """(name, CUDA source) of kernels for every dtype, and for windows over one to three axes."""
    small, large = np.dtype(np.int32), np.dtype(np.int64)
    for name in _TEXTS:
        for char in FLOATS:
            for axes in (1, 2, 3):
                yield name, _source(name, char, axes, small, small.char)
            yield name, _source(name, char, 2, large, large.char)
