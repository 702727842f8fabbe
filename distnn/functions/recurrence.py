"""What recurrent layers share: one direction of a layer as a Function, and stacks of these.

A layer multiplies all steps of its input by its weight at once; only the product with the state of
the step before is made step by step. Backward goes through the steps in reverse with the second
product alone, and then makes the gradients of input and weight from those of all steps at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ArgumentError, ShapeError
from ..formula import Formula
from ..function import Function
from .dropout import dropout as dropped
from .elementwise import Elementwise
from .shapes import number, shape_of, whole_number
from .shaping import Concatenate, concatenate, reshape
from .shaping import slice as part_of

SIGMOID = Elementwise("sigmoid", Formula("sigmoid(x)", ("x",), ()), ("x",), ())


class Recurrence(Function, by_signature=False):
    """One direction of one layer: its steps, and the products with its weight.

    x (T, B, I), states (B, H), w (G, H, I + H) for G gates -> y (T, B, H). With `reverse` the last
    step comes first; y stays in the order of x. Rules and fast paths are made of the gradient dz of
    what goes into the gates, (T, B, G H).
    """

    reverse: bool

    def steps(self, x: Any) -> range:
        """The steps in the order in which they are made."""
        order = range(x.shape[0])
        return order[::-1] if self.reverse else order

    def before(self, xp: Any, first: Any, after: Any) -> Any:
        """The states with which the steps begin, given the first one and those after each step."""
        length, *rest = after.shape
        first = xp.reshape(first, (1, *rest))
        join = Concatenate.of(0)
        if self.reverse:
            return xp.call(join, xp.slice(after, (1, 0, 0), after.shape), first)
        return xp.call(join, first, xp.slice(after, (0, 0, 0), (length - 1, *rest)))

    def split(self, xp: Any, w: Any, depth: int) -> tuple[Any, Any]:
        """The parts of the weight for an input of `depth` and for the state: (G H, I), (G H, H)."""
        rows, columns = math.prod(w.shape[:-1]), w.shape[-1]
        w = xp.reshape(w, (rows, columns))
        return xp.slice(w, (0, 0), (rows, depth)), xp.slice(w, (0, depth), (rows, columns))

    def product(self, xp: Any, x: Any, w: Any) -> Any:
        """w x for every step: (T, B, I), (G H, I) -> (T, B, G H)."""
        steps, batch, depth = x.shape
        y = xp.matmul(xp.reshape(x, (steps * batch, depth)), xp.transpose(w))
        return xp.reshape(y, (steps, batch, w.shape[0]))

    def of_input(self, xp: Any, dz: Any, wx: Any) -> Any:
        """The gradient of x."""
        return self.product(xp, dz, xp.transpose(wx))

    def of_weight(self, xp: Any, dz: Any, x: Any, dzh: Any, h: Any, shape: Any) -> Any:
        """The gradient of w; dz and dzh are those of its products with x and with the states h."""
        parts = [
            xp.matmul(xp.transpose(_rows(xp, d)), _rows(xp, a)) for d, a in ((dz, x), (dzh, h))
        ]
        return xp.reshape(xp.call(Concatenate.of(1), *parts), shape)

    def write(
        self, xp: Any, need: Any, out: Any, dz: Any, x: Any, dzh: Any, h: Any, y: Any, w: Any
    ) -> None:
        """The gradients of x and w, on arrays; h is the first state, y those after the steps."""
        depth = x.shape[2]
        if need.x:
            wx, _ = self.split(xp, w, depth)
            xp.matmul(_rows(xp, dz), wx, out=_rows(xp, out.x))
        if need.w:
            left, right = self.split(xp, out.w, depth)
            xp.matmul(_rows(xp, dz).T, _rows(xp, x), out=left)
            if len(y) > 1:
                after, before = (dzh[:-1], y[1:]) if self.reverse else (dzh[1:], y[:-1])
                xp.matmul(_rows(xp, after).T, _rows(xp, before), out=right)
                right += xp.matmul(dzh[-1 if self.reverse else 0].T, h)
            else:
                xp.matmul(dzh[0].T, h, out=right)


def _rows(xp: Any, x: Any) -> Any:
    steps, batch, length = x.shape
    return xp.reshape(x, (steps * batch, length))


def gate(xp: Any, z: Any, number: int, gates: int) -> Any:
    """Gate `number` of (T, B, G H), or of (B, G H)."""
    *lead, width = z.shape
    length = width // gates
    start = (*[0] * len(lead), number * length)
    return xp.slice(z, start, (*lead, (number + 1) * length))


def at(xp: Any, x: Any, step: int) -> Any:
    """One step of (T, B, L)."""
    part = xp.slice(x, (step, 0, 0), (step + 1, *x.shape[1:]))
    return xp.reshape(part, x.shape[1:])


def over_steps(xp: Any, parts: dict[int, Any]) -> Any:
    """(B, L) arrays by step, as one (T, B, L)."""
    shape = (1, *parts[0].shape)
    return xp.call(Concatenate.of(0), *(xp.reshape(parts[t], shape) for t in range(len(parts))))


# -- stacks of layers -----------------------------------------------------------------------------


def stacked(
    name: str,
    layer: Callable[[bool], Function],
    gates: tuple[int, ...],
    biases: tuple[int, ...],
    x: Any,
    states: dict[str, Any],
    weight_l0: Any,
    weight: Any,
    bias: Any,
    num_layers: int,
    dropout: float | None,
    bidirectional: bool,
    training: bool,
) -> tuple[Any, ...]:
    """y, and the last states of each layer and direction, as the public functions return them.

    Args:
        layer: makes the Function of one direction, given `reverse`.
        gates, biases: axes of a weight and of a bias between directions and H.
        states: by name, (L, D, B, H) each.
    """
    layers = whole_number(name, "num_layers", num_layers)
    if layers < 1:
        raise ArgumentError(f"[{name}] num_layers is {layers}; pass 1 or more")
    p = 0.0 if dropout is None else number(name, "dropout", dropout)
    if not 0 <= p < 1:
        raise ArgumentError(
            f"[{name}] dropout is {p}; pass a probability from 0 up to but without 1"
        )
    directions = 2 if bidirectional else 1
    _check_shapes(name, gates, biases, x, states, weight_l0, weight, bias, layers, directions)
    last: list[list[Any]] = [[] for _ in states]
    for i in range(layers):
        outputs = []
        for d in range(directions):
            w = _part(weight_l0, d) if i == 0 else _part(weight, i - 1, d)
            begin = [_part(s, i, d) for s in states.values()]
            b = None if bias is None else _part(bias, i, d)
            results = layer(d == 1)(x, *begin, w, b)
            results = results if isinstance(results, tuple) else (results,)
            outputs.append(results[0])
            end = 0 if d else x.shape[0] - 1
            for found, result in zip(last, results, strict=True):
                shape = (1, *result.shape[1:])
                found.append(part_of(result, (end, 0, 0), (end + 1, *result.shape[1:])))
                assert found[-1].shape == shape
        x = outputs[0] if directions == 1 else concatenate(*outputs, axis=2)
        if training and p and i < layers - 1:
            x = dropped(x, p)
    shape = next(iter(states.values())).shape
    return x, *(reshape(concatenate(*found, axis=0), shape) for found in last)


def _part(x: Any, *index: int) -> Any:
    """x[index]"""
    ones = len(index)
    if any(n > 1 for n in x.shape[:ones]):
        stop = (*(i + 1 for i in index), *x.shape[ones:])
        x = part_of(x, (*index, *[0] * (len(x.shape) - ones)), stop)
    return reshape(x, x.shape[ones:])


def _check_shapes(
    name: str, gates: tuple[int, ...], biases: tuple[int, ...], x: Any, states: dict[str, Any],
    weight_l0: Any, weight: Any, bias: Any, layers: int, directions: int,
) -> None:  # fmt: skip
    """Raise ShapeError unless everything fits x and the states."""
    shape = shape_of(name, "x", x)
    if len(shape) != 3 or not shape[0]:
        raise ShapeError(
            f"[{name}] x has shape {shape}; pass (T, B, I): one or more steps, batch, inputs"
        )
    _, batch, inputs = shape
    first = next(iter(states))
    hidden = shape_of(name, first, states[first])[-1:] or (0,)
    setting = f"num_layers {layers} and {_directions(directions)}"
    for state, values in states.items():
        _expect(name, state, values, (layers, directions, batch, *hidden), f"x {shape}, {setting}")
    (h,) = hidden
    given = f"x {shape}, {first} {states[first].shape}, {setting}"
    _expect(name, "weight_l0", weight_l0, (directions, *gates, h, inputs + h), given)
    if layers > 1:
        columns = directions * h + h
        _expect(name, "weight", weight, (layers - 1, directions, *gates, h, columns), given)
    elif weight is not None:
        raise ArgumentError(
            f"[{name}] weight {shape_of(name, 'weight', weight)} is for the layers after the first "
            "but num_layers is 1; pass None, or more layers"
        )
    if bias is not None:
        _expect(name, "bias", bias, (layers, directions, *biases, h), given)


def _directions(number: int) -> str:
    return f"bidirectional={number == 2}"


def _expect(name: str, what: str, array: Any, shape: Sequence[int], given: str) -> None:
    if shape_of(name, what, array) != tuple(shape):
        raise ShapeError(f"[{name}] {what} has shape {array.shape} but {given} need {tuple(shape)}")
