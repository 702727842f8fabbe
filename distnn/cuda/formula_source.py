"""Formulas as CUDA C++: the same syntax trees that NumPy's kernels come from.

Operations are those of the formula, one by one, in float for float32 arrays and those of two bytes,
in double for float64. A float16 or bfloat16 result is rounded once, when it is stored, where NumPy
rounds every operation: so its bits depend on function and dtype, not on what a formula is fused
with.

formula_lines.py makes the lines.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from ..formula import Assignments, Formula
from ..formula_chain import Chain
from ..formula_lines import Lines, written
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
    "literal": "(T){0}",
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
    lines = _lines(formula.arrays, formula.numbers, common)
    result = lines.value(formula.tree)
    parameters = [f"const T a{i}" for i in range(len(formula.arrays))]
    return _code(lines, "T value", parameters, [f"return {result};"])


def chain_code(chain: Chain, dtype: np.dtype) -> DeviceCode:
    """`void values(const T a0, ..., T& r0, ..., T n0, ...)`: the outputs of a chain.

    Every formula's value is rounded to `dtype`, as it is where it is stored.
    """
    lines = _lines(chain.arrays, chain.numbers, dtype)
    for link in chain.links:
        value = lines.value(link.tree)
        if dtype != lines.dtype and not isinstance(link.tree, ast.Name):
            value = lines.named(f"(T)({TYPES[dtype.char]}){value}")
        lines.names[link.target] = value
    parameters = [f"const T a{i}" for i in range(len(chain.arrays))]
    parameters += [f"T& r{i}" for i in range(len(chain.outputs))]
    stores = [f"r{i} = {lines.names[name]};" for i, name in enumerate(chain.outputs)]
    return _code(lines, "void values", parameters, stores)


def assignments_code(rule: Assignments, dtypes: Sequence[np.dtype]) -> DeviceCode:
    """`void update(T& a0, T& a1, ..., T n0, ...)`: the assignments to an element of each array.

    An array's element is rounded to its dtype when it is assigned, a name's value is not.
    """
    lines = _lines(rule.arrays, rule.numbers, common_dtype(dtypes))

    def rounded(target: str, value: str) -> str:
        dtype = dtypes[rule.arrays.index(target)]
        return value if dtype == lines.dtype else lines.named(f"(T)({TYPES[dtype.char]}){value}")

    lines.assign(rule, rounded)
    parameters, stores = [], []
    for i, name in enumerate(rule.arrays):
        assigned = name in written(rule)
        parameters.append(f"T& a{i}" if assigned else f"const T a{i}")
        stores += [f"a{i} = {lines.names[name]};"] * assigned
    return _code(lines, "void update", parameters, stores)


def _lines(arrays: Sequence[str], numbers: Sequence[str], common: np.dtype) -> Lines:
    dtype = computing_dtype(common)
    suffix = "f" if dtype == np.float32 else ""
    largest = repr(float(np.finfo(dtype).max))
    return Lines(arrays, numbers, common, dtype, _TEXTS, f=suffix, largest=largest)


def _code(lines: Lines, head: str, parameters: list[str], last: list[str]) -> DeviceCode:
    names = lines.parameters
    parameters = parameters + [f"const T {name}" for name in names]
    body = [f"const T {line};" for line in lines.statements] + last
    text = (
        f"typedef {TYPES[lines.dtype.char]} T;\n\n"
        f"static __device__ __forceinline__ {head}({', '.join(parameters)}) {{\n"
        + "".join(f"  {line}\n" for line in body)
        + "}\n"
    )
    return DeviceCode(text, len(names), lines.settings())
