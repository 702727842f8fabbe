"""Rows picked and summed by index on a GPU, against loops over the definition."""

from __future__ import annotations

import re

import numpy as np
import pytest
from cases_indexing import one_hot, top_n_error

import distnn as nn
import distnn.functions as F
from distnn.errors import LabelError
from distnn.functions.indexing import Embed, Gather, OneHot, ScatterAdd, TopNError

pytestmark = pytest.mark.usefixtures("gpu")

# (shape of x, axis, shape of indices)
SHAPES = [
    ((5,), 0, (7,)),
    ((5, 3), 0, (2, 4)),
    ((2, 5, 3), 1, (6,)),
    ((2, 5, 3), 1, ()),
    ((2, 3, 5), 2, (4, 1, 2)),
    ((40, 70), 0, (300,)),
    ((3, 5), 0, (0,)),
    ((0, 5, 3), 1, (4,)),
    ((5, 0), 0, (4,)),
]


@pytest.fixture(params=[np.int32, np.int64], ids=["int32", "int64"], autouse=True)
def counted(request, monkeypatch, gpu):
    """Kernels count elements in each of their two ways."""
    from distnn.cuda import indexing

    monkeypatch.setattr(indexing, "index_dtype", lambda *sizes: np.dtype(request.param))


def run(function, *arrays, out=None):
    import cupy

    from distnn.context import current_backend
    from distnn.cuda.twin import implementation

    given = {} if out is None else {"out": cupy.asarray(out)}
    xp = current_backend().xp
    found = implementation(function).forward(xp, *map(cupy.asarray, arrays), **given)
    assert found is given.get("out", found)
    return found.get()


def drawn(shape, length, index_shape, char):
    rng = np.random.RandomState(0)
    return rng.randint(-9, 10, shape).astype(char), rng.randint(-length, length, index_shape)


@pytest.mark.parametrize("char", "efd")
@pytest.mark.parametrize(("shape", "axis", "index_shape"), SHAPES)
def test_gather_picks_rows(shape, axis, index_shape, char):
    x, index = drawn(shape, shape[axis], index_shape, char)
    expected = x[(slice(None),) * axis + (index,)]
    found = run(Gather.of(axis), x, index)
    assert found.dtype == char
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(
        run(Gather.of(axis), x, index, out=np.full(expected.shape, 77, char)), expected
    )
    if axis == 0:
        np.testing.assert_array_equal(run(Embed.of(), index, x), expected)


@pytest.mark.parametrize("char", "efd")
@pytest.mark.parametrize(("shape", "axis", "index_shape"), SHAPES)
def test_scatter_add_sums_rows(shape, axis, index_shape, char):
    _, index = drawn(shape, shape[axis], index_shape, char)
    rows = (*shape[:axis], *index_shape, *shape[axis + 1 :])
    x = np.random.RandomState(1).randint(-9, 10, rows).astype(char)
    expected = np.zeros(shape)
    for a in np.ndindex(shape[:axis]):
        for k in np.ndindex(index_shape):
            expected[(*a, index[k])] += x[(*a, *k)]
    found = run(ScatterAdd.of(axis, shape[axis]), x, index)
    assert found.dtype == char
    np.testing.assert_array_equal(found, expected)
    out = np.full(shape, 77, char)
    np.testing.assert_array_equal(
        run(ScatterAdd.of(axis, shape[axis]), x, index, out=out), expected
    )


@pytest.mark.parametrize("char", "efd")
def test_many_rows_of_one_index_are_added_in_their_order_in_blocks(char):
    """64 at a time, in float32 for float16, rounded once."""
    count, computed = 1000, np.float64 if char == "d" else np.float32
    rng = np.random.RandomState(2)
    x, index = rng.standard_normal((count, 3)).astype(char), rng.randint(0, 4, count)
    index[100:900] = 2
    expected = np.zeros((4, 3), char)
    for n in range(4):
        total = np.zeros(3, computed)
        rows = x[index == n].astype(computed)
        for start in range(0, len(rows), 64):
            part = np.zeros(3, computed)
            for row in rows[start : start + 64]:
                part = part + row
            total = total + part
        expected[n] = total
    np.testing.assert_array_equal(run(ScatterAdd.of(0, 4), x, index), expected)


@pytest.mark.parametrize("char", "efd")
@pytest.mark.parametrize("shape", [(), (5,), (2, 70), (3, 1, 4)])
def test_one_hot_codes(shape, char):
    rng = np.random.RandomState(3)
    x = np.zeros((6, 7, len(shape)), np.int64)
    for axis, length in enumerate(shape):
        x[..., axis] = rng.randint(-length, length, (6, 7))
    found = run(OneHot.of(shape), x, out=np.full((6, 7, *shape), 77, char))
    np.testing.assert_array_equal(found, one_hot(x, shape))


@pytest.mark.parametrize("char", "efd")
@pytest.mark.parametrize(
    ("shape", "axis"), [((6, 4), 1), ((2, 5, 3), 1), ((4, 700), 1), ((3, 1), 0)]
)
def test_top_n_errors(shape, axis, char):
    rng = np.random.RandomState(4)
    x = rng.randint(-9, 9, shape).astype(char)
    target = rng.randint(-1, shape[axis], [1 if a == axis else n for a, n in enumerate(shape)])
    for n in (1, 3, 40):
        found = run(TopNError.of(axis, n), x, target)
        assert found.dtype == char
        np.testing.assert_array_equal(found, top_n_error(x, target, axis, n))


@pytest.mark.parametrize(
    ("call", "index"),
    [
        (lambda x, i: F.gather(x, i, axis=1), 4),
        (lambda x, i: F.gather(x, i, axis=1), -5),
        (lambda x, i: F.embed(i, x), 3),
        (lambda x, i: F.one_hot(F.reshape(i, (-1, 1)), (2,)), 2**40),
    ],
)
def test_an_index_out_of_range_raises_when_the_result_is_read(call, index):
    """And reads and writes no other memory until then."""
    x = nn.Variable((3, 4), need_grad=True)
    x.d = 1
    i = nn.Variable.from_numpy_array(np.array([0, index, 1]))
    y = call(x, i)
    y.forward()
    if y.need_grad:
        y.backward()
    with pytest.raises(
        LabelError, match=re.escape(f"index {index:g} is out of range (1 of 3 are)")
    ):
        y.d  # noqa: B018
    y.d  # noqa: B018  # once


def test_a_repeated_gradient_has_the_same_bits():
    rng = np.random.RandomState(3)
    values, index = rng.standard_normal((500, 30)), rng.randint(0, 7, 500)

    def gradient():
        table = nn.Variable.from_numpy_array(np.zeros((7, 30)), need_grad=True)
        loss = F.sum(
            F.embed(nn.Variable.from_numpy_array(index), table)
            * nn.Variable.from_numpy_array(values)
        )
        loss.forward()
        loss.backward()
        return table.g.copy()

    first = gradient()
    np.testing.assert_array_equal(first, gradient())
    expected = np.zeros((7, 30))
    np.add.at(expected, index, values)
    np.testing.assert_allclose(first, expected, rtol=1e-5, atol=1e-4)
