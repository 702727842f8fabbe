"""Formulas on a GPU against NumPy: every elementwise function, layouts of arrays, numbers.

The oracle is the formula's NumPy kernel, which test_functions.py holds to definitions in float64.
"""

from __future__ import annotations

import ast

import numpy as np
import pytest
from cuda_sources import elementwise_functions, gradients

from distnn.formula import _FUNCTIONS, Formula, is_number, number_function

FUNCTIONS = elementwise_functions()
WITH_GRADIENTS = {
    made.name: made for function in FUNCTIONS.values() for made in (function, *gradients(function))
}
# Every operation of formulas on its own.
OPERATIONS = {
    **{
        name: Formula(f"{name}({', '.join('abc'[: len(rules)])})", "abc", ())
        for name, (_, rules) in _FUNCTIONS.items()
    },
    **{
        operator: Formula(f"a {operator} b", "ab", ())
        for operator in ("+", "-", "*", "/", "**", ">", ">=", "<", "<=", "==", "!=")
    },
    "unary minus": Formula("-a", "a", ()),
}
SPECIAL = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.5, -2.5, 6.0, 400.0, -400.0]


@pytest.fixture
def cupy(gpu):
    import cupy

    return cupy


@pytest.fixture
def launches(gpu, monkeypatch):
    """Names of the kernels that are launched from now on."""
    from distnn.cuda.kernels import Kernel

    names, launch = [], Kernel.__call__

    def counted(self, *args, **kwargs):
        names.append(self.name)
        launch(self, *args, **kwargs)

    monkeypatch.setattr(Kernel, "__call__", counted)
    return names


def evaluate(formula, arrays, numbers, out):
    from distnn.cuda import elementwise

    assert elementwise.evaluate(formula, arrays, numbers, out) is out
    return out.get()


def expected(formula, arrays, numbers, dtype):
    out = np.empty(np.broadcast_shapes(*(a.shape for a in arrays.values())), dtype)
    with np.errstate(all="ignore"):
        return formula.evaluate(arrays, numbers, out)


# -- every function -------------------------------------------------------------------------------


def inputs(formula, dtype):
    """Values around 0, special ones, and for several arrays all pairs of special ones."""
    rng = np.random.RandomState(0)
    arrays = {}
    for i, name in enumerate(formula.arrays):
        special = np.repeat(SPECIAL, 12) if i % 2 else np.tile(SPECIAL, 12)
        arrays[name] = np.concatenate([rng.uniform(-3, 3, 157), special]).astype(dtype)
    return arrays, {name: 0.7 + 0.1 * i for i, name in enumerate(formula.numbers)}


def check(cupy, formula, dtype, rtol, atol):
    arrays, numbers = inputs(formula, dtype)
    found = evaluate(
        formula,
        {name: cupy.asarray(array) for name, array in arrays.items()},
        numbers,
        cupy.empty(301, dtype),
    )
    if dtype == np.float16:
        formula, numbers = with_half_numbers(formula, numbers), {}
        arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
    wanted = expected(formula, arrays, numbers, next(iter(arrays.values())).dtype)
    with np.errstate(over="ignore"):
        wanted = wanted.astype(dtype)
    np.testing.assert_allclose(found, wanted, rtol, atol, equal_nan=True)


def with_half_numbers(formula, numbers):
    """The formula with each expression of numbers replaced by its value in float16."""

    class Rounded(ast.NodeTransformer):
        def visit(self, node):
            if isinstance(node, ast.expr) and is_number(node, numbers):
                value = number_function([node], tuple(numbers))(*numbers.values())[0]
                return ast.Constant(float(np.float16(value)))
            if isinstance(node, ast.Call):
                return ast.Call(node.func, [self.visit(a) for a in node.args], [])
            return self.generic_visit(node)

    tree = Rounded().visit(ast.parse(str(formula), mode="eval").body)
    return Formula(tree, formula.arrays, ())


# The elementary functions of two libraries differ by a few units in the last place, and
# cancellation makes more of them.
@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_double(name, cupy):
    check(cupy, WITH_GRADIENTS[name]._formula, np.float64, 1e-13, 1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name, dtype, cupy):
    check(cupy, OPERATIONS[name], dtype, 8 * np.finfo(dtype).eps, np.finfo(dtype).tiny)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float(name, cupy):
    check(cupy, FUNCTIONS[name]._formula, np.float32, 3e-6, 3e-7)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_half_is_rounded_once(name, cupy):
    check(cupy, FUNCTIONS[name]._formula, np.float16, 1.01 * 2**-10, 1.2e-7)


# -- layouts --------------------------------------------------------------------------------------

MIXED = Formula("a * n - b / c", ("a", "b", "c"), ("n",))


def values(rng, shape):
    return rng.uniform(0.5, 2, shape).astype(np.float32)


def view(base, kind):
    """A view of part of `base` with strides of some kind."""
    return {
        "contiguous": base,
        "transposed": base.T,
        "steps": base[..., ::2],
        "backwards": base[::-1, ..., ::-1],
        "inner part": base[1:-1, ..., 1:-1],
        "one column": base[..., :1],
        "one row": base[:1],
        "one": base[:1, ..., :1],
        "middle": base[:, :1],
    }[kind]


SHAPES = [
    # views of a, b and c by shape of the array they are taken from
    ("contiguous", (6, 8), "contiguous", (6, 8), "contiguous", (6, 8)),
    ("contiguous", (6, 8), "transposed", (8, 6), "one", (3, 3)),
    ("contiguous", (6, 8), "one row", (2, 8), "one column", (6, 3)),
    ("contiguous", (6, 7), "one row", (2, 7), "one column", (6, 3)),
    ("steps", (6, 16), "backwards", (6, 8), "inner part", (8, 10)),
    ("inner part", (8, 6, 10), "middle", (6, 3, 8), "one column", (6, 6, 2)),
    ("inner part", (8, 5, 9), "middle", (6, 3, 7), "transposed", (7, 5, 6)),
    ("one", (2, 2), "one", (3, 3), "one", (2, 4)),
    ("one row", (3, 5, 4, 8), "contiguous", (6, 5, 1, 8), "middle", (6, 2, 4, 1)),
    ("transposed", (3, 4, 2, 5, 2), "contiguous", (2, 5, 1, 4, 1), "contiguous", (1, 5, 2, 1, 3)),
]  # fmt: skip


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: f"{case[::2]}")
def test_layouts_give_what_numpy_gives_bit_for_bit(case, cupy, launches):
    rng = np.random.RandomState(1)
    bases = {name: values(rng, case[2 * i + 1]) for i, name in enumerate("abc")}
    on_host = {name: view(base, case[2 * i]) for i, (name, base) in enumerate(bases.items())}
    on_device = {
        name: view(cupy.asarray(base), case[2 * i]) for i, (name, base) in enumerate(bases.items())
    }
    wanted = expected(MIXED, on_host, {"n": 0.3}, np.float32)
    out = cupy.empty(wanted.shape, np.float32)
    np.testing.assert_array_equal(evaluate(MIXED, on_device, {"n": 0.3}, out), wanted)
    assert len(launches) == 1


def test_arrays_of_fewer_axes_and_numbers_of_no_axes(cupy):
    a, b = np.float32([[1, 2], [3, 4]]), np.float32([10, 20])
    total = Formula("a + b", ("a", "b"), ())
    found = evaluate(
        total, {"a": cupy.asarray(a), "b": cupy.asarray(b)}, {}, cupy.empty((2, 2), "f")
    )
    np.testing.assert_array_equal(found, a + b)
    three = cupy.full((), 3, np.float32)
    assert evaluate(total, {"a": three, "b": three}, {}, cupy.empty((), np.float32)) == 6


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("size", [1, 7, 8, 16, 255, 2049])
def test_arrays_that_begin_anywhere(size, dtype, cupy):
    memory = cupy.asarray(np.random.RandomState(2).uniform(1, 2, 3 * size + 8).astype(dtype))
    total = Formula("a + b", ("a", "b"), ())
    for offset in range(3):
        out = memory.copy()
        a, b = memory[offset : offset + size], memory[size + 1 : 2 * size + 1]
        found = evaluate(total, {"a": a, "b": b}, {}, out[offset + 1 :][:size])
        np.testing.assert_array_equal(found, a.get() + b.get())
        # Nothing else was written.
        np.testing.assert_array_equal(out.get()[: offset + 1], memory.get()[: offset + 1])
        rest = offset + 1 + size
        np.testing.assert_array_equal(out.get()[rest:], memory.get()[rest:])


def test_the_result_may_overwrite_an_array(cupy):
    a, b = values(np.random.RandomState(3), (2, 30, 11))
    on_device = cupy.asarray(a)
    given = {"a": on_device, "b": cupy.asarray(b)}
    formula = Formula("a * a - b", ("a", "b"), ())
    np.testing.assert_array_equal(evaluate(formula, given, {}, on_device), a * a - b)


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2)])
def test_nothing_is_launched_for_nothing(shape, cupy, launches):
    empty = cupy.empty(shape, np.float32)
    evaluate(Formula("a + a", ("a",), ()), {"a": empty}, {}, empty)
    assert launches == []


def test_arrays_that_do_not_broadcast_are_refused(cupy):
    a = cupy.zeros((2, 3), np.float32)
    formula = Formula("a + a", ("a",), ())
    for out in (cupy.empty((3, 3), np.float32), cupy.empty(3, np.float32)):
        with pytest.raises(ValueError, match=r"\(2, 3\) does not broadcast to \(3"):
            evaluate(formula, {"a": a}, {}, out)
    with pytest.raises(ValueError, match="C-contiguous"):
        evaluate(formula, {"a": a.T}, {}, a.T)


def test_a_grid_may_be_smaller_than_the_array(cupy):
    """The loop over what one pass of the grid leaves, which large arrays take."""
    from distnn.cuda import elementwise
    from distnn.cuda.kernels import THREADS

    a = values(np.random.RandomState(4), 20 * THREADS + 3)
    x, y = cupy.asarray(a), cupy.empty(a.shape, np.float32)
    formula = Formula("a + 1", ("a",), ())
    launch = elementwise._launch(formula, *[(a.shape, a.strides, a.dtype)] * 2)
    launch.kernel(2, THREADS, x, y, *launch.sizes, *launch.settings())
    np.testing.assert_array_equal(y.get(), a + 1)


# -- dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("a", "efd")
@pytest.mark.parametrize("b", "efd")
@pytest.mark.parametrize("out", "efd")
def test_a_sum_is_rounded_once(a, b, out, cupy, launches):
    from distnn.cuda.elementwise import add

    rng = np.random.RandomState(5)
    x, y = rng.uniform(1, 2, (5, 7)).astype(a), rng.uniform(1, 2, (5, 7)).astype(b)
    result = cupy.empty((5, 7), out)
    assert add(cupy.asarray(x), cupy.asarray(y), result) is result
    computed = np.result_type(np.float32, a, b)
    wanted = (x.astype(computed) + y.astype(computed)).astype(out)
    np.testing.assert_array_equal(result.get(), wanted)
    assert len(launches) == 1


def test_a_sum_into_one_of_its_arrays(cupy):
    from distnn.cuda.elementwise import add

    x, y = np.float32([1, 2, 3]), np.float16([0.5, 0.25, 2**-12])
    total = cupy.asarray(x)
    add(total, cupy.asarray(y), total)
    np.testing.assert_array_equal(total.get(), x + y)


# -- numbers --------------------------------------------------------------------------------------


def test_numbers_need_no_new_kernel_and_enter_in_the_arrays_dtype(cupy, launches):
    from distnn.cuda import elementwise

    x = values(np.random.RandomState(6), 50)
    formula = Formula("x * (1 / step) + 2 * step", ("x",), ("step",))
    made = elementwise._source.cache_info().misses
    for step in (3, 7, 0.1):
        found = evaluate(formula, {"x": cupy.asarray(x)}, {"step": step}, cupy.empty(50, "f"))
        np.testing.assert_array_equal(found, x * np.float32(1 / step) + np.float32(2 * step))
    assert elementwise._source.cache_info().misses == made + 1
    assert len(launches) == 3


@pytest.mark.parametrize(
    "text",
    ["where(n == 0, x, x / (1 / n))", "where(n != 0, x / (1 / n), x)",
     "where(n == 0, x, where(n > -1, x * (n / n) * n, x / (1 / n)))"],
)  # fmt: skip
def test_numbers_of_a_branch_that_is_not_taken_are_not_computed(text, cupy):
    formula = Formula(text, ("x",), ("n",))
    x = cupy.asarray(np.float32([1, 2]))
    for n, wanted in ((0, [1, 2]), (-2, [-2, -4]), (2, [2, 4])):
        found = evaluate(formula, {"x": x}, {"n": n}, cupy.empty(2, np.float32))
        np.testing.assert_array_equal(found, np.float32(wanted))


@pytest.mark.parametrize("exponent", [2, 0.5, 1, -1, 0, 3, -2.5, True])
def test_powers(exponent, cupy):
    x = np.array([0.0, -0.0, 2.0, -2.0, 0.3, np.inf, -np.inf, np.nan])
    formula = Formula("x ** n", ("x",), ("n",))
    found = evaluate(formula, {"x": cupy.asarray(x)}, {"n": exponent}, cupy.empty(8))
    wanted = expected(formula, {"x": x}, {"n": exponent}, np.float64)
    np.testing.assert_allclose(found, wanted, 1e-15)


def test_constants_that_a_half_cannot_hold(cupy):
    x = cupy.asarray(np.float16([1, 60000, -1]))
    formula = Formula("minimum(x, 1e9) + maximum(x, -1e9) * 1e-30", ("x",), ())
    with np.errstate(over="ignore"):
        found = evaluate(formula, {"x": x}, {}, cupy.empty(3, np.float16))
    np.testing.assert_array_equal(found, x.get())


def test_a_formula_of_numbers_alone_fills(cupy):
    found = evaluate(Formula("2 * n", (), ("n",)), {}, {"n": 1.5}, cupy.empty((3, 2), np.float32))
    np.testing.assert_array_equal(found, np.full((3, 2), 3, np.float32))
