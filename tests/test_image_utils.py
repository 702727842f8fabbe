"""Images as arrays: what is written is read, in all layouts, dtypes and numbers of channels."""

from __future__ import annotations

import numpy as np
import pytest

from distnn.errors import ArgumentError, DtypeError, ShapeError
from distnn.utils.image_utils import imread, imresize, imsave

pytest.importorskip("PIL", reason="images need distnn[io]")


def pixels(*shape, dtype=np.uint8):
    return np.random.RandomState(0).randint(0, np.iinfo(dtype).max + 1, shape).astype(dtype)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)])
@pytest.mark.parametrize("channel_first", [False, True])
def test_what_is_written_is_read(tmp_path, shape, channel_first):
    image = pixels(*shape)
    given = image.transpose(2, 0, 1) if channel_first and image.ndim == 3 else image
    imsave(tmp_path / "a.png", given, channel_first=channel_first)
    found = imread(tmp_path / "a.png", channel_first=channel_first)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, given)


def test_floats_are_from_0_to_1_or_as_they_are(tmp_path):
    image = np.array([[0.0, 0.5, 1.0, 1.5, -1.0]])
    imsave(tmp_path / "a.png", image)
    np.testing.assert_array_equal(imread(tmp_path / "a.png"), [[0, 128, 255, 255, 0]])
    imsave(tmp_path / "a.png", image * 100, auto_scale=False)
    np.testing.assert_array_equal(imread(tmp_path / "a.png"), [[0, 50, 100, 150, 0]])


def test_sixteen_bits(tmp_path):
    image = pixels(5, 7, dtype=np.uint16)
    imsave(tmp_path / "a.png", image, as_uint16=True)
    found = imread(tmp_path / "a.png", as_uint16=True)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, image)
    np.testing.assert_array_equal(imread(tmp_path / "a.png"), image >> 8)
    imsave(tmp_path / "b.png", pixels(5, 7))
    found = imread(tmp_path / "b.png", as_uint16=True)
    np.testing.assert_array_equal(found, pixels(5, 7).astype(np.uint16) * 257)


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((5, 7, 3), {"grayscale": True}, (5, 7)),
        ((5, 7, 3), {"num_channels": 0}, (5, 7)),
        ((5, 7, 3), {"num_channels": 1}, (5, 7, 1)),
        ((5, 7, 3), {"num_channels": 4}, (5, 7, 4)),
        ((5, 7), {"num_channels": 3}, (5, 7, 3)),
        ((5, 7), {"num_channels": 4, "channel_first": True}, (4, 5, 7)),
        ((5, 7, 4), {"num_channels": 3}, (5, 7, 3)),
        ((5, 7, 3), {"size": (3, 2)}, (2, 3, 3)),
    ],
)
def test_channels_and_size_are_as_asked_for(tmp_path, shape, options, expected):
    imsave(tmp_path / "a.png", pixels(*shape))
    assert imread(tmp_path / "a.png", **options).shape == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_resizing_keeps_a_ramp(dtype):
    ramp = np.add.outer(np.arange(16) * 4, np.arange(24) * 2)
    image = np.stack([ramp, 100 - ramp // 2], 2).astype(dtype)
    found = imresize(image, (12, 8))
    assert found.dtype == dtype
    assert found.shape == (8, 12, 2)
    # Halved with the mean of neighbours: in the middle the ramp goes on between the pixels.
    middle = (image[::2, ::2].astype(float) + image[1::2, 1::2]) / 2
    np.testing.assert_allclose(found[2:-2, 2:-2], middle[2:-2, 2:-2], atol=1.0)
    first = imresize(image.transpose(2, 0, 1), (12, 8), channel_first=True)
    np.testing.assert_array_equal(first.transpose(1, 2, 0), found)
    np.testing.assert_array_equal(imresize(image, (24, 16), "nearest"), image)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda f: imread(f, num_channels=2), ArgumentError, r"\[imread\] num_channels is 2; pass"),
        (lambda f: imread(f, grayscale=True, num_channels=3), ArgumentError, "grayscale is True"),
        (lambda f: imsave(f, np.zeros((2, 3, 5))), ShapeError, r"img has 5 channels \(shape"),
        (lambda f: imsave(f, np.zeros(3)), ShapeError, r"img has shape \(3,\); pass \(H, W\)"),
        (lambda f: imsave(f, np.zeros((2, 2), bool)), DtypeError, r"img is of bool"),
        (lambda f: imsave(f, np.zeros((2, 2, 3)), as_uint16=True), ShapeError, "16 bits are gray"),
        (lambda f: imresize(np.zeros((2, 2)), (0, 1)), ArgumentError, r"size is \(0, 1\)"),
        (lambda f: imresize(np.zeros((2, 2)), (1, 1), "x"), ArgumentError, "interpolate is 'x'"),
    ],
)
def test_bad_input_is_refused(tmp_path, call, error, message):
    imsave(tmp_path / "a.png", pixels(4, 4))
    with pytest.raises(error, match=message):
        call(str(tmp_path / "a.png"))
