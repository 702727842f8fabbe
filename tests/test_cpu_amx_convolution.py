"""Convolutions by tile registers: against the definition in float64."""

from __future__ import annotations

import itertools
import math

import cases_convolution
import numpy as np
import pytest

import distnn as nn
import distnn.functions as F

pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")
pytest.importorskip("ml_dtypes")

import ml_dtypes

from distnn.cpu import amx, bfloat16_convolution
from distnn.cpu.amx_convolution import Tiles
from distnn.functions.im2col import Geometry

pytestmark = [
    pytest.mark.skipif(not amx.available(), reason="needs a processor with AMX"),
    pytest.mark.usefixtures("on_cpu"),
]


class Problem:
    """Numbers of bfloat16, and results and gradients from the definition in float64."""

    def __init__(self, x_shape, filters, kernel, pad, stride, dilation):
        rng = np.random.default_rng(0)

        def normal(*shape):
            return rng.standard_normal(shape).astype(ml_dtypes.bfloat16)

        self.geometry = Geometry(pad, stride, dilation, 1)
        self.x, self.w = normal(*x_shape), normal(filters, x_shape[1], *kernel)
        self.b = normal(filters)
        x, w, b = (a.astype(np.float64) for a in (self.x, self.w, self.b))
        self.y = cases_convolution.convolution(x, w, b, pad, stride, dilation)
        self.dy = normal(*self.y.shape)
        dy = self.dy.astype(np.float64)
        edges = [(0, 0), (0, 0), *((p, p) for p in pad)]
        padded = np.pad(x, edges)
        dx = np.zeros(padded.shape)
        self.dw = np.zeros(w.shape)
        for k in itertools.product(*map(range, kernel)):
            seen = tuple(
                slice(t * d, t * d + (o - 1) * s + 1, s)
                for t, d, s, o in zip(k, dilation, stride, dy.shape[2:], strict=True)
            )
            window = padded[(..., *seen)]
            of_filters = (slice(None), slice(None), *k)
            self.dw[of_filters] = np.einsum("nf...,nc...->fc", dy, window, optimize=True)
            dx[(..., *seen)] += np.einsum("nf...,fc->nc...", dy, w[of_filters], optimize=True)
        self.dx = dx[tuple(slice(a, n - b) for (a, b), n in zip(edges, dx.shape, strict=True))]

    def check(self, dw_dtype=np.float32):
        tiles = Tiles(self.geometry, self.x.shape, self.w.shape)
        y, dx = np.empty(self.y.shape, self.x.dtype), np.empty(self.x.shape, self.x.dtype)
        dw = np.empty(self.w.shape, dw_dtype)
        tiles.forward(self.x, self.w, self.b, y)
        tiles.gradients(self.dy, self.x, self.w, dx, dw)
        near(y, self.y)
        near(dx, self.dx)
        near(dw, self.dw)
        return y, dx, dw


def near(found, exact):
    """Products of bfloat16 are exact in float32: sums of float32, and one rounding."""
    digits = 2.0**-8 if found.dtype == ml_dtypes.bfloat16 else 1e-5
    np.testing.assert_allclose(
        found.astype(np.float64), exact, rtol=digits, atol=1e-6 * np.abs(exact).max()
    )


SHAPES = {
    "3x3": ((64, 32, 8, 8), 32, (3, 3), (1, 1), (1, 1), (1, 1)),
    "channels and images that fill no tile": ((33, 3, 9, 7), 40, (3, 3), (1, 1), (2, 2), (1, 1)),
    "dilated": ((20, 33, 6, 8), 5, (2, 3), (0, 2), (1, 2), (2, 1)),
    "many groups": ((200, 8, 13), 40, (5,), (2,), (2,), (1,)),
    "3-D": ((20, 8, 3, 4, 5), 40, (2, 2, 3), (1, 0, 1), (1, 1, 1), (1, 1, 1)),
    "1x1": ((40, 64, 9, 9), 64, (1, 1), (0, 0), (1, 1), (1, 1)),
    "one pixel": ((32, 40, 1, 1), 40, (3, 3), (1, 1), (1, 1), (1, 1)),
    "results of padding alone": ((32, 4, 2, 2), 4, (1, 1), (2, 2), (1, 1), (1, 1)),
    "pixels that no window sees": ((32, 4, 5, 5), 4, (1, 1), (0, 0), (2, 2), (1, 1)),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_results_and_gradients_agree_with_the_definition(shape):
    Problem(*shape).check()


def test_the_number_of_threads_changes_no_bit():
    problem = Problem((200, 40, 5, 5), 40, (3, 3), (1, 1), (1, 1), (1, 1))
    before, found = nn.get_num_threads(), []
    for threads in (1, 2, 4):
        nn.set_num_threads(threads)
        found.append(problem.check(ml_dtypes.bfloat16))
    nn.set_num_threads(before)
    for arrays in zip(*found, strict=True):
        for array in arrays[1:]:
            np.testing.assert_array_equal(array.view(np.uint16), arrays[0].view(np.uint16))


@pytest.mark.parametrize("channel_last", [False, True])
def test_functions_and_their_gradients_use_tiles(channel_last, monkeypatch):
    """Convolution, its transpose, and what nn.grad records of them, beside float32."""
    used = []
    monkeypatch.setattr(
        bfloat16_convolution.amx_convolution,
        "Tiles",
        lambda *problem: used.append(problem) or Tiles(*problem),
    )
    rng = np.random.default_rng(0)
    before = nn.get_cpu_kernels()
    nn.set_cpu_kernels("numba")
    values = [
        rng.standard_normal(s).astype(ml_dtypes.bfloat16).astype(np.float32)
        for s in ((32, 6, 6, 8), (8, 3, 3, 8), (8,))
    ]
    if not channel_last:
        values = [np.ascontiguousarray(np.moveaxis(v, -1, 1)) if v.ndim > 1 else v for v in values]

    def results(precision):
        with nn.context_scope(nn.Context(["cpu:float"], precision=precision)):
            x, w, b = (nn.Variable.from_numpy_array(v, need_grad=True) for v in values)
            y = F.convolution(x, w, b, pad=(1, 1), stride=(2, 2), channel_last=channel_last)
            z = F.deconvolution(y, w, b, pad=(1, 1), stride=(2, 2), channel_last=channel_last)
            z.forward()
            z.backward(1.0)
            gradients = nn.grad([F.sum(z)], [x, w, b])
            for g in gradients:
                g.forward()
            return [y.d, z.d, x.g, w.g, b.g, *(g.d for g in gradients)]

    try:
        found, expected = results("bf16"), results("highest")
    finally:
        nn.set_cpu_kernels(before)
    assert len(used) >= 9
    for a, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=0.05, atol=0.02 * math.sqrt(np.mean(e**2)) + 1e-3)
