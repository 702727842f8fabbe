"""The checks of `test_functions.py` can fail: each finds the fault it is there for, and only it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import test_functions as checks
from cases_row import Case, Input

from distnn.function import Function, Spec


class Square(Function):
    """y = x x: without fault, the others differ from it in one thing."""

    def setup(self, x: Spec) -> Spec:
        return Spec(x.shape, x.dtype)

    def forward(self, xp: Any, x: Any) -> Any:
        return x * x

    def grad_x(self, xp: Any, dy: Any, x: Any) -> Any:
        return dy * x * 2


class WrongForward(Square):
    def forward(self, xp: Any, x: Any) -> Any:
        return x * x * (1 + 1e-5)


class WrongGradient(Square):
    def grad_x(self, xp: Any, dy: Any, x: Any) -> Any:
        return dy * x * 2.002


class WrongGradientOfOneElement(Square):
    def grad_x(self, xp: Any, dy: Any, x: Any) -> Any:
        one = xp.greater(x, xp.constant(1.8, x.shape, x))
        return dy * x * 2 + dy * x * one * 0.002


class Double(Function):
    """y = 2 x, with a gradient that is wrong by 0.1 %."""

    def setup(self, x: Spec) -> Spec:
        return Spec(x.shape, x.dtype)

    def forward(self, xp: Any, x: Any) -> Any:
        return x * 2

    def grad_x(self, xp: Any, dy: Any) -> Any:
        return dy * 2.002


class Twice(Function):
    """y = 2 x, with a gradient whose own gradient is wrong by 0.1 %."""

    def setup(self, x: Spec) -> Spec:
        return Spec(x.shape, x.dtype)

    def forward(self, xp: Any, x: Any) -> Any:
        return x * 2

    def grad_x(self, xp: Any, dy: Any) -> Any:
        return xp.call(Double.of(), dy)


class WrongSecondDerivative(Square):
    def grad_x(self, xp: Any, dy: Any, x: Any) -> Any:
        return dy * xp.call(Double.of(), x)


class CannotBeRecorded(Square):
    def grad_x(self, xp: Any, dy: Any, x: Any) -> Any:
        return xp.multiply(dy, x) * 2


class WrongFastPath(Square):
    def backward(self, xp: Any, need: Any, dy: Any, x: Any, *, out: Any) -> None:
        xp.multiply(dy * x, 2.002, out=out.x)


class WrongDtype(Square):
    def setup(self, x: Spec) -> Spec:
        return Spec(x.shape, np.dtype(np.float64))


class WritesToItsInput(Square):
    def forward(self, xp: Any, x: Any) -> Any:
        y = x * x
        x += 1
        return y


class Remembers(Square):
    """A result that depends on how often the function has run."""

    calls = 0

    def forward(self, xp: Any, x: Any) -> Any:
        type(self).calls += 1
        return x * x * type(self).calls


class CannotBeEmpty(Square):
    def forward(self, xp: Any, x: Any) -> Any:
        return x * x / x.max() * x.max()


class Product(Function):
    """y = a b, with a fast path in which one gradient depends on whether the other is wanted."""

    def setup(self, a: Spec, b: Spec) -> Spec:
        return Spec(a.shape, a.dtype)

    def forward(self, xp: Any, a: Any, b: Any) -> Any:
        return a * b

    def grad_a(self, xp: Any, dy: Any, b: Any) -> Any:
        return dy * b

    def grad_b(self, xp: Any, dy: Any, a: Any) -> Any:
        return dy * a

    def backward(self, xp: Any, need: Any, dy: Any, a: Any, b: Any, *, out: Any) -> None:
        if need.a:
            xp.multiply(dy, b, out=out.a)
        if need.b:
            xp.multiply(dy, a if need.a else a * (1 + 1e-6), out=out.b)


class Copied(Function):
    """dst = src, with a wrong update."""

    updates = ("dst",)

    def setup(self, dst: Spec, src: Spec) -> Spec:
        return Spec(dst.shape, dst.dtype)

    def forward(self, xp: Any, dst: Any, src: Any) -> Any:
        return src, src * (1 + 1e-5)


X = Input((3, 4), 1.0, 2.0)


def square(function: type[Function], x: Input = X) -> Case:
    return Case("square", lambda v: function.of()(v), [x], lambda v: v * v, empty=[(0, 4)])


def product() -> Case:
    return Case("product", lambda a, b: Product.of()(a, b), [X, X], lambda a, b: a * b)


def float32(check: Any) -> Any:
    return lambda case: check(case, "float")


ALL = {
    "results": float32(checks.test_results_agree_with_the_definition),
    "dtype": float32(checks.test_results_have_the_dtype_of_the_context),
    "gradients": checks.test_gradients_agree_with_differences_of_the_definition,
    "float32 gradients": checks.test_gradients_in_float32_are_near_those_in_float64,
    "second derivatives": checks.test_second_derivatives_agree_with_differences_of_first_ones,
    "fast path": checks.test_backward_agrees_with_the_rules,
    "independence": checks.test_a_gradient_does_not_depend_on_which_others_are_wanted,
    "bits": checks.test_static_dynamic_and_clearing_give_the_same_bits,
    "inputs": checks.test_inputs_are_left_as_they_were,
    "views": checks.test_views_and_strided_arrays_give_the_same_results,
    "arrays": checks.test_a_call_on_ndarrays_computes_the_same_bits,
    "empty": checks.test_an_empty_batch_gives_empty_results_and_zero_gradients,
}
FAULTS: list[tuple[str, type[Function], type[Exception]]] = [
    ("results", WrongForward, AssertionError),
    ("dtype", WrongDtype, AssertionError),
    ("gradients", WrongGradient, AssertionError),
    ("gradients", WrongGradientOfOneElement, AssertionError),
    ("gradients", WrongFastPath, AssertionError),
    ("second derivatives", WrongSecondDerivative, AssertionError),
    ("second derivatives", CannotBeRecorded, AttributeError),
    ("fast path", WrongFastPath, AssertionError),
    ("bits", Remembers, AssertionError),
    ("inputs", WritesToItsInput, AssertionError),
    ("views", Remembers, AssertionError),
    ("arrays", Remembers, AssertionError),
    ("empty", CannotBeEmpty, ValueError),
]


@pytest.mark.parametrize("name", ALL)
def test_a_function_without_fault_passes(name):
    if name == "independence":
        case = Case("product", checks.F.mul2, [X, X], lambda a, b: a * b)
    else:
        case = square(Square)
    ALL[name](case)


@pytest.mark.parametrize(
    ("name", "function", "error"), FAULTS, ids=lambda v: getattr(v, "__name__", v)
)
def test_a_fault_is_found(name, function, error):
    with pytest.raises(error):
        ALL[name](square(function))


@pytest.mark.parametrize("function", [WrongGradient, WrongSecondDerivative, WrongFastPath])
def test_a_wrong_gradient_is_no_wrong_result(function):
    ALL["results"](square(function))


def test_a_wrong_second_derivative_is_no_wrong_first_one():
    ALL["gradients"](square(WrongSecondDerivative))


def test_a_wrong_gradient_of_a_gradient_is_found_in_a_linear_function():
    case = Case("twice", lambda v: Twice.of()(v), [X], lambda v: v * 2)
    ALL["gradients"](case)
    with pytest.raises(AssertionError):
        ALL["second derivatives"](case)


def test_a_gradient_that_depends_on_others_is_found():
    with pytest.raises(AssertionError):
        ALL["independence"](product())


@pytest.mark.parametrize("factor", [1.0, 1 + 1e-5])
def test_a_wrong_update_is_found(factor):
    case = Case(
        "copied",
        lambda dst, src: Copied.of()(dst, src),
        [X, X],
        lambda dst, src: src,
        updates=lambda dst, src: {0: src * factor},
    )
    if factor == 1:
        with pytest.raises(AssertionError):
            ALL["results"](case)
    else:
        ALL["results"](case)


def test_an_update_that_is_not_declared_is_found():
    x = X.constant()
    case = Case("copied", lambda a, b: Copied.of()(a, b), [x, x], lambda a, b: b)
    with pytest.raises(AssertionError):
        ALL["inputs"](case)


@pytest.mark.parametrize("slope", [lambda x: x * x * 1.001, lambda x: x * x])
def test_the_slope_of_a_row_is_what_gradients_are_compared_with(slope):
    case = Case("square", lambda v: Square.of()(v), [X], lambda v: v * v, slope=slope)
    if slope(1.0) == 1:
        ALL["gradients"](case)
    else:
        with pytest.raises(AssertionError):
            ALL["gradients"](case)


def test_a_rule_that_reads_what_it_may_not_is_refused_with_the_class():
    with pytest.raises(TypeError, match=r"grad_x reads \['gamma'\]; it may read .*'dy', 'x'"):

        class ReadsUnknown(Square):
            def grad_x(self, xp: Any, dy: Any, gamma: Any) -> Any:
                return dy * gamma


def test_a_rule_may_not_read_what_forward_saved_for_the_fast_path():
    with pytest.raises(TypeError, match=r"grad_x reads \['root'\]"):

        class ReadsSaved(Square):
            saved = ("root",)

            def grad_x(self, xp: Any, dy: Any, root: Any) -> Any:
                return dy * root


def test_a_fast_path_that_reads_what_it_may_not_is_refused_with_the_class():
    with pytest.raises(TypeError, match=r"backward reads \['dz'\]"):

        class ReadsUnknown(Square):
            def backward(self, xp: Any, need: Any, dz: Any, *, out: Any) -> None: ...


def test_forward_and_setup_take_the_same_inputs():
    with pytest.raises(TypeError, match=r"forward takes \['z'\] but setup takes \['x'\]"):

        class Disagrees(Square):
            def forward(self, xp: Any, z: Any) -> Any:
                return z


def test_a_row_that_is_missing_is_found(monkeypatch):
    monkeypatch.setattr(checks, "CASES", [c for c in checks.CASES if c.name != "relu"])
    with pytest.raises(AssertionError, match="relu"):
        checks.test_every_public_function_has_a_row()
