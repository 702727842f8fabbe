"""Elementwise functions from formulas: one row each.

A row names the function, its formulas and its inputs. In the formulas of a gradient, dy is the
gradient of the output y; a gradient not given is derived from the formula. A gradient is itself an
elementwise function, so derivatives of any order use this one mechanism.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..calling import into
from ..formula import Formula
from ..function import Declaration, Function, Rule, Spec, broadcast_shapes
from .shapes import number


class Elementwise(Function, by_signature=False):
    """y = formula of the inputs, element by element; axes of length 1 broadcast.

    Args:
        name: of the function.
        formula: of the output.
        inputs: names of array inputs; all of them are in the formula or its gradients.
        operands: names of numbers.
        output: name of the output.
        gradients: formulas by input, in terms of d<output>, the output, inputs and operands.
    """

    def __init__(
        self,
        name: str,
        formula: Formula,
        inputs: Sequence[str],
        operands: Sequence[str],
        output: str = "y",
        gradients: dict[str, Formula] | None = None,
    ) -> None:
        self._formula = formula  # with the underscore it is no argument of the function
        self._inputs = tuple(inputs)
        outer = "d" + output
        rules = {}
        for x in inputs:
            gradient = (gradients or {}).get(x) or formula.derivative(x).times(outer)
            if not gradient.is_zero:
                rules[x] = self._rule(f"{name}_grad_{x}", gradient, outer)
        self.declaration = Declaration(
            name=name, inputs=inputs, outputs=[output], rules=rules, operands=operands
        )
        # Same shape as the output or broadcast: only then may the output overwrite it.
        self.inplace = tuple(range(len(inputs)))  # type: ignore[misc]

    @staticmethod
    def _rule(name: str, gradient: Formula, outer: str) -> Rule:
        @functools.cache
        def function() -> Elementwise:
            # Made when first used: a gradient's own gradients would be made without end.
            return Elementwise(
                name, gradient, gradient.arrays, gradient.numbers, output=outer + "_"
            )

        def compute(_: Function, xp: Any, **values: Any) -> Any:
            if str(gradient) == outer:  # that of a sum; whoever writes to it sees whose it is
                return values[outer]
            arrays = [values[n] for n in gradient.arrays]
            numbers = {n: values[n] for n in gradient.numbers}
            return xp.call(function(), *arrays, **numbers)

        return Rule((*gradient.arrays, *gradient.numbers), compute, gradient)

    @property
    def formula(self) -> Formula:
        """Of the output, over names of the inputs and operands."""
        return self._formula

    def key(self) -> tuple:
        return (self,)

    def setup(self, *specs: Spec, **_: Any) -> Spec:
        shape = broadcast_shapes(
            self.name, **{n: s.shape for n, s in zip(self._inputs, specs, strict=True)}
        )
        return Spec(shape, specs[0].dtype)

    def forward(self, xp: Any, *arrays: Any, out: Any = None, **numbers: Any) -> Any:
        if out is None:
            shape = arrays[0].shape
            if any(a.shape != shape for a in arrays):
                shape = np.broadcast_shapes(*[a.shape for a in arrays])
            out = xp.empty(shape, arrays[0].dtype)
        named = dict(zip(self._inputs, arrays, strict=True))
        return xp.evaluate(self._formula, named, numbers, out)


def elementwise(
    name: str,
    doc: str,
    *,
    y: str,
    example: str,
    inputs: Sequence[str] = ("x",),
    operands: Mapping[str, float | None] | None = None,
    inplace: bool = False,
    **gradients: str,
) -> Callable[..., Any]:
    """Declare an elementwise function; returns the public function.

    Args:
        doc: what it is, without the equation.
        y: its formula.
        example: `values -> result`, of one input or several (separated by `;`), for the docs.
        operands: numbers with their defaults; None has no default.
        inplace: it has NNabla's obsolete argument of that name.
        gradients: formulas as `dx=`; without one the gradient is derived, and "0" is none.
    """
    operands = operands or {}
    numbers = tuple(operands)
    given = {
        key[1:]: Formula(text, ("dy", "y", *inputs), numbers) for key, text in gradients.items()
    }
    function = Elementwise(name, Formula(y, inputs, numbers), inputs, numbers, gradients=given)
    return _public(function, doc, y, example, operands, inplace)


def _public(
    function: Elementwise,
    doc: str,
    formula: str,
    example: str,
    operands: Mapping[str, float | None],
    inplace: bool,
) -> Callable[..., Any]:
    """The function that users call, with the signature that NNabla's has."""
    name, inputs = function.name, function.declaration.inputs
    parameters = [*inputs]
    parameters += [o if default is None else f"{o}={default!r}" for o, default in operands.items()]
    parameters += ["inplace=False"] * inplace + ["n_outputs=-1", "outputs=None"]
    arguments = ", ".join((*inputs, *(f"{o}=_number({name!r}, {o!r}, {o})" for o in operands)))
    source = (
        f"def {name}({', '.join(parameters)}):\n"
        f"    result = _function({arguments})\n"
        f"    return result if outputs is None else _into({name!r}, result, outputs)\n"
    )
    scope: dict[str, Any] = {"_function": function, "_into": into, "_number": number}
    exec(compile(source, f"<elementwise {name}>", "exec"), scope)
    public = scope[name]
    public.__doc__ = _docstring(name, doc, formula, example, inputs, operands)
    public.__module__ = "distnn.functions"
    return public


def _docstring(
    name: str,
    doc: str,
    formula: str,
    example: str,
    inputs: Sequence[str],
    operands: Mapping[str, float | None],
) -> str:
    values, result = (part.strip() for part in example.split("->"))
    arrays = [
        f"nn.NdArray.from_numpy_array(np.array({v.strip()}, np.float32))" for v in values.split(";")
    ]
    numbers = [f"{o}=2.0" for o, default in operands.items() if default is None]
    # Digits beyond the fourth differ between processors.
    rounded = ".round(4)" if re.search(r"\.\d{4}", result) else ""
    setting = [f"    >>> {n} = {a}" for n, a in zip(inputs, arrays, strict=True)]
    args = [f"    {n}: array." for n in inputs] + [f"    {o}: number." for o in operands]
    shapes = "of x's shape" if len(inputs) == 1 else "of the common shape"
    return "\n".join(
        [
            doc,
            "",
            f"    y = {formula}",
            "",
            "    Args:",
            *(f"    {line}" for line in args),
            f"    Returns: array {shapes}.",
            *(
                ["    Raises: ShapeError where the shapes differ in more than axes of length 1."]
                if len(inputs) > 1
                else []
            ),
            "",
            "    >>> import numpy as np, distnn as nn, distnn.functions as F",
            *setting,
            f"    >>> F.{name}({', '.join((*inputs, *numbers))}).data{rounded}",
            f"    array({result}, dtype=float32)",
            "    ",
        ]
    )
