"""What a convolution is to those who compute it: cuDNN's graphs, or products over patches."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from ..functions.im2col import Geometry

# Operations, with their operands: (x, w), (x, w), (dy, w), (x, dy).
KINDS = ("forward", "forward with bias", "data gradient", "filter gradient")
# Numbers of the arrays of an operation.
FIRST, SECOND, RESULT, BIAS = 1, 2, 3, 4


class Problem(NamedTuple):
    """One convolution; shapes have channels first, whatever the order of the arrays in memory."""

    x: tuple[int, ...]  # (N, C, *S)
    w: tuple[int, ...]  # (F, C / group, *K)
    geometry: Geometry
    dtype: np.dtype
    tf32: bool
    channel_last: bool  # x, w and y in memory

    @property
    def y(self) -> tuple[int, ...]:
        """(N, F, *O)"""
        return _result(self.x, self.w, self.geometry)

    def shape(self, uid: int, kind: str) -> tuple[int, ...]:
        """The shape of an array of an operation, channels first."""
        if uid == BIAS:
            return (1, self.w[0], *(1,) * len(self.x[2:]))
        shapes = {
            "data gradient": (self.y, self.w, self.x),
            "filter gradient": (self.x, self.y, self.w),
        }.get(kind, (self.x, self.w, self.y))
        return shapes[uid - 1]

    def __str__(self) -> str:
        g = self.geometry
        return (
            f"{self.dtype.name}{' as TF32' if self.tf32 else ''}, channels "
            f"{'last' if self.channel_last else 'first'}, x {self.x}, w {self.w}, pad {g.pad}, "
            f"stride {g.stride}, dilation {g.dilation}, group {g.group}"
        )


@functools.lru_cache(maxsize=4096)
def _result(x: tuple[int, ...], w: tuple[int, ...], geometry: Geometry) -> tuple[int, ...]:
    return (x[0], w[0], *geometry.results(x[2:], w[2:]))
