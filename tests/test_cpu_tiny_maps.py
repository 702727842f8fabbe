"""Compiled convolutions whose lanes are images: against the definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
from convolution_problem import case, errors, problem, results

import distnn as nn
from distnn.functions import im2col
from distnn.functions.im2col import Geometry

pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")

from distnn.cpu import tiny_maps
from distnn.cpu.tiny_maps import TinyMaps

CASES = {
    "mostly padding": case((32, 20, 2, 2), (18, 20, 3, 3), pad=(1, 1)),
    "stride 2": case((15, 17, 4, 5), (20, 17, 3, 3), pad=(1, 1), stride=(2, 2)),
    "dilated": case((5, 3, 4, 4), (4, 3, 2, 2), pad=(1, 1), dilation=(2, 3)),
    "many images": case((70, 3, 2, 3), (9, 3, 2, 2)),
    "several pieces of a sum": case((3, 300, 2, 2), (9, 300, 2, 2), pad=(1, 1)),
    "one pixel": case((16, 3, 1, 1), (4, 3, 3, 3), pad=(1, 1)),
    "windows of padding": case((4, 3, 1, 2), (4, 3, 2, 2), pad=(3, 2)),
    "unread pixels": case((4, 3, 5, 5), (4, 3, 2, 2), stride=(3, 3)),
    "one axis": case((6, 4, 6), (5, 4, 3), pad=(1,), stride=(3,)),
    "three axes": case((2, 4, 2, 3, 2), (5, 4, 2, 3, 2), pad=(1, 0, 1), stride=(1, 2, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_agree_with_the_definition(name):
    p = problem(CASES[name])
    assert max(errors(p, results(p, TinyMaps))) < 6e-7


def test_errors_are_of_the_size_of_those_of_numpy_and_pytorch():
    p = problem(CASES["several pieces of a sum"])
    ours = errors(p, results(p, TinyMaps))
    numpy = errors(p, results(p, lambda *a: im2col.Patches(*a, np.dtype(np.float32))))
    assert all(a < 3 * b for a, b in zip(ours, numpy, strict=True))
    torch = pytest.importorskip("torch")
    x, w = (torch.tensor(a, requires_grad=True) for a in (p.x, p.w))
    y = torch.nn.functional.conv2d(x, w, torch.tensor(p.b), 1, 1)
    y.backward(torch.tensor(p.dy))
    theirs = errors(p, [t.detach().numpy() for t in (y, x.grad, w.grad)])
    assert all(a < 3 * b for a, b in zip(ours, theirs, strict=True))


def test_the_number_of_threads_changes_no_bit():
    p, before = problem(CASES["mostly padding"]), nn.get_num_threads()
    try:
        found = []
        for number in (1, 2, 7):
            nn.set_num_threads(number)
            found.append(results(p, TinyMaps))
    finally:
        nn.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_suits_small_maps_of_many_images():
    g, w = Geometry((1, 1), (1, 1), (1, 1), 1), (64, 64, 3, 3)
    assert tiny_maps.suits(g, (32, 64, 2, 2), w)
    assert tiny_maps.suits(g._replace(stride=(2, 2)), (12, 64, 8, 8), w)
    assert not tiny_maps.suits(g, (32, 64, 8, 8), w)
    assert not tiny_maps.suits(g, (8, 64, 2, 2), w)
    assert not tiny_maps.suits(g, (0, 64, 2, 2), w)
    assert not tiny_maps.suits(g._replace(group=2), (32, 64, 2, 2), (64, 32, 3, 3))
    assert not tiny_maps.suits(g, (32, 4, 2, 2), (64, 4, 3, 3))
