"""Layer, instance and group normalization on a GPU, near those of the definition."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from twins import close, launches, moved, namespace, same_bits, strict, twin, up

from distnn.functions.tensor_normalization import TensorNormalization

pytestmark = pytest.mark.usefixtures("gpu")
every_dtype = pytest.mark.parametrize("dtype", list("efd"))

EPS = 1e-3
WIDE = {"e": "f", "f": "f", "d": "d"}  # of statistics that are saved

# (shape, axes of statistics, shape of parameters): rows in one thread, a warp, a block, kept or
# not; columns; parameters by row, by column, in the middle, and with gaps.
CASES = [
    ((6, 4), (0,), (1, 4)),
    ((7, 33), (0,), (1, 33)),
    ((5, 1000), (0,), (1, 1000)),
    ((3, 3001), (0,), (1, 1)),
    ((2, 20000), (0,), (2, 20000)),
    ((4, 5, 64), (0, 1), (1, 1, 64)),
    ((4, 5, 64), (0, 1), (1, 5, 1)),
    ((2, 3, 5, 7), (0,), (1, 3, 5, 7)),
    ((2, 3, 5, 7), (0, 1), (1, 3, 1, 1)),
    ((2, 3, 4, 5, 8), (0, 1), (1, 3, 4, 1, 1)),
    ((2, 3, 4, 5), (0, 1), (2, 1, 4, 1)),
    ((2, 50, 8), (0, 2), (1, 1, 8)),
    ((2, 3, 40, 5), (0, 3), (1, 1, 1, 5)),
    ((3, 4, 5), (1,), (1, 4, 1)),
    ((3, 4, 6), (0, 2), (3, 1, 6)),
    ((4, 6), (), (1, 6)),
    ((40, 4), (0, 1), (40, 4)),
]
every_case = pytest.mark.parametrize(("shape", "axes", "parameter"), CASES)


@pytest.fixture(autouse=True)
def _strict():
    with strict():
        yield


class Inputs:
    """Drawn in `dtype`; as float64 under the same names."""

    def __init__(self, shape, axes, parameter, dtype, shift=0.0):
        rng = np.random.RandomState(0)
        self.dtype = dtype
        self.summed = tuple(i for i in range(len(shape)) if i not in axes)
        kept = tuple(n if i in axes else 1 for i, n in enumerate(shape))
        self.x = (shift + 2 * rng.standard_normal(shape)).astype(dtype)
        self.dy = rng.standard_normal(shape).astype(dtype)
        self.beta, self.gamma = (rng.uniform(0.5, 2, parameter).astype(dtype) for _ in range(2))
        self.dmean, self.dvariance = (rng.standard_normal(kept).astype(dtype) for _ in range(2))

    def wide(self, *names):
        return [getattr(self, name).astype(np.float64) for name in names]

    def statistics(self):
        (x,) = self.wide("x")
        mean = x.mean(self.summed, keepdims=True)
        variance = ((x - mean) ** 2).mean(self.summed, keepdims=True)
        return mean, variance, 1 / np.sqrt(variance + EPS)


def function(axes):
    return TensorNormalization.of("layer_normalization", axes)


def forward(axes, values, place=up, names=("x", "beta", "gamma")):
    arrays = [place(getattr(values, n)) if n in names else None for n in ("x", "beta", "gamma")]
    run, xp = twin(function(axes)), namespace(values.dtype)
    own = run.forward(xp, *arrays, eps=EPS)
    out = tuple(up(np.full(a.shape, np.nan, a.dtype)) for a in own)
    assert run.forward(xp, *arrays, eps=EPS, out=out) is out
    for a, b in zip(own, out, strict=True):
        same_bits(a, b)
    return own


def backward(
    axes, values, need=("x", "beta", "gamma"), outer=("dy", "dmean", "dvariance"), place=up
):
    mean, _, inverse = (v.astype(WIDE[values.dtype]) for v in values.statistics())
    targets = {n: up(np.full(getattr(values, n).shape, np.nan, values.dtype)) for n in need}
    arrays = [getattr(values, n) if n in outer else None for n in ("dy", "dmean", "dvariance")]
    names = ("x", "beta", "gamma")
    twin(function(axes)).backward(
        namespace(values.dtype),
        SimpleNamespace(**{n: n in need for n in names}),
        *(
            None if a is None else place(a)
            for a in (*arrays, values.x, values.gamma, mean, inverse)
        ),
        out=SimpleNamespace(**{n: targets.get(n) for n in names}),
    )
    return targets


def exact_gradients(values, outer=("dy", "dmean", "dvariance")):
    mean, _, inverse = values.statistics()
    x, dy, gamma, dmean, dvariance = values.wide("x", "dy", "gamma", "dmean", "dvariance")
    dy, dmean, dvariance = (
        d * (name in outer) for name, d in (("dy", dy), ("dmean", dmean), ("dvariance", dvariance))
    )
    normal, g = (x - mean) * inverse, dy * gamma
    m = x.size // mean.size
    total, dot = (v.sum(values.summed, keepdims=True) for v in (g, g * normal))
    dx = inverse * (g - total / m - normal * dot / m) + dmean / m + 2 / m * (x - mean) * dvariance
    axes = tuple(i for i, n in enumerate(gamma.shape) if n == 1)
    return {
        "x": dx,
        "beta": dy.sum(axes, keepdims=True),
        "gamma": (dy * normal).sum(axes, keepdims=True),
    }


@every_dtype
@every_case
def test_results_agree_with_the_definition(shape, axes, parameter, dtype):
    values = Inputs(shape, axes, parameter, dtype)
    results = forward(axes, values)
    mean, variance, inverse = values.statistics()
    x, beta, gamma = values.wide("x", "beta", "gamma")
    expected = ((x - mean) * inverse * gamma + beta, mean, variance, mean, inverse)
    deviation = np.sqrt(variance).max()
    for i, (found, e) in enumerate(zip(results, expected, strict=True)):
        scale = deviation if i in (1, 3) else 0
        close(found, e, dtype if i < 3 else WIDE[dtype], times=2, scale=scale)
    for found, again in zip(results, forward(axes, values, moved), strict=True):
        same_bits(found, again)


@every_dtype
@every_case
def test_gradients_agree_with_the_definition(shape, axes, parameter, dtype):
    values = Inputs(shape, axes, parameter, dtype)
    expected, found = exact_gradients(values), backward(axes, values)
    for name, gradient in found.items():
        close(gradient, expected[name], dtype, times=5)
        (alone,) = backward(axes, values, need=(name,)).values()
        same_bits(alone, gradient)
        same_bits(backward(axes, values, place=moved)[name], gradient)


@pytest.mark.parametrize("outer", [("dy",), ("dmean",), ("dvariance",)])
def test_results_without_a_gradient_add_nothing(outer):
    values = Inputs((4, 5, 8), (0, 1), (1, 1, 8), "f")
    expected, found = exact_gradients(values, outer), backward((0, 1), values, outer=outer)
    for name, gradient in found.items():
        close(gradient, expected[name], "f", times=5)


@pytest.mark.parametrize("names", [("x", "beta"), ("x", "gamma"), ("x",)])
def test_shift_and_scale_may_be_missing(names):
    values = Inputs((4, 5, 8), (0, 1), (1, 1, 8), "f")
    mean, _, inverse = values.statistics()
    x, beta, gamma = values.wide("x", "beta", "gamma")
    y = (x - mean) * inverse * (gamma if "gamma" in names else 1)
    close(forward((0, 1), values, names=names)[0], y + (beta if "beta" in names else 0), "f", 2)


@pytest.mark.parametrize("shape", [(5, 64), (5, 3000), (2, 50, 8)])
@pytest.mark.parametrize(("dtype", "shift"), [("f", 1e4), ("e", 2000.0)])
def test_a_large_mean_costs_no_more_than_its_rounding(shape, dtype, shift):
    axes = (0, 2)[: len(shape) - 1]
    values = Inputs(shape, axes, (1,) * len(shape), dtype, shift)
    y, _, _, centre, inverse = forward(axes, values)
    mean, _, exact = values.statistics()
    np.testing.assert_allclose(centre.get(), mean, rtol=6e-8)
    np.testing.assert_allclose(inverse.get(), exact, rtol=4e-6)
    x, beta, gamma = values.wide("x", "beta", "gamma")
    close(y, (x - mean) * exact * gamma + beta, dtype, times=200 if dtype == "f" else 1)


@pytest.mark.parametrize("place", [0, 17, -1])
@pytest.mark.parametrize("length", [64, 3000])
def test_one_value_far_from_the_others_does_not_spoil_the_variance(length, place):
    values = Inputs((3, length), (0,), (1, length), "f")
    values.x[:, place] = 1e4
    _, _, _, centre, inverse = forward((0,), values)
    mean, variance, exact = values.statistics()
    assert np.all(np.abs(centre.get() - mean) <= 2e-7 * np.sqrt(variance))
    np.testing.assert_allclose(inverse.get(), exact, rtol=4e-6)


def test_few_launches():
    for shape, axes, parameter in CASES[:6]:
        values = Inputs(shape, axes, parameter, "f")
        arrays = [up(getattr(values, n)) for n in ("x", "beta", "gamma")]
        run, xp = twin(function(axes)), namespace("f")
        launches(lambda r=run, a=arrays, xp=xp: r.forward(xp, *a, eps=EPS), 1)


def test_an_empty_batch():
    values = Inputs((0, 3), (0,), (1, 3), "f")
    assert forward((0,), values)[0].shape == (0, 3)
    found = backward((0,), values)
    np.testing.assert_array_equal(found["gamma"].get(), np.zeros((1, 3)))
