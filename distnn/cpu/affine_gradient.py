"""Gradients of affine maps of small float32 matrices, all three in one kernel.

NumPy takes as long to begin such products as to compute them. Here the matrices are brought into
blocks of 16 columns, with zeros beside and below them, which gemm.py multiplies in the first cache.
"""

from __future__ import annotations

import numpy as np

from . import gemm
from .compiler import kernel
from .simd import LANES, load, load_part, load_transposed, store

# Multiplications of a product: below, what NumPy takes to begin does not matter, and above BLAS is
# as fast.
SMALLEST, LARGEST = 2**12, 2**20
# Rows that a sum runs over before it is added to others: bounds its rounding error.
_ROWS = 64

NO_MATRIX, NO_VECTOR = np.empty((0, 0), np.float32), np.empty(0, np.float32)


@kernel
def gradients(dy, x, w, dx, dw, db):
    """dx = dy w^T, dw = x^T dy, db = sum of the rows of dy; those that are empty are not wanted."""
    height = _up(len(dy), gemm.ROWS)
    outer = _blocks(dy, height)
    if dx.size:
        turned = _blocks_transposed(w, _up(w.shape[1], LANES))
        product = _multiply(outer, height, dy.shape[1], turned, dx)
        for row in range(len(dx)):
            _store(product, height, row, dx)
    if dw.size:
        rows, (down, across) = len(x), dw.shape
        down, across = _up(down, LANES) // LANES, _up(across, LANES) // LANES
        product = np.empty(down * across * LANES * LANES, np.float32)
        gemm.multiply_transposed(
            _blocks(x, rows), rows * LANES, 0, outer, height * LANES, 0, rows,
            product, down, across, 0, 0, gemm.block_parts(down),
        )  # fmt: skip
        for row in range(len(dw)):
            _store(product, down * LANES, row, dw)
    if db.size:
        db[:] = 0
        part = np.empty_like(db)
        for first in range(0, len(dy), _ROWS):
            part[:] = 0
            for row in range(first, min(first + _ROWS, len(dy))):
                for k in range(dy.shape[1]):
                    part[k] += dy[row, k]
            for k in range(dy.shape[1]):
                db[k] += part[k]


@kernel
def _up(length, step):
    return -(-length // step) * step


@kernel
def _blocks(matrix, height):
    """A matrix as (columns / 16, height, 16)."""
    rows, columns = matrix.shape
    into = np.empty(_up(columns, LANES) * height, np.float32)
    for first in range(0, columns, LANES):
        for row in range(rows):
            vector = load_part(matrix, row * columns + first, min(LANES, columns - first))
            store(into, first * height + row * LANES, vector)
        into[first * height + rows * LANES : (first + LANES) * height] = 0
    return into


@kernel
def _blocks_transposed(matrix, height):
    """The transposed matrix as (rows / 16, height, 16); the height is whole blocks."""
    rows, columns = matrix.shape
    into = np.empty(_up(rows, LANES) * height, np.float32)
    for first in range(0, rows, LANES):
        for k in range(0, columns, LANES):
            start, count = first * columns + k, min(LANES, rows - first)
            vectors = load_transposed(matrix, start, columns, count, min(LANES, columns - k))
            for i in range(LANES):
                store(into, first * height + (k + i) * LANES, vectors[i])
    return into


@kernel
def _multiply(a, height, depth, b, out):
    """The product of matrices in blocks, as (columns / 16, height, 16)."""
    depth, columns = _up(depth, LANES), _up(out.shape[1], LANES)
    product = np.empty(columns * height, np.float32)
    block = height * LANES
    gemm.multiply_piece(
        a, 0, block, b, 0, depth * LANES, product, 0, block,
        height, columns // LANES, depth // LANES, 0,
    )  # fmt: skip
    return product


@kernel
def _store(blocks, height, row, out):
    """A row of `out` from its blocks."""
    columns = out.shape[1]
    for first in range(0, columns, LANES):
        place = first * height + row * LANES
        if first + LANES <= columns:
            store(out, row * columns + first, load(blocks, place))
        else:
            for k in range(columns - first):
                out[row, first + k] = blocks[place + k]
