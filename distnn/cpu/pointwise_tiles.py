"""Tiles of products with maps where they lie: rows of pixels, as many as there are.

A map is a row of pixels and maps follow each other, so a matrix of maps needs no packing: vectors
begin at any pixel, and the last one of a row is masked. A tile of the result stays in registers,
some rows by some vectors.
"""

from __future__ import annotations

from typing import Any

from numba.core import cgutils, types

from .simd import (
    LANES,
    address,
    fetch,
    has_feature,
    intrinsic,
    load_lanes,
    mask_below,
    masked_load,
    masked_store,
    multiply_add,
    splat,
    store_lanes,
    zeros,
)

# Rows of a tile, and its vectors at most. AVX-512 has 32 registers of 16 lanes; 16 of 8, or 32 of
# 4, hold less.
ROWS, VECTORS = (8, 3) if has_feature("avx512f") else (4, 1)


class _Code:
    """What writes one tile, as LLVM code."""

    def __init__(self, builder: Any, number: Any) -> None:
        self.builder, self.number = builder, number

    def at(self, pointer: Any, *offsets: Any) -> Any:
        for offset in offsets:
            offset = self.number(offset) if isinstance(offset, int) else offset
            pointer = self.builder.gep(pointer, [offset])
        return pointer

    def times(self, i: int, distance: Any) -> Any:
        return self.builder.mul(self.number(i), distance)

    def sum_up(self, rows: list[Any], depth: Any, step: Any) -> list[list[Any]]:
        """Sums of `depth` addends; step(k) gives their factors, a pointer each, and vectors."""
        b = self.builder
        sums = [[cgutils.alloca_once_value(b, zeros()) for _ in row] for row in rows]
        with cgutils.for_range(b, depth) as loop:
            factors, vectors = step(loop.index)
            for pointer, row in zip(factors, sums, strict=True):
                factor = splat(b, b.load(pointer))
                for vector, total in zip(vectors, row, strict=True):
                    b.store(multiply_add(b, factor, vector, b.load(total)), total)
        return sums

    def put(self, sums: Any, places: Any, height: Any, mask: Any, add: Any, begin: Any) -> None:
        """Sums of `height` rows, plus begin(row) or with `add` what is there, to their places."""
        b = self.builder
        for i, (row, found) in enumerate(zip(places, sums, strict=True)):
            with b.if_then(b.icmp_signed("<", self.number(i), height)):
                with b.if_else(b.icmp_signed("!=", add, add.type(0))) as (then, otherwise):
                    with then:
                        for place, total in zip(row, found, strict=True):
                            old = masked_load(b, place, mask) if place is row[-1] else None
                            old = load_lanes(b, place) if old is None else old
                            b.store(b.fadd(b.load(total), old), total)
                    with otherwise:
                        for total in found:
                            b.store(b.fadd(b.load(total), begin(i)), total)
                for place, total in zip(row[:-1], found[:-1], strict=True):
                    store_lanes(b, b.load(total), place)
                masked_store(b, b.load(found[-1]), row[-1], mask)


def _of_filters(vectors: int) -> Any:
    """An intrinsic: filters times maps."""

    @intrinsic
    def tile(
        typing: Any, filters: Any, f_start: Any, x: Any, x_start: Any, pixels: Any, bias: Any,
        first: Any, out: Any, o_start: Any, depth: Any, height: Any, lanes: Any, add: Any,
    ) -> Any:  # fmt: skip
        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            def place(i: int) -> Any:
                return address(context, builder, sig.args[i], *args[i : i + 2])

            filters, x, bias, out = place(0), place(2), place(5), place(7)
            pixels, (depth, height, lanes, add) = args[4], args[9:]
            c = _Code(builder, depth.type)
            mask = mask_below(builder, lanes)
            places = [
                [c.at(out, c.times(i, pixels), j * LANES) for j in range(vectors)]
                for i in range(ROWS)
            ]
            for row in places:  # what is written in the end
                for pointer in row:
                    fetch(builder, pointer, write=True)

            def step(k: Any) -> Any:
                row = c.at(x, builder.mul(k, pixels))
                values = [load_lanes(builder, c.at(row, j * LANES)) for j in range(vectors - 1)]
                values.append(masked_load(builder, c.at(row, (vectors - 1) * LANES), mask))
                factors = c.at(filters, builder.mul(k, c.number(ROWS)))
                return [c.at(factors, i) for i in range(ROWS)], values

            def begin(i: int) -> Any:
                return splat(builder, builder.load(c.at(bias, i)))

            c.put(c.sum_up(places, depth, step), places, height, mask, add, begin)
            return context.get_dummy_value()

        n = types.intp
        return types.void(filters, n, x, n, n, bias, n, out, n, n, n, n, n), code

    return tile


def _of_maps(vectors: int) -> Any:
    """An intrinsic: maps times maps of pixels, of which the second are in blocks of 16 maps."""

    @intrinsic
    def tile(
        typing: Any, a: Any, a_start: Any, pixels: Any, b: Any, b_start: Any, block: Any, out: Any,
        o_start: Any, columns: Any, depth: Any, height: Any, lanes: Any, add: Any,
    ) -> Any:  # fmt: skip
        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            def place(i: int) -> Any:
                return address(context, builder, sig.args[i], *args[i : i + 2])

            a, b, out = place(0), place(3), place(6)
            pixels, block, columns, (depth, height, lanes, add) = (
                args[2],
                args[5],
                args[8],
                args[9:],
            )
            c = _Code(builder, depth.type)
            places = [
                [c.at(out, c.times(i, columns), j * LANES) for j in range(vectors)]
                for i in range(ROWS)
            ]
            # Rows below the last one are not there: it stands for them, and they are not written.
            last = builder.mul(builder.sub(height, c.number(1)), pixels)
            maps = []
            for i in range(ROWS):
                row = c.times(i, pixels)
                few = builder.icmp_signed("<", row, last)
                maps.append(c.at(a, builder.select(few, row, last)))

            def step(k: Any) -> Any:
                row = c.at(b, builder.mul(k, c.number(LANES)))
                values = [load_lanes(builder, c.at(row, c.times(j, block))) for j in range(vectors)]
                return [c.at(map_, k) for map_ in maps], values

            sums = c.sum_up(places, depth, step)
            c.put(sums, places, height, mask_below(builder, lanes), add, lambda i: zeros())
            return context.get_dummy_value()

        n = types.intp
        return types.void(a, n, n, b, n, n, out, n, n, n, n, n, n), code

    return tile


filters_1, filters_2, filters_3 = (_of_filters(min(n, VECTORS)) for n in (1, 2, 3))
maps_1, maps_2, maps_3 = (_of_maps(min(n, VECTORS)) for n in (1, 2, 3))
