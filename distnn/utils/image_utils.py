"""Images from and to files, as arrays; they need Pillow (`pip install 'distnn[io]'`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError, DtypeError, MissingExtraError, ShapeError

_INTERPOLATIONS = {
    "nearest": "NEAREST", "box": "BOX", "bilinear": "BILINEAR", "hamming": "HAMMING",
    "bicubic": "BICUBIC", "lanczos": "LANCZOS",
}  # fmt: skip


def _pillow(function: str) -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError(
            f"[{function}] images need Pillow, which is not installed; pip install 'distnn[io]'"
        ) from None
    return Image


def imread(
    path: Any,
    grayscale: bool = False,
    size: Sequence[int] | None = None,
    interpolate: str = "bilinear",
    channel_first: bool = False,
    as_uint16: bool = False,
    num_channels: int = -1,
) -> np.ndarray:
    """An image file as an array of uint8.

    Args:
        path: name of the file, or a file opened for reading in binary mode.
        grayscale: one number for each pixel.
        size: (width, height) to resize to.
        interpolate: for `size`: "nearest", "box", "bilinear", "hamming", "bicubic" or "lanczos".
        channel_first: (C, H, W) instead of (H, W, C).
        as_uint16: uint16, 0 to 65535; files of 16 bits keep their values, those of 8 are scaled.
        num_channels: 0 for (H, W), 1, 3, or 4 with opacity; -1 takes those of the file.
    Returns: (H, W) for gray images, else (H, W, C).

    >>> import numpy as np, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     imsave(folder + "/image.png", np.zeros((4, 6, 3), np.uint8))
    ...     imread(folder + "/image.png").shape
    (4, 6, 3)
    """
    pillow = _pillow("imread")
    if num_channels not in (-1, 0, 1, 3, 4):
        raise ArgumentError(f"[imread] num_channels is {num_channels}; pass -1, 0, 1, 3 or 4")
    if grayscale and num_channels > 1:
        raise ArgumentError(
            f"[imread] grayscale is True but num_channels is {num_channels}; pass 0 or 1, or none"
        )
    with pillow.open(path) as image:
        deep = image.mode.startswith("I")  # 16 bits, gray
        if deep:
            array = np.asarray(image).astype(np.uint16)
            gray = True
        else:
            gray = grayscale or num_channels in (0, 1) or (num_channels < 0 and image.mode == "L")
            opaque = num_channels == 4 or (num_channels < 0 and image.mode in ("RGBA", "LA"))
            array = np.asarray(image.convert("L" if gray else "RGBA" if opaque else "RGB"))
    if size is not None:
        array = imresize(array, size, interpolate)
    if as_uint16 and not deep:
        array = array.astype(np.uint16) * 257
    elif deep and not as_uint16:
        array = (array >> 8).astype(np.uint8)
    if gray and num_channels == 1:
        array = array[..., None]
    elif gray and num_channels > 1:
        array = np.repeat(array[..., None], 3, 2)
        if num_channels == 4:
            full = np.full_like(array[..., :1], np.iinfo(array.dtype).max)
            array = np.concatenate((array, full), 2)
    return _channels_first(array) if channel_first else array


def imsave(
    path: Any,
    img: np.ndarray,
    channel_first: bool = False,
    as_uint16: bool = False,
    auto_scale: bool = True,
) -> None:
    """Write an array to an image file; its name says the format.

    Args:
        path: name of the file.
        img: (H, W) or (H, W, C) with 1, 3 or 4 channels: uint8, or floats from 0 to 1.
        channel_first: img is (C, H, W).
        as_uint16: a gray image of 16 bits.
        auto_scale: floats are from 0 to 1; False takes them as 0 to 255 (65535).
    """
    pillow = _pillow("imsave")
    array = _checked("imsave", img)
    if channel_first and array.ndim == 3:
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4):
        raise ShapeError(
            f"[imsave] img has {array.shape[2]} channels (shape {np.shape(img)}); pass 1, 3 or 4, "
            f"{'first' if channel_first else 'last: channel_first=True for (C, H, W)'}"
        )
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if as_uint16 and array.ndim == 3:
        raise ShapeError(
            f"[imsave] img has shape {np.shape(img)} and as_uint16 is True; files of 16 bits are "
            "gray: pass (H, W)"
        )
    most = 65535 if as_uint16 else 255
    if array.dtype.kind == "f":
        scaled = array * most if auto_scale else array
        array = np.clip(np.rint(scaled), 0, most)
    elif as_uint16 and array.dtype == np.uint8:
        array = array.astype(np.uint16) * 257
    elif not as_uint16 and array.dtype == np.uint16:
        array = array >> 8
    pillow.fromarray(array.astype(np.uint16 if as_uint16 else np.uint8)).save(path)


def imresize(
    img: np.ndarray,
    size: Sequence[int],
    interpolate: str = "bilinear",
    channel_first: bool = False,
) -> np.ndarray:
    """Resize an image; the dtype stays.

    Args:
        img: (H, W) or (H, W, C).
        size: (width, height).
        interpolate: "nearest", "box", "bilinear", "hamming", "bicubic" or "lanczos".
        channel_first: img and the result are (C, H, W).

    >>> import numpy as np
    >>> imresize(np.zeros((4, 6, 3), np.uint8), (3, 2)).shape
    (2, 3, 3)
    """
    pillow = _pillow("imresize")
    array = _checked("imresize", img)
    if interpolate not in _INTERPOLATIONS:
        raise ArgumentError(
            f"[imresize] interpolate is {interpolate!r}; use one of {list(_INTERPOLATIONS)}"
        )
    if len(size) != 2 or min(size) < 1:
        raise ArgumentError(f"[imresize] size is {tuple(size)}; pass (width, height), 1 or more")
    way = getattr(pillow.Resampling, _INTERPOLATIONS[interpolate])
    planes = array[None] if array.ndim == 2 else array if channel_first else _channels_first(array)
    # Plane by plane in floats: any dtype and number of channels.
    images = [pillow.fromarray(plane.astype(np.float32)) for plane in planes]
    resized = np.stack([np.asarray(image.resize(tuple(size), way)) for image in images])
    if array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        resized = np.clip(np.rint(resized), limits.min, limits.max)
    resized = resized.astype(array.dtype)
    if array.ndim == 2:
        return resized[0]
    return resized if channel_first else resized.transpose(1, 2, 0)


def _channels_first(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 0, 1) if array.ndim == 3 else array


def _checked(function: str, img: Any) -> np.ndarray:
    array = np.asarray(img)
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ShapeError(
            f"[{function}] img has shape {array.shape}; pass (H, W) or (H, W, C) with pixels"
        )
    if array.dtype.kind not in "iuf":
        raise DtypeError(f"[{function}] img is of {array.dtype}; pass uint8, uint16 or floats")
    return array
