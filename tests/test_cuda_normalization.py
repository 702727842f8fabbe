"""Batch normalization on a GPU: statistics, results and gradients near those of the definition."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from twins import RTOL, close, launches, moved, namespace, same_bits, strict, twin, up

from distnn.formula import Formula
from distnn.formula_chain import Chain, Joined, Link
from distnn.functions.batch_normalization import BatchNormalization, FixedNormalization
from distnn.functions.fused_batch_normalization import FusedBatchNormalization

pytestmark = pytest.mark.usefixtures("gpu")
every_dtype = pytest.mark.parametrize("dtype", list("efd"))

EPS, DECAY = 1e-3, 0.75
WIDE = {"e": "f", "f": "f", "d": "d"}  # of statistics that are saved or kept running

# (shape, axes): (A, C, B) blocks with A, C or B of 1, few and many elements a channel, lengths of
# whole packs or not, and channel axes that are not neighbours.
SHAPES = [
    ((6, 3), (1,)),
    ((1000, 3), (1,)),
    ((300, 64), (1,)),
    ((2, 1), (1,)),
    ((4, 3, 5), (1,)),
    ((50, 3, 5), (1,)),
    ((4, 3, 7, 7), (1,)),
    ((3, 2, 40, 16), (1,)),
    ((1, 4, 100), (1,)),
    ((2, 1, 20000), (1,)),
    ((40, 1, 300), (1,)),
    ((2, 5, 6, 8), (3,)),
    ((10, 12, 10, 40), (3,)),
    ((3, 4, 2), (0,)),
    ((4, 2, 3, 5), (1, 2)),
    ((4, 2, 3, 5), (1, 3)),
    ((1, 3, 1, 1), (1,)),
]
every_shape = pytest.mark.parametrize(("shape", "axes"), SHAPES)


@pytest.fixture(autouse=True)
def _strict():
    with strict():
        yield


class Inputs:
    """Drawn in `dtype`; as float64 under the same names."""

    def __init__(self, shape, axes, dtype, shift=0.0):
        rng = np.random.RandomState(0)
        kept = tuple(n if i in axes else 1 for i, n in enumerate(shape))
        self.summed = tuple(i for i in range(len(shape)) if i not in axes)
        self.dtype = dtype
        self.x = (shift + 2 * rng.standard_normal(shape)).astype(dtype)
        self.z, self.dy = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
        self.beta, self.mean, self.dmean, self.dvariance = (
            rng.standard_normal(kept).astype(dtype) for _ in range(4)
        )
        self.gamma, self.variance = (rng.uniform(0.5, 2, kept).astype(dtype) for _ in range(2))

    def wide(self, *names):
        return [getattr(self, name).astype(np.float64) for name in names]

    def statistics(self):
        (x,) = self.wide("x")
        mean = x.mean(self.summed, keepdims=True)
        variance = ((x - mean) ** 2).mean(self.summed, keepdims=True)
        return mean, variance, 1 / np.sqrt(variance + EPS)


def forward(function, values, place=up, **given):
    """All that a twin's forward returns, in memory of its own and in what it is given."""
    names = ["x", "beta", "gamma", "mean", "variance"]
    names += ["z"] * (type(function) is FusedBatchNormalization)
    arrays = [given.get(n, getattr(values, n)) for n in names]
    arrays = [None if a is None else place(a) for a in arrays]
    xp, options = namespace(values.dtype), {"decay_rate": DECAY, "eps": EPS}
    own = twin(function).forward(xp, *arrays, **options)
    out = tuple(up(np.full(a.shape, np.nan, a.dtype)) for a in own[:5])
    into = twin(function).forward(xp, *arrays, **options, out=out)
    for a, b, c in zip(own, into, (*out, *own[5:]), strict=True):
        same_bits(a, b)
        same_bits(a, c)
    return own


@every_dtype
@every_shape
def test_statistics_and_results_agree_with_the_definition(shape, axes, dtype):
    values = Inputs(shape, axes, dtype)
    results = forward(BatchNormalization.of(axes), values)
    mean, variance, inverse = values.statistics()
    x, beta, gamma, old_mean, old_variance = values.wide("x", "beta", "gamma", "mean", "variance")
    count = x.size // mean.size
    unbiased = variance * count / max(count - 1, 1)
    expected = (
        (x - mean) * inverse * gamma + beta,
        mean,
        variance,
        mean,
        inverse,
        DECAY * old_mean + (1 - DECAY) * mean,
        DECAY * old_variance + (1 - DECAY) * unbiased,
    )
    # A mean near 0 is as exact as the deviations are.
    deviation = np.sqrt(variance).max()
    scales = (0, deviation, 0, deviation, 0, 1, 0)
    for i, (result, e, scale) in enumerate(zip(results, expected, scales, strict=True)):
        close(result, e, dtype if i < 3 else WIDE[dtype], times=2, scale=scale)
    for result, again in zip(
        results, forward(BatchNormalization.of(axes), values, moved), strict=True
    ):
        same_bits(again, result)


@pytest.mark.parametrize(("beta", "gamma"), [(False, True), (True, False), (False, False)])
@every_dtype
def test_shift_and_scale_may_be_missing(beta, gamma, dtype):
    values = Inputs((4, 3, 5), (1,), dtype)
    missing = {name: None for name, there in (("beta", beta), ("gamma", gamma)) if not there}
    mean, _, inverse = values.statistics()
    x, shift, scale = values.wide("x", "beta", "gamma")
    expected = (x - mean) * inverse * (scale if gamma else 1) + (shift if beta else 0)
    close(forward(BatchNormalization.of((1,)), values, **missing)[0], expected, dtype, times=2)


@every_dtype
@pytest.mark.parametrize("added", [True, False])
@every_shape
def test_addition_and_relu_are_fused(shape, axes, added, dtype):
    values = Inputs(shape, axes, dtype)
    missing = {} if added else {"z": None}
    results = forward(FusedBatchNormalization.of(axes), values, **missing)
    mean, _, inverse = values.statistics()
    x, beta, gamma, z = values.wide("x", "beta", "gamma", "z")
    y = (x - mean) * inverse * gamma + beta + (z if added else 0)
    close(results[0], np.maximum(y, 0), dtype, times=2)
    plain = forward(BatchNormalization.of(axes), values)
    for a, b in zip(results[1:], plain[1:], strict=True):
        same_bits(a, b)
    again = forward(FusedBatchNormalization.of(axes), values, moved, **missing)
    same_bits(again[0], results[0])


@pytest.mark.parametrize("shape", [(5000, 3), (8, 3, 20, 20), (40, 3, 6)])
def test_a_large_mean_costs_no_more_than_its_rounding(shape):
    values = Inputs(shape, (1,), "f", shift=1e4)
    _, mean, variance, *_ = forward(BatchNormalization.of((1,)), values)
    exact = values.statistics()
    np.testing.assert_allclose(mean.get(), exact[0], rtol=6e-8)
    np.testing.assert_allclose(variance.get(), exact[1], rtol=2e-6)


@pytest.mark.parametrize("kind", [BatchNormalization, FusedBatchNormalization])
@pytest.mark.parametrize("shape", [(5000, 3), (8, 3, 20, 20), (40, 3, 6)])
def test_a_large_mean_in_half_precision_costs_the_rounding_of_results(shape, kind):
    """Rounded to half, the mean would be off by up to half a deviation."""
    values = Inputs(shape, (1,), "e", shift=2000.0)
    mean, _, inverse = values.statistics()
    x, beta, gamma = values.wide("x", "beta", "gamma")
    fused = kind is FusedBatchNormalization
    y, *_, new_mean, _ = forward(kind.of((1,)), values, **({"z": None} if fused else {}))
    expected = (x - mean) * inverse * gamma + beta
    close(y, np.maximum(expected, 0) if fused else expected, "e")
    (old_mean,) = values.wide("mean")
    np.testing.assert_allclose(new_mean.get(), DECAY * old_mean + (1 - DECAY) * mean, rtol=1e-6)
    expected = exact_gradients(values, ("dy",))
    found = backward(BatchNormalization.of((1,)), values, ("x", "gamma"), ("dy",))
    for name, gradient in found.items():
        close(gradient, expected[name], "e")


@pytest.mark.parametrize("shape", [(5000, 3), (8, 3, 20, 20), (40, 3, 6)])
def test_one_value_far_from_the_others_does_not_spoil_the_variance(shape):
    """Where it is the first one, to which a thread takes differences, it costs most: 64 eps."""
    values = Inputs(shape, (1,), "f")
    values.x.reshape(shape[0], 3, -1)[0, :, 0] = 1e4
    _, mean, variance, *_ = forward(BatchNormalization.of((1,)), values)
    exact = values.statistics()
    assert np.all(np.abs(mean.get() - exact[0]) <= 1e-7 * np.sqrt(exact[1]))
    np.testing.assert_allclose(variance.get(), exact[1], rtol=4e-6)


def test_equal_values_have_no_variance():
    values = Inputs((700, 3, 2), (1,), "f")
    values.x[...] = np.float32(0.1)
    y, mean, variance, *_ = forward(BatchNormalization.of((1,)), values)
    np.testing.assert_array_equal(mean.get(), np.full((1, 3, 1), np.float32(0.1)))
    np.testing.assert_array_equal(variance.get(), 0)
    np.testing.assert_array_equal(y.get(), np.broadcast_to(values.beta, values.x.shape))


def backward(function, values, need, outer, y=None, place=up, gamma=True):
    """Gradients by name: those that `need` names."""
    mean, _, inverse = (v.astype(WIDE[values.dtype]) for v in values.statistics())
    shapes = {"x": values.x, "beta": mean, "gamma": mean, "z": values.x}
    names = ["x", "beta", "gamma", "mean", "variance", "z"]
    targets = {n: up(np.full(shapes[n].shape, np.nan, values.dtype)) for n in need}
    arrays = [getattr(values, n) if n in outer else None for n in ("dy", "dmean", "dvariance")]
    arrays += [values.x, values.gamma if gamma else None, *([] if y is None else [y])]
    arrays += [mean, inverse]
    twin(function).backward(
        namespace(values.dtype),
        SimpleNamespace(**{n: n in need for n in names}),
        *(None if a is None else place(a) for a in arrays),
        out=SimpleNamespace(**{n: targets.get(n) for n in names}),
    )
    return targets


def exact_gradients(values, outer, mask=None, gamma=True):
    """Of sum(y dy) + sum(mean dmean) + sum(variance dvariance), with statistics as rounded."""
    wide = WIDE[values.dtype]
    mean, _, inverse = (v.astype(wide).astype(np.float64) for v in values.statistics())
    x, dy, dmean, dvariance, scale = values.wide("x", "dy", "dmean", "dvariance", "gamma")
    dy = dy * (1 if mask is None else mask) if "dy" in outer else 0 * dy
    scale = scale if gamma else 1
    normal = (x - mean) * inverse
    m = x.size // mean.size
    total, dot = (v.sum(values.summed, keepdims=True) for v in (dy, dy * normal))
    dx = scale * inverse * (dy - total / m - normal * dot / m)
    dx = dx + ("dmean" in outer) * dmean / m
    dx = dx + ("dvariance" in outer) * 2 / m * (x - mean) * dvariance
    return {"x": dx, "beta": total, "gamma": dot, "z": dy}


ALL = ("dy", "dmean", "dvariance")


@every_dtype
@every_shape
def test_gradients_agree_with_the_definition(shape, axes, dtype):
    values = Inputs(shape, axes, dtype)
    function = BatchNormalization.of(axes)
    names = ("x", "beta", "gamma")
    expected = exact_gradients(values, ALL)
    found = backward(function, values, names, ALL)
    for name in names:
        close(found[name], expected[name], dtype, times=5)
        (alone,) = backward(function, values, (name,), ALL).values()
        same_bits(alone, found[name])
        same_bits(backward(function, values, names, ALL, place=moved)[name], found[name])


@pytest.mark.parametrize("outer", [("dy",), ("dmean",), ("dvariance",), ("dy", "dvariance")])
@pytest.mark.parametrize("gamma", [True, False])
@pytest.mark.parametrize("axes", [(1,), (0, 2)])
def test_results_without_a_gradient_add_nothing(outer, gamma, axes):
    values = Inputs((4, 3, 5), axes, "f")
    expected = exact_gradients(values, outer, gamma=gamma)
    need = ("x", "beta", *(["gamma"] * gamma))
    found = backward(BatchNormalization.of(axes), values, need, outer, gamma=gamma)
    for name in need:
        close(found[name], expected[name], "f", times=5)


@every_dtype
@every_shape
def test_gradients_of_the_fused_function_are_those_of_positive_results(shape, axes, dtype):
    values = Inputs(shape, axes, dtype)
    function = FusedBatchNormalization.of(axes)
    y = np.maximum(values.z, 0)  # of no importance but where it is positive
    names = ("x", "beta", "gamma", "z")
    expected = exact_gradients(values, ALL, y > 0)
    found = backward(function, values, names, ALL, y)
    for name in names:
        close(found[name], expected[name], dtype, times=5)
        (alone,) = backward(function, values, (name,), ALL, y).values()
        same_bits(alone, found[name])
    np.testing.assert_array_equal(found["z"].get(), np.where(y > 0, values.dy, 0))


@every_dtype
@every_shape
def test_given_statistics_agree_with_the_definition(shape, axes, dtype):
    values = Inputs(shape, axes, dtype)
    function, xp = twin(FixedNormalization.of(axes)), namespace(dtype)
    names = ("x", "beta", "gamma", "mean", "variance")
    x, beta, gamma, mean, variance = values.wide(*names)
    y = function.forward(xp, *(up(getattr(values, n)) for n in names), eps=EPS)
    close(y, (x - mean) / np.sqrt(variance + EPS) * gamma + beta, dtype)
    plain = (up(values.x), None, None, up(values.mean), up(values.variance))
    y = function.forward(xp, *plain, eps=EPS)
    close(y, (x - mean) / np.sqrt(variance + EPS), dtype)


def link(target, text, arrays, numbers=()):
    return Link(target, Formula(text, arrays, numbers).tree)


# s = y + z, t = k tanh(s); and the gradient of s, for both of its summands.
FOLLOWING = Chain(
    [link("s", "y + z", ("y", "z")), link("t", "k * tanh(s)", ("s",), ("k",))],
    ("y", "z"), ("k",), ("t", "s"),
)  # fmt: skip
PRECEDING = Chain(
    [link("ds", "dt * k * (1 - tanh(s) * tanh(s))", ("dt", "s"), ("k",))],
    ("dt", "s"), ("k",), ("ds", "ds"),
)  # fmt: skip


@pytest.mark.parametrize("place", [up, moved])
@pytest.mark.parametrize("dtype", ["e", "f"])
@pytest.mark.parametrize(("shape", "axes"), [s for s in SHAPES if len(s[0]) > 2])
def test_a_chain_is_computed_with_the_function(shape, axes, dtype, place):
    values, k = Inputs(shape, axes, dtype), 0.75
    function = twin(BatchNormalization.of(axes))
    names = ("x", "beta", "gamma", "mean", "variance")
    arrays = [place(getattr(values, n)) for n in names]
    options = {"decay_rate": DECAY, "eps": EPS}
    plain = function.forward(namespace(dtype), *arrays, **options)
    t, s = (place(np.full(shape, np.nan, dtype)) for _ in range(2))
    out = (None, *(a.copy() for a in plain[1:5]))
    joined = Joined(FOLLOWING, [place(values.z)], [k], [t, s])
    results = function.forward_joined(namespace(dtype), *arrays, joined=joined, out=out, **options)
    for a, b in zip(results[1:], plain[1:], strict=True):
        same_bits(a, b)
    mean, _, inverse = values.statistics()
    x, beta, gamma, z = values.wide("x", "beta", "gamma", "z")
    total = (x - mean) * inverse * gamma + beta + z
    close(s, total, dtype, times=2)
    close(t, k * np.tanh(total), dtype, times=4)

    dy = values.dy.astype(np.float64) * k * (1 - np.tanh(s.get().astype(np.float64)) ** 2)
    expected = exact_gradients(values, ALL, dy / values.dy.astype(np.float64))
    targets = {n: up(np.full(expected[n].shape, np.nan, dtype)) for n in ("x", "beta", "gamma")}
    dz = place(np.full(shape, np.nan, dtype))
    function.backward_joined(
        namespace(dtype), SimpleNamespace(x=True, beta=True, gamma=True),
        None, place(values.dmean), place(values.dvariance), arrays[0], arrays[2],
        *(place(v.astype(WIDE[dtype])) for v in (mean, inverse)),
        joined=Joined(PRECEDING, [place(values.dy), s], [k], [dz]),
        out=SimpleNamespace(**targets),
    )  # fmt: skip
    for name, found in {**targets, "z": dz}.items():
        close(found, expected[name], dtype, times=6)


# (shape, axes, launches of forward and of backward): one more where a channel is cut in parts.
LAUNCHES = [
    ((6, 3), (1,), 2),
    ((3000, 64), (1,), 3),
    ((4, 3, 7, 7), (1,), 2),
    ((8, 4, 64, 64), (1,), 3),
    ((4, 16, 16, 64), (3,), 3),
]


@pytest.mark.parametrize(("shape", "axes", "count"), LAUNCHES)
def test_few_launches(shape, axes, count):
    values = Inputs(shape, axes, "f")
    arrays = [up(getattr(values, n)) for n in ("x", "beta", "gamma", "mean", "variance", "z")]
    options = {"decay_rate": DECAY, "eps": EPS}
    xp, plain = namespace("f"), twin(BatchNormalization.of(axes))
    launches(lambda: plain.forward(xp, *arrays[:5], **options), count)
    fused = twin(FusedBatchNormalization.of(axes))
    launches(lambda: fused.forward(xp, *arrays, **options), count)
    fixed = twin(FixedNormalization.of(axes))
    launches(lambda: fixed.forward(xp, *arrays[:5], eps=EPS), 1)
    y, _, _, mean, inverse, *_ = fused.forward(xp, *arrays, **options)
    names = ("x", "beta", "gamma", "z")
    need = SimpleNamespace(**dict.fromkeys(names, True))
    targets = [up(np.empty(a.shape, "f")) for a in (y, mean, mean, y)]
    out = SimpleNamespace(**dict(zip(names, targets, strict=True)))
    inputs = (arrays[0], None, None, arrays[0], arrays[2])
    launches(lambda: plain.backward(xp, need, *inputs, mean, inverse, out=out), count)
    launches(lambda: fused.backward(xp, need, *inputs, y, mean, inverse, out=out), count)


def test_an_empty_batch_with_given_statistics():
    values = Inputs((0, 3), (1,), "f")
    arrays = [up(getattr(values, n)) for n in ("x", "beta", "gamma", "mean", "variance")]
    y = twin(FixedNormalization.of((1,))).forward(namespace("f"), *arrays, eps=EPS)
    assert y.shape == (0, 3)


def test_the_tolerances_see_an_error_of_a_thousandth():
    values = Inputs((4, 3, 5), (1,), "f")
    y = forward(BatchNormalization.of((1,)), values)[0]
    with pytest.raises(AssertionError):
        close(y, 1.001 * y.get().astype(np.float64), "f", times=5)
    assert RTOL["e"] < 1e-2
