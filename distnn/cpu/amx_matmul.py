"""Products of matrices of bfloat16 by tile registers: packed into tiles, multiplied, put in rows.

Tiles of the left matrix (M, K) lie as (M / 32, K / 32, 2, 16 rows, 32), those of the right one
(K, N) as (N / 16, K / 32, 16 pairs of rows, 16 columns, 2): as amx.py reads them. Sums are float32,
and rounded once if the result is bfloat16. Of a float32 matrix each number is packed as a sum of
two of bfloat16 (high_precision.py); the second ones lie behind all first ones.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import types

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
from .bfloat16 import FLOAT32, bits, load, overload, store
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
_BESIDE = 8
_PRODUCT_PART = 2**24
# Of packed strips of the left matrix that are multiplied with one of the right before the next:
# they stay in the second cache; and tiles whose products with corrections follow each other.
_BAND = 2**19
_TILES = 4


class Side(NamedTuple):
    """A matrix of a product, as it lies in memory."""

    flat: np.ndarray  # all matrices of the batch, as uint16 or in float32
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

    a and b are both of bfloat16 or both of float32; out is of either.
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
    high = a.dtype == FLOAT32
    if count == 1:
        _one(left, right, bias, y, sizes, high)
    else:
        shapes = amx.tile_shapes()
        grain = max(1, _PRODUCT_PART // (rows * depth * columns))

        def work(i: int, j: int) -> None:
            p, q = _memory(sizes, high)
            multiply_many(shapes, *left, *right, p, q, bias, y, *sizes, high, i, j)

        parallel_for(work, count, grain)
    if target is not out:
        out[...] = target
    return out


def _one(
    left: Side,
    right: Side,
    bias: np.ndarray,
    y: np.ndarray,
    sizes: tuple[int, int, int],
    high: bool,
) -> None:
    """The product of one pair of matrices, on all threads."""
    rows, depth, columns = sizes
    down, beside = _up(rows, PAIR), _up(columns, PAIR)
    p, q = _memory(sizes, high)
    shapes = amx.tile_shapes()

    def pack_left(i: int, j: int) -> None:
        pack(left.flat, 0, left.stride, left.across, True, rows, depth, p, i, j)

    def pack_right(i: int, j: int) -> None:
        pack(right.flat, 0, right.stride, right.across, False, columns, depth, q, i, j)

    parallel_for(pack_left, down, _pack_grain(left, depth))
    parallel_for(pack_right, beside, _pack_grain(right, depth))
    grain = max(1, _PRODUCT_PART // (PAIR * PAIR * depth))
    parallel_for(
        lambda i, j: multiply_packed(shapes, p, q, bias, y, 0, rows, depth, columns, high, i, j),
        down * beside,
        grain,
    )


def _pack_grain(side: Side, depth: int) -> int:
    """Pairs of strips that a thread packs at a time; long pieces of rows if it goes along them."""
    return max(_BESIDE if side.across else 1, _PACK_PART // _up(depth, DEPTH))


def _memory(sizes: tuple[int, int, int], high: bool) -> tuple[np.ndarray, np.ndarray]:
    """For the tiles of both matrices."""
    rows, depth, columns = sizes
    tiles = _up(depth, DEPTH) * (2 if high else 1)
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
    high = np.empty(PAIR * DEPTH, np.uint16)
    low = np.empty(PAIR * DEPTH, np.uint16)
    behind = -(-length // PAIR) * 2 * tiles * TILE
    for part in range((last - first) * tiles):
        # As far as possible in the order in which x lies in memory.
        if across:
            tile, pair = divmod(part, last - first)
        else:
            pair, tile = divmod(part, tiles)
        i, k = (first + pair) * PAIR, tile * DEPTH
        wide, deep = min(PAIR, length - i), min(DEPTH, depth - k)
        where = start + k * stride + i if across else start + i * stride + k
        place, apart = (2 * (first + pair) * tiles + tile) * TILE, tiles * TILE
        if left:
            place, apart = ((first + pair) * tiles + tile) * 2 * TILE, TILE
        _pack_block(
            x, where, stride, across, left, wide, deep, edge, high, low, out, place, apart, behind
        )


def _pack_block(
    x: Any, where: Any, stride: Any, across: Any, left: Any, wide: Any, deep: Any, edge: Any,
    high: Any, low: Any, out: Any, place: Any, apart: Any, behind: Any,
) -> None:  # fmt: skip
    """Both tiles of a pair, `apart` from each other; of float32 twice, one `behind` the other."""


@overload(_pack_block)
def _(x, where, stride, across, left, wide, deep, edge, high, low, out, place, apart, behind):
    return _pack_float32 if x.dtype == types.float32 else _pack_pair


def _pack_float32(
    x, where, stride, across, left, wide, deep, edge, high, low, out, place, apart, behind
):
    rows, row, step = (deep, wide, PAIR) if across else (wide, deep, DEPTH)
    for r in range(rows):
        begin = where + r * stride
        _split(x[begin : begin + row], high[r * step :], low[r * step :])
    _pack_block(high, 0, step, across, left, wide, deep, edge, high, low, out, place, apart, 0)
    place += behind
    _pack_block(low, 0, step, across, left, wide, deep, edge, high, low, out, place, apart, 0)


def _pack_pair(
    x, where, stride, across, left, wide, deep, edge, high, low, out, place, apart, behind
):
    for half in range(2):  # of a line of the cache, if across
        some = min(SIDE, wide - half * SIDE)
        here = where + half * SIDE * (1 if across else stride)
        target = place + half * apart
        if some == SIDE and deep == DEPTH:
            _pack_tile(x, here, stride, across, left, out, target)
        else:
            _cut_edge(x, here, stride, across, some, deep, edge)
            _pack_tile(edge, 0, SIDE if across else DEPTH, across, left, out, target)


@kernel
def _split(x, high, low):
    """What x is rounded to, and what that leaves."""
    for k in range(x.size):
        h = store(x[k])
        high[k] = h
        low[k] = store(x[k] - load(h))


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
def multiply_packed(shapes, p, q, bias, y, start, rows, depth, columns, high, first, last):
    """Pairs of tiles by pairs, `first` to `last` of the result, of packed matrices."""
    tiles = -(-depth // DEPTH)
    down, beside = -(-rows // PAIR), -(-columns // PAIR)
    p_low, q_low = down * 2 * tiles * TILE, beside * 2 * tiles * TILE
    band = max(1, min(down, _BAND // (4 * tiles * TILE)))
    sums = np.empty(PAIR * PAIR, np.float32)
    configure(shapes)
    for part in range(first, last):
        above = part // (band * beside) * band
        here = min(band, down - above)
        n, m = divmod(part - above * beside, here)
        m += above
        left, right = m * tiles * 2 * TILE, n * tiles * 2 * TILE
        clear_square()
        if high:
            for k in range(0, tiles, _TILES):
                some = min(_TILES, tiles - k)
                a, b = left + k * 2 * TILE, right + k * TILE
                add_square(p, p_low + a, 2 * TILE, TILE, q, b, TILE, tiles * TILE, some)
                add_square(p, a, 2 * TILE, TILE, q, q_low + b, TILE, tiles * TILE, some)
                add_square(p, a, 2 * TILE, TILE, q, b, TILE, tiles * TILE, some)
        else:
            add_square(p, left, 2 * TILE, TILE, q, right, TILE, tiles * TILE, tiles)
        store_square(sums, 0, PAIR * LANES)
        place = start + m * PAIR * columns + n * PAIR
        below, beyond = min(PAIR, rows - m * PAIR), columns - n * PAIR
        put_rows(sums, bias, n * PAIR, y, place, columns, below, beyond)
    release()


@kernel
def multiply_many(
    shapes, a, a_matrix, a_stride, a_across, b, b_matrix, b_stride, b_across, p, q, bias, y,
    rows, depth, columns, high, first, last,
):  # fmt: skip
    """Products of a batch, one after the other in the memory p and q."""
    down, beside = -(-rows // PAIR), -(-columns // PAIR)
    for i in range(first, last):
        pack(a, i * a_matrix, a_stride, a_across, True, rows, depth, p, 0, down)
        pack(b, i * b_matrix, b_stride, b_across, False, columns, depth, q, 0, beside)
        place, squares = i * rows * columns, down * beside
        multiply_packed(shapes, p, q, bias, y, place, rows, depth, columns, high, 0, squares)
