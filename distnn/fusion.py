"""Fusion: which neighbouring steps of a plan are one chain of formulas.

Elementwise functions that follow each other, with results of one shape, are computed in one pass:
what is between them and wanted by nobody else is never written to memory. In backward the same
holds for their gradients. The bits stay those of the functions one by one (formula_chain.py).

A function that is no formula can compute, with its own first result, the chain that follows it
(batch normalization and its activation), and with its gradients the chain of gradients that comes
before them. What carries the function out (function.py) says so; both ways are extra, and a room
without them has no such methods:

    joins(chain) -> bool
        Whether `forward_joined` takes this chain. Its first array is the function's first result,
        rounded to the dtype of results; where others want that too, a link of the chain copies it.
    forward_joined(xp, *inputs, joined, **options)
        As `forward`, but computes the outputs of `joined` (formula_chain.Joined) in place of the
        first result: that is None in `out`, if the function has several results, and in what is
        returned. A function with one result is given no `out`, and what it returns is of no matter.
    joins_input(chain) -> bool
        Whether `forward_joined_input` takes this chain (a reduction). Its first output is the
        function's first input.
    forward_joined_input(xp, *inputs, joined, **options)
        As `forward`, but computes that input, which is None, itself, and writes the chain's other
        outputs. Arrays of the chain may broadcast to that input.
    joins_backward(chain) -> bool
        Whether `backward_joined` takes this chain. Its first output is the gradient of the
        function's first result.
    backward_joined(xp, need, *reads, joined, out)
        As `backward`, which the function has to have, but computes that gradient, which is None
        among `reads`, itself, and writes the chain's other outputs.

But for these all arrays of `joined` have shape and dtype of the function's first result, and lie
C-contiguous in memory. One of `joined.outs` may be the memory of one of `joined.arrays`; else
nothing overlaps.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from typing import NamedTuple

from .formula import Formula
from .formula_chain import Chain, Link, renamed
from .function import Binding, Kind, Rule, Setup
from .plan import BackwardStep, ForwardStep, Plan
from .structure import Call

# A kernel of many arrays has few registers for each; and a chain is read by people.
_MOST_LINKS = 16
_MOST_ARRAYS = 12


class Number(NamedTuple):
    """A number that a chain reads: an operand of a node."""

    node: int
    operand: str


class FusedForward(NamedTuple):
    """Steps of a forward as one: a chain, and maybe a function.

    That is the first of `steps`, to whose result the chain is applied; or the last, whose first
    input is the chain's first output, which then is not among `outputs`.
    """

    function: ForwardStep | None
    steps: tuple[ForwardStep, ...]
    chain: Chain
    inputs: tuple[tuple[int, int], ...]  # (node, number of its input) of each array of the chain
    outputs: tuple[int, ...]  # slots
    inplace: int | None  # the slot whose memory takes the only output
    numbers: tuple[Number, ...]

    @property
    def makes_input(self) -> bool:
        """Whether the chain makes the function's input."""
        return self.function is not None and self.function is self.steps[-1]


class _Draft:
    """A chain in the making."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.arrays: dict[object, str] = {}  # what is read -> its name in the chain
        self.numbers: dict[Number, str] = {}
        self.results: dict[object, str] = {}  # what links compute -> its name
        self.copies: dict[object, str] = {}  # what links copy -> the copy's name

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

    def copy(self, result: object, name: str) -> None:
        """A link for what has a name already; the name stays what others read."""
        target = f"v{len(self.links)}"
        self.links.append(Link(target, ast.Name(name)))
        self.copies[result] = target

    def chain(self, outputs: Sequence[object]) -> Chain:
        named = {**self.results, **self.copies}
        wanted = [named[output] for output in outputs]
        return Chain(self.links, [*self.arrays.values()], [*self.numbers.values()], wanted)

    def chain_into(self, taken: object, outputs: Sequence[object]) -> Chain:
        """A chain whose first output is `taken`, which may be among the others, too."""
        if taken in outputs:
            self.copy(taken, self.results[taken])
        chain = self.chain(outputs)
        wanted = (self.results[taken], *chain.outputs)
        return Chain(chain.links, chain.arrays, chain.numbers, wanted)


def formula_of(setup: Setup) -> Formula | None:
    """The formula of an elementwise function that is carried out by its formula."""
    function = setup.function
    return function.formula if setup.implementation is function else None


# -- forward ---------------------------------------------------------------------------------------


def fused_forward(
    plan: Plan, steps: Sequence[ForwardStep], gone: set[int]
) -> list[ForwardStep | FusedForward]:
    """The steps, with fused ones in place of those that can be.

    Args:
        gone: slots that are cleared before the forward ends.
    """
    readers: dict[int, set[int]] = {}
    for step in steps:
        for slot in plan.calls[step.node].sources:
            readers.setdefault(slot, set()).add(step.node)
    found: list[ForwardStep | FusedForward] = []
    first = 0
    while first < len(steps):
        last = first + 1
        while last < len(steps) and _joins(plan, steps[first:last], steps[last]):
            last += 1
        fused = None
        if last < len(steps):
            fused = _before_function(plan, steps[first : last + 1], gone, readers)
            last += fused is not None
        while fused is None and last > first + 1:
            fused = _forward_chain(plan, steps[first:last], gone, readers)
            last -= fused is None
        found.append(steps[first] if fused is None else fused)
        first = last
    return found


def _joins(plan: Plan, group: Sequence[ForwardStep], step: ForwardStep) -> bool:
    """Whether a step reads what the group computes, and can be computed with it."""
    call, first = plan.calls[step.node], plan.calls[group[0].node]
    made = {plan.calls[member.node].targets[0] for member in group}
    members = [plan.calls[member.node] for member in (*group, step)]
    if formula_of(first.setup) is None:
        if not _may_follow(call, first, made):
            return False
        members = members[1:]
    elif not first.setup.backend.chains_formulas:
        return False
    return (
        len(group) < _MOST_LINKS
        and formula_of(call.setup) is not None
        and call.setup.results[0] == first.setup.results[0]
        and not made.isdisjoint(call.sources)
        and sum(len(member.sources) for member in members) <= _MOST_ARRAYS
    )


def _may_follow(call: Call, first: Call, made: set[int]) -> bool:
    """Whether a formula of a function's first result can be computed with the function."""
    setup = first.setup
    result = setup.results[0]
    if not hasattr(setup.implementation, "joins"):
        return False
    # The other arrays are read before the function's effects.
    for name in setup.declaration.updates:
        shape = setup.shapes[f"{name}_shape"]
        if shape is not None and math.prod(shape) == result.size:
            return False
    return all(
        shape == result.shape and (slot in made or slot not in first.targets)
        for slot, shape in zip(call.sources, call.setup.input_shapes, strict=True)
    )


def _before_function(
    plan: Plan, group: Sequence[ForwardStep], gone: set[int], readers: dict[int, set[int]]
) -> FusedForward | None:
    """Formulas and the function after them as one; None where it does not take them."""
    *formulas, last = group
    first, call = plan.calls[formulas[0].node], plan.calls[last.node]
    setup = call.setup
    made = {plan.calls[member.node].targets[0] for member in formulas}
    if (
        formula_of(first.setup) is None
        or not first.setup.backend.chains_formulas
        or not hasattr(setup.implementation, "joins_input")
        or call.sources[0] not in made
        or not made.isdisjoint(call.sources[1:])
    ):
        return None
    return _forward_chain(plan, group, gone, readers, last)


def _forward_chain(
    plan: Plan,
    group: Sequence[ForwardStep],
    gone: set[int],
    readers: dict[int, set[int]],
    last: ForwardStep | None = None,
) -> FusedForward | None:
    """The steps as one; None where what they compute is not wanted, or the function declines.

    Args:
        last: the last of them, if it is a function whose input the others compute.
    """
    draft = _Draft()
    inputs: dict[object, tuple[int, int]] = {}
    nodes = {step.node for step in group}
    setup = plan.calls[group[0].node].setup
    function = group[0] if formula_of(setup) is None else None
    outputs = []
    for step in group if last is None else group[:-1]:
        call = plan.calls[step.node]
        target = call.targets[0]
        wanted = target not in gone or not readers.get(target, set()) <= nodes
        if step is function:
            name = draft.array(target)
            if wanted:
                draft.copy(target, name)
        else:
            names = {}
            formula = formula_of(call.setup)
            assert formula is not None
            arrays = call.setup.declaration.inputs
            for i, (name, slot) in enumerate(zip(arrays, call.sources, strict=True)):
                if name in formula.arrays:
                    names[name] = draft.array(slot)
                    inputs.setdefault(slot, (step.node, i))
            for operand in formula.numbers:
                names[operand] = draft.number(Number(step.node, operand))
            draft.link(target, formula, names)
        if wanted:
            outputs.append(target)
    if last is not None:
        function, setup = last, plan.calls[last.node].setup
        chain = draft.chain_into(plan.calls[last.node].sources[0], outputs)
        if not setup.implementation.joins_input(chain):
            return None
    elif not outputs:
        return None
    else:
        chain = draft.chain(outputs)
        if function is not None and not setup.implementation.joins(chain):
            return None
    read = list(draft.arrays)[0 if function is None or last is not None else 1 :]
    cleared = {slot for step in group for slot in step.clears}
    result = plan.calls[group[0].node].setup.results[0]
    # The only output is that of the last link: when it is written, others have been read.
    own = () if function is None else plan.calls[function.node].sources
    slots = [
        slot
        for slot in read
        if isinstance(slot, int) and slot not in own and plan.may_become(slot, result, cleared)
    ]
    return FusedForward(
        function,
        tuple(group),
        chain,
        tuple(inputs[slot] for slot in read),
        tuple(outputs),
        slots[0] if len(outputs) == 1 and slots else None,
        tuple(draft.numbers),
    )


# -- backward --------------------------------------------------------------------------------------


class Read(NamedTuple):
    """An array that a chain of gradients reads: a gradient of a slot, or what a node has kept."""

    slot: int  # -1 for what a node has kept
    node: int = -1
    position: int = -1
    again: bool = False  # to compute the node's result again


class FusedBackward(NamedTuple):
    """Steps of a backward as one: a chain, and maybe the function whose result's gradient it makes.

    That gradient is the chain's first output and is not among `outputs`.
    """

    function: BackwardStep | None  # the last of `steps`
    steps: tuple[BackwardStep, ...]
    chain: Chain
    inputs: tuple[Read, ...]
    outputs: tuple[tuple[int, int], ...]  # (number of the step, of its contribution)
    numbers: tuple[Number, ...]
    again: tuple[ForwardStep, ...]  # what the chain computes again, in place of a pass before it


def separately(step: BackwardStep | FusedBackward, member: BackwardStep) -> Sequence[ForwardStep]:
    """What is computed again before a pass, of what one of its steps reads."""
    if isinstance(step, BackwardStep):
        return member.again
    return [made for made in member.again if made not in step.again]


def fused_backward(plan: Plan, steps: Sequence[BackwardStep]) -> list[BackwardStep | FusedBackward]:
    """The steps, with fused ones in place of those that can be."""
    additions: dict[int, int] = {}  # slot -> number of contributions to its gradient
    for step in steps:
        for c in step.contributions:
            additions[c.slot] = additions.get(c.slot, 0) + 1
    found: list[BackwardStep | FusedBackward] = []
    first = 0
    while first < len(steps):
        last = first + 1
        while last < len(steps) and _follows(plan, steps[first:last], steps[last], additions):
            last += 1
        group = steps[first:last]
        with_function = None
        if last < len(steps):
            with_function = _with_function(plan, group, steps[last], additions)
        if with_function is not None:
            group = group[: 1 - len(with_function.steps)]
            last += 1
        found += _chained(plan, group)
        found += [] if with_function is None else [with_function]
        first = last
    return found


def _chained(plan: Plan, group: Sequence[BackwardStep]) -> Sequence[BackwardStep | FusedBackward]:
    """Steps that follow each other as one, where formulas are chained."""
    if not group or not plan.calls[0].setup.backend.chains_formulas:
        return group
    if len(group) < 2 and (rules_of(plan, group[0]) is None or not _merged(plan, group)):
        return group
    return [_backward_chain(plan, group, None)]


def rules_of(plan: Plan, step: BackwardStep) -> list[tuple[int, Rule, list[Binding]]] | None:
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
    rules = rules_of(plan, step)
    return (
        len(group) < _MOST_LINKS // 2
        and rules is not None
        and rules_of(plan, group[-1]) is not None
        and call.setup.results == last.setup.results
        and step.targets[0] in made
        and additions[step.targets[0]] == 1
        and sum(len(plan.calls[s.node].sources) + 2 for s in (*group, step)) <= 2 * _MOST_ARRAYS
    )


def _with_function(
    plan: Plan, group: Sequence[BackwardStep], step: BackwardStep, additions: dict[int, int]
) -> FusedBackward | None:
    """A function's step and as many before it as it can take: they alone make its gradient."""
    call = plan.calls[step.node]
    setup, slot = call.setup, step.targets[0]
    if (
        rules_of(plan, group[-1]) is None
        or not hasattr(setup.implementation, "joins_backward")
        or not setup.reads(step.need).fast
        or plan.calls[group[-1].node].setup.results[0] != setup.results[0]
        or additions.get(slot) != 1
    ):
        return None
    for first in range(len(group)):
        made = {c.slot for member in group[first:] for c in member.contributions if not c.leaf}
        if slot in made:
            fused = _backward_chain(plan, group[first:], step)
            same = {_shape_of(plan, read) for read in fused.inputs} == {setup.results[0].shape}
            if same and setup.implementation.joins_backward(fused.chain):
                return fused
    return None


def _shape_of(plan: Plan, read: Read) -> tuple[int, ...] | None:
    """The shape of what a chain of gradients reads."""
    k = plan.producer[read.slot] if read.node < 0 else read.node
    setup = plan.calls[k].setup
    if read.node < 0:
        return setup.results[read.slot - plan.calls[k].targets[0]].shape
    return (*setup.input_shapes, *(spec.shape for spec in setup.results))[read.position]


def _merged(plan: Plan, group: Sequence[BackwardStep]) -> tuple[ForwardStep, ...]:
    """What steps need computed again, if that is formulas which nobody else needs; or nothing."""
    found = tuple(made for step in group for made in step.again)
    spec = plan.calls[group[0].node].setup.results[0]
    slots = {plan.calls[made.node].targets[0] for made in found}
    dropped = {slot for step in group for slot in step.drops}
    dropped.update(slot for made in found for slot in made.clears)
    for made in found:
        call = plan.calls[made.node]
        hidden = {slot for slot in call.sources if slot in plan.forgotten}
        if formula_of(call.setup) is None or call.setup.results[0] != spec or not hidden <= slots:
            return ()
    return found if slots <= dropped else ()


def _backward_chain(
    plan: Plan, group: Sequence[BackwardStep], function: BackwardStep | None
) -> FusedBackward:
    draft = _Draft()
    again = _merged(plan, group)
    computed: dict[int, object] = {}  # slot -> what computes it again
    kept: dict[int, Read] = {}  # slot -> where it is read, of the nodes that kept it

    def source_of(read: Read) -> object:
        if read.node < 0:
            return read
        call = plan.calls[read.node]
        slots = (*call.sources, *call.targets)
        slot = slots[read.position] if read.position < len(slots) else -1
        if slot < 0 or slot in plan.leaves:
            return read
        return computed.get(slot) or kept.setdefault(slot, read)

    for made in again:
        call = plan.calls[made.node]
        formula = formula_of(call.setup)
        assert formula is not None
        names = {number: draft.number(Number(made.node, number)) for number in formula.numbers}
        for i, name in enumerate(call.setup.declaration.inputs):
            if name in formula.arrays:
                names[name] = draft.array(source_of(Read(-1, made.node, i, True)))
        computed[call.targets[0]] = made
        draft.link(made, formula, names)
    # Their gradients are read by nobody else.
    inside = {step.targets[0] for step in group[1:]}
    taken = -1 if function is None else function.targets[0]
    outputs = []
    results: list[object] = []
    for number, step in enumerate(group):
        rules = rules_of(plan, step)
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
                    names[binding.name] = draft.array(source_of(_read(binding, step)))
            inner = c.slot in {*inside, taken} and not c.leaf
            result: object = Read(c.slot) if inner else (number, place)
            draft.link(result, rule.formula, names)
            if not inner:
                outputs.append((number, place))
                results.append(result)
    inputs = tuple(source for source in draft.arrays if isinstance(source, Read))
    chain = draft.chain([*([] if function is None else [Read(taken)]), *results])
    steps = (*group, *([] if function is None else [function]))
    numbers = tuple(draft.numbers)
    return FusedBackward(function, steps, chain, inputs, tuple(outputs), numbers, again)


def _read(binding: Binding, step: BackwardStep) -> Read:
    if binding.kind is Kind.OUTER:
        return Read(step.targets[binding.key])
    return Read(-1, step.node, binding.key)
