"""The transforms of F(4x4, 3x3) as kernels: images to points, points to images, and filters.

Lavin & Gray, arXiv:1509.09308, at the points 0, +-5/8, +-5/4 and infinity: the matrices are in
distnn/functions/winograd.py. A transform acts on 16 channels at a time. What belongs to point p of
36 is a matrix with a row for each tile, in blocks of 16 columns (gemm.py).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from .compiler import kernel
from .simd import (
    LANES,
    broadcast,
    fetch_rows,
    load,
    load_at,
    load_part,
    load_transposed,
    store,
    store_at,
    store_transposed,
)

POINTS = 6  # per axis
TILE = 4
TAPS = 9

_A, _B = 0.625, 1.25
_A2, _B2, _A3, _B3 = _A**2, _B**2, _A**3, _B**3
_PRODUCT, _SUM = _A2 * _B2, _A2 + _B2
_AT_0 = 1 / _PRODUCT  # one over the product of a point's distances from the others
_AT_A = 1 / (2 * _A2 * (_A2 - _B2))
_AT_B = 1 / (2 * _B2 * (_B2 - _A2))

# Pixels of maps of which those of 16 channels stay in the second cache beside all else.
_NEAR = 4096

_inline = functools.partial(kernel, forceinline=True)


class Maps(NamedTuple):
    """Images (N, channels, height, width), and the tiles they are cut into.

    Pixels of a tile: `window` per axis, 4 apart from the next tile's, the first tile's beginning
    `above` and `left` of the image. Points lie `plane` elements apart, blocks of 16 channels
    `block`.
    """

    channels: int
    height: int
    width: int
    above: int
    left: int
    window: int
    tile_rows: int
    tile_columns: int
    block: int
    plane: int


# One axis of each transform. Points come in pairs +-p, whose even and odd parts are shared.


@_inline
def _enter(d0, d1, d2, d3, d4, d5):
    """B^T d: six pixels to six points."""
    e, f = d4 - _B2 * d2, d4 - _A2 * d2
    o, q = _A * (d3 - _B2 * d1), _B * (d3 - _A2 * d1)
    first = _PRODUCT * d0 + (d4 - _SUM * d2)
    last = _PRODUCT * d1 + (d5 - _SUM * d3)
    return first, e + o, e - o, f + q, f - q, last


@_inline
def _enter_adjoint(v0, v1, v2, v3, v4, v5):
    """B v: six points to six pixels."""
    s, d, t, e = v1 + v2, v1 - v2, v3 + v4, v3 - v4
    o, q = _A * d, _B * e
    d1 = _PRODUCT * v5 - (_B2 * o + _A2 * q)
    d2 = broadcast(np.float32(0)) - (_SUM * v0 + (_B2 * s + _A2 * t))
    return _PRODUCT * v0, d1, d2, (o + q) - _SUM * v5, v0 + (s + t), v5


@_inline
def _leave(m0, m1, m2, m3, m4, m5):
    """A^T m: six points to four results."""
    s, d, t, e = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return m0 + (s + t), _A * d + _B * e, _A2 * s + _B2 * t, _A3 * d + (_B3 * e + m5)


@_inline
def _leave_adjoint(y0, y1, y2, y3):
    """A y: four results to six points."""
    e, f = y0 + _A2 * y2, y0 + _B2 * y2
    o, q = _A * y1 + _A3 * y3, _B * y1 + _B3 * y3
    return y0, e + o, e - o, f + q, f - q, y3


@_inline
def _filter(g0, g1, g2):
    """G g: three taps to six points."""
    e, f = _AT_A * (g0 + _A2 * g2), _AT_B * (g0 + _B2 * g2)
    o, q = (_AT_A * _A) * g1, (_AT_B * _B) * g1
    return _AT_0 * g0, e + o, e - o, f + q, f - q, g2


@_inline
def _filter_adjoint(u0, u1, u2, u3, u4, u5):
    """G^T u: six points to three taps."""
    s, d, t, e = _AT_A * (u1 + u2), u1 - u2, _AT_B * (u3 + u4), u3 - u4
    g1 = (_AT_A * _A) * d + (_AT_B * _B) * e
    return _AT_0 * u0 + (s + t), g1, _A2 * s + (_B2 * t + u5)


@_inline
def _load_six(array, start, step):
    return (
        load(array, start),
        load(array, start + step),
        load(array, start + 2 * step),
        load(array, start + 3 * step),
        load(array, start + 4 * step),
        load(array, start + 5 * step),
    )


@_inline
def _store_six(array, start, step, values):
    store(array, start, values[0])
    store(array, start + step, values[1])
    store(array, start + 2 * step, values[2])
    store(array, start + 3 * step, values[3])
    store(array, start + 4 * step, values[4])
    store(array, start + 5 * step, values[5])


@_inline
def _to_points(array, start, step, window):
    """Six points of one axis of a tile whose pixels lie `step` apart."""
    if window == POINTS:
        return _enter(*_load_six(array, start, step))
    return _leave_adjoint(
        load(array, start),
        load(array, start + step),
        load(array, start + 2 * step),
        load(array, start + 3 * step),
    )


@_inline
def _ahead(maps):
    """How far before its use a pixel is fetched: the next 16 channels', or rows' of large maps."""
    pixels = maps.height * maps.width
    return LANES * pixels if pixels <= _NEAR else TILE * maps.width


@kernel
def _fill(buffer, first, last):
    for place in range(first, last, LANES):
        store(buffer, place, broadcast(np.float32(0)))


@kernel
def _places(maps, width):
    """Where in a buffer of rows of `width` pixels those of an image's rows go."""
    places = np.empty(maps.window * maps.width + LANES, np.int64)
    for q in range(len(places)):
        row, column = divmod(q, maps.width)
        places[q] = (row * width + maps.left + column) * LANES
    return places


@kernel
def _buffer(maps, width):
    """A row of tiles; below it, what 16 pixels take that begin with its last one."""
    rows = maps.window + -(-LANES // maps.width)
    buffer = np.empty(rows * width * LANES, np.float32)
    _fill(buffer, 0, len(buffer))
    return buffer


@_inline
def _sum_of_sixteen(v):
    """Pairs, and pairs of pairs: rounding errors stay small."""
    a, b = (v[0] + v[1]) + (v[2] + v[3]), (v[4] + v[5]) + (v[6] + v[7])
    c, d = (v[8] + v[9]) + (v[10] + v[11]), (v[12] + v[13]) + (v[14] + v[15])
    return (a + b) + (c + d)


@kernel
def cut(images, points, maps, first_block, blocks, start, stop, sums):
    """Cut images into tiles, and transform them; parts number images times `blocks`.

    These are blocks of channels from `first_block` on, which comes first in `points`. Windows of
    six pixels are those of x, of four those of dy (the adjoint of `join`). `sums` (images,
    channels) get those over an image, where they have elements; rows are multiples of 16.
    """
    adds = len(sums) > 0
    columns = -(-maps.channels // LANES) * LANES
    window, overlap = maps.window, maps.window - TILE
    width = TILE * maps.tile_columns + overlap
    row = width * LANES
    pixels = maps.height * maps.width
    tiles = maps.tile_rows * maps.tile_columns
    ahead = _ahead(maps)
    places = _places(maps, width)
    buffer = _buffer(maps, width)
    middle = np.empty(POINTS * row, np.float32)
    for part in range(start, stop):
        image, block = divmod(part, blocks)
        channel = (first_block + block) * LANES
        lanes = min(LANES, maps.channels - channel)
        source = (image * maps.channels + channel) * pixels
        target = block * maps.block + image * tiles * LANES
        total = broadcast(np.float32(0))
        for i in range(maps.tile_rows):
            kept = 0
            if i:
                kept = overlap  # rows shared with the tiles above
                for place in range(0, overlap * row, LANES):
                    store(buffer, place, load(buffer, TILE * row + place))
            above = TILE * i - maps.above
            top, bottom = max(above + kept, 0), min(above + window, maps.height)
            if top > above + kept or bottom < above + window:
                _fill(buffer, kept * row, window * row)
            count = (bottom - top) * maps.width
            for q in range(0, count, LANES):
                pixel = source + top * maps.width + q
                fetch_rows(images, pixel + ahead, pixels, 0)
                values = load_transposed(images, pixel, pixels, lanes, min(LANES, count - q))
                if adds:
                    total = total + _sum_of_sixteen(values)
                store_at(buffer, (top - above) * row, places, q, values)
            for place in range(0, row, LANES):
                _store_six(middle, place, row, _to_points(buffer, place, row, window))
            for j in range(maps.tile_columns):
                for p in range(POINTS):
                    place = p * row + j * TILE * LANES
                    values = _to_points(middle, place, LANES, window)
                    first = target + p * POINTS * maps.plane
                    _store_six(points, first, maps.plane, values)
                target += LANES
        if adds:
            store(sums, image * columns + channel, total)


@_inline
def _store_results(array, start, step, values):
    store(array, start, values[0])
    store(array, start + step, values[1])
    store(array, start + 2 * step, values[2])
    store(array, start + 3 * step, values[3])


@_inline
def _add_pixels(array, start, values):
    store(array, start, load(array, start) + values[0])
    store(array, start + LANES, load(array, start + LANES) + values[1])
    store(array, start + 2 * LANES, load(array, start + 2 * LANES) + values[2])
    store(array, start + 3 * LANES, load(array, start + 3 * LANES) + values[3])
    store(array, start + 4 * LANES, load(array, start + 4 * LANES) + values[4])
    store(array, start + 5 * LANES, load(array, start + 5 * LANES) + values[5])


@_inline
def _add_each(values, number):
    return values[0] + number, values[1] + number, values[2] + number, values[3] + number


@kernel
def join(points, images, bias, maps, first_block, blocks, start, stop):
    """Transform tiles back and put images together, adding up where windows overlap, plus a bias.

    Parts number images times `blocks`, as those of `cut`.
    Windows of four pixels are those of y; of six, those of dx (the adjoint of `cut`), without bias.
    """
    window, overlap = maps.window, maps.window - TILE
    width = TILE * maps.tile_columns + overlap
    row = width * LANES
    pixels = maps.height * maps.width
    tiles = maps.tile_rows * maps.tile_columns
    ahead = _ahead(maps)
    places = _places(maps, width)
    buffer = _buffer(maps, width)
    middle = np.empty(POINTS * POINTS * LANES, np.float32)
    step = POINTS * LANES
    for part in range(start, stop):
        image, block = divmod(part, blocks)
        channel = (first_block + block) * LANES
        lanes = min(LANES, maps.channels - channel)
        target = (image * maps.channels + channel) * pixels
        source = block * maps.block + image * tiles * LANES
        offset = load_part(bias, channel, lanes)
        _fill(buffer, 0, overlap * row)
        for i in range(maps.tile_rows):
            _fill(buffer, overlap * row, window * row)
            for j in range(maps.tile_columns):
                for p in range(POINTS):
                    first = source + p * maps.plane
                    values = _load_six(points, first, POINTS * maps.plane)
                    if overlap:
                        _store_six(middle, p * LANES, step, _enter_adjoint(*values))
                    else:
                        _store_results(middle, p * LANES, step, _leave(*values))
                for r in range(window):
                    values = _load_six(middle, r * step, LANES)
                    place = r * row + j * TILE * LANES
                    if overlap:
                        _add_pixels(buffer, place, _enter_adjoint(*values))
                    else:
                        results = _add_each(_leave(*values), offset)
                        _store_results(buffer, place, LANES, results)
                source += LANES
            # Rows that the tiles below share are not complete yet.
            above = TILE * i - maps.above
            rows = window if i == maps.tile_rows - 1 else TILE
            top, bottom = max(above, 0), min(above + rows, maps.height)
            count = (bottom - top) * maps.width
            for q in range(0, count, LANES):
                pixel = target + top * maps.width + q
                fetch_rows(images, pixel + ahead, pixels, 1)
                values = load_at(buffer, (top - above) * row, places, q)
                store_transposed(images, pixel, pixels, lanes, min(LANES, count - q), values)
            for place in range(0, overlap * row, LANES):
                store(buffer, place, load(buffer, TILE * row + place))


@_inline
def _in_panels(block, blocks, panel, size):
    """Where a block of matrices lies that come in panels of blocks, and from plane to plane.

    A panel has the same blocks of all planes beside each other; a block has `size` elements.
    """
    first = block // panel * panel
    wide = min(panel, blocks - first)
    return first * POINTS**2 * size + (block - first) * size, wide * size


@kernel
def cut_filters(w, points, columns, rows, column, row, panel, start, stop):
    """Transform filters to 36 matrices (rows, columns) in blocks of columns; parts number blocks.

    Taps of the filter at (r, c) begin at w[r * row + c * column]. Rows are taken up to a multiple
    of 16, with zeros. Blocks come in panels.
    """
    taken = -(-rows // LANES) * LANES
    blocks = -(-columns // LANES)
    middle = np.empty(3 * POINTS * LANES, np.float32)
    for block in range(start, stop):
        lanes = min(LANES, columns - block * LANES)
        target, plane = _in_panels(block, blocks, panel, taken * LANES)
        for r in range(taken):
            taps = TAPS if r < rows else 0
            g = load_transposed(w, block * LANES * column + r * row, column, lanes, taps)
            _store_six(middle, 0, 3 * LANES, _filter(g[0], g[3], g[6]))
            _store_six(middle, LANES, 3 * LANES, _filter(g[1], g[4], g[7]))
            _store_six(middle, 2 * LANES, 3 * LANES, _filter(g[2], g[5], g[8]))
            for p in range(POINTS):
                place = 3 * p * LANES
                values = _filter(
                    load(middle, place),
                    load(middle, place + LANES),
                    load(middle, place + 2 * LANES),
                )
                _store_six(points, target + p * POINTS * plane, plane, values)
            target += LANES


@_inline
def _add_blocks(sums, size, start, out, place):
    """A block of 16 x 16 of `out` gets the sum of those that lie `size` elements apart."""
    for i in range(0, LANES * LANES, LANES):
        total = load(sums, start + i)
        for begin in range(size, len(sums), size):
            total = total + load(sums, begin + start + i)
        store(out, place + i, total)


@kernel
def join_filters(sums, w, channels, filters, panel, start, stop):
    """The adjoint of cut_filters of the sum of `sums`, to w (filters, channels, 3, 3).

    Matrices have the channels for rows, and those come in panels; parts number blocks of channels.
    """
    zero = broadcast(np.float32(0))
    blocks, columns = -(-channels // LANES), -(-filters // LANES)
    size = POINTS**2 * blocks * columns * LANES**2
    points = np.empty(POINTS**2 * LANES**2, np.float32)  # of a block, in the nearest cache
    plane = LANES**2
    middle = np.empty(3 * POINTS * LANES, np.float32)
    step = POINTS * LANES
    for c in range(start, stop):
        first = c // panel * panel
        distance = min(panel, blocks - first) * LANES**2  # from block to block of filters
        source = first * POINTS**2 * columns * LANES**2 + (c - first) * LANES**2
        for f in range(columns):
            for p in range(POINTS**2):
                begin = source + (p * columns + f) * distance
                _add_blocks(sums, size, begin, points, p * plane)
            lanes = min(LANES, filters - f * LANES)
            for i in range(min(LANES, channels - c * LANES)):
                for p in range(POINTS):
                    values = _load_six(points, p * plane + i * LANES, POINTS * plane)
                    g = _filter_adjoint(*values)
                    store(middle, p * LANES, g[0])
                    store(middle, step + p * LANES, g[1])
                    store(middle, 2 * step + p * LANES, g[2])
                g0, g1, g2 = _filter_adjoint(*_load_six(middle, 0, LANES))
                g3, g4, g5 = _filter_adjoint(*_load_six(middle, step, LANES))
                g6, g7, g8 = _filter_adjoint(*_load_six(middle, 2 * step, LANES))
                taps = (g0, g1, g2, g3, g4, g5, g6, g7, g8)
                rest = (zero, zero, zero, zero, zero, zero, zero)
                place = (f * LANES * channels + c * LANES + i) * TAPS
                store_transposed(w, place, channels * TAPS, lanes, TAPS, taps + rest)
