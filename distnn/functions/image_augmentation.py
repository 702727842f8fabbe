"""Images changed at random for training: size, angle, position, colour and noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calling import function_api
from ..errors import ArgumentError, ShapeError
from ..function import Function, Spec
from ..random import Draw
from .shapes import number, shape_of, whole_number, whole_numbers
from .shaping import reshape

# Random numbers of an image: what they are for, before two for each channel.
_NUMBERS = (
    "scale", "aspect_ratio", "angle", "x", "y", "flip_lr", "flip_ud", "brightness", "contrast",
    "distortion", "noise",
)  # fmt: skip


@dataclass(frozen=True)
class ImageAugmentation(Function):
    """y (N, C, H', W') = images x (N, C, H, W), changed; it has no gradient, as in NNabla."""

    size: tuple[int, int]
    pad: tuple[int, int]
    flip_lr: bool
    flip_ud: bool
    brightness_each: bool
    contrast_each: bool
    seed: int

    random = True

    def setup(self, x: Spec) -> Spec:
        return Spec((*x.shape[:2], *self.size), x.dtype)

    def forward(
        self,
        xp: Any,
        x: Any,
        *,
        min_scale: float,
        max_scale: float,
        angle: float,
        aspect_ratio: float,
        distortion: float,
        brightness: float,
        contrast: float,
        contrast_center: float,
        noise: float,
        random: Draw,
    ) -> Any:
        n, channels = x.shape[:2]
        drawn = random.uniform((n, len(_NUMBERS) + 2 * channels), np.float64)
        u = {name: drawn[:, i].reshape(n, 1, 1) for i, name in enumerate(_NUMBERS)}
        scale = min_scale * np.exp(u["scale"] * math.log(max_scale / min_scale))
        stretch = np.exp((u["aspect_ratio"] - 0.5) * math.log(aspect_ratio))
        bend = np.exp((2 * u["distortion"] - 1) * distortion) - 1
        column, row = self._places(
            xp, x.shape[2:], u, scale * stretch, scale / stretch, (2 * u["angle"] - 1) * angle, bend
        )
        y = _sample(xp, x, row, column)

        def each(shared: Any, own: Any, alone: bool) -> Any:
            values = own if alone else shared.reshape(n, 1) + 0 * own
            return values.reshape(n, channels, 1, 1)

        first = len(_NUMBERS)
        light = each(u["brightness"], drawn[:, first : first + channels], self.brightness_each)
        power = each(u["contrast"], drawn[:, first + channels :], self.contrast_each)
        factor = np.exp((2 * power - 1) * math.log(contrast))
        y = (y + (2 * light - 1) * brightness - contrast_center) * factor + contrast_center
        if noise > 0:
            used = 2 * -(-drawn.size // 2)  # of the same stream: these come after
            normal = random.normal((used + y.size,))[used:].reshape(y.shape)
            y = y + normal * (u["noise"] * noise).reshape(n, 1, 1, 1)
        return y.astype(x.dtype)

    def _places(
        self,
        xp: Any,
        size: Sequence[int],
        u: dict[str, Any],
        scale_x: Any,
        scale_y: Any,
        angle: Any,
        bend: Any,
    ) -> tuple[Any, Any]:
        """Column and row in x of each pixel of y, as (N, H', W') arrays of numbers."""
        height, width = self.size
        i = xp.arange(height).reshape(1, -1, 1) * 1.0
        j = xp.arange(width).reshape(1, 1, -1) * 1.0
        middle_i, middle_j = (height - 1) / 2, (width - 1) / 2
        # The middle of y in the scaled image.
        free_x = (size[1] + 2 * self.pad[1]) * scale_x - width
        free_y = (size[0] + 2 * self.pad[0]) * scale_y - height
        middle_x = (u["x"] * free_x + middle_j) / scale_x - self.pad[1]
        middle_y = (u["y"] * free_y + middle_i) / scale_y - self.pad[0]
        # A lens's distortion: places move outwards with the square of their radius.
        across, down = 2 * j / width - 1, 2 * i / height - 1
        outwards = (1 + bend * (across * across + down * down)) / (1 + bend)
        j = (across * outwards + 1) * (width / 2)
        i = (down * outwards + 1) * (height / 2)
        turn_x = np.where(u["flip_lr"] < 0.5, -1.0, 1.0) if self.flip_lr else 1.0
        turn_y = np.where(u["flip_ud"] < 0.5, -1.0, 1.0) if self.flip_ud else 1.0
        cos, sin = np.cos(angle), np.sin(angle)
        i, j = i - middle_i, j - middle_j
        column = middle_x + turn_x * (cos / scale_x * j - sin / scale_y * i)
        row = middle_y + turn_y * (sin / scale_x * j + cos / scale_y * i)
        return column, row


def _sample(xp: Any, x: Any, row: Any, column: Any) -> Any:
    """Linear interpolation of images x (N, C, H, W) at places (N, H', W'), clipped to them."""
    n, channels, height, width = x.shape
    row, column = row.clip(0, height - 1), column.clip(0, width - 1)
    top, left = row.astype(np.int64), column.astype(np.int64)
    down, right = (row - top)[:, None], (column - left)[:, None]
    below, after = (top + 1).clip(0, height - 1), (left + 1).clip(0, width - 1)
    start = (xp.arange(n * channels) * (height * width)).reshape(n, channels, 1, 1)
    flat = x.reshape(-1)

    def at(i: Any, j: Any) -> Any:
        return xp.take(flat, start + (i * width + j)[:, None])

    upper = at(top, left) * (1 - right) + at(top, after) * right
    lower = at(below, left) * (1 - right) + at(below, after) * right
    return upper * (1 - down) + lower * down


@function_api
def image_augmentation(
    x: Any,
    shape: Sequence[int] | None = None,
    pad: Sequence[int] = (0, 0),
    min_scale: float = 1.0,
    max_scale: float = 1.0,
    angle: float = 0.0,
    aspect_ratio: float = 1.0,
    distortion: float = 0.0,
    flip_lr: bool = False,
    flip_ud: bool = False,
    brightness: float = 0.0,
    brightness_each: bool = False,
    contrast: float = 1.0,
    contrast_center: float = 0.0,
    contrast_each: bool = False,
    noise: float = 0.0,
    seed: int = -1,
) -> Any:
    """Change images at random, each by numbers of its own; it has no gradient.

    An image is scaled, stretched, turned and cut at a random position, by linear interpolation;
    outside of it are its border pixels. Then y = (y + b - center) c + center + noise.

    Args:
        x: (..., C, H, W) images.
        shape: of a result: (C, H', W') or (H', W'); x's by default.
        pad: (rows, columns) around the image within which the position is chosen.
        min_scale, max_scale: limits of the factor of size.
        angle: largest turn, in radians.
        aspect_ratio: largest ratio of stretching columns and rows, either way.
        distortion: strength of a lens's distortion.
        flip_lr, flip_ud: turn left and right, up and down, with probability 1/2.
        brightness: largest number b that is added, either way; of each channel by itself with
            `brightness_each`.
        contrast: c is between 1 / contrast and contrast, around `contrast_center`; of each channel
            by itself with `contrast_each`.
        noise: largest standard deviation of normal noise.
        seed: start of this call's own random numbers; -1 uses those of `nn.seed`.

    >>> import distnn as nn, distnn.functions as F
    >>> F.image_augmentation(nn.Variable((4, 3, 32, 32)), (3, 28, 28), angle=0.2).shape
    (4, 3, 28, 28)
    """
    name = "image_augmentation"
    whole = shape_of(name, "x", x)
    if len(whole) < 2 or 0 in whole[-3:]:
        raise ShapeError(f"[{name}] x has shape {whole}; pass images (..., C, H, W) with pixels")
    wanted = whole[-2:] if shape is None else whole_numbers(name, "shape", shape)
    lead = whole[len(whole) - len(wanted) : -2]
    if len(wanted) < 2 or wanted[:-2] != lead or min(wanted) < 1:
        raise ShapeError(
            f"[{name}] shape is {tuple(shape or ())} but x has shape {whole}; pass (height, width) "
            "or the channels of x before them"
        )
    margins = whole_numbers(name, "pad", pad)
    if len(margins) != 2 or min(margins) < 0:
        raise ShapeError(f"[{name}] pad is {margins}; pass two numbers of 0 or more, rows, columns")
    given = {
        "min_scale": min_scale, "max_scale": max_scale, "angle": angle,
        "aspect_ratio": aspect_ratio, "distortion": distortion, "brightness": brightness,
        "contrast": contrast, "contrast_center": contrast_center, "noise": noise,
    }  # fmt: skip
    numbers = {key: number(name, key, value) for key, value in given.items()}
    for key in ("min_scale", "max_scale", "aspect_ratio", "contrast"):
        if not numbers[key] > 0:
            raise ArgumentError(f"[{name}] {key} is {given[key]}; pass a number above 0")
    channels = whole[-3] if len(whole) > 2 else 1
    function = ImageAugmentation.of(
        wanted[-2:], margins, bool(flip_lr), bool(flip_ud), bool(brightness_each),
        bool(contrast_each), whole_number(name, "seed", seed),
    )  # fmt: skip
    images = reshape(x, (math.prod(whole[:-3]), channels, *whole[-2:]))
    return reshape(function(images, **numbers), (*whole[:-2], *wanted[-2:]))
