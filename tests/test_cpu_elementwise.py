"""Compiled loops of formulas and rules: NumPy's bits where operations are equal; near float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

import distnn as nn
import distnn.functions as F
import distnn.solvers as S
from distnn.formula import Assignments, Formula
from distnn.solvers.elementwise import ElementwiseSolver

pytest.importorskip("numba", reason="CPU kernels need distnn[cpu]")

from distnn.cpu import elementwise

# One part, several parts, and enough of them for several threads; none a multiple of a vector.
SIZES = (1, 1003, 70_001, 300_001)


def arrays(number: int, size: int, dtype: str = "f", seed: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(size).astype(dtype) for _ in range(number)]


def check(text: str, names: str, size: int, dtype: str, numbers: dict[str, float]) -> None:
    """The loop has the bits of NumPy's text."""
    formula = Formula(text, tuple(names), tuple(numbers))
    values = dict(zip(names, arrays(len(names), size, dtype), strict=True))
    out, expected = np.empty(size, dtype), np.empty(size, dtype)
    ordered = [values[n] for n in formula.arrays]
    assert elementwise.evaluate(formula, ordered, list(numbers.values()), out)
    formula.evaluate(values, numbers, expected)
    np.testing.assert_array_equal(out, expected)


# fmt: off
EXACT = [
    ("d * (1 - y * y)", "dy", {}),
    ("where(y > 0, d, 0)", "dy", {}),
    ("maximum(y + z, 0)", "yz", {}),
    ("where(x > 0, x, alpha * x)", "x", {"alpha": 0.1}),
    ("x / (1 + abs(x))", "x", {}),
    ("x * n - x / n", "x", {"n": 3.3}),
    ("sqrt(abs(x) + 1) - floor(x) + ceil(y)", "xy", {}),
    ("minimum(maximum(x, -1), 1) * y", "xy", {}),
    ("where(logical_and(x > 0, y < 0), x, y) + where(logical_or(x >= 0, y <= 0), 1, 2)", "xy", {}),
    ("where(logical_xor(x != 0, y == 0), x, -y) * where(logical_not(x), 1, 3)", "xy", {}),
    ("sign(x) * y + sign(0 * y)", "xy", {}),
    ("where(isnan(x), 0, x) + where(isinf(y), 1, y)", "xy", {}),
]
# fmt: on


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("text", "names", "numbers"), EXACT, ids=[row[0] for row in EXACT])
def test_arithmetic_has_numpys_bits(text, names, numbers, size, dtype):
    check(text, names, size, dtype, numbers)


def test_not_a_number_and_infinity_pass_as_with_numpy():
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0], np.float32)
    x, y = (a.ravel() for a in np.meshgrid(special, special))
    for text in ("maximum(x, y) + 0 * y", "minimum(x, y) * 1", "where(x > y, x, y) - 0"):
        formula = Formula(text, ("x", "y"), ())
        out, expected = np.empty_like(x), np.empty_like(x)
        assert elementwise.evaluate(formula, [x, y], [], out)
        with np.errstate(invalid="ignore"):
            formula.evaluate({"x": x, "y": y}, {}, expected)
        np.testing.assert_array_equal(out, expected)


def test_out_may_be_any_of_the_arrays():
    formula = Formula("d * (1 - y * y)", ("d", "y"), ())
    d, y = arrays(2, 70_001)
    expected = formula.evaluate({"d": d, "y": y}, {}, np.empty_like(d))
    for in_place in ("d", "y"):
        values = {"d": d.copy(), "y": y.copy()}
        out = values[in_place][:]
        assert elementwise.evaluate(formula, [values["d"], values["y"]], [], out)
        np.testing.assert_array_equal(values[in_place], expected)


def test_what_numpy_is_as_fast_at_is_left_to_it():
    x = arrays(1, 1000)[0]
    out = np.empty_like(x)
    for text in ("x + x", "cos(x) * 2", "sin(x) + 1", "x", "x ** 3 + 1"):
        assert not elementwise.evaluate(Formula(text, ("x",), ()), [x], [], out), text
    square = Formula("x * x + 1", ("x",), ())
    assert elementwise.evaluate(square, [x], [], out)
    assert not elementwise.evaluate(square, [x[::2]], [], out[::2])
    assert not elementwise.evaluate(square, [x], [], np.empty(x.shape, np.float64))
    assert not elementwise.evaluate(square, [x.astype("e")], [], np.empty(x.shape, "e"))


BROADCAST = [
    ((40, 30, 50), (1, 30, 1)),
    ((700, 90), (1, 90)),
    ((300, 90), (300, 1)),
    ((90, 4, 5, 60), (1, 4, 5, 1)),
    ((3, 40, 9000), (1, 40, 1)),
]


@pytest.mark.parametrize(
    ("full", "channel", "text"),
    [
        *((*shapes, text) for shapes in BROADCAST for text in ("x * b", "where(x > b, x, b) - b")),
        ((40, 3000), (1, 1), "maximum(x - b, 0) * b"),
    ],
)
def test_arrays_of_a_number_for_each_channel_are_broadcast(full, channel, text):
    formula = Formula(text, ("x", "b"), ())
    x, b = arrays(1, math.prod(full))[0].reshape(full), arrays(1, math.prod(channel))[0]
    values = {"x": x, "b": b.reshape(channel)}
    out, expected = np.empty(full, np.float32), np.empty(full, np.float32)
    assert elementwise.evaluate(formula, [*values.values()], [], out)
    formula.evaluate(values, {}, expected)
    np.testing.assert_array_equal(out, expected)
    spread = np.broadcast_to(values["b"], full)  # as the gradient of a sum is
    assert elementwise.evaluate(formula, [x, spread], [], out)
    np.testing.assert_array_equal(out, expected)
    values["x"] = in_place = x.copy()
    assert elementwise.evaluate(formula, [*values.values()], [], in_place)
    np.testing.assert_array_equal(in_place, expected)


@pytest.mark.parametrize(
    ("full", "first", "second"),
    [
        ((4, 5, 6), (4, 1, 6), (4, 5, 6)),
        ((4, 5, 6), (1, 5, 1), (4, 1, 1)),
        ((4, 5, 6), (4, 5, 6), (5, 6)),
    ],
)
def test_other_broadcasting_is_numpys(full, first, second):
    formula = Formula("x * y + x", ("x", "y"), ())
    values = [np.ones(first, np.float32), np.ones(second, np.float32)]
    assert not elementwise.evaluate(formula, values, [], np.empty(full, np.float32))


# -- exp, tanh, sigmoid ---------------------------------------------------------------------------


def floats() -> np.ndarray:
    """One in some thousand of all float32 that are finite."""
    every = np.arange(0, 2**32, 4099, dtype=np.uint64).astype(np.uint32).view(np.float32)
    return every[np.isfinite(every)]


def computed(name: str, x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    assert elementwise.evaluate(Formula(f"0 + {name}(x)", ("x",), ()), [x], [], out)
    return out


ULP = {"exp": 1.5, "expm1": 2, "log": 1.5, "log1p": 2, "tanh": 5, "sigmoid": 3}


@pytest.mark.parametrize(("name", "ulp"), ULP.items())
def test_float32_functions_are_near_float64s_for_all_floats(name, ulp):
    x = floats()
    wide = x.astype(np.float64)
    with np.errstate(all="ignore"):
        if name == "sigmoid":
            exact = 1 / (1 + np.exp(-wide))
            # Where e^-x is no float32 the result is 0, as with NumPy's.
            x, exact = x[wide > -88], exact[wide > -88]
        else:
            exact = getattr(np, name)(wide)
        nearest = exact.astype(np.float32)
    found = computed(name, x)
    finite = np.isfinite(nearest)
    np.testing.assert_array_equal(found[~finite], nearest[~finite])
    error = np.abs(found[finite] - exact[finite]) / np.spacing(np.abs(nearest[finite]))
    assert error.max() <= ulp


@pytest.mark.parametrize("name", ULP)
def test_float32_functions_at_the_ends(name):
    x = np.array([0, -0.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, -1, -2], np.float32)
    with np.errstate(all="ignore"):
        numpys = 1 / (1 + np.exp(-x)) if name == "sigmoid" else getattr(np, name)(x)
    np.testing.assert_allclose(computed(name, x), numpys + 0, rtol=3e-7)


# -- rules of solvers -----------------------------------------------------------------------------

SOLVERS = {
    name: solver
    for name, solver in vars(S).items()
    if isinstance(solver, type) and issubclass(solver, ElementwiseSolver)
}


@pytest.mark.parametrize("dtype", ["f", "d"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SOLVERS)
def test_rules_have_numpys_bits(name, size, dtype):
    solver = SOLVERS[name]()
    rule, named = solver.rule, {**solver.info, **solver.numbers(3)}
    numbers = [named[n] for n in rule.numbers]
    found = [np.abs(a) for a in arrays(len(rule.arrays), size, dtype)]
    expected = [a.copy() for a in found]
    assert elementwise.run(rule, found, numbers)
    with np.errstate(invalid="ignore"):
        rule.run(expected, numbers)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_rule_with_an_operation_that_loops_lack_is_numpys():
    rule = Assignments("w = w - sin(g)", ("w", "g"), ())
    assert not elementwise.run(rule, arrays(2, 100), ())


def test_a_solver_takes_the_same_steps_with_either(on_cpu):
    found = {}
    before = nn.get_cpu_kernels()
    for kernels in ("numpy", "numba"):
        nn.set_cpu_kernels(kernels)
        w = nn.Variable.from_numpy_array(arrays(1, 20_000)[0], need_grad=True)
        solver = S.Adam(0.01)
        solver.set_parameters({"w": w})
        for _ in range(3):
            y = F.sum(F.mul2(w, w))
            y.forward()
            solver.zero_grad()
            y.backward()
            solver.clip_grad_by_norm(1.0)
            solver.update()
        found[kernels] = w.d.copy()
    nn.set_cpu_kernels(before)
    np.testing.assert_allclose(found["numba"], found["numpy"], rtol=1e-6)
