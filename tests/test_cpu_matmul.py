"""Products of float32 matrices by our own kernels: any order of the factors, parts, bias."""

from __future__ import annotations

import numpy as np
import pytest

import distnn as nn

pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")

from distnn.cpu import matmul
from distnn.cpu.backend import NumbaNamespace

SHAPES = [(400, 160, 160), (333, 1040, 48), (112, 512, 1040), (208, 2064, 32)]


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
    assert matmul.suits(a, b, out) == (not first or rows % 16 == 0)
    if first and rows % 16:
        return
    matmul.multiply(a, b, out, bias)
    exact = a.astype(np.float64) @ b.astype(np.float64) + bias
    assert np.abs(out - exact).max() < 3e-7 * np.sqrt(depth) * np.abs(exact).max()
    assert (wide[:, columns:] == 7).all()


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
        (drawn(32, 640), drawn(640, 1600)),  # too wide
        (drawn(512, 512)[:, ::2], drawn(256, 256)),  # elements of a row are apart
    ],
    ids=["blocks", "float64", "wide", "strides"],
)
def test_other_products_are_those_of_blas(a, b):
    assert not matmul.suits(a, b)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_allclose(NumbaNamespace().matmul(a, b), exact, rtol=1e-3, atol=1e-3)
