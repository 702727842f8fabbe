"""Compiled sums over whole arrays."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..threads import parallel_for
from .compiler import kernel

# Elements of a part: sums of parts are added in order, whatever the number of threads.
_PART = 262_144


def sum_of_squares(array: np.ndarray) -> float:
    """The sum of squares in float64, of an array of float32 or float64."""
    flat = np.ascontiguousarray(array).reshape(-1)
    found = np.zeros(-(-flat.size // _PART))

    def work(i: int, j: int) -> None:
        found[i // _PART] = _squares(flat[i:j])

    parallel_for(work, flat.size, _PART)
    return float(found.sum())


@partial(kernel, fastmath={"reassoc", "contract"})
def _squares(x):
    total = 0.0
    for i in range(x.size):
        total += np.float64(x[i]) * np.float64(x[i])
    return total
