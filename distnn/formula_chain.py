"""Chains of formulas: one pass over memory for what would be a pass for each.

Every formula is rounded as it is alone: a chain has the bits of its formulas one after the other.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .formula import CHUNK, Formula, compiled_lines, run_chunks, statement


class Link(NamedTuple):
    """One formula of a chain, over names of the chain."""

    target: str
    tree: ast.expr


class Chain:
    """Formulas over arrays, numbers and the results of formulas before; all of one shape.

    Args:
        arrays, numbers: their names.
        outputs: the targets of links whose values are wanted, in this order.
    """

    def __init__(
        self,
        links: Sequence[Link],
        arrays: Sequence[str],
        numbers: Sequence[str],
        outputs: Sequence[str],
    ) -> None:
        self.links = tuple(links)
        self.arrays = tuple(arrays)
        self.numbers = tuple(numbers)
        self.outputs = tuple(outputs)

    def __str__(self) -> str:
        return "; ".join(f"{link.target} = {ast.unparse(link.tree)}" for link in self.links)

    @functools.cached_property
    def formulas(self) -> list[tuple[str, Formula]]:
        """Each link's target, and its formula over the names that it reads."""
        found, known = [], [*self.arrays]
        for link in self.links:
            names = {node.id for node in ast.walk(link.tree) if isinstance(node, ast.Name)}
            arrays = tuple(name for name in known if name in names)
            numbers = tuple(name for name in self.numbers if name in names)
            found.append((link.target, Formula(ast.unparse(link.tree), arrays, numbers)))
            known.append(link.target)
        return found

    @functools.cached_property
    def kernel(self) -> Callable[..., None]:
        """A NumPy function of the outputs, the arrays and the numbers, for one chunk."""
        lines = []
        for link in self.links:
            if link.target not in self.outputs:
                # Memory of the right dtype: a comparison would make bools.
                first = self.outputs[0]
                lines.append(f"{link.target} = _np.empty({first}.shape, {first}.dtype)")
            lines.append(statement(link.target, link.tree, {*self.numbers}))
        return compiled_lines((*self.outputs, *self.arrays, *self.numbers), lines)

    def evaluate(
        self, arrays: Sequence[np.ndarray], numbers: Sequence[float], outs: Sequence[np.ndarray]
    ) -> None:
        """Compute the outputs; arrays have their number of axes and broadcast to their shape."""
        kernel = self.kernel
        if outs[0].size < 2 * CHUNK:
            kernel(*outs, *arrays, *numbers)
        else:
            run_chunks(lambda *chunk: kernel(*chunk, *numbers), outs[0], (*outs[1:], *arrays))


class Joined(NamedTuple):
    """A chain that a function's implementation computes with the function, and what it works on.

    Where the function's first result, or the gradient of that, is one of the chain's arrays or
    outputs, it comes first there and is not among `arrays` and `outs`; see fusion.py.
    """

    chain: Chain
    arrays: Sequence[Any]
    numbers: Sequence[float]
    outs: Sequence[Any]


def renamed(formula: Formula, names: Mapping[str, str]) -> ast.expr:
    """The formula's tree with other names for arrays and numbers."""
    return _Renamed(names).visit(ast.parse(str(formula), mode="eval").body)


class _Renamed(ast.NodeTransformer):
    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def visit_Call(self, node: ast.Call) -> ast.expr:  # what is called keeps its name
        node.args = [self.visit(argument) for argument in node.args]
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Name(self._names[node.id])
