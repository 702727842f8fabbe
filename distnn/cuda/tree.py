"""Reductions in fixed trees: the two kernels that all sums, extremes and statistics run.

`reduce_segments` reduces (A, C, B) arrays over A and B, whose elements lie in segments of length B;
`reduce_columns` reduces (L, R, K) arrays over R. Both do it in parts that depend on the shape only:
a thread adds up some elements, a block combines its threads in a tree, and where one block is not
enough a further launch reduces what the blocks found. So a result has the same bits on each run and
each device.

What is added up is written as C++:
- a State with `empty()`, and `combine(State, State)` for two of them;
- a Source with the types State, Local (of one thread), Constant (of one channel) and Items (what
  one load brings), `lanes` (how many elements that is) and `arrays` (from how many they come);
  constant(channel), begin(), load(i), add(local, constant, items, lane, position), where position
  counts along the axis, and finish(local, constant), which makes a State;
- a Sink with store(i, state).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cupy
import numpy as np

from .kernels import FLOATS, THREADS, Kernel, kernel
from .numbers import lanes_of, numbers, power_of_two

_TEXT = """
template <class T> struct Partial {
  typedef T State;
  typedef T Local;
  typedef T Items;
  typedef int Constant;
  static const int lanes = 1, arrays = 1;
  const T* states;
  __device__ int constant(long long) const { return 0; }
  __device__ T begin() const { return T::empty(); }
  __device__ T load(long long i) const { return states[i]; }
  __device__ void add(T& local, int, const T& item, int, long long) const {
    local = combine(local, item);
  }
  __device__ T finish(const T& local, int) const { return local; }
};
template <class T> struct Partials {
  T* states;
  __device__ void store(long long i, const T& state) const { states[i] = state; }
};

__device__ inline long long least(long long a, long long b) { return a < b ? a : b; }

// A team of threads reduces a channel, `group` of them one segment. A segment is cut in parts;
// a block goes over `units` of them.
template <class Source, class Sink>
__device__ void reduce_segments(const Source& source, const Sink& sink, long long segments,
                                long long channels, long long length, long long part,
                                long long units, int group, int team) {
  typedef typename Source::State State;
  const int lanes = Source::lanes, loads = lanes > 1 ? 4 : 8;
  const int batch = (loads + Source::arrays - 1) / Source::arrays;
  __shared__ State shared[THREADS];
  const int member = threadIdx.x % team, teams = blockDim.x / team, rows = team / group;
  const long long first = (long long)(member % group) * lanes, stride = (long long)group * lanes;
  const long long parts = (length + part - 1) / part, all = segments * parts;
  const long long splits = (all + units - 1) / units, tiles = (channels + teams - 1) / teams;
  for (long long block = blockIdx.x; block < tiles * splits; block += gridDim.x) {
    const long long split = block / tiles;
    const long long channel = (block - split * tiles) * teams + threadIdx.x / team;
    shared[threadIdx.x] = State::empty();
    if (channel < channels) {
      const typename Source::Constant constant = source.constant(channel);
      typename Source::Local local = source.begin();
      const long long stop = least(all, (split + 1) * units);
      long long unit = split * units + member / group, segment = unit / parts, offset = first;
      long long start = (unit - segment * parts) * part, size = least(part, length - start);
      long long base = (segment * channels + channel) * length + start;
      while (unit < stop) {
        typename Source::Items items[batch];
        long long positions[batch];
        bool valid[batch];
        #pragma unroll
        for (int j = 0; j < batch; ++j) {
          valid[j] = unit < stop && offset < size;
          if (valid[j]) {
            items[j] = source.load(base + offset);
            positions[j] = start + offset;
          }
          offset += stride;
          if (offset >= size) {
            // Segments are cut only where all threads share one: then units follow each other.
            offset = first;
            unit += rows;
            start += part;
            if (start >= length) {
              start = 0;
              segment += rows;
            }
            size = least(part, length - start);
            base = (segment * channels + channel) * length + start;
          }
        }
        #pragma unroll
        for (int j = 0; j < batch; ++j)
          if (valid[j])
            for (int l = 0; l < lanes; ++l)
              source.add(local, constant, items[j], l, positions[j] + l);
      }
      shared[threadIdx.x] = source.finish(local, constant);
    }
    __syncthreads();
    for (int half = team / 2; half > 0; half /= 2) {
      if (member < half)
        shared[threadIdx.x] = combine(shared[threadIdx.x], shared[threadIdx.x + half]);
      __syncthreads();
    }
    if (member == 0 && channel < channels)
      sink.store(channel * splits + split, shared[threadIdx.x]);
    __syncthreads();
  }
}

// A thread reduces a pack of columns over every so manieth row; `width` packs lie side by side.
template <class Source, class Sink>
__device__ void reduce_columns(const Source& source, const Sink& sink, long long lead,
                               long long rows, long long columns, long long inner,
                               long long rows_of_block, int width) {
  typedef typename Source::State State;
  const int lanes = Source::lanes, loads = lanes > 1 ? 4 : 8;
  const int batch = (loads + Source::arrays - 1) / Source::arrays;
  __shared__ State shared[THREADS * lanes];
  const int x = threadIdx.x % width, y = threadIdx.x / width, height = blockDim.x / width;
  const long long packs = columns / lanes, outputs = lead * packs;
  const long long tiles = (outputs + width - 1) / width;
  const long long splits = (rows + rows_of_block - 1) / rows_of_block;
  for (long long block = blockIdx.x; block < tiles * splits; block += gridDim.x) {
    const long long split = block / tiles, output = (block - split * tiles) * width + x;
    const long long outer = output / packs, column = (output - outer * packs) * lanes;
    const bool active = output < outputs;
    if (active) {
      typename Source::Local local[lanes];
      typename Source::Constant constant[lanes];
      for (int l = 0; l < lanes; ++l) {
        local[l] = source.begin();
        constant[l] = source.constant(inner == 1 ? column + l : (column + l) / inner);
      }
      const long long stop = least(rows, (split + 1) * rows_of_block);
      const long long base = outer * rows * columns + column;
      for (long long row = split * rows_of_block + y; row < stop; row += batch * height) {
        typename Source::Items items[batch];
        #pragma unroll
        for (int j = 0; j < batch; ++j)
          if (row + j * height < stop) items[j] = source.load(base + (row + j * height) * columns);
        #pragma unroll
        for (int j = 0; j < batch; ++j)
          if (row + j * height < stop)
            for (int l = 0; l < lanes; ++l)
              source.add(local[l], constant[l], items[j], l, row + j * height);
      }
      for (int l = 0; l < lanes; ++l)
        shared[threadIdx.x * lanes + l] = source.finish(local[l], constant[l]);
    }
    __syncthreads();
    for (int half = height / 2; half > 0; half /= 2) {
      if (active && y < half)
        for (int l = 0; l < lanes; ++l) {
          State& mine = shared[threadIdx.x * lanes + l];
          mine = combine(mine, shared[(threadIdx.x + half * width) * lanes + l]);
        }
      __syncthreads();
    }
    if (active && y == 0)
      for (int l = 0; l < lanes; ++l)
        sink.store((outer * splits + split) * columns + column + l, shared[x * lanes + l]);
    __syncthreads();
  }
}
""".replace("THREADS", str(THREADS))

_SEGMENTS = """
extern "C" __global__ void {name}({parameters}, long long a, long long c, long long b,
                                  long long part, long long units, int group, int team) {{
  reduce_segments({source}, {sink}, a, c, b, part, units, group, team);
}}
"""
_COLUMNS = """
extern "C" __global__ void {name}({parameters}, long long l, long long r, long long k, long long b,
                                  long long rows, int width) {{
  reduce_columns({source}, {sink}, l, r, k, b, rows, width);
}}
"""


@dataclass(frozen=True)
class End:
    """A Source or a Sink: the kernel's parameters for it, and the expression that makes it.

    In the expression of a Source `{lanes}` stands for its number of lanes.
    """

    parameters: str
    made: str


@dataclass(frozen=True)
class Reduction:
    """What is reduced, and how.

    name: of its kernels.
    dtype: character of the dtype of the arrays that the Source loads.
    result: character of the dtype of what the Sink stores.
    text: the C++ of State, Source and Sink.
    state: name of the State.
    state_bytes: its size.
    """

    name: str
    dtype: str
    result: str
    text: str
    state: str
    state_bytes: int
    source: End
    sink: End

    def kernel_source(self, template: str, lanes: int, first: bool, last: bool) -> tuple[str, str]:
        """Name and source of a launch: the first loads arrays, the last stores results."""
        state = self.state
        source = (
            self.source if first else End(f"const {state}* found", f"Partial<{state}>{{found}}")
        )
        sink = self.sink if last else End(f"{state}* kept", f"Partials<{state}>{{kept}}")
        kind = "segments" if template is _SEGMENTS else "columns"
        name = f"{self.name}_{kind}_{lanes}_{'first' * first}{'last' * last}"
        body = template.format(
            name=name,
            parameters=f"{source.parameters}, {sink.parameters}",
            source=source.made.replace("{lanes}", str(lanes)),
            sink=sink.made,
        )
        return name, numbers(self.dtype + self.result) + _TEXT + self.text + body

    def sources(self) -> Iterator[tuple[str, str]]:
        """Name and source of a kernel of each kind; others have other numbers of lanes."""
        most = lanes_of(1 << 10, self.dtype)
        yield self.kernel_source(_SEGMENTS, 1, True, True)
        yield self.kernel_source(_SEGMENTS, most, True, False)
        yield self.kernel_source(_SEGMENTS, 1, False, True)
        yield self.kernel_source(_COLUMNS, most, True, True)

    def channels(self, inputs: tuple, outputs: tuple, a: int, c: int, b: int) -> None:
        """Reduce (A, C, B) arrays over A and B; what the Sink stores is numbered along C."""
        first = True
        while True:
            if c == 1:
                a, b = 1, a * b
            if b == 1 and c > 1:
                self._columns(inputs, outputs, 1, a, c, first)
                return
            narrow = b * (FLOATS[self.dtype].itemsize if first else self.state_bytes) < 128
            if narrow and a > _FEW:
                # Segments of a few bytes are read faster as columns, whose channel is shared.
                lanes = lanes_of(c * b, self.dtype) if first else 1
                plan = _columns_plan(1, a, c * b, lanes)
                kept = self._partial(plan.splits * c * b)
                launch = _kernel(self, _COLUMNS, lanes, first, False)
                launch(plan.blocks, THREADS, *inputs, kept, *_longs(1, a, c * b, b), *plan.sizes)
                a = plan.splits
            else:
                lanes = lanes_of(b, self.dtype) if first else 1
                split = _segments_plan(a, c, b, lanes)
                last = split.splits == 1
                kept = None if last else self._partial(c * split.splits)
                targets = outputs if kept is None else (kept,)
                launch = _kernel(self, _SEGMENTS, lanes, first, last)
                launch(split.blocks, THREADS, *inputs, *targets, *_longs(a, c, b), *split.sizes)
                if last:
                    return
                a, b = 1, split.splits
            inputs, first = (kept,), False

    def columns(self, inputs: tuple, outputs: tuple, lead: int, rows: int, columns: int) -> None:
        """Reduce (L, R, K) arrays over R; what the Sink stores is numbered along (L, K)."""
        self._columns(inputs, outputs, lead, rows, columns, True)

    def _columns(
        self, inputs: tuple, outputs: tuple, lead: int, rows: int, columns: int, first: bool
    ) -> None:
        while True:
            lanes = lanes_of(columns, self.dtype) if first else 1
            plan = _columns_plan(lead, rows, columns, lanes)
            last = plan.splits == 1
            kept = None if last else self._partial(lead * plan.splits * columns)
            launch = _kernel(self, _COLUMNS, lanes, first, last)
            sizes = _longs(lead, rows, columns, 1)
            targets = outputs if kept is None else (kept,)
            launch(plan.blocks, THREADS, *inputs, *targets, *sizes, *plan.sizes)
            if last:
                return
            inputs, rows, first = (kept,), plan.splits, False

    def _partial(self, count: int) -> Any:
        return cupy.empty(count * self.state_bytes, np.uint8)


@functools.cache
def _kernel(reduction: Reduction, template: str, lanes: int, first: bool, last: bool) -> Kernel:
    return kernel(*reduction.kernel_source(template, lanes, first, last))


@dataclass(frozen=True)
class _Plan:
    """A launch: its blocks, into how many parts it cuts what is reduced, and further arguments."""

    blocks: int
    splits: int
    sizes: tuple[Any, ...]


# Up to so many rows one thread reduces a column.
_FEW = 32
# Rows that a thread reduces where several threads share a column.
_ROWS = 16


@functools.lru_cache(maxsize=4096)
def _segments_plan(a: int, c: int, b: int, lanes: int) -> _Plan:
    steps = max(8, 32 // lanes)  # loads of a thread, where there is so much to load
    packs = b // lanes
    group = THREADS if packs > THREADS else min(32, power_of_two(packs))
    part = min(b, THREADS * steps * lanes)
    loads = -(-part // (lanes * group))
    count = a * -(-b // part)
    rows = min(THREADS // group, power_of_two(count))
    units = rows * max(1, steps // loads)
    splits = -(-count // units)
    team = group * rows
    tiles = -(-c // (THREADS // team))
    sizes = (np.int64(part), np.int64(units), np.int32(group), np.int32(team))
    return _Plan(_blocks(tiles * splits), splits, sizes)


@functools.lru_cache(maxsize=4096)
def _columns_plan(lead: int, rows: int, columns: int, lanes: int) -> _Plan:
    outputs = lead * (columns // lanes)
    if rows <= _FEW:
        width, of_block = THREADS, rows
    else:
        width = min(32, power_of_two(outputs))
        of_block = THREADS // width * _ROWS
    splits = -(-rows // of_block)
    tiles = -(-outputs // width)
    return _Plan(_blocks(tiles * splits), splits, (np.int64(of_block), np.int32(width)))


def _blocks(count: int) -> int:
    return max(1, min(count, 2**31 - 1))


def _longs(*sizes: int) -> tuple[Any, ...]:
    return tuple(np.int64(n) for n in sizes)
