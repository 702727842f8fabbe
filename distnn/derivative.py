"""The derivative of one function: rules, broadcast sums and the order of additions.

One text for both uses: `execution.py` runs it on arrays for backward, `nn.grad` runs it on
Variables, where it records the graph of the derivative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .errors import GraphError
from .function import Setup


def environment(
    setup: Setup, arrays: dict[int, Any], outer: Sequence[Any], operands: dict[str, Any]
) -> dict[str, Any]:
    """What a rule may name: kept arrays, gradients of the outputs, operands and shapes."""
    declaration = setup.declaration
    n = len(setup.input_shapes)
    names: dict[str, Any] = dict(setup.shapes)
    names.update(operands)
    results = (*declaration.outputs, *declaration.saved)
    if declaration.variadic:
        names[declaration.inputs[0]] = tuple(arrays.get(i) for i in range(n))
    for position, array in arrays.items():
        if position >= n:
            names[results[position - n]] = array
        elif not declaration.variadic:
            names[declaration.inputs[position]] = array
    for name, gradient in zip(declaration.outputs, outer, strict=True):
        names["d" + name] = gradient
    return names


def gradients_by_rules(
    setup: Setup, xp: Any, need: Sequence[bool], names: dict[str, Any]
) -> Iterator[tuple[int, Any]]:
    """The gradient of each needed input, by its rule, in the order of the inputs."""
    for index, needed in enumerate(need):
        if not needed:
            continue
        rule = setup.rule(index)
        assert rule is not None
        if setup.declaration.variadic:
            names["index"] = index
        gradient = rule.compute(
            setup.function, xp, **{name: _named(names, name, setup) for name in rule.names}
        )
        shape = setup.input_shapes[index]
        assert shape is not None
        yield index, sum_to_shape(xp, gradient, shape)


def _named(names: dict[str, Any], name: str, setup: Setup) -> Any:
    if name in names:
        return names[name]
    if name in setup.declaration.optional:
        return None
    raise GraphError(
        f"[backward] the gradient of {setup.function.name} reads {name}, which was not kept"
    )


def sum_to_shape(xp: Any, gradient: Any, shape: tuple[int, ...]) -> Any:
    """Sum over the axes along which an input was broadcast."""
    if gradient.shape == shape:
        return gradient
    axes = tuple(
        i for i, (n, full) in enumerate(zip(shape, gradient.shape, strict=True)) if n != full
    )
    return xp.sum(gradient, axes, True)
