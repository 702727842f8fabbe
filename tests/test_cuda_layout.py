"""Layouts: the axes that are left stand for the same elements, and arrays are told apart."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distnn.cuda.layout import HELD, ONE, ROWS, SAME, STRIDED, Layout, layout


@st.composite
def arrays(draw):
    """A shape, and arrays as (shape, strides) that broadcast to it."""
    shape = draw(st.lists(st.integers(1, 4), max_size=4))
    found = []
    for _ in range(draw(st.integers(0, 3))):
        own = [draw(st.sampled_from([1, n])) for n in shape][draw(st.integers(0, len(shape))) :]
        strides = [math.prod(own[i + 1 :]) for i in range(len(own))]
        if draw(st.booleans()):
            strides = [draw(st.integers(-3, 12)) for _ in own]
        found.append((tuple(own), tuple(strides)))
    return tuple(shape), found


def offsets(shape, own, strides):
    """Where the element of an array lies for each element of `shape`, in C order."""
    missing = len(shape) - len(own)
    kept = [0] * missing + [0 if n == 1 else s for n, s in zip(own, strides, strict=True)]
    return [
        sum(i * s for i, s in zip(index, kept, strict=True))
        for index in itertools.product(*map(range, shape))
    ]


def offsets_of(found: Layout, i):
    kind, kept = found.kinds[i], found.strides[i]
    if kind == SAME:
        return list(range(found.size))
    inner = {ONE: (0,) * len(found.lengths), ROWS: (1,), HELD: (0,), STRIDED: ()}[kind]
    return offsets(found.lengths, found.lengths, (*kept, *inner))


@given(arrays())
def test_a_layout_stands_for_the_same_elements(case):
    shape, given_arrays = case
    found = layout(shape, given_arrays)
    assert found.size == math.prod(shape) == math.prod(found.lengths)
    for i, array in enumerate(given_arrays):
        assert offsets_of(found, i) == offsets(shape, *array)


@pytest.mark.parametrize(
    ("shape", "given_arrays", "lengths", "kinds"),
    [
        ((2, 3, 4), [((2, 3, 4), (12, 4, 1)), ((2, 3, 4), (12, 4, 1))], (24,), (SAME, SAME)),
        ((2, 3, 4), [((2, 3, 4), (12, 4, 1)), ((1, 1, 1), (1, 1, 1))], (24,), (SAME, ONE)),
        ((2, 3, 4), [((2, 3, 4), (12, 4, 1)), ((4,), (1,))], (6, 4), (SAME, ROWS)),
        ((2, 3, 4), [((2, 3, 4), (12, 4, 1)), ((3, 1), (1, 1))], (2, 3, 4), (SAME, HELD)),
        ((4, 3), [((4, 3), (1, 4))], (4, 3), (STRIDED,)),
        ((5, 1), [((5, 1), (2, 1))], (5,), (STRIDED,)),
        ((), [((), ())], (), (SAME,)),
    ],
)
def test_axes_are_joined_and_arrays_told_apart(shape, given_arrays, lengths, kinds):
    found = layout(shape, given_arrays)
    assert found.lengths == lengths
    assert found.kinds == kinds


def test_packs_need_rows_of_whole_packs():
    rows = layout((6, 8), [((6, 8), (8, 1)), ((8,), (1,)), ((6, 1), (1, 1))])
    assert rows.packs(4)
    assert rows.packs(8)
    assert not layout((6, 7), [((6, 7), (7, 1)), ((7,), (1,))]).packs(4)
    assert not layout((6, 8), [((6, 8), (9, 1))]).packs(4)  # rows begin anywhere
    assert layout((6, 8), [((6, 8), (12, 1))]).packs(4)
    assert layout((7,), [((7,), (1,))]).packs(4)  # what is left over is done singly
    assert not layout((8,), [((8,), (2,))]).packs(4)
