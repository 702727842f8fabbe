"""Layout: where the elements of arrays lie that are worked on together, in as few axes as possible.

Kernels are made for a layout's form; its lengths and strides are arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

# How an array lies, seen from the C-contiguous result.
SAME = "same"  # element i of the result needs element i
ONE = "one"  # one element serves all
ROWS = "rows"  # the last axis is contiguous
HELD = "held"  # one element serves the whole last axis
STRIDED = "strided"


class Layout(NamedTuple):
    """Lengths of the axes that are left, and for each array how it lies and its strides.

    Strides are in elements; none for SAME and ONE, and none of the last axis for ROWS and HELD.
    """

    size: int
    lengths: tuple[int, ...]
    kinds: tuple[str, ...]
    strides: tuple[tuple[int, ...], ...]

    def packs(self, length: int) -> bool:
        """True if packs of `length` elements can be used, as far as strides decide it."""
        if len(self.lengths) < 2:
            return STRIDED not in self.kinds
        return (
            STRIDED not in self.kinds
            and self.lengths[-1] % length == 0
            and all(
                stride % length == 0
                for kind, strides in zip(self.kinds, self.strides, strict=True)
                if kind == ROWS
                for stride in strides
            )
        )


def layout(
    shape: tuple[int, ...], arrays: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> Layout:
    """The layout of arrays, given as (shape, strides in elements), that broadcast to `shape`.

    Raises: ValueError where one does not broadcast.
    """
    lengths, strides = _collapsed(shape, [_broadcast(shape, *array) for array in arrays])
    contiguous = tuple(math.prod(lengths[i + 1 :]) for i in range(len(lengths)))
    kinds, kept = [], []
    for own in zip(*strides, strict=True) if strides else [()] * len(arrays):
        if own == contiguous:
            kind, own = SAME, ()
        elif not any(own):
            kind, own = ONE, ()
        elif own[-1] == 1:
            kind, own = ROWS, own[:-1]
        elif own[-1] == 0:
            kind, own = HELD, own[:-1]
        else:
            kind = STRIDED
        kinds.append(kind)
        kept.append(own)
    return Layout(math.prod(shape), tuple(lengths), tuple(kinds), tuple(kept))


def _broadcast(
    shape: tuple[int, ...], own: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[int, ...]:
    """Strides by the axes of `shape`, 0 where the array has one element for all."""
    missing = len(shape) - len(own)
    if missing < 0 or any(
        n not in (1, length) for n, length in zip(own, shape[missing:], strict=True)
    ):
        raise ValueError(f"an array of shape {own} does not broadcast to {shape}")
    kept = (0 if n == 1 else stride for n, stride in zip(own, strides, strict=True))
    return (0,) * missing + tuple(kept)


def _collapsed(
    shape: tuple[int, ...], arrays: Sequence[tuple[int, ...]]
) -> tuple[list[int], list[tuple[int, ...]]]:
    """Lengths, and strides of all arrays by axis, with axes joined that all arrays can join."""
    lengths: list[int] = []
    strides: list[tuple[int, ...]] = []
    for axis, length in enumerate(shape):
        if length == 1:
            continue
        here = tuple(own[axis] for own in arrays)
        if lengths and all(a == b * length for a, b in zip(strides[-1], here, strict=True)):
            lengths[-1] *= length
            strides[-1] = here
        else:
            lengths.append(length)
            strides.append(here)
    return lengths, strides
