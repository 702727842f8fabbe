"""Formulas and solvers' rules as compiled loops: one pass over the arrays, nothing between them.

A loop is written from the formula's syntax tree, as NumPy's and CUDA's kernels are. It rounds each
operation as NumPy does; exp and its like are those of mathematics.py. What a loop cannot do,
or NumPy does as fast, is left to NumPy: `run` and `evaluate` say whether they did it.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..formula import Assignments, Formula, operation
from ..formula_lines import Lines, UnknownOperation, written
from ..threads import parallel_for
from . import mathematics
from .compiler import cache_folder, kernel

# Python of each operation, by NumPy's name, for elements of dtype T. Comparisons give 1 and 0;
# maximum and minimum pass a NaN on. What is missing has no vector code here: NumPy's is faster.
_TEXTS = {
    "add": "{0} + {1}",
    "subtract": "{0} - {1}",
    "multiply": "{0} * {1}",
    "divide": "{0} / {1}",
    "negative": "-{0}",
    "greater": "T(1) if {0} > {1} else T(0)",
    "greater_equal": "T(1) if {0} >= {1} else T(0)",
    "less": "T(1) if {0} < {1} else T(0)",
    "less_equal": "T(1) if {0} <= {1} else T(0)",
    "equal": "T(1) if {0} == {1} else T(0)",
    "not_equal": "T(1) if {0} != {1} else T(0)",
    "where": "{1} if {0} != T(0) else {2}",
    "maximum": "{0} if ({0} >= {1}) | ({0} != {0}) else {1}",
    "minimum": "{0} if ({0} <= {1}) | ({0} != {0}) else {1}",
    "logical_and": "T(1) if ({0} != T(0)) & ({1} != T(0)) else T(0)",
    "logical_or": "T(1) if ({0} != T(0)) | ({1} != T(0)) else T(0)",
    "logical_xor": "T(1) if ({0} != T(0)) != ({1} != T(0)) else T(0)",
    "logical_not": "T(1) if {0} == T(0) else T(0)",
    "absolute": "abs({0})",
    "sign": "T(1) if {0} > T(0) else T(-1) if {0} < T(0) else T(0) if {0} == T(0) else {0}",
    "sqrt": "sqrt({0})",
    "floor": "floor({0})",
    "ceil": "ceil({0})",
    "isnan": "T(1) if {0} != {0} else T(0)",
    "isinf": "T(1) if abs({0}) > T({largest}) else T(0)",
    "literal": "T({0})",
}
_OF_FLOAT32 = {name: name + "({0})" for name in ("exp", "expm1", "log", "log1p", "tanh", "sigmoid")}
# Operations that NumPy does in one pass over memory, as fast as a loop of ours.
_ONE_PASS = {*_TEXTS, *_OF_FLOAT32} - {"where", "sigmoid"}

# Elements from which on a loop goes to several threads, and of a part.
_PARALLEL = 262_144
_PART = 65_536


def evaluate(
    formula: Formula, arrays: Sequence[np.ndarray], numbers: Sequence[float], out: np.ndarray
) -> bool:
    """out = formula, if a loop can and should do it; returns whether it did.

    Args:
        arrays, numbers: in the order of the formula's names.
        out: may be one of the arrays, but not overlap one in another way.
    """
    if not _in_one_piece((out, *arrays)):
        return False
    address = out.__array_interface__["data"][0]
    same = tuple(a.__array_interface__["data"][0] == address for a in arrays)
    loop = _formula_loop(formula, out.dtype, same)
    if loop is None:
        return False
    loop.run((out, *(a for a, is_out in zip(arrays, same, strict=True) if not is_out)), numbers)
    return True


def run(rule: Assignments, arrays: Sequence[np.ndarray], numbers: Sequence[float]) -> bool:
    """Run a rule on arrays that are written in place, if a loop can; returns whether it did."""
    if not _in_one_piece(arrays):
        return False
    loop = _rule_loop(rule, arrays[0].dtype)
    if loop is None:
        return False
    loop.run(arrays, numbers)
    return True


def _in_one_piece(arrays: Sequence[np.ndarray]) -> bool:
    shape, dtype = arrays[0].shape, arrays[0].dtype
    return dtype.char in "fd" and all(
        a.shape == shape and a.dtype == dtype and a.flags.c_contiguous for a in arrays
    )


class _Loop(NamedTuple):
    """A compiled loop and what the host computes for it."""

    kernel: Callable[..., None]  # kernel(start, stop, *flat arrays, *settings)
    settings: Callable[..., list]

    def run(self, arrays: Sequence[np.ndarray], numbers: Sequence[float]) -> None:
        flat = [a.reshape(-1) for a in arrays]
        settings = self.settings(*numbers)
        size = flat[0].size
        if size < _PARALLEL:
            self.kernel(0, size, *flat, *settings)
        else:
            parallel_for(lambda i, j: self.kernel(i, j, *flat, *settings), size, _PART)


@functools.lru_cache(maxsize=4096)
def _formula_loop(formula: Formula, dtype: np.dtype, same: tuple[bool, ...]) -> _Loop | None:
    """The loop of a formula in which some arrays are `out`; None where NumPy is to do it."""
    lines = _lines(formula.arrays, formula.numbers, dtype)
    try:
        result = lines.value(formula.tree)
    except UnknownOperation:
        return None
    if not lines.operations or (
        len(lines.operations) == 1 and operation(formula.tree)[0] in _ONE_PASS
    ):
        return None
    names = [f"a{i}" for i in range(len(same))]
    loads = [
        f"{name} = {'out' if is_out else 'p' + name}[i]"
        for name, is_out in zip(names, same, strict=True)
    ]
    pointers = ["out", *(f"p{n}" for n, is_out in zip(names, same, strict=True) if not is_out)]
    return _loop(str(formula), lines, pointers, loads, [f"out[i] = {result}"])


@functools.lru_cache(maxsize=256)
def _rule_loop(rule: Assignments, dtype: np.dtype) -> _Loop | None:
    lines = _lines(rule.arrays, rule.numbers, dtype)
    try:
        lines.assign(rule, lambda target, value: value)
    except UnknownOperation:
        return None
    names = [f"a{i}" for i in range(len(rule.arrays))]
    stores = [
        f"p{name}[i] = {lines.names[array]}"
        for name, array in zip(names, rule.arrays, strict=True)
        if array in written(rule)
    ]
    loads = [f"{name} = p{name}[i]" for name in names]
    return _loop("update_" + "_".join(rule.arrays), lines, [f"p{n}" for n in names], loads, stores)


def _lines(arrays: Sequence[str], numbers: Sequence[str], dtype: np.dtype) -> Lines:
    texts = _TEXTS | _OF_FLOAT32 if dtype.char == "f" else _TEXTS
    return Lines(arrays, numbers, dtype, dtype, texts, largest=repr(float(np.finfo(dtype).max)))


def _loop(
    title: str, lines: Lines, pointers: list[str], loads: list[str], stores: list[str]
) -> _Loop:
    body = [*loads, *(f"{name} = {text}" for text, name in lines.operations.items()), *stores]
    name = "formula_" + re.sub(r"\W+", "_", title)[:48]
    # Parts of the arrays, so that no index can be negative: only then does LLVM vectorise.
    parts = "".join(f"    {pointer} = {pointer}[start:stop]\n" for pointer in pointers)
    source = (
        f"def {name}(start, stop, {', '.join([*pointers, *lines.parameters])}):\n"
        f"{parts}    for i in range({pointers[0]}.size):\n"
        + "".join(f"        {line}\n" for line in body)
    )
    return _Loop(_compiled(name, source, lines.dtype.type), lines.settings())


def _compiled(name: str, source: str, dtype: type) -> Any:
    """The kernel of a source."""
    text = f"# T is {dtype.__name__}\n{source}"
    scope: dict[str, Any] = {
        "__name__": __name__, "T": dtype, "sqrt": np.sqrt, "floor": np.floor, "ceil": np.ceil,
        **{name: getattr(mathematics, name) for name in _OF_FLOAT32},
    }  # fmt: skip
    exec(compile(text, _kept(name, text), "exec"), scope)
    return kernel(scope[name])


def _kept(name: str, text: str) -> str:
    """The file of a source: Numba keeps what is compiled of files only."""
    folder = cache_folder()
    if folder is None:
        return "<formula>"
    file = folder / f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:16]}.py"
    try:
        if not file.exists():
            # Processes that start together write the same; none may read half of it.
            with tempfile.NamedTemporaryFile("w", dir=folder, delete=False) as whole:
                whole.write(text)
            os.replace(whole.name, file)
    except OSError:
        return "<formula>"
    return str(file)
