"""Words: numbers that the host sets and kernels read from device memory, without anybody waiting.

A copy from the host's ordinary memory waits for all work that was queued. Arguments of a kernel are
taken along at once, so a kernel writes the numbers that it was given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cupy
import numpy as np

from .kernels import kernel

_MOST = 48  # words of a launch; the arguments of a kernel may be 4 KiB


class Words:
    """Words of 64 bits in device memory that kernels read, and that the host sets."""

    def __init__(self, count: int) -> None:
        self.array = cupy.zeros(max(count, 1), np.uint64)

    def set(self, values: Sequence[int]) -> None:
        """Queue the writing of new values; the host waits for nothing, as it would for a copy."""
        for start in range(0, len(values), _MOST):
            some = values[start : start + _MOST]
            padded = [*some, *[0] * (_MOST - len(some))]
            kernel("set_words", _SET)(
                1, _MOST, self.array[start:], np.int64(len(some)), *map(np.uint64, padded)
            )


_SET = (
    'extern "C" __global__ void set_words(unsigned long long* words, long long count, '
    + ", ".join(f"unsigned long long w{i}" for i in range(_MOST))
    + ") {\n  const unsigned long long values[] = {"
    + ", ".join(f"w{i}" for i in range(_MOST))
    + "};\n  if (threadIdx.x < count) words[threadIdx.x] = values[threadIdx.x];\n}\n"
)


def sources() -> Iterator[tuple[str, str]]:
    """(name, CUDA source) of every kernel that can be made here."""
    yield "set_words", _SET
