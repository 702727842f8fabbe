"""Elementwise formulas: one text, from which come the kernel and the derivative.

A formula is a Python expression over arrays and numbers: `+ - * / **`, unary minus, one comparison,
and the functions of `_FUNCTIONS`. It is kept as a syntax tree, so that it can be differentiated and
compiled; NumPy is one target. Large arrays are worked on in chunks that stay in the cache, so the
temporaries of a formula cost no memory traffic.

Names that stand for numbers (operands, constants) are computed in double precision and enter array
arithmetic in the arrays' dtype.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from .threads import parallel_for

# Elements a chunk; with a few float32 temporaries it stays in the second-level cache.
CHUNK = 16384
# Chunks go to several threads from this size on: below it starting them costs more.
_PARALLEL = 16 * CHUNK

# name: (NumPy text, derivatives with respect to each argument). In the texts a, b, c stand for the
# arguments and y for the value. Ties: the subgradients that NNabla takes.
_FUNCTIONS: dict[str, tuple[str, tuple[str | None, ...]]] = {
    "exp": ("exp", ("exp(a)",)),
    "log": ("log", ("1 / a",)),
    "log1p": ("log1p", ("1 / (1 + a)",)),
    "expm1": ("expm1", ("exp(a)",)),
    "sqrt": ("sqrt", ("0.5 / sqrt(a)",)),
    "sin": ("sin", ("cos(a)",)),
    "cos": ("cos", ("-sin(a)",)),
    "tan": ("tan", ("1 + tan(a) * tan(a)",)),
    "sinh": ("sinh", ("cosh(a)",)),
    "cosh": ("cosh", ("sinh(a)",)),
    "tanh": ("tanh", ("1 - tanh(a) * tanh(a)",)),
    # Not spelled out as 1 / (1 + exp(-a)), whose derivatives are 0 * inf far from 0.
    "sigmoid": ("sigmoid", ("sigmoid(a) * sigmoid(-a)",)),
    "arcsin": ("arcsin", ("1 / sqrt(1 - a * a)",)),
    "arccos": ("arccos", ("-1 / sqrt(1 - a * a)",)),
    "arctan": ("arctan", ("1 / (1 + a * a)",)),
    "arcsinh": ("arcsinh", ("1 / sqrt(a * a + 1)",)),
    "arccosh": ("arccosh", ("1 / sqrt(a * a - 1)",)),
    "arctanh": ("arctanh", ("1 / (1 - a * a)",)),
    "abs": ("absolute", ("where(a >= 0, 1, -1)",)),
    "sign": ("sign", (None,)),
    "floor": ("floor", (None,)),
    "ceil": ("ceil", (None,)),
    "isnan": ("isnan", (None,)),
    "isinf": ("isinf", (None,)),
    "maximum": ("maximum", ("where(a > b, 1, 0)", "where(a > b, 0, 1)")),
    "minimum": ("minimum", ("where(a < b, 1, 0)", "where(a < b, 0, 1)")),
    "where": ("where", (None, "where(a, 1, 0)", "where(a, 0, 1)")),
    # 0 ** 0 is 1, so a ** 0 has slope 0 at 0; and 0 ** b is 0 for every b above 0.
    "power": (
        "power",
        (
            "where(b == 0, 0, b * power(a, b - 1))",
            "where(a == 0, 0, log(a) * power(a, b))",
        ),
    ),
    "logical_and": ("logical_and", (None, None)),
    "logical_or": ("logical_or", (None, None)),
    "logical_xor": ("logical_xor", (None, None)),
    "logical_not": ("logical_not", (None,)),
}
_OPERATORS: dict[type[ast.AST], str] = {
    ast.Add: "add",
    ast.Sub: "subtract",
    ast.Mult: "multiply",
    ast.Div: "divide",
    ast.Pow: "power",
    ast.USub: "negative",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
}


# Operations of a cycle or so an element.
_ARITHMETIC = {
    *("add", "subtract", "multiply", "negative", "maximum", "minimum", "where", "absolute"),
    *("greater", "greater_equal", "less", "less_equal", "equal", "not_equal"),
}


class Formula:
    """One expression over named arrays and numbers."""

    def __init__(self, text: str | ast.expr, arrays: Sequence[str], numbers: Sequence[str]) -> None:
        self.tree = ast.parse(text, mode="eval").body if isinstance(text, str) else text
        names = [n.id for n in ast.walk(self.tree) if isinstance(n, ast.Name)]
        functions = {_called(n) for n in ast.walk(self.tree)} - {""}
        unknown = {*names} - {*arrays} - {*numbers} - functions
        if unknown or not functions <= _FUNCTIONS.keys():
            raise TypeError(f"formula {text!r} uses {sorted(unknown | functions)} beyond its names")
        self.arrays = tuple(name for name in arrays if name in names)
        self.numbers = tuple(name for name in numbers if name in names)

    def __str__(self) -> str:
        return ast.unparse(self.tree)

    @property
    def is_zero(self) -> bool:
        return isinstance(self.tree, ast.Constant) and self.tree.value == 0

    @functools.cached_property
    def is_arithmetic(self) -> bool:
        """Whether it has no operation that takes longer than to read and write memory."""
        kinds = ast.UnaryOp | ast.BinOp | ast.Compare | ast.Call
        nodes = (node for node in ast.walk(self.tree) if isinstance(node, kinds))
        return all(operation(node)[0] in _ARITHMETIC for node in nodes)

    def derivative(self, name: str) -> Formula:
        """d(formula)/d(name); names are independent of each other."""
        return Formula(_derivative(self.tree, name), self.arrays, self.numbers)

    def times(self, name: str) -> Formula:
        """name * formula."""
        tree = _product(ast.Name(name), self.tree)
        return Formula(tree, (name, *self.arrays), self.numbers)

    @functools.cached_property
    def kernel(self) -> Callable[..., None]:
        """A NumPy function of the arrays, the numbers and `out`, for one chunk."""
        return _compiled(str(self), self.arrays, self.numbers)

    def evaluate(
        self, arrays: Mapping[str, np.ndarray], numbers: Mapping[str, float], out: np.ndarray
    ) -> np.ndarray:
        """out = formula; arrays have out's number of axes and broadcast to its shape."""
        kernel = self.kernel
        values = [arrays[name] for name in self.arrays]
        settings = [numbers[name] for name in self.numbers]
        if out.size < 2 * CHUNK:
            kernel(*values, *settings, out)
        else:
            run_chunks(lambda *chunk: kernel(*chunk[1:], *settings, chunk[0]), out, values)
        return out


def run_chunks(body: Callable[..., object], out: np.ndarray, arrays: Sequence[np.ndarray]) -> None:
    """Call `body(out, *arrays)` on matching pieces of cache size, on several threads."""
    size = out.size
    if size < 2 * CHUNK:
        body(out, *arrays)
    elif all(a.shape == out.shape and a.flags.c_contiguous for a in (out, *arrays)):
        flat = [a.reshape(-1) for a in (out, *arrays)]
        _run(lambda i, j: body(*[a[i:j] for a in flat]), size, CHUNK, size)
    else:
        axis = next(i for i, n in enumerate(out.shape) if n > 1)
        rows = out.shape[axis]
        grain = max(1, CHUNK * rows // size)
        lead = (slice(None),) * axis

        def rows_of(a: np.ndarray, i: int, j: int) -> np.ndarray:
            return a[(*lead, slice(i, j))] if a.shape[axis] > 1 else a

        _run(lambda i, j: body(*[rows_of(a, i, j) for a in (out, *arrays)]), rows, grain, size)


def _run(body: Callable[[int, int], object], length: int, grain: int, size: int) -> None:
    if size >= _PARALLEL:
        # Every chunk is a part, but a thread takes several at a time: taking one is not free.
        parts = -(-length // grain)
        several = grain * max(1, min(16, parts // 8))

        def work(start: int, stop: int) -> None:
            for i in range(start, stop, grain):
                body(i, min(i + grain, stop))

        parallel_for(work, length, several)
    else:
        for i in range(0, length, grain):
            body(i, min(i + grain, length))


# -- derivatives ------------------------------------------------------------------------------


def _derivative(node: ast.expr, name: str) -> ast.expr:
    if isinstance(node, ast.Constant | ast.Compare):
        return ast.Constant(0)
    if isinstance(node, ast.Name):
        return ast.Constant(1 if node.id == name else 0)
    if isinstance(node, ast.UnaryOp):
        return _negative(_derivative(node.operand, name))
    if isinstance(node, ast.BinOp):
        a, b = node.left, node.right
        da, db = _derivative(a, name), _derivative(b, name)
        if isinstance(node.op, ast.Add):
            return _sum(da, db)
        if isinstance(node.op, ast.Sub):
            return _sum(da, _negative(db))
        if isinstance(node.op, ast.Mult):
            return _sum(_product(da, b), _product(a, db))
        if isinstance(node.op, ast.Div):
            # a/b: da/b - (a/b) db/b
            return _sum(_quotient(da, b), _negative(_product(_quotient(node, b), db)))
        node = _call("power", a, b)
    assert isinstance(node, ast.Call)
    _, rules = _FUNCTIONS[_called(node)]
    total: ast.expr = ast.Constant(0)
    for argument, rule in zip(node.args, rules, strict=True):
        inner = _derivative(argument, name)
        if rule is not None and not _equals(inner, 0):
            outer = _substituted(rule, dict(zip("abc", node.args, strict=False)))
            if _called(node) in ("where", "maximum", "minimum"):
                outer = _selected(outer, inner)
            else:
                outer = _product(outer, inner)
            total = _sum(total, outer)
    return total


def _selected(choice: ast.expr, value: ast.expr) -> ast.expr:
    """where(c, 1, 0) * value without the product: 0 * inf would be a NaN."""
    assert isinstance(choice, ast.Call)
    condition, yes, no = choice.args
    return _call("where", condition, _product(yes, value), _product(no, value))


def _substituted(text: str, arguments: dict[str, ast.expr]) -> ast.expr:
    class Substitute(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return arguments.get(node.id, node)

    return Substitute().visit(ast.parse(text, mode="eval").body)


def _sum(a: ast.expr, b: ast.expr) -> ast.expr:
    if _equals(a, 0):
        return b
    if _equals(b, 0):
        return a
    if isinstance(b, ast.UnaryOp):
        return ast.BinOp(a, ast.Sub(), b.operand)
    # where(c, p, 0) + where(c, 0, q) is one choice: where's own derivative comes out so.
    if _called(a) == _called(b) == "where":
        (c, p, zero), (d, zero_too, q) = _arguments(a), _arguments(b)
        if _equals(zero, 0) and _equals(zero_too, 0) and ast.dump(c) == ast.dump(d):
            return _call("where", c, p, q)
    return ast.BinOp(a, ast.Add(), b)


def _product(a: ast.expr, b: ast.expr) -> ast.expr:
    if _equals(a, 0) or _equals(b, 0):
        return ast.Constant(0)
    if _equals(a, 1):
        return b
    if _equals(b, 1):
        return a
    if isinstance(a, ast.UnaryOp):
        return _negative(_product(a.operand, b))
    if isinstance(b, ast.UnaryOp):
        return _negative(_product(a, b.operand))
    # A choice stays outermost: dy * where(c, x, 0) would make a NaN of inf * 0.
    for choice, factor in ((a, b), (b, a)):
        if _called(choice) == "where" and any(_equals(v, 0) for v in _arguments(choice)[1:]):
            condition, yes, no = _arguments(choice)
            return _call("where", condition, _product(factor, yes), _product(factor, no))
    return ast.BinOp(a, ast.Mult(), b)


def _quotient(a: ast.expr, b: ast.expr) -> ast.expr:
    return ast.Constant(0) if _equals(a, 0) else ast.BinOp(a, ast.Div(), b)


def _negative(a: ast.expr) -> ast.expr:
    if _equals(a, 0):
        return a
    return a.operand if isinstance(a, ast.UnaryOp) else ast.UnaryOp(ast.USub(), a)


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(name), list(arguments), [])


def _called(node: ast.AST) -> str:
    """The name of the function that a call calls; "" for anything else."""
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def _arguments(node: ast.expr) -> list[ast.expr]:
    assert isinstance(node, ast.Call)
    return node.args


def _equals(node: ast.expr, value: float) -> bool:
    return isinstance(node, ast.Constant) and node.value == value


# -- NumPy -------------------------------------------------------------------------------------


def power(a: np.ndarray, b: float | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """a ** b; the usual exponents without the general, slower function."""
    if isinstance(b, float | int):
        if b == 2:
            return np.square(a, out=out)
        if b == 0.5:
            return np.sqrt(a, out=out)
        if b == 1:
            return np.multiply(a, 1, out=out)
        if b == -1:
            return np.divide(1, a, out=out)
    return np.power(a, b, out=out)


def sigmoid(a: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """1 / (1 + exp(-a))"""
    y = np.negative(a, out=out)
    y = np.exp(y, out=out)
    y = np.add(1, y, out=out)
    return np.divide(1, y, out=out)


# What is called by these names in the text of a kernel is ours, not NumPy's.
_OURS = {"power": power, "sigmoid": sigmoid}


@functools.lru_cache(maxsize=4096)
def _compiled(text: str, arrays: tuple[str, ...], numbers: tuple[str, ...]) -> Callable[..., None]:
    source = statement("out", ast.parse(text, mode="eval").body, {*numbers})
    parameters = ", ".join((*arrays, *numbers, "out"))
    return _executed(f"def kernel({parameters}):\n    {source}\n")


def compiled_lines(parameters: Sequence[str], lines: Sequence[str]) -> Callable[..., None]:
    """A function of these parameters that runs lines of NumPy text, as `statement` makes them."""
    return _executed(f"def kernel({', '.join(parameters)}):\n    " + "\n    ".join(lines) + "\n")


def _executed(source: str) -> Callable[..., Any]:
    scope: dict = {"_np": np, **{f"_{name}": function for name, function in _OURS.items()}}
    exec(compile(source, f"<formula {source!r}>", "exec"), scope)
    return scope["kernel"]


def statement(target: str, tree: ast.expr, numbers: set[str]) -> str:
    """`target[...] = tree` as NumPy text; the last operation writes into target."""
    if is_number(tree, numbers):
        return f"{target}.fill({_number_text(tree)})"
    if isinstance(tree, ast.Name):
        return f"_np.copyto({target}, {tree.id})"
    if _called(tree) == "where":
        condition, yes, no = _arguments(tree)
        if is_number(condition, numbers):
            branches = (statement(target, branch, numbers) for branch in (yes, no))
            return "({0} if {2} else {1})".format(*branches, _number_text(condition))
        return f"_np.copyto({target}, {_array_text(tree, numbers)}, 'same_kind')"
    return _array_text(tree, numbers, out=target)


def operation(node: ast.expr) -> tuple[str, list[ast.expr]]:
    """NumPy's name of what a node that is no name and no constant does, and its arguments."""
    if isinstance(node, ast.UnaryOp):
        return _OPERATORS[type(node.op)], [node.operand]
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)], [node.left, node.right]
    if isinstance(node, ast.Compare):
        return _OPERATORS[type(node.ops[0])], [node.left, *node.comparators]
    return _FUNCTIONS[_called(node)][0], _arguments(node)


def is_number(node: ast.expr, numbers: Collection[str]) -> bool:
    """True for an expression of numbers alone."""
    return all(
        n.id in numbers or n.id in _FUNCTIONS for n in ast.walk(node) if isinstance(n, ast.Name)
    )


def number_function(trees: Sequence[ast.expr], names: Sequence[str]) -> Callable[..., list[float]]:
    """A Python function of the numbers `names`: the values of expressions of numbers alone."""
    values = ", ".join(_number_text(tree) for tree in trees)
    return _executed(f"def kernel({', '.join(names)}):\n    return [{values}]\n")


def _number_text(node: ast.expr) -> str:
    """Arithmetic on numbers alone, in Python's own floats."""
    if _called(node) == "where":
        condition, yes, no = (_number_text(a) for a in _arguments(node))
        return f"({yes} if {condition} else {no})"
    if _called(node):
        arguments = ", ".join(_number_text(a) for a in _arguments(node))
        return f"float({_function_text(_FUNCTIONS[_called(node)][0])}({arguments}))"
    if isinstance(node, ast.BinOp):
        operator = ast.unparse(ast.BinOp(ast.Name("a"), node.op, ast.Name("b")))[2:-2]
        return f"({_number_text(node.left)} {operator} {_number_text(node.right)})"
    if isinstance(node, ast.Compare):
        operator = ast.unparse(ast.Compare(ast.Name("a"), node.ops, [ast.Name("b")]))[2:-2]
        return f"({_number_text(node.left)} {operator} {_number_text(node.comparators[0])})"
    if isinstance(node, ast.UnaryOp):
        return f"(-{_number_text(node.operand)})"
    return ast.unparse(node)


def _array_text(node: ast.expr, numbers: set[str], out: str | None = None) -> str:
    if is_number(node, numbers):
        return _number_text(node)
    if isinstance(node, ast.Name):
        return node.id
    name, arguments = operation(node)
    texts = [_array_text(argument, numbers) for argument in arguments]
    if name == "where" and is_number(arguments[0], numbers):
        condition, yes, no = texts
        return f"({yes} if {condition} else {no})"
    if out is not None:
        texts.append(f"out={out}")
    return f"{_function_text(name)}({', '.join(texts)})"


def _function_text(name: str) -> str:
    return f"_{name}" if name in _OURS else f"_np.{name}"


# -- several assignments, for solvers ----------------------------------------------------------


class Assignments:
    """Formulas one after the other over arrays of one shape, written in place: `v = m * v + g`."""

    def __init__(self, text: str, arrays: Sequence[str], numbers: Sequence[str]) -> None:
        self.arrays = tuple(arrays)
        self.numbers = tuple(numbers)
        lines, known = [], {*arrays}
        self.statements: list[tuple[str, ast.expr]] = []  # what is assigned, and its formula
        for line in ast.parse(text.strip()).body:
            assert isinstance(line, ast.Assign)
            assert isinstance(line.targets[0], ast.Name)
            target = line.targets[0].id
            Formula(line.value, tuple(known), numbers)  # checks the names
            self.statements.append((target, line.value))
            if target in self.arrays:
                lines.append(statement(target, line.value, {*numbers}))
            else:
                known.add(target)
                lines.append(f"{target} = {_array_text(line.value, {*numbers})}")
        self._kernel = compiled_lines((*self.arrays, *self.numbers), lines)

    def run(self, arrays: Sequence[np.ndarray], numbers: Sequence[float]) -> None:
        """Run on arrays in the order of `self.arrays`."""
        kernel = self._kernel
        run_chunks(lambda *chunk: kernel(*chunk, *numbers), arrays[0], arrays[1:])
