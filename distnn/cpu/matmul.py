"""Products of float32 matrices that lie in rows.

A part of the result, some rows by some columns, is the work of one thread. What it needs of B, for
some addends at a time, it packs into its core's second cache; of A the rows of a tile, into the
first. Tiles are written to their rows at once, so a bias costs no pass over memory of its own. Each
number of the result is summed up in one order, whatever the parts: those may follow the threads.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from ..memory import pool
from ..threads import get_num_threads, parallel_for
from .compiler import kernel
from .matmul_tile import BLOCKS, ROWS, narrow_tile, tile
from .simd import LANES, broadcast, load, load_part, load_transposed, store
from .twin import LARGE_PRODUCT

# Blocks of addends that are worked on at a time, and of columns of a part at the most.
_ADDENDS = 16
_WIDEST = 32
_LEAST_ROWS = 32
# Multiplications of a small matrix of a batch at least, and of a part of the batch.
_LEAST_OF_BATCH = 2**14
_DEEPEST = 512
_PART = 2**22
_NOTHING = np.empty(0, np.float32)
# Blocks of columns that a part packs where all of a matrix is packed.
_PACKED = 8


def suits(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> bool:
    """Whether `multiply` takes these, by their shapes, orders and dtypes."""
    rows, depth = a.shape
    columns = b.shape[1]
    return (
        a.dtype.char == b.dtype.char == "f"
        and depth % LANES == columns % LANES == 0
        and rows >= _LEAST_ROWS
        and rows * depth * columns >= LARGE_PRODUCT
        and (_lies_in_rows(a) or _lies_in_rows(a.T))
        and (_lies_in_rows(b) or _lies_in_rows(b.T))
        and (out is None or (out.dtype.char == "f" and _lies_in_rows(out)))
    )


def multiply(
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    bias: np.ndarray | None = None,
    sums: np.ndarray | None = None,
) -> np.ndarray:
    """out = a b + bias, and sums = the sum of the rows of b, if there is an array for it.

    a and b may be transposed, out lies in rows.
    """
    rows, depth = a.shape
    blocks = b.shape[1] // LANES
    shift = np.zeros(b.shape[1], np.float32) if bias is None else np.ascontiguousarray(bias)
    kinds = _lies_in_rows(a), _lies_in_rows(b)
    a, b = (m if in_rows else m.T for m, in_rows in zip((a, b), kinds, strict=True))
    distances = _distance(a), _distance(b), _distance(out)
    total = _NOTHING if sums is None else sums
    total.fill(0)
    arrays = _flat(a), _flat(b), shift, _flat(out), total
    height, width = _part(rows, blocks, get_num_threads())
    across = -(-blocks // width)

    def work(part: int, _: int) -> None:
        i, j = divmod(part, across)
        i, j = i * height, j * width
        count, wide = min(height, rows - i), min(width, blocks - j)
        _multiply(*arrays, *kinds, *distances, depth // LANES, i, count, j, wide)

    parallel_for(work, -(-rows // height) * across, 1)
    return out


def suits_batch(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> bool:
    """Whether `multiply_batch` takes these arrays of many matrices, each of which is small."""
    (rows, depth), columns = a.shape[-2:], b.shape[-1]
    work = rows * depth * columns
    return (
        a.dtype.char == b.dtype.char == "f"
        and a.ndim == b.ndim
        and a.shape[:-2] == b.shape[:-2]
        and depth % LANES == columns % LANES == 0
        and rows >= ROWS
        and depth <= _DEEPEST
        and _LEAST_OF_BATCH <= work <= LARGE_PRODUCT
        and all(m.flags.c_contiguous or m.swapaxes(-1, -2).flags.c_contiguous for m in (a, b))
        and (out is None or (out.dtype.char == "f" and out.flags.c_contiguous))
    )


def multiply_batch(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> np.ndarray:
    """out = a b for each pair of matrices, which may be transposed."""
    (rows, depth), columns = a.shape[-2:], b.shape[-1]
    kinds = a.flags.c_contiguous, b.flags.c_contiguous
    flat = [
        (m if in_rows else m.swapaxes(-1, -2)).reshape(-1)
        for m, in_rows in zip((a, b), kinds, strict=True)
    ]
    zeros = np.zeros(columns, np.float32)
    distances = depth if kinds[0] else rows, columns if kinds[1] else depth
    sizes = *distances, depth, rows, columns // LANES
    matrices = math.prod(out.shape[:-2])
    grain = max(1, _PART // (rows * depth * columns))
    parallel_for(
        lambda i, j: _multiply_batch(*flat, zeros, out.reshape(-1), *kinds, *sizes, i, j),
        matrices,
        grain,
    )
    return out


@functools.lru_cache(1024)
def _part(rows: int, blocks: int, threads: int) -> tuple[int, int]:
    """Rows and blocks of columns of a part: what takes least time, with two for each thread."""
    found = []
    for down in range(1, max(1, min(rows // _LEAST_ROWS, 4 * threads)) + 1):
        height = -(-rows // (down * ROWS)) * ROWS
        down = -(-rows // height)
        across = max(-(-blocks // _WIDEST), -(-2 * threads // down))
        width = -(-blocks // across)
        parts = down * -(-blocks // width)
        # Cycles for each addend; packing is bound by the caches, not by arithmetic.
        cycles = height * width / 2 + 0.2 * height + 5 * width
        found.append((-(-parts // threads) * cycles, height, width))
    return min(found)[1:]


def packed(matrix: np.ndarray) -> np.ndarray:
    """A matrix (K, N), perhaps transposed, as (N / 16, K, 16); K and N are multiples of 16."""
    rows, columns = matrix.shape
    into = pool.empty((columns // LANES, rows, LANES), np.dtype(np.float32))
    pack, source = (_pack, matrix) if _lies_in_rows(matrix) else (_pack_transposed, matrix.T)
    distance = _distance(source)
    step = LANES if pack is _pack else LANES * distance
    parallel_for(
        lambda i, j: pack(source, i * step, distance, rows, j - i, into[i:j]),
        columns // LANES,
        _PACKED,
    )
    return into


def _lies_in_rows(matrix: np.ndarray) -> bool:
    return matrix.strides[1] == matrix.itemsize


def _distance(matrix: np.ndarray) -> int:
    """From row to row, in elements."""
    return matrix.strides[0] // matrix.itemsize


def _flat(matrix: np.ndarray) -> np.ndarray:
    """From its first number to its last in one axis: one type for the compiler."""
    if matrix.flags.c_contiguous:
        return matrix.reshape(-1)
    length = (len(matrix) - 1) * _distance(matrix) + matrix.shape[1]
    return np.lib.stride_tricks.as_strided(matrix, (length,), (matrix.itemsize,))


@kernel
def _multiply(
    a, b, bias, out, sums, a_in_rows, b_in_rows, a_distance, b_distance, distance, depth, row, rows,
    column, columns,
):  # fmt: skip
    """Rows of the result from `row` on, and blocks of columns from `column` on."""
    most = min(depth, _ADDENDS) * LANES
    x = np.empty(ROWS * most + LANES, np.float32)
    y = np.empty(columns * most * LANES, np.float32)
    z = np.zeros(ROWS * LANES, np.float32)
    left = column * LANES
    for begin in range(0, depth, _ADDENDS):
        first, addends = begin * LANES, min(_ADDENDS, depth - begin) * LANES
        if b_in_rows:
            _pack(b, first * b_distance + left, b_distance, addends, columns, y)
        else:
            _pack_transposed(b, left * b_distance + first, b_distance, addends, columns, y)
        if sums.size and row == 0:
            _add_rows(y, addends, columns, sums, left)
        for i in range(row, row + rows, ROWS):
            n = min(ROWS, row + rows - i)
            _cut(a, i, first, a_in_rows, a_distance, n, addends, x)
            place = i * distance + left
            if begin:
                _add(
                    x, 0, 1, ROWS, y, addends, columns, n, out, place, distance, out, place,
                    distance, z,
                )  # fmt: skip
            else:
                _add(x, 0, 1, ROWS, y, addends, columns, n, out, place, distance, bias, left, 0, z)


@kernel
def _multiply_batch(
    a, b, zeros, out, a_in_rows, b_in_rows, a_distance, b_distance, depth, rows, columns, begin, end
):
    """Matrices `begin` to `end` of the results."""
    x = np.empty(ROWS * depth + LANES, np.float32)
    y = np.empty(columns * depth * LANES, np.float32)
    z = np.zeros(ROWS * LANES, np.float32)
    width = columns * LANES
    for m in range(begin, end):
        if b_in_rows:
            _pack(b, m * depth * width, b_distance, depth, columns, y)
        else:
            _pack_transposed(b, m * depth * width, b_distance, depth, columns, y)
        matrix = a[m * rows * depth : (m + 1) * rows * depth]
        for i in range(0, rows, ROWS):
            n = min(ROWS, rows - i)
            place = (m * rows + i) * width
            row, column = (a_distance, 1) if a_in_rows else (1, a_distance)
            if n == ROWS:  # where few columns use them, rows are not worth a copy
                _add(
                    matrix, i * row, row, column, y, depth, columns, n, out, place, width, zeros,
                    0, 0, z,
                )  # fmt: skip
            else:
                _cut(matrix, i, 0, a_in_rows, a_distance, n, depth, x)
                _add(x, 0, 1, ROWS, y, depth, columns, n, out, place, width, zeros, 0, 0, z)


@kernel
def _add(
    x, x_start, x_row, x_column, y, addends, columns, rows, out, place, distance, before, start,
    row, z,
):  # fmt: skip
    """At most ROWS rows of out = before + x y.

    `x_start`, `place` and `start` are where they begin; rows of x, out and before, and columns of x
    lie so far apart. y is packed; `z` has room for a tile of fewer rows.
    """
    j = 0
    while j < columns:
        panel, c, d = j * addends * LANES, place + j * LANES, start + j * LANES
        if rows < ROWS:
            for r in range(rows):
                store(z, r * LANES, load(before, d + r * row))
            narrow_tile(x, x_start, x_row, x_column, y, panel, addends, z, 0, LANES, z, 0, LANES)
            for r in range(rows):
                store(out, c + r * distance, load(z, r * LANES))
            j += 1
        elif j + BLOCKS <= columns:
            tile(x, x_start, x_row, x_column, y, panel, addends, out, c, distance, before, d, row)
            j += BLOCKS
        else:
            narrow_tile(
                x, x_start, x_row, x_column, y, panel, addends, out, c, distance, before, d, row
            )
            j += 1


@kernel
def _pack(matrix, place, distance, rows, blocks, packed):
    """Rows of a matrix, from a place on, as (blocks, rows, 16)."""
    for first in range(0, rows, LANES):
        for block in range(blocks):
            for row in range(first, first + LANES):
                vector = load(matrix, place + row * distance + block * LANES)
                store(packed, (block * rows + row) * LANES, vector)


@kernel
def _pack_transposed(matrix, place, distance, rows, blocks, packed):
    """The same of the transposed of a matrix, whose columns are these rows."""
    for block in range(blocks):
        for row in range(0, rows, LANES):
            start = place + block * LANES * distance + row
            vectors = load_transposed(matrix, start, distance, LANES, LANES)
            for k in range(LANES):
                store(packed, (block * rows + row + k) * LANES, vectors[k])


@kernel
def _add_rows(packed, rows, blocks, sums, start):
    """Add the rows of a packed matrix to sums from an element on, as reduction.sum_of_rows does."""
    for block in range(blocks):
        piece = broadcast(np.float32(0))
        for first in range(0, rows, LANES):
            place = (block * rows + first) * LANES
            part = load(packed, place)
            for row in range(1, LANES):
                part = part + load(packed, place + row * LANES)
            piece = piece + part
        place = start + block * LANES
        store(sums, place, load(sums, place) + piece)


@kernel
def _cut(a, row, column, in_rows, distance, rows, columns, x):
    """Some rows of a, which may be transposed, from a row and a column on, as (columns, ROWS)."""
    if in_rows:
        for k in range(0, columns, LANES):
            vectors = load_transposed(a, row * distance + column + k, distance, rows, LANES)
            for i in range(LANES):
                store(x, (k + i) * ROWS, vectors[i])
    else:
        for k in range(columns):
            store(x, k * ROWS, load_part(a, (column + k) * distance + row, rows))
