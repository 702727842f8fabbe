"""Programs of plans: the same bits and the same state as walking through the plan step by step.

A hook makes the engine walk; without one a graph that runs again has a program.
"""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S
from distnn import backward_program, forward_program
from distnn.context import current_backend
from distnn.errors import ClearedError, LabelError
from distnn.memory import pool


def nothing(function):
    pass


def walking(variable, kind, **options):
    getattr(variable, kind)(function_pre_hook=nothing, **options)


def running(variable, kind, **options):
    getattr(variable, kind)(**options)


def convolutional(x, t):
    """Convolution, batch normalization, reshape, dropout, a value used twice, an unused output."""
    h = PF.batch_normalization(PF.convolution(x, 4, (3, 3), pad=(1, 1), name="c"), name="n")
    h = F.relu(h + PF.convolution(x, 4, (1, 1), name="s"))
    h = F.dropout(F.max_pooling(h, (2, 2)), 0.25, seed=7)
    a, _ = F.split(F.reshape(h, (h.shape[0], 2, -1)), axis=1)
    h = F.tanh(PF.affine(a, 6, name="a"))
    h = F.concatenate(h, h * 0.5, axis=1)
    return F.mean(F.softmax_cross_entropy(PF.affine(h, 5, name="b"), t))


def recurrent(x, t):
    """One weight used three times."""
    h = F.reshape(x, (x.shape[0], -1))
    for _ in range(3):
        h = F.tanh(PF.affine(h, h.shape[1], name="same"))
    return F.mean(F.softmax_cross_entropy(PF.affine(h, 5, name="b"), t))


def train(network, run, iterations=4, accumulate=False):
    """Losses and parameters of some iterations."""
    nn.clear_parameters()
    nn.random.set_parameter_seed(313)
    x, t = nn.Variable((6, 2, 4, 4)), nn.Variable((6, 1))
    loss = network(x, t)
    solver = S.Adam(0.01)
    solver.set_parameters(nn.get_parameters())
    losses = []
    rng = np.random.RandomState(0)
    for k in range(iterations):
        x.d, t.d = rng.randn(*x.shape).astype(np.float32), rng.randint(0, 5, t.shape)
        if not (accumulate and k % 2):
            solver.zero_grad()
        run(loss, "forward", clear_no_need_grad=True)
        losses.append(float(loss.d))
        run(loss, "backward", clear_buffer=True)
        solver.update()
    return losses, {k: p.d.copy() for k, p in nn.get_parameters(grad_only=False).items()}


@pytest.mark.parametrize("network", [convolutional, recurrent])
@pytest.mark.parametrize("accumulate", [False, True])
def test_programs_give_the_bits_of_the_walk(network, accumulate):
    expected = train(network, walking, accumulate=accumulate)
    found = train(network, running, accumulate=accumulate)
    assert found[0] == expected[0]
    for key, value in expected[1].items():
        np.testing.assert_array_equal(found[1][key], value, err_msg=key)


def test_a_graph_that_runs_again_has_a_program_and_others_have_none(monkeypatch):
    made = []
    for module, user in ((forward_program, "forward_bindings"), (backward_program, "execution")):
        name = module.__name__.removeprefix("distnn.")
        make = getattr(module, name)
        monkeypatch.setattr(
            f"distnn.{user}.{name}",
            lambda *args, make=make, name=name: made.append(name) or make(*args),
        )
    x = nn.Variable((2, 3), need_grad=True)
    x.d = 1
    loss = F.sum(F.tanh(x) * 1.5 + F.exp(x))
    for expected in ([], ["backward_program", "forward_program"]):
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True)
        assert sorted(made) == expected
    for _ in range(3):
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True)
    assert len(made) == 2


@pytest.fixture
def graph():
    """A leaf, a value in between and a loss, after two iterations: what follows is by programs."""
    x = nn.Variable((2, 3), need_grad=True)
    x.d = np.arange(1, 7, dtype=np.float32).reshape(2, 3)
    h = F.sin(x)
    loss = F.sum(F.exp(h) * h)
    for _ in range(2):
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True)
    x.grad.zero()
    return x, h, loss


def derivative(x):
    h = np.sin(np.asarray(x, np.float64))
    return np.exp(h) * (1 + h) * np.cos(np.asarray(x, np.float64))


@pytest.mark.parametrize("run", [walking, running])
def test_programs_and_walks_follow_each_other(graph, run):
    x, _, loss = graph
    loss.forward(clear_no_need_grad=True)
    run(loss, "backward", clear_buffer=True)
    np.testing.assert_allclose(x.g, derivative(x.d), rtol=1e-5)
    x.grad.zero()
    run(loss, "forward", clear_no_need_grad=True)
    loss.backward(clear_buffer=True)
    np.testing.assert_allclose(x.g, derivative(x.d), rtol=1e-5)


def test_gradients_are_added_to_what_is_there(graph):
    x, _, loss = graph
    for _ in range(2):
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True)
    np.testing.assert_allclose(x.g, 2 * derivative(x.d), rtol=1e-5)


def test_backward_from_a_value_in_between(graph):
    x, h, loss = graph
    loss.forward(clear_no_need_grad=True)
    h.backward(clear_buffer=True)
    np.testing.assert_allclose(x.g, np.cos(x.d), rtol=1e-5)


def test_a_change_of_the_graph_between_forward_and_backward(graph):
    x, _, loss = graph
    loss.forward(clear_no_need_grad=True)
    nn.Variable((1,)).need_grad = True
    loss.backward(clear_buffer=True)
    np.testing.assert_allclose(x.g, derivative(x.d), rtol=1e-5)


def test_what_is_kept_can_be_read_and_changed_before_backward(graph):
    x, h, loss = graph
    loss.forward(clear_no_need_grad=True)
    np.testing.assert_allclose(h.d, np.sin(x.d), rtol=1e-6)
    h.d[...] = 0  # the factor h of d (e^h h) / d h = e^h + e^h h; the kept e^h stays
    loss.backward(clear_buffer=True)
    np.testing.assert_allclose(x.g, np.exp(np.sin(x.d)) * np.cos(x.d), rtol=1e-5)


def test_what_was_freed_says_so(graph):
    _, h, loss = graph
    loss.forward(clear_buffer=True)
    loss.forward(clear_buffer=True)
    with pytest.raises(ClearedError, match="clear_buffer=True"):
        h.d  # noqa: B018
    with pytest.raises(ClearedError, match="clear_no_need_grad"):
        loss.backward(clear_buffer=True)
    loss.forward(clear_no_need_grad=True)
    loss.backward(clear_buffer=True)
    with pytest.raises(ClearedError):
        loss.backward(clear_buffer=True)


def test_a_users_array_of_a_value_that_is_freed_is_not_overwritten(graph):
    x, h, loss = graph
    loss.forward(clear_no_need_grad=True)
    held = h.d
    before = held.copy()
    loss.backward(clear_buffer=True)
    x.d = -1
    loss.forward(clear_no_need_grad=True)
    np.testing.assert_array_equal(held, before)


def test_a_users_array_of_a_value_that_stays_is_live(graph):
    if current_backend().name != "cpu":
        pytest.skip(".d of a GPU's array is a copy: for --device cpu")
    x, h, loss = graph
    for _ in range(2):
        loss.forward()
    held, result = h.d, loss.d
    x.d = 0.5
    loss.forward()
    np.testing.assert_allclose(held, np.full((2, 3), np.sin(0.5)), rtol=1e-6)
    np.testing.assert_allclose(result, 6 * np.sin(0.5) * np.exp(np.sin(0.5)), rtol=1e-6)


def test_a_leaf_that_lost_its_data_is_named(graph):
    x, _, loss = graph
    x.data.clear()
    with pytest.raises(ClearedError, match=r"\[sin\] input x"):
        loss.forward(clear_no_need_grad=True)
    x.d = 1
    loss.forward(clear_no_need_grad=True)


def test_labels_are_checked_and_the_graph_runs_again():
    x, t = nn.Variable((2, 3), need_grad=True), nn.Variable((2, 1))
    x.d, t.d = 0, [[0], [2]]
    loss = F.mean(F.softmax_cross_entropy(x, t))

    def read_loss():
        loss.forward(clear_no_need_grad=True)
        return loss.d  # on a GPU errors come to light at the next read

    for _ in range(2):
        read_loss()
    t.d = [[0], [3]]
    with pytest.raises(LabelError, match="holds 3"):
        read_loss()
    t.d = [[0], [1.5]]
    with pytest.raises(LabelError, match=r"holds 1\.5"):
        read_loss()
    t.d = [[1], [1]]
    loss.forward(clear_no_need_grad=True)
    np.testing.assert_allclose(loss.d, np.log(3), rtol=1e-6)


def test_copies_are_kept_of_what_a_function_may_change_as_an_effect():
    x, ones = nn.Variable((2, 3), need_grad=True), nn.Variable((2, 3))
    x.d, ones.d = 0.5, 1
    target = x.get_unlinked_variable(need_grad=False)
    loss = F.sum(F.sin(x))
    for _ in range(3):
        loss.forward(clear_no_need_grad=True)
        loss.backward(clear_buffer=True)
    step = F.assign(target, ones)  # from now on
    x.grad.zero()
    loss.forward(clear_no_need_grad=True)
    step.forward()
    loss.backward(clear_buffer=True)
    np.testing.assert_array_equal(x.d, 1)
    np.testing.assert_allclose(x.g, np.full((2, 3), np.cos(0.5)), rtol=1e-6)


def test_draws_are_new_each_time_and_statistics_move_once():
    def run(how):
        nn.clear_parameters()
        nn.random.set_function_seed(5)
        x = nn.Variable((8, 3))
        x.d = np.arange(24).reshape(8, 3)
        y = F.dropout(PF.batch_normalization(x, axes=[1]), 0.5)
        found = []
        for _ in range(4):
            how(y, "forward", clear_no_need_grad=True)
            found += [y.d.copy(), nn.get_parameters(grad_only=False)["bn/mean"].d.copy()]
        return found

    expected, found = run(walking), run(running)
    np.testing.assert_array_equal(
        np.concatenate([a.ravel() for a in found]), np.concatenate([a.ravel() for a in expected])
    )
    assert not np.array_equal(found[4], found[6])


@pytest.mark.parametrize("flags", [{}, {"clear_no_need_grad": True}, {"clear_buffer": True}])
def test_memory_is_let_go_as_in_the_walk(flags):
    def used(run):
        nn.clear_parameters()
        gc.collect()
        x = nn.Variable((64, 2048))
        x.d = 0.5
        h = x
        for k in range(4):
            h = F.tanh(PF.affine(h, 512 if k % 2 else 2048, name=f"a{k}") + 1)
        loss = F.sum(h)
        found = []
        for _ in range(3):
            pool.empty((1 << 14,), np.dtype(np.float64))  # takes back what has died
            pool.peak_bytes = pool.used_bytes
            base = pool.used_bytes
            run(loss, "forward", **flags)
            found.append((pool.peak_bytes - base, pool.used_bytes - base))
            if not flags.get("clear_buffer"):
                pool.peak_bytes = pool.used_bytes
                run(loss, "backward", clear_buffer=True)
                pool.empty((1 << 14,), np.dtype(np.float64))
                found.append((pool.peak_bytes - base, pool.used_bytes - base))
        return found[len(found) // 3 :]

    for found, expected in zip(used(running), used(walking), strict=True):
        assert found[0] <= expected[0] + (1 << 19)
        assert found[1] <= expected[1] + (1 << 17)


def test_a_graph_dies_with_its_last_variable():
    gc.collect()
    gc.disable()
    try:
        x = nn.Variable((2, 3), need_grad=True)
        x.d = 1
        loss = F.sum(F.tanh(x))
        for _ in range(3):
            loss.forward(clear_no_need_grad=True)
            loss.backward(clear_buffer=True)
        parts = [weakref.ref(loss.parent), weakref.ref(loss._value)]
        del loss
        assert [part() for part in parts] == [None, None]
    finally:
        gc.enable()


def test_dynamic_graphs_of_a_known_structure_run_backward_by_its_program():
    def step(run):
        x = nn.Variable.from_numpy_array(np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3))
        x.need_grad = True
        x.grad.zero()
        with nn.auto_forward():
            loss = F.sum(F.tanh(x) * F.exp(x))
        run(loss, "backward", clear_buffer=True)
        return x.g.copy()

    expected = step(walking)
    for _ in range(3):
        np.testing.assert_array_equal(step(running), expected)


def test_plan_stats_count_plans_and_programs():
    def step(width):
        x = nn.Variable.from_numpy_array(np.ones((2, width), np.float32))
        x.need_grad = True
        with nn.auto_forward():
            loss = F.sum(F.tanh(x) * 0.25)
        loss.backward(clear_buffer=True)

    step(3)
    before = nn.profiler.plan_stats()
    for _ in range(3):
        step(3)
    step(61)
    after = nn.profiler.plan_stats()
    assert (after["hits"] - before["hits"], after["misses"] - before["misses"]) == (3, 1)
    assert after["plans"] >= after["programs"] >= 1


def test_several_results_have_a_program_and_die_with_their_last_reference():
    x = nn.Variable((4, 3), need_grad=True)
    h = F.tanh(x * 2.0)
    y, z = F.sum(h * h), F.mean(F.exp(h), axis=1)
    values = [y, h, z]  # one of them leads to the others
    found = []
    for hook in ({"function_pre_hook": lambda f: None}, {}, {}, {}):
        x.d = np.linspace(-1, 1, 12).reshape(4, 3)
        nn.forward_all(values, clear_no_need_grad=True, **hook)
        results = [v.d.copy() for v in values]
        x.grad.zero()
        y.backward()
        z.backward(clear_buffer=True)
        found.append([*results, x.g.copy()])
    for each in found[1:]:
        for a, b in zip(each, found[0], strict=True):
            np.testing.assert_array_equal(a, b)
    programs = nn.profiler.plan_stats()["programs"]
    nn.forward_all(values, clear_no_need_grad=True)
    assert nn.profiler.plan_stats()["programs"] == programs > 0
    gc.disable()
    try:
        last = weakref.ref(z._value)
        del values, y, z
        assert last() is None
    finally:
        gc.enable()
