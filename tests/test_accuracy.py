"""Rounding errors of products in float32, kernel by kernel, beside those of direct sums.

The error of a result is its root mean square distance from float64, over the result's own. Direct
sums are those of NumPy's einsum over patches, in float32, and PyTorch's where it is installed: the
larger of the two.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F


def kernels():
    missing = importlib.util.find_spec("numba") is None
    compiled = pytest.mark.skipif(missing, reason="CPU kernels need distnn[cpu]")
    return pytest.mark.parametrize("chosen", ["numpy", pytest.param("numba", marks=compiled)])


@pytest.fixture(autouse=True)
def chosen_before(on_cpu) -> Iterator[None]:
    before = nn.get_cpu_kernels()
    yield
    nn.set_cpu_kernels(before)


def rms(a):
    return float(np.sqrt(np.mean(np.square(a, dtype=np.float64))))


def errors(found, exact):
    return [rms(a - e) / rms(e) for a, e in zip(found, exact, strict=True)]


def ours(call, x, w, dy, chosen):
    """y, dx and dw."""
    nn.set_cpu_kernels(chosen)
    leaves = [nn.Variable.from_numpy_array(v, need_grad=True) for v in (x, w)]
    y = call(*leaves)
    y.forward()
    y.backward(nn.NdArray.from_numpy_array(dy))
    return [y.d.copy(), *(leaf.g.copy() for leaf in leaves)]


class Convolution:
    """A convolution as sums over patches."""

    def __init__(self, x, w, pad=0, stride=1, dilation=1, group=1):
        self.shapes, self.pad, self.stride = (x, w), pad, stride
        self.dilation, self.group = dilation, group

    def call(self, x, w):
        pairs = [(n, n) for n in (self.pad, self.stride, self.dilation)]
        return F.convolution(x, w, None, 1, *pairs, self.group)

    def torch(self, torch, x, w):
        return torch.conv2d(x, w, None, self.stride, self.pad, self.dilation, self.group)

    def patches(self, x):
        """(N, G, C, K, K, H, W), a view."""
        taps = self.shapes[1][2]
        extent = (taps - 1) * self.dilation + 1
        views = np.lib.stride_tricks.sliding_window_view(x, (extent, extent), (2, 3))
        views = views[:, :, :: self.stride, :: self.stride, :: self.dilation, :: self.dilation]
        n, c, *others = views.shape
        return views.reshape(n, self.group, c // self.group, *others)

    def sums(self, x, w, dy=None):
        """y, or y, dx and dw, in the dtype of x."""
        pads = [(0, 0), (0, 0), (self.pad,) * 2, (self.pad,) * 2]
        wide = np.pad(x, pads)
        patches = self.patches(wide)
        filters = w.reshape(self.group, -1, *w.shape[1:])
        y = np.einsum("ngchwij,gfcij->ngfhw", patches, filters)
        shape = (len(x), len(w), *y.shape[-2:])
        if dy is None:
            return y.reshape(shape)
        d = dy.reshape(y.shape)
        dw = np.einsum("ngchwij,ngfhw->gfcij", patches, d).reshape(w.shape)
        dx = np.zeros_like(wide)
        groups = dx.reshape(len(x), self.group, -1, *wide.shape[2:])
        rows, columns = y.shape[-2:]
        for i in range(w.shape[2]):
            for j in range(w.shape[3]):
                top, left = i * self.dilation, j * self.dilation
                down = slice(top, top + self.stride * rows, self.stride)
                across = slice(left, left + self.stride * columns, self.stride)
                groups[..., down, across] += np.einsum(
                    "ngfhw,gfc->ngchw", d, filters[:, :, :, i, j]
                )
        inside = slice(self.pad, self.pad + x.shape[2]), slice(self.pad, self.pad + x.shape[3])
        return [y.reshape(shape), dx[(..., *inside)], dw]


class Affine:
    """A product of matrices."""

    def __init__(self, x, w):
        self.shapes = x, w

    def call(self, x, w):
        return F.affine(x, w)

    def torch(self, torch, x, w):
        return x @ w

    def sums(self, x, w, dy=None):
        y = np.einsum("ij,jk->ik", x, w)
        if dy is None:
            return y
        return [y, np.einsum("ik,jk->ij", dy, w), np.einsum("ij,ik->jk", x, dy)]


DIRECT = {
    "affine": Affine((256, 320), (320, 192)),
    "affine of few rows": Affine((20, 2000), (2000, 100)),
    "1x1": Convolution((4, 96, 14, 14), (64, 96, 1, 1)),
    "1x1, stride 2": Convolution((4, 96, 15, 15), (64, 96, 1, 1), 0, 2),
    "3x3, stride 2": Convolution((4, 64, 15, 15), (48, 64, 3, 3), 1, 2),
    "3x3, dilated, odd padding": Convolution((4, 64, 15, 15), (48, 64, 3, 3), 1, 1, 2),
    "3x3, groups": Convolution((4, 64, 15, 15), (48, 16, 3, 3), 1, 1, 1, 4),
    "3x3, depthwise": Convolution((8, 64, 15, 15), (64, 1, 3, 3), 1, 1, 1, 64),
    "5x5": Convolution((4, 32, 15, 15), (48, 32, 5, 5), 2),
    "7x7, stride 2": Convolution((2, 3, 64, 64), (32, 3, 7, 7), 3, 2),
}
WINOGRAD = {
    "3x3 of small maps": Convolution((8, 64, 8, 8), (64, 64, 3, 3), 1),
    "3x3, dilated": Convolution((4, 64, 15, 15), (48, 64, 3, 3), 2, 1, 2),
    "3x3 of large maps": Convolution((1, 48, 40, 40), (48, 48, 3, 3), 1),
}
KINDS = DIRECT | WINOGRAD


@functools.cache
def problem(name):
    """x, w and dy, and y, dx and dw in float64; and the errors of direct sums in float32."""
    kind = KINDS[name]
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in kind.shapes)
    dy = rng.standard_normal(kind.sums(x, w).shape).astype(np.float32)
    exact = kind.sums(*(a.astype(np.float64) for a in (x, w, dy)))
    direct = errors(kind.sums(x, w, dy), exact)
    if importlib.util.find_spec("torch"):
        direct = [max(pair) for pair in zip(direct, of_torch(kind, x, w, dy, exact), strict=True)]
    return (x, w, dy), exact, direct


def of_torch(kind, x, w, dy, exact):
    import torch

    x, w = (torch.tensor(a, requires_grad=True) for a in (x, w))
    y = kind.torch(torch, x, w)
    y.backward(torch.tensor(dy))
    return errors([a.detach().numpy() for a in (y, x.grad, w.grad)], exact)


def over_direct(name, chosen):
    """Our errors of y, dx and dw over those of direct sums."""
    arrays, exact, direct = problem(name)
    found = errors(ours(KINDS[name].call, *arrays, chosen), exact)
    return [a / b for a, b in zip(found, direct, strict=True)]


@kernels()
@pytest.mark.parametrize("name", DIRECT)
def test_errors_of_results_and_gradients_are_within_three_times_those_of_direct_sums(name, chosen):
    assert max(over_direct(name, chosen)) < 3


@kernels()
@pytest.mark.parametrize("name", WINOGRAD)
def test_errors_of_minimal_filtering_are_a_few_times_those_of_direct_sums(name, chosen):
    """Of a single layer; tests/test_seed_network.py says that networks do not see it."""
    assert max(over_direct(name, chosen)) < 8
