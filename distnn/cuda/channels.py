"""Maps with numbers of their own for each channel, over arrays of (A, C, B) blocks.

The array is taken as A rows of C B columns: a thread keeps the numbers of its columns' channels and
goes down some rows. That suits images, channels last and vectors alike.

A map is written as C++: a struct with the types Constant and Items, `lanes` (elements of Items),
`arrays` (from how many they come), constant(channel), load(i), and store(i, items, constants).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .kernels import THREADS, blocks_for
from .numbers import power_of_two

MAP = """
template <class Map>
__device__ void map_columns(const Map& map, long long rows, long long columns, long long inner,
                            long long rows_of_block, int width) {
  const int lanes = Map::lanes, batch = (3 + Map::arrays) / Map::arrays;  // 4 loads or more
  const int x = threadIdx.x % width, y = threadIdx.x / width, height = blockDim.x / width;
  const long long packs = columns / lanes, tiles = (packs + width - 1) / width;
  const long long splits = (rows + rows_of_block - 1) / rows_of_block;
  for (long long block = blockIdx.x; block < tiles * splits; block += gridDim.x) {
    const long long split = block / tiles, pack = (block - split * tiles) * width + x;
    if (pack >= packs) continue;
    const long long column = pack * lanes, end = (split + 1) * rows_of_block;
    const long long stop = end < rows ? end : rows;
    typename Map::Constant constants[lanes];
    constants[0] = map.constant(inner == 1 ? column : column / inner);
    for (int l = 1; l < lanes; ++l) {
      if (inner % lanes == 0)
        constants[l] = constants[0];
      else
        constants[l] = map.constant(inner == 1 ? column + l : (column + l) / inner);
    }
    for (long long row = split * rows_of_block + y; row < stop; row += batch * height) {
      typename Map::Items items[batch];
      #pragma unroll
      for (int j = 0; j < batch; ++j)
        if (row + j * height < stop) items[j] = map.load((row + j * height) * columns + column);
      #pragma unroll
      for (int j = 0; j < batch; ++j)
        if (row + j * height < stop)
          map.store((row + j * height) * columns + column, items[j], constants);
    }
  }
}
"""
PARAMETERS = (
    "long long rows, long long columns, long long inner, long long rows_of_block, int width"
)
ARGUMENTS = "rows, columns, inner, rows_of_block, width"

# Rows that a thread goes down, at most.
_ROWS = 8


@functools.lru_cache(maxsize=4096)
def plan(blocks: tuple[int, int, int], lanes: int) -> tuple[int, tuple[Any, ...]]:
    """Blocks of THREADS threads, and the arguments, of a map over arrays of (A, C, B) `blocks`."""
    a, c, b = blocks
    packs = c * b // lanes
    width = min(THREADS, power_of_two(packs))
    of_block = THREADS // width * _ROWS
    count = -(-packs // width) * -(-a // of_block)
    sizes = (np.int64(a), np.int64(c * b), np.int64(b), np.int64(of_block), np.int32(width))
    return blocks_for(count, 1), sizes
