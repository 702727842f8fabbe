"""Compiled products over patches: against the definition in float64, for kernels of all kinds."""

from __future__ import annotations

import numpy as np
import pytest
from convolution_problem import case, errors
from convolution_problem import problem as problem_of
from convolution_problem import results as results_of

import distnn as nn
from distnn.functions import im2col
from distnn.functions.im2col import Geometry
from distnn.namespace import NumpyNamespace

pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")

from distnn.cpu import correlation, patches
from distnn.cpu.patches import Patches

xp = NumpyNamespace()


def problem(name):
    return problem_of(CASES[name])


def results(p):
    return results_of(p, Patches)


def of_numpy(p):
    return results_of(p, lambda *a: im2col.Patches(*a, np.dtype(np.float32)))


CASES = {
    "1x1": case((3, 20, 5, 7), (18, 20, 1, 1)),
    "1x1 of large maps": case((2, 5, 12, 13), (9, 5, 1, 1)),
    "1x1, stride 2": case((3, 17, 9, 8), (20, 17, 1, 1), stride=(2, 2)),
    "3x3, stride 2": case((2, 9, 8, 11), (20, 9, 3, 3), pad=(1, 1), stride=(2, 2)),
    "7x7, stride 2": case((2, 3, 37, 36), (9, 3, 7, 7), pad=(3, 3), stride=(2, 2)),
    "5x5": case((2, 4, 9, 6), (6, 4, 5, 5), pad=(2, 2)),
    "dilated": case((2, 6, 9, 10), (5, 6, 3, 3), pad=(2, 2), dilation=(2, 2)),
    "dilated, stride 3": case((2, 6, 13, 10), (5, 6, 3, 3), stride=(3, 3), dilation=(2, 2)),
    "groups": case((2, 12, 7, 6), (20, 3, 3, 3), pad=(1, 1), group=4),
    "a channel each": case((3, 18, 7, 6), (36, 1, 3, 3), pad=(1, 1), group=18),
    "one axis": case((3, 4, 40), (5, 4, 3), pad=(1,), stride=(3,)),
    "three axes": case((2, 4, 5, 6, 7), (5, 4, 2, 3, 2), pad=(1, 0, 1), stride=(1, 2, 3)),
    "stride above the kernel": case((2, 4, 11, 10), (8, 4, 2, 2), stride=(3, 4)),
    "windows of padding": case((2, 3, 4, 3), (4, 3, 3, 3), pad=(5, 4), stride=(2, 1)),
    "one pixel": case((1, 1, 1, 1), (1, 1, 1, 1)),
    "one pixel, 3x3": case((5, 3, 1, 1), (7, 3, 3, 3), pad=(1, 1)),
    "several pieces of a sum": case((3, 60, 4, 5), (17, 60, 3, 3), pad=(1, 1)),
    "many filters": case((2, 20, 3, 4), (300, 20, 1, 1)),
    "many addends": case((1, 600, 2, 3), (5, 600, 1, 1)),
    "several sums of gradients": case((5, 2, 20, 31), (3, 2, 2, 2), stride=(1, 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_agree_with_the_definition(name):
    p = problem(name)
    assert max(errors(p, results(p))) < 4e-7


@pytest.mark.parametrize("name", ["3x3, stride 2", "several pieces of a sum", "many addends"])
def test_errors_are_of_the_size_of_those_of_numpy(name):
    p = problem(name)
    for ours, numpy in zip(errors(p, results(p)), errors(p, of_numpy(p)), strict=True):
        assert ours < 3 * numpy


def test_errors_are_of_the_size_of_those_of_pytorch():
    torch = pytest.importorskip("torch")
    p = problem("several pieces of a sum")
    x, w = (torch.tensor(a, requires_grad=True) for a in (p.x, p.w))
    y = torch.nn.functional.conv2d(x, w, torch.tensor(p.b), padding=1)
    y.backward(torch.tensor(p.dy))
    theirs = errors(p, [t.detach().numpy() for t in (y, x.grad, w.grad)])
    for a, b in zip(errors(p, results(p)), theirs, strict=True):
        assert a < 1.5 * b + 2e-8


@pytest.fixture
def threads():
    before = nn.get_num_threads()
    yield nn.set_num_threads
    nn.set_num_threads(before)


@pytest.mark.parametrize("name", ["1x1", "3x3, stride 2", "groups", "several sums of gradients"])
def test_the_number_of_threads_changes_no_bit(name, threads):
    p = problem(name)
    found = []
    for number in (1, 2, 7):
        threads(number)
        found.append(results(p))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_inputs_may_be_views_that_lie_anywhere_and_cannot_be_written():
    p = problem("3x3, stride 2")
    expected = results(p)
    for name in ("x", "w", "b", "dy"):
        a = getattr(p, name)
        odd = np.zeros(a.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(a.shape)  # unaligned
        odd[...] = a
        odd.flags.writeable = False
        setattr(p, name, odd)
    for a, b in zip(results(p), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    for name in ("x", "w", "b", "dy"):
        wide = np.repeat(getattr(p, name), 2, axis=-1)[..., ::2]
        setattr(p, name, wide)
    for a, b in zip(results(p), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_empty_batch_has_no_results_and_gradients_of_zero():
    shape, w_shape, g = (0, 4, 9, 9), (8, 4, 3, 3), Geometry((1, 1), (2, 2), (1, 1), 1)
    found = Patches(xp, g, shape, w_shape)
    x, y, w = np.empty(shape, np.float32), np.empty((0, 8, 5, 5), np.float32), np.ones(w_shape)
    w = w.astype(np.float32)
    found.forward(x, w, None, y)
    dw = np.full(w_shape, np.nan, np.float32)
    found.gradients(y, x, w, x.copy(), dw)
    assert not dw.any()


def test_maps_beyond_32_bits_are_read_and_written_where_they_are():
    """The last parts of an image of 8.6 GB, of which the system gives only the touched pages."""
    rows, columns = 3, 2**30 - 64
    s = patches.Sizes(Geometry((0,), (1,), (1,), 1), (1, rows, columns), (1, rows, 2))
    c = s.forward
    x = np.zeros(rows * columns, np.float32)
    x[-40:] = np.arange(40)
    w = np.array([0, 0, 0, 0, 1, 2], np.float32)
    y = np.zeros(columns - 1, np.float32)
    filters = np.empty(patches.ROWS * 16, np.float32)
    correlation.cut_filters(w, filters, 1, 6, 0, 1)
    cut = correlation.Cut(4, patches.ROWS)
    room = np.empty(4 * 300 * 16, np.float32)
    parts = -(-(columns - 1) // 64)
    correlation.correlate(
        x, c.window, c.offsets, filters, np.ones(1, np.float32), y, c.target, cut, room,
        room.copy(), parts - 1, parts,
    )  # fmt: skip
    last = x[-40:]
    np.testing.assert_array_equal(y[-39:], 1 + last[:-1] + 2 * last[1:])
