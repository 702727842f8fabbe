"""Products of matrices of bfloat16 by tile registers: packed into tiles, multiplied, put in rows.

Tiles of the left matrix (M, K) lie as (M / 32, K / 32, 2, 16 rows, 32), those of the right one
(K, N) as (N / 16, K / 32, 16 pairs of rows, 16 columns, 2): as amx.py reads them. Sums are float32,
and rounded once if the result is bfloat16.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ..memory import pool
from ..threads import parallel_for
from . import amx
from .amx import (
    DEPTH,
    PAIR,
    SIDE,
    TILE,
    add_square,
    clear_square,
    configure,
    release,
    store_square,
)
from .bfloat16 import FLOAT32, bits, store
from .bfloat16_simd import move, store_rounded
from .compiler import kernel
from .simd import LANES
from .simd import load as load_lanes
from .simd import store as store_lanes

_UINT16 = np.dtype(np.uint16)
# Below as many multiplications NumPy's product in float32 takes less time.
_LEAST = 32_768
# Of a part that a thread takes: tiles that are packed, and multiplications.
_PACK_PART = 128
_PRODUCT_PART = 2**24


class Side(NamedTuple):
    """A matrix of a product, as it lies in memory."""

    flat: np.ndarray  # all matrices of the batch, as uint16
    matrix: int  # elements from matrix to matrix; 0 where one serves all
    stride: int  # from row to row, or from column to column
    across: bool  # neighbours in memory are neighbours of the result's axis, not of the sum's


def suits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether tiles should multiply these."""
    return a.size * b.shape[-1] >= _LEAST and amx.available()


def multiply(
    a: np.ndarray, b: np.ndarray, out: np.ndarray, bias: np.ndarray | None = None
) -> np.ndarray:
    """out = a @ b + bias: a (..., M, K), b (..., K, N), bias (N,) of float32.

    a and b are of bfloat16, out is of bfloat16 or float32.
    """
    rows, depth = a.shape[-2:]
    columns = b.shape[-1]
    target = out if out.flags.c_contiguous else np.empty(out.shape, out.dtype)
    batch = target.shape[:-2]
    left = _side(a, batch, 1)
    right = _side(b, batch, 0)
    sizes = rows, depth, columns
    y = bits(target).reshape(-1)
    count = math.prod(batch)
    bias = np.zeros(columns, FLOAT32) if bias is None else bias
    if count == 1:
        _one(left, right, bias, y, sizes)
    else:
        shapes = amx.tile_shapes()
        grain = max(1, _PRODUCT_PART // (rows * depth * columns))

        def work(i: int, j: int) -> None:
            p, q = _memory(sizes)
            multiply_many(shapes, *left, *right, p, q, bias, y, *sizes, i, j)

        parallel_for(work, count, grain)
    if target is not out:
        out[...] = target
    return out


def _one(
    left: Side, right: Side, bias: np.ndarray, y: np.ndarray, sizes: tuple[int, int, int]
) -> None:
    """The product of one pair of matrices, on all threads."""
    rows, depth, columns = sizes
    down, beside = _up(rows, PAIR), _up(columns, PAIR)
    p, q = _memory(sizes)
    shapes = amx.tile_shapes()
    grain = max(1, _PACK_PART // _up(depth, DEPTH))

    def pack_left(i: int, j: int) -> None:
        pack(left.flat, 0, left.stride, left.across, True, rows, depth, p, i, j)

    def pack_right(i: int, j: int) -> None:
        pack(right.flat, 0, right.stride, right.across, False, columns, depth, q, i, j)

    parallel_for(pack_left, down, grain)
    parallel_for(pack_right, beside, grain)
    grain = max(1, _PRODUCT_PART // (PAIR * PAIR * depth))
    parallel_for(
        lambda i, j: multiply_packed(shapes, p, q, bias, y, 0, rows, depth, columns, i, j),
        down * beside,
        grain,
    )


def _memory(sizes: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """For the tiles of both matrices."""
    rows, depth, columns = sizes
    tiles = _up(depth, DEPTH)
    left, right = (2 * _up(n, PAIR) * tiles * TILE for n in (rows, columns))
    return aligned(left), aligned(right)


def aligned(size: int) -> np.ndarray:
    """Memory for tiles, which begin where lines of the cache do."""
    memory = pool.empty((size + DEPTH,), _UINT16)
    start = -memory.__array_interface__["data"][0] % 64 // 2
    return memory[start : start + size]


def _side(matrix: np.ndarray, batch: tuple[int, ...], sum_axis: int) -> Side:
    """How the matrices of a batch lie; copies where they lie otherwise."""
    shape = matrix.shape[-2:]
    lead = matrix.shape[:-2]
    if math.prod(lead) > 1 and lead != batch:
        matrix, lead = np.broadcast_to(matrix, (*batch, *shape)), batch
    by_columns = matrix.swapaxes(-1, -2)
    if not (matrix.flags.c_contiguous or by_columns.flags.c_contiguous):
        matrix = np.ascontiguousarray(matrix)
    rows_lie = matrix.flags.c_contiguous
    flat = bits(matrix if rows_lie else by_columns).reshape(-1)
    flat = flat if flat.flags.writeable else flat.copy()  # one type for the compiler
    return Side(
        flat,
        math.prod(shape) if math.prod(lead) > 1 else 0,
        shape[1] if rows_lie else shape[0],
        rows_lie != (sum_axis == 1),
    )


def _up(length: int, grain: int) -> int:
    """How many of `grain` cover `length`."""
    return -(-length // grain)


@kernel
def pack(x, start, stride, across, left, length, depth, out, first, last):
    """Tiles of x, with zeros beyond its edges: pairs of strips, each 16 of `length`.

    An element is x[start + i * stride + k], if `across` x[start + k * stride + i], for i below
    `length` and k, over which sums run, below `depth`.
    """
    tiles = -(-depth // DEPTH)
    edge = np.zeros(TILE, np.uint16)
    for pair in range(first, last):
        for tile in range(tiles):
            k = tile * DEPTH
            deep = min(DEPTH, depth - k)
            for half in range(2):  # of a line of the cache, if across
                i = pair * PAIR + half * SIDE
                wide = min(SIDE, length - i)
                if left:
                    place = ((pair * tiles + tile) * 2 + half) * TILE
                else:
                    place = ((pair * 2 + half) * tiles + tile) * TILE
                where = start + k * stride + i if across else start + i * stride + k
                if wide == SIDE and deep == DEPTH:
                    _pack_tile(x, where, stride, across, left, out, place)
                else:
                    _cut_edge(x, where, stride, across, wide, deep, edge)
                    _pack_tile(edge, 0, SIDE if across else DEPTH, across, left, out, place)


@kernel
def _pack_tile(x, start, stride, across, left, out, place):
    if across:
        if left:
            move(x, start, stride, out, place, DEPTH, 1, 1)
        else:
            move(x, start, stride, out, place, DEPTH, 1, 0)
    elif left:
        move(x, start, stride, out, place, DEPTH, 0, 0)
    else:
        move(x, start, stride, out, place, DEPTH, 0, 1)


@kernel
def _cut_edge(x, start, stride, across, wide, deep, edge):
    """A tile of which `wide` times `deep` elements are there."""
    edge[:] = 0
    for i in range(wide):
        for k in range(deep):
            if across:
                edge[k * SIDE + i] = x[start + k * stride + i]
            else:
                edge[i * DEPTH + k] = x[start + i * stride + k]


@kernel
def put_rows(sums, bias, first, y, start, stride, rows, columns):
    """y[start + r * stride + c] = sums + bias[first + c] of a pair of tiles by a pair."""
    for half in range(2):
        wide = min(LANES, columns - half * LANES)
        for r in range(rows):
            source, place = half * PAIR * LANES + r * LANES, start + r * stride + half * LANES
            if wide == LANES:
                values = load_lanes(sums, source) + load_lanes(bias, first + half * LANES)
                if y.itemsize == 2:
                    store_rounded(y, place, values)
                else:
                    store_lanes(y, place, values)
            else:
                for c in range(wide):
                    value = sums[source + c] + bias[first + half * LANES + c]
                    if y.itemsize == 2:
                        y[place + c] = store(value)
                    else:
                        y[place + c] = value


@kernel
def multiply_packed(shapes, p, q, bias, y, start, rows, depth, columns, first, last):
    """Pairs of tiles by pairs, `first` to `last` of the result, of packed matrices."""
    tiles = -(-depth // DEPTH)
    beside = -(-columns // PAIR)
    sums = np.empty(PAIR * PAIR, np.float32)
    configure(shapes)
    for part in range(first, last):
        m, n = divmod(part, beside)
        left, right = m * tiles * 2 * TILE, n * tiles * 2 * TILE
        clear_square()
        add_square(p, left, 2 * TILE, TILE, q, right, TILE, tiles * TILE, tiles)
        store_square(sums, 0, PAIR * LANES)
        place = start + m * PAIR * columns + n * PAIR
        below, beyond = min(PAIR, rows - m * PAIR), columns - n * PAIR
        put_rows(sums, bias, n * PAIR, y, place, columns, below, beyond)
    release()


@kernel
def multiply_many(
    shapes, a, a_matrix, a_stride, a_across, b, b_matrix, b_stride, b_across, p, q, bias, y,
    rows, depth, columns, first, last,
):  # fmt: skip
    """Products of a batch, one after the other in the memory p and q."""
    down, beside = -(-rows // PAIR), -(-columns // PAIR)
    for i in range(first, last):
        pack(a, i * a_matrix, a_stride, a_across, True, rows, depth, p, 0, down)
        pack(b, i * b_matrix, b_stride, b_across, False, columns, depth, q, 0, beside)
        place = i * rows * columns
        multiply_packed(shapes, p, q, bias, y, place, rows, depth, columns, 0, down * beside)
