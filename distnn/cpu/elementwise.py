"""Formulas and solvers' rules as compiled loops: one pass over the arrays, nothing between them.

A loop is written from the formula's syntax tree, as NumPy's and CUDA's kernels are. It rounds each
operation as NumPy does; exp and its like are those of mathematics.py. What a loop cannot do,
or NumPy does as fast, is left to NumPy: `run` and `evaluate` say whether they did it.
bfloat16 is computed in float32, and rounded once when it is stored.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import math
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..formula import Assignments, Formula, operation
from ..formula_chain import Chain
from ..formula_lines import Lines, UnknownOperation, written
from ..threads import parallel_for
from . import mathematics
from .bfloat16 import bits, load, store
from .compiler import cache_folder, kernel
from .simd import wide_vectors

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
# Operations that NumPy does in one pass over memory, as fast as a loop of ours and with its bits.
_ONE_PASS = {*_TEXTS} - {"where"}

# Of elements that loops take; bfloat16 is seen as uint16.
_BFLOAT16 = "H"
_DTYPES = "fd" + _BFLOAT16

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
    return _evaluate(formula, arrays, numbers, (out,))


def evaluate_chain(
    chain: Chain, arrays: Sequence[np.ndarray], numbers: Sequence[float], outs: Sequence[np.ndarray]
) -> bool:
    """The outputs of a chain, of one shape, if a loop can compute it; returns whether it did."""
    if not _in_one_piece([*map(bits, outs)]):
        return False
    return _evaluate(chain, arrays, numbers, outs)


def part_kernel(
    chain: Chain, numbers: Sequence[float], dtype: np.dtype
) -> Callable[[Sequence[np.ndarray], Sequence[np.ndarray]], None] | None:
    """f(outs, arrays) that computes parts of a chain, with one axis; None if a loop cannot."""
    dtype = np.dtype(_BFLOAT16) if dtype.char == "E" else dtype
    loop = _formula_loop(chain, dtype, (FULL,) * len(chain.arrays), len(chain.outputs), 1)
    if loop is None:
        return None
    settings = loop.settings(*numbers)

    def evaluate(outs: Sequence[np.ndarray], arrays: Sequence[np.ndarray]) -> None:
        loop.kernel(0, len(outs[0]), *map(bits, outs), *map(bits, arrays), *settings)

    return evaluate


def _evaluate(
    text: Formula | Chain,
    arrays: Sequence[np.ndarray],
    numbers: Sequence[float],
    outs: Sequence[np.ndarray],
) -> bool:
    outs, arrays = [*map(bits, outs)], [_narrowed(bits(a)) for a in arrays]
    layout = _layout(outs[0], arrays)
    if layout is None:
        return False
    places = {out.__array_interface__["data"][0]: i for i, out in enumerate(outs)}
    kinds: list[str | int] = [*layout.kinds]
    for i, (kind, a) in enumerate(zip(kinds, arrays, strict=True)):
        if kind == FULL:
            kinds[i] = places.get(a.__array_interface__["data"][0], FULL)
    loop = _formula_loop(text, outs[0].dtype, tuple(kinds), len(outs), len(layout.blocks))
    if loop is None:
        return False
    others = (a for a, kind in zip(arrays, kinds, strict=True) if not isinstance(kind, int))
    loop.run((*outs, *others), numbers, layout.blocks)
    return True


def run(rule: Assignments, arrays: Sequence[np.ndarray], numbers: Sequence[float]) -> bool:
    """Run a rule on arrays that are written in place, if a loop can; returns whether it did."""
    if not _in_one_piece(arrays):
        return False
    loop = _rule_loop(rule, arrays[0].dtype)
    if loop is None:
        return False
    loop.run(arrays, numbers, (arrays[0].size,))
    return True


def _in_one_piece(arrays: Sequence[np.ndarray]) -> bool:
    shape, dtype = arrays[0].shape, arrays[0].dtype
    if dtype.char not in _DTYPES:
        return False
    for a in arrays:  # a generator would cost as much as a small loop takes
        if a.shape != shape or a.dtype != dtype or not a.flags.c_contiguous:
            return False
    return True


# How an array lies beside the results; a number says that it is one of them.
FULL = "full"  # element by element
CHANNEL = "channel"  # one element for each of the neighbouring axes C of (A, C, B)
ONE = "one"  # one element for all
# Those of float32 beside results of bfloat16.
_WIDE = {CHANNEL: "wide channel", ONE: "wide one"}


class _Layout(NamedTuple):
    """The result as one axis, or as (A, C) or (A, C, B) where arrays have elements for C alone."""

    blocks: tuple[int, ...]
    kinds: tuple[str, ...]


def _narrowed(array: np.ndarray) -> np.ndarray:
    """The array with length 1 where it was broadcast, as the gradients of sums are."""
    if 0 not in array.strides or not array.size:
        return array
    return array[tuple(slice(None if stride else 1) for stride in array.strides)]


def _layout(out: np.ndarray, arrays: Sequence[np.ndarray]) -> _Layout | None:
    """None where a loop cannot follow."""
    if _in_one_piece((out, *arrays)):
        return _Layout((out.size,), (FULL,) * len(arrays))
    if out.dtype.char not in _DTYPES or not out.flags.c_contiguous:
        return None
    channels: set[tuple[int, int, int]] = set()
    kinds = []
    for a in arrays:
        wide = out.dtype.char == _BFLOAT16 and a.dtype.char == "f"
        if not (wide or a.dtype == out.dtype) or not a.flags.c_contiguous or a.ndim != out.ndim:
            return None
        if a.size == 1:
            kinds.append(_WIDE[ONE] if wide else ONE)
            continue
        if a.shape == out.shape:
            if wide:
                return None
            kinds.append(FULL)
            continue
        own = [axis for axis, n in enumerate(a.shape) if n > 1]
        first, last = own[0], own[-1] + 1
        if a.shape[first:last] != out.shape[first:last]:
            return None
        channels.add((math.prod(out.shape[:first]), a.size, math.prod(out.shape[last:])))
        kinds.append(_WIDE[CHANNEL] if wide else CHANNEL)
    if len(channels) > 1:
        return None
    if not channels:
        return _Layout((out.size,), tuple(kinds))
    blocks = channels.pop()
    return _Layout(blocks if blocks[2] > 1 else blocks[:2], tuple(kinds))


class _Loop(NamedTuple):
    """A compiled loop and what the host computes for it."""

    kernel: Callable[..., None]  # kernel(start, stop, *arrays, *settings)
    settings: Callable[..., list]

    def run(
        self, arrays: Sequence[np.ndarray], numbers: Sequence[float], blocks: tuple[int, ...]
    ) -> None:
        size = arrays[0].size
        if arrays[0].ndim != 1 or len(blocks) > 1:
            arrays = [a.reshape(blocks if a.size == size else -1) for a in arrays]
        settings = self.settings(*numbers)
        if size < _PARALLEL:
            self.kernel(0, blocks[0], *arrays, *settings)
        else:
            grain = max(1, _PART * blocks[0] * 4 // (size * arrays[0].itemsize))
            parallel_for(lambda i, j: self.kernel(i, j, *arrays, *settings), blocks[0], grain)


@functools.lru_cache(maxsize=4096)
def _formula_loop(
    text: Formula | Chain, dtype: np.dtype, kinds: tuple[str | int, ...], outs: int, axes: int
) -> _Loop | None:
    """The loop of a formula or chain over such arrays; None where NumPy is to do it."""
    half = dtype.char == _BFLOAT16
    lines = _lines(text.arrays, text.numbers, dtype)
    try:
        results = _results(text, lines, half)
    except UnknownOperation:
        return None
    if isinstance(text, Formula):
        single = operation(text.tree)[0] if len(lines.operations) == 1 else ""
        if not half and (not lines.operations or (axes == 1 and single in _ONE_PASS)):
            return None
    element, value = ("load({})", "store({})") if half else ("{}", "{}")
    index = _INDICES[axes]
    targets = [f"out{i}" for i in range(outs)]
    full, loads, before = [*targets], [], []
    for i, kind in enumerate(kinds):
        if isinstance(kind, int):
            loads.append(f"a{i} = " + element.format(f"out{kind}[{index}]"))
        elif kind == FULL:
            full.append(f"pa{i}")
            loads.append(f"a{i} = " + element.format(f"pa{i}[{index}]"))
        elif kind in (CHANNEL, _WIDE[CHANNEL]):
            number = f"pa{i}[c]"
            loads.append(f"a{i} = " + (element.format(number) if kind == CHANNEL else number))
        else:
            number = f"pa{i}[0]"
            before.append(f"a{i} = " + (element.format(number) if kind == ONE else number))
    pointers = [*targets, *(f"pa{i}" for i, kind in enumerate(kinds) if isinstance(kind, str))]
    stores = [
        f"{target}[{index}] = {value.format(result)}"
        for target, result in zip(targets, results, strict=True)
    ]
    body = [*loads, *lines.statements, *stores]
    return _loop(str(text), lines, pointers, full, before, axes, body)


def _results(text: Formula | Chain, lines: Lines, half: bool) -> list[str]:
    """The names of the values of a formula, or of a chain's outputs; raises UnknownOperation."""
    if isinstance(text, Formula):
        return [lines.value(text.tree)]
    for link in text.links:
        value = lines.value(link.tree)
        if half and not isinstance(link.tree, ast.Name):  # as if it had been in memory
            value = lines.named(f"load(store({value}))")
        lines.names[link.target] = value
    return [lines.names[output] for output in text.outputs]


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
    pointers = [f"p{name}" for name in names]
    body = [*loads, *lines.statements, *stores]
    return _loop("update_" + "_".join(rule.arrays), lines, pointers, pointers, [], 1, body)


def _lines(arrays: Sequence[str], numbers: Sequence[str], dtype: np.dtype) -> Lines:
    dtype = np.dtype(np.float32) if dtype.char == _BFLOAT16 else dtype
    texts = _TEXTS | _OF_FLOAT32 if dtype.char == "f" else _TEXTS
    return Lines(arrays, numbers, dtype, dtype, texts, largest=repr(float(np.finfo(dtype).max)))


# Of an element, by the number of axes that a loop has.
_INDICES = {1: "i", 2: "i, c", 3: "i, c, k"}


def _loop(
    title: str,
    lines: Lines,
    pointers: list[str],
    full: list[str],
    before: list[str],
    axes: int,
    body: list[str],
) -> _Loop:
    """The loop of these statements over arrays, of which `full` have all axes."""
    name = "formula_" + re.sub(r"\W+", "_", title)[:48]
    # Parts of the arrays, so that no index can be negative: only then does LLVM vectorise.
    head = ["wide_vectors()"]
    head += [*(f"{pointer} = {pointer}[start:stop]" for pointer in full), *before]
    nested = [
        "    " * depth + f"for {index} in range({full[0]}.shape[{depth}]):"
        for depth, index in enumerate(_INDICES[axes].split(", "))
    ]
    text = [*head, *nested, *("    " * axes + line for line in body)]
    source = f"def {name}(start, stop, {', '.join([*pointers, *lines.parameters])}):\n"
    source += "".join(f"    {line}\n" for line in text)
    return _Loop(_compiled(name, source, lines.dtype), lines.settings())


@functools.lru_cache(maxsize=4096)
def _compiled(name: str, source: str, dtype: np.dtype) -> Any:
    """The kernel of a source; many chains have the same."""
    text = f"# T is {dtype.name}\n{source}"
    scope: dict[str, Any] = {
        "__name__": __name__, "T": dtype.type, "sqrt": np.sqrt, "floor": np.floor, "ceil": np.ceil,
        "load": load, "store": store, "wide_vectors": wide_vectors,
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
