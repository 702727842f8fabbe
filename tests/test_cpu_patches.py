"""Compiled products over patches: against the definition in float64, for kernels of all kinds."""

from __future__ import annotations

from types import SimpleNamespace

import cases_convolution as definition
import numpy as np
import pytest

import distnn as nn
from distnn.functions import im2col
from distnn.functions.im2col import Geometry
from distnn.namespace import NumpyNamespace

pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")

from distnn.cpu import correlation, patches
from distnn.cpu.patches import Patches

xp = NumpyNamespace()


def case(x, w, **geometry):
    axes = len(x) - 2
    pad, stride, dilation = (
        geometry.get(name, (default,) * axes)
        for name, default in (("pad", 0), ("stride", 1), ("dilation", 1))
    )
    return x, w, Geometry(pad, stride, dilation, geometry.get("group", 1))


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


def problem(name_or_case):
    """Normal numbers, and results and gradients from the definition in float64."""
    x_shape, w_shape, g = CASES[name_or_case] if isinstance(name_or_case, str) else name_or_case
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s, np.float32) for s in (x_shape, w_shape))
    b = rng.standard_normal(w_shape[0], np.float32)
    geometry = g._asdict()
    y = definition.convolution(*(a.astype(np.float64) for a in (x, w, b)), **geometry)
    dy = rng.standard_normal(y.shape, np.float32)
    unread = [
        n + 2 * p - s * (o - 1) - d * (k - 1) - 1
        for n, o, k, p, s, d in zip(x_shape[2:], y.shape[2:], w_shape[2:], *g[:3], strict=True)
    ]
    dx = definition.deconvolution(
        dy.astype(np.float64), w.astype(np.float64), output_padding=unread, **geometry
    )
    # y is linear in each filter's number: its gradient is dy times the result for a filter of zeros
    # and that one.
    dw = np.zeros(w_shape)
    for place in np.ndindex(*w_shape[1:]):
        one = np.zeros(w_shape)
        one[(slice(None), *place)] = 1
        seen = definition.convolution(x.astype(np.float64), one, **geometry)
        dw[(slice(None), *place)] = (seen * dy).sum((0, *range(2, dy.ndim)))
    return SimpleNamespace(x=x, w=w, b=b, dy=dy, geometry=g, exact=(y, dx, dw))


def results(p, algorithm=Patches):
    """y, dx and dw, each in the middle of memory that nobody else may write."""
    extra = (np.dtype(np.float32),) if algorithm is im2col.Patches else ()
    found = algorithm(xp, p.geometry, p.x.shape, p.w.shape, *extra)
    memory = [np.full(a.size + 128, 7, np.float32) for a in p.exact]
    arrays = [m[64:-64].reshape(a.shape) for m, a in zip(memory, p.exact, strict=True)]
    y, dx, dw = arrays
    for a in arrays:
        a.fill(np.nan)
    found.forward(p.x, p.w, p.b, y)
    found.gradients(p.dy, p.x, p.w, dx, dw)
    assert all((m[:64] == 7).all() and (m[-64:] == 7).all() for m in memory)
    return arrays


def errors(p, found):
    return [rms(a - e) / rms(e) for a, e in zip(found, p.exact, strict=True)]


def rms(a):
    return float(np.sqrt(np.mean(np.square(a, dtype=np.float64))))


@pytest.mark.parametrize("name", CASES)
def test_results_and_gradients_agree_with_the_definition(name):
    p = problem(name)
    assert max(errors(p, results(p))) < 4e-7


@pytest.mark.parametrize("name", ["3x3, stride 2", "several pieces of a sum", "many addends"])
def test_errors_are_of_the_size_of_those_of_numpy(name):
    p = problem(name)
    for ours, numpy in zip(
        errors(p, results(p)), errors(p, results(p, im2col.Patches)), strict=True
    ):
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
