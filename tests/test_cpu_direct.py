"""Compiled convolutions of images of few channels: against the definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
from convolution_problem import case, errors, problem, results

import distnn as nn
from distnn.functions import im2col
from distnn.functions.im2col import Geometry
from distnn.namespace import NumpyNamespace

pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")

from distnn.cpu import direct
from distnn.cpu.direct import Direct

CASES = {
    "7x7, stride 2": case((2, 3, 37, 67), (9, 3, 7, 7), pad=(3, 3), stride=(2, 2)),
    "3x3": case((2, 2, 5, 40), (20, 2, 3, 3), pad=(1, 1)),
    "stride 3, dilated": case((2, 2, 13, 50), (5, 2, 3, 3), stride=(2, 3), dilation=(2, 2)),
    "stride above the kernel": case((2, 3, 11, 20), (8, 3, 2, 2), stride=(3, 4)),
    "windows of padding": case((2, 3, 4, 3), (4, 3, 3, 3), pad=(5, 20), stride=(2, 1)),
    "unread pixels": case((1, 2, 10, 12), (3, 2, 2, 3), stride=(4, 5)),
    "several pieces of a sum": case((1, 6, 20, 33), (3, 6, 7, 7), pad=(3, 3)),
    "several parts of rows": case((1, 4, 300, 33), (17, 4, 3, 2), pad=(1, 1)),
    "one pixel": case((3, 2, 1, 1), (3, 2, 3, 3), pad=(1, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_agree_with_the_definition(name):
    p = problem(CASES[name])
    assert max(errors(p, results(p, Direct))) < 6e-7


def test_errors_are_of_the_size_of_those_of_numpy_and_pytorch():
    p = problem(CASES["7x7, stride 2"])
    ours = errors(p, results(p, Direct))
    numpy = errors(p, results(p, lambda *a: im2col.Patches(*a, np.dtype(np.float32))))
    assert all(a < 3 * b for a, b in zip(ours, numpy, strict=True))
    torch = pytest.importorskip("torch")
    x, w = (torch.tensor(a, requires_grad=True) for a in (p.x, p.w))
    y = torch.nn.functional.conv2d(x, w, torch.tensor(p.b), 2, 3)
    y.backward(torch.tensor(p.dy))
    theirs = errors(p, [t.detach().numpy() for t in (y, x.grad, w.grad)])
    assert all(a < 3 * b for a, b in zip(ours, theirs, strict=True))


def test_the_number_of_threads_changes_no_bit():
    p, before = problem(CASES["several parts of rows"]), nn.get_num_threads()
    try:
        found = []
        for number in (1, 2, 7):
            nn.set_num_threads(number)
            found.append(results(p, Direct))
    finally:
        nn.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_an_empty_batch_has_gradients_of_zero():
    g, w = Geometry((1, 1), (1, 1), (1, 1), 1), np.ones((8, 3, 3, 3), np.float32)
    x, y = np.empty((0, 3, 5, 40), np.float32), np.empty((0, 8, 5, 40), np.float32)
    dw = np.full(w.shape, np.nan, np.float32)
    found = Direct(NumpyNamespace(), g, x.shape, w.shape)
    found.forward(x, w, None, y)
    found.gradients(y, x, w, x.copy(), dw)
    assert not dw.any()


def test_maps_beyond_32_bits_are_read_and_written_where_they_are():
    """The last rows of an image of 8.6 GB, of which the system gives only the touched pages."""
    shape = (1, 1, 2**24, 130)
    s = direct.Sizes(Geometry((0, 0), (1, 2), (1, 1), 1), shape, (1, 1, 1, 2))
    x = np.zeros(shape[2] * shape[3], np.float32)
    x[-130:] = np.arange(130)
    y = np.zeros(s.planes.rows * s.planes.columns, np.float32)
    filters = np.zeros((2, direct.ROWS), np.float32)
    filters[:, 0] = 1, 2
    bias, room = np.ones(direct.ROWS, np.float32), np.empty(s.room, np.float32)
    direct.correlate(
        x, filters.reshape(-1), s.places, bias, s.planes, 1, 2, room, y, s.parts - 1, s.parts
    )
    np.testing.assert_array_equal(y[-65:], 1 + x[-130::2] + 2 * x[-129::2])


def test_suits_images_of_few_channels_and_wide_results():
    g = Geometry((3, 3), (2, 2), (1, 1), 1)
    assert direct.suits(g, (1, 3, 64, 64), (64, 3, 7, 7))
    assert not direct.suits(g, (1, 3, 64, 60), (64, 3, 7, 7))
    assert not direct.suits(g, (1, 16, 64, 64), (64, 16, 7, 7))
    assert not direct.suits(g._replace(group=3), (1, 3, 64, 64), (64, 1, 7, 7))
    assert not direct.suits(g._replace(pad=(0, 0)), (1, 3, 64, 64), (64, 3, 1, 1))
