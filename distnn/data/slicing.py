"""Which positions belong to slice `slice_pos` of `num_of_slices`."""

from __future__ import annotations

import logging

from ..errors import ArgumentError

logger = logging.getLogger("distnn")


def slice_range(
    size: int, num_of_slices: int, slice_pos: int, drop_last: bool = False
) -> tuple[int, int]:
    """First position of a slice, and one after its last; all slices are equally long.

    Where num_of_slices does not divide the size, slices overlap, or with drop_last some samples
    are in none. This is logged.

    Args:
        size: number of samples.
        num_of_slices: number of slices.
        slice_pos: which of them, from 0 on.
        drop_last: leave samples out rather than repeat some.
    Raises: ArgumentError if slice_pos or num_of_slices is out of range.

    >>> slice_range(12, 3, 1)
    (4, 8)
    """
    if num_of_slices < 1:
        raise ArgumentError(
            f"[DataIterator.slice] num_of_slices is {num_of_slices}; pass 1 or more"
        )
    if not 0 <= slice_pos < num_of_slices:
        raise ArgumentError(
            f"[DataIterator.slice] slice_pos is {slice_pos} but num_of_slices is {num_of_slices}; "
            f"pass a slice_pos from 0 to {num_of_slices - 1}"
        )
    if drop_last:
        length = size // num_of_slices
        start = length * slice_pos
        if length == 0:
            raise ArgumentError(
                f"[DataIterator.slice] num_of_slices is {num_of_slices} but the data has {size} "
                f"samples, none for each slice; pass {size} or less, or drop_last=False"
            )
    else:
        length = -(-size // num_of_slices)
        # NNabla's rule: starts go round, and the last slice is moved back to end with the data.
        start = min(length * slice_pos % size, size - length)
    if size % num_of_slices:
        logger.warning(
            "[DataIterator.slice] slice %d of %d: %d samples, positions %d to %d; the %d samples "
            "are not divisible by %d, so %d %s",
            slice_pos,
            num_of_slices,
            length,
            start,
            start + length - 1,
            size,
            num_of_slices,
            abs(size - length * num_of_slices),
            "of them are in no slice" if drop_last else "places hold a sample of another slice",
        )
    return start, start + length
