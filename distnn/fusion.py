"""Fusion: which neighbouring steps of a plan are one chain of formulas.

Elementwise functions that follow each other, with results of one shape, are computed in one pass:
what is between them and wanted by nobody else is never written to memory. In backward the same
holds for their gradients. The bits stay those of the functions one by one (formula_chain.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .formula import Formula
from .formula_chain import Chain, Link, renamed
from .function import Binding, Kind, Rule, Setup
from .plan import BackwardStep, ForwardStep, Plan

# A kernel of many arrays has few registers for each; and a chain is read by people.
_MOST_LINKS = 16
_MOST_ARRAYS = 12


class Number(NamedTuple):
    """A number that a chain reads: an operand of a node."""

    node: int
    operand: str


class FusedForward(NamedTuple):
    """Steps of a forward as one chain."""

    steps: tuple[ForwardStep, ...]
    chain: Chain
    inputs: tuple[tuple[int, int], ...]  # (node, number of its input) of each array of the chain
    outputs: tuple[int, ...]  # slots
    inplace: int | None  # the slot whose memory takes the only output
    numbers: tuple[Number, ...]


class FusedRelu(NamedTuple):
    """A function, an addition to its first result (or none) and relu, which the function does too.

    What carries the function out has a method for it: `relu`, or `add_relu` with the other summand
    as its last input.
    """

    steps: tuple[ForwardStep, ...]
    method: str
    other: int | None  # slot of the other summand
    target: int  # slot of the last result


class _Draft:
    """A chain in the making."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.arrays: dict[object, str] = {}  # what is read -> its name in the chain
        self.numbers: dict[Number, str] = {}
        self.results: dict[object, str] = {}  # what links compute -> its name

    def array(self, source: object) -> str:
        if source in self.results:
            return self.results[source]
        return self.arrays.setdefault(source, f"a{len(self.arrays)}")

    def number(self, number: Number) -> str:
        return self.numbers.setdefault(number, f"n{len(self.numbers)}")

    def link(self, result: object, formula: Formula, names: dict[str, str]) -> None:
        target = f"v{len(self.links)}"
        self.links.append(Link(target, renamed(formula, names)))
        self.results[result] = target

    def chain(self, outputs: Sequence[object]) -> Chain:
        wanted = [self.results[output] for output in outputs]
        return Chain(self.links, [*self.arrays.values()], [*self.numbers.values()], wanted)


def formula_of(setup: Setup) -> Formula | None:
    """The formula of an elementwise function that is carried out by its formula."""
    function = setup.function
    return function.formula if setup.implementation is function else None


# -- forward ---------------------------------------------------------------------------------------


def fused_forward(
    plan: Plan, steps: Sequence[ForwardStep], gone: set[int]
) -> list[ForwardStep | FusedForward | FusedRelu]:
    """The steps, with fused ones in place of those that can be.

    Args:
        gone: slots that are cleared before the forward ends.
    """
    if not plan.calls[0].setup.backend.chains_formulas:
        return list(steps)
    readers: dict[int, set[int]] = {}
    for step in steps:
        for slot in plan.calls[step.node].sources:
            readers.setdefault(slot, set()).add(step.node)
    found: list[ForwardStep | FusedForward | FusedRelu] = []
    group: list[ForwardStep] = []
    joined = 0  # steps that the last function does too
    for number, step in enumerate(steps):
        if joined:
            joined -= 1
            continue
        fused = _with_relu(plan, steps, number, gone, readers)
        if fused is not None:
            found += [*(_forward_chain(plan, group, gone, readers) if group else []), fused]
            group, joined = [], len(fused.steps) - 1
            continue
        if group and not _joins(plan, group, step):
            found += _forward_chain(plan, group, gone, readers)
            group = []
        group.append(step)
    return found + (_forward_chain(plan, group, gone, readers) if group else [])


def _with_relu(
    plan: Plan,
    steps: Sequence[ForwardStep],
    number: int,
    gone: set[int],
    readers: dict[int, set[int]],
) -> FusedRelu | None:
    """The step and what follows, where the function can do that too."""
    step = steps[number]
    call = plan.calls[step.node]
    target, other = call.targets[0], None
    method = "relu"
    used = [step]
    for after in steps[number + 1 : number + 3]:
        follower = plan.calls[after.node]
        setup = follower.setup
        if (
            formula_of(setup) is None
            or target not in gone
            or readers.get(target) != {after.node}
            or setup.results[0] != call.setup.results[0]
        ):
            return None
        used.append(after)
        if setup.function.name == "relu":
            if not hasattr(call.setup.implementation, method):
                return None
            return FusedRelu(tuple(used), method, other, follower.targets[0])
        summands = [slot for slot in follower.sources if slot != target]
        # A sum in half precision is rounded before relu, which the function does not do. And the
        # other summand has to be there already.
        if (
            setup.function.name != "add2"
            or other is not None
            or len(summands) != 1
            or setup.input_shapes[0] != setup.input_shapes[1]
            or setup.results[0].dtype.char not in "fd"
            or plan.producer.get(summands[0], -1) > step.node
        ):
            return None
        method, other, target = "add_relu", summands[0], follower.targets[0]
    return None


def _joins(plan: Plan, group: Sequence[ForwardStep], step: ForwardStep) -> bool:
    """Whether a step reads what the group computes, and can be computed with it."""
    call, last = plan.calls[step.node], plan.calls[group[-1].node]
    made = {slot for member in group for slot in plan.calls[member.node].targets}
    return (
        len(group) < _MOST_LINKS
        and formula_of(call.setup) is not None
        and formula_of(last.setup) is not None
        and call.setup.results == last.setup.results
        and not made.isdisjoint(call.sources)
        and sum(len(plan.calls[m.node].sources) for m in (*group, step)) <= _MOST_ARRAYS
    )


def _forward_chain(
    plan: Plan, group: Sequence[ForwardStep], gone: set[int], readers: dict[int, set[int]]
) -> list[ForwardStep | FusedForward]:
    if len(group) == 1:
        return list(group)
    draft = _Draft()
    inputs: dict[object, tuple[int, int]] = {}
    nodes = {step.node for step in group}
    outputs = []
    for step in group:
        call = plan.calls[step.node]
        declaration = call.setup.declaration
        formula = formula_of(call.setup)
        assert formula is not None
        names = {}
        for i, (name, slot) in enumerate(zip(declaration.inputs, call.sources, strict=True)):
            if name in formula.arrays:
                names[name] = draft.array(slot)
                inputs.setdefault(slot, (step.node, i))
        for operand in formula.numbers:
            names[operand] = draft.number(Number(step.node, operand))
        target = call.targets[0]
        draft.link(target, formula, names)
        if target not in gone or not readers.get(target, set()) <= nodes:
            outputs.append(target)
    if not outputs:
        return list(group)
    read = tuple(inputs[slot] for slot in draft.arrays)
    cleared = {slot for step in group for slot in step.clears}
    result = plan.calls[group[-1].node].setup.results[0]
    # The only output is that of the last link: when it is written, others have been read.
    slots = [s for s in draft.arrays if isinstance(s, int) and plan.may_become(s, result, cleared)]
    return [
        FusedForward(
            tuple(group),
            draft.chain(outputs),
            read,
            tuple(outputs),
            slots[0] if len(outputs) == 1 and slots else None,
            tuple(draft.numbers),
        )
    ]


# -- backward --------------------------------------------------------------------------------------


class Read(NamedTuple):
    """An array that a chain of gradients reads: a gradient of a slot, or what a node has kept."""

    slot: int  # -1 for what a node has kept
    node: int = -1
    position: int = -1


class FusedBackward(NamedTuple):
    """Steps of a backward as one chain."""

    steps: tuple[BackwardStep, ...]
    chain: Chain
    inputs: tuple[Read, ...]
    outputs: tuple[tuple[int, int], ...]  # (number of the step, of its contribution)
    numbers: tuple[Number, ...]


class FusedReluBackward(NamedTuple):
    """Backward of relu, and of the function before it, whose `relu_backward` does both."""

    steps: tuple[BackwardStep, BackwardStep]
    result: int  # position of relu's result in what its node has kept


def fused_backward(
    plan: Plan, steps: Sequence[BackwardStep]
) -> list[BackwardStep | FusedBackward | FusedReluBackward]:
    """The steps, with fused ones in place of those that can be."""
    if not plan.calls[0].setup.backend.chains_formulas:
        return list(steps)
    additions: dict[int, int] = {}  # slot -> number of contributions to its gradient
    for step in steps:
        for c in step.contributions:
            additions[c.slot] = additions.get(c.slot, 0) + 1
    found: list[BackwardStep | FusedBackward | FusedReluBackward] = []
    group: list[BackwardStep] = []
    for step in steps:
        if len(group) == 1 and _is_of_relu(plan, group[0], step, additions):
            found.append(FusedReluBackward((group[0], step), 1))
            group = []
            continue
        if group and not _follows(plan, group, step, additions):
            found += _backward_chain(plan, group)
            group = []
        group.append(step)
    return found + (_backward_chain(plan, group) if group else [])


def _rules(plan: Plan, step: BackwardStep) -> list[tuple[int, Rule, list[Binding]]] | None:
    """The rules of a step all of whose gradients are formulas of its result's shape."""
    setup = plan.calls[step.node].setup
    reads = setup.reads(step.need)
    if reads.fast or formula_of(setup) is None or -1 in step.targets:
        return None
    shape = setup.results[0].shape
    for index, rule, _ in reads.by_rules:
        if rule.formula is None or setup.input_shapes[index] != shape:
            return None
    return reads.by_rules


def _follows(
    plan: Plan, group: Sequence[BackwardStep], step: BackwardStep, additions: dict[int, int]
) -> bool:
    """Whether a step's incoming gradient comes from the group alone, and is a formula of it."""
    made = {c.slot for member in group for c in member.contributions if not c.leaf}
    last, call = plan.calls[group[-1].node], plan.calls[step.node]
    rules = _rules(plan, step)
    return (
        len(group) < _MOST_LINKS // 2
        and rules is not None
        and _rules(plan, group[-1]) is not None
        and call.setup.results == last.setup.results
        and step.targets[0] in made
        and additions[step.targets[0]] == 1
        and sum(len(plan.calls[s.node].sources) + 2 for s in (*group, step)) <= 2 * _MOST_ARRAYS
    )


def _is_of_relu(
    plan: Plan, relu: BackwardStep, step: BackwardStep, additions: dict[int, int]
) -> bool:
    """Whether `relu` is that, and hands its gradient to a function that does both."""
    call, before = plan.calls[relu.node], plan.calls[step.node]
    slot = call.sources[0]
    return (
        call.setup.function.name == "relu"
        and _rules(plan, relu) is not None
        and hasattr(before.setup.implementation, "relu_backward")
        and before.setup.reads(step.need).fast
        and slot == step.targets[0] == before.targets[0]
        and additions[slot] == 1
        and not relu.contributions[0].leaf
    )


def _backward_chain(
    plan: Plan, group: Sequence[BackwardStep]
) -> list[BackwardStep | FusedBackward | FusedReluBackward]:
    if len(group) == 1:
        return list(group)
    draft = _Draft()
    inside = {step.targets[0] for step in group[1:]}  # their gradients are read by nobody else
    outputs = []
    results: list[object] = []
    for number, step in enumerate(group):
        rules = _rules(plan, step)
        assert rules is not None
        for place, (c, (_, rule, bindings)) in enumerate(
            zip(step.contributions, rules, strict=True)
        ):
            names = {}
            assert rule.formula is not None
            for binding in bindings:
                if binding.name in rule.formula.numbers:
                    names[binding.name] = draft.number(Number(step.node, binding.name))
                elif binding.name in rule.formula.arrays:
                    names[binding.name] = draft.array(_read(binding, step))
            inner = c.slot in inside and not c.leaf
            result: object = Read(c.slot) if inner else (number, place)
            draft.link(result, rule.formula, names)
            if not inner:
                outputs.append((number, place))
                results.append(result)
    inputs = tuple(source for source in draft.arrays if isinstance(source, Read))
    chain = draft.chain(results)
    return [FusedBackward(tuple(group), chain, inputs, tuple(outputs), tuple(draft.numbers))]


def _read(binding: Binding, step: BackwardStep) -> Read:
    if binding.kind is Kind.OUTER:
        return Read(step.targets[binding.key])
    return Read(-1, step.node, binding.key)
