"""Dilated 3x3 convolution by Winograd's way: its phases are plain convolutions.

Where pads are multiples of the dilation, results that lie a dilation apart read only pixels that
do, too. So an image falls into as many phases as a dilation has pixels, and each is an image of its
own. Phases are as long as the longest; what the others lack is zero, as their padding is.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..functions.im2col import Geometry
from ..functions.winograd import possible
from ..threads import parallel_for
from .winograd import Winograd

Shape = tuple[int, ...]


def suits(geometry: Geometry, x_shape: Shape, w_shape: Shape) -> bool:
    """Whether results of a phase read one phase of an image, by 3x3 taps beside each other."""
    return (
        tuple(w_shape[2:]) == (3, 3)
        and geometry.stride == (1, 1)
        and geometry.dilation != (1, 1)
        and geometry.group == 1
        and not any(p % d for p, d in zip(geometry.pad, geometry.dilation, strict=True))
        and len(possible(*_phases(geometry, x_shape))) > 0
    )


def phases(geometry: Geometry, x_shape: Shape, w_shape: Shape) -> tuple[Shape, Shape, Shape]:
    """The plain convolution of all phases: shapes of images and filters, and pads."""
    shape, pads = _phases(geometry, x_shape)
    return shape, w_shape, pads


def _phases(geometry: Geometry, x_shape: Shape) -> tuple[Shape, Shape]:
    images, channels, *lengths = x_shape
    shape = (
        images * math.prod(geometry.dilation),
        channels,
        *[-(-n // d) for n, d in zip(lengths, geometry.dilation, strict=True)],
    )
    return shape, tuple(p // d for p, d in zip(geometry.pad, geometry.dilation, strict=True))


class Dilated:
    """The products of one convolution: x (N, C, H, W), w (F, C, 3, 3), y (N, F, OH, OW)."""

    def __init__(self, xp: Any, geometry: Geometry, x_shape: Shape, w_shape: Shape) -> None:
        shape, _, pads = phases(geometry, x_shape, w_shape)
        self.xp, self.dilation = xp, geometry.dilation
        self.x_shape = shape
        results = [n + 2 * p - 2 for n, p in zip(shape[2:], pads, strict=True)]
        self.y_shape = (shape[0], w_shape[0], *results)
        self.plain = Winograd(xp, shape, w_shape, pads)

    def forward(self, x: np.ndarray, w: np.ndarray, b: np.ndarray | None, out: np.ndarray) -> None:
        """out = x * w + b"""
        y = self.xp.empty(self.y_shape, np.float32)
        self.plain.forward(self._split(x, self.x_shape), w, b, y)
        self._join(y, out)

    def gradients(self, dy: Any, x: Any, w: Any, dx: Any, dw: Any) -> None:
        """dx, which takes w, and dw, which takes x: those that are not None."""
        split = None if dx is None else self.xp.empty(self.x_shape, np.float32)
        source = None if dw is None else self._split(x, self.x_shape)
        self.plain.gradients(self._split(dy, self.y_shape), source, w, split, dw)
        if split is not None:
            self._join(split, dx)

    def _split(self, images: np.ndarray, shape: Shape) -> np.ndarray:
        found = self.xp.empty(shape, np.float32)

        def work(first: int, last: int) -> None:
            for image in range(first, last):
                for phase, pixels in self._pairs(found, images, image):
                    height, width = pixels.shape[1:]
                    phase[:, :height, :width] = pixels
                    phase[:, height:] = 0
                    phase[:, :, width:] = 0

        parallel_for(work, len(images), 1)
        return found

    def _join(self, phases: np.ndarray, images: np.ndarray) -> None:
        def work(first: int, last: int) -> None:
            for image in range(first, last):
                for phase, pixels in self._pairs(phases, images, image):
                    pixels[...] = phase[:, : pixels.shape[1], : pixels.shape[2]]

        parallel_for(work, len(images), 1)

    def _pairs(self, phases: np.ndarray, images: np.ndarray, image: int) -> Any:
        """Each phase of an image, and where its pixels are there."""
        rows, columns = self.dilation
        for number, (i, j) in enumerate(np.ndindex(rows, columns)):
            yield phases[image * rows * columns + number], images[image, :, i::rows, j::columns]
