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

    B (blocks, depth, 16); rows and columns of A, and rows of C and D, are so many elements apart.
    """

    @intrinsic
    def tile(
        typing: Any, a: Any, a_start: Any, a_row: Any, a_column: Any, b: Any, b_start: Any,
        depth: Any, c: Any, c_start: Any, c_row: Any, d: Any, d_start: Any, d_row: Any,
    ) -> Any:  # fmt: skip
        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            a, b, c, d = (
                address(context, builder, sig.args[i], *args[i : i + 2]) for i in (0, 4, 7, 10)
            )
            a_row, a_column, depth, c_row, d_row = (args[i] for i in (2, 3, 6, 9, 12))
            number = depth.type
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
                first = builder.mul(o.index, number(LANES))
                with cgutils.for_range(builder, number(LANES // _UNROLLED)) as loop:
                    for k in range(_UNROLLED):
                        k = builder.add(builder.mul(loop.index, number(_UNROLLED)), number(k))
                        k = builder.add(first, k)
                        factors = at(a, builder.mul(k, a_column))
                        row = at(b, builder.mul(k, number(LANES)))
                        right = [
                            load_lanes(builder, at(row, builder.mul(number(j), block)))
                            for j in range(blocks)
                        ]
                        for i in range(ROWS):
                            factor = builder.load(at(factors, builder.mul(number(i), a_row)))
                            left = splat(builder, factor)
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
        return types.void(a, n, n, n, b, n, n, c, n, n, d, n, n), code

    return tile


tile, narrow_tile = (_tile(n) for n in (BLOCKS, 1))
