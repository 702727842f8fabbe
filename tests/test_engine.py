"""The engine: graphs, plans, liveness, accumulation, and what each mode does with memory."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S
from distnn.errors import ClearedError, GraphError
from distnn.memory import SMALLEST, pool
from distnn.plan import plans

rng = np.random.default_rng(0)


def leaf(values, need_grad=True):
    return nn.Variable.from_numpy_array(np.asarray(values, np.float32), need_grad=need_grad)


def network(x):
    """A small network of functions with rules, fast backward, aliases and broadcasts."""
    with nn.parameter_scope("a"):
        h = F.tanh(PF.batch_normalization(PF.convolution(x, 4, (3, 3), pad=(1, 1))))
    h = F.relu(F.reshape(h, (h.shape[0], -1)))
    with nn.parameter_scope("b"):
        h = PF.affine(h, 5)
    return F.mean(h * h + F.sum(h, axis=1, keepdims=True))


def gradients():
    return {k: p.g.copy() for k, p in nn.get_parameters().items()}


def zero_grad():
    for p in nn.get_parameters().values():
        p.grad.zero()


@pytest.fixture
def x():
    return leaf(np.random.RandomState(0).randn(3, 2, 4, 4), False)


def run(x, dynamic=False, clear=False):
    """Loss and gradients of one iteration from the same start."""
    nn.clear_parameters()
    nn.seed(1)
    with nn.auto_forward(dynamic):
        loss = network(x)
    if not dynamic:
        loss.forward(clear_no_need_grad=clear)
    zero_grad()
    loss.backward(clear_buffer=clear)
    return {"loss": loss.d.copy(), **gradients()}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("clear", [False, True])
def test_mode_and_clearing_change_no_bit(x, dynamic, clear):
    expected, actual = run(x), run(x, dynamic, clear)
    assert expected.keys() == actual.keys()
    for key, value in expected.items():
        assert np.array_equal(value, actual[key]), key
    assert np.any(expected["a/conv/W"])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_bit(threads):
    big = leaf(np.random.RandomState(0).randn(64, 16, 8, 8), False)

    def once():
        nn.clear_parameters()
        nn.seed(1)
        h = PF.convolution(big, 64, (3, 3), pad=(1, 1), name="1")
        h = F.tanh(PF.batch_normalization(PF.convolution(h, 64, (3, 3), pad=(1, 1), name="2")))
        loss = F.mean(PF.affine(F.relu(h), 100) ** 2)
        loss.forward()
        zero_grad()
        loss.backward()
        return {"loss": loss.d.copy(), **gradients()}

    before = nn.get_num_threads()
    try:
        nn.set_num_threads(1)
        expected = once()
        nn.set_num_threads(threads)
        actual = once()
    finally:
        nn.set_num_threads(before)
    for key, value in expected.items():
        assert np.array_equal(value, actual[key]), key


def test_two_graphs_of_one_structure_do_not_disturb_each_other():
    w = leaf([[1.0, 2.0], [3.0, 4.0]])

    def graph(values, dynamic):
        a = leaf(values)
        with nn.auto_forward(dynamic):
            return a, F.sum(F.tanh(F.affine(a, w)))

    for dynamic in (False, True):
        a1, y1 = graph([[0.1, 0.2]], dynamic)
        a2, y2 = graph([[0.3, -0.4]], dynamic)
        if not dynamic:
            y1.forward(clear_no_need_grad=True)
            y2.forward(clear_no_need_grad=True)
        y1.backward(clear_buffer=True)
        y2.backward(clear_buffer=True)
        for a in (a1, a2):
            pre = a.d.astype(np.float64) @ w.d
            expected = (1 - np.tanh(pre) ** 2) @ w.d.T.astype(np.float64)
            np.testing.assert_allclose(a.g, expected, rtol=1e-5)


def test_threads_train_the_same_structure_at_the_same_time():
    expected = [run(leaf(np.full((3, 2, 4, 4), 0.1 * k), False)) for k in range(4)]
    found = [None] * 4
    context = nn.get_current_context()

    def train(k):
        from distnn.context import World, world_scope

        with world_scope(World()) as world:
            world.context = context
            for _ in range(5):
                found[k] = run(leaf(np.full((3, 2, 4, 4), 0.1 * k), False), dynamic=bool(k % 2))

    threads = [threading.Thread(target=train, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(expected, found, strict=True):
        assert b is not None
        for key, value in a.items():
            assert np.array_equal(value, b[key]), key


def test_a_second_iteration_makes_no_plan_and_asks_for_no_memory():
    big = np.random.RandomState(0).randn(32, 8, 16, 16).astype(np.float32)
    assert big.nbytes > SMALLEST

    def iteration():
        with nn.auto_forward():
            h = F.tanh(PF.batch_normalization(PF.convolution(x, 8, (3, 3), pad=(1, 1))))
            loss = F.mean(F.relu(h) * h)
        zero_grad()
        loss.backward(clear_buffer=True)

    x = leaf(big, False)
    iteration()
    gc.collect()
    misses, mapped = plans.misses, pool.mapped_bytes
    for _ in range(3):
        iteration()
    assert plans.misses == misses
    assert pool.mapped_bytes == mapped


def test_static_and_dynamic_graphs_of_one_structure_share_a_plan(x):
    run(x)
    misses = plans.misses
    run(x, dynamic=True)
    assert plans.misses == misses


def test_a_number_is_no_structure(x):
    h = leaf([1.0, 2.0])

    def value(scale):
        with nn.auto_forward():
            y = F.sum(F.elu(h * scale, alpha=scale))
        y.backward()
        return float(y.d)

    value(0.5)
    misses = plans.misses
    assert [value(s) for s in (2.0, 3.0)] == [6.0, 9.0]
    assert plans.misses == misses


def test_recurrent_weights_get_the_sum_of_all_their_gradients():
    w, h0 = rng.standard_normal((3, 3)), rng.standard_normal((2, 3))
    W, h = leaf(w), leaf(h0)
    states = [h0]
    for _ in range(4):
        h = F.tanh(F.affine(h, W))
        states.append(np.tanh(states[-1] @ np.float32(w).astype(np.float64)))
    y = F.sum(h)
    y.forward()
    y.backward()
    expected, dh = 0, np.ones((2, 3))
    for t in range(4, 0, -1):
        dpre = dh * (1 - states[t] ** 2)
        expected = expected + states[t - 1].T @ dpre
        dh = dpre @ np.float32(w).astype(np.float64).T
    np.testing.assert_allclose(W.g, expected, rtol=1e-4, atol=1e-6)


def test_of_tied_weights_a_frozen_use_contributes_nothing():
    W = leaf([[2.0]])
    a, b = W.get_unlinked_variable(True), W.get_unlinked_variable(False)
    y = F.affine(F.affine(leaf([[3.0]], False), a), b)
    y.forward()
    y.backward()
    assert W.g[0, 0] == 6.0  # d(3 a b)/da = 3 b; the path through b is frozen


@pytest.mark.parametrize("dynamic", [False, True])
def test_views_of_one_parameter_share_its_gradient(dynamic):
    W = leaf(np.arange(6.0))
    with nn.auto_forward(dynamic):
        part = nn.Variable((2,), need_grad=True)
        part.data = W.data.narrow(0, 2, 2)
        part.grad = W.grad.narrow(0, 2, 2)
        whole = W.reshape((2, 3), unlink=True)
        y = F.sum(part * part) + F.sum(whole * 3)
    if not dynamic:
        y.forward()
    y.backward()
    expected = np.full(6, 3.0)
    expected[2:4] += 2 * np.arange(6.0)[2:4]
    np.testing.assert_array_equal(W.g, expected)


def test_leaf_gradients_accumulate_over_backwards_until_zeroed():
    w = leaf([1.0, 2.0])
    y = F.sum(w * w)
    for n in (1, 2, 3):
        y.forward()
        y.backward()
        np.testing.assert_array_equal(w.g, n * 2 * w.d)
    w.grad.zero()
    y.forward()
    y.backward()
    np.testing.assert_array_equal(w.g, 2 * w.d)


def test_gradients_of_intermediate_values_do_not_accumulate():
    w = leaf([1.0, 2.0])
    h = w * 2
    y = F.sum(h * h)
    for _ in range(2):
        y.forward()
        y.backward()
        np.testing.assert_array_equal(h.g, 2 * h.d)


def test_a_layer_first_used_at_step_50_trains_with_fresh_state():
    x = leaf(rng.standard_normal((4, 3)), False)
    solver = S.Adam(0.01)
    for step in range(60):
        with nn.auto_forward():
            h = PF.affine(x, 3, name="first")
            if step >= 50:
                h = F.tanh(PF.affine(h, 3, name="late"))
            loss = F.mean(h * h)
        solver.set_parameters(nn.get_parameters(), reset=False, retain_state=True)
        solver.zero_grad()
        loss.backward(clear_buffer=True)
        solver.update()
    states = solver.get_states()
    assert states["first/affine/W"].t == 60
    assert states["late/affine/W"].t == 10


def test_two_solvers_over_one_network_train_their_own_part():
    """A small GAN: the generator's solver must not move the discriminator, and vice versa."""
    noise = leaf(rng.standard_normal((8, 2)), False)
    real = leaf(rng.standard_normal((8, 3)) + 2, False)

    def discriminate(h):
        with nn.parameter_scope("dis"):
            return PF.affine(F.relu(PF.affine(h, 4, name="1")), 1, name="2")

    with nn.parameter_scope("gen"):
        fake = PF.affine(noise, 3)
    ones, zeros = F.constant(1, (8, 1)), F.constant(0, (8, 1))
    gen_loss = F.mean(F.sigmoid_cross_entropy(discriminate(fake), ones))
    dis_loss = F.mean(F.sigmoid_cross_entropy(discriminate(real), ones)) + F.mean(
        F.sigmoid_cross_entropy(discriminate(fake.get_unlinked_variable(False)), zeros)
    )
    solvers = {}
    for part in ("gen", "dis"):
        solvers[part] = S.Momentum(0.05)
        with nn.parameter_scope(part):
            solvers[part].set_parameters(nn.get_parameters())
    first = None
    for _ in range(100):
        for part, loss in (("gen", gen_loss), ("dis", dis_loss)):
            other = {"gen": "dis", "dis": "gen"}[part]
            before = {k: p.d.copy() for k, p in solvers[other].get_parameters().items()}
            fake.forward()
            loss.forward(clear_no_need_grad=True)
            solvers[part].zero_grad()
            loss.backward(clear_buffer=True)
            solvers[part].update()
            for k, p in solvers[other].get_parameters().items():
                assert np.array_equal(before[k], p.d), k
        first = first or abs(float(fake.d.mean()) - 2)
    assert abs(float(fake.d.mean()) - 2) < first


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_chain_of_ten_thousand_nodes_works_and_dies_without_recursion(dynamic):
    x = leaf([1.0])
    with nn.auto_forward(dynamic):
        y = x
        for _ in range(10_000):
            y = y + 1
    if not dynamic:
        y.forward(clear_no_need_grad=True)
    y.backward(clear_buffer=True)
    assert float(y.d[0]) == 10_001
    assert x.g[0] == 1
    del y


def test_a_dynamic_graph_frees_what_nobody_holds_and_no_gradient_reads():
    x = leaf(np.ones((64, 64)))
    with nn.auto_forward(defer=False):
        h = x * 2  # mul_scalar reads nothing, tanh reads its own result
        data = weakref.ref(h.data)
        h = F.tanh(h)
        assert data() is None
        kept = weakref.ref(h.data)
        h = F.sum(h)
    assert kept() is not None
    h.backward()
    np.testing.assert_allclose(x.g, 2 * (1 - np.tanh(2.0) ** 2), rtol=1e-5)


def test_a_graph_dies_with_its_last_reference_without_the_garbage_collector():
    gc.disable()
    try:
        for dynamic in (False, True):
            x = leaf(np.ones(3))
            with nn.auto_forward(dynamic):
                y = F.sum(F.tanh(x) * x)
            if not dynamic:
                y.forward()
            y.backward()
            node = weakref.ref(y.parent)
            del y
            assert node() is None
    finally:
        gc.enable()


def test_an_array_that_a_user_got_is_never_overwritten_by_reused_memory():
    x = leaf(rng.standard_normal((100, 1000)))  # large enough for the pool
    held = []
    for k in range(4):
        with nn.auto_forward():
            h = F.tanh(x * (k + 1.0))
            loss = F.sum(h)
        held.append((h.d, np.tanh(np.float32(k + 1) * x.d)))
        loss.backward(clear_buffer=True)
        del h, loss
    for array, expected in held:
        np.testing.assert_allclose(array, expected, rtol=1e-5)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks processes")
def test_what_a_forked_process_writes_stays_its_own():
    code = f"""
import os, numpy as np
from distnn.memory import pool
a = pool.empty(({SMALLEST},), np.dtype(np.float32))
a[:] = 1
child = os.fork()
if child == 0:
    a[:] = 2
    os._exit(0)
os.waitpid(child, 0)
assert (a == 1).all()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("on_cpu")
def test_in_static_mode_d_stays_live():
    x = leaf([1.0, 2.0])
    y = x * 2
    y.forward()
    d = y.d
    x.d = [5.0, 6.0]
    y.forward()
    np.testing.assert_array_equal(d, [10.0, 12.0])


def test_reading_cleared_data_says_why():
    x = leaf([1.0])
    h = x + 1
    y = F.tanh(h)
    y.forward(clear_no_need_grad=True)
    with pytest.raises(ClearedError, match=r"clear_no_need_grad.*persistent=True"):
        _ = h.d
    assert h.data.clear_called
    y.backward(clear_buffer=True)
    assert y.d[0] == np.tanh(np.float32(2))


def test_backward_after_forward_with_clear_buffer_says_what_to_do():
    x = leaf([1.0])
    y = F.sum(F.tanh(F.tanh(x)))
    y.forward(clear_buffer=True)
    with pytest.raises(ClearedError, match=r"\[backward\] tanh.*clear_no_need_grad=True"):
        y.backward()


def test_persistent_protects_data_and_gradient():
    x = leaf([1.0])
    h = (x * 3).apply(persistent=True)
    y = F.tanh(h * 2)
    y.forward(clear_buffer=True)
    assert h.d[0] == 3
    y.forward(clear_no_need_grad=True)
    y.backward(clear_buffer=True)
    assert h.d[0] == 3
    np.testing.assert_allclose(h.g, 2 * (1 - np.tanh(6.0) ** 2), rtol=1e-3)


def test_backward_twice_after_clearing_asks_for_forward():
    x = leaf([1.0])
    y = F.sum(F.tanh(x))
    y.forward()
    y.backward(clear_buffer=True)
    with pytest.raises(ClearedError, match="call forward"):
        y.backward()


def test_backward_without_forward_asks_for_forward():
    with pytest.raises(ClearedError, match="call forward"):
        F.sum(F.tanh(leaf([1.0]))).backward()


def test_backward_where_nothing_needs_a_gradient_says_so():
    y = F.sum(leaf([1.0], need_grad=False))
    y.forward()
    with pytest.raises(GraphError, match="need_grad=True"):
        y.backward()


def test_backward_through_a_function_without_gradient_says_so():
    y = F.sum(F.greater_scalar(leaf([1.0]), 0))
    y.forward()
    with pytest.raises(GraphError, match="functions without gradient"):
        y.backward()


@pytest.mark.parametrize("dynamic", [False, True])
def test_gradients_read_what_forward_read_although_an_effect_changed_it_meanwhile(dynamic):
    w = leaf([3.0])
    F.assign(w.get_unlinked_variable(False), F.constant(0, (1,)))  # from now on it may change
    with nn.auto_forward(dynamic):
        y = F.sum(w * w)
        s = F.assign(w.get_unlinked_variable(False), F.constant(10, (1,)))
    if not dynamic:
        nn.forward_all([y, s])
    y.backward()
    assert w.d[0] == 10
    assert w.g[0] == 6


def test_an_effect_that_could_not_be_foreseen_raises_instead_of_giving_a_wrong_gradient():
    w = leaf([3.0])
    with nn.auto_forward(defer=False):
        y = F.sum(w * w)
        F.assign(w.get_unlinked_variable(False), F.constant(10, (1,)))
    with pytest.raises(GraphError, match="mul2 reads was changed"):
        y.backward()


def test_only_a_leaf_can_be_updated():
    with pytest.raises(GraphError, match=r"\[assign\] dst is the result of AddScalar"):
        F.assign(leaf([1.0]) + 1, leaf([2.0]))


@pytest.mark.parametrize("method", ["forward", "backward"])
def test_a_leaf_has_no_forward_and_no_backward(method):
    with pytest.raises(GraphError, match="leaf"):
        getattr(leaf([1.0]), method)()


def test_need_grad_set_later_counts_at_the_next_static_forward():
    x = leaf([2.0], need_grad=None)
    w = leaf([3.0])
    y = F.sum(x * w)
    y.forward()
    y.backward()
    assert w.g[0] == 2
    x.need_grad = True
    y.forward()
    y.backward()
    assert x.g[0] == 3


def test_need_grad_of_an_intermediate_value_blocks_or_starts_gradients():
    x = leaf([2.0])
    h = x * 3
    h.need_grad = False
    y = F.sum(h * leaf([5.0]))
    y.forward()
    y.backward()
    assert x.grad.zeroing  # nothing came through
    x = leaf([2.0], need_grad=False)
    h = x * 3
    h.need_grad = True
    y = F.sum(h * h)
    y.forward()
    y.backward(clear_buffer=True)
    assert h.g[0] == 12
    assert x.grad.zeroing


def test_forward_all_computes_what_is_shared_once():
    calls = []
    x = leaf([1.0])
    h = F.tanh(x)
    a, b = h + 1, h + 2
    nn.forward_all([a, b], function_pre_hook=lambda f: calls.append(f.name))
    assert calls == ["Tanh", "AddScalar", "AddScalar"]
    assert float(b.d[0] - a.d[0]) == pytest.approx(1)


def test_hooks_see_every_function_of_forward_and_backward():
    x = leaf([1.0])
    y = F.sum(F.tanh(x))
    seen = []
    nn.set_function_pre_hook("key", lambda f: seen.append(("pre", f.info.type_name)))
    nn.set_function_post_hook("key", lambda f: seen.append(("post", f.info.type_name)))
    try:
        y.forward()
        y.backward()
    finally:
        nn.unset_function_pre_hook("key")
        nn.unset_function_post_hook("key")
    y.forward()
    order = ["Tanh", "Sum", "Sum", "Tanh"]
    assert seen == [(when, name) for name in order for when in ("pre", "post")]


@pytest.mark.parametrize("dynamic", [False, True])
def test_batch_statistics_are_updated_exactly_once_per_forward(dynamic):
    x = leaf(rng.standard_normal((16, 3)) + 5, False)
    with nn.auto_forward(dynamic):
        y = PF.batch_normalization(x)
        loss = F.sum(y * y)
    if not dynamic:
        loss.forward(clear_no_need_grad=True)
    loss.backward(clear_buffer=True)
    mean = nn.get_parameters(grad_only=False)["bn/mean"].d
    np.testing.assert_allclose(mean[0], 0.1 * x.d.astype(np.float64).mean(0), rtol=1e-5)


def test_plan_keeps_the_order_of_creation():
    x = leaf([1.0])
    a = x + 1  # created first, used last
    b = x + 2
    y = b * a
    names = []
    y.visit(lambda f: names.append(f.info.args.get("val")))
    assert names == [1.0, 2.0, None]


def test_backward_from_a_given_gradient_leaves_g_untouched():
    x = leaf([1.0, 2.0])
    y = x * 2
    y.forward()
    y.backward(np.array([1.0, 10.0]))
    np.testing.assert_array_equal(x.g, [2.0, 20.0])
    x.grad.zero()
    y.g = [3.0, 4.0]
    y.backward(None)
    np.testing.assert_array_equal(x.g, [6.0, 8.0])
    x.grad.zero()
    y.backward(7)
    np.testing.assert_array_equal(x.g, [14.0, 14.0])
    np.testing.assert_array_equal(y.g, [3.0, 4.0])


def test_no_grad_with_auto_forward_records_nothing():
    x = leaf([1.0])
    with nn.no_grad(), nn.auto_forward():
        y = F.tanh(x)
    assert y.parent is None
    assert not y.need_grad
    assert y.d[0] == np.tanh(np.float32(1))


def test_no_grad_in_static_mode_stops_gradients():
    x = leaf([1.0])
    with nn.no_grad():
        h = F.tanh(x)
    y = F.sum(h * leaf([2.0]))
    y.forward()
    y.backward()
    assert x.grad.zeroing


def test_a_function_called_on_ndarrays_computes_at_once():
    a = nn.NdArray.from_numpy_array(np.array([1.0, -2.0]))
    y = F.relu(a)
    assert isinstance(y, nn.NdArray)
    np.testing.assert_array_equal(y.data, [1.0, 0.0])


def test_imperative_batch_normalization_updates_the_statistics_it_is_given():
    x = nn.NdArray.from_numpy_array(np.array([[1.0], [3.0]]))
    one, zero = (nn.NdArray.from_numpy_array(np.full((1, 1), v)) for v in (1.0, 0.0))
    mean = nn.NdArray.from_numpy_array(np.zeros((1, 1)))
    F.batch_normalization(x, zero, one, mean, one)
    np.testing.assert_allclose(mean.data, 0.2)


@pytest.mark.usefixtures("on_cpu")
def test_memory_of_a_static_iteration_with_clearing_is_below_that_without():
    x = leaf(rng.standard_normal((64, 4096)), False)

    def peak(clear):
        h = x
        for _ in range(8):
            h = F.tanh(h * 1.5 + 0.1)
        y = F.sum(h)
        gc.collect()
        pool.peak_bytes = pool.used_bytes
        y.forward(clear_no_need_grad=clear, clear_buffer=clear)
        return pool.peak_bytes - pool.used_bytes if clear else pool.peak_bytes

    freed = peak(True)
    del freed
    everything = peak(False)
    assert everything >= 24 * x.d.nbytes
