"""Kernels of products over panels: results of convolutions, and gradients of their filters.

A part of the work is some blocks of 16 results by some rows of filters. Its panels (panels.py) are
laid out piece by piece in the second cache, multiplied there, and forgotten.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .compiler import kernel
from .gemm import ROWS, multiply_piece
from .panels import fetch, pack, pack_transposed, spans
from .simd import (
    LANES,
    broadcast,
    load,
    load_at,
    load_part,
    load_transposed,
    store,
    store_transposed,
)

DEPTH = 256  # addends of a piece of a part
COLUMNS = 256  # filters of a part of their gradient
FAR = -1  # instead of where the filters of a tap begin that reaches nothing


class Target(NamedTuple):
    """Where results go: result o to pixel o * step + first of maps of `rows` channels a group."""

    rows: int
    depth: int
    height: int
    width: int
    step_d: int
    step_h: int
    step_w: int
    first_d: int
    first_h: int
    first_w: int


class Cut(NamedTuple):
    """Into what parts the work falls: blocks of results, and rows, of each, a multiple of ROWS."""

    blocks: int
    rows: int


@kernel
def _table(window, blocks):
    """Room for what `spans` finds."""
    size = window.taps * blocks
    most = size * LANES
    starts, lanes = np.empty(size + 1, np.int64), np.empty(most, np.int64)
    return starts, lanes, np.empty(most, np.int64), np.empty(most, np.int64)


@kernel
def _places(window, target, first, count, places):
    """Where `count` results from `first` on are in channel 0 of group 0 of the target."""
    line, column = divmod(first, window.columns)
    layer, row = divmod(line, window.rows)
    image, layer = divmod(layer, window.layers)
    size = window.groups * target.rows * target.depth * target.height * target.width
    i = 0
    while i < count:
        z = layer * target.step_d + target.first_d
        y = row * target.step_h + target.first_h
        begin = image * size + (z * target.height + y) * target.width + target.first_w
        span = min(window.columns - column, count - i)
        for j in range(span):
            places[i + j] = begin + (column + j) * target.step_w
        i += span
        column, row = 0, row + 1
        if row == window.rows:
            row, layer = 0, layer + 1
            if layer == window.layers:
                layer, image = 0, image + 1


@kernel
def correlate(source, window, offsets, filters, bias, out, target, cut, panels, sums, start, stop):
    """Results of some parts; they number groups x parts of rows x parts of blocks of results.

    filters (groups, addends / 16, rows up to a multiple of ROWS, 16); `panels` and `sums` are room
    for one part.
    """
    pixels = window.layers * window.rows * window.columns
    plane = target.depth * target.height * target.width
    results = window.images * pixels
    row_parts = -(-target.rows // cut.rows)
    block_parts = -(-results // (cut.blocks * LANES))
    channels = -(-window.channels // LANES) * LANES if window.by_tap else window.channels
    depth = -(-channels * window.taps // LANES)
    height = -(-target.rows // ROWS) * ROWS
    distance = (DEPTH + 1) * LANES
    sums_block = (cut.rows + ROWS) * LANES
    starts, lanes, counts, places = _table(window, cut.blocks)
    whole = target.step_d == target.step_h == target.step_w == 1
    where = np.empty(cut.blocks * LANES, np.int64)
    for part in range(start, stop):
        rest, block_part = divmod(part, block_parts)
        group, row_part = divmod(rest, row_parts)
        row = row_part * cut.rows
        rows = min(cut.rows, target.rows - row)
        first = block_part * cut.blocks
        blocks = min(cut.blocks, -(-results // LANES) - first)
        spans(window, offsets, first, blocks, starts, lanes, counts, places)
        for k in range(0, depth * LANES, DEPTH):
            last = min(k + DEPTH, depth * LANES)
            pack(
                source, window, group, blocks, starts, lanes, counts, places, k, last, panels,
                distance,
            )  # fmt: skip
            left = (group * depth + k // LANES) * height * LANES + row * LANES
            multiply_piece(
                filters, left, height * LANES, panels, 0, distance, sums, 0, sums_block,
                rows, blocks, (last - k) // LANES, 1 if k else 0,
            )  # fmt: skip
        count = min(blocks * LANES, results - first * LANES)
        _places(window, target, first * LANES, count, where)
        for r in range(rows):
            f = group * target.rows + row + r
            _put(sums, r * LANES, sums_block, out, f * plane, plane, where, count, whole, bias[f])


@kernel
def _put(sums, start, distance, out, base, plane, where, count, whole, number):
    """Results of one filter to their places, plus a number."""
    for i in range(0, count, LANES):
        lanes, begin = min(LANES, count - i), where[i]
        fetch(out, base + begin + 2 * plane, 1)
        if whole and lanes == LANES and where[i + LANES - 1] - begin == LANES - 1:
            store(out, base + begin, load(sums, start) + broadcast(number))
        else:
            for j in range(lanes):
                out[base + where[i + j]] = sums[start + j] + number
        start += distance


@kernel
def correlate_filters(
    source, window, offsets, dy, filters, cut, shares, panels, right, sums, out, start, stop
):
    """Gradients of filters; parts number groups x parts of addends x parts of filters x shares.

    Each share of the results has an `out` of its own, (shares, groups, filters, addends).
    """
    pixels = window.layers * window.rows * window.columns
    results = window.images * pixels
    all_blocks = -(-results // LANES)
    share = -(-all_blocks // shares)
    addends = window.channels * window.taps
    height = -(-addends // LANES) * LANES
    k_parts = -(-height // cut.rows)
    f_parts = -(-filters // COLUMNS)
    # Panels are the left operand here: columns are results, and the sum runs over them.
    panel = (cut.rows + ROWS) * LANES
    column = (cut.blocks + 1) * LANES * LANES
    sums_block = (cut.rows + ROWS) * LANES
    starts, lanes, counts, places = _table(window, cut.blocks)
    lines = np.arange(LANES) * LANES
    for part in range(start, stop):
        rest, number = divmod(part, shares)
        rest, f_part = divmod(rest, f_parts)
        group, k_part = divmod(rest, k_parts)
        k, f = k_part * cut.rows, f_part * COLUMNS
        k_last, f_last = min(k + cut.rows, height), min(f + COLUMNS, filters)
        columns = -(-(f_last - f) // LANES)
        begin, end = number * share, min((number + 1) * share, all_blocks)
        for first in range(begin, end, cut.blocks):
            blocks = min(cut.blocks, end - first)
            spans(window, offsets, first, blocks, starts, lanes, counts, places)
            pack(
                source, window, group, blocks, starts, lanes, counts, places, k, k_last, panels,
                panel,
            )  # fmt: skip
            pack_transposed(
                dy, filters, pixels, group, window.groups, f, f_last, first, blocks, right, column
            )
            multiply_piece(
                panels, 0, panel, right, 0, column, sums, 0, sums_block,
                k_last - k, columns, blocks, 1 if first > begin else 0,
            )  # fmt: skip
        for c in range(columns):
            lanes_f = min(LANES, f_last - f - c * LANES)
            row = ((number * window.groups + group) * filters + f + c * LANES) * addends
            for r in range(0, k_last - k, LANES):
                values = load_at(sums, c * sums_block + r * LANES, lines, 0)
                few = min(LANES, addends - k - r)
                store_transposed(out, row + k + r, addends, lanes_f, few, values)


@kernel
def cut_filters(w, filters, rows, addends, start, stop):
    """Filters (groups, rows, addends) as `correlate` takes them; parts number groups x blocks."""
    blocks = -(-addends // LANES)
    height = -(-rows // ROWS) * ROWS
    for r in range(height):
        for part in range(start, stop):
            group, block = divmod(part, blocks)
            count = min(LANES, addends - block * LANES)
            values = broadcast(np.float32(0))
            if r < rows:
                values = load_part(w, (group * rows + r) * addends + block * LANES, count)
            store(filters, (part * height + r) * LANES, values)


@kernel
def cut_adjoint(w, filters, rows, channels, taps, first, distance, start, stop):
    """Filters (groups, rows, channels, taps) as the phases of dx take them, where rows are addends.

    Parts number groups x blocks of rows. Of each tap: where its phase's filters of group 0 begin,
    or FAR, and how far apart those of two groups are.
    """
    blocks = -(-rows // LANES)
    height = -(-channels // ROWS) * ROWS
    addends = channels * taps
    for part in range(start, stop):
        group, block = divmod(part, blocks)
        row = block * LANES
        source = (group * rows + row) * addends
        for k in range(0, addends, LANES):
            count = min(LANES, addends - k)
            values = load_transposed(w, source + k, addends, min(LANES, rows - row), count)
            for j in range(count):
                channel, tap = divmod(k + j, taps)
                if first[tap] != FAR:
                    place = first[tap] + group * distance[tap]
                    store(filters, place + (block * height + channel) * LANES, values[j])
        for tap in range(taps):
            for channel in range(channels, height):
                if first[tap] != FAR:
                    place = first[tap] + group * distance[tap]
                    place += (block * height + channel) * LANES
                    store(filters, place, broadcast(np.float32(0)))
