"""Functions with indices on a GPU: rows picked or summed by index, one-hot codes, top-n errors."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np

from ..functions.indexing import check_indices
from ..functions.softmax import check_labels
from ..twin import Twin
from .kernels import FLOATS, THREADS, TYPES, blocks_for, index_dtype, kernel, scalar_types

# Arrays are (A, n, B) and (A, K, B). An index out of range has been noted by then: it is only kept
# from reaching beyond an array.
_HEAD = """{types}
typedef {index} Index;

__device__ Index checked(long long index, Index length) {{
  if (index < 0) index += length;
  return (Index)(index < 0 ? 0 : index >= length ? length - 1 : index);
}}

#define EACH(i, size) \\
  for (Index i = blockIdx.x * (Index)blockDim.x + threadIdx.x; i < size; \\
       i += (Index)gridDim.x * blockDim.x)
"""

_GATHER = """
extern "C" __global__ void gather(const T* x, const long long* index, T* y, Index size,
                                  Index length, Index count, Index after) {
  EACH(i, size) {
    Index row = i / after, before = row / count;
    Index from = checked(index[row % count], length);
    y[i] = x[(before * length + from) * after + i % after];
  }
}
"""

_ROWS = """
extern "C" __global__ void rows(const long long* index, Index* rows, Index count, Index length) {
  EACH(i, count) rows[i] = checked(index[i], length);
}
"""

# Where the rows of each index begin among all rows in order of their index.
_STARTS = """
extern "C" __global__ void starts(const Index* rows, const long long* order, Index* starts,
                                  Index count, Index length) {
  EACH(i, length + 1) {
    Index low = 0, high = count;
    while (low < high) {
      Index middle = low + (high - low) / 2;
      if (rows[order[middle]] < i) low = middle + 1; else high = middle;
    }
    starts[i] = low;
  }
}
"""

# Sums of 64 rows are added to sums, as namespace.array_sum does.
_SCATTER_ADD = """
extern "C" __global__ void scatter_add(const T* x, const long long* order, const Index* starts,
                                       T* y, Index size, Index length, Index count, Index after) {
  EACH(i, size) {
    Index row = i / after, before = row / length, last = i % after;
    Index stop = starts[row % length + 1];
    Real total = 0;
    for (Index block = starts[row % length]; block < stop; block += 64) {
      Real part = 0;
      for (Index j = block; j < stop && j < block + 64; ++j)
        part += (Real)x[(before * count + (Index)order[j]) * after + last];
      total += part;
    }
    y[i] = (T)total;
  }
}
"""

_ONE_HOT = """
extern "C" __global__ void one_hot(const long long* index, T* y, Index size,
                                   Index width{lengths}) {{
  EACH(i, size) {{
    const long long* place = index + i / width * {axes};
    Index flat = 0;
{places}    y[i] = (T)(Real)(flat == i % width);
  }}
}}
"""

# A block for each row.
_TOP_N_ERROR = """
extern "C" __global__ void top_n_error(const T* x, const long long* target, T* y, Index rows,
                                       Index classes, Index after, Index n) {
  for (Index row = blockIdx.x; row < rows; row += gridDim.x) {
    const T* scores = x + row / after * classes * after + row % after;
    long long label = target[row];
    Real score = (Real)scores[checked(label < 0 ? 0 : label, classes) * after];
    Index rank = 0;
    for (Index first = 0; first < classes; first += blockDim.x) {
      Index i = first + threadIdx.x;
      rank += __syncthreads_count(i < classes && (Real)scores[i * after] >= score);
    }
    if (threadIdx.x == 0) y[row] = (T)(Real)(rank > n && label >= 0);
  }
}
"""


class Gather(Twin):
    """Twin of functions.indexing.Gather."""

    def forward(self, xp: Any, x: Any, index: Any, *, out: Any = None) -> Any:
        axis = self.function.axis
        check_indices("gather", xp, index, x.shape[axis])
        if out is None:
            out = cupy.empty((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]), x.dtype)
        _gather(x, index, axis, out)
        return out


class Embed(Twin):
    """Twin of functions.indexing.Embed."""

    def forward(self, xp: Any, x0: Any, w: Any, *, out: Any = None) -> Any:
        check_indices("embed", xp, x0, w.shape[0])
        y = cupy.empty((*x0.shape, *w.shape[1:]), w.dtype) if out is None else out
        _gather(w, x0, 0, y)
        return y


class ScatterAdd(Twin):
    """Twin of functions.indexing.ScatterAdd: rows of one index are added as they come."""

    def forward(self, xp: Any, x: Any, index: Any, *, out: Any = None) -> Any:
        axis, length = self.function.axis, self.function.length
        before, after = x.shape[:axis], x.shape[axis + index.ndim :]
        y = cupy.empty((*before, length, *after), x.dtype) if out is None else out
        if y.size == 0 or index.size == 0:
            y.fill(0)
            return y
        numbers = index_dtype(x.size, y.size, index.size)
        number = numbers.type
        count = number(index.size)
        rows, starts = cupy.empty(index.size, numbers), cupy.empty(length + 1, numbers)
        _kernel("rows", "f", numbers)(
            blocks_for(index.size), THREADS, cupy.ascontiguousarray(index), rows, count,
            number(length),
        )  # fmt: skip
        order = cupy.argsort(rows, kind="stable")
        _kernel("starts", "f", numbers)(
            blocks_for(length + 1), THREADS, rows, order, starts, count, number(length)
        )
        _kernel("scatter_add", x.dtype.char, numbers)(
            blocks_for(y.size), THREADS, cupy.ascontiguousarray(x), order, starts, y,
            number(y.size), number(length), count, number(math.prod(after)),
        )  # fmt: skip
        return y


class OneHot(Twin):
    """Twin of functions.indexing.OneHot."""

    def forward(self, xp: Any, x: Any, *, out: Any) -> Any:
        lengths = self.function.shape
        for axis, length in enumerate(lengths):
            check_indices("one_hot", xp, x[..., axis], length)
        if out.size:
            numbers = index_dtype(x.size, out.size)
            source = _one_hot_source(out.dtype.char, numbers, len(lengths))
            kernel("one_hot", source)(
                blocks_for(out.size), THREADS, cupy.ascontiguousarray(x), out,
                *map(numbers.type, (out.size, math.prod(lengths), *lengths)),
            )  # fmt: skip
        return out


class TopNError(Twin):
    """Twin of functions.indexing.TopNError."""

    def forward(self, xp: Any, x: Any, target: Any) -> Any:
        axis = self.function.axis
        classes = x.shape[axis]
        check_labels("top_n_error", xp, target, classes)
        y = cupy.empty(target.shape, x.dtype)
        if x.size == 0:
            y.fill(0)
            return y
        numbers = index_dtype(x.size)
        _kernel("top_n_error", x.dtype.char, numbers)(
            min(y.size, 2**31 - 1), min(THREADS, -(-classes // 32) * 32),
            cupy.ascontiguousarray(x), cupy.ascontiguousarray(target), y,
            *map(numbers.type, (y.size, classes, math.prod(x.shape[axis + 1 :]), self.function.n)),
        )  # fmt: skip
        return y


def _gather(x: Any, index: Any, axis: int, out: Any) -> None:
    """out[a, k, b] = x[a, index[k], b]"""
    if out.size == 0 or x.size == 0:
        return
    numbers = index_dtype(x.size, out.size)
    lengths = out.size, x.shape[axis], index.size, math.prod(x.shape[axis + 1 :])
    _kernel("gather", x.dtype.char, numbers)(
        blocks_for(out.size), THREADS, cupy.ascontiguousarray(x), cupy.ascontiguousarray(index),
        out, *map(numbers.type, lengths),
    )  # fmt: skip


_TEXTS = {
    "gather": _GATHER,
    "rows": _ROWS,
    "starts": _STARTS,
    "scatter_add": _SCATTER_ADD,
    "top_n_error": _TOP_N_ERROR,
}


def _kernel(name: str, char: str, index: np.dtype) -> Any:
    return kernel(name, _source(name, char, index))


@functools.cache
def _source(name: str, char: str, index: np.dtype) -> str:
    return _head(char, index) + _TEXTS[name]


@functools.cache
def _one_hot_source(char: str, index: np.dtype, axes: int) -> str:
    return _head(char, index) + _ONE_HOT.format(
        lengths="".join(f", Index length{a}" for a in range(axes)),
        axes=axes,
        places="".join(
            f"    flat = flat * length{a} + checked(place[{a}], length{a});\n" for a in range(axes)
        ),
    )


def _head(char: str, index: np.dtype) -> str:
    return _HEAD.format(types=scalar_types(char), index=TYPES[index.char])


def sources() -> Iterator[tuple[str, str]]:
    """(name, CUDA source) of every kernel that can be made here."""
    for index in map(np.dtype, (np.int32, np.int64)):
        for char in FLOATS:
            for name in ("gather", "scatter_add", "top_n_error"):
                yield name, _source(name, char, index)
            for axes in (1, 2, 3):
                yield "one_hot", _one_hot_source(char, index, axes)
        for name in ("rows", "starts"):
            yield name, _source(name, "f", index)
