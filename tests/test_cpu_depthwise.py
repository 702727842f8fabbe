"""Compiled convolution with a filter for each channel: against the definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
from convolution_problem import case, errors, problem, results

import distnn as nn
import distnn.functions as F

pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")

from distnn.cpu.depthwise import Depthwise, suits

CASES = {
    "3x3": case((2, 7, 20, 35), (7, 1, 3, 3), pad=(1, 1), group=7),
    "3x3, stride 2": case((3, 5, 9, 40), (5, 1, 3, 3), pad=(1, 1), stride=(2, 2), group=5),
    "rows of few pixels": case((2, 6, 7, 7), (6, 1, 3, 3), pad=(1, 1), group=6),
    "rows of few pixels, stride 2": case(
        (2, 6, 8, 7), (6, 1, 3, 3), pad=(1, 1), stride=(2, 2), group=6
    ),
    "5x4, dilated": case((2, 3, 21, 18), (3, 1, 5, 4), pad=(3, 4), dilation=(2, 3), group=3),
    "strides that differ": case((1, 3, 16, 33), (3, 1, 3, 2), stride=(5, 2), group=3),
    "stride above the kernel": case((2, 3, 9, 9), (3, 1, 1, 1), stride=(2, 2), group=3),
    "windows of padding": case((2, 3, 2, 3), (3, 1, 3, 3), pad=(7, 6), stride=(1, 2), group=3),
    "one pixel": case((2, 4, 1, 1), (4, 1, 3, 3), pad=(1, 1), group=4),
    "one axis": case((2, 4, 50), (4, 1, 5), pad=(2,), stride=(2,), group=4),
}


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_agree_with_the_definition(name):
    p = problem(CASES[name])
    assert suits(p.geometry, p.x.shape, p.w.shape)
    assert max(errors(p, results(p, Depthwise))) < 2e-7


def test_the_number_of_threads_changes_no_bit():
    p, before = problem(CASES["3x3, stride 2"]), nn.get_num_threads()
    found = []
    try:
        for number in (1, 5):
            nn.set_num_threads(number)
            found.append(results(p, Depthwise))
    finally:
        nn.set_num_threads(before)
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_infinite_pixel_is_seen_by_the_taps_that_read_it_only():
    p = problem(CASES["rows of few pixels"])
    p.x[0, 0, 0, 0] = np.inf
    _, _, dw = results(p, Depthwise)
    # With a padding of one the first pixel is read by four of nine taps.
    assert np.isfinite(dw[0, 0]).sum() == 5
    assert np.isfinite(dw[1:]).all()


def test_functions_take_it(monkeypatch):
    before = nn.get_cpu_kernels()
    nn.set_cpu_kernels("numba")
    calls = []
    for name in ("forward", "gradients"):
        method = getattr(Depthwise, name)
        monkeypatch.setattr(
            Depthwise, name, lambda *a, n=name, m=method, **k: calls.append(n) or m(*a, **k)
        )
    try:
        x = nn.Variable((2, 32, 16, 16), need_grad=True)
        w = nn.Variable((32, 1, 3, 3), need_grad=True)
        x.d = w.d = 1
        y = F.convolution(x, w, pad=(1, 1), group=32)
        y.forward()
        y.backward()
    finally:
        nn.set_cpu_kernels(before)
    assert calls == ["forward", "gradients"]
    assert y.d[0, 0, 5, 5] == 9
    assert w.g[0, 0, 1, 1] == 2 * 16 * 16
