"""Every function of the table has every property that a function must have."""

from __future__ import annotations

import doctest
import inspect

import numpy as np
import pytest
from cases import CASES, Case

import distnn as nn
import distnn.functions as F

_IDS = [case.id or case.name for case in CASES]
table = pytest.mark.parametrize("case", CASES, ids=_IDS)
# Machine precision times a few operations, for values of order one.
_RTOL = {"double": 1e-12, "half": 4e-3}
_DTYPES = {"float": np.float32, "double": np.float64, "half": np.float16}


def context(type_config):
    return nn.context_scope(nn.Context([f"cpu:{type_config}"]))


def variables(case: Case, values):
    """Leaves of the drawn values; those of floats need a gradient if the row says so."""
    return [
        nn.Variable.from_numpy_array(v, need_grad=x.grad and not x.integer)
        for x, v in zip(case.inputs, values, strict=True)
    ]


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def computed(case: Case, values, dynamic=False, **flags):
    """(leaves, results) of a call."""
    nn.seed(7)
    leaves = variables(case, values)
    with nn.auto_forward(dynamic):
        results = as_tuple(case.call(*leaves))
    if not dynamic:
        nn.forward_all(results, **flags)
    return leaves, results


def directions(results, seed=1):
    """A random gradient for each result, in its dtype."""
    rng = np.random.RandomState(seed)
    return [rng.uniform(-1, 1, y.shape) for y in results]


def scalar(results, directions_):
    """The sum of results times directions: one number whose gradient tests all."""
    total = None
    for y, d in zip(results, directions_, strict=True):
        part = F.sum(y * nn.Variable.from_numpy_array(d, need_grad=False))
        total = part if total is None else total + part
    return total


def differentiable(case: Case):
    return [i for i, x in enumerate(case.inputs) if x.grad and not x.integer]


@pytest.mark.parametrize("type_config", ["float", "double", "half"])
@table
def test_results_agree_with_the_definition(case, type_config):
    if type_config == "half" and not case.half:
        pytest.skip("float16 is not near enough to compare here")
    values = [v if v.dtype.kind == "i" else v.astype(_DTYPES[type_config]) for v in case.draw()]
    with context(type_config):
        _, results = computed(case, values)
    wide = [v if v.dtype.kind == "i" else v.astype(np.float64) for v in values]
    expected = as_tuple(case.ref(*wide))
    assert len(results) == len(expected)
    rtol = _RTOL.get(type_config, case.rtol)
    for y, e in zip(results, expected, strict=True):
        e = np.asarray(e)
        assert y.shape == e.shape
        scale = max(np.abs(e).max(initial=0), 1e-3)
        np.testing.assert_allclose(y.d.astype(np.float64), e, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("type_config", ["float", "double", "half"])
@table
def test_results_have_the_dtype_of_the_context(case, type_config):
    with context(type_config):
        _, results = computed(case, case.draw())
    for y in results:
        assert y.d.dtype == _DTYPES[type_config] or y.d.dtype.kind == "i"


@table
def test_gradients_agree_with_differences_of_the_definition(case):
    """Along a random direction, in float64."""
    wanted = differentiable(case)
    if not wanted:
        pytest.skip("no input has a gradient")
    values = case.draw()
    with context("double"):
        leaves, results = computed(case, values)
        weights = directions(results)
        loss = scalar(results, weights)
        loss.forward()
        loss.backward()
    rng = np.random.RandomState(2)
    for i in wanted:
        direction = rng.uniform(-1, 1, values[i].shape)
        actual = float(np.sum(leaves[i].g * direction))

        def reference(step, i=i, direction=direction):
            moved = [v + step * direction if j == i else v for j, v in enumerate(values)]
            nn.seed(7)
            found = as_tuple(case.ref(*moved))
            return sum(float(np.sum(y * w)) for y, w in zip(found, weights, strict=True))

        step = 1e-5
        expected = (reference(step) - reference(-step)) / (2 * step)
        assert actual == pytest.approx(expected, rel=1e-6, abs=1e-7), f"input {i}"


@table
def test_second_derivatives_agree_with_differences_of_first_ones(case):
    wanted = differentiable(case)
    if not wanted or not case.second:
        pytest.skip("no input has a second derivative")
    values = case.draw()
    rng = np.random.RandomState(3)
    inner = [rng.uniform(-1, 1, values[i].shape) for i in wanted]
    outer = [rng.uniform(-1, 1, values[i].shape) for i in wanted]

    def first(values):
        """Directional first derivative along `inner`, as a graph."""
        nn.seed(7)
        leaves = variables(case, values)
        results = as_tuple(case.call(*leaves))
        gradients = nn.grad(scalar(results, directions(results)), [leaves[i] for i in wanted])
        return leaves, scalar(gradients, inner)

    with context("double"):
        leaves, slope = first(values)
        seconds = nn.grad(slope, [leaves[i] for i in wanted])
        nn.forward_all([slope, *seconds])
        actual = sum(float(np.sum(g.d * d)) for g, d in zip(seconds, outer, strict=True))

        def moved(step):
            shifted = list(values)
            for i, d in zip(wanted, outer, strict=True):
                shifted[i] = shifted[i] + step * d
            _, slope = first(shifted)
            slope.forward()
            return float(slope.d)

        step = 1e-5
        expected = (moved(step) - moved(-step)) / (2 * step)
    assert actual == pytest.approx(expected, rel=1e-5, abs=1e-6)


@table
def test_backward_agrees_with_the_rules(case):
    """`backward` may take a fast path; nn.grad follows the rules."""
    wanted = differentiable(case)
    if not wanted:
        pytest.skip("no input has a gradient")
    with context("double"):
        leaves, results = computed(case, case.draw())
        loss = scalar(results, directions(results))
        loss.forward()
        loss.backward()
        by_rules = nn.grad(loss, [leaves[i] for i in wanted])
        nn.seed(7)
        nn.forward_all(by_rules)
    for i, gradient in zip(wanted, by_rules, strict=True):
        scale = max(np.abs(gradient.d).max(initial=0), 1e-3)
        np.testing.assert_allclose(leaves[i].g, gradient.d, rtol=1e-10, atol=1e-12 * scale)


@table
def test_static_dynamic_and_clearing_give_the_same_bits(case):
    values = case.draw()

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
        return [loss.d.copy(), *(leaves[i].g.copy() for i in differentiable(case))]

    expected = outcome(False, False)
    for dynamic, clear in ((False, True), (True, False), (True, True)):
        for e, a in zip(expected, outcome(dynamic, clear), strict=True):
            assert np.array_equal(e, a, equal_nan=True)


@table
def test_inputs_are_left_as_they_were(case):
    values = case.draw()
    leaves, results = computed(case, values)
    if differentiable(case):
        loss = scalar(results, directions(results))
        loss.forward()
        loss.backward()
    for x, v in zip(leaves, values, strict=True):
        np.testing.assert_array_equal(x.d, v)


@table
def test_views_and_strided_arrays_give_the_same_results(case):
    """Inputs that are windows onto larger memory, assigned from arrays that are not contiguous."""
    values = case.draw()
    _, expected = computed(case, values)
    leaves = []
    for x, v in zip(case.inputs, values, strict=True):
        base = nn.NdArray((3 * max(v.shape[0], 1), *v.shape[1:]) if v.shape else (3,))
        window = base.narrow(0, len(base) // 3, v.shape[0] if v.shape else 1).view(v.shape)
        base.data = np.zeros(base.shape, v.dtype)
        window.data = np.asarray(v.T.copy().T)
        leaf = nn.Variable(v.shape, need_grad=x.grad and not x.integer)
        leaf.data = window
        leaves.append(leaf)
    nn.seed(7)
    results = as_tuple(case.call(*leaves))
    nn.seed(7)
    nn.forward_all(results)
    for y, e in zip(results, expected, strict=True):
        assert np.array_equal(y.d, e.d, equal_nan=True)


@table
def test_a_call_on_ndarrays_computes_the_same_bits(case):
    values = case.draw()
    _, expected = computed(case, values)
    nn.seed(7)
    results = as_tuple(case.call(*(nn.NdArray.from_numpy_array(v) for v in values)))
    for y, e in zip(results, expected, strict=True):
        assert isinstance(y, nn.NdArray)
        assert np.array_equal(y.data, e.d, equal_nan=True)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.empty], ids=[c.id or c.name for c in CASES if c.empty]
)
def test_an_empty_batch_gives_empty_results_and_zero_gradients(case):
    leaves = [
        nn.Variable.from_numpy_array(
            np.zeros(shape, np.int64 if x.integer else np.float32), need_grad=not x.integer
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
