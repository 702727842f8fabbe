"""Patches of images as panels for gemm.py: any kernel, stride, dilation and padding.

A panel holds what 16 results read: a row for each addend, lanes for the results, which follow each
other in the order of memory, from one image to the next. Lanes whose addend is padding are zero.
Images have three spatial axes here; lines and planes have axes of length 1 before theirs.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import types

from . import simd
from .compiler import kernel
from .simd import (
    LANES,
    address,
    broadcast,
    fetch_rows,
    intrinsic,
    literal_intrinsic,
    load,
    load_part,
    load_transposed,
    store,
    vector,
)

_AHEAD = 128  # how far before its use an image's element is fetched that is read in order


class Window(NamedTuple):
    """How results read a source: result o reads pixels o * step + offset, an offset for each tap.

    The source has `groups` times `channels` channels, each of depth x height x width pixels. Addend
    number k of a result is tap k % taps of channel k // taps; or, with `by_tap`, channel k % padded
    of tap k // padded, where padded is `channels` up to a multiple of 16.
    """

    images: int
    groups: int
    channels: int
    depth: int
    height: int
    width: int
    layers: int  # results of an image: layers x rows x columns
    rows: int
    columns: int
    step_d: int
    step_h: int
    step_w: int
    taps: int
    by_tap: int

    @property
    def results(self) -> int:
        """Of all images."""
        return self.images * self.layers * self.rows * self.columns

    @property
    def addends(self) -> int:
        """Rows of a panel, without those that only fill it up."""
        channels = -(-self.channels // LANES) * LANES if self.by_tap else self.channels
        return channels * self.taps


def _every_second(typing: Any, a: Any, b: Any, order: list[int]) -> Any:
    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.VectorType(ir.IntType(32), LANES)
        return builder.shuffle_vector(*args, ir.Constant(kind, order))

    return vector(vector, vector), code


@intrinsic
def even_lanes(typing: Any, a: Any, b: Any) -> Any:
    """Every second of 31 numbers, of which b holds the last 15."""
    return _every_second(typing, a, b, list(range(0, 2 * LANES, 2)))


@intrinsic
def even_lanes_of_overlapping(typing: Any, a: Any, b: Any) -> Any:
    """Every second of 31 numbers, of which b holds the last 16."""
    return _every_second(typing, a, b, [*range(0, LANES, 2), *range(LANES + 1, 2 * LANES, 2)])


@kernel
def spans(window, offsets, first, blocks, starts, lanes, counts, places):
    """What blocks of 16 results read for each tap: spans of lanes that read one row of pixels.

    Those of a block and a tap are numbers starts[block * taps + tap] to the next start: their
    first lanes, their lengths, and the pixels that their first lanes read in channel 0 of group 0.
    """
    size = window.groups * window.channels * window.depth * window.height * window.width
    results = window.images * window.layers * window.rows * window.columns
    line, column = divmod(first * LANES, window.columns)
    layer, row = divmod(line, window.rows)
    image, layer = divmod(layer, window.layers)
    # Lanes of a block that lie in one row of results: their number, and the first of them.
    run = np.empty((LANES, 5), np.int64)
    low, high = np.empty(window.taps, np.int64), np.empty(window.taps, np.int64)
    for tap in range(window.taps):  # columns whose pixels lie inside of the image
        w = offsets[tap, 2]
        low[tap] = max(0, -(w // window.step_w))
        high[tap] = min(window.columns, (window.width - 1 - w) // window.step_w + 1)
    found = 0
    for block in range(blocks):
        runs, lane = 0, 0
        end = min(LANES, results - (first + block) * LANES)
        while lane < end:
            count = min(window.columns - column, end - lane)
            run[runs, 0], run[runs, 1], run[runs, 2] = count, column, row * window.step_h
            run[runs, 3], run[runs, 4] = layer * window.step_d, image * size
            runs += 1
            lane += count
            column += count
            if column == window.columns:
                column, row = 0, row + 1
                if row == window.rows:
                    row, layer = 0, layer + 1
                    if layer == window.layers:
                        layer, image = 0, image + 1
        for tap in range(window.taps):
            starts[block * window.taps + tap] = found
            d, h, w = offsets[tap, 0], offsets[tap, 1], offsets[tap, 2]
            lane = 0
            for i in range(runs):
                count, x, y, z = run[i, 0], run[i, 1], run[i, 2] + h, run[i, 3] + d
                begin, stop = max(x, low[tap]), min(x + count, high[tap])
                if 0 <= z < window.depth and 0 <= y < window.height and begin < stop:
                    lanes[found] = lane + begin - x
                    counts[found] = stop - begin
                    pixel = (z * window.height + y) * window.width + begin * window.step_w + w
                    places[found] = run[i, 4] + pixel
                    found += 1
                lane += count
    starts[blocks * window.taps] = found


@literal_intrinsic
def fetch(typing: Any, array: Any, index: Any, write: Any) -> Any:
    """Begin to bring array[index] into the cache; to write if `write`, a number that is known.

    Places outside of the array do no harm.
    """

    def code(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = address(context, builder, sig.args[0], *args[:2])
        simd.fetch(builder, pointer, write=write.literal_value)
        return context.get_dummy_value()

    return types.void(array, types.intp, write), code


@functools.partial(kernel, forceinline=True)
def _pack_row(source, step, base, ahead, span, last, lanes, counts, places, panels, target):
    """A row of a panel, from its spans in the channel that begins at `base`."""
    zero = broadcast(np.float32(0))
    if span == last or lanes[span]:
        store(panels, target, zero)
    while span < last:
        # Lanes behind a span become zero, and then perhaps the next span's; those that belong to
        # the row below are written again with it.
        lane, count, place = target + lanes[span], counts[span], base + places[span]
        fetch(source, place + ahead, 0)
        if step == 1:
            if count == LANES:
                store(panels, lane, load(source, place))
            else:
                store(panels, lane, load_part(source, place, count))
        elif step == 2:
            if count == LANES:
                low, high = load(source, place), load(source, place + LANES - 1)
                store(panels, lane, even_lanes_of_overlapping(low, high))
            else:
                few = min(2 * count - 1, LANES)
                low = load_part(source, place, few)
                high = load_part(source, place + LANES, 2 * count - 1 - few)
                store(panels, lane, even_lanes(low, high))
        else:
            store(panels, lane, zero)
            for i in range(count):
                panels[lane + i] = source[place + i * step]
        span += 1


@kernel
def pack(
    source, window, group, blocks, starts, lanes, counts, places, k_first, k_last, panels, distance
):
    """Lay out rows k_first to k_last of the panels of some blocks, `distance` elements apart.

    Up to 15 elements behind the last row of a panel are written, too. Memory is read in its order
    as far as may be: blocks follow each other in it, and taps of a channel read the same pixels.
    """
    channels, taps, step = window.channels, window.taps, window.step_w
    plane = window.depth * window.height * window.width
    first_base = group * channels * plane
    ahead = plane if taps > 1 else 2 * plane
    if window.by_tap:
        padded = -(-channels // LANES) * LANES
        tap, channel = divmod(k_first, padded)
        for row in range(k_last - k_first):
            base = first_base + channel * plane
            for block in range(blocks):
                entry = block * taps + tap
                span = starts[entry]
                last = starts[entry + 1] if channel < channels else span
                target = block * distance + row * LANES
                _pack_row(
                    source, step, base, ahead, span, last, lanes, counts, places, panels, target
                )
            channel += 1
            if channel == padded:
                channel, tap = 0, tap + 1
        return
    for channel in range(k_first // taps, -(-k_last // taps)):
        base = first_base + channel * plane
        first, end = max(k_first - channel * taps, 0), min(k_last - channel * taps, taps)
        for block in range(blocks):
            target = block * distance + (channel * taps + first - k_first) * LANES
            for tap in range(first, end):
                entry = block * taps + tap
                span = starts[entry]
                last = starts[entry + 1] if channel < channels else span
                _pack_row(
                    source, step, base, ahead, span, last, lanes, counts, places, panels, target
                )
                target += LANES


@kernel
def pack_transposed(
    images, channels, pixels, group, groups, c_first, c_last, first, blocks, panels, distance
):
    """Channels c_first to c_last of a group as (channels / 16, 16 * blocks, 16), from a block on.

    `pixels` counts those of a map; the images' pixels are seen as one sequence. Blocks of channels
    are `distance` elements apart; 16 rows behind the last one of each are written, too.
    """
    zero = broadcast(np.float32(0))
    total = len(images) // (groups * channels)
    for c in range(c_first, c_last, LANES):
        target = (c - c_first) // LANES * distance
        height = min(LANES, c_last - c)
        pixel = first * LANES
        end = pixel + blocks * LANES
        while pixel < min(end, total):
            image, place = divmod(pixel, pixels)
            count = min(LANES, pixels - place, end - pixel)
            start = ((image * groups + group) * channels + c) * pixels + place
            fetch_rows(images, start + _AHEAD, pixels, 0)
            values = load_transposed(images, start, pixels, height, count)
            for j in range(LANES):
                store(panels, target + j * LANES, values[j])
            pixel += count
            target += count * LANES
        for _ in range(pixel, end):
            store(panels, target, zero)
            target += LANES
