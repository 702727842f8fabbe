"""A tile of a product of matrices, some rows by some blocks of 16 columns, in registers."""

from __future__ import annotations

from typing import Any

from numba.core import cgutils, types

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

# Rows of a tile, and its blocks at most. AVX-512 has 32 registers of 16 lanes; 16 of 8, or 32 of 4,
# hold less. Few blocks need few vectors of B for each addend: those come from the second cache.
ROWS, BLOCKS = (12, 2) if has_feature("avx512f") else (6, 1)
_UNROLLED = 4  # addends


def _tile(blocks: int) -> Any:
    """An intrinsic: C = D + A B for a tile.

    A (depth, ROWS), B (blocks, depth, 16); rows of C and D are so many elements apart.
    """

    @intrinsic
    def tile(
        typing: Any, a: Any, b: Any, b_start: Any, depth: Any, c: Any, c_start: Any, c_row: Any,
        d: Any, d_start: Any, d_row: Any,
    ) -> Any:  # fmt: skip
        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            a, b, b_start, depth, c, c_start, c_row, d, d_start, d_row = args
            number = depth.type
            a = address(context, builder, sig.args[0], a, number(0))
            b = address(context, builder, sig.args[1], b, b_start)
            c = address(context, builder, sig.args[4], c, c_start)
            d = address(context, builder, sig.args[7], d, d_start)
            block = builder.mul(depth, number(LANES))

            def at(pointer: Any, *offsets: Any) -> Any:
                for offset in offsets:
                    offset = number(offset) if isinstance(offset, int) else offset
                    pointer = builder.gep(pointer, [offset])
                return pointer

            def places(pointer: Any, row: Any) -> list[tuple[Any, Any]]:
                """A pointer for each sum."""
                return [
                    (total, at(pointer, builder.mul(number(i), row), j * LANES))
                    for i in range(ROWS)
                    for j, total in enumerate(sums[i])
                ]

            sums = [
                [cgutils.alloca_once_value(builder, zeros()) for _ in range(blocks)]
                for _ in range(ROWS)
            ]
            with cgutils.for_range(builder, builder.sdiv(depth, number(LANES))) as o:
                a_block = at(a, builder.mul(o.index, number(ROWS * LANES)))
                b_rows = at(b, builder.mul(o.index, number(LANES * LANES)))
                with cgutils.for_range(builder, number(LANES // _UNROLLED)) as loop:
                    for k in range(_UNROLLED):
                        k = builder.add(builder.mul(loop.index, number(_UNROLLED)), number(k))
                        a_row = at(a_block, builder.mul(k, number(ROWS)))
                        row = at(b_rows, builder.mul(k, number(LANES)))
                        right = [
                            load_lanes(builder, at(row, builder.mul(number(j), block)))
                            for j in range(blocks)
                        ]
                        for i in range(ROWS):
                            left = splat(builder, builder.load(at(a_row, i)))
                            for vector, total in zip(right, sums[i], strict=True):
                                found = multiply_add(builder, left, vector, builder.load(total))
                                builder.store(found, total)
            # What is added was not what sums began with: rounding errors stay small.
            for total, place in places(d, d_row):
                found = builder.fadd(builder.load(total), load_lanes(builder, place))
                builder.store(found, total)
            for total, place in places(c, c_row):
                store_lanes(builder, builder.load(total), place)
            return context.get_dummy_value()

        n = types.intp
        return types.void(a, b, n, n, c, n, n, d, n, n), code

    return tile


tile, narrow_tile = (_tile(n) for n in (BLOCKS, 1))
