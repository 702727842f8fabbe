"""Maps of rows: what one row's elements make together, and then each element's result.

Rows are the middle axis of (A, C, B) arrays. Where B is 1 a team of threads has a row, and keeps it
in registers between the two steps if it is not too long; else threads have columns, several of them
the same one. How elements are shared out depends on the shape only.

A map is written as C++: a struct of N lanes that derives from Map<N, State> and has the type Items,
`reduces`, begin(row), load(i), add(state, items, from, to) for some of the lanes, finish(state,
row, base, apart, chosen), called once with `chosen` for each row, whose elements lie `apart` from
`base` on, and store(i, position, step, items, states, apart), where lane l is at position + l step
of its row, whose state is states[l apart]. With `stores` false a map has results of rows only.
`join(threads, states)` makes one State of those that the threads of a row have.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from .kernels import THREADS, TYPES, Kernel, blocks_for, computing, kernel
from .numbers import lanes_of, numbers, power_of_two

_TEXT = """
typedef {type} T;
typedef {wide} W;
__device__ inline W lowest() {{
  union {{ unsigned bits; float value; }} infinity;
  infinity.bits = 0xff800000u;
  return infinity.value;
}}
struct Greater {{
  __device__ W operator()(W a, W b) const {{ return a > b ? a : b; }}
}};
struct Plus {{
  __device__ W operator()(W a, W b) const {{ return a + b; }}
}};

// How the threads of one row make one number of theirs: neighbours, at most a warp or all.
struct Team {{
  int size;
  W* shared;
  template <class F> __device__ void reduce(W* values, F f) const {{
    W v = values[0];
    for (int apart = (size < 32 ? size : 32) / 2; apart > 0; apart /= 2)
      v = f(v, __shfl_xor_sync(0xffffffffu, v, apart));
    if (size > 32) {{
      if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = v;
      __syncthreads();
      v = shared[0];
      for (int i = 1; i < size / 32; ++i) v = f(v, shared[i]);
      __syncthreads();
    }}
    values[0] = v;
  }}
}};
// Threads `width` apart have the same N columns.
template <int N> struct Stack {{
  int width;
  W* shared;
  template <class F> __device__ void reduce(W* values, F f) const {{
    const int y = threadIdx.x / width;
    for (int l = 0; l < N; ++l) shared[threadIdx.x * N + l] = values[l];
    __syncthreads();
    for (int half = blockDim.x / width / 2; half > 0; half /= 2) {{
      if (y < half)
        for (int l = 0; l < N; ++l) {{
          W& mine = shared[threadIdx.x * N + l];
          mine = f(mine, shared[(threadIdx.x + half * width) * N + l]);
        }}
      __syncthreads();
    }}
    for (int l = 0; l < N; ++l) values[l] = shared[threadIdx.x % width * N + l];
    __syncthreads();
  }}
}};
// Rows of `length` neighbours. A thread keeps K packs; with K = 0 it loads them a second time.
template <class Map, int K>
__device__ void map_rows(const Map& map, long long rows, long long length, int size) {{
  const int lanes = Map::lanes, kept = K ? K : 1, batch = 4;
  __shared__ W shared[{warps}];
  const Team team{{size, shared}};
  const int member = threadIdx.x % size, teams = blockDim.x / size;
  const long long first = (long long)member * lanes, stride = (long long)size * lanes;
  const long long tiles = (rows + teams - 1) / teams;
  for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {{
    const long long row = tile * teams + threadIdx.x / size, base = row * length;
    const long long end = row < rows ? length : 0;
    typename Map::State states[1] = {{row < rows ? map.begin(row) : Map::State::empty()}};
    typename Map::Items items[kept];
    #pragma unroll
    for (int k = 0; k < K; ++k)
      if (first + k * stride < end) items[k] = map.load(base + first + k * stride);
    if (Map::reduces) {{
      #pragma unroll
      for (int k = 0; k < K; ++k)
        if (first + k * stride < end) map.add(states[0], items[k], 0, lanes);
      for (long long i = first; K == 0 && i < end; i += batch * stride) {{
        typename Map::Items more[batch];
        #pragma unroll
        for (int j = 0; j < batch; ++j)
          if (i + j * stride < end) more[j] = map.load(base + i + j * stride);
        #pragma unroll
        for (int j = 0; j < batch; ++j)
          if (i + j * stride < end) map.add(states[0], more[j], 0, lanes);
      }}
      join(team, states);
      map.finish(states[0], row, base, 1, member == 0 && row < rows);
    }}
    if (!Map::stores) continue;
    #pragma unroll
    for (int k = 0; k < K; ++k)
      if (first + k * stride < end)
        map.store(base + first + k * stride, first + k * stride, 1, items[k], states, 0);
    for (long long i = first; K == 0 && i < end; i += batch * stride) {{
      typename Map::Items more[batch];
      #pragma unroll
      for (int j = 0; j < batch; ++j)
        if (i + j * stride < end) more[j] = map.load(base + i + j * stride);
      #pragma unroll
      for (int j = 0; j < batch; ++j)
        if (i + j * stride < end)
          map.store(base + i + j * stride, i + j * stride, 1, more[j], states, 0);
    }}
  }}
}}

// Columns of (A, C, B) arrays: a thread has a pack of them, and every so manieth class.
template <class Map>
__device__ void map_columns(const Map& map, long long a, long long c, long long b, int width) {{
  const int lanes = Map::lanes, batch = 4;
  __shared__ W shared[{threads} * lanes];
  const Stack<lanes> stack{{width, shared}};
  const int height = blockDim.x / width, y = threadIdx.x / width;
  const long long packs = b / lanes, outputs = a * packs, tiles = (outputs + width - 1) / width;
  for (long long tile = blockIdx.x; tile < tiles; tile += gridDim.x) {{
    const long long output = tile * width + threadIdx.x % width, outer = output / packs;
    const bool active = output < outputs;
    const long long column = (output - outer * packs) * lanes, base = outer * c * b + column;
    const long long end = active ? c : 0;
    typename Map::State states[lanes];
    for (int l = 0; l < lanes; ++l)
      states[l] = active ? map.begin(outer * b + column + l) : Map::State::empty();
    if (Map::reduces) {{
      for (long long i = y; i < end; i += batch * height) {{
        typename Map::Items items[batch];
        #pragma unroll
        for (int j = 0; j < batch; ++j)
          if (i + j * height < end) items[j] = map.load(base + (i + j * height) * b);
        #pragma unroll
        for (int j = 0; j < batch; ++j)
          if (i + j * height < end)
            for (int l = 0; l < lanes; ++l) map.add(states[l], items[j], l, l + 1);
      }}
      join(stack, states);
      for (int l = 0; l < lanes; ++l)
        map.finish(states[l], outer * b + column + l, base + l, b, active && y == 0);
    }}
    if (!Map::stores) continue;
    for (long long i = y; i < end; i += batch * height) {{
      typename Map::Items items[batch];
      #pragma unroll
      for (int j = 0; j < batch; ++j)
        if (i + j * height < end) items[j] = map.load(base + (i + j * height) * b);
      #pragma unroll
      for (int j = 0; j < batch; ++j)
        if (i + j * height < end)
          map.store(base + (i + j * height) * b, i + j * height, 0, items[j], states, 1);
    }}
  }}
}}

// What the kernels below have in common, for N elements at once.
template <int N, class Of> struct Map {{
  typedef Of State;
  static const int lanes = N;
  static const bool stores = true;
  bool whole;
  __device__ Pack<T, N> get(const T* x, long long i) const {{ return read<T, N>(x + i, whole); }}
  __device__ void put(T* y, long long i, const Pack<T, N>& pack) const {{
    write<T, N>(y + i, pack, whole);
  }}
}};
"""
_ROWS = """
extern "C" __global__ void {name}({parameters}, long long rows, long long length, int size) {{
  {struct}<{lanes}> map;
  {fill}
  map_rows<{struct}<{lanes}>, {kept}>(map, rows, length, size);
}}
"""
_COLUMNS = """
extern "C" __global__ void {name}({parameters}, long long a, long long c, long long b, int width) {{
  {struct}<{lanes}> map;
  {fill}
  map_columns(map, a, c, b, width);
}}
"""


@dataclass(frozen=True)
class RowMap:
    """A map of rows: its struct, the C++ of it, and the arrays and numbers that it is given.

    fields: parameters by name, in order; those of T arrays that packs are read from or written to
        are listed in `packed`.
    """

    name: str
    struct: str
    text: str
    fields: tuple[tuple[str, str], ...]
    packed: tuple[str, ...]

    def source(self, dtype: str, lanes: int, kept: int | None) -> tuple[str, str]:
        """Name and source of a kernel: over rows, with packs to keep, or (None) over columns."""
        kind = "columns" if kept is None else f"rows_{kept}"
        name = f"{self.name}_{dtype}_{lanes}_{kind}"
        whole = " && ".join(f"aligned<{lanes}>({field})" for field in self.packed)
        fill = [f"map.{field} = {field};" for field, _ in self.fields]
        body = (_COLUMNS if kept is None else _ROWS).format(
            name=name,
            struct=self.struct,
            lanes=lanes,
            kept=kept,
            parameters=", ".join(f"{kind}{field}" for field, kind in self.fields),
            fill="\n  ".join([*fill, f"map.whole = {whole};"]),
        )
        text = _TEXT.format(
            type=TYPES[dtype], wide=TYPES[computing(dtype)], warps=THREADS // 32, threads=THREADS
        )
        return name, numbers(dtype) + text + self.text + body

    def run(self, dtype: str, blocks: tuple[int, int, int], *arguments: Any) -> None:
        """Launch over (A, C, B) `blocks`, which are not empty."""
        lanes, kept, count, sizes = _plan(blocks, dtype)
        _kernel(self, dtype, lanes, kept)(count, THREADS, *arguments, *sizes)


@functools.cache
def _kernel(row_map: RowMap, dtype: str, lanes: int, kept: int | None) -> Kernel:
    return kernel(*row_map.source(dtype, lanes, kept))


# Packs that a thread keeps, at most.
_KEPT = 8


@functools.lru_cache(maxsize=4096)
def _plan(blocks: tuple[int, int, int], dtype: str) -> tuple[int, int | None, int, tuple[Any, ...]]:
    """Lanes, packs to keep (None: columns), blocks of threads, and the sizes."""
    a, c, b = blocks
    if b == 1:
        lanes = lanes_of(c, dtype)
        packs = c // lanes
        size = min(32, power_of_two(packs)) if packs <= 32 * _KEPT else THREADS
        kept = power_of_two(-(-packs // size))
        count = blocks_for(a, THREADS // size)
        return (
            lanes,
            kept if kept <= _KEPT else 0,
            count,
            (np.int64(a), np.int64(c), np.int32(size)),
        )
    lanes = lanes_of(b, dtype)
    outputs = a * b // lanes
    width = min(max(32, THREADS // power_of_two(c)), power_of_two(outputs))
    sizes = (np.int64(a), np.int64(c), np.int64(b), np.int32(width))
    return lanes, None, blocks_for(outputs, width), sizes
