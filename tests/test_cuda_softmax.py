"""Softmax, its logarithm and its cross entropy on a GPU, and their gradients."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pytest
from twins import close, launches, moved, namespace, same_bits, strict, twin, up

import distnn as nn
import distnn.functions as F
from distnn.errors import LabelError
from distnn.functions.softmax import LogSoftmax, Softmax, SoftmaxCrossEntropy

pytestmark = pytest.mark.usefixtures("gpu")
every_dtype = pytest.mark.parametrize("dtype", list("efd"))

# (shape, axis): rows in one thread, a warp, a block, kept or not; columns, few and many, of
# whole packs or not.
SHAPES = [
    ((1, 1), 1),
    ((5, 1), 1),
    ((300, 3), 1),
    ((7, 10), 1),
    ((3, 33), 1),
    ((5, 64), 1),
    ((3, 1000), 1),
    ((2, 3001), 1),
    ((2, 20000), 1),
    ((3, 5, 2), 1),
    ((2, 21, 50), 1),
    ((2, 4, 3, 64), 1),
    ((300, 2), 0),
    ((2, 1, 9), 1),
    ((4, 6), 0),
]
every_shape = pytest.mark.parametrize(("shape", "axis"), SHAPES)


@pytest.fixture(autouse=True)
def _strict():
    with strict():
        yield


def drawn(shape, dtype, seed=0):
    return (3 * np.random.RandomState(seed).standard_normal(shape)).astype(dtype)


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def log_softmax(x, axis):
    largest = x.max(axis, keepdims=True)
    return x - largest - np.log(np.exp(x - largest).sum(axis, keepdims=True))


FUNCTIONS = [(Softmax, softmax), (LogSoftmax, log_softmax)]
both = pytest.mark.parametrize(("function", "definition"), FUNCTIONS)


def forward(function, axis, x):
    return twin(function.of(axis)).forward(namespace(x.dtype.char), x)


def backward(function, axis, dy, y):
    dx = up(np.full(y.shape, np.nan, y.dtype))
    xp = namespace(y.dtype.char)
    twin(function.of(axis)).backward(xp, None, dy, y, out=SimpleNamespace(x=dx))
    return dx


@every_dtype
@every_shape
@both
def test_results_agree_with_the_definition(function, definition, shape, axis, dtype):
    x = drawn(shape, dtype)
    y = forward(function, axis, up(x))
    close(y, definition(x.astype(np.float64), axis), dtype)
    same_bits(forward(function, axis, moved(x)), y)
    given = up(np.full(shape, np.nan, dtype))
    result = twin(function.of(axis)).forward(namespace(dtype), up(x), out=given)
    assert result is given
    same_bits(given, y)


@every_dtype
@every_shape
@both
def test_gradients_agree_with_the_definition(function, definition, shape, axis, dtype):
    y = definition(drawn(shape, "d"), axis).astype(dtype)
    dy = drawn(shape, dtype, 1)
    wide, dwide = y.astype(np.float64), dy.astype(np.float64)
    if function is Softmax:
        expected = wide * (dwide - (dwide * wide).sum(axis, keepdims=True))
    else:
        expected = dwide - np.exp(wide) * dwide.sum(axis, keepdims=True)
    dx = backward(function, axis, up(dy), up(y))
    close(dx, expected, dtype, times=4)
    same_bits(backward(function, axis, moved(dy), moved(y)), dx)


@both
@pytest.mark.parametrize("dtype", list("fd"))
@pytest.mark.parametrize("width", [3, 40, 9000])
@pytest.mark.parametrize("axis", [0, 1])
def test_scores_far_apart_and_no_numbers_go_where_numpy_takes_them(
    function, definition, dtype, width, axis
):
    x = drawn((8, width), dtype)
    x[0, 1] = 1000
    x[1] = -1000
    x[2, ::2] = -np.inf
    x[3] = -np.inf
    x[4, 0] = np.nan
    x[5, 1] = np.inf
    x[6, -2:] = -np.inf
    x = np.ascontiguousarray(x if axis else x.T)
    with np.errstate(all="ignore"):
        expected = definition(x.astype(np.float64), axis)
    close(forward(function, axis, up(x)), expected, dtype)


def cross_entropy(x, target, axis):
    picked = np.take_along_axis(log_softmax(x, axis), np.maximum(target, 0), axis)
    return np.where(target < 0, 0, -picked)


def labels(shape, axis):
    shape = [1 if i == axis else n for i, n in enumerate(shape)]
    return np.random.RandomState(2).randint(-1, 10**9, shape)


@every_dtype
@every_shape
def test_cross_entropy_and_its_gradient_agree_with_the_definition(shape, axis, dtype):
    x = drawn(shape, dtype)
    target = labels(shape, axis)
    target = np.where(target < 0, -1, target % shape[axis])
    target.flat[0] = -1 if target.size > 2 else 0
    wide = x.astype(np.float64)
    function, xp = twin(SoftmaxCrossEntropy.of(axis)), namespace(dtype)
    loss, peak, total = function.forward(xp, up(x), up(target))
    close(loss, cross_entropy(wide, target, axis), dtype)
    largest = wide.max(axis, keepdims=True)
    np.testing.assert_array_equal(peak.get(), largest)
    kept = {"e": "f"}.get(dtype, dtype)
    close(total, np.exp(wide - largest).sum(axis, keepdims=True), kept)
    for again in (up(x), moved(x)):
        results = function.forward(xp, again, up(target))
        for a, b in zip(results, (loss, peak, total), strict=True):
            same_bits(a, b)
    dy = drawn(target.shape, dtype, 1)
    kept = np.where(target < 0, 0, dy.astype(np.float64))
    position = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    expected = kept * (softmax(wide, axis) - (position == target))
    for place in (up, moved):
        dx = place(np.full(shape, np.nan, dtype))
        given = (up(dy), place(x), up(target), peak, total)
        function.backward(xp, None, *given, out=SimpleNamespace(x=dx))
        close(dx, expected, dtype)


def test_one_launch_each_way():
    for function, _ in FUNCTIONS:
        for shape, axis in SHAPES:
            x = up(drawn(shape, "f"))
            launches(lambda f=function, a=axis, x=x: forward(f, a, x), 1)
            launches(lambda f=function, a=axis, x=x: backward(f, a, x, x), 1)
    cross = twin(SoftmaxCrossEntropy.of(1))
    x, t = up(drawn((6, 10), "f")), up(np.zeros((6, 1), np.int64))
    xp = namespace("f")
    launches(lambda: cross.forward(xp, x, t), 2)  # one of them checks the labels
    out = SimpleNamespace(x=up(np.empty((6, 10), np.float32)))
    dy = t.astype(np.float32)
    launches(lambda: cross.backward(xp, None, dy, x, t, dy, dy + 1, out=out), 1)


@pytest.mark.parametrize("wrong", [5, -2, 2**40, -(2**40)])
@pytest.mark.parametrize(("shape", "axis"), [((3, 5), 1), ((2, 5, 4), 1)])
def test_a_label_out_of_range_is_reported_and_not_followed(wrong, shape, axis):
    target = np.zeros([1 if i == axis else n for i, n in enumerate(shape)], np.int64)
    target.flat[1] = wrong
    x = nn.Variable.from_numpy_array(drawn(shape, "f"), need_grad=True)
    loss = F.softmax_cross_entropy(x, nn.Variable.from_numpy_array(target), axis=axis)
    loss.forward()
    loss.backward()
    with pytest.raises(LabelError, match=re.escape(f"target holds {wrong:g} (1 of")):
        _ = loss.d


def test_empty_batches():
    for function, _ in FUNCTIONS:
        assert forward(function, 1, up(np.zeros((0, 4), "f"))).shape == (0, 4)
    cross = twin(SoftmaxCrossEntropy.of(1))
    results = cross.forward(
        namespace("f"), up(np.zeros((0, 4), "f")), up(np.zeros((0, 1), np.int64))
    )
    assert [a.shape for a in results] == [(0, 1)] * 3
