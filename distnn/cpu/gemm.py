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
    fetch,
    has_feature,
    intrinsic,
    load_lanes,
    multiply_add,
    splat,
    store_lanes,
    zeros,
)

# Rows and blocks of a tile of A B, and of A^T B. AVX-512 has 32 registers of 16 lanes; 16 of 8, or
# 32 of 4, hold less. Rows of the second divide a block.
ROWS, BLOCKS = (6, 4) if has_feature("avx512f") else (6, 1)
_ROWS_TRANSPOSED, _BLOCKS_TRANSPOSED = (8, 2) if has_feature("avx512f") else (4, 1)
# Rows that a sum runs over before it is added to the result: of both operands they fit in L1.
_DEPTH = 128
_ROW_PART = 96  # a multiple of ROWS
_BLOCK_PART = 8


# Addends of a loop; before it, some of what comes next is fetched into the nearest cache.
_STEPS = LANES
_LINES = 4


def _tile(height: int, blocks: int, transposed: bool) -> Any:
    """An intrinsic: a tile of C gets, or has added, rows of A, or of A^T, times rows of B.

    A `depth` of addends is summed up. Blocks of A are `a_block` elements apart; those of A^T are
    not needed, since a tile lies in one. What is at `next_b` is fetched meanwhile.
    """
    # Distances in A from one row of the tile to the next, and from one addend to the next.
    row, step = (1, LANES) if transposed else (LANES, 1)

    @intrinsic
    def tile(
        typing: Any, a: Any, a_start: Any, a_block: Any, b: Any, b_start: Any, b_block: Any,
        c: Any, c_start: Any, c_block: Any, depth: Any, next_b: Any, add: Any,
    ) -> Any:  # fmt: skip
        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            a, a_start, a_block, b, b_start, b_block, c, c_start, c_block, depth, next_b, add = args
            a = address(context, builder, sig.args[0], a, a_start)
            next_b = address(context, builder, sig.args[3], b, next_b)
            b = address(context, builder, sig.args[3], b, b_start)
            c = address(context, builder, sig.args[6], c, c_start)
            number = depth.type
            steps = number(_STEPS)

            def at(pointer: Any, *offsets: Any) -> Any:
                for offset in offsets:
                    offset = number(offset) if isinstance(offset, int) else offset
                    pointer = builder.gep(pointer, [offset])
                return pointer

            def times(i: int, distance: Any) -> Any:
                return builder.mul(number(i), distance)

            places = [
                (i, j, at(c, times(j, c_block), i * LANES))
                for i in range(height)
                for j in range(blocks)
            ]
            sums = {(i, j): cgutils.alloca_once_value(builder, zeros()) for i, j, _ in places}
            rounds = builder.sdiv(builder.add(depth, number(_STEPS - 1)), steps)
            with cgutils.for_range(builder, rounds) as o:
                first = builder.mul(o.index, steps)
                a_place = at(a, times(step, first) if transposed else builder.mul(o.index, a_block))
                lines = times(_LINES * LANES, o.index)
                for i in range(_LINES):
                    for j in range(blocks if transposed else 1):
                        fetch(builder, at(next_b, lines, times(j, b_block), i * LANES), write=False)
                if transposed:  # the next rows of C
                    for i in range(2):
                        for j in range(blocks):
                            line = at(c, times(j, c_block), times(2 * LANES, o.index))
                            fetch(builder, at(line, (height + i) * LANES), write=True)
                else:  # the next rows of A
                    for i in range(height):
                        fetch(builder, at(a_place, (height + i) * LANES), write=False)
                left = builder.sub(depth, first)
                count = builder.select(builder.icmp_signed("<", left, steps), left, steps)
                b_place = at(b, times(LANES, first))
                with cgutils.for_range(builder, count) as k:
                    b_row = at(b_place, times(LANES, k.index))
                    right = [
                        load_lanes(builder, at(b_row, times(j, b_block))) for j in range(blocks)
                    ]
                    a_row = at(a_place, times(step, k.index))
                    for i in range(height):
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


_product_wide, _product_narrow = (_tile(ROWS, n, False) for n in (BLOCKS, 1))
_transposed_wide, _transposed_narrow = (
    _tile(_ROWS_TRANSPOSED, n, True) for n in (_BLOCKS_TRANSPOSED, 1)
)


@kernel
def multiply(
    a, a_block, a_plane, b, b_block, b_plane, depth, c, c_block, c_plane, rows, columns, start, stop
):
    """C = A B for a batch of matrices; parts number the batch times `row_parts(rows)`.

    A (depth, *, 16), B (columns, depth * 16, 16) and C (columns, *, 16) have `*_block` elements
    from block to block and `*_plane` from matrix to matrix. `depth` and `columns` count blocks. The
    rows of C are taken up to a multiple of ROWS.
    """
    parts = row_parts(rows)
    for part in range(start, stop):
        p, first = divmod(part, parts)
        first *= _ROW_PART
        last = min(first + _ROW_PART, rows)
        block = 0
        while block < columns:
            wide = block + BLOCKS <= columns
            y = p * b_plane + block * b_block
            after = y + (b_plane if block + BLOCKS >= columns else BLOCKS * b_block)
            for i in range(first, last, ROWS):
                x, z = p * a_plane + i * LANES, p * c_plane + block * c_block + i * LANES
                k = depth * LANES
                if wide:
                    _product_wide(a, x, a_block, b, y, b_block, c, z, c_block, k, after, 0)
                else:
                    _product_narrow(a, x, a_block, b, y, b_block, c, z, c_block, k, after, 0)
                after += depth * _LINES * LANES
            block += BLOCKS if wide else 1


@kernel
def multiply_piece(
    a, a_start, a_block, b, b_start, b_block, c, c_start, c_block, rows, columns, depth, add
):
    """C = A B, or C += A B, of matrices that fit into the second cache.

    A (depth, *, 16), B (columns, depth * 16, 16), C (columns, *, 16), each from an element on and
    with `*_block` elements from block to block. The rows of C are taken up to a multiple of ROWS.
    """
    k = depth * LANES
    for first in range(0, rows, _ROW_PART):
        last = min(first + _ROW_PART, rows)
        block = 0
        while block < columns:
            wide = block + BLOCKS <= columns
            y = b_start + block * b_block
            after = y + BLOCKS * b_block
            for i in range(first, last, ROWS):
                x, z = a_start + i * LANES, c_start + block * c_block + i * LANES
                if wide:
                    _product_wide(a, x, a_block, b, y, b_block, c, z, c_block, k, after, add)
                else:
                    _product_narrow(a, x, a_block, b, y, b_block, c, z, c_block, k, after, add)
                after += depth * _LINES * LANES
            block += BLOCKS if wide else 1


@kernel
def row_parts(rows):
    """Into how many parts `multiply` cuts each product."""
    return -(-rows // _ROW_PART)


@kernel
def multiply_transposed(
    a, a_block, a_plane, b, b_block, b_plane, rows, c, a_blocks, b_blocks, add, start, stop
):
    """C = A^T B, or C += A^T B, for a batch; parts number the batch times `block_parts(a_blocks)`.

    A (a_blocks, rows, 16), B (b_blocks, rows, 16), C (b_blocks, a_blocks * 16, 16)
    """
    parts = block_parts(a_blocks)
    c_block = a_blocks * LANES * LANES
    for part in range(start, stop):
        p, group = divmod(part, parts)
        group *= _BLOCK_PART
        for first in range(0, rows, _DEPTH):
            depth = min(_DEPTH, rows - first)
            keep = 1 if add or first else 0
            block = 0
            while block < b_blocks:
                wide = block + _BLOCKS_TRANSPOSED <= b_blocks
                y = p * b_plane + block * b_block + first * LANES
                after = y + _BLOCKS_TRANSPOSED * b_block
                for i in range(
                    group * LANES, min(group + _BLOCK_PART, a_blocks) * LANES, _ROWS_TRANSPOSED
                ):
                    x = p * a_plane + i // LANES * a_block + first * LANES + i % LANES
                    z = (p * b_blocks + block) * c_block + i * LANES
                    if wide:
                        _transposed_wide(a, x, 0, b, y, b_block, c, z, c_block, depth, after, keep)
                    else:
                        _transposed_narrow(
                            a, x, 0, b, y, b_block, c, z, c_block, depth, after, keep
                        )
                    after += -(-depth // _STEPS) * _LINES * LANES
                block += _BLOCKS_TRANSPOSED if wide else 1


@kernel
def block_parts(blocks):
    """Into how many parts `multiply_transposed` cuts each product."""
    return -(-blocks // _BLOCK_PART)
