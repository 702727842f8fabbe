"""Recorded calls: the same bits, values and errors as when every call computes at once."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import distnn as nn
import distnn.functions as F
import distnn.parametric_functions as PF
import distnn.solvers as S
from distnn import record
from distnn.context import World, current_backend, world_scope
from distnn.errors import ClearedError, LabelError, ShapeError
from distnn.functions.reduction import Sum


def leaf(values, need_grad=True):
    variable = nn.Variable.from_numpy_array(np.asarray(values, np.float32))
    variable.need_grad = need_grad
    return variable


@pytest.fixture
def executions(monkeypatch):
    """Names of functions, as they are computed one by one."""
    from distnn import recorded_calls
    from distnn.graph import Node

    recorded_calls._structures.clear()  # what was seen before runs as a program
    found = []
    execute = Node.execute
    monkeypatch.setattr(
        Node, "execute", lambda self, *args: found.append(self.name) or execute(self, *args)
    )
    return found


# -- when calls are computed -----------------------------------------------------------------------


def test_a_call_waits_until_somebody_looks(executions):
    x = leaf([1.0, 2.0])
    with nn.auto_forward(defer=True):
        y = F.exp(x) * 3.0
        assert executions == []
        np.testing.assert_allclose(y.d, 3 * np.exp([1, 2]), rtol=1e-6)
    assert executions == ["Exp", "MulScalar"]


@pytest.mark.parametrize(
    "look",
    [
        lambda x, y: y.d,
        lambda x, y: y.data.data,
        lambda x, y: x.d,
        lambda x, y: x.data.fill(7),
        lambda x, y: setattr(x, "d", 7),
        lambda x, y: setattr(x, "data", nn.NdArray((2,))),
        lambda x, y: x.data.cast(np.float64),
        lambda x, y: y.backward(),
        lambda x, y: F.sum(y).forward(),
        lambda x, y: nn.grad([y], [x]),
        lambda x, y: y.data.copy_from(nn.NdArray((2,))),
        lambda x, y: np.asarray(y.data),
        lambda x, y: y.data + 1,
    ],
)
def test_whoever_looks_or_writes_makes_them_compute_first(look):
    x = leaf([1.0, 2.0])
    with nn.auto_forward(defer=True):
        y = F.exp(x)
        z = y * 2.0
    look(x, y)
    np.testing.assert_allclose(z.d, 2 * np.exp([1.0, 2.0]), rtol=1e-6)


def test_an_update_of_parameters_and_a_collective_make_them_compute():
    import distnn.communicators as C

    nn.clear_parameters()
    x = leaf([[1.0, 2.0]], False)
    with nn.auto_forward(defer=True):
        y = PF.affine(x, 2)
    parameters = nn.get_parameters()
    solver = S.Sgd(1.0)
    solver.set_parameters(parameters)
    before = x.d @ parameters["affine/W"].data.get_data("r")
    for p in parameters.values():
        p.grad.fill(1)
    solver.update()
    np.testing.assert_allclose(y.d, before, rtol=1e-6)
    comm = C.DataParallelCommunicator()
    comm.init()
    with nn.auto_forward(defer=True):
        z = x * 4.0
    comm.all_reduce([x.data])
    np.testing.assert_array_equal(z.d, [[4, 8]])


def test_an_input_that_is_written_unseen_is_read_at_once():
    x = leaf([1.0, 2.0])
    outside = x.d
    with nn.auto_forward(defer=True):
        y = x * 2.0
        outside[...] = 100
        z = x * 2.0
    np.testing.assert_array_equal(y.d, [2, 4])
    np.testing.assert_array_equal(z.d, [200, 200])


def test_branches_on_values_split_the_record(executions):
    x = leaf([2.0])
    with nn.auto_forward(defer=True):
        y = x * x
        if float(y.d[0]) > 1:
            y = y * 10.0
        y = y + 1.0
    assert executions == ["Mul2"]
    assert float(y.d[0]) == 41


def test_hooks_and_python_functions_see_calls_as_they_are_made(executions):
    seen = []
    x = leaf([2.0])
    nn.set_function_pre_hook("see", lambda f: seen.append(f.name))
    try:
        with nn.auto_forward(defer=True):
            y = x * 2.0
            assert seen == ["MulScalar"]
    finally:
        nn.unset_function_pre_hook("see")
    assert float(y.d[0]) == 4


def test_results_that_nobody_ever_reads_do_not_pile_up():
    x = leaf(np.ones(10))
    held = []
    with nn.auto_forward(defer=True):
        for _ in range(5000):
            y = x * 2.0
            if len(held) < 3:
                held.append(weakref.ref(y.data))
    assert [data() for data in held] == [None] * 3


def test_results_are_let_go_with_their_last_reader():
    x = leaf(np.ones((64, 64)))
    with nn.auto_forward(defer=True):
        h = x * 2.0
        data = weakref.ref(h.data)
        h = F.tanh(h)
        h.d  # noqa: B018
    assert data() is None


def test_what_nobody_can_see_is_not_computed(monkeypatch):
    x = leaf(np.linspace(-1, 1, 6).reshape(2, 3))
    implementation = type(F.softmax(x).parent.setup.implementation)
    compute, computed = implementation.forward, []
    monkeypatch.setattr(
        implementation,
        "forward",
        lambda self, *args, **options: computed.append(1) or compute(self, *args, **options),
    )

    def run(defer):
        nn.random.set_function_seed(3)
        counter = leaf([0.0], False)
        with nn.auto_forward(defer=defer):
            F.dropout(F.softmax(F.exp(x)))  # nobody holds it
            F.assign(counter, counter + 1.0)  # an effect
            y = F.dropout(F.tanh(x), 0.5)
            z = F.sum(F.softmax(y))
            F.softmax(y)
        found = [y.d.copy(), z.d.copy(), counter.d.copy()]
        x.grad.zero()
        z.backward()
        return [*found, x.g.copy()]

    expected = run(False)
    for _ in range(3):
        computed.clear()
        assert_same(run(True), expected)
    assert len(computed) == 1


# -- calls that are known again --------------------------------------------------------------------


def test_a_value_read_twice_is_no_pair_of_values():
    x, y = leaf([2.0, 3.0]), leaf([5.0, 7.0])
    for first, second in [(x, x), (x, y), (x, x), (x, y), (y, x)]:
        with nn.auto_forward():
            z = F.mul2(first, second)
        np.testing.assert_array_equal(z.d, first.d * second.d)


def test_a_leaf_that_is_frozen_later():
    x, y = leaf([2.0, 3.0]), leaf([5.0, 7.0])
    for frozen in (False, True, False, True, True):
        x.need_grad = not frozen
        x.g, y.g = 0, 0
        with nn.auto_forward():
            z = F.sum(F.mul2(F.tanh(x), y))
        z.backward(clear_buffer=True)
        slope = 0 if frozen else (1 - np.tanh(x.d) ** 2) * y.d
        np.testing.assert_allclose(x.g, slope, rtol=1e-6)
        np.testing.assert_allclose(y.g, np.tanh(x.d), rtol=1e-6)


def test_functions_that_live_for_one_call():
    x = leaf(np.arange(6.0).reshape(2, 3))
    for axis in (0, 1, 0, 1, 1, 0) * 3:
        with nn.auto_forward():
            y = Sum((axis,), False)(x)  # not the interned one: ids come again
        np.testing.assert_array_equal(y.d, x.d.sum(axis))


def test_the_tree_of_calls_is_bounded(monkeypatch):
    monkeypatch.setattr(record, "_tree", record._Tree())
    monkeypatch.setattr(record, "_MOST_STEPS", 5)
    x = leaf([0.5])
    for length in (*range(1, 9), 2, 3, 2):
        with nn.auto_forward():
            y = x
            for _ in range(length):
                y = F.tanh(y)
        expected = x.d
        for _ in range(length):
            expected = np.tanh(expected)
        np.testing.assert_allclose(y.d, expected, rtol=1e-6)
        steps, waiting = 0, [record._tree.root]
        while waiting:
            found = [*waiting.pop().next.values()]
            steps += len(found)
            waiting += found
        assert steps <= 6


# -- the same as at once ---------------------------------------------------------------------------


def train(defer, rounds=4):
    nn.clear_parameters()
    nn.random.seed(3)
    rng = np.random.RandomState(5)
    solver = S.Adam(0.01)
    kept, losses = [], []
    for k in range(rounds):
        x = nn.Variable.from_numpy_array(rng.randn(6, 2, 4, 4).astype(np.float32))
        t = nn.Variable.from_numpy_array(rng.randint(0, 5, (6, 1)))
        with nn.auto_forward(defer=defer):
            h = PF.batch_normalization(PF.convolution(x, 4, (3, 3), pad=(1, 1), name="c"), name="n")
            if k % 2:
                h = F.relu(h + PF.convolution(x, 4, (1, 1), name="s"))
            h = F.dropout(F.max_pooling(h, (2, 2)), 0.25)
            h = F.reshape(h, (6, -1))
            h = F.tanh(PF.affine(h, 6, name="a"))
            loss = F.mean(F.softmax_cross_entropy(PF.affine(h, 5, name="b"), t))
        kept.append(h.apply(persistent=True))
        losses.append(loss)
        solver.set_parameters(nn.get_parameters(), reset=False, retain_state=True)
        solver.zero_grad()
        loss.backward(clear_buffer=True)
        solver.weight_decay(1e-3)
        solver.update()
    parameters = nn.get_parameters(grad_only=False)
    return [v.d.copy() for v in (*losses, *kept)] + [p.d.copy() for p in parameters.values()]


def test_training_has_the_bits_of_calls_that_compute_at_once():
    expected, found = train(False), train(True)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_grad_and_double_backward():
    def run(defer):
        x = leaf([0.5, -1.0])
        found = []
        for _ in range(3):
            x.grad.zero()
            with nn.auto_forward(defer=defer):
                with nn.no_grad():
                    scale = F.exp(x) + 1.0
                y = F.sum(F.sin(x * scale) ** 2.0)
                (g,) = nn.grad([y], [x])
                z = F.sum(g * g)
            z.backward()
            found += [y.d.copy(), g.d.copy(), x.g.copy()]
        return found

    for a, b in zip(run(True), run(False), strict=True):
        np.testing.assert_array_equal(a, b)


def test_errors_of_shape_are_raised_by_the_call_and_of_values_when_they_can_be():
    x, t = leaf(np.zeros((2, 3))), nn.Variable.from_numpy_array(np.array([[0], [3]]))
    with nn.auto_forward(defer=True):
        with pytest.raises(ShapeError):
            F.add2(x, leaf(np.zeros((3, 2))))
        if current_backend().name == "cpu":  # a GPU's errors come to light at the next read
            with pytest.raises(LabelError):
                F.softmax_cross_entropy(x * 2.0, t)


def test_labels_are_checked_by_the_call_which_then_waits(executions):
    if current_backend().name != "cpu":
        pytest.skip("labels on a GPU are checked when the function computes")
    x, t = leaf(np.arange(6.0).reshape(2, 3)), nn.Variable.from_numpy_array(np.array([[0], [2]]))
    with nn.auto_forward(defer=True):
        loss = F.mean(F.softmax_cross_entropy(x * 2.0, t))
        assert executions == []
        with pytest.raises(LabelError, match="target holds 3"):
            F.softmax_cross_entropy(x, nn.Variable.from_numpy_array(np.array([[0], [3]])))
        half = nn.Variable.from_numpy_array(np.array([[0], [0.5]]))
        with pytest.raises(LabelError, match="whole numbers"):
            F.softmax_cross_entropy(x, half)
        assert executions == []
        t.d = [[1], [1]]  # what waits has seen the labels before
        z = 2.0 * np.arange(6.0).reshape(2, 3)
        expected = np.log(np.exp(z).sum(1)) - z[[0, 1], [0, 2]]
        np.testing.assert_allclose(loss.d, expected.mean(), rtol=1e-6)


def test_gradients_of_calls_seen_before_follow_what_has_changed():
    def run(defer):
        rng = np.random.RandomState(0)
        a, b = (leaf(rng.randn(3, 3)) for _ in range(2))
        found = []
        for k in range(12):
            x = nn.Variable.from_numpy_array(rng.randn(2, 3).astype(np.float32))
            second = a.get_unlinked_variable() if k in (3, 4, 9) else b  # tied weights
            with nn.auto_forward(defer=defer):
                h = F.tanh(F.affine(x, a))
                y = F.affine(h, second)
                if k == 5:
                    h.persistent = True
                if k == 6:
                    h.need_grad = False
                loss = F.sum(y * y)
            if k == 7:
                second.need_grad = False
            if k == 8:
                second.need_grad = True
                y.need_grad = True
            for p in (a, b):
                p.grad.zero()
            loss.backward(clear_buffer=True)
            found += [p.grad.get_data("r").copy() for p in (a, b)]
            if k == 5:
                found.append(h.d.copy())
            if k == 8:
                found.append(y.g.copy())
        return found

    for one, other in zip(run(True), run(False), strict=True):
        np.testing.assert_array_equal(one, other)


def test_after_an_error_what_waited_says_so():
    x, bad = leaf([1.0]), leaf([1.0])
    with nn.auto_forward(defer=True):
        y = F.exp(bad)
        z = y + x
    bad.data._storage.record = None
    bad.data.clear()  # behind the record's back: as if memory had run out
    with pytest.raises(ClearedError):
        z.d  # noqa: B018
    with pytest.raises(ClearedError, match="has failed"):
        y.d  # noqa: B018
    with nn.auto_forward(defer=True):
        assert float((x * 2.0).d[0]) == 2


def test_worlds_and_threads_have_records_of_their_own():
    x = leaf([3.0])
    with nn.auto_forward(defer=True):
        y = x * 2.0
        with world_scope(World()):
            z = leaf([1.0]) * 5.0
            assert float(z.d[0]) == 5
    found = []
    thread = threading.Thread(target=lambda: found.append(float(y.d[0])))
    thread.start()
    thread.join()
    assert found == [6.0]


def test_what_waits_can_be_computed_after_its_world():
    def work():
        with nn.auto_forward(defer=True):
            return leaf([4.0]) * 0.5

    import distnn.communicators as C

    results = C.run_threads(work, 2)
    gc.collect()
    assert [float(y.d[0]) for y in results] == [2, 2]


def test_networks_with_running_statistics_have_programs(executions):
    nn.clear_parameters()

    def step():
        x = leaf(np.random.RandomState(0).randn(4, 3), False)
        with nn.auto_forward(defer=True):
            y = F.relu(PF.batch_normalization(x)) * 2.0
        return y.d

    first = step()
    made = len(executions)
    assert made == 3
    np.testing.assert_array_equal(step(), first)
    np.testing.assert_array_equal(step(), first)
    assert len(executions) == made


def test_a_record_keeps_no_world_alive():
    world = World()
    with world_scope(world), nn.auto_forward(defer=True):
        y = leaf([1.0]) * 2.0
    del y
    gone = weakref.ref(world)
    del world
    gc.collect()
    assert gone() is None


# -- random programs -------------------------------------------------------------------------------

_UNARY = [
    F.tanh,
    F.relu,
    lambda v: v * 1.5,
    lambda v: v + 0.25,
    lambda v: F.reshape(v, (3, 2)),
    lambda v: F.transpose(v, (1, 0)),
    lambda v: F.broadcast(F.sum(v, 1, True), v.shape),
]
_BINARY = [F.add2, F.mul2, F.maximum2]
_ACTION = st.tuples(st.integers(0, 9), st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))


def run_program(actions, defer, marks=False):
    """Everything that a random program has seen, and what it ends with.

    Args:
        marks: let two results of three be computed again in backward.
    """
    rng = np.random.RandomState(0)
    leaves = [leaf(rng.uniform(-1, 1, (2, 3))) for _ in range(2)]
    values, log, arrays = [*leaves], [], []
    with nn.auto_forward(defer=defer):
        for kind, a, b, c in actions:
            v = values[a % len(values)]
            if kind <= 3:
                f = _UNARY[b % len(_UNARY)]
                try:
                    with nn.recompute(marks and c % 3 > 0):
                        values.append(f(v))
                except ShapeError:
                    log.append("shape")
            elif kind <= 5:
                w = values[b % len(values)]
                if v.shape == w.shape:
                    with nn.recompute(marks and a % 3 > 0):
                        values.append(_BINARY[c % len(_BINARY)](v, w))
            elif kind == 6:  # look, and keep the array
                arrays.append(v.d)
                log.append(arrays[-1].copy())
            elif kind == 7:  # write: a leaf by value, or an array that was obtained earlier
                if arrays and b % 2:
                    if any(arrays[-1] is not None and leaf_.d is arrays[-1] for leaf_ in leaves):
                        arrays[-1][...] = c / 10
                else:
                    leaves[a % 2].d = np.full((2, 3), c / 10, np.float32)
            elif kind == 8 and v.parent is not None and v.need_grad:
                for each in leaves:
                    each.grad.zero()
                v.backward(clear_buffer=False)
                log += [each.grad.get_data("r").copy() for each in leaves]
            elif kind == 9 and len(values) > 3:  # let go
                del values[2 + a % (len(values) - 2)]
    return log + [v.d.copy() for v in values]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        if isinstance(a, str):
            assert a == b
        else:
            np.testing.assert_array_equal(a, b)


@settings(max_examples=300, deadline=None)
@given(st.lists(_ACTION, min_size=3, max_size=25))
def test_random_programs_have_the_bits_of_calls_that_compute_at_once(actions):
    expected = run_program(actions, False)
    for _ in range(3):  # as seen for the first time, the second, and by a program
        assert_same(run_program(actions, True), expected)


@settings(max_examples=150, deadline=None)
@given(st.lists(_ACTION, min_size=3, max_size=25))
def test_random_programs_have_the_same_bits_where_backward_computes_again(actions):
    actions = [action for action in actions if action[0] != 7]  # writes change what is read again
    expected = run_program(actions, False)
    assert_same(run_program(actions, False, True), expected)
    for _ in range(3):
        assert_same(run_program(actions, True, True), expected)
