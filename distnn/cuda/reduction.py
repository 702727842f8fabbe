"""Sums, and largest and smallest elements, over axes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cupy
import numpy as np

from ..formula import Formula
from ..formula_chain import Chain, Joined, Link
from ..twin import Twin
from . import elementwise, reduced_chain
from .kernels import FLOATS, TYPES, computing
from .layout import HELD, ONE, ROWS, SAME, STRIDED
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
struct Means {{
  {result}* y;
  {wide} count;
  __device__ void store(long long i, const Total& total) const {{
    y[i] = Number<{result}>::down(total.value / count);
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
def _sum(dtype: str, result: str, mean: bool = False) -> Reduction:
    """The sum of `dtype` numbers, stored as `result`: dtype itself or what it is computed in.

    A mean is the sum, divided by a number before it is rounded.
    """
    wide = TYPES[computing(dtype)]
    types = {"type": TYPES[dtype], "result": TYPES[result], "wide": wide}
    return Reduction(
        name=f"{'mean' if mean else 'sum'}_{dtype}_{result}",
        dtype=dtype,
        result=result,
        text=_SUM.format(**types),
        state="Total",
        state_bytes=np.dtype(computing(dtype)).itemsize,
        source=End(
            f"const {TYPES[dtype]}* x",
            "Terms<{lanes}>{x, aligned<{lanes}>(x)}",
        ),
        sink=End(f"{TYPES[result]}* y, {wide} count", "Means{y, count}")
        if mean
        else End(f"{TYPES[result]}* y", "Sums{y}"),
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


def array_sum(
    x: Any, axis: Axes = None, keepdims: bool = False, mean: bool = False, out: Any = None
) -> Any:
    """Sum over axes, as namespace.array_sum, or mean; half precision adds in float32.

    Two launches where the result has few elements, one where it has many; further ones where
    summed axes are not neighbours. An array that is not C-contiguous is copied first.
    """
    summed = _numbers_of(axis, x.ndim)
    shape = _reduced(x.shape, summed, keepdims)
    if x.dtype.char not in FLOATS:
        return cupy.sum(x, summed, keepdims=keepdims).astype(x.dtype)
    if math.prod(shape) == 0 or x.size == 0:
        return cupy.zeros(shape, x.dtype)
    groups = _grouped(x.shape, summed)
    if not any(reduced for reduced, _ in groups):
        return x.reshape(shape)
    x = cupy.ascontiguousarray(x)
    return _passes(_sum, (x,), groups, x.dtype.char, mean, out).reshape(shape)


def chain_sum(
    joined: Joined,
    axes: tuple[int, ...],
    keepdims: bool,
    dtype: np.dtype,
    mean: bool,
    out: Any = None,
) -> Any:
    """As array_sum, of a chain's first output; writes the others."""
    found = reduced_chain.layout_of(joined.arrays)
    x_shape = np.broadcast_shapes(*(a.shape for a in joined.arrays))
    groups = _grouped(x_shape, axes)
    if found.size == 0 or not any(reduced for reduced, _ in groups):
        return array_sum(_first_output(joined, x_shape, dtype), axes, keepdims, mean)

    def first(dtype: str, result: str, mean: bool) -> Reduction:
        form = reduced_chain.form_of(found)
        return reduced_chain.chained(_sum(dtype, result, mean), "Terms", joined.chain, form)

    inputs = reduced_chain.inputs(joined, found, dtype.char)
    y = _passes(first, inputs, groups, dtype.char, mean, out)
    return y.reshape(_reduced(x_shape, axes, keepdims))


def _first_output(joined: Joined, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """A chain's first output, and the others written, by a launch of its own."""
    x = cupy.empty(shape, dtype)
    elementwise.evaluate_chain(joined.chain, joined.arrays, joined.numbers, [x, *joined.outs])
    return x


def _passes(
    first: Callable[[str, str, bool], Reduction],
    inputs: tuple[Any, ...],
    groups: list[tuple[bool, int]],
    dtype: str,
    mean: bool,
    out: Any = None,
) -> Any:
    """Sums over the groups that are summed; the first pass reads `inputs`, the last has `out`."""
    count = math.prod(n for reduced, n in groups if reduced)
    x, operation = None, first
    while any(reduced for reduced, _ in groups):
        left = _left(groups)
        final = not any(reduced for reduced, _ in left)
        result = dtype if final else computing(dtype)
        if final and out is not None:
            y = out.reshape(-1)
        else:
            y = cupy.empty(math.prod(n for _, n in left), FLOATS[result])
        number = (np.dtype(computing(dtype)).type(count),) if final and mean else ()
        read = inputs if x is None else (x,)
        found = operation(dtype if x is None else x.dtype.char, result, final and mean)
        _run(found, read, (y, *number), groups)
        x, operation, groups = y, _sum, left
    return x


def _left(groups: list[tuple[bool, int]]) -> list[tuple[bool, int]]:
    """What a pass leaves of the groups: the last of the summed ones is gone, or all are."""
    reduced = [r for r, _ in groups]
    if reduced in ([True], [False, True], [True, False, True], [True, False]):
        return [group for group in groups if not group[0]]
    last = max(i for i, r in enumerate(reduced) if r)
    left = [*groups[:last], *groups[last + 1 :]]
    if last < len(groups) - 1:
        left[last - 1 : last + 1] = [(False, groups[last - 1][1] * groups[last + 1][1])]
    return left


def _run(
    operation: Reduction, inputs: tuple, outputs: tuple, groups: list[tuple[bool, int]]
) -> None:
    """One pass."""
    lengths = [n for _, n in groups]
    reduced = [r for r, _ in groups]
    if reduced == [True]:
        operation.channels(inputs, outputs, 1, 1, lengths[0])
    elif reduced == [True, False, True]:
        operation.channels(inputs, outputs, *lengths)
    elif reduced[-1]:
        operation.channels(inputs, outputs, 1, math.prod(lengths[:-1]), lengths[-1])
    else:
        operation.columns(inputs, outputs, math.prod(lengths[:-2]), lengths[-2], lengths[-1])


def _reduced(shape: tuple[int, ...], axes: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
    if keepdims:
        return tuple(1 if i in axes else n for i, n in enumerate(shape))
    return tuple(n for i, n in enumerate(shape) if i not in axes)


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


class Sum(Twin):
    """reduction.Sum; it takes every chain before it (see fusion.py)."""

    mean = False

    def forward(self, xp: Any, x: Any) -> Any:
        return array_sum(x, self.function.axes, self.function.keepdims, self.mean)

    def joins_input(self, chain: Chain) -> bool:
        return True

    def forward_joined_input(self, xp: Any, x: None, *, joined: Joined) -> Any:
        function, dtype = self.function, joined.arrays[0].dtype
        return chain_sum(joined, function.axes, function.keepdims, dtype, self.mean)


class Mean(Sum):
    """reduction.Mean."""

    mean = True

    def forward(self, xp: Any, x: Any, *, out: Any = None) -> Any:
        function = self.function
        return _into(out, array_sum(x, function.axes, function.keepdims, True, out))

    def forward_joined_input(self, xp: Any, x: None, *, joined: Joined, out: Any = None) -> Any:
        function, dtype = self.function, joined.arrays[0].dtype
        found = chain_sum(joined, function.axes, function.keepdims, dtype, True, out)
        return _into(out, found)


def _into(out: Any, values: Any) -> Any:
    """`out` with these values, if there is one; the last pass has written them there already."""
    if out is None:
        return values
    if values.data.ptr != out.data.ptr:  # nothing was summed
        out[...] = values
    return out


class Extreme(Twin):
    """reduction.Extreme: the first of equal elements, and of NaNs; its index along the axes.

    It takes chains before it where it reduces neighbouring axes.
    """

    def forward(self, xp: Any, x: Any) -> Any:
        axes, lying = self.function.axes, x
        if not self._neighbours:
            lying = x.transpose((*(i for i in range(x.ndim) if i not in axes), *axes))
        operation = _extreme(x.dtype.char, self.function.largest)
        return self._reduce(operation, (cupy.ascontiguousarray(lying),), x.shape, x.dtype)

    @property
    def _neighbours(self) -> bool:
        axes = self.function.axes
        return not axes or axes[-1] - axes[0] + 1 == len(axes)

    def joins_input(self, chain: Chain) -> bool:
        return self._neighbours

    def forward_joined_input(self, xp: Any, x: None, *, joined: Joined) -> Any:
        found = reduced_chain.layout_of(joined.arrays)
        shape = np.broadcast_shapes(*(a.shape for a in joined.arrays))
        dtype = joined.arrays[0].dtype
        operation = reduced_chain.chained(
            _extreme(dtype.char, self.function.largest),
            "Candidates",
            joined.chain,
            reduced_chain.form_of(found),
        )
        inputs = reduced_chain.inputs(joined, found, dtype.char)
        return self._reduce(operation, inputs, shape, dtype)

    def _reduce(
        self, operation: Reduction, inputs: tuple[Any, ...], shape: tuple[int, ...], dtype: np.dtype
    ) -> Any:
        """What is reduced has this shape; axes that are no neighbours have been brought last."""
        function, axes = self.function, self.function.axes
        y = cupy.empty(function.shape(shape, function.keepdims), dtype)
        index = cupy.empty(y.shape, np.int64)
        if not y.size:
            return y, index
        rows = math.prod(shape[i] for i in axes)
        lead = math.prod(shape[: axes[0] if axes else 0]) if self._neighbours else y.size
        columns = y.size // lead
        if columns == 1:
            operation.channels(inputs, (y, index), 1, lead, rows)
        else:
            operation.columns(inputs, (y, index), lead, rows, columns)
        return y, index


def sources() -> Iterator[tuple[str, str]]:
    """Name and source of a kernel of each kind; others have other numbers of lanes."""
    for dtype, result in ("ee", "ef", "fe", "ff", "dd"):
        yield from _sum(dtype, result).sources()
    links = [
        Link("s", Formula("a + b * c", ("a", "b", "c"), ()).tree),
        Link("t", Formula("tanh(s) * k", ("s",), ("k",)).tree),
    ]
    for dtype in FLOATS:
        for largest in (False, True):
            yield from _extreme(dtype, largest).sources()
        yield from _sum(dtype, dtype, mean=True).sources()
        for kinds in ((SAME, ONE, ROWS), (SAME, HELD, STRIDED)):
            chain = Chain(links, ("a", "b", "c"), ("k",), ("t", "s"))
            form = reduced_chain.Form(kinds, 2, "unsigned int")
            for reduction, source in (
                (_sum(dtype, dtype, mean=True), "Terms"),
                (_extreme(dtype, True), "Candidates"),
            ):
                yield from reduced_chain.chained(reduction, source, chain, form).sources()
