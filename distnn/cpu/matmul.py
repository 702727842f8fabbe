"""Products of float32 matrices that lie in rows, by the tiles of gemm.py.

BLAS packs the whole of one factor for each part of a product that a thread computes; here it is
packed once. The other factor and the result are in blocks of 16 columns only where they are worked
on, in a core's second cache, so that a bias costs no pass over memory of its own.
"""

from __future__ import annotations

import numpy as np

from ..memory import pool
from ..threads import parallel_for
from . import gemm
from .compiler import kernel
from .simd import LANES, load, load_transposed, store
from .twin import LARGE_PRODUCT

# Rows of a part at the most; blocks of columns of the result, and of addends, that are worked on at
# a time.
_ROWS = 96
_COLUMNS = 64
_ADDENDS = 32
# A wider factor is read and written once by packing, and then read too seldom.
_WIDEST = 16
# Blocks of columns that one part packs.
_PACK = 8


def suits(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> bool:
    """Whether `multiply` takes these, by their shapes, orders and dtypes."""
    rows, depth = a.shape
    columns = b.shape[1]
    return (
        a.dtype.char == b.dtype.char == "f"
        and depth % LANES == columns % LANES == 0
        and rows >= 2 * LANES
        and columns <= _WIDEST * rows
        and rows * depth * columns >= LARGE_PRODUCT
        and (_lies_in_rows(a) or (rows % LANES == 0 and _lies_in_rows(a.T)))
        and (_lies_in_rows(b) or _lies_in_rows(b.T))
        and (out is None or (out.dtype.char == "f" and _lies_in_rows(out)))
    )


def multiply(
    a: np.ndarray, b: np.ndarray, out: np.ndarray, bias: np.ndarray | None = None
) -> np.ndarray:
    """out = a b + bias; a and b may be transposed, out lies in rows."""
    rows, depth = a.shape
    columns = b.shape[1]
    blocks = packed(b)
    shift = np.zeros(columns, np.float32) if bias is None else np.ascontiguousarray(bias)
    transposed = not _lies_in_rows(a)
    a = a.T if transposed else a
    sizes = (_distance(a), depth // LANES, columns // LANES, _distance(out))
    parallel_for(
        lambda i, j: _multiply(a, blocks, shift, out, transposed, *sizes, i, j), rows, _part(rows)
    )
    return out


def packed(matrix: np.ndarray) -> np.ndarray:
    """A matrix (K, N), perhaps transposed, as (N / 16, K, 16)."""
    rows, columns = matrix.shape
    into = pool.empty((columns // LANES, rows, LANES), np.dtype(np.float32))
    pack, source = (_pack, matrix) if _lies_in_rows(matrix) else (_pack_transposed, matrix.T)
    distance = _distance(source)
    parallel_for(lambda i, j: pack(source, distance, rows, i, j, into), columns // LANES, _PACK)
    return into


def _part(rows: int) -> int:
    """Rows of a part: some more parts than cores, and equal ones where they are few."""
    parts = max(4, -(-rows // _ROWS))
    return -(-rows // (parts * LANES)) * LANES


def _lies_in_rows(matrix: np.ndarray) -> bool:
    return matrix.strides[1] == matrix.itemsize


def _distance(matrix: np.ndarray) -> int:
    """From row to row, in elements."""
    return matrix.strides[0] // matrix.itemsize


@kernel
def _pack(matrix, distance, rows, first, last, packed):
    """Blocks `first` to `last` of columns."""
    for row in range(rows):
        for block in range(first, last):
            vector = load(matrix, row * distance + block * LANES)
            store(packed, (block * rows + row) * LANES, vector)


@kernel
def _pack_transposed(matrix, distance, rows, first, last, packed):
    """Blocks of columns of the transposed matrix, which has as many `rows` as it has columns."""
    for block in range(first, last):
        for row in range(0, rows, LANES):
            start = block * LANES * distance + row
            vectors = load_transposed(matrix, start, distance, LANES, LANES)
            for k in range(LANES):
                store(packed, (block * rows + row + k) * LANES, vectors[k])


@kernel
def _multiply(a, b, bias, out, transposed, a_distance, depth, columns, out_distance, start, stop):
    """Rows `start` to `stop` of the result."""
    count = stop - start
    rows = -(-count // gemm.ROWS) * gemm.ROWS
    block, panel = rows * LANES, depth * LANES * LANES
    x = np.zeros(min(depth, _ADDENDS) * block, np.float32)
    z = np.empty(min(columns, _COLUMNS) * block, np.float32)
    for first in range(0, columns, _COLUMNS):
        width = min(_COLUMNS, columns - first)
        for addend in range(0, depth, _ADDENDS):
            addends = min(_ADDENDS, depth - addend)
            if first == 0 or depth > _ADDENDS:  # else it is there
                if transposed:
                    place = addend * LANES * a_distance + start
                    _cut_transposed(a, place, a_distance, count, addends, x, block)
                else:
                    place = start * a_distance + addend * LANES
                    _cut(a, place, a_distance, count, addends, x, block)
            y = first * panel + addend * LANES * LANES
            add = 1 if addend else 0
            gemm.multiply_piece(x, 0, block, b, y, panel, z, 0, block, rows, width, addends, add)
        for row in range(count):
            place = (start + row) * out_distance
            for k in range(width):
                column = (first + k) * LANES
                value = load(z, k * block + row * LANES) + load(bias, column)
                store(out, place + column, value)


@kernel
def _cut(a, place, distance, rows, blocks, x, block):
    """Rows of a, from a place on, as blocks of 16 columns."""
    for row in range(rows):
        for k in range(blocks):
            store(x, k * block + row * LANES, load(a, place + row * distance + k * LANES))


@kernel
def _cut_transposed(a, place, distance, rows, blocks, x, block):
    """The same of the transposed of a; the number of rows is a multiple of 16."""
    for k in range(blocks):
        for row in range(0, rows, LANES):
            corner = place + k * LANES * distance + row
            vectors = load_transposed(a, corner, distance, LANES, LANES)
            for i in range(LANES):
                store(x, k * block + (row + i) * LANES, vectors[i])
