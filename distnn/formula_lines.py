"""Formulas as lines of text, one operation each: what kernels in other languages are written from.

Operations are those of the formula, one by one; equal ones are computed once. Expressions of
numbers alone are computed on the host, in Python's floats, and become parameters, rounded to the
arrays' dtype, as with NumPy: `x * (1 / step)` makes one kernel for every step.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .formula import Assignments, is_number, number_function, operation


class UnknownOperation(LookupError):
    """A formula has an operation that the language's table lacks."""


class Lines:
    """The operations of formulas over arrays and numbers.

    Args:
        arrays, numbers: names in the formulas; the element of array number i is called a<i>.
        common: dtype to which numbers are rounded.
        dtype: dtype in which operations compute.
        texts: text of each operation by NumPy's name; "{0}", "{1}" stand for operands and "{name}"
            for that name. "literal" is that of a number, which is finite.
        words: what else stands in the texts.
    """

    def __init__(
        self,
        arrays: Sequence[str],
        numbers: Sequence[str],
        common: np.dtype,
        dtype: np.dtype,
        texts: Mapping[str, str],
        **words: str,
    ) -> None:
        self.names = {name: f"a{i}" for i, name in enumerate(arrays)}
        self.numbers = numbers
        self.common = common
        self.dtype = dtype
        self.texts = texts
        self.words = words
        self.operations: dict[str, str] = {}  # text of an operation -> name of its result
        self._parameters: dict[str, tuple[str, ast.expr]] = {}  # text of an expression -> its name
        self._conditions: list[ast.expr] = []

    def value(self, node: ast.expr) -> str:
        """The name of the node's value, or a literal."""
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
        return self.named(self.text(name, *operands))

    def text(self, name: str, *operands: str) -> str:
        """Text of an operation; raises UnknownOperation."""
        if name not in self.texts:
            raise UnknownOperation(name)
        return self.texts[name].format(*operands, name=name, **self.words)

    def named(self, text: str) -> str:
        """The name of what the text computes."""
        return self.operations.setdefault(text, f"t{len(self.operations)}")

    def assign(self, rule: Assignments, rounded: Callable[[str, str], str]) -> None:
        """Let names stand for their values after the assignments of a rule.

        Args:
            rounded: of the name of an array and of a value, what its element then holds.
        """
        for target, tree in rule.statements:
            value = self.value(tree)
            self.names[target] = rounded(target, value) if target in rule.arrays else value

    @property
    def parameters(self) -> list[str]:
        """Names of the parameters that stand for expressions of numbers."""
        return [name for name, _ in self._parameters.values()]

    def settings(self) -> Callable[..., list]:
        """A function of the formula's numbers: the values of the parameters, as NumPy scalars."""
        trees = [tree for _, tree in self._parameters.values()]
        if not trees:
            return _nothing
        compute = number_function(trees, self.numbers)
        dtype = self.dtype.type
        common = self.common.type
        # A number of two bytes enters as a float of the same value.
        rounded = dtype if self.common == self.dtype else lambda value: dtype(common(value))
        return lambda *numbers: [rounded(value) for value in compute(*numbers)]

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
                return self.text("literal", repr(value))
        for condition in reversed(self._conditions):
            node = ast.Call(ast.Name("where"), [condition, node, ast.Constant(0)], [])
        name = f"n{len(self._parameters)}"
        return self._parameters.setdefault(ast.unparse(node), (name, node))[0]


def _nothing(*numbers: float) -> list:
    return []


def written(rule: Assignments) -> set[str]:
    """Names of the arrays that a rule assigns to."""
    return {target for target, _ in rule.statements} & {*rule.arrays}
