"""Formulas as CUDA C++: the same syntax trees that NumPy's kernels come from.

Operations are those of the formula, one by one, in float for float32 arrays and those of two bytes,
in double for float64. A float16 or bfloat16 result is rounded once, when it is stored, where NumPy
rounds every operation: so its bits depend on function and dtype, not on what a formula is fused
with.

Expressions of numbers alone are computed on the host, in Python's floats, and enter the kernel as
arguments that are rounded to the arrays' dtype, as with NumPy: `x * (1 / step)` is compiled once.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..formula import Assignments, Formula, is_number, number_function, operation
from .kernels import FLOATS, TYPES

# CUDA C++ of each operation, by NumPy's name. {name} is that name, {f} the suffix of functions of
# floats; operands are names or constants. Comparisons give 1 and 0; maximum and minimum pass a NaN
# on, as NumPy's do. Of equal numbers maximum takes the second, as NumPy's does: relu(-0.0) is 0.0,
# so relu before a result is rounded gives the bits of relu after it.
_TEXTS = {
    "add": "{0} + {1}",
    "subtract": "{0} - {1}",
    "multiply": "{0} * {1}",
    "divide": "{0} / {1}",
    "negative": "-{0}",
    "power": "pow{f}({0}, {1})",
    "power to a number": "{1} == 2 ? {0} * {0} : {1} == (T)0.5 ? sqrt{f}({0}) : {1} == 1 ? {0}"
    " : {1} == -1 ? 1 / {0} : pow{f}({0}, {1})",
    "greater": "(T)({0} > {1})",
    "greater_equal": "(T)({0} >= {1})",
    "less": "(T)({0} < {1})",
    "less_equal": "(T)({0} <= {1})",
    "equal": "(T)({0} == {1})",
    "not_equal": "(T)({0} != {1})",
    "where": "{0} != 0 ? {1} : {2}",
    "maximum": "{0} > {1} || {0} != {0} ? {0} : {1}",
    "minimum": "{0} <= {1} || {0} != {0} ? {0} : {1}",
    "logical_and": "(T)({0} != 0 && {1} != 0)",
    "logical_or": "(T)({0} != 0 || {1} != 0)",
    "logical_xor": "(T)(({0} != 0) != ({1} != 0))",
    "logical_not": "(T)({0} == 0)",
    "absolute": "fabs{f}({0})",
    "sign": "{0} > 0 ? (T)1 : {0} < 0 ? (T)-1 : {0} == 0 ? (T)0 : {0}",
    "isnan": "(T)({0} != {0})",
    "isinf": "(T)(fabs{f}({0}) > (T){largest})",
    "sigmoid": "1 / (1 + exp{f}(-{0}))",
    "arcsin": "asin{f}({0})",
    "arccos": "acos{f}({0})",
    "arctan": "atan{f}({0})",
    "arcsinh": "asinh{f}({0})",
    "arccosh": "acosh{f}({0})",
    "arctanh": "atanh{f}({0})",
    **dict.fromkeys(
        ("exp", "log", "log1p", "expm1", "sqrt", "sin", "cos", "tan", "sinh", "cosh", "tanh"),
        "{name}{f}({0})",
    ),
    "floor": "{name}{f}({0})",
    "ceil": "{name}{f}({0})",
}


class DeviceCode(NamedTuple):
    """A device function and what the host computes for it."""

    text: str
    numbers: int  # parameters of type T after the arrays' elements
    settings: Callable[..., list]  # of the formula's numbers: those parameters, as NumPy scalars


def common_dtype(dtypes: Sequence[np.dtype]) -> np.dtype:
    """The float dtype whose numbers enter a formula over arrays of `dtypes`."""
    floats = [dtype for dtype in dtypes if dtype.char in FLOATS] or [np.dtype(np.float16)]
    if len({*floats}) == 1:
        return floats[0]
    # NumPy has no dtype in common for float16 and bfloat16.
    return np.dtype(np.float64 if any(dtype.char == "d" for dtype in floats) else np.float32)


def computing_dtype(common: np.dtype) -> np.dtype:
    """The dtype T in which formulas compute."""
    return np.dtype(np.float64 if common.char == "d" else np.float32)


def formula_code(formula: Formula, common: np.dtype) -> DeviceCode:
    """`T value(T a0, T a1, ..., T n0, ...)`: the formula of an element of each of its arrays."""
    lines = _Lines(formula.arrays, formula.numbers, common)
    result = lines.value(formula.tree)
    parameters = [f"const T a{i}" for i in range(len(formula.arrays))]
    return lines.function("T value", parameters, [f"return {result};"])


def assignments_code(rule: Assignments, dtypes: Sequence[np.dtype]) -> DeviceCode:
    """`void update(T& a0, T& a1, ..., T n0, ...)`: the assignments to an element of each array.

    An array's element is rounded to its dtype when it is assigned, a name's value is not.
    """
    common = common_dtype(dtypes)
    lines = _Lines(rule.arrays, rule.numbers, common)
    for target, tree in rule.statements:
        value = lines.value(tree)
        if target in rule.arrays:
            dtype = dtypes[rule.arrays.index(target)]
            value = (
                value if dtype == lines.dtype else lines.named(f"(T)({TYPES[dtype.char]}){value}")
            )
        lines.names[target] = value
    parameters, stores = [], []
    for i, name in enumerate(rule.arrays):
        assigned = name in written(rule)
        parameters.append(f"T& a{i}" if assigned else f"const T a{i}")
        stores += [f"a{i} = {lines.names[name]};"] * assigned
    return lines.function("void update", parameters, stores)


def written(rule: Assignments) -> set[str]:
    """Names of the arrays that a rule assigns to."""
    return {target for target, _ in rule.statements} & {*rule.arrays}


class _Lines:
    """Statements that compute a formula, one operation each; equal operations are computed once."""

    def __init__(self, arrays: Sequence[str], numbers: Sequence[str], common: np.dtype) -> None:
        self.names = {name: f"a{i}" for i, name in enumerate(arrays)}
        self.numbers = numbers
        self.common = common
        self.dtype = computing_dtype(common)
        self._lines: dict[str, str] = {}  # text of an operation -> name of its result
        self._parameters: dict[str, tuple[str, ast.expr]] = {}  # text of an expression -> its name
        self._conditions: list[ast.expr] = []

    def value(self, node: ast.expr) -> str:
        """The name of the node's value, or a constant."""
        if is_number(node, self.numbers):
            return self._number(node)
        if isinstance(node, ast.Name):
            return self.names[node.id]
        name, arguments = operation(node)
        if name == "where" and is_number(arguments[0], self.numbers):
            condition, yes, no = arguments
            operands = [
                self._number(condition),
                self._under(condition, yes),
                self._under(ast.Call(ast.Name("logical_not"), [condition], []), no),
            ]
        else:
            operands = [self.value(argument) for argument in arguments]
        if name == "power" and is_number(arguments[1], self.numbers):
            name = "power to a number"
        suffix = "f" if self.dtype == np.float32 else ""
        largest = repr(float(np.finfo(self.dtype).max))
        text = _TEXTS[name].format(*operands, name=name, f=suffix, largest=largest)
        return self.named(text)

    def named(self, text: str) -> str:
        """The name of what the text computes."""
        return self._lines.setdefault(text, f"t{len(self._lines)}")

    def function(self, head: str, parameters: list[str], last: list[str]) -> DeviceCode:
        expressions = list(self._parameters.values())
        parameters = parameters + [f"const T {name}" for name, _ in expressions]
        lines = [f"const T {name} = {text};" for text, name in self._lines.items()] + last
        text = (
            f"typedef {TYPES[self.dtype.char]} T;\n\n"
            f"static __device__ __forceinline__ {head}({', '.join(parameters)}) {{\n"
            + "".join(f"  {line}\n" for line in lines)
            + "}\n"
        )
        compute = number_function([tree for _, tree in expressions], self.numbers)
        dtype = self.dtype.type
        common = self.common.type
        # A number of two bytes enters as a float of the same value.
        rounded = dtype if self.common == self.dtype else lambda value: dtype(common(value))

        def settings(*numbers: float) -> list:
            return [rounded(value) for value in compute(*numbers)]

        return DeviceCode(text, len(expressions), settings if expressions else _nothing)

    def _under(self, condition: ast.expr, node: ast.expr) -> str:
        """The value of a branch; its numbers are computed only where the branch is taken."""
        self._conditions.append(condition)
        name = self.value(node)
        self._conditions.pop()
        return name

    def _number(self, node: ast.expr) -> str:
        if not any(isinstance(n, ast.Name) and n.id in self.numbers for n in ast.walk(node)):
            with np.errstate(all="ignore"):
                value = float(self.common.type(number_function([node], ())()[0]))
            if np.isfinite(value):
                return f"(T){value!r}"
        for condition in reversed(self._conditions):
            node = ast.Call(ast.Name("where"), [condition, node, ast.Constant(0)], [])
        name = f"n{len(self._parameters)}"
        return self._parameters.setdefault(ast.unparse(node), (name, node))[0]


def _nothing(*numbers: float) -> list:
    return []
