"""Sums, and largest and smallest elements, over axes."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import cupy
import numpy as np

from ..twin import Twin
from .kernels import FLOATS, TYPES, computing
from .tree import End, Reduction

Axes = int | Sequence[int] | None

_SUM = """
struct Total {{
  {wide} value;
  static __device__ Total empty() {{ return Total{{0}}; }}
}};
__device__ inline Total combine(const Total& a, const Total& b) {{
  return Total{{a.value + b.value}};
}}
template <int N> struct Terms {{
  typedef Total State;
  typedef Total Local;
  typedef int Constant;
  typedef Pack<{type}, N> Items;
  static const int lanes = N, arrays = 1;
  const {type}* x;
  bool whole;
  __device__ int constant(long long) const {{ return 0; }}
  __device__ Total begin() const {{ return Total::empty(); }}
  __device__ Items load(long long i) const {{ return read<{type}, N>(x + i, whole); }}
  __device__ void add(Total& local, int, const Items& items, int l, long long) const {{
    local.value += Number<{type}>::up(items.element[l]);
  }}
  __device__ Total finish(const Total& local, int) const {{ return local; }}
}};
struct Sums {{
  {result}* y;
  __device__ void store(long long i, const Total& total) const {{
    y[i] = Number<{result}>::down(total.value);
  }}
}};
"""

# NaN counts as more than all numbers, as in NumPy: a result without it would hide it.
_EXTREME = """
struct Found {{
  {wide} value;
  {filler}
  long long position;
  static __device__ Found of({wide} value, long long position) {{
    Found found{{}};
    found.value = value;
    found.position = position;
    return found;
  }}
  static __device__ Found empty() {{ return of(0, -1); }}
}};
__device__ inline bool better(const Found& a, const Found& b) {{
  if (a.position < 0 || b.position < 0) return b.position < 0;
  const bool a_nan = a.value != a.value, b_nan = b.value != b.value;
  if (a_nan || b_nan) return a_nan && (!b_nan || a.position < b.position);
  return a.value {sign} b.value || (a.value == b.value && a.position < b.position);
}}
__device__ inline Found combine(const Found& a, const Found& b) {{ return better(a, b) ? a : b; }}
template <int N> struct Candidates {{
  typedef Found State;
  typedef Found Local;
  typedef int Constant;
  typedef Pack<{type}, N> Items;
  static const int lanes = N, arrays = 1;
  const {type}* x;
  bool whole;
  __device__ int constant(long long) const {{ return 0; }}
  __device__ Found begin() const {{ return Found::empty(); }}
  __device__ Items load(long long i) const {{ return read<{type}, N>(x + i, whole); }}
  __device__ void add(Found& local, int, const Items& items, int l, long long position) const {{
    local = combine(local, Found::of(Number<{type}>::up(items.element[l]), position));
  }}
  __device__ Found finish(const Found& local, int) const {{ return local; }}
}};
struct Extremes {{
  {type}* y;
  long long* index;
  __device__ void store(long long i, const Found& found) const {{
    y[i] = Number<{type}>::down(found.value);
    index[i] = found.position;
  }}
}};
"""


@functools.cache
def _sum(dtype: str, result: str) -> Reduction:
    """The sum of `dtype` numbers, stored as `result`: dtype itself or what it is computed in."""
    types = {"type": TYPES[dtype], "result": TYPES[result], "wide": TYPES[computing(dtype)]}
    return Reduction(
        name=f"sum_{dtype}_{result}",
        dtype=dtype,
        result=result,
        text=_SUM.format(**types),
        state="Total",
        state_bytes=np.dtype(computing(dtype)).itemsize,
        source=End(
            f"const {TYPES[dtype]}* x",
            "Terms<{lanes}>{x, aligned<{lanes}>(x)}",
        ),
        sink=End(f"{TYPES[result]}* y", "Sums{y}"),
    )


@functools.cache
def _extreme(dtype: str, largest: bool) -> Reduction:
    text = _EXTREME.format(
        type=TYPES[dtype],
        wide=TYPES[computing(dtype)],
        filler="" if dtype == "d" else "float filler;",  # no byte of a state is undefined
        sign="<>"[largest],
    )
    return Reduction(
        name=f"{'max' if largest else 'min'}_{dtype}",
        dtype=dtype,
        result=dtype,
        text=text,
        state="Found",
        state_bytes=16,
        source=End(
            f"const {TYPES[dtype]}* x",
            "Candidates<{lanes}>{x, aligned<{lanes}>(x)}",
        ),
        sink=End(f"{TYPES[dtype]}* y, long long* index", "Extremes{y, index}"),
    )


def array_sum(x: Any, axis: Axes = None, keepdims: bool = False) -> Any:
    """Sum over axes, as namespace.array_sum; half precision adds in float32.

    Two launches where the result has few elements, one where it has many; further ones where
    summed axes are not neighbours. An array that is not C-contiguous is copied first.
    """
    summed = _numbers_of(axis, x.ndim)
    shape = tuple(1 if i in summed else n for i, n in enumerate(x.shape))
    if not keepdims:
        shape = tuple(n for i, n in enumerate(x.shape) if i not in summed)
    if x.dtype.char not in FLOATS:
        return cupy.sum(x, summed, keepdims=keepdims).astype(x.dtype)
    if math.prod(shape) == 0 or x.size == 0:
        return cupy.zeros(shape, x.dtype)
    if not summed:
        return x
    groups = _grouped(x.shape, summed)
    rest = cupy.ascontiguousarray(x)
    while any(reduced for reduced, _ in groups):
        rest, groups = _summed(rest, groups, x.dtype.char)
    return rest.reshape(shape)


def _summed(x: Any, groups: list[tuple[bool, int]], dtype: str) -> tuple[Any, list]:
    """x with the last of its summed axes, or all of them, gone; and the groups that are left."""
    lengths = [n for _, n in groups]
    reduced = [r for r, _ in groups]
    left: list[tuple[bool, int]]
    if reduced in ([True], [False, True], [True, False, True], [True, False]):
        left = [group for group in groups if not group[0]]
    else:
        last = max(i for i, r in enumerate(reduced) if r)
        left = [*groups[:last], *groups[last + 1 :]]
        if last < len(groups) - 1:
            left[last - 1 : last + 1] = [(False, lengths[last - 1] * lengths[last + 1])]
    final = not any(r for r, _ in left)
    result = dtype if final else computing(dtype)
    y = cupy.empty(math.prod(n for _, n in left), FLOATS[result])
    operation = _sum(x.dtype.char, result)
    if reduced == [True]:
        operation.channels((x,), (y,), 1, 1, lengths[0])
    elif reduced == [True, False, True]:
        operation.channels((x,), (y,), *lengths)
    elif reduced[-1]:
        operation.channels((x,), (y,), 1, math.prod(lengths[:-1]), lengths[-1])
    else:
        operation.columns((x,), (y,), math.prod(lengths[:-2]), lengths[-2], lengths[-1])
    return y, left


def _grouped(shape: tuple[int, ...], summed: tuple[int, ...]) -> list[tuple[bool, int]]:
    """Neighbouring axes of one kind as one: (whether they are summed, elements)."""
    groups: list[tuple[bool, int]] = []
    for i, n in enumerate(shape):
        if n == 1:
            continue
        reduced = i in summed
        if groups and groups[-1][0] == reduced:
            groups[-1] = (reduced, groups[-1][1] * n)
        else:
            groups.append((reduced, n))
    return groups


def _numbers_of(axis: Axes, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    return tuple(sorted(a % ndim for a in ([axis] if isinstance(axis, int) else axis)))


class Extreme(Twin):
    """reduction.Extreme: the first of equal elements, and of NaNs; its index along the axes."""

    def forward(self, xp: Any, x: Any) -> Any:
        function = self.function
        axes, shape = function.axes, function.shape(x.shape, function.keepdims)
        y = cupy.empty(shape, x.dtype)
        index = cupy.empty(shape, np.int64)
        if not y.size:
            return y, index
        operation = _extreme(x.dtype.char, function.largest)
        first, last = (axes[0], axes[-1]) if axes else (0, -1)
        if last - first + 1 != len(axes):
            kept = [i for i in range(x.ndim) if i not in axes]
            x = cupy.ascontiguousarray(x.transpose((*kept, *axes)))
            first, last = len(kept), x.ndim - 1
        lead = math.prod(x.shape[:first])
        rows = math.prod(x.shape[first : last + 1])
        columns = math.prod(x.shape[last + 1 :])
        if columns == 1:
            operation.channels((x,), (y, index), 1, lead, rows)
        else:
            operation.columns((x,), (y, index), lead, rows, columns)
        return y, index


def sources() -> Iterator[tuple[str, str]]:
    """Name and source of a kernel of each kind; others have other numbers of lanes."""
    for dtype, result in ("ee", "ef", "fe", "ff", "dd"):
        yield from _sum(dtype, result).sources()
    for dtype in FLOATS:
        for largest in (False, True):
            yield from _extreme(dtype, largest).sources()
