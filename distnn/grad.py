"""`nn.grad`: gradients as part of the graph, to any order.

It walks the same steps as backward, but runs the gradient rules on Variables, where they record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import functions as F
from .context import compute_recorded
from .derivative import gradients_by_rules
from .errors import ArgumentError, GraphError, ShapeError
from .function import Reads
from .graph import Node
from .namespace import variable_namespace
from .ndarray import NdArray
from .plan import Contribution, Plan
from .recompute import compute_again, forgotten
from .structure import Graph
from .variable import Variable


def grad(
    outputs: Variable | Sequence[Variable],
    inputs: Variable | Sequence[Variable],
    grad_outputs: Any = None,
    persistent_outputs: Sequence[bool] | None = None,
    bind_grad_output: bool = False,
) -> list[Variable]:
    """Gradients of the sum of outputs with respect to inputs, as Variables of a graph.

    Args:
        outputs: results of functions.
        inputs: Variables with need_grad that the outputs depend on: leaves, parameters as
            `nn.get_parameters()` returns them, or intermediate results.
        grad_outputs: what to start from at each output: None for ones; a number, an array or a
            Variable, or a list of those, one for each output.
        persistent_outputs: for each output, whether clearing spares it; all by default.
        bind_grad_output: let `g` of each input be the data of its gradient.
    Returns: a gradient for each input, to be computed by forward() in static mode; a constant 0
        where no output depends on the input.
    Raises: ArgumentError for an input without need_grad.

    >>> import numpy as np, distnn as nn
    >>> x = nn.Variable.from_numpy_array(np.array([1., 2.]), need_grad=True)
    >>> dx, = nn.grad(x ** 3, x)
    >>> ddx, = nn.grad(dx, x)
    >>> ddx.forward(); ddx.d
    array([ 6., 12.], dtype=float32)
    """
    outputs = [outputs] if isinstance(outputs, Variable) else list(outputs)
    inputs = [inputs] if isinstance(inputs, Variable) else list(inputs)
    for i, x in enumerate(inputs):
        if not x.need_grad:
            raise ArgumentError(
                f"[grad] inputs[{i}] {x!r} has need_grad=False; set need_grad=True before the "
                "graph is made"
            )
    for i, y in enumerate(outputs):
        if y.parent is None:
            raise GraphError(f"[grad] outputs[{i}] {y!r} is a leaf: no function computes it")
    keep = [True] * len(outputs) if persistent_outputs is None else list(persistent_outputs)
    for y, persistent in zip(outputs, keep, strict=True):
        if persistent:
            y.persistent = True
    compute_recorded()
    graph = Graph([y._value for y in outputs])
    plan = Plan(graph)
    slots = [_slots(graph, x) for x in inputs]
    found = _propagate(graph, plan, {s for group in slots for s in group}, outputs, grad_outputs)
    results = []
    for x, group in zip(inputs, slots, strict=True):
        places = dict.fromkeys(_place(plan, s) for s in group)
        parts = [found[place] for place in places if place in found]
        result = sum(parts[1:], parts[0]) if parts else F.constant(0, x.shape)
        if bind_grad_output:
            x.grad = result.data
        results.append(result)
    return results


def _slots(graph: Graph, x: Variable) -> list[int]:
    """Slots of the graph that stand for x: itself, or leaves over the same data."""
    slot = graph.slot_of(x._value)
    if slot is not None and slot not in graph.leaves:
        return [slot]
    data = x._value.present_data()
    return [
        s
        for s, value in graph.leaves.items()
        if value is x._value or (data is not None and value.present_data() == data)
    ]


def _place(plan: Plan, slot: int) -> Any:
    """Leaves over one gradient storage have their gradient in one place."""
    return ("leaf", plan.gradients[slot]) if slot in plan.gradients else slot


def _propagate(
    graph: Graph, plan: Plan, wanted: set[int], outputs: list[Variable], grad_outputs: Any
) -> dict[Any, Variable]:
    """Run the gradient steps on Variables; gradients by place."""
    gradients: dict[Any, Variable] = {}

    def add(place: Any, gradient: Variable) -> None:
        present = gradients.get(place)
        gradients[place] = gradient if present is None else present + gradient

    for slot, seed in zip(plan.roots, _seeds(outputs, grad_outputs), strict=True):
        add(slot, seed)
    again: dict[int, NdArray] = {}
    for step in plan.gradient_steps(wanted, by_rules=True):
        node = graph.nodes[step.node]
        for made in step.again:
            if graph.nodes[made.node].eager:  # what is static is computed as part of the graph
                with np.errstate(all="ignore"):
                    compute_again(plan, graph.nodes, made._replace(clears=()), again)
        setup = node.setup
        outer = [
            gradients[s] if s >= 0 else F.constant(0, setup.results[i].shape)
            for i, s in enumerate(step.targets)
        ]
        arrays = _variables(node, step.need, forgotten(plan, step.node, again))
        places: dict[int, Contribution] = {c.source: c for c in step.contributions}
        for index, gradient in gradients_by_rules(
            setup, variable_namespace, step.need, arrays, outer, node.operands
        ):
            add(_place(plan, places[index].slot), gradient)
    return gradients


def _variables(
    node: Node, need: tuple[bool, ...], again: dict[int, NdArray]
) -> dict[int, Variable]:
    """The arrays that the rules read, as Variables of the graph, by position.

    Args:
        again: what the node did not keep, computed again.
    """
    kept = {**node.kept_data(), **again}
    n = len(node.sources)
    found = {}
    for position in Reads(node.setup, need).rules:
        value = node.sources[position] if position < n else node.output(position - n)
        assert value is not None
        data = kept.get(position) if node.eager else None
        if data is not None and value.present_data() is None:
            value.hold_weakly(data)
        found[position] = Variable._of(value, data)
    return found


def _seeds(outputs: list[Variable], grad_outputs: Any) -> list[Variable]:
    given = grad_outputs
    if given is None or isinstance(given, Variable | NdArray | np.ndarray) or np.isscalar(given):
        given = [given] * len(outputs)
    if len(given) != len(outputs):
        raise ArgumentError(
            f"[grad] grad_outputs has {len(given)} entries but there are {len(outputs)} outputs"
        )
    return [_seed(y, g) for y, g in zip(outputs, given, strict=True)]


def _seed(y: Variable, given: Any) -> Variable:
    if given is None:
        return F.constant(1, y.shape)
    if np.isscalar(given):
        return F.constant(float(given), y.shape)  # type: ignore[arg-type]
    if given.shape != y.shape:
        raise ShapeError(f"[grad] a grad_output has shape {given.shape} but its output {y.shape}")
    if isinstance(given, Variable):
        return given
    if isinstance(given, NdArray):
        variable = Variable(y.shape)
        variable.data = given
        return variable
    return Variable.from_numpy_array(given)
