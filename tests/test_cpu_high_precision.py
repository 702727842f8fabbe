"""Precision "high": float32 by products of bfloat16, against float64 and beside float32."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F
from distnn.errors import ContextError

pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")
pytest.importorskip("ml_dtypes")

from distnn.cpu import amx, amx_matmul, bfloat16_affine, high_precision

needs_tiles = pytest.mark.skipif(not amx.available(), reason="needs a processor with AMX")


@pytest.fixture(autouse=True)
def compiled(on_cpu) -> Iterator[None]:
    before = nn.get_cpu_kernels()
    nn.set_cpu_kernels("numba")
    yield
    nn.set_cpu_kernels(before)


def context(precision="high", type_config="float"):
    return nn.context_scope(nn.Context([f"cpu:{type_config}"], precision=precision))


def call(name, *leaves):
    if name == "affine":
        return F.affine(*leaves)
    if name == "batch_matmul":
        return F.batch_matmul(*leaves, transpose_b=True)
    function = F.convolution if name == "convolution" else F.deconvolution
    return function(*leaves, pad=(2, 2))


SHAPES = {
    "affine": [(420, 410), (410, 430), (430,)],
    "batch_matmul": [(2, 420, 410), (2, 430, 410)],
    "convolution": [(33, 36, 9, 7), (40, 36, 5, 5), (40,)],
    "deconvolution": [(33, 40, 5, 6), (40, 36, 5, 5), (36,)],
}


def results(name, values, precision, type_config="float"):
    with context(precision, type_config):
        leaves = [nn.Variable.from_numpy_array(v, need_grad=True) for v in values]
        y = call(name, *leaves)
        y.forward()
        y.backward(nn.NdArray.from_numpy_array(np.cos(np.arange(y.size).reshape(y.shape))))
        return [y.d.copy(), *(leaf.g.copy() for leaf in leaves)]


@needs_tiles
@pytest.mark.parametrize("name", SHAPES)
def test_errors_against_float64_are_near_those_of_float32(name):
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(s).astype(np.float32) for s in SHAPES[name]]
    exact = results(name, [v.astype(np.float64) for v in values], "highest", "double")
    found, rounded = results(name, values, "high"), results(name, values, "bf16")
    for a, b, e in zip(found, rounded, exact, strict=True):
        assert a.dtype == np.float32
        error, scale = np.sqrt(np.mean((a - e) ** 2)), np.sqrt(np.mean(e**2))
        assert error < 1e-5 * scale
        assert error < 0.02 * np.sqrt(np.mean((b - e) ** 2)) + 1e-6 * scale


@needs_tiles
@pytest.mark.parametrize("bias", [False, True])
def test_large_products_of_matrices_are_by_tiles(bias, monkeypatch):
    """However their factors lie: of affine maps one of them is turned over for each gradient."""
    products = []
    multiply = amx_matmul.multiply
    monkeypatch.setattr(amx_matmul, "multiply", lambda *a: products.append(a) or multiply(*a))
    rng = np.random.default_rng(0)
    shapes = SHAPES["affine"][: 3 if bias else 2]
    values = [rng.standard_normal(s).astype(np.float32) for s in shapes]
    exact = results("affine", [v.astype(np.float64) for v in values], "highest", "double")
    for found, e in zip(results("affine", values, "high"), exact, strict=True):
        assert np.sqrt(np.mean((found - e) ** 2)) < 1e-5 * np.sqrt(np.mean(e**2))
    assert len(products) == 3


def test_products_of_few_rows_are_those_of_float32():
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(s).astype(np.float32) for s in [(64, 500), (500, 70), (70,)]]
    found, expected = (results("affine", values, p) for p in ("high", "highest"))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@needs_tiles
@pytest.mark.parametrize(
    ("w", "stride", "dilation", "tiles"),
    [
        ((64, 64, 5, 5), 1, 1, True),
        ((64, 64, 4, 4), 1, 2, True),
        ((64, 64, 3, 3), 1, 1, False),  # Winograd's
        ((64, 64, 3, 3), 1, 2, False),
        ((64, 64, 3, 3), 2, 1, False),
        ((64, 64, 1, 1), 1, 1, False),
        ((64, 3, 7, 7), 1, 1, False),
    ],
)
def test_convolutions_are_by_tiles_where_that_is_faster(w, stride, dilation, tiles, monkeypatch):
    seen = []
    forward = high_precision.HighTiles.forward
    monkeypatch.setattr(
        high_precision.HighTiles, "forward", lambda *a: seen.append(a) or forward(*a)
    )
    x = np.ones((32, w[1], 9, 9), np.float32)
    with context():
        leaves = [nn.Variable.from_numpy_array(v) for v in (x, np.ones(w, np.float32))]
        y = F.convolution(*leaves, stride=(stride,) * 2, dilation=(dilation,) * 2)
        y.forward()
    assert bool(seen) == tiles
    np.testing.assert_allclose(y.d, w[1] * w[2] * w[3], rtol=1e-5)


@needs_tiles
def test_parts_of_numbers():
    x = np.random.default_rng(0).standard_normal((3, 40_000)).astype(np.float32)
    for a in (x, x[:, ::2], np.asfortranarray(x)):
        for axis in (0, 1):
            left, right = (
                high_precision.split(a, axis, side).astype(np.float64) for side in (True, False)
            )
            n = a.shape[axis]
            low, high, again = (left.take(range(i * n, (i + 1) * n), axis) for i in range(3))
            np.testing.assert_allclose(low + high, a, rtol=2.0**-16)
            np.testing.assert_array_equal(high, again)
            parts = [right.take(range(i * n, (i + 1) * n), axis) for i in range(3)]
            for found, expected in zip(parts, (high, low, high), strict=True):
                np.testing.assert_array_equal(found, expected)


def test_without_tiles_it_is_float32(monkeypatch):
    monkeypatch.setattr(bfloat16_affine, "uses_tiles", lambda: False)
    monkeypatch.setattr(high_precision, "uses_tiles", lambda: False)
    # Shapes that no other test has: what carries out a function is chosen once.
    shapes = [(450, 460), (460, 470), (470,)]
    values = [np.random.default_rng(0).standard_normal(s).astype(np.float32) for s in shapes]
    for a, b in zip(
        results("affine", values, "high"), results("affine", values, "highest"), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_it_needs_compiled_kernels():
    nn.set_cpu_kernels("numpy")
    with pytest.raises(ContextError, match=r"'high' on the CPU needs compiled kernels"):
        nn.set_default_context(nn.Context(["cpu:float"], precision="high"))


def test_float64_has_no_such_products():
    with context("high", "double"):
        y = nn.Variable.from_numpy_array(np.ones((2, 2))) * 2
        y.forward()
    assert y.d.dtype == np.float64
