"""Products of float32 matrices by our own kernels: any order of the factors, parts, bias."""

from __future__ import annotations

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F

pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")

from distnn.cpu import affine_gradient, matmul
from distnn.cpu.backend import NumbaNamespace

SHAPES = [(400, 160, 160), (333, 1040, 48), (112, 512, 1040), (208, 2064, 32), (32, 640, 1600)]


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)


def factors(rows: int, depth: int, columns: int, first: bool, second: bool) -> list[np.ndarray]:
    """Two factors, each perhaps a transposed one; windows onto wider matrices."""
    a = drawn(depth, rows + 8).T[:rows] if first else drawn(rows, depth + 8)[:, :depth]
    b = drawn(columns, depth + 8).T[:depth] if second else drawn(depth, columns + 8)[:, :columns]
    return [a, b]


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(("rows", "depth", "columns"), SHAPES)
def test_products_and_bias(rows, depth, columns, first, second):
    a, b = factors(rows, depth, columns, first, second)
    bias, wide = drawn(columns), np.full((rows, columns + 8), 7, np.float32)
    out = wide[:, :columns]
    assert matmul.suits(a, b, out)
    sums = np.empty(columns, np.float32)
    matmul.multiply(a, b, out, bias, sums)
    np.testing.assert_allclose(sums, b.astype(np.float64).sum(0), atol=1e-5 * np.sqrt(depth))
    exact = a.astype(np.float64) @ b.astype(np.float64) + bias
    assert np.abs(out - exact).max() < 3e-7 * np.sqrt(depth) * np.abs(exact).max()
    assert (wide[:, columns:] == 7).all()


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    ("batch", "rows", "depth", "columns"), [((40,), 96, 48, 128), ((2, 20), 61, 256, 48)]
)
def test_batches_of_small_products(batch, rows, depth, columns, first, second):
    a = drawn(*batch, depth, rows).swapaxes(-1, -2) if first else drawn(*batch, rows, depth)
    b = drawn(*batch, columns, depth).swapaxes(-1, -2) if second else drawn(*batch, depth, columns)
    out = np.empty((*batch, rows, columns), np.float32)
    assert matmul.suits_batch(a, b, out)
    found = NumbaNamespace().matmul(a, b, out)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    assert np.abs(found - exact).max() < 3e-7 * np.sqrt(depth) * np.abs(exact).max()


def test_bits_do_not_depend_on_the_number_of_threads():
    a, b = factors(400, 528, 160, False, True)
    found, before = [], nn.get_num_threads()
    try:
        for threads in (1, 3):
            nn.set_num_threads(threads)
            found.append(matmul.multiply(a, b, np.empty((400, 160), np.float32)))
    finally:
        nn.set_num_threads(before)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (drawn(500, 100), drawn(100, 500)),  # no whole blocks
        (drawn(512, 256).astype(np.float64), drawn(256, 256).astype(np.float64)),
        (drawn(31, 640), drawn(640, 1600)),  # too few rows
        (drawn(512, 512)[:, ::2], drawn(256, 256)),  # elements of a row are apart
    ],
    ids=["blocks", "float64", "rows", "strides"],
)
def test_other_products_are_those_of_blas(a, b):
    assert not matmul.suits(a, b)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(NumbaNamespace().matmul(a, b), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("missing", ["", "x", "w", "b"])
@pytest.mark.parametrize(
    ("rows", "depth", "columns"), [(32, 64, 10), (7, 5, 131), (1, 64, 64), (150, 33, 17)]
)
def test_gradients_of_small_affine_maps(rows, depth, columns, missing):
    dy, x, w = drawn(rows, columns), drawn(rows, depth), drawn(depth, columns)
    outs = {"x": np.empty_like(x), "w": np.empty_like(w), "b": np.empty(columns, np.float32)}
    if missing:
        outs[missing] = np.empty((0,) * outs[missing].ndim, np.float32)
    affine_gradient.gradients(dy, x, w, *outs.values())
    wide = [each.astype(np.float64) for each in (dy, x, w)]
    exact = {"x": wide[0] @ wide[2].T, "w": wide[1].T @ wide[0], "b": wide[0].sum(0)}
    for name in exact.keys() - {missing}:
        addends = {"x": columns, "w": rows, "b": rows}[name]
        bound = 3e-7 * np.sqrt(addends) * max(1, np.abs(exact[name]).max())
        assert np.abs(outs[name] - exact[name]).max() < bound


def test_gradients_of_affine_maps_are_those_of_numpy_where_axes_are_flattened():
    found = []
    for kernels in ("numba", "numpy"):
        before = nn.get_cpu_kernels()
        nn.set_cpu_kernels(kernels)
        try:
            inputs = [(4, 5, 8, 3), (24, 2, 17), (2, 17)]
            arrays = [nn.Variable.from_numpy_array(drawn(*s), need_grad=True) for s in inputs]
            y = F.affine(*arrays, base_axis=2)
            y.forward()
            for each in arrays:
                each.grad.zero()
            y.backward(drawn(*y.shape))
        finally:
            nn.set_cpu_kernels(before)
        found.append([each.g.copy() for each in arrays])
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)
