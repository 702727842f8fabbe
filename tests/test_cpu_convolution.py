"""Compiled convolution: against the definition in float64, on maps of all shapes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

import distnn as nn
import distnn.functions as F
from distnn.functions import winograd as numpy_winograd
from distnn.functions.im2col import Geometry, Patches
from distnn.namespace import NumpyNamespace

pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")

from distnn.cpu import convolution, gemm, simd
from distnn.cpu.compiler import kernel
from distnn.cpu.winograd import Sizes, Winograd

xp = NumpyNamespace()

# x (N, C, H, W), filters, pads.
SHAPES = [
    ((256, 16, 8, 8), 16, (1, 1)),
    ((1, 64, 8, 8), 64, (1, 1)),  # one image: its steps are shared out, not images
    ((3, 5, 7, 9), 18, (1, 0)),  # channels that fill no block, maps that fill no tile
    ((40, 40, 13, 4), 3, (2, 1)),
    ((2, 20, 1, 1), 20, (1, 1)),  # one pixel
    ((2, 16, 1, 40), 33, (1, 0)),
    ((2, 16, 5, 3), 16, (3, 4)),  # whole tiles of padding
    ((1, 3, 30, 17), 33, (0, 0)),
    ((1, 1, 3, 3), 1, (0, 0)),
    ((2, 17, 100, 61), 16, (1, 1)),
    ((40, 150, 4, 4), 300, (1, 1)),
]


class Problem:
    """Normal numbers, and results and gradients from the definition in float64."""

    def __init__(self, x_shape, filters, pads, seed=0):
        rng = np.random.default_rng(seed)
        self.pads = pads
        self.x = rng.standard_normal(x_shape, np.float32)
        self.w = rng.standard_normal((filters, x_shape[1], 3, 3), np.float32)
        self.b = rng.standard_normal(filters, np.float32)
        (top, left), x = pads, self.x.astype(np.float64)
        padded = np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)))
        patches = sliding_window_view(padded, (3, 3), (2, 3))
        w = self.w.astype(np.float64)
        self.y = np.einsum("nchwij,fcij->nfhw", patches, w, optimize=True)
        self.y += self.b[:, None, None]
        self.dy = rng.standard_normal(self.y.shape, np.float32)
        dy = self.dy.astype(np.float64)
        self.dw = np.einsum("nchwij,nfhw->fcij", patches, dy, optimize=True)
        spread = np.zeros_like(padded)
        height, width = self.y.shape[2:]
        for i, j in np.ndindex(3, 3):
            taps = np.einsum("nfhw,fc->nchw", dy, w[:, :, i, j], optimize=True)
            spread[:, :, i : i + height, j : j + width] += taps
        self.dx = spread[:, :, top : top + x_shape[2], left : left + x_shape[3]]

    def results(self, algorithm):
        """y, dx and dw in float32, each in the middle of memory that nobody else may write."""
        guarded = [Guarded(a.shape) for a in (self.y, self.dx, self.dw, self.b)]
        y, dx, dw, db = (g.array for g in guarded)
        algorithm.forward(self.x, self.w, self.b, y)
        places = [dx, dw, db] if isinstance(algorithm, Winograd) else [dx, dw]
        algorithm.gradients(self.dy, self.x, self.w, *places)
        assert all(g.intact() for g in guarded)
        return y, *places

    def errors(self, found):
        db = self.dy.sum((0, 2, 3), dtype=np.float64)
        exact = (self.y, self.dx, self.dw, db)[: len(found)]
        return [rms(a - e) / rms(e) for a, e in zip(found, exact, strict=True)]


class Guarded:
    """An array of float32 with numbers around it that must stay."""

    def __init__(self, shape):
        size = int(np.prod(shape))
        self.memory = np.full(size + 128, 7, np.float32)
        self.array = self.memory[64 : 64 + size].reshape(shape)
        self.array[...] = np.nan

    def intact(self):
        return bool((self.memory[:64] == 7).all() and (self.memory[-64:] == 7).all())


def rms(a):
    return float(np.sqrt(np.mean(np.square(a, dtype=np.float64))))


def ours(problem):
    return Winograd(xp, problem.x.shape, problem.w.shape, problem.pads)


@pytest.mark.parametrize(("x", "filters", "pads"), SHAPES, ids=str)
def test_results_and_gradients_agree_with_the_definition(x, filters, pads):
    problem = Problem(x, filters, pads)
    assert max(problem.errors(problem.results(ours(problem)))) < 2.5e-6


def test_errors_are_near_those_of_the_numpy_transforms():
    """Those of the filters' gradient are larger: NumPy's are added up group of images by group."""
    problem = Problem((32, 128, 8, 8), 128, (1, 1))
    numpy = numpy_winograd.Winograd(
        xp, problem.x.shape, problem.w.shape, problem.pads, np.dtype(np.float32), None
    )
    found = problem.errors(problem.results(ours(problem)))
    theirs = problem.errors(problem.results(numpy))
    for a, b, factor in zip(found[:3], theirs, (1.1, 1.1, 1.4), strict=True):
        assert a <= factor * b


@pytest.mark.parametrize("index", [0, 3, 9, 10])
def test_errors_are_at_most_fifteen_times_those_of_direct_sums(index):
    problem = Problem(*SHAPES[index])
    geometry = Geometry(problem.pads, (1, 1), (1, 1), 1)
    direct = Patches(xp, geometry, problem.x.shape, problem.w.shape, np.dtype(np.float32))
    found = problem.errors(problem.results(ours(problem)))
    theirs = problem.errors(problem.results(direct))
    assert all(a <= 15 * b for a, b in zip(found[:3], theirs, strict=True))


def test_gradients_can_be_asked_for_one_by_one():
    problem = Problem((20, 16, 8, 8), 32, (1, 1))
    _, dx, dw, db = problem.results(ours(problem))
    alone = np.empty_like(dx), np.empty_like(dw), np.empty_like(db)
    ours(problem).gradients(problem.dy, None, problem.w, alone[0], None)
    ours(problem).gradients(problem.dy, problem.x, None, None, alone[1])
    ours(problem).gradients(problem.dy, None, None, None, None, alone[2])
    for a, b in zip(alone, (dx, dw, db), strict=True):
        np.testing.assert_array_equal(a, b)


def test_inputs_may_be_views_that_cannot_be_written():
    problem = Problem((4, 16, 8, 8), 16, (1, 1))
    expected = problem.results(ours(problem))
    for name in ("x", "w", "b", "dy"):
        wide = np.repeat(getattr(problem, name), 2, axis=-1)[..., ::2]
        wide.flags.writeable = False
        setattr(problem, name, wide)
    for a, b in zip(problem.results(ours(problem)), expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def threads():
    before = nn.get_num_threads()
    yield nn.set_num_threads
    nn.set_num_threads(before)


@pytest.mark.parametrize("index", [0, 1, 2, 9, 10])
def test_the_number_of_threads_changes_no_bit(index, threads):
    problem = Problem(*SHAPES[index])
    found = []
    for number in (1, 2, 5):
        threads(number)
        found.append(problem.results(ours(problem)))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize(
    ("x", "filters"),
    [((256, 128, 8, 8), 128), ((32, 64, 56, 56), 64), ((1, 64, 500, 500), 64),
     ((8, 512, 7, 7), 512), ((1, 2048, 4, 4), 2048)],
    ids=str,
)  # fmt: skip
def test_images_are_shared_out_without_taking_much_memory(x, filters, sums):
    sizes = Sizes(x, (filters, x[1], 3, 3), (1, 1), sums)
    assert (sizes.shares - 1) * sizes.share < x[0] <= sizes.shares * sizes.share
    points = 4 * 36 * (sizes.x.plane + sizes.y.plane)
    if sizes.shares > 1:  # each thread has its own
        assert points <= 16 * 2**20 or sizes.group == 1
        assert sizes.shares >= 4
        assert not sums or sizes.shares * 4 * 36 * x[1] * filters <= 2**25
    else:
        assert points <= 80 * 2**20 or sizes.group == 1


@pytest.mark.parametrize(
    ("arguments", "dtype", "taken"),
    [
        ({"pad": (1, 1)}, "float", True),
        ({"pad": (1, 1)}, "double", False),
        ({"pad": (1, 1)}, "half", False),
        ({"pad": (1, 1), "stride": (2, 2)}, "float", False),
        ({"pad": (2, 2), "dilation": (2, 2)}, "float", True),
        ({"pad": (1, 1), "dilation": (2, 2)}, "float", False),
        ({"pad": (1, 1), "group": 2}, "float", False),
        ({"pad": (1, 1), "channel_last": True}, "float", True),
    ],
    ids=str,
)
def test_only_3x3_convolutions_of_float32_with_plain_phases_take_this_way(
    arguments, dtype, taken, monkeypatch, restored
):
    calls = []
    for name in ("forward", "gradients"):
        method = getattr(Winograd, name)
        monkeypatch.setattr(
            Winograd, name, lambda *a, n=name, m=method, **k: calls.append(n) or m(*a, **k)
        )
    last = arguments.get("channel_last", False)
    w = (32, 3, 3, 32) if last else (32, 32 // arguments.get("group", 1), 3, 3)
    x = nn.Variable((4, 8, 8, 32) if last else (4, 32, 8, 8), need_grad=True)
    x.d = 1
    with nn.context_scope(nn.Context([f"cpu:{dtype}"])):
        y = F.convolution(x, nn.Variable(w, need_grad=True), **arguments)
        y.forward()
        y.backward()
    assert calls == (["forward", "gradients"] if taken else [])


@pytest.fixture
def restored():
    before = nn.get_cpu_kernels()
    nn.set_cpu_kernels("numba")
    yield
    nn.set_cpu_kernels(before)


def test_few_multiplications_are_left_to_numpy():
    def pays(n, c, h, f):
        return convolution._pays((n, c, h, h), (f, c, 3, 3), (1, 1))

    assert pays(32, 128, 8, 128)
    assert pays(32, 64, 56, 64)
    assert numpy_winograd.possible((0, 128, 8, 8), (1, 1)) == ()
    assert numpy_winograd.possible((1, 128, 2, 9), (0, 0)) == ()
    assert not pays(32, 128, 1, 128)  # 36 products where 9 would do
    assert not pays(32, 1, 32, 64)


def blocked(a):
    """(R, C) as (C / 16, R, 16), flat, with zeros for what is missing of a block."""
    columns = -(-a.shape[1] // 16)
    wide = np.zeros((a.shape[0], columns * 16), np.float32)
    wide[:, : a.shape[1]] = a
    return wide.reshape(len(a), columns, 16).transpose(1, 0, 2)


@pytest.mark.parametrize(("rows", "depth", "columns"), [(8, 1, 1), (136, 2, 3), (300, 9, 2)])
def test_products_agree_with_numpy(rows, depth, columns):
    rng = np.random.default_rng(0)
    a = rng.standard_normal((2, rows, depth * 16))
    b = rng.standard_normal((2, depth * 16, columns * 16))
    taken = -(-rows // gemm.ROWS) * gemm.ROWS
    left = np.zeros((2, depth, taken, 16), np.float32)
    left[:, :, :rows] = [blocked(m) for m in a]
    right = np.array([blocked(m) for m in b])
    c = np.full((2, columns, taken, 16), np.nan, np.float32)
    gemm.multiply(
        left.ravel(), taken * 16, left[0].size, right.ravel(), depth * 256, right[0].size, depth,
        c.reshape(-1), taken * 16, c[0].size, rows, columns, 0, 2 * gemm.row_parts(rows),
    )  # fmt: skip
    for found, x, y in zip(c[:, :, :rows], a, b, strict=True):
        np.testing.assert_allclose(found, blocked(x @ y), atol=1e-4)

    t = rng.standard_normal((2, rows, columns * 16))
    right = np.array([blocked(m) for m in t])
    d = np.zeros((2, columns, depth * 16, 16), np.float32)
    for add in (False, True):
        gemm.multiply_transposed(
            left.ravel(), taken * 16, left[0].size, right.ravel(), rows * 16, right[0].size, rows,
            d.reshape(-1), depth, columns, add, 0, 2 * gemm.block_parts(depth),
        )  # fmt: skip
        for found, x, y in zip(d, a, t, strict=True):
            np.testing.assert_allclose(found, blocked(x.T @ y) * (1 + add), atol=4e-4)


@kernel
def _copy(x, y, stride, rows, columns):
    block = simd.load_transposed(x, 0, stride, rows, columns)
    simd.store_transposed(y, 0, stride, rows, columns, block)


@kernel
def _lanes(x, y, stride, rows, columns):
    block = simd.load_transposed(x, 0, stride, rows, columns)
    for j in range(16):
        simd.store(y, j * 16, block[j])


@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (3, 5), (16, 9), (1, 16), (0, 4), (4, 0)])
def test_blocks_are_transposed_within_their_bounds(rows, columns):
    x = np.arange(400, dtype=np.float32) + 1
    y, lanes = np.zeros(400, np.float32), np.full(256, np.nan, np.float32)
    _copy(x, y, 20, rows, columns)
    _lanes(x, lanes, 20, rows, columns)
    inside = np.zeros((20, 20), np.float32)
    inside[:rows, :columns] = x.reshape(20, 20)[:rows, :columns]
    np.testing.assert_array_equal(y.reshape(20, 20), inside)
    np.testing.assert_array_equal(lanes.reshape(16, 16), inside[:16, :16].T)


@pytest.mark.slow
def test_kernels_for_a_processor_without_avx_512_agree_too(tmp_path):
    """LLVM cuts vectors of 16 in two, and tiles of products have another shape."""
    if not simd.has_feature("avx2"):
        pytest.skip("needs an x86 processor with AVX2")
    code = """
from test_cpu_convolution import SHAPES, Problem, gemm, ours
assert gemm.BLOCKS == 1
for shape in SHAPES:
    problem = Problem(*shape)
    assert max(problem.errors(problem.results(ours(problem)))) < 2.5e-6, shape
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "NUMBA_CPU_NAME": "haswell",
            "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+sse4.2",
            "NUMBA_CACHE_DIR": str(tmp_path),
        },
        cwd=Path(__file__).parent,  # where python -c looks for this file
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
