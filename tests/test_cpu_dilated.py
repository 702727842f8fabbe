"""Dilated 3x3 convolutions by Winograd's way, phase by phase: against the definition in float64."""

from __future__ import annotations

import numpy as np
import pytest
from convolution_problem import case, errors, problem, results

from distnn.functions.convolution import Convolution as NumpyConvolution
from distnn.functions.im2col import Geometry
from distnn.namespace import NumpyNamespace

pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")

from distnn.cpu import dilated
from distnn.cpu.convolution import Convolution
from distnn.cpu.dilated import Dilated

CASES = {
    "even phases": case((2, 5, 12, 8), (6, 5, 3, 3), pad=(2, 2), dilation=(2, 2)),
    "uneven phases": case((2, 17, 13, 9), (18, 17, 3, 3), pad=(2, 4), dilation=(2, 4)),
    "without padding": case((1, 3, 11, 15), (4, 3, 3, 3), dilation=(3, 2)),
    "of rows alone": case((1, 3, 11, 6), (4, 3, 3, 3), pad=(3, 1), dilation=(3, 1)),
    "fewer results than phases": case((2, 3, 7, 8), (4, 3, 3, 3), dilation=(3, 3)),
    "more padding than pixels": case((2, 3, 2, 1), (4, 3, 3, 3), pad=(4, 4), dilation=(2, 2)),
    "one pixel": case((3, 2, 1, 1), (3, 2, 3, 3), pad=(2, 2), dilation=(2, 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_agree_with_the_definition(name):
    p = problem(CASES[name])
    assert max(errors(p, results(p, Dilated))) < 3e-6  # Winograd's


def test_gradients_are_computed_one_without_the_other():
    p = problem(CASES["uneven phases"])
    _, dx, dw = results(p, Dilated)
    found = Dilated(NumpyNamespace(), p.geometry, p.x.shape, p.w.shape)
    alone = np.empty_like(dx), np.empty_like(dw)
    found.gradients(p.dy, None, p.w, alone[0], None)
    found.gradients(p.dy, p.x, None, None, alone[1])
    # How images are grouped depends on what is asked for.
    np.testing.assert_allclose(alone[0], dx, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(alone[1], dw, rtol=1e-4, atol=1e-4)


def test_phases_are_taken_where_pads_allow_it():
    x, w = (8, 64, 28, 28), (64, 64, 3, 3)

    def chosen(**geometry):
        g = Geometry((2, 2), (1, 1), (2, 2), 1)._replace(**geometry)
        function = Convolution(NumpyConvolution.of(g, False))
        return type(function.algorithm(NumpyNamespace(), x, w, np.dtype(np.float32)))

    assert chosen() is Dilated
    assert chosen(pad=(4, 0)) is Dilated
    assert chosen(pad=(1, 2)) is not Dilated
    assert chosen(stride=(2, 2)) is not Dilated
    assert not dilated.suits(Geometry((1, 2), (1, 1), (2, 2), 1), x, w)
