"""Mixed precision on the CPU: every function in bfloat16, and what belongs to such a context."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from precision import SMOOTH, compare

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S
from distnn.context import World, world_scope
from distnn.errors import ContextError, LabelError, MissingExtraError

pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")
pytest.importorskip("ml_dtypes")

import ml_dtypes

from distnn.cpu import amx, bfloat16, bfloat16_affine


@pytest.fixture(autouse=True)
def compiled(on_cpu) -> Iterator[None]:
    before, threads = nn.get_cpu_kernels(), nn.get_num_threads()
    nn.set_cpu_kernels("numba")
    yield
    nn.set_cpu_kernels(before)
    nn.set_num_threads(threads)


def context(precision="bf16", type_config="float"):
    return nn.Context([f"cpu:{type_config}"], precision=precision)


def widened(v):
    return v.astype(ml_dtypes.bfloat16).astype(np.float32)


@pytest.mark.parametrize("case", SMOOTH, ids=lambda case: case.id)
def test_every_function_computes_in_bfloat16(case):
    compare(case, context(), context("highest"), widened)


@pytest.mark.parametrize("size", [5, 100_000])
def test_numbers_are_converted_as_ml_dtypes_does(size):
    bits = np.random.default_rng(0).integers(0, 2**32, size, np.uint32)
    bits[:4] = [0x3F808000, 0x3F818000, 0x7F800000, 1]
    values = bits.view(np.float32)
    with np.errstate(invalid="ignore"):
        expected = values.astype(ml_dtypes.bfloat16)
    found = bfloat16.converted(values)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found.astype(np.float32), expected.astype(np.float32))
    np.testing.assert_array_equal(bfloat16.wide(found), expected.astype(np.float32))
    turned = bfloat16.converted(values.reshape(-1, 5).T)
    np.testing.assert_array_equal(turned.T.reshape(-1).astype(np.float32), bfloat16.wide(found))


@pytest.mark.parametrize("type_config", ["float", "half", "mixed_half"])
def test_bfloat16_results_and_float32_parameters(type_config):
    with nn.context_scope(context(type_config=type_config)):
        y = PF.affine(nn.Variable.from_numpy_array(np.ones((2, 3), np.float32)), 4)
        loss = F.mean(y)
        loss.forward()
        loss.backward()
        assert y.data.dtype.name == "bfloat16"
        assert y.d.dtype == np.float32  # as users see it
        for parameter in nn.get_parameters().values():
            assert parameter.data.dtype == parameter.grad.dtype == np.float32
        y.d[...] = 2
        z = y + 1
        z.parent.execute()
        np.testing.assert_array_equal(z.d, np.full((2, 4), 3))


@pytest.mark.parametrize("size", [100, 50_000])
def test_formulas_are_rounded_once(size):
    """Of a formula and of its gradient: ml_dtypes' nearest number of the one in float64."""
    v = widened(np.random.default_rng(0).standard_normal(size).astype(np.float32) * 3)
    with nn.context_scope(context()):
        x = nn.Variable.from_numpy_array(v, need_grad=True)
        y = F.tanh(x)
        y.forward()
        y.backward(1.0)
    exact = np.tanh(v.astype(np.float64))
    assert np.mean(y.d == widened(exact.astype(np.float32))) > 0.999  # of doubtful cases some
    np.testing.assert_allclose(x.g, 1 - y.d.astype(np.float64) ** 2, rtol=2.0**-8, atol=1e-7)


def test_running_statistics_move_by_less_than_bfloat16_can_tell():
    v = np.random.default_rng(0).standard_normal((256, 4, 4, 4)).astype(np.float32) + 1
    with nn.context_scope(context()):
        h = PF.batch_normalization(nn.Variable.from_numpy_array(v), decay_rate=0.999)
        for _ in range(100):
            h.forward()
    mean = nn.get_parameters(grad_only=False)["bn/mean"].d.reshape(-1)
    expected = widened(v).astype(np.float64).mean((0, 2, 3)) * (1 - 0.999**100)
    np.testing.assert_allclose(mean, expected, rtol=1e-4)


@pytest.mark.parametrize("output_stat", [False, True])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_batch_normalization_against_float64(mean, output_stat):
    """A mean far larger than the deviation costs nothing but digits of x."""
    rng = np.random.default_rng(0)
    x = widened((rng.standard_normal((96, 70, 5, 8)) + mean).astype(np.float32))
    beta, gamma = (widened(rng.standard_normal((1, 70, 1, 1)).astype(np.float32)) for _ in range(2))
    dy = widened(rng.standard_normal(x.shape).astype(np.float32))
    with nn.context_scope(context()):
        leaves = [nn.Variable.from_numpy_array(v, need_grad=True) for v in (x, beta, gamma)]
        statistics = [nn.Variable.from_numpy_array(np.zeros_like(beta)) for _ in range(2)]
        y = F.batch_normalization(*leaves, *statistics, output_stat=output_stat)
        if output_stat:
            y, found_mean, found_variance = y
            F.sum(y * nn.Variable.from_numpy_array(dy)).forward()
            for found, exact in (
                (found_mean, x.mean((0, 2, 3))),
                (found_variance, x.var((0, 2, 3))),
            ):
                np.testing.assert_allclose(found.d.reshape(-1), exact, rtol=2.0**-8, atol=1e-2)
        y.forward()
        y.backward(nn.NdArray.from_numpy_array(dy))
    wide = x.astype(np.float64)
    m, axes = x.size // 70, (0, 2, 3)
    centred = wide - wide.mean(axes, keepdims=True)
    inverse = 1 / np.sqrt(wide.var(axes, keepdims=True) + 1e-5)
    normal = centred * inverse
    dbeta = dy.astype(np.float64).sum(axes, keepdims=True)
    dgamma = (dy * normal).sum(axes, keepdims=True)
    dx = gamma * inverse * (dy - dbeta / m - normal * dgamma / m)
    np.testing.assert_allclose(y.d, normal * gamma + beta, rtol=2.0**-8, atol=1e-4)
    for leaf, exact in zip(leaves, (dx, dbeta, dgamma), strict=True):
        np.testing.assert_allclose(leaf.g, exact, rtol=2.0**-8, atol=1e-3)


CHAINS = {
    "tanh": lambda h, other: F.tanh(h),
    "add, relu": lambda h, other: F.relu(h + other),
    "links": lambda h, other: F.tanh(h * 2.5) * F.sigmoid(h),
    "kept": lambda h, other: F.tanh(h) + h,
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_chain_after_batch_normalization_is_rounded_at_each_formula(chain):
    rng = np.random.default_rng(0)
    values = [rng.standard_normal((40, 24, 4, 8)).astype(np.float32) * 3 + 1 for _ in range(2)]
    found, listings = [], []
    for options in ({}, {"function_pre_hook": lambda function: None}):  # as one, and one by one
        with world_scope(World()), nn.context_scope(context()):
            x, other = (nn.Variable.from_numpy_array(v, need_grad=True) for v in values)
            h = CHAINS[chain](PF.batch_normalization(x * 1.5), other)
            loss = F.mean(h * h)
            leaves = [x, *nn.get_parameters().values()]
            leaves += [other] if chain == "add, relu" else []
            for _ in range(3):  # from the second run on it is a program
                for leaf in leaves:
                    leaf.grad.zero()
                loss.forward(clear_no_need_grad=True, **options)
                loss.backward(clear_buffer=True, **options)
            parameters = nn.get_parameters(grad_only=False).values()
            found.append([loss.d, *(leaf.g for leaf in leaves), *(p.d for p in parameters)])
            listings.append(str(nn.profiler.listing(loss)))
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)
    assert "batch_normalization, " in listings[0]


def network(x, t):
    h = F.tanh(PF.batch_normalization(PF.convolution(x, 32, (3, 3), pad=(1, 1), name="c1")))
    h = F.max_pooling(h, (2, 2))
    h = F.relu(PF.convolution(h, 48, (3, 3), stride=(2, 2), name="c2"))
    return F.mean(F.softmax_cross_entropy(PF.affine(h, 10), t))


def training(dynamic, threads=2, precision="bf16", steps=6):
    """Losses, and parameters at the end."""
    nn.set_num_threads(threads)
    rng = np.random.default_rng(3)
    images = rng.standard_normal((64, 3, 8, 8)).astype(np.float32)
    labels = rng.integers(0, 10, (64, 1))
    with world_scope(World()), nn.context_scope(context(precision)):
        x, t = nn.Variable(images.shape), nn.Variable(labels.shape)
        x.d, t.d = images, labels
        solver, losses = S.Adam(3e-3), []
        loss = None if dynamic else network(x, t)
        for _ in range(steps):
            if dynamic:
                with nn.auto_forward():
                    loss = network(x, t)
                solver.set_parameters(nn.get_parameters(), reset=False, retain_state=True)
            else:
                solver.set_parameters(nn.get_parameters(), reset=False, retain_state=True)
                loss.forward(clear_no_need_grad=True)
            solver.zero_grad()
            loss.backward(clear_buffer=True)
            solver.update()
            losses.append(float(loss.d))
        return losses, [p.d.copy() for p in nn.get_parameters(grad_only=False).values()]


def test_static_dynamic_and_threads_give_the_same_bits():
    losses, parameters = training(dynamic=False)
    for other in (training(dynamic=True), training(dynamic=False, threads=1)):
        assert other[0] == losses
        for a, b in zip(parameters, other[1], strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_shallow_network_learns_as_in_float32():
    found, _ = training(dynamic=False, steps=20)
    expected, _ = training(dynamic=False, precision="highest", steps=20)
    assert expected[-1] < expected[0] / 2
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.1)


@pytest.mark.parametrize("tiles", [True, False], ids=["tiles", "float32"])
def test_products_with_tiles_and_without(tiles, monkeypatch):
    if tiles and not amx.available():
        pytest.skip("needs a processor with AMX")
    monkeypatch.setattr(bfloat16_affine, "uses_tiles", lambda: tiles)
    rng = np.random.default_rng(1)
    x, w, b = (
        widened(rng.standard_normal(s).astype(np.float32)) for s in [(50, 3, 40), (120, 70), (70,)]
    )
    with nn.context_scope(context()):
        leaves = [nn.Variable.from_numpy_array(v, need_grad=True) for v in (x, w, b)]
        y = F.affine(*leaves)
        y.forward()
        y.backward(1.0)
    x, w = x.reshape(50, 120).astype(np.float64), w.astype(np.float64)
    for found, exact in [
        (y.d, x @ w + b),
        (leaves[0].g.reshape(50, 120), np.ones((50, 70)) @ w.T),
        (leaves[1].g, x.T @ np.ones((50, 70))),  # float32: not rounded
        (leaves[2].g, np.full(70, 50.0)),
    ]:
        digits = 1e-6 if found is leaves[1].g else 2.0**-8
        np.testing.assert_allclose(found, exact, rtol=digits, atol=1e-5)


def test_a_processor_without_tiles_is_told_once(monkeypatch, caplog):
    monkeypatch.setattr(amx, "problem", lambda: "this processor has none")
    bfloat16_affine.uses_tiles.cache_clear()
    with caplog.at_level("WARNING", "distnn"):
        assert not bfloat16_affine.uses_tiles()
        bfloat16_affine.uses_tiles()
    bfloat16_affine.uses_tiles.cache_clear()
    assert [r.message for r in caplog.records if "has none" in r.message] == caplog.messages
    assert len(caplog.messages) == 1


def test_linux_that_gives_no_permission(monkeypatch):
    class Refusing:
        def syscall(self, *numbers):
            return -1

    monkeypatch.setattr(amx, "has_feature", lambda name: True)
    monkeypatch.setattr(amx.sys, "platform", "linux")
    monkeypatch.setattr(amx.ctypes, "CDLL", lambda *a, **k: Refusing())
    amx.problem.cache_clear()
    assert "does not let this process use" in amx.problem()
    amx.problem.cache_clear()


def test_labels_are_checked():
    with nn.context_scope(context()):
        x = nn.Variable.from_numpy_array(np.zeros((2, 3), np.float32))
        t = nn.Variable.from_numpy_array(np.array([[0.0], [3.0]], np.float32))
        with pytest.raises(LabelError, match="3"):
            F.softmax_cross_entropy(x, t).forward()


def test_bfloat16_needs_compiled_kernels():
    nn.set_cpu_kernels("numpy")
    with pytest.raises(ContextError, match=r"kernels 'numpy' are chosen; call nn.set_cpu_kernels"):
        nn.set_default_context(context())


def test_bfloat16_without_numba(monkeypatch):
    def version(name):
        raise importlib.metadata.PackageNotFoundError(name)

    nn.set_cpu_kernels("numpy")
    monkeypatch.setattr("distnn.kernels.importlib.metadata.version", version)
    with pytest.raises(MissingExtraError, match=r"not installed; pip install 'distnn\[cpu\]'"):
        nn.set_default_context(context())


def test_bfloat16_without_ml_dtypes(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(MissingExtraError, match=r"needs the package ml_dtypes.*pip install"):
        nn.set_default_context(context())


def test_precision_and_type_config_that_contradict_each_other():
    with pytest.raises(ContextError, match="precision is 'bf16' but type_config 'double'"):
        nn.set_default_context(context(type_config="double"))


def test_half_alone_is_float16():
    with nn.context_scope(context("highest", "half")):
        y = nn.Variable.from_numpy_array(np.ones(2, np.float32)) * 2
        y.forward()
    assert y.d.dtype == np.float16


def test_what_users_write_is_not_rounded_before_a_function_reads_it():
    """Labels above 256 are not numbers of bfloat16."""
    with nn.context_scope(context()):
        t = nn.Variable((2, 1))
        t.d[...] = [[999], [777]]
        y = F.one_hot(t, (1000,))
        y.forward()
        assert t.data.dtype == nn.NdArray((2,)).dtype == np.float32
    np.testing.assert_array_equal(np.argmax(y.d, 1), [999, 777])
