"""Kernels that read and write bfloat16, against the definitions in float64: rounded once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F

pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")
pytest.importorskip("ml_dtypes")

import ml_dtypes

from distnn.cpu import amx, bfloat16_backend


@pytest.fixture(autouse=True)
def compiled(on_cpu) -> Iterator[None]:
    before, threads = nn.get_cpu_kernels(), nn.get_num_threads()
    nn.set_cpu_kernels("numba")
    yield
    nn.set_cpu_kernels(before)
    nn.set_num_threads(threads)


def rounded(values):
    return values.astype(ml_dtypes.bfloat16).astype(np.float64)


def results(call, values, dy=None, precision="bf16", type_config="float"):
    """The result, and gradients of inputs that are floats."""
    with nn.context_scope(nn.Context([f"cpu:{type_config}"], precision=precision)):
        leaves = [nn.Variable.from_numpy_array(v, need_grad=v.dtype.kind == "f") for v in values]
        y = call(*leaves)
        y.forward()
        dy = np.ones(y.shape) if dy is None else dy
        y.backward(nn.NdArray.from_numpy_array(dy.reshape(y.shape)))
        return [y.d.astype(np.float64), *(leaf.g.copy() for leaf in leaves if leaf.need_grad)]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def of_softmax(x, dy):
    y = softmax(x)
    seen = rounded(y)  # what backward reads
    return y, seen * (dy - (dy * seen).sum(-1, keepdims=True))


def of_log_softmax(x, dy):
    y = np.log(softmax(x))
    return y, dy - np.exp(rounded(y)) * dy.sum(-1, keepdims=True)


def of_layer_normalization(x, dy):
    centred = x - x.mean(-1, keepdims=True)
    i = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    n = centred * i
    dx = (dy - dy.mean(-1, keepdims=True) - n * (dy * n).mean(-1, keepdims=True)) * i
    return n, dx


def of_instance_normalization(x, dy):
    flat = x.reshape(*x.shape[:2], -1)
    return tuple(a.reshape(x.shape) for a in of_layer_normalization(flat, dy.reshape(flat.shape)))


def pooling(kernel, stride, pad, largest):
    """y and dx of max or average pooling that counts the padding."""

    def of(x, dy):
        lead, (h, w) = x.shape[:2], x.shape[2:]
        fill = -np.inf if largest else 0.0
        wide = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)], constant_values=fill)
        windows = np.lib.stride_tricks.sliding_window_view(wide, (kernel, kernel), (2, 3))
        windows = windows[:, :, ::stride, ::stride]
        rows, columns = windows.shape[2:4]
        windows = windows.reshape(*lead, rows, columns, -1)
        y = windows.max(-1) if largest else windows.mean(-1)
        d = np.zeros(wide.shape)
        for k in range(kernel * kernel):
            i, j = divmod(k, kernel)
            share = (windows.argmax(-1) == k) if largest else 1 / kernel**2
            there = (slice(i, i + stride * rows, stride), slice(j, j + stride * columns, stride))
            d[(..., *there)] += dy.reshape(y.shape) * share
        return y, d[:, :, pad : pad + h, pad : pad + w]

    return of


def max_pooled(kernel, stride, pad):
    return lambda x: F.max_pooling(x, (kernel,) * 2, (stride,) * 2, pad=(pad,) * 2)


def averaged(kernel, stride, pad):
    return lambda x: F.average_pooling(x, (kernel,) * 2, (stride,) * 2, pad=(pad,) * 2)


MAPS = (40, 3, 19, 17)
ROWS = {
    "softmax": (F.softmax, of_softmax, (130, 100)),
    "log_softmax": (F.log_softmax, of_log_softmax, (130, 100)),
    "layer_normalization": (
        lambda x: F.layer_normalization(x, None, None),
        of_layer_normalization,
        (130, 100),
    ),
    "instance_normalization": (
        lambda x: F.instance_normalization(x, None, None),
        of_instance_normalization,
        MAPS,
    ),
    "average_pooling of tiles": (averaged(2, 2, 0), pooling(2, 2, 0, False), (40, 3, 16, 20)),
    "average_pooling": (averaged(3, 2, 1), pooling(3, 2, 1, False), MAPS),
    "max_pooling of tiles": (max_pooled(2, 2, 0), pooling(2, 2, 0, True), (40, 3, 16, 20)),
    "max_pooling": (max_pooled(3, 2, 1), pooling(3, 2, 1, True), MAPS),
}


def near(found, exact, roundings=1.01):
    """Each element within so many roundings to 8 bits of itself, and of 1/1000 of the largest."""
    digits = roundings * 2.0**-8
    atol = digits * 1e-3 * np.max(np.abs(exact))
    np.testing.assert_allclose(found, exact, rtol=digits, atol=atol)


@pytest.mark.parametrize("name", ROWS)
def test_results_and_gradients_against_float64(name):
    call, reference, shape = ROWS[name]
    rng = np.random.default_rng(0)
    x = rounded(rng.standard_normal(shape) + 0.5)
    size = results(call, [x.astype(np.float32)])[0].shape
    dy = rounded(rng.standard_normal(size))
    y, dx = reference(x, dy)
    found, gradient = results(call, [x.astype(np.float32)], dy)
    near(found, y)
    near(gradient, dx)


@pytest.mark.parametrize("name", ROWS)
def test_threads_and_functions_in_a_network_change_no_bit(name):
    call, _, shape = ROWS[name]
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    nn.set_num_threads(1)
    expected = results(lambda x: call(x * 2.0), [x])
    nn.set_num_threads(2)
    for found, other in zip(results(lambda x: call(x * 2.0), [x]), expected, strict=True):
        np.testing.assert_array_equal(found, other)


def test_scores_of_cross_entropy_and_labels_to_ignore():
    rng = np.random.default_rng(0)
    x = rounded(rng.standard_normal((130, 100)) * 3)
    t = rng.integers(-1, 100, (130, 1))
    y, dx = results(F.softmax_cross_entropy, [x.astype(np.float32), t])
    p, known = softmax(x), t >= 0
    picked = np.take_along_axis(p, np.maximum(t, 0), 1)
    near(y, np.where(known, -np.log(picked), 0))
    near(dx, np.where(known, p - (np.arange(100) == t), 0))


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axes", [None, 0, 1, 2, -1, (0, 2), (0, 1), (1, 2), (0, 3), (2, 0, 1)])
def test_sums_and_means(axes, keepdims):
    x = rounded(np.random.default_rng(0).standard_normal((70, 5, 4, 90)) + 1)
    values = [x.astype(np.float32)]
    near(results(lambda x: F.sum(x, axes, keepdims), values)[0], x.sum(axes, keepdims=keepdims))
    near(results(lambda x: F.mean(x, axes, keepdims), values)[0], x.mean(axes, keepdims=keepdims))


def test_a_sum_of_many_numbers_counts_them_all():
    """In bfloat16 itself it would stop at 256."""
    x = np.ones((3, 100_000), np.float32)
    for axis, exact in ((None, 300_000), (1, 100_000), (0, 3)):
        near(results(lambda x, axis=axis: F.sum(x, axis), [x])[0], exact)


@pytest.mark.parametrize("columns", [1, 40])
def test_the_gradient_of_a_table(columns):
    rng = np.random.default_rng(0)
    w = rounded(rng.standard_normal((600, columns))).astype(np.float32)
    index, dy = rng.integers(-600, 600, 20_000), rounded(rng.standard_normal((20_000, columns)))
    y, dw = results(lambda i, w: F.embed(i, w), [index, w], dy)
    exact = np.zeros(w.shape)
    np.add.at(exact, index, dy)
    np.testing.assert_array_equal(y, w[index])
    near(dw, exact)


def test_the_gradient_of_a_bias_is_float32():
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(s).astype(np.float32) for s in [(900, 64), (64, 48), (48,)])
    dy = rounded(rng.standard_normal((900, 48)))
    *_, db = results(F.affine, [x, w, b], dy)
    np.testing.assert_allclose(db, dy.sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not amx.available(), reason="needs a processor with AMX")
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_recurrent_layers_multiply_all_steps_by_tiles(name, monkeypatch):
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[name]
    rng = np.random.default_rng(0)
    x = rounded(rng.standard_normal((20, 32, 64)))
    state = np.zeros((1, 1, 32, 48))
    w = rounded(rng.standard_normal((1, gates, 48, 112) if gates > 1 else (1, 48, 112)) / 10)

    def call(x, w):
        h = nn.Variable.from_numpy_array(state)
        if name == "lstm":
            return F.lstm(x, h, h, w)[0]
        if name == "gru":
            return F.gru(x, h, w)[0]
        return F.rnn(x, h, w)[0]

    exact = results(call, [x, w], precision="highest", type_config="double")
    products = []
    multiply = bfloat16_backend.bfloat16_affine.matmul
    monkeypatch.setattr(
        bfloat16_backend.bfloat16_affine,
        "matmul",
        lambda *a: products.append(a) or multiply(*a),
    )
    found = results(call, [x.astype(np.float32), w.astype(np.float32)])
    assert products
    for a, e in zip(found, exact, strict=True):
        np.testing.assert_allclose(a, e, rtol=0.02, atol=0.02 * np.abs(e).max())
