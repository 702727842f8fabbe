"""The derivative of one function: rules, broadcast sums and the order of additions.

One text for both uses: `execution.py` runs it on arrays for backward, `nn.grad` runs it on
Variables, where it records the graph of the derivative.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .function import Binding, Kind, Setup


def bind(
    bindings: Sequence[Binding],
    arrays: dict[int, Any],
    outer: Sequence[Any],
    operands: dict[str, Any],
) -> dict[str, Any]:
    """What a rule, or a fast backward, reads: kept arrays, gradients of the outputs, and so on."""
    found: dict[str, Any] = {}
    for name, kind, key in bindings:
        if kind is Kind.ARRAY:
            found[name] = arrays[key]
        elif kind is Kind.OUTER:
            found[name] = outer[key]
        elif kind is Kind.OPERAND:
            found[name] = operands[name]
        elif kind is Kind.ARRAYS:
            found[name] = tuple(arrays.get(i) for i in range(key))
        else:
            found[name] = key
    return found


def gradients_by_rules(
    setup: Setup,
    xp: Any,
    need: tuple[bool, ...],
    arrays: dict[int, Any],
    outer: Sequence[Any],
    operands: dict[str, Any],
) -> Iterator[tuple[int, Any]]:
    """The gradient of each needed input, by its rule, in the order of the inputs.

    Args:
        arrays: what the rules read, by position.
        outer: the gradients of the outputs.
    """
    for index, rule, bindings in setup.reads(need).by_rules:
        gradient = rule.compute(setup.function, xp, **bind(bindings, arrays, outer, operands))
        shape = setup.input_shapes[index]
        assert shape is not None
        yield index, sum_to_shape(xp, gradient, shape)


def sum_to_shape(xp: Any, gradient: Any, shape: tuple[int, ...]) -> Any:
    """Sum over the axes along which an input was broadcast."""
    if gradient.shape == shape:
        return gradient
    axes = tuple(
        i for i, (n, full) in enumerate(zip(shape, gradient.shape, strict=True)) if n != full
    )
    return xp.sum(gradient, axes, True)
