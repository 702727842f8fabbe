"""What a row cannot say: random numbers, effects on gradients, NNabla's common arguments."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import distnn as nn
import distnn.communicators as C
import distnn.functions as F
from distnn.formula import Formula


def leaf(values, need_grad=True):
    return nn.Variable.from_numpy_array(np.asarray(values, np.float32), need_grad=need_grad)


# -- dropout ------------------------------------------------------------------------------------


def dropped(p, shape=(200, 1000), dynamic=False, seed=-1):
    """The result for ones, and the gradient of its sum."""
    x = leaf(np.ones(shape))
    with nn.auto_forward(dynamic):
        y = F.dropout(x, p, seed=seed)
    if not dynamic:
        y.forward()
    y.backward()
    return y.d.copy(), x.g.copy()


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 0.9])
def test_dropout_drops_with_probability_p(p):
    y, _ = dropped(p)
    deviation = np.sqrt(p * (1 - p) / y.size)
    assert abs(np.mean(y == 0) - p) < 5 * deviation


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 0.9])
def test_dropout_scales_what_is_left_by_the_inverse_of_its_probability(p):
    y, _ = dropped(p)
    np.testing.assert_allclose(y[y != 0], 1 / (1 - p), rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_dropout_drops_neighbours_independently(axis):
    y, _ = dropped(0.5)
    kept = (y != 0) - 0.5
    ahead, behind = np.delete(kept, 0, axis), np.delete(kept, -1, axis)
    assert abs(np.mean(ahead * behind)) < 5 * 0.25 / np.sqrt(ahead.size)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("seed", [-1, 5])
def test_dropout_s_gradient_has_the_mask_of_its_result(dynamic, seed):
    y, gradient = dropped(0.3, dynamic=dynamic, seed=seed)
    np.testing.assert_array_equal(y, gradient)  # both are mask / (1 - p)


def test_dropout_s_second_derivative_is_zero_and_its_first_keeps_the_mask():
    x = leaf(np.ones((20, 30)))
    y = F.dropout(x * x, 0.5)
    (dx,) = nn.grad(y, x)
    (ddx,) = nn.grad(dx, x)
    nn.forward_all([y, dx, ddx])
    np.testing.assert_array_equal(dx.d, 2 * y.d)
    np.testing.assert_array_equal(ddx.d, 2 * y.d)


@pytest.mark.parametrize("seed", [-1, 5])
def test_dropout_draws_the_same_numbers_static_and_dynamic(seed):
    results = []
    for dynamic in (False, True):
        nn.seed(11)
        results.append([dropped(0.5, dynamic=dynamic, seed=seed)[0] for _ in range(3)])
    np.testing.assert_array_equal(*results)


def test_dropout_draws_anew_in_every_forward():
    y = F.dropout(leaf(np.ones(1000)), 0.5)
    draws = []
    for _ in range(3):
        y.forward()
        draws.append(y.d.copy())
    assert not np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[1], draws[2])


def test_two_dropouts_of_one_graph_draw_different_numbers():
    x = leaf(np.ones(1000))
    a, b = F.dropout(x, 0.5), F.dropout(x, 0.5)
    nn.forward_all([a, b])
    assert not np.array_equal(a.d, b.d)


def test_a_seed_of_its_own_fixes_the_first_draw_and_not_the_second():
    draws = []
    for global_seed in (1, 2):
        nn.seed(global_seed)
        y = F.dropout(leaf(np.ones(1000)), 0.5, seed=9)
        for _ in range(2):
            y.forward()
            draws.append(y.d.copy())
    first, second, first_again, second_again = draws
    assert np.array_equal(first, first_again)
    assert np.array_equal(second, second_again)
    assert not np.array_equal(first, second)


def test_a_dropout_with_a_seed_of_its_own_takes_no_number_from_the_others():
    def other(with_own):
        nn.seed(3)
        if with_own:
            F.dropout(leaf(np.ones(10)), 0.5, seed=1).forward()
        return dropped(0.5, (1000,))[0]

    np.testing.assert_array_equal(other(False), other(True))


def test_dropout_s_numbers_depend_on_the_seed():
    draws = []
    for seed in (1, 2):
        nn.seed(seed)
        draws.append(dropped(0.5, (1000,))[0])
    assert not np.array_equal(*draws)


# -- sink ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
def test_sink_starts_ones_at_every_input(dynamic):
    x, w = leaf([1.0, 2.0]), leaf([[3.0]])
    with nn.auto_forward(dynamic):
        s = F.sink(x * 5, w * 7, x * 11)
    if not dynamic:
        s.forward()
    s.backward(grad=100)  # of the sink itself, which is no value of the others
    np.testing.assert_array_equal(x.g, [16, 16])
    np.testing.assert_array_equal(w.g, [[7]])
    assert s.d == 0


def test_sink_starts_with_the_present_gradients_if_asked():
    x = leaf([1.0, 2.0])
    a, b = x * 5, x * 7
    a.g, b.g = [1.0, 2.0], [10.0, 20.0]
    s = F.sink(a, b, one_input_grad=False)
    s.forward()
    s.backward()
    np.testing.assert_array_equal(x.g, [75, 150])
    x.grad.zero()
    a.g, b.g = [1.0, 0.0], [0.0, 0.0]
    s.forward()
    s.backward()
    np.testing.assert_array_equal(x.g, [5, 0])


def test_sink_leaves_the_present_gradients_of_leaves_as_they_are():
    x = leaf([1.0, 2.0])
    x.g = [3.0, 4.0]
    s = F.sink(x, x * 2, one_input_grad=False)
    s.forward()
    s.backward()
    np.testing.assert_array_equal(x.g, [3, 4])


def test_sink_keeps_its_inputs_from_being_cleared():
    x = leaf([1.0, 2.0])
    a, b = F.tanh(x), x * 2
    F.sink(a, b).forward(clear_buffer=True)
    np.testing.assert_array_equal(b.d, [2, 4])
    np.testing.assert_allclose(a.d, np.tanh([1, 2]), rtol=1e-6)


# -- assign -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_gradient_of_an_assign_goes_to_its_target(dynamic):
    dst, src = leaf([0.0, 0.0]), leaf([1.0, 2.0])
    with nn.auto_forward(dynamic):
        y = F.sum(F.assign(dst, src) * 3)
    if not dynamic:
        y.forward()
    y.backward()
    np.testing.assert_array_equal(dst.d, [1, 2])
    np.testing.assert_array_equal(dst.g, [3, 3])
    assert src.grad.zeroing


# -- derivatives ----------------------------------------------------------------------------------


def derivatives(function, values, order):
    """Derivatives of the sum of function(x) with respect to x, from the first on."""
    x = leaf(values)
    y, found = function(x), []
    for _ in range(order):
        (y,) = nn.grad(y, x)
        found.append(y)
    nn.forward_all(found)
    return [y.d for y in found]


def test_powers_have_derivatives_of_any_order_at_0():
    found = derivatives(lambda x: x**3, [0.0, 2.0], 5)
    np.testing.assert_array_equal(found, [[0, 12], [0, 12], [6, 6], [0, 0], [0, 0]])


def test_a_product_has_third_derivatives_where_elements_are_0():
    found = derivatives(F.prod, [0.0, 0.0, 2.0], 3)
    # Sums of mixed derivatives of abc at (0, 0, 2): of the first, second and third order.
    np.testing.assert_array_equal(found, [[0, 0, 0], [2, 2, 0], [2, 2, 2]])


@pytest.mark.parametrize(
    "name", ["sigmoid", "log_sigmoid", "softplus", "swish", "mish", "tanh", "elu", "selu", "gelu"]
)
def test_derivatives_are_finite_where_the_exponential_overflows(name):
    found = derivatives(getattr(F, name), [-1000.0, -89.0, 89.0, 1000.0], 3)
    assert np.all(np.isfinite(found))
    np.testing.assert_allclose(found[1], 0, atol=1e-30)


def test_the_slope_of_swish_is_1_for_the_largest_numbers():
    (slope,) = derivatives(F.swish, [1e3, 1e8, 1e30], 1)
    np.testing.assert_array_equal(slope, 1)


def test_gradients_of_a_convolution_can_be_penalised():
    """The gradient of a gradient's norm, as in WGAN-GP, against differences."""
    rng = np.random.RandomState(0)
    x0, w0 = rng.standard_normal((1, 2, 5, 5)), rng.standard_normal((3, 2, 3, 3))

    def penalty(w):
        x = nn.Variable.from_numpy_array(x0, need_grad=True)
        y = F.sum(F.tanh(F.convolution(x, w, pad=(1, 1))))
        (dx,) = nn.grad(y, x)
        return F.sum(dx * dx)

    with nn.context_scope(nn.Context(["cpu:double"])):
        w = nn.Variable.from_numpy_array(w0, need_grad=True)
        loss = penalty(w)
        loss.forward()
        loss.backward()
        direction = rng.standard_normal(w0.shape)
        values = []
        for step in (1e-5, -1e-5):
            moved = penalty(nn.Variable.from_numpy_array(w0 + step * direction))
            moved.forward()
            values.append(float(moved.d))
    expected = (values[0] - values[1]) / 2e-5
    assert float(np.sum(w.g * direction)) == pytest.approx(expected, rel=1e-6)


# -- formulas: conditions on numbers choose before anything is computed ----------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("where(n == 0, x, n / x)", [[1, 2], [3, 1.5]]),
        ("where(n == 0, 5, x)", [[5, 5], [1, 2]]),
        ("x + where(n == 0, 0, n / x)", [[1, 2], [4, 3.5]]),
        ("x * where(n > 1, n, 2)", [[2, 4], [3, 6]]),
        ("x * (n + where(n != 0, 1 / n, -1))", [[-1, -2], [10 / 3, 20 / 3]]),
    ],
)
def test_a_formula_with_a_condition_on_a_number(text, expected):
    formula = Formula(text, ["x"], ["n"])
    for n, row in zip((0.0, 3.0), expected, strict=True):
        x, out = np.array([1.0, 2.0]), np.empty(2)
        formula.evaluate({"x": x}, {"n": n}, out)
        np.testing.assert_allclose(out, row, rtol=1e-15)


# -- NNabla's common arguments --------------------------------------------------------------------

PUBLIC = sorted(name for name, f in vars(F).items() if inspect.isfunction(f))


@pytest.mark.parametrize("name", PUBLIC)
def test_every_function_takes_the_common_arguments(name):
    parameters = inspect.signature(getattr(F, name)).parameters
    assert parameters["n_outputs"].default == -1
    assert parameters["outputs"].default is None


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("function", [F.relu, F.softmax], ids=["elementwise", "other"])
def test_outputs_gives_the_memory_for_the_result(function, dynamic):
    x, target = leaf([[1.0, 2.0]]), nn.Variable((1, 2))
    memory = target.d
    with nn.auto_forward(dynamic):
        y = function(x, n_outputs=1, outputs=[target])
    if not dynamic:
        y.forward()
    expected = function(nn.NdArray.from_numpy_array(x.d)).data
    np.testing.assert_array_equal(y.d, expected)
    if nn.get_current_context().backend == ["cpu:float"]:  # on a device it was a copy
        np.testing.assert_array_equal(memory, expected)


@pytest.mark.parametrize("function", [F.relu, F.softmax], ids=["elementwise", "other"])
def test_outputs_takes_ndarrays_for_calls_on_ndarrays(function):
    x = nn.NdArray.from_numpy_array(np.array([[1.0, 2.0]], np.float32))
    target = nn.NdArray((1, 2))
    assert function(x, outputs=[target]) is target
    np.testing.assert_array_equal(target.data, function(x).data)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "add_scalar", "mul_scalar", "pow_scalar"])
def test_inplace_is_accepted_and_ignored(name):
    x = leaf([-1.0, 2.0])
    a, b = getattr(F, name)(x, inplace=True), getattr(F, name)(x)
    nn.forward_all([a, b])
    np.testing.assert_array_equal(a.d, b.d)
    np.testing.assert_array_equal(x.d, [-1, 2])


@pytest.mark.parametrize("name", ["add2", "sub2", "mul2", "div2", "pow2"])
def test_inplace_of_two_arrays_is_accepted_and_ignored(name):
    x, y = leaf([1.0, 2.0]), leaf([3.0, 4.0])
    a, b = getattr(F, name)(x, y, inplace=True), getattr(F, name)(x, y)
    nn.forward_all([a, b])
    np.testing.assert_array_equal(a.d, b.d)
    np.testing.assert_array_equal(x.d, [1, 2])


@pytest.mark.parametrize(
    ("name", "type_name"),
    [
        ("average_pooling", "AveragePooling"),
        ("sum_pooling", "SumPooling"),
        ("max_pooling", "MaxPooling"),
    ],
)
def test_pooling_has_the_name_that_was_called(name, type_name):
    assert getattr(F, name)(nn.Variable((4, 4)), (2, 2)).parent.info.type_name == type_name


@pytest.mark.parametrize("name", ["max", "min", "sum", "mean"])
def test_reductions_have_the_name_that_was_called(name):
    assert getattr(F, name)(nn.Variable((4, 4))).parent.info.type_name == name.capitalize()


@pytest.mark.parametrize("batch_stat", [True, False])
def test_batch_normalization_has_one_name(batch_stat):
    y = F.batch_normalization(
        nn.Variable((2, 3)), *[nn.Variable((1, 3)) for _ in range(4)], batch_stat=batch_stat
    )
    assert y.parent.info.type_name == "BatchNormalization"


@pytest.mark.parametrize("batch_stat", [True, False])
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("type_config", ["float", "double", "half"])
def test_fused_batch_normalization_has_the_bits_of_its_parts(batch_stat, added, type_config):
    shape, channels = (5, 3, 4, 7), (1, 3, 1, 1)
    rng = np.random.RandomState(0)
    values = [rng.standard_normal(s) for s in (shape, channels, channels, shape)]
    weight = rng.standard_normal(shape)

    def outcome(fused):
        x, beta, gamma, z = (nn.Variable.from_numpy_array(v, need_grad=True) for v in values)
        stats = [nn.Variable.from_numpy_array(np.full(channels, v)) for v in (0.5, 2.0)]
        if fused:
            extra = (z,) if added else ()
            y = F.fused_batch_normalization(x, beta, gamma, *stats, *extra, batch_stat=batch_stat)
        else:
            y = F.batch_normalization(x, beta, gamma, *stats, batch_stat=batch_stat)
            y = F.relu(y + z if added else y)
        y.forward()
        y.backward(weight)
        leaves = (x, beta, gamma, *([z] if added else []))
        return [y.d, *(leaf.g for leaf in leaves), *(s.d for s in stats)]

    with nn.context_scope(nn.Context([f"cpu:{type_config}"])):
        for one, parts in zip(outcome(True), outcome(False), strict=True):
            assert one.dtype == parts.dtype
            np.testing.assert_array_equal(one, parts)


@pytest.mark.parametrize("axes", [[1], [1, 3]])
@pytest.mark.parametrize("name", ["batch_", "fused_batch_", "sync_batch_"])
def test_a_mean_far_larger_than_the_deviation_is_exact_in_half_precision(name, axes, extension):
    """Rounded to half, a mean of 2000 is off by up to half a deviation of these channels."""
    rng = np.random.RandomState(0)
    x = (2000 + 2 * rng.standard_normal((6, 3, 4, 5))).astype(np.float16)
    dy = rng.standard_normal(x.shape).astype(np.float16)
    kept = tuple(n if i in axes else 1 for i, n in enumerate(x.shape))
    others = tuple(i for i in range(4) if i not in axes)
    exact = x.astype(np.float64)
    mean, variance = exact.mean(others, keepdims=True), exact.var(others, keepdims=True)
    deviation, count = np.sqrt(variance + 1e-5), x.size // mean.size
    normal = (exact - mean) / deviation
    passed = dy * (normal > 0) if name == "fused_batch_" else dy.astype(np.float64)
    total, dot = (v.mean(others, keepdims=True) for v in (passed, passed * normal))
    with nn.context_scope(nn.Context([f"{extension}:half"])):
        leaf = nn.Variable.from_numpy_array(x, need_grad=True)
        running = [nn.Variable.from_numpy_array(np.zeros(kept, np.float32)) for _ in range(2)]
        comm = C.DataParallelCommunicator()
        comm.init()
        ranks = (comm,) if name == "sync_batch_" else ()
        function = getattr(F, f"{name}normalization")
        y = function(leaf, None, None, *running, *ranks, axes=axes)
        y.forward()
        y.backward(nn.NdArray.from_numpy_array(dy))
        expected = np.maximum(normal, 0) if name == "fused_batch_" else normal
        np.testing.assert_allclose(y.d.astype(float), expected, rtol=1e-3, atol=2e-3)
        slope = (passed - total - normal * dot) / deviation
        np.testing.assert_allclose(leaf.g.astype(float), slope, rtol=1e-3, atol=2e-3)
        np.testing.assert_allclose(running[0].d, 0.1 * mean, rtol=1e-6)
        np.testing.assert_allclose(running[1].d, 0.1 * variance * count / (count - 1), rtol=1e-5)
