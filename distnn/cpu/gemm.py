"""Products of matrices whose columns lie in blocks of 16; knows nothing of what the matrices mean.

A matrix (R, C) is stored as (C / 16, R, 16), so both operands are read, and results written, in the
order in which they lie, and nothing has to be packed. A tile of the result stays in registers:
some rows by some blocks of 16 columns.
"""

from __future__ import annotations

from typing import Any

from numba.core import cgutils, types

from .compiler import kernel
from .simd import (
    LANES,
    address,
    has_feature,
    intrinsic,
    load_lanes,
    multiply_add,
    splat,
    store_lanes,
    zeros,
)

# Rows and blocks of a tile. AVX-512 has 32 registers of 16 lanes; 16 of 8, or 32 of 4, hold less.
ROWS, BLOCKS = (8, 2) if has_feature("avx512f") else (4, 1)
# Rows that a sum runs over before it is added to the result: of both operands they fit in L1.
_DEPTH = 128
_ROW_PART = 128  # a multiple of ROWS
_BLOCK_PART = 8


def _tile(blocks: int, row: int, step: int) -> Any:
    """An intrinsic: a tile of C gets, or has added, rows of A times rows of B.

    `row` and `step` are the distances in A, in elements, from one row of the tile to the next and
    from one addend to the next.
    """

    @intrinsic
    def tile(
        typing: Any, a: Any, a_start: Any, a_outer: Any, b: Any, b_start: Any, b_block: Any,
        c: Any, c_start: Any, c_block: Any, outer: Any, inner: Any, add: Any,
    ) -> Any:  # fmt: skip
        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            a, a_start, a_outer, b, b_start, b_block, c, c_start, c_block, outer, inner, add = args
            a = address(context, builder, sig.args[0], a, a_start)
            b = address(context, builder, sig.args[3], b, b_start)
            c = address(context, builder, sig.args[6], c, c_start)
            number = outer.type

            def at(pointer: Any, *offsets: Any) -> Any:
                for offset in offsets:
                    offset = number(offset) if isinstance(offset, int) else offset
                    pointer = builder.gep(pointer, [offset])
                return pointer

            def times(i: int, distance: Any) -> Any:
                return builder.mul(number(i), distance)

            places = [
                (i, j, at(c, times(j, c_block), i * LANES))
                for i in range(ROWS)
                for j in range(blocks)
            ]
            sums = {(i, j): cgutils.alloca_once_value(builder, zeros()) for i, j, _ in places}
            with (
                cgutils.for_range(builder, outer) as o,
                cgutils.for_range(builder, inner) as k,
            ):
                addend = builder.add(builder.mul(o.index, inner), k.index)
                b_row = at(b, builder.mul(addend, number(LANES)))
                right = [load_lanes(builder, at(b_row, times(j, b_block))) for j in range(blocks)]
                a_row = at(a, builder.mul(o.index, a_outer), times(step, k.index))
                for i in range(ROWS):
                    left = splat(builder, builder.load(at(a_row, i * row)))
                    for j in range(blocks):
                        total = builder.load(sums[i, j])
                        builder.store(multiply_add(builder, left, right[j], total), sums[i, j])
            # The result is added to sums, which did not begin with it: rounding errors stay small.
            with builder.if_then(builder.icmp_signed("!=", add, add.type(0))):
                for i, j, place in places:
                    total = builder.fadd(builder.load(sums[i, j]), load_lanes(builder, place))
                    builder.store(total, sums[i, j])
            for i, j, place in places:
                store_lanes(builder, builder.load(sums[i, j]), place)
            return context.get_dummy_value()

        index = types.intp
        kinds = (a, index, index, b, index, index, c, index, index, index, index, index)
        return types.void(*kinds), code

    return tile


_product = {n: _tile(n, LANES, 1) for n in (1, BLOCKS)}
_product_wide, _product_narrow = _product[BLOCKS], _product[1]
_transposed = {n: _tile(n, 1, LANES) for n in (1, BLOCKS)}
_transposed_wide, _transposed_narrow = _transposed[BLOCKS], _transposed[1]


@kernel
def multiply(a, a_block, a_plane, b, depth, c, c_block, c_plane, rows, columns, start, stop):
    """C = A B for a batch of matrices; parts number the batch times `row_parts(rows)`.

    A (depth, *, 16) and C (columns, *, 16) have `a_block` and `c_block` elements from block to
    block and `a_plane`, `c_plane` from matrix to matrix; B is (columns, depth * 16, 16). `depth`
    and `columns` count blocks. The rows of C are taken up to a multiple of ROWS.
    """
    b_block = depth * LANES * LANES
    parts = -(-rows // _ROW_PART)
    for part in range(start, stop):
        p, first = divmod(part, parts)
        first *= _ROW_PART
        last = min(first + _ROW_PART, rows)
        block = 0
        while block < columns:
            wide = block + BLOCKS <= columns
            y = (p * columns + block) * b_block
            for i in range(first, last, ROWS):
                x, z = p * a_plane + i * LANES, p * c_plane + block * c_block + i * LANES
                if wide:
                    _product_wide(a, x, a_block, b, y, b_block, c, z, c_block, depth, LANES, 0)
                else:
                    _product_narrow(a, x, a_block, b, y, b_block, c, z, c_block, depth, LANES, 0)
            block += BLOCKS if wide else 1


def row_parts(rows: int) -> int:
    """Into how many parts `multiply` cuts each product."""
    return -(-rows // _ROW_PART)


@kernel
def multiply_transposed(
    a, a_block, a_plane, b, b_block, b_plane, rows, c, a_blocks, b_blocks, add, start, stop
):
    """C = A^T B, or C += A^T B, for a batch; parts number the batch times `block_parts(a_blocks)`.

    A (a_blocks, rows, 16), B (b_blocks, rows, 16), C (b_blocks, a_blocks * 16, 16)
    """
    parts = -(-a_blocks // _BLOCK_PART)
    c_block = a_blocks * LANES * LANES
    for part in range(start, stop):
        p, group = divmod(part, parts)
        group *= _BLOCK_PART
        for first in range(0, rows, _DEPTH):
            depth = min(_DEPTH, rows - first)
            keep = 1 if add or first else 0
            for i in range(group * LANES, min(group + _BLOCK_PART, a_blocks) * LANES, ROWS):
                x = p * a_plane + i // LANES * a_block + first * LANES + i % LANES
                block = 0
                while block < b_blocks:
                    wide = block + BLOCKS <= b_blocks
                    y = p * b_plane + block * b_block + first * LANES
                    z = (p * b_blocks + block) * c_block + i * LANES
                    if wide:
                        _transposed_wide(a, x, 0, b, y, b_block, c, z, c_block, 1, depth, keep)
                    else:
                        _transposed_narrow(a, x, 0, b, y, b_block, c, z, c_block, 1, depth, keep)
                    block += BLOCKS if wide else 1


def block_parts(blocks: int) -> int:
    """Into how many parts `multiply_transposed` cuts each product."""
    return -(-blocks // _BLOCK_PART)
