"""Recompute: less is kept, and nothing else changes, to the bit."""

from __future__ import annotations

import weakref
from contextlib import nullcontext

import numpy as np
import pytest

import distnn as nn
import distnn.communicators as C
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S
from distnn.context import Context, context_scope, current_world
from distnn.errors import ArgumentError, ClearedError
from distnn.function import PythonFunction


def leaf(values, need_grad=True):
    variable = nn.Variable.from_numpy_array(np.asarray(values, np.float32))
    variable.need_grad = need_grad
    return variable


def nothing(function):
    pass


def network(x, t, block):
    """Blocks with convolution, running statistics, random numbers, reshapes, tied weights."""
    h = x
    for i in range(3):
        with block():
            b = PF.batch_normalization(PF.convolution(h, 4, (3, 3), pad=(1, 1), name=f"c{i}"))
            b = F.dropout(F.relu(b), 0.25)
            b = F.tanh(b * 1.5)
            b = F.reshape(F.reshape(b, (b.shape[0], 4, -1)), (b.shape[0], 4, 4, 4))
            b = b + PF.convolution(h, 4, (1, 1), name=f"s{i}")
        h = F.sigmoid(b)
    with block():
        a, b = F.split(F.reshape(h, (h.shape[0], 2, -1)), axis=1)
        h = F.tanh(PF.affine(PF.affine(a * b, 6, name="a"), 6, name="same"))
        h = PF.affine(F.concatenate(h, h * 0.5, axis=1), 5, name="b")
        return F.mean(F.softmax_cross_entropy(h, t))


def train(block, mode, hook=None, rounds=4, net=network):
    """Losses, random state and parameters of some iterations."""
    nn.clear_parameters()
    nn.seed(3)
    rng = np.random.RandomState(5)
    solver = S.Adam(0.01)
    losses = []
    if mode == "static":
        x, t = nn.Variable((6, 2, 4, 4)), nn.Variable((6, 1))
        loss = net(x, t, block)
    for _ in range(rounds):
        images, labels = rng.randn(6, 2, 4, 4).astype(np.float32), rng.randint(0, 5, (6, 1))
        if mode == "static":
            x.d, t.d = images, labels
            loss.forward(clear_no_need_grad=True, function_pre_hook=hook)
        else:
            x, t = map(nn.Variable.from_numpy_array, (images, labels))
            with nn.auto_forward(defer=mode == "deferred"):
                loss = net(x, t, block)
        losses.append(loss.d.copy())
        solver.set_parameters(nn.get_parameters(), reset=False, retain_state=True)
        solver.zero_grad()
        loss.backward(clear_buffer=True, function_pre_hook=hook)
        solver.update()
    parameters = nn.get_parameters(grad_only=False)
    return [*losses, current_world().draws, *(p.d.copy() for p in parameters.values())]


@pytest.fixture
def expected():
    return train(nullcontext, "at once")


@pytest.mark.parametrize("hook", [None, nothing])
@pytest.mark.parametrize("mode", ["static", "at once", "deferred"])
def test_training_has_the_same_bits(expected, mode, hook):
    for a, b in zip(train(nn.recompute, mode, hook), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_ranks_have_the_same_bits():
    def work(block):
        rank = C.DataParallelCommunicator()
        rank.init()
        nn.seed(3)
        x = leaf(np.random.RandomState(rank.rank).randn(6, 2, 4, 4), False)
        t = nn.Variable.from_numpy_array(np.arange(6)[:, None] % 5)
        loss = network(x, t, block)
        grads = [p.grad for p in nn.get_parameters().values()]
        for _ in range(2):
            loss.forward(clear_no_need_grad=True)
            for p in nn.get_parameters().values():
                p.grad.zero()
            loss.backward(
                clear_buffer=True, communicator_callbacks=rank.all_reduce_callback(grads, 64)
            )
        return [g.data.copy() for g in grads]

    for mine, other in zip(
        C.run_threads(lambda: work(nn.recompute), 2),
        C.run_threads(lambda: work(nullcontext), 2),
        strict=True,
    ):
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_gradients_are_those_of_the_definition():
    rng = np.random.RandomState(0)
    a, w = rng.randn(4, 3), rng.randn(3, 2)
    with context_scope(Context(["cpu:double"])):
        x, m = (nn.Variable.from_numpy_array(v, need_grad=True) for v in (a, w))
        with nn.recompute():
            h = F.tanh(F.affine(x, m))
            y = F.exp(h) * h
        loss = F.sum(y * y)
        for _ in range(2):
            x.grad.zero()
            m.grad.zero()
            loss.forward(clear_no_need_grad=True)
            loss.backward(clear_buffer=True)
    h = np.tanh(a @ w)
    dh = 2 * h * (1 + h) * np.exp(2 * h) * (1 - h * h)
    np.testing.assert_allclose(x.g, dh @ w.T, rtol=1e-12)
    np.testing.assert_allclose(m.g, a.T @ dh, rtol=1e-12)


# -- what is kept ----------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [{}, {"clear_no_need_grad": True}])
@pytest.mark.parametrize("hook", [None, nothing])
def test_a_static_graph_keeps_no_marked_result(flags, hook):
    x = leaf([0.5, -1.0])
    with nn.recompute():
        h = F.tanh(x)
        k = F.tanh(h).apply(persistent=True)
    y = F.sum(F.tanh(k))
    for _ in range(3):
        y.forward(function_pre_hook=hook, **flags)
        assert h.data.clear_called or h.data._storage.array is None
        with pytest.raises(ClearedError):
            h.d  # noqa: B018
        np.testing.assert_allclose(k.d, np.tanh(np.tanh([0.5, -1.0])), rtol=1e-6)
        x.grad.zero()
        y.backward(function_pre_hook=hook)
    slope = np.prod([1 - v**2 for v in np.tanh([x.d, np.tanh(x.d), np.tanh(np.tanh(x.d))])], 0)
    np.testing.assert_allclose(x.g, slope, rtol=1e-5)


@pytest.mark.parametrize("defer", [True, False])
def test_a_dynamic_graph_keeps_no_marked_result(defer):
    x = leaf([0.5, -1.0])
    for _ in range(3):
        with nn.auto_forward(defer=defer):
            with nn.recompute():
                h = F.tanh(x)
                data = weakref.ref(h.data)
                h = F.tanh(h)
            y = F.sum(h * h)
        y.d  # noqa: B018
        assert data() is None
        np.testing.assert_allclose(h.d, np.tanh(np.tanh([0.5, -1.0])), rtol=1e-6)
        x.grad.zero()
        y.backward(clear_buffer=True)
    a = np.tanh(x.d)
    np.testing.assert_allclose(x.g, 2 * np.tanh(a) * (1 - np.tanh(a) ** 2) * (1 - a * a), rtol=1e-5)


def test_backward_may_run_again():
    x = leaf([0.5, -1.0])
    with nn.recompute():
        y = F.dropout(F.tanh(x) * 3.0, 0.5)
    y = F.sum(y * y)
    y.forward()
    found = []
    for _ in range(2):
        x.grad.zero()
        y.backward()
        found.append(x.g.copy())
    np.testing.assert_array_equal(*found)


def test_hooks_see_every_function_once():
    x, seen = leaf([0.5, -1.0]), []
    with nn.recompute():
        y = F.exp(F.tanh(x))
    y = F.sum(y * y)

    def hook(function):
        seen.append(function.name)

    y.forward(function_pre_hook=hook)
    y.backward(function_post_hook=hook)
    forward = ["Tanh", "Exp", "Mul2", "Sum"]
    assert seen == forward + forward[::-1]


def test_effects_happen_once():
    x, counter = leaf([1.0]), leaf([0.0], False)
    with nn.recompute():
        y = F.assign(counter, counter + 1.0) * F.exp(x)
    y = F.sum(y * y)
    for k in range(3):
        y.forward(clear_no_need_grad=True)
        y.backward(clear_buffer=True)
        assert float(counter.d[0]) == k + 1


class Times(PythonFunction):
    calls = 0
    name = "Times"

    def min_outputs(self):
        return 1

    def setup_impl(self, inputs, outputs):
        outputs[0].reset_shape(inputs[0].shape, True)

    def forward_impl(self, inputs, outputs):
        Times.calls += 1
        outputs[0].d = inputs[0].d * Times.calls

    def backward_impl(self, inputs, outputs, propagate_down, accum):
        inputs[0].g = outputs[0].g * Times.calls

    def grad_depends_output_data(self, i, o):
        return False

    def grad_depends_input_data(self, i, j):
        return False


def test_what_users_write_is_not_computed_again():
    x = leaf([0.5])
    with nn.recompute():
        h = Times()(F.tanh(x))
    y = F.exp(h)
    y.forward(clear_no_need_grad=True)
    assert Times.calls == 1
    y.backward(clear_buffer=True)
    assert Times.calls == 1


# -- marks -----------------------------------------------------------------------------------------


def test_marks_of_blocks_functions_and_threads():
    x = leaf([1.0])

    @nn.recompute_fn()
    def block(v):
        with nn.recompute(False):
            a = F.exp(v)
        return a, F.exp(a)

    a, b = block(x)
    assert (a.recompute, b.recompute, F.exp(x).recompute, x.recompute) == (
        False,
        True,
        False,
        False,
    )
    nn.set_global_recompute(True)
    try:
        assert F.exp(x).recompute
        assert not nn.recompute_fn(False)(F.exp)(x).recompute
    finally:
        nn.set_global_recompute(False)


def test_a_mark_counts_from_the_next_forward_on():
    x = leaf([0.5])
    h = F.tanh(x)
    y = F.exp(h)
    y.forward(clear_no_need_grad=True)
    h.recompute = True
    y.backward()
    y.forward()
    with pytest.raises(ClearedError, match="recompute"):
        h.d  # noqa: B018
    h.recompute = False
    y.backward(clear_buffer=True)
    y.forward()
    np.testing.assert_allclose(h.d, np.tanh([0.5]), rtol=1e-6)
    y.backward()
    np.testing.assert_allclose(x.g, 3 * (1 - h.d**2) * np.exp(h.d), rtol=1e-6)


def test_in_dynamic_mode_a_mark_counts_until_the_value_is_computed():
    x = leaf([0.5])
    for _ in range(3):
        with nn.auto_forward():
            h = F.tanh(x).apply(recompute=True)
            assert h.recompute
            k = F.tanh(h)
            k.d  # noqa: B018
            k.recompute = True
            assert not k.recompute
            y = F.exp(k)
        x.grad.zero()
        y.backward()
        a = np.tanh(0.5)
        np.testing.assert_allclose(
            x.g, np.exp(np.tanh(a)) * (1 - np.tanh(a) ** 2) * (1 - a * a), rtol=1e-5
        )


def test_one_of_several_results_can_be_marked():
    x = leaf([[0.5, -1.0], [-0.75, 0.25]])
    a, b = F.split(F.exp(x), axis=0)
    a.recompute = True
    y = F.sum(F.tanh(a) * F.tanh(b))
    y.forward(clear_no_need_grad=True)
    y.backward(clear_buffer=True)
    e = np.exp(x.d.astype(np.float64))
    t = np.tanh(e)
    np.testing.assert_allclose(x.g, t[::-1] * (1 - t * t) * e, rtol=1e-4)


def test_marks_are_part_of_the_structure_and_make_no_new_plans():
    x = leaf([0.5])

    def iterate(block):
        with nn.auto_forward():
            with block():
                h = F.exp(F.tanh(x))
            y = F.sum(h * h)
        y.backward(clear_buffer=True)

    for block in (nullcontext, nn.recompute):
        for _ in range(2):
            iterate(block)
    misses = nn.profiler.plan_stats()["misses"]
    for block in (nullcontext, nn.recompute) * 3:
        iterate(block)
    assert nn.profiler.plan_stats()["misses"] == misses


# -- beside other things ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["static", "at once", "deferred"])
def test_gradients_of_gradients(mode):
    def run(block):
        found = []
        x = leaf([0.5, -1.0])
        for _ in range(3):
            x.grad.zero()
            with nn.auto_forward(mode != "static", defer=mode == "deferred"):
                with block():
                    h = F.sin(x * F.exp(x))
                    h = F.tanh(h) ** 2.0
                y = F.sum(h * h)
                (g,) = nn.grad([y], [x])
                with block():
                    z = F.sin(g) * g
                z = F.sum(z * z)
            if mode == "static":
                z.forward(clear_no_need_grad=True)
            z.backward(clear_buffer=True)
            found += [z.d.copy(), x.g.copy()]
        return found

    for a, b in zip(run(nn.recompute), run(nullcontext), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("mode", ["static", "at once", "deferred"])
def test_values_that_go_from_one_precision_to_another(mode):
    def run(block):
        x = leaf(np.random.RandomState(0).randn(3, 4))
        for _ in range(3):
            with nn.auto_forward(mode != "static", defer=mode == "deferred"), block():
                with context_scope(Context(["cpu:half"])):
                    h = F.tanh(x) * 3.0
                h = F.exp(F.sin(h))
                with context_scope(Context(["cpu:double"])):
                    y = F.sum(F.tanh(h) * h)
            if mode == "static":
                y.forward(clear_no_need_grad=True)
            y.backward(clear_buffer=True)
        return x.g.copy()

    np.testing.assert_array_equal(run(nn.recompute), run(nullcontext))


def test_a_look_in_the_middle():
    x = leaf([0.5, -1.0])

    def run(block):
        x.grad.zero()
        for _ in range(3):
            with nn.auto_forward():
                with block():
                    h = F.exp(F.tanh(x))
                    float(h.d[0])
                    h = F.sin(F.reshape(h, (2, 1))) * 2.0
                    float(h.d[0, 0])
                    h = F.tanh(h)
                y = F.sum(h * h)
            y.backward(clear_buffer=True)
        return x.g.copy()

    np.testing.assert_array_equal(run(nn.recompute), run(nullcontext))


def test_two_losses_over_one_trunk():
    x = leaf([0.5, -1.0])
    with nn.recompute():
        h = F.exp(F.tanh(x))
    a, b = F.sum(h * h), F.sum(F.tanh(h))
    for _ in range(2):
        x.grad.zero()
        nn.forward_all([a, b], clear_no_need_grad=True)
        a.backward()
        b.backward()
    t = np.tanh(x.d.astype(np.float64))
    e = np.exp(t)
    slope = (2 * e + 1 - np.tanh(e) ** 2) * e * (1 - t * t)
    np.testing.assert_allclose(x.g, slope, rtol=1e-5)


def test_a_decorator_without_parentheses_is_refused():
    with pytest.raises(ArgumentError, match=r"the function block; .*@nn.recompute_fn\(\) with"):

        @nn.recompute_fn
        def block(x):
            return x

    with pytest.raises(ArgumentError, match="function is int; decorate a function"):
        nn.recompute_fn()(3)
