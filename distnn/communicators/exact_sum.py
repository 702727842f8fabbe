"""Exact sums: floats added as integers, so that no order of addition changes a bit.

The summands of an array, on all ranks, are multiplied by one power of two, rounded to int64 and
added; integers have no rounding, so the sum does not depend on their order, on how they are spread
over ranks, or on the algorithm of the transport. The sum is made a float again once.

With n summands below 2^e the integers have s = 62 - ceil(log2 n) bits, and each summand is off by
at most 2^(e - s - 1). For float32 and up to 64 summands that is less than its own rounding, unless
an element is 2^30 times smaller than the largest of its array; docs/reproducibility.md has more.

Fixed-point summation is old; see Demmel & Nguyen, "Fast reproducible floating-point summation",
ARITH 2013, for it and for what comes without the first exchange.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from ..threads import parallel_for
from .transport import Transport

_BITS = 62  # of a sum; one less than int64 has, for the summands' own rounding
_MESSAGE = 1 << 20  # elements of one message: 8 MB
_PART = 1 << 17  # elements that one thread takes at a time
_BLOCK = 1 << 15  # elements scaled and rounded at once: what a cache holds
_ALL_ZERO = -5000  # stands for the exponent of 0, below that of any number
_FACTOR = 1000  # 2^1000 is a float64, 2^1100 is not


def exact_sum(
    summands: Sequence[Sequence[np.ndarray]],
    outs: Sequence[np.ndarray],
    count: int,
    divisors: Sequence[int],
    transport: Transport,
) -> None:
    """outs[i] = (the sum of summands[i] over all ranks) / divisors[i], with equal bits on all.

    An element is NaN or infinite where the summands' IEEE sum is: NaN with a NaN or with infinities
    of both signs, else the infinity.

    Args:
        summands: per array those of this rank, of its shape; ranks may have different numbers.
        outs: C-contiguous; one may be a summand of the same array.
        count: of the summands of one array on all ranks together, or more; the same on all ranks.
        divisors: per array; the same on all ranks.

    >>> import numpy as np
    >>> from distnn.communicators.transport import SingleTransport
    >>> out = np.zeros(1, np.float32)
    >>> parts = [np.float32([x]) for x in (1e8, 1.5, -1e8)]
    >>> exact_sum([parts], [out], 3, [1], SingleTransport()); out
    array([1.5], dtype=float32)
    """
    with np.errstate(all="ignore"):
        exponents, finite = _agree(summands, transport)
        bits = _BITS - (count - 1).bit_length()
        shifts = [0 if e == _ALL_ZERO else bits - e for e in exponents]
        for message in _messages([out.size for out in outs]):
            total = np.zeros(sum(piece.stop - piece.start for _, piece in message), np.int64)
            for (i, piece), part in _split(message, total):
                _add([s.reshape(-1)[piece] for s in summands[i]], shifts[i], finite[i], part)
            special = [(i, piece) for i, piece in message if not finite[i]]
            marks = [_infinities(summands[i], piece, transport) for i, piece in special]
            transport.all_reduce(total, "sum")
            for (i, piece), part in _split(message, total):
                _restore(part, shifts[i], divisors[i], outs[i].reshape(-1)[piece])
            for (i, piece), (plus, minus) in zip(special, marks, strict=True):
                out = outs[i].reshape(-1)[piece]
                out[plus & ~minus] = np.inf
                out[minus & ~plus] = -np.inf
                out[plus & minus] = np.nan


def _agree(
    summands: Sequence[Sequence[np.ndarray]], transport: Transport
) -> tuple[list[int], list[bool]]:
    """Per array the exponent of the largest finite summand of all ranks; and: is all finite?"""
    n = len(summands)
    words = np.zeros(2 * n, np.int64)
    for i, values in enumerate(summands):
        found = [_exponent(v) for v in values]
        words[i] = max((exponent for exponent, _ in found), default=_ALL_ZERO)
        words[n + i] = any(not finite for _, finite in found)
    transport.all_reduce(words, "max")
    return words[:n].tolist(), [not flag for flag in words[n:]]


def _exponent(values: np.ndarray) -> tuple[int, bool]:
    """(the least e with all finite values below 2^e, whether all are finite)."""
    if not values.size:
        return _ALL_ZERO, True
    largest = float(np.maximum(values.max(), -values.min()))
    finite = math.isfinite(largest)
    if not finite:
        magnitudes = np.abs(values)
        largest = float(np.max(magnitudes, where=np.isfinite(magnitudes), initial=0))
    return (math.frexp(largest)[1] if largest else _ALL_ZERO), finite


def _messages(sizes: Sequence[int]) -> Iterator[list[tuple[int, slice]]]:
    """Cut arrays of these sizes into pieces, and gather pieces into messages, in order."""
    message: list[tuple[int, slice]] = []
    room = _MESSAGE
    for i, size in enumerate(sizes):
        start = 0
        while start < size:
            stop = min(size, start + room)
            message.append((i, slice(start, stop)))
            room -= stop - start
            start = stop
            if not room:
                yield message
                message, room = [], _MESSAGE
    if message:
        yield message


def _split(
    message: Sequence[tuple[int, slice]], total: np.ndarray
) -> Iterator[tuple[tuple[int, slice], np.ndarray]]:
    """Each piece of a message with its place in it."""
    at = 0
    for i, piece in message:
        size = piece.stop - piece.start
        yield (i, piece), total[at : at + size]
        at += size


def _add(summands: Sequence[np.ndarray], shift: int, finite: bool, total: np.ndarray) -> None:
    """total += round(summand 2^shift) for each; what is not finite counts as 0."""

    def work(start: int, stop: int) -> None:
        scaled, rounded = np.empty(_BLOCK), np.empty(_BLOCK, np.int64)
        for block in _blocks(start, stop):
            length = block.stop - block.start
            floats, integers = scaled[:length], rounded[:length]
            for summand in summands:
                _scale(summand[block], shift, floats)
                if not finite:
                    floats[~np.isfinite(floats)] = 0
                np.rint(floats, out=floats)
                np.copyto(integers, floats, "unsafe")
                total[block] += integers

    parallel_for(work, len(total), _PART)


def _restore(total: np.ndarray, shift: int, divisor: int, out: np.ndarray) -> None:
    """out = total 2^-shift / divisor; divided first: a sum may overflow where its mean does not."""

    def work(start: int, stop: int) -> None:
        for block in _blocks(start, stop):
            floats = total[block] / divisor
            _scale(floats, -shift, floats)
            np.copyto(out[block], floats, "same_kind")

    parallel_for(work, len(total), _PART)


def _blocks(start: int, stop: int) -> Iterator[slice]:
    for at in range(start, stop, _BLOCK):
        yield slice(at, min(at + _BLOCK, stop))


def _scale(values: np.ndarray, power: int, out: np.ndarray) -> None:
    """out = values 2^power as float64: exact but for overflow and underflow at the very end."""
    first = max(-_FACTOR, min(power, _FACTOR))
    np.multiply(values, 2.0**first, out=out, dtype=np.float64)
    if power != first:
        out *= 2.0 ** (power - first)


def _infinities(
    summands: Sequence[np.ndarray], piece: slice, transport: Transport
) -> tuple[np.ndarray, np.ndarray]:
    """Where any rank has +infinity, and where -infinity; a NaN counts as both."""
    marks = np.zeros((2, piece.stop - piece.start), np.uint8)
    for summand in summands:
        values = summand.reshape(-1)[piece]
        nan = np.isnan(values)
        marks[0] |= nan | np.isposinf(values)
        marks[1] |= nan | np.isneginf(values)
    transport.all_reduce(marks, "max")
    plus, minus = marks.astype(bool)
    return plus, minus
