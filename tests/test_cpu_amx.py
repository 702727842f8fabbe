"""Products by tile registers, where the processor has them."""

from __future__ import annotations

import numpy as np
import pytest

import distnn as nn

pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")
pytest.importorskip("ml_dtypes")

import ml_dtypes

from distnn.cpu import amx, amx_matmul

pytestmark = pytest.mark.skipif(not amx.available(), reason="needs a processor with AMX")


def bfloat16(*shape):
    values = np.random.default_rng(len(shape)).standard_normal(shape, np.float32)
    return values.astype(ml_dtypes.bfloat16)


def near(found, exact):
    digits = 2.0**-8 if found.dtype == ml_dtypes.bfloat16 else 1e-6
    scale = np.abs(exact).max()
    np.testing.assert_allclose(found.astype(np.float64), exact, rtol=digits, atol=1e-6 * scale)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize(("rows", "depth", "columns"), [(64, 96, 32), (1, 1, 1), (100, 70, 45)])
def test_products_agree_with_float64_however_matrices_lie(rows, depth, columns, dtype):
    a, b = bfloat16(rows, depth), bfloat16(depth, columns)
    bias = np.arange(columns, dtype=np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64) + bias
    for x in (a, np.asfortranarray(a)):
        for y in (b, np.asfortranarray(b)):
            near(amx_matmul.multiply(x, y, np.empty((rows, columns), dtype), bias), exact)


@pytest.mark.parametrize(
    ("a", "b"),
    [((6, 3, 40, 50), (6, 1, 50, 20)), ((5, 40, 33), (1, 33, 70)), ((0, 4, 4), (0, 4, 4))],
)
def test_batches_of_products(a, b):
    a, b = bfloat16(*a), bfloat16(*b)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    out = np.empty(exact.shape, np.float32)
    if out.size:
        near(amx_matmul.multiply(a, b, out), exact)
        near(amx_matmul.multiply(a, b.swapaxes(-1, -2).copy().swapaxes(-1, -2), out), exact)
    else:
        amx_matmul.multiply(a, b, out)


def test_infinities_stay_in_their_rows():
    a, b = bfloat16(40, 40), bfloat16(40, 40)
    a[3, 5], a[7, 1] = np.inf, np.nan
    out = amx_matmul.multiply(a, b, np.empty((40, 40), ml_dtypes.bfloat16)).astype(np.float32)
    assert np.isinf(out[3]).all()
    assert np.isnan(out[7]).all()
    assert np.isfinite(np.delete(out, [3, 7], 0)).all()


def test_the_number_of_threads_changes_no_bit():
    a, b = bfloat16(300, 260), bfloat16(260, 500)
    before, found = nn.get_num_threads(), []
    for threads in (1, 2, 4):
        nn.set_num_threads(threads)
        found.append(amx_matmul.multiply(a, b, np.empty((300, 500), np.float32)))
    nn.set_num_threads(before)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
