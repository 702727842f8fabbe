"""Compiled products with images where they lie: against the definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
from convolution_problem import case, errors, problem, results

import distnn as nn
from distnn.functions import im2col
from distnn.functions.im2col import Geometry
from distnn.namespace import NumpyNamespace

pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")

from distnn.cpu import pointwise
from distnn.cpu.pixel_tiles import ROWS
from distnn.cpu.pointwise import Pointwise

CASES = {
    "rows of one vector": case((2, 20, 3, 5), (18, 20, 1, 1)),
    "of two, the last whole": case((2, 5, 4, 8), (16, 5, 1, 1)),
    "of three and more": case((2, 5, 12, 13), (9, 5, 1, 1)),
    "several chunks of pixels": case((1, 3, 40, 40), (4, 3, 1, 1)),
    "several pieces of both sums": case((2, 140, 17, 16), (10, 140, 1, 1)),
    "several parts of rows": case((3, 3, 5, 5), (270, 3, 1, 1)),
    "the second factor has filters": case((9, 70, 6, 6), (30, 70, 1, 1)),
    "groups": case((2, 18, 7, 6), (20, 9, 1, 1), group=2),
    "stride": case((2, 17, 9, 8), (20, 17, 1, 1), stride=(2, 3)),
    "one axis": case((2, 30, 17), (20, 30, 1)),
    "three axes": case((2, 3, 3, 4, 5), (5, 3, 1, 1, 1), stride=(1, 2, 2)),
    "one pixel": case((3, 2, 1, 1), (3, 2, 1, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_agree_with_the_definition(name):
    p = problem(CASES[name])
    assert max(errors(p, results(p, Pointwise))) < 6e-7


def test_errors_are_of_the_size_of_those_of_numpy_and_pytorch():
    p = problem(CASES["several pieces of both sums"])
    ours = errors(p, results(p, Pointwise))
    numpy = errors(p, results(p, lambda *a: im2col.Patches(*a, np.dtype(np.float32))))
    assert all(a < 3 * b for a, b in zip(ours, numpy, strict=True))
    torch = pytest.importorskip("torch")
    x, w = (torch.tensor(a, requires_grad=True) for a in (p.x, p.w))
    y = torch.nn.functional.conv2d(x, w, torch.tensor(p.b))
    y.backward(torch.tensor(p.dy))
    theirs = errors(p, [t.detach().numpy() for t in (y, x.grad, w.grad)])
    assert all(a < 3 * b for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", ["several chunks of pixels", "several pieces of both sums"])
def test_the_number_of_threads_changes_no_bit(name):
    p, before = problem(CASES[name]), nn.get_num_threads()
    try:
        found = []
        for number in (1, 2, 7):
            nn.set_num_threads(number)
            found.append(results(p, Pointwise))
    finally:
        nn.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_an_empty_batch_has_gradients_of_zero():
    g = Geometry((0, 0), (1, 1), (1, 1), 1)
    x, y = np.empty((0, 4, 5, 5), np.float32), np.empty((0, 8, 5, 5), np.float32)
    w, dw = np.ones((8, 4, 1, 1), np.float32), np.full((8, 4, 1, 1), np.nan, np.float32)
    found = Pointwise(NumpyNamespace(), g, x.shape, w.shape)
    found.forward(x, w, None, y)
    found.gradients(y, x, w, x.copy(), dw)
    assert not dw.any()


def test_maps_beyond_32_bits_are_read_where_they_are():
    """The last pixels of three maps of 4.3 GB, of which the system gives only the touched pages."""
    rows, pixels = 3, 2**30 - 37
    x, y = np.zeros(rows * pixels, np.float32), np.zeros(pixels, np.float32)
    x[-40:] = np.arange(40)
    filters = np.zeros((rows, ROWS), np.float32)
    filters[:, 0] = 5, 6, 2
    chunk = 48
    last = -(-pixels // chunk)
    bias = np.ones(1 + ROWS, np.float32)
    pointwise.multiply(
        filters.reshape(-1),
        x,
        np.arange(rows) * pixels,
        bias,
        y,
        1,
        1,
        rows,
        pixels,
        chunk,
        last - 1,
        last,
    )
    count = pixels - (last - 1) * chunk
    np.testing.assert_array_equal(y[-count:], 1 + 2 * x[-count:])
    assert not y[-count - 40 : -count].any()


def test_suits_long_maps_and_kernels_of_one_pixel():
    g = Geometry((0, 0), (1, 1), (1, 1), 1)
    assert pointwise.suits(g, (1, 8, 16, 16), (8, 8, 1, 1))
    assert not pointwise.suits(g, (1, 8, 16, 16), (8, 8, 1, 3))
    assert not pointwise.suits(g, (1, 1024, 16, 16), (256, 1024, 1, 1))
    assert not pointwise.suits(g._replace(pad=(1, 0)), (1, 8, 16, 16), (8, 8, 1, 1))
    assert not pointwise.suits(g._replace(stride=(2, 2)), (1, 8, 16, 16), (8, 8, 1, 1))
