"""Tiles of products with rows of pixels where they lie, which a table says.

Rows of pixels need no packing: vectors begin at any pixel, and the last one of a row is masked. A
tile of the result stays in registers, some rows by some vectors.
"""

from __future__ import annotations

import functools
from typing import Any

from numba.core import cgutils, types

from .compiler import kernel
from .simd import (
    LANES,
    address,
    fetch,
    fetch_rows,
    has_feature,
    intrinsic,
    load_lanes,
    load_transposed,
    mask_below,
    masked_load,
    masked_store,
    multiply_add,
    splat,
    store,
    store_lanes,
    zeros,
)

# Rows of a tile, and its vectors at most. AVX-512 has 32 registers of 16 lanes; 16 of 8, or 32 of
# 4, hold less.
ROWS, VECTORS = (8, 3) if has_feature("avx512f") else (4, 1)
_AHEAD = 256  # how far before its use a map's element is fetched that is read in order


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

    def rows_up_to(self, height: Any) -> list[Any]:
        """Numbers of a tile's rows; for those that are not there and not written, the last one."""
        last = self.builder.sub(height, self.number(1))
        numbers = [self.number(i) for i in range(ROWS)]
        below = [self.builder.icmp_signed("<", i, last) for i in numbers]
        return [self.builder.select(b, i, last) for b, i in zip(below, numbers, strict=True)]

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
    """An intrinsic: filters times rows of pixels, which begin at places[k] for addend k.

    The number of row i and addend k is filters[i * f_row + k * f_step].
    """

    @intrinsic
    def tile(
        typing: Any, filters: Any, f_start: Any, x: Any, x_start: Any, places: Any, k_first: Any,
        bias: Any, first: Any, out: Any, o_start: Any, f_row: Any, f_step: Any, pixels: Any,
        depth: Any, height: Any, lanes: Any, add: Any,
    ) -> Any:  # fmt: skip
        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            def place(i: int) -> Any:
                return address(context, builder, sig.args[i], *args[i : i + 2])

            filters, x, places, bias, out = (place(i) for i in (0, 2, 4, 6, 8))
            f_row, f_step, pixels, depth, height, lanes, add = args[10:]
            c = _Code(builder, depth.type)
            mask = mask_below(builder, lanes)
            targets = [
                [c.at(out, c.times(i, pixels), j * LANES) for j in range(vectors)]
                for i in range(ROWS)
            ]
            for row in targets:  # what is written in the end
                for pointer in row:
                    fetch(builder, pointer, write=True)

            rows = [c.at(filters, builder.mul(i, f_row)) for i in c.rows_up_to(height)]

            def step(k: Any) -> Any:
                row = c.at(x, builder.load(c.at(places, k)))
                values = [load_lanes(builder, c.at(row, j * LANES)) for j in range(vectors - 1)]
                values.append(masked_load(builder, c.at(row, (vectors - 1) * LANES), mask))
                k = builder.mul(k, f_step)
                return [c.at(row, k) for row in rows], values

            def begin(i: int) -> Any:
                return splat(builder, builder.load(c.at(bias, i)))

            c.put(c.sum_up(targets, depth, step), targets, height, mask, add, begin)
            return context.get_dummy_value()

        n = types.intp
        return types.void(filters, n, x, n, places, n, bias, n, out, n, n, n, n, n, n, n, n), code

    return tile


def _of_maps(vectors: int) -> Any:
    """An intrinsic: rows of pixels times others, of which the second are in blocks of 16.

    Row i of the first begins at places[first + i], blocks of the second are `block` elements apart.
    """

    @intrinsic
    def tile(
        typing: Any, a: Any, a_start: Any, places: Any, first: Any, b: Any, b_start: Any,
        out: Any, o_start: Any, block: Any, columns: Any, depth: Any, height: Any, lanes: Any,
        add: Any,
    ) -> Any:  # fmt: skip
        def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            def place(i: int) -> Any:
                return address(context, builder, sig.args[i], *args[i : i + 2])

            a, places, b, out = (place(i) for i in (0, 2, 4, 6))
            block, columns, depth, height, lanes, add = args[8:]
            c = _Code(builder, depth.type)
            targets = [
                [c.at(out, c.times(i, columns), j * LANES) for j in range(vectors)]
                for i in range(ROWS)
            ]
            maps = [c.at(a, builder.load(c.at(places, i))) for i in c.rows_up_to(height)]

            def step(k: Any) -> Any:
                row = c.at(b, builder.mul(k, c.number(LANES)))
                values = [load_lanes(builder, c.at(row, c.times(j, block))) for j in range(vectors)]
                return [c.at(map_, k) for map_ in maps], values

            sums = c.sum_up(targets, depth, step)
            c.put(sums, targets, height, mask_below(builder, lanes), add, lambda i: zeros())
            return context.get_dummy_value()

        n = types.intp
        return types.void(a, n, places, n, b, n, out, n, n, n, n, n, n, n), code

    return tile


_filters_1, _filters_2, _filters_3 = (_of_filters(min(n, VECTORS)) for n in (1, 2, 3))
_maps_1, _maps_2, _maps_3 = (_of_maps(min(n, VECTORS)) for n in (1, 2, 3))


@kernel
def vectors_of(length):
    """How many vectors the next tile has, of so many numbers that are left."""
    left = -(-length // LANES)
    if VECTORS == 1 or left == 1:
        return 1
    return 2 if left in (2, 4) else 3


@functools.partial(kernel, forceinline=True)
def multiply_tile(
    vectors, w, f, x, a, places, k, bias, b, out, c, row, step, pixels, depth, height, n, add
):
    """out = w x + bias, or added to it with `add`: a tile of so many vectors, n lanes in the last.

    Rows of w are `row` elements apart, and their addends `step`.
    """
    if vectors == 3:
        _filters_3(w, f, x, a, places, k, bias, b, out, c, row, step, pixels, depth, height, n, add)
    elif vectors == 2:
        _filters_2(w, f, x, a, places, k, bias, b, out, c, row, step, pixels, depth, height, n, add)
    else:
        _filters_1(w, f, x, a, places, k, bias, b, out, c, row, step, pixels, depth, height, n, add)


@kernel
def multiply_row(left, a, places, first, right, out, c, block, columns, depth, height, add):
    """A row of tiles of left right^T, or added to `out`: `height` rows by all columns."""
    column = 0
    while column < columns:
        vectors = vectors_of(columns - column)
        few = min(vectors * LANES, columns - column)
        n = few - (vectors - 1) * LANES
        b, d = column // LANES * block, c + column
        if vectors == 3:
            _maps_3(left, a, places, first, right, b, out, d, block, columns, depth, height, n, add)
        elif vectors == 2:
            _maps_2(left, a, places, first, right, b, out, d, block, columns, depth, height, n, add)
        else:
            _maps_1(left, a, places, first, right, b, out, d, block, columns, depth, height, n, add)
        column += few


@kernel
def transpose(maps, start, rows, distance, count, room, block):
    """Pixels of rows so far apart as (rows / 16, count, 16), blocks of 16 rows so far apart."""
    for r in range(0, rows, LANES):
        target = r // LANES * block
        for p in range(0, count, LANES):
            place = start + r * distance + p
            fetch_rows(maps, place + _AHEAD, distance, 0)
            values = load_transposed(maps, place, distance, rows - r, count - p)
            for j in range(LANES):
                store(room, target + (p + j) * LANES, values[j])


@kernel
def cut_filters(w, filters, rows, depth, row, column, start, stop):
    """Filters (rows, depth), in w so far apart, as (rows / ROWS, depth, ROWS); parts are tiles."""
    tiles = -(-rows // ROWS)
    for part in range(start, stop):
        group, tile = divmod(part, tiles)
        for i in range(ROWS):
            r = tile * ROWS + i
            source, target = group * rows * depth + r * row, part * depth * ROWS + i
            for k in range(depth):
                filters[target + k * ROWS] = w[source + k * column] if r < rows else 0
