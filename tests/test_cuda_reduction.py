"""Sums and extremes on a GPU: near the exact ones, and the same bits wherever the arrays lie."""

from __future__ import annotations

import numpy as np
import pytest
from twins import launches, moved, namespace, strict, twin, up

from distnn.functions.reduction import Extreme, PickAlong, PutAlong

pytestmark = pytest.mark.usefixtures("gpu")
every_dtype = pytest.mark.parametrize("dtype", list("efd"))

# (shape, axes, launches): rows and columns, few and many, odd lengths and those of whole packs.
SUMS = [
    ((1,), None, 0),
    ((1, 1, 1), (0, 2), 0),
    ((5,), None, 1),
    ((300,), None, 1),
    ((70000,), None, 2),
    ((3, 7), 1, 1),
    ((1000, 1), 0, 1),
    ((300, 8), 1, 1),
    ((2, 40000), 1, 2),
    ((3, 7), 0, 1),
    ((33, 5), 0, 1),
    ((300, 64), 0, 2),
    ((3000, 3), 0, 2),
    ((4, 5, 6), 1, 1),
    ((3, 50, 7), 1, 1),
    ((2, 300, 40), 1, 2),
    ((4, 3, 5), (0, 2), 1),
    ((40, 3, 100), (0, 2), 1),
    ((60, 3, 500), (0, 2), 2),
    ((400, 8, 6), (0, 2), 2),
    ((9000, 8, 6), (0, 2), 3),
    ((2, 3, 4, 5), (1, 3), 2),
    ((2, 3, 4, 5, 6), (0, 2, 4), 3),
    ((2, 3, 4, 5), (0, 2), 2),
]
EPS = {"e": 5e-4, "f": 2e-7, "d": 4e-16}


@pytest.fixture(autouse=True)
def _strict():
    with strict():
        yield


def summed(x, axes, keepdims=False):
    from distnn.cuda.reduction import array_sum

    return array_sum(x, axes, keepdims)


def drawn(shape, dtype):
    return np.random.RandomState(0).standard_normal(shape).astype(dtype)


@every_dtype
@pytest.mark.parametrize(("shape", "axes", "count"), SUMS)
def test_sums_are_near_the_exact_ones(shape, axes, count, dtype):
    x = drawn(shape, dtype)
    exact, size = (v.sum(axes) for v in (x.astype(np.float64), np.abs(x.astype(np.float64))))
    y = summed(up(x), axes)
    assert y.dtype == x.dtype
    assert y.shape == exact.shape
    assert np.all(np.abs(y.get() - exact) <= 2 * EPS[dtype] * size)
    assert summed(up(x), axes, True).shape == x.sum(axes, keepdims=True).shape


@pytest.mark.parametrize(("shape", "axes", "count"), SUMS)
def test_sums_take_few_launches(shape, axes, count):
    x = up(drawn(shape, "f"))
    launches(lambda: summed(x, axes), count)


@every_dtype
@pytest.mark.parametrize(("shape", "axes", "count"), SUMS[5:])
def test_sums_have_the_same_bits_wherever_the_array_lies(shape, axes, count, dtype):
    x = drawn(shape, dtype)
    expected = summed(up(x), axes).get()
    np.testing.assert_array_equal(summed(up(x), axes).get(), expected)
    np.testing.assert_array_equal(summed(moved(x), axes).get(), expected)
    turned = up(np.ascontiguousarray(x.T)).transpose()
    np.testing.assert_array_equal(summed(turned, axes).get(), expected)


def test_sums_of_half_precision_add_in_float32():
    """2048 + 1 is 2048 in float16, and 70 000 is more than it can hold on the way."""
    x = np.concatenate([[2048.0], np.ones(1000), [65000.0, -65000.0, 60000.0, -60000.0]])
    assert float(summed(up(x.astype("e")), None)) == 3048


def test_sums_of_whole_numbers_and_of_nothing():
    whole = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(summed(up(whole), 0).get(), whole.sum(0))
    hot = np.eye(3, dtype=bool)
    np.testing.assert_array_equal(summed(up(hot), 1, True).get(), hot.any(1, keepdims=True))
    nothing = np.zeros((0, 3), np.float32)
    np.testing.assert_array_equal(summed(up(nothing), 0).get(), np.zeros(3))
    assert summed(up(nothing), 1).shape == (0,)
    x = drawn((2, 3), "f")
    np.testing.assert_array_equal(summed(up(x), ()).get(), x)


# (shape, axes): as above, and axes that are not neighbours.
EXTREMES = [
    ((7,), (0,)),
    ((1, 1), (0, 1)),
    ((40000,), (0,)),
    ((5, 300), (1,)),
    ((300, 5), (0,)),
    ((4, 6, 8), (1,)),
    ((4, 6, 8), (1, 2)),
    ((4, 6, 8), (0, 2)),
    ((4, 6, 8), ()),
    ((2, 200, 3), (1,)),
]


def definition(x, axes, largest):
    """Values and first indices along the axes, flattened."""
    kept = [i for i in range(x.ndim) if i not in axes]
    rows = x.transpose(*kept, *axes).reshape(*(x.shape[i] for i in kept), -1)
    index = rows.argmax(-1) if largest else rows.argmin(-1)
    return np.take_along_axis(rows, index[..., None], -1)[..., 0], index


def extremes(x, axes, largest, keepdims=False):
    function = twin(Extreme.of(axes, keepdims, largest))
    return function.forward(namespace(x.dtype.char), x)


@every_dtype
@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize(("shape", "axes"), EXTREMES)
@pytest.mark.parametrize("values", ["distinct", "ties", "NaN"])
def test_extremes_are_the_first_ones(shape, axes, largest, values, dtype):
    rng = np.random.RandomState(1)
    x = rng.standard_normal(shape).astype(dtype)
    if values == "ties":
        x = rng.randint(-2, 3, shape).astype(dtype)
    elif values == "NaN":
        x[rng.uniform(size=shape) < 0.02] = np.nan
        x[rng.uniform(size=shape) < 0.02] = np.inf
    for array in (up(x), moved(x)):
        y, index = extremes(array, axes, largest)
        expected, where = definition(x, axes, largest)
        assert y.dtype == x.dtype
        assert index.dtype == np.int64
        np.testing.assert_array_equal(y.get(), expected)
        np.testing.assert_array_equal(index.get(), where)
    kept = x.max(axes, keepdims=True).shape
    assert [a.shape for a in extremes(up(x), axes, largest, True)] == [kept, kept]


@pytest.mark.parametrize(("shape", "axes"), EXTREMES)
def test_elements_are_put_and_picked_at_indices(shape, axes):
    x = drawn(shape, "f")
    y, index = extremes(up(x), axes, True)
    xp = namespace("f")
    put = twin(PutAlong.of(axes, shape)).forward(xp, y, index)
    kept = np.expand_dims(y.get(), axes)
    np.testing.assert_array_equal(put.get(), np.where(x == kept, x, 0))
    picked = twin(PickAlong.of(axes)).forward(xp, up(x), index)
    np.testing.assert_array_equal(picked.get(), y.get())
