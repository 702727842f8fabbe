"""Every function of the table has every property that a function must have."""

from __future__ import annotations

import doctest
import inspect

import numpy as np
import pytest
from cases import CASES
from cases_row import Case

import distnn as nn
import distnn.functions as F

# Of results of order one; for float32 the row says it.
_RTOL = {"double": 1e-12, "half": 4e-3}
_DTYPES = {"float": np.float32, "double": np.float64, "half": np.float16}


def differentiable(case: Case):
    """Numbers of the inputs that have a gradient."""
    return [i for i, x in enumerate(case.inputs) if x.grad and not x.integer]


def rows(condition):
    """The rows for which a property has a meaning."""
    chosen = [case for case in CASES if condition(case)]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.id)


every_row = rows(lambda case: True)
with_gradient = rows(differentiable)


def context(type_config):
    extension = nn.get_current_context().backend[0].partition(":")[0]
    return nn.context_scope(nn.Context([f"{extension}:{type_config}"]))


def drawn(case: Case, type_config="float"):
    """Inputs in the dtype of the context: functions read them as they are, without a copy."""
    return [v if v.dtype.kind == "i" else v.astype(_DTYPES[type_config]) for v in case.draw()]


def variables(case: Case, values):
    """Leaves of the drawn values; those of floats need a gradient if the row says so."""
    return [
        nn.Variable.from_numpy_array(v, need_grad=x.grad and not x.integer)
        for x, v in zip(case.inputs, values, strict=True)
    ]


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def computed(case: Case, values):
    """(leaves, results) of a call."""
    nn.seed(7)
    leaves = variables(case, values)
    results = as_tuple(case.call(*leaves))
    nn.forward_all(results)
    return leaves, results


def directions(results, seed=1):
    """A random gradient for each result."""
    rng = np.random.RandomState(seed)
    return [rng.uniform(-1, 1, y.shape) for y in results]


def scalar(results, directions_):
    """The sum of results times directions: one number whose gradient tests all."""
    total = None
    for y, d in zip(results, directions_, strict=True):
        part = F.sum(y * nn.Variable.from_numpy_array(d, need_grad=False))
        total = part if total is None else total + part
    return total


def backward(case: Case, values, only=None):
    """(leaves, directions) after forward and backward of `scalar`, of one result if `only`."""
    leaves = variables(case, values)
    results = as_tuple(case.call(*leaves))
    weights = directions(results)
    if only is not None:
        results, weights = results[only : only + 1], weights[only : only + 1]
    loss = scalar(results, weights)
    nn.seed(7)
    loss.forward(clear_no_need_grad=True)
    loss.backward(clear_buffer=True)
    return leaves, weights


def updated(case: Case):
    """Numbers of the inputs that the function updates."""
    return case.updates(*case.draw()).keys() if case.updates else ()


def close(actual, expected, rtol):
    """Within rtol of each value and of the largest one."""
    expected = np.asarray(expected, np.float64)
    finite = np.abs(expected[np.isfinite(expected)])
    scale = max(finite.max(initial=0), 1e-3)
    np.testing.assert_allclose(actual.astype(np.float64), expected, rtol=rtol, atol=rtol * scale)


def same_bits(actual, expected):
    return actual.dtype == expected.dtype and np.array_equal(actual, expected, equal_nan=True)


def test_rows_have_names_of_their_own():
    names = [case.id for case in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("type_config", ["float", "double", "half"])
@rows(lambda case: case.ref)
def test_results_agree_with_the_definition(case, type_config):
    if type_config == "half" and not case.half:
        pytest.skip("float16 is not near enough to compare here")
    values = drawn(case, type_config)
    with context(type_config):
        leaves, results = computed(case, values)
    wide = [v if v.dtype.kind == "i" else v.astype(np.float64) for v in values]
    expected = as_tuple(case.ref(*wide))
    rtol = _RTOL.get(type_config, case.rtol)
    for y, e in zip(results, expected, strict=True):
        assert y.shape == y.d.shape == np.shape(e)
        close(y.d, e, rtol)
    for i, e in (case.updates(*wide) if case.updates else {}).items():
        close(leaves[i].d, e, rtol)


@pytest.mark.parametrize("type_config", ["float", "double", "half"])
@every_row
def test_results_have_the_dtype_of_the_context(case, type_config):
    """And where the definition counts (indices), they are whole numbers."""
    with context(type_config):
        _, results = computed(case, drawn(case, type_config))
    expected = as_tuple(case.ref(*case.draw())) if case.ref else (0.0,)
    for y, e in zip(results, expected, strict=True):
        counts = np.asarray(e).dtype.kind == "i"
        assert y.d.dtype == (np.int64 if counts else _DTYPES[type_config])


@rows(lambda case: differentiable(case) and case.ref)
def test_gradients_agree_with_differences_of_the_definition(case):
    """Along a random direction, in float64; through all results, and through each alone."""
    definition = case.slope or case.ref
    values = case.draw()
    n = len(as_tuple(definition(*values)))
    rng = np.random.RandomState(2)
    along = {i: rng.uniform(-1, 1, values[i].shape) for i in differentiable(case)}
    for only in [None, *(range(n) if n > 1 else ())]:
        with context("double"):
            leaves, weights = backward(case, values, only)
        chosen = slice(only, None if only is None else only + 1)
        for i, direction in along.items():
            actual = float(np.sum(leaves[i].g * direction))

            def reference(step, i=i, direction=direction, chosen=chosen, weights=weights):
                moved = [v + step * direction if j == i else v for j, v in enumerate(values)]
                found = as_tuple(definition(*moved))[chosen]
                return sum(float(np.sum(y * w)) for y, w in zip(found, weights, strict=True))

            step = 1e-5
            expected = (reference(step) - reference(-step)) / (2 * step)
            assert actual == pytest.approx(expected, rel=1e-6, abs=1e-7), f"input {i}, {only=}"


@with_gradient
def test_gradients_in_float32_are_near_those_in_float64(case):
    values = drawn(case)
    leaves, _ = backward(case, values)
    with context("double"):
        exact, _ = backward(case, values)
    for i in differentiable(case):
        close(leaves[i].g, exact[i].g, 10 * case.rtol)


@rows(lambda case: differentiable(case) and case.second)
def test_second_derivatives_agree_with_differences_of_first_ones(case):
    wanted = differentiable(case)
    values = case.draw()
    rng = np.random.RandomState(3)
    inner = [rng.uniform(-1, 1, values[i].shape) for i in wanted]
    outer = [rng.uniform(-1, 1, values[i].shape) for i in wanted]

    def first(values):
        """Directional first derivative along `inner`, as a graph.

        Of squares: so the gradients of gradients are computed even where a function is linear.
        """
        leaves = variables(case, values)
        results = as_tuple(case.call(*leaves))
        squares = [(y + 1) * (y + 1) for y in results]
        gradients = nn.grad(scalar(squares, directions(squares)), [leaves[i] for i in wanted])
        return leaves, scalar(gradients, inner)

    with context("double"):
        leaves, slope = first(values)
        seconds = nn.grad(slope, [leaves[i] for i in wanted])
        nn.seed(7)
        nn.forward_all([slope, *seconds])
        actual = sum(float(np.sum(g.d * d)) for g, d in zip(seconds, outer, strict=True))

        def moved(step):
            shifted = list(values)
            for i, d in zip(wanted, outer, strict=True):
                shifted[i] = shifted[i] + step * d
            _, slope = first(shifted)
            nn.seed(7)
            slope.forward()
            return float(slope.d)

        step = 1e-5
        expected = (moved(step) - moved(-step)) / (2 * step)
    assert actual == pytest.approx(expected, rel=1e-5, abs=1e-6)


@with_gradient
def test_backward_agrees_with_the_rules(case):
    """`backward` may take a fast path; nn.grad follows the rules."""
    wanted = differentiable(case)
    with context("double"):
        leaves = variables(case, case.draw())
        results = as_tuple(case.call(*leaves))
        loss = scalar(results, directions(results))
        by_rules = nn.grad(loss, [leaves[i] for i in wanted])
        nn.forward_all([loss, *by_rules])  # at once: random numbers are drawn once
        loss.backward()
    for i, gradient in zip(wanted, by_rules, strict=True):
        scale = max(np.abs(gradient.d).max(initial=0), 1e-3)
        np.testing.assert_allclose(leaves[i].g, gradient.d, rtol=1e-10, atol=1e-12 * scale)


@rows(lambda case: len(differentiable(case)) > 1)
def test_a_gradient_does_not_depend_on_which_others_are_wanted(case):
    wanted = differentiable(case)
    values = drawn(case)
    expected, _ = backward(case, values)
    for i in wanted:
        leaves = variables(case, values)
        for j in wanted:
            leaves[j].need_grad = j == i
        results = as_tuple(case.call(*leaves))
        loss = scalar(results, directions(results))
        loss.forward(clear_no_need_grad=True)
        if loss.need_grad:  # not where the only gradient is none: the source of an assign
            loss.backward(clear_buffer=True)
        assert same_bits(leaves[i].g, expected[i].g), f"input {i}"
        assert all(leaves[j].grad.zeroing for j in wanted if j != i)


@every_row
def test_static_dynamic_and_clearing_give_the_same_bits(case):
    values = drawn(case)

    def outcome(dynamic, clear):
        nn.seed(7)
        leaves = variables(case, values)
        with nn.auto_forward(dynamic):
            results = as_tuple(case.call(*leaves))
            loss = scalar(results, directions(results))
        if not dynamic:
            nn.seed(7)
            loss.forward(clear_no_need_grad=clear)
        if differentiable(case):
            loss.backward(clear_buffer=clear)
        arrays = [loss.d, *(leaves[i].g for i in differentiable(case))]
        return [a.copy() for a in (*arrays, *(leaves[i].d for i in updated(case)))]

    expected = outcome(False, False)
    for dynamic, clear in ((False, True), (True, False), (True, True)):
        for e, a in zip(expected, outcome(dynamic, clear), strict=True):
            assert same_bits(a, e)


@every_row
def test_inputs_are_left_as_they_were(case):
    """Except those that the function declares to update."""
    values = drawn(case)
    leaves, results = computed(case, values)
    if differentiable(case):
        loss = scalar(results, directions(results))
        loss.forward()
        loss.backward()
    for i, (x, v) in enumerate(zip(leaves, values, strict=True)):
        if i not in updated(case):
            np.testing.assert_array_equal(x.d, v)


@every_row
def test_views_and_strided_arrays_give_the_same_results(case):
    """Inputs that are windows onto larger memory, assigned from arrays that are not contiguous."""
    values = drawn(case)
    before, expected = computed(case, values)
    leaves = []
    for x, v in zip(case.inputs, values, strict=True):
        base = nn.NdArray((3 * max(v.shape[0], 1), *v.shape[1:]) if v.shape else (3,))
        window = base.narrow(0, len(base) // 3, v.shape[0] if v.shape else 1).view(v.shape)
        base.data = np.zeros(base.shape, v.dtype)
        window.data = np.asarray(v.T.copy().T)
        leaf = nn.Variable(v.shape, need_grad=x.grad and not x.integer)
        leaf.data = window
        leaves.append(leaf)
    results = as_tuple(case.call(*leaves))
    nn.seed(7)
    nn.forward_all(results)
    for y, e in zip(results, expected, strict=True):
        assert same_bits(y.d, e.d)
    for i in updated(case):
        assert same_bits(leaves[i].d, before[i].d)


@rows(lambda case: case.inputs)  # without an input nothing says that it is to be computed at once
def test_a_call_on_ndarrays_computes_the_same_bits(case):
    values = drawn(case)
    leaves, expected = computed(case, values)
    nn.seed(7)
    inputs = [nn.NdArray.from_numpy_array(v) for v in values]
    results = as_tuple(case.call(*inputs))
    for y, e in zip(results, expected, strict=True):
        assert isinstance(y, nn.NdArray)
        assert same_bits(y.data, e.d)
    for i in updated(case):
        assert same_bits(inputs[i].data, leaves[i].d)


@rows(lambda case: any(x.integer for x in case.inputs))
def test_whole_numbers_may_be_given_as_floats(case):
    """As NNabla's scripts do with labels."""
    values = drawn(case)
    _, expected = computed(case, values)
    _, results = computed(case, [v.astype(np.float32) for v in values])
    for y, e in zip(results, expected, strict=True):
        assert same_bits(y.d, e.d)


@rows(lambda case: case.empty)
def test_an_empty_batch_gives_empty_results_and_zero_gradients(case):
    leaves = [
        nn.Variable.from_numpy_array(
            np.zeros(shape, np.int64 if x.integer else np.float32),
            need_grad=x.grad and not x.integer,
        )
        for x, shape in zip(case.inputs, case.empty, strict=True)
    ]
    results = as_tuple(case.call(*leaves))
    loss = scalar(results, directions(results))
    loss.forward()
    if differentiable(case):
        loss.backward()
    assert any(y.size == 0 for y in results)
    for i in differentiable(case):
        np.testing.assert_array_equal(leaves[i].g, 0)


def test_every_public_function_has_a_row():
    public = {name for name, f in vars(F).items() if inspect.isfunction(f)}
    missing = public - {case.name for case in CASES}
    assert not missing


@rows(lambda case: "Winograd" in case.note)
def test_rows_for_winograd_take_that_path(case, monkeypatch, extension):
    if extension != "cpu":
        pytest.skip("Winograd's NumPy kernels are the CPU's")
    if nn.get_cpu_kernels() == "numba":
        from distnn.cpu.winograd import Winograd
    else:
        from distnn.functions.winograd import Winograd

    taken = []
    for name in ("forward", "gradients"):
        method = getattr(Winograd, name)

        def noted(*arguments, name=name, method=method):
            taken.append(name)
            return method(*arguments)

        monkeypatch.setattr(Winograd, name, noted)
    with nn.context_scope(nn.Context(["cpu:float"])):  # a GPU has cuDNN's
        backward(case, drawn(case))
    assert {*taken} == {"forward", "gradients"}


@pytest.mark.parametrize(
    "name", sorted(name for name, f in vars(F).items() if inspect.isfunction(f))
)
def test_the_example_in_the_documentation_runs(name):
    function = vars(F)[name]
    examples = doctest.DocTestFinder().find(function, name, globs={})
    assert any(test.examples for test in examples), f"F.{name} has no example"
    for test in examples:
        result = doctest.DocTestRunner().run(test)
        assert result.failed == 0
