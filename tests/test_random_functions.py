"""Functions of random numbers: their distributions, and what they do to samples."""

from __future__ import annotations

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F

N = 200_000


def values(make, seed=3):
    nn.seed(seed)
    y = make()
    y.forward()
    return y.d.copy()


def leaf(x, need_grad=False):
    return nn.Variable.from_numpy_array(np.asarray(x, np.float32), need_grad=need_grad)


# -- numbers --------------------------------------------------------------------------------------


def test_rand_is_uniform():
    y = values(lambda: F.rand(-1, 3, (N,)))
    assert -1 <= y.min() < -0.999
    assert 2.999 < y.max() <= 3
    counts = np.histogram(y, 16, (-1, 3))[0]
    chi_squared = np.sum((counts - N / 16) ** 2) / (N / 16)
    assert chi_squared < 45  # 15 degrees of freedom: exceeded once in 10,000


def test_randn_is_normal():
    y = (values(lambda: F.randn(2, 3, (N + 1,))) - 2) / 3
    moments = [np.mean(y), np.mean(y**2), np.mean(y**3), np.mean(y**4)]
    deviations = np.sqrt(np.array([1, 2, 15, 96]) / N)
    assert np.all(np.abs(np.array(moments) - [0, 1, 0, 3]) < 5 * deviations)
    # Pairs are made together: the two of a pair are independent too.
    assert abs(np.mean(y[:-1:2] * y[1::2])) < 5 / np.sqrt(N / 2)
    tail = np.mean(np.abs(y) > 3)
    assert abs(tail - 0.0027) < 5 * np.sqrt(0.0027 / N)


def test_randint_takes_every_number_equally_often():
    y = values(lambda: F.randint(-2, 5, (N,)))
    numbers, counts = np.unique(y, return_counts=True)
    np.testing.assert_array_equal(numbers, range(-2, 5))
    assert np.sum((counts - N / 7) ** 2) / (N / 7) < 33  # 6 degrees of freedom: once in 100,000


@pytest.mark.parametrize("function", [F.rand, F.randn, lambda **a: F.randint(0, 1000, **a)])
def test_random_numbers_are_fresh_at_each_forward_and_follow_the_seed(function):
    y = function(shape=(50,))
    nn.seed(5)
    y.forward()
    first = y.d.copy()
    y.forward()
    assert not np.array_equal(y.d, first)
    nn.seed(5)
    y.forward()
    np.testing.assert_array_equal(y.d, first)
    own = [values(lambda: function(shape=(50,), seed=9), seed) for seed in (1, 2)]
    np.testing.assert_array_equal(*own)


# -- samples --------------------------------------------------------------------------------------


def test_random_flip_turns_each_sample_and_axis_by_itself():
    x = np.arange(4000 * 6).reshape(4000, 2, 3)
    y = values(lambda: F.random_flip(leaf(x), (1, 2)))
    ways = [x, x[:, ::-1], x[:, :, ::-1], x[:, ::-1, ::-1]]
    matches = np.array([(y == way).all((1, 2)) for way in ways])
    np.testing.assert_array_equal(matches.sum(0), 1)
    assert np.all(abs(matches.mean(1) - 0.25) < 5 * np.sqrt(0.1875 / 4000))


@pytest.mark.parametrize(("mode", "padded"), [("nearest", "edge"), ("reflect", "symmetric")])
def test_random_shift_takes_a_window_of_the_continued_sample(mode, padded):
    x = np.random.RandomState(0).randn(600, 4, 5).astype(np.float32)
    y = values(lambda: F.random_shift(leaf(x), (1, 2), mode))
    wide = np.pad(x, ((0, 0), (1, 1), (2, 2)), mode=padded)
    found = np.zeros((3, 5), int)
    for sample, around in zip(y, wide, strict=True):
        hits = [k for k in np.ndindex(3, 5)
                if np.array_equal(sample, around[k[0] : k[0] + 4, k[1] : k[1] + 5])]  # fmt: skip
        assert len(hits) == 1
        found[hits[0]] += 1
    assert found.min() > 15  # 40 are expected of each


def test_random_shift_brings_in_a_constant():
    x = np.ones((400, 3))
    y = values(lambda: F.random_shift(leaf(x), (3,), "constant", 7.0))
    kinds = {tuple(row) for row in y}
    expected = {tuple(np.r_[[7.0] * 3, [1.0] * 3, [7.0] * 3][k : k + 3]) for k in range(7)}
    assert kinds == expected


def test_random_crop_takes_a_part_and_gives_its_gradient_back():
    x = leaf(np.arange(300 * 20).reshape(300, 4, 5), need_grad=True)
    nn.seed(1)
    y = F.random_crop(x, (2, 3))
    y.forward()
    y.backward(np.arange(1.0, 1801).reshape(300, 2, 3).astype(np.float32))
    corners = set()
    for sample, whole, gradient, start in zip(y.d, x.d, x.g, range(1, 1801, 6), strict=True):
        top, left = np.argwhere(whole == sample[0, 0])[0]
        np.testing.assert_array_equal(sample, whole[top : top + 2, left : left + 3])
        expected = np.zeros((4, 5))
        expected[top : top + 2, left : left + 3] = np.arange(start, start + 6).reshape(2, 3)
        np.testing.assert_array_equal(gradient, expected)
        corners.add((top, left))
    assert corners == set(np.ndindex(3, 3))


# -- image_augmentation ---------------------------------------------------------------------------


def images(n=3, channels=2, height=9, width=11):
    i, j = np.mgrid[:height, :width]
    ramp = 10.0 * i + j
    return np.broadcast_to(ramp, (n, channels, height, width)).copy()


def test_augmentation_without_changes_returns_the_images():
    x = images()
    np.testing.assert_allclose(values(lambda: F.image_augmentation(leaf(x))), x, rtol=1e-5)


def test_augmentation_cuts_at_a_random_position():
    x = images(400)
    y = values(lambda: F.image_augmentation(leaf(x), (5, 6)))
    # Of a ramp, linear interpolation shows where a pixel comes from.
    row = (y[:, 0, 0, 0] + 1e-3) // 10
    assert row.min() >= 0
    assert row.max() <= 9 - 5
    step = y - y[:, :, :1, :1]
    expected = x[0, 0, :5, :6] - x[0, 0, 0, 0]
    np.testing.assert_allclose(step, np.broadcast_to(expected, step.shape), atol=1e-3)
    assert len(np.unique(y[:, 0, 0, 0].round(2))) > 100


@pytest.mark.parametrize("options", [{"flip_lr": True}, {"flip_ud": True}])
def test_augmentation_turns_half_of_the_images(options):
    x = images(400)
    y = values(lambda: F.image_augmentation(leaf(x), **options))
    turned = x[..., ::-1] if "flip_lr" in options else x[..., ::-1, :]
    same, other = ((abs(y - way) < 1e-3).all((1, 2, 3)) for way in (x, turned))
    np.testing.assert_array_equal(same ^ other, True)
    assert abs(np.mean(other) - 0.5) < 5 * 0.5 / 20


def test_augmentation_by_angle_and_scale_is_a_rotation_about_the_middle():
    x = images(200, 1, 21, 21)
    y = values(lambda: F.image_augmentation(leaf(x), angle=0.5, min_scale=1.5, max_scale=1.5))
    # The gradient of a ramp (10, 1) turns with the image, and is divided by the scale.
    down = (y[:, 0, 12, 10] - y[:, 0, 8, 10]) / 4
    across = (y[:, 0, 10, 12] - y[:, 0, 10, 8]) / 4
    np.testing.assert_allclose(np.hypot(down, across), np.hypot(10, 1) / 1.5, rtol=1e-3)
    turns = np.arctan2(down, across) - np.arctan2(10, 1)
    assert turns.min() < -0.4
    assert turns.max() > 0.4
    assert abs(turns).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("each", [False, True])
def test_augmentation_changes_brightness_and_contrast(each):
    x = np.zeros((300, 3, 2, 2))
    x[..., 0] = 1
    options = {"brightness_each": each, "contrast_each": each, "contrast_center": 0.5}
    y = values(lambda: F.image_augmentation(leaf(x), brightness=0.2, contrast=2.0, **options))
    factor = y[:, :, 0, 0] - y[:, :, 0, 1]
    added = (y[:, :, 0, 0] - 0.5) / factor - 0.5
    assert 0.5 <= factor.min() < 0.52
    assert 1.95 < factor.max() <= 2
    assert abs(np.median(factor) - 1) < 0.15  # as likely below as above
    assert abs(added).max() <= 0.2 + 1e-5
    alike = np.ptp(factor, 1) < 1e-5
    assert alike.mean() == (0 if each else 1)


def test_augmentation_adds_noise_of_a_random_strength():
    x = np.zeros((200, 1, 16, 16))
    y = values(lambda: F.image_augmentation(leaf(x), noise=0.5))
    strength = y.std((1, 2, 3))
    assert strength.max() < 0.56
    assert 0.2 < np.mean(strength) < 0.3


def test_augmentation_by_distortion_keeps_the_middle():
    x = images(50, 1, 21, 21)
    y = values(lambda: F.image_augmentation(leaf(x), distortion=0.3))
    assert abs(y[:, 0, 10, 10] - x[0, 0, 10, 10]).max() < 6  # half a pixel
    assert abs(y - x).max() > 5
