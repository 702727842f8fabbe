"""Functions with compiled kernels, at sizes that reach several parts: beside float64 and NumPy's.

Small shapes of the whole function table run by `pytest --device numba tests/test_functions.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F

pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")

# Of compiled results beside those of NumPy's kernels: errors against float64.
TIMES = 3


@pytest.fixture(autouse=True)
def restored(on_cpu) -> Iterator[None]:
    before, threads = nn.get_cpu_kernels(), nn.get_num_threads()
    yield
    nn.set_cpu_kernels(before)
    nn.set_num_threads(threads)


@dataclass
class Row:
    """A function of Variables, its inputs, and its value and gradients by the definition.

    `oracle(dy, *inputs)` is in float64: y, and a gradient for each input that is no index.
    """

    name: str
    call: Callable[..., Any]
    inputs: list[np.ndarray]
    oracle: Callable[..., tuple[np.ndarray, ...]]
    dtypes: str = "fd"
    indices: tuple[int, ...] = field(default=())


def rng(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, mean: float = 0.0) -> np.ndarray:
    return rng(len(shape)).standard_normal(shape) + mean


# -- definitions ----------------------------------------------------------------------------------


def batch_normalization(dy: Any, x: Any, beta: Any, gamma: Any) -> tuple[np.ndarray, ...]:
    axes = tuple(i for i in range(x.ndim) if gamma.shape[i] == 1)
    m = x.size // gamma.size
    inverse = 1 / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    normal = (x - x.mean(axes, keepdims=True)) * inverse
    dbeta, dgamma = (v.sum(axes, keepdims=True) for v in (dy, dy * normal))
    dx = gamma * inverse * (dy - dbeta / m - normal * dgamma / m)
    return gamma * normal + beta, dx, dbeta, dgamma


def fused(dy: Any, x: Any, beta: Any, gamma: Any, z: Any) -> tuple[np.ndarray, ...]:
    y = batch_normalization(dy, x, beta, gamma)[0] + z
    passed = np.where(y > 0, dy, 0)
    return np.maximum(y, 0), *batch_normalization(passed, x, beta, gamma)[1:], passed


def own_statistics(x: Any, dy: Any, gamma: Any, beta: Any) -> tuple[np.ndarray, ...]:
    """Normalization of the last axis of x (..., L); gradients of parameters are not summed."""
    inverse = 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    normal = (x - x.mean(-1, keepdims=True)) * inverse
    g = dy * gamma
    dx = g - g.mean(-1, keepdims=True) - normal * (g * normal).mean(-1, keepdims=True)
    return gamma * normal + beta, dx * inverse, dy, dy * normal


def grouped(rows: int) -> Callable[..., tuple[np.ndarray, ...]]:
    """Normalization of each example's elements in `rows` rows."""

    def oracle(dy: Any, x: Any, beta: Any, gamma: Any) -> tuple[np.ndarray, ...]:
        full = [np.broadcast_to(a, x.shape).reshape(len(x), rows, -1) for a in (x, dy, gamma, beta)]
        axes = tuple(i for i, n in enumerate(beta.shape) if n == 1)
        y, dx, dbeta, dgamma = (a.reshape(x.shape) for a in own_statistics(*full))
        return y, dx, *(d.sum(axes, keepdims=True) for d in (dbeta, dgamma))

    return oracle


def softmax(dy: Any, x: Any) -> tuple[np.ndarray, ...]:
    e = np.exp(x - x.max(-1, keepdims=True))
    y = e / e.sum(-1, keepdims=True)
    return y, y * (dy - (dy * y).sum(-1, keepdims=True))


def log_softmax(dy: Any, x: Any) -> tuple[np.ndarray, ...]:
    p = softmax(dy, x)[0]
    return np.log(p), dy - p * dy.sum(-1, keepdims=True)


def cross_entropy(dy: Any, x: Any, t: Any) -> tuple[np.ndarray, ...]:
    p, t = softmax(0, x)[0], t.astype(int)
    hot = np.arange(x.shape[-1]) == t
    loss = -(np.log(p) * hot).sum(-1, keepdims=True)
    return loss, np.where(t < 0, 0, dy) * (p - hot)


def pooled(dy: Any, x: Any, largest: bool, k: int, s: int, pad: int) -> tuple[np.ndarray, ...]:
    fill = -np.inf if largest else 0
    wide = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=fill)
    y, d = np.empty(dy.shape), np.zeros(wide.shape)
    n, c = np.indices(x.shape[:2])
    for i in range(dy.shape[2]):
        for j in range(dy.shape[3]):
            window = np.s_[:, :, i * s : i * s + k, j * s : j * s + k]
            flat = wide[window].reshape(*x.shape[:2], -1)
            if largest:
                place = flat.argmax(-1)
                y[:, :, i, j] = flat.max(-1)
                d[n, c, i * s + place // k, j * s + place % k] += dy[:, :, i, j]
            else:
                y[:, :, i, j] = flat.mean(-1)
                d[window] += dy[:, :, i, j, None, None] / k**2
    inner = slice(pad, -pad or None)
    return y, d[:, :, inner, inner]


def embedding(dy: Any, i: Any, w: Any) -> tuple[np.ndarray, ...]:
    dw = np.zeros(w.shape)
    np.add.at(dw, i.astype(int), dy)
    return w[i.astype(int)], dw


# -- rows -----------------------------------------------------------------------------------------


def normalization(name: str, shape: tuple[int, ...], axis: int = 1, **options: Any) -> Row:
    channel = tuple(n if i == axis else 1 for i, n in enumerate(shape))
    inputs = [normal(*shape, mean=3), normal(*channel), normal(*channel, mean=1)]

    def call(x: Any, beta: Any, gamma: Any) -> Any:
        running = nn.Variable(channel), nn.Variable(channel)
        return F.batch_normalization(x, beta, gamma, *running, axes=[axis], **options)

    return Row(f"batch_normalization {name}", call, inputs, batch_normalization)


def fused_row() -> Row:
    channel = (1, 16, 1, 1)
    inputs = [normal(64, 16, 8, 8), normal(*channel), normal(*channel, mean=1)]

    def call(x: Any, beta: Any, gamma: Any, z: Any) -> Any:
        running = nn.Variable(channel), nn.Variable(channel)
        return F.fused_batch_normalization(x, beta, gamma, *running, z)

    z = rng(8).standard_normal((64, 16, 8, 8))
    return Row("fused_batch_normalization", call, [*inputs, z], fused)


def rows_of(name: str, shape: tuple[int, ...], rows: int, per_channel: bool, **options: Any) -> Row:
    parameter = (1, shape[1], *(1,) * (len(shape) - 2)) if per_channel else (1, *shape[1:])
    inputs = [normal(*shape, mean=3), normal(*parameter), normal(*parameter, mean=1)]
    function = getattr(F, name)
    return Row(name, lambda *v: function(*v, **options), inputs, grouped(rows))


def pooling(name: str, k: int, s: int, pad: int) -> Row:
    function = getattr(F, name)
    x = rng(3).permutation(50_000 * 2)[: 60 * 16 * 11 * 9].reshape(60, 16, 11, 9) / 50_000

    def call(x: Any) -> Any:
        return function(x, (k, k), stride=(s, s), pad=(pad, pad))

    return Row(
        f"{name} {k} by {s}",
        call,
        [x],
        lambda dy, x: pooled(dy, x, name == "max_pooling", k, s, pad),
    )


LABELS = rng(2).integers(-1, 40, (2000, 1)).astype(float)
ROWS = [
    normalization("maps", (64, 48, 9, 9)),
    normalization("small maps", (700, 30, 3, 3)),
    normalization("vectors", (3000, 70)),
    normalization("channel_last", (40, 9, 9, 24), axis=3),
    normalization("one part", (4, 40, 8, 8)),
    fused_row(),
    rows_of("layer_normalization", (900, 130), 1, False),
    rows_of("group_normalization", (70, 12, 9, 9), 4, True, num_groups=4),
    rows_of("instance_normalization", (90, 12, 9, 9), 12, True),
    Row("softmax", F.softmax, [3 * normal(2000, 40)], softmax),
    Row("log_softmax", F.log_softmax, [3 * normal(2000, 40)], log_softmax),
    Row("softmax of long rows", F.softmax, [3 * normal(7, 9001)], softmax),
    Row("softmax_cross_entropy", F.softmax_cross_entropy, [3 * normal(2000, 40), LABELS],
        cross_entropy, indices=(1,)),
    *(pooling(name, *windows) for name in ("average_pooling", "max_pooling")
      for windows in ((2, 2, 0), (3, 2, 1), (3, 1, 0))),
    Row("embed", F.embed, [rng(1).integers(0, 300, 4000).astype(float), normal(300, 130)],
        embedding, indices=(0,)),
]  # fmt: skip


def results(row: Row, kernels: str, dtype: str, threads: int = 1) -> list[np.ndarray]:
    """y and gradients, with a dy that is the same for all."""
    nn.set_cpu_kernels(kernels)
    nn.set_num_threads(threads)
    with nn.context_scope(nn.Context([f"cpu:{'float' if dtype == 'f' else 'double'}"])):
        inputs = [
            nn.Variable.from_numpy_array(
                a.astype(int) if i in row.indices else a.astype(dtype),
                need_grad=i not in row.indices,
            )
            for i, a in enumerate(row.inputs)
        ]
        y = row.call(*inputs)
        y.forward()
        y.backward(outer(y.shape).astype(dtype))
        return [y.d.copy(), *(v.g.copy() for v in inputs if v.need_grad)]


def outer(shape: tuple[int, ...]) -> np.ndarray:
    return rng(11).standard_normal(shape)


def error(found: np.ndarray, exact: np.ndarray) -> float:
    assert found.shape == exact.shape
    return float(np.abs(found - exact).max() / np.abs(exact).max())


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_as_near_to_float64_as_numpys_kernels(row, dtype):
    found = results(row, "numba", dtype)
    numpys = results(row, "numpy", dtype)
    inputs = [a.astype(dtype).astype(np.float64) for a in row.inputs]
    dy = outer(found[0].shape).astype(dtype).astype(np.float64)
    least = np.finfo(dtype).eps * (10 if dtype == "d" else 1)  # the oracle's own errors
    for a, b, exact in zip(found, numpys, row.oracle(dy, *inputs), strict=True):
        assert a.dtype == np.dtype(dtype)
        assert error(a, exact) <= TIMES * max(error(b, exact), least)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_threads_change_no_bit(row):
    for a, b in zip(results(row, "numba", "f", 1), results(row, "numba", "f", 3), strict=True):
        np.testing.assert_array_equal(a, b)


def test_labels_and_indices_out_of_range_are_named(on_cpu):
    nn.set_cpu_kernels("numba")
    x, w = nn.Variable((2000, 40)), nn.Variable((300, 130))
    wrong = nn.Variable.from_numpy_array(np.full((2000, 1), 40))
    with nn.auto_forward():
        with pytest.raises(IndexError, match="2000 of 2000 labels are out of range"):
            F.softmax_cross_entropy(x, wrong)
        with pytest.raises(IndexError, match="index 300 is out of range"):
            F.embed(nn.Variable.from_numpy_array(np.full(9000, 300)), w)


def test_half_precision_is_numpys():
    row = next(row for row in ROWS if row.name == "softmax")
    nn.set_cpu_kernels("numba")
    with nn.context_scope(nn.Context(["cpu:half"])):
        y = F.softmax(nn.Variable.from_numpy_array(row.inputs[0]))
    assert y.parent.setup.implementation is y.parent.setup.function


def test_every_row_has_a_kernel():
    """Of a twin, or as a function's own text finds it in its xp."""
    nn.set_cpu_kernels("numba")
    found = set()
    for row in ROWS:
        node = row.call(*[nn.Variable(a.shape) for a in row.inputs]).parent
        while node is not None:
            found.add(type(node.setup.implementation).__module__)
            node = node.inputs[0].parent
    twins = {"pooling", "softmax", "tensor_normalization"}
    assert {f"distnn.cpu.{name}" for name in twins} <= found


def test_small_arrays_are_numpys():
    from distnn.cpu import twin

    nn.set_cpu_kernels("numba")
    edge = twin.SMALLEST // 10
    for rows, compiled in ((edge, False), (edge + 1, True)):
        setup = F.softmax(nn.Variable((rows, 10))).parent.setup
        assert (setup.implementation is not setup.function) == compiled
