"""Liveness: which arrays an iteration makes, and from which step to which they live.

The steps are those of the programs of forward and of backward(clear_buffer=True): what is between
the functions of one pass over memory is never there. Leaves, their gradients and what a function
allocates for itself while it runs are no part of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .arena import Span
from .function import Setup, Spec
from .fusion import FusedBackward, FusedForward, fused_backward, fused_forward, separately
from .plan import BackwardStep, Contribution, ForwardStep, Plan


class Buffer(NamedTuple):
    """An array of an iteration."""

    span: Span
    what: str
    slot: int  # the value it holds; -1 for others
    forward: bool  # forward makes it


class Iteration(NamedTuple):
    """The steps of a forward and a backward, and the arrays that live in them."""

    steps: tuple[str, ...]
    buffers: tuple[Buffer, ...]

    @property
    def spans(self) -> list[Span]:
        return [buffer.span for buffer in self.buffers]


class _Draft:
    """An array whose life is being followed."""

    __slots__ = ("first", "forward", "last", "nbytes", "slot", "what")

    def __init__(self, nbytes: int, first: int, what: str, slot: int, forward: bool) -> None:
        self.nbytes = nbytes
        self.first = self.last = first
        self.what = what
        self.slot = slot
        self.forward = forward


def iteration(plan: Plan, clear_buffer: bool = False, clear_no_need_grad: bool = True) -> Iteration:
    """What forward with these flags makes, and, unless it clears all, backward."""
    walk = _Walk(plan)
    walk.forward(plan.forward(clear_buffer, clear_no_need_grad))
    if not clear_buffer:
        walk.backward(plan.backward(True))
    end = len(walk.steps) - 1
    for draft in (*walk.values.values(), *walk.gradients.values()):  # nobody has freed them
        draft.last = end
    buffers = (
        Buffer(Span(d.nbytes, d.first, d.last), d.what, d.slot, d.forward) for d in walk.drafts
    )
    return Iteration(tuple(walk.steps), tuple(buffers))


class _Walk:
    """Follows the steps as the programs take them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.steps: list[str] = []
        self.drafts: list[_Draft] = []
        self.values: dict[int, _Draft] = {}  # by slot; several where they share memory
        self.saved: dict[tuple[int, int], _Draft] = {}  # by call and position
        self.gradients: dict[int, _Draft] = {}  # of intermediate values, by slot
        self.is_forward = True

    def make(self, spec: Spec, what: str, slot: int = -1) -> _Draft:
        """An array that is made in the present step."""
        nbytes = math.prod(spec.shape) * spec.dtype.itemsize
        draft = _Draft(nbytes, len(self.steps) - 1, what, slot, self.is_forward)
        self.drafts.append(draft)
        return draft

    def scratch(self, setup: Setup) -> None:
        if setup.scratch:
            draft = _Draft(setup.scratch, len(self.steps) - 1, "scratch", -1, self.is_forward)
            self.drafts.append(draft)

    def let_go(self, held: dict[int, _Draft], slots: Iterable[int]) -> None:
        for slot in slots:
            draft = held.pop(slot, None)
            if draft is not None:
                draft.last = max(draft.last, len(self.steps) - 1)

    # -- forward ------------------------------------------------------------------------------

    def forward(self, steps: Sequence[ForwardStep], again: bool = False) -> None:
        plan = self.plan
        gone = {slot for step in steps for slot in step.clears}
        for step in fused_forward(plan, steps, gone):
            members = (step,) if isinstance(step, ForwardStep) else step.steps
            names = ", ".join(plan.calls[m.node].setup.function.name for m in members)
            self.steps.append(f"{'again ' if again else 'forward '}{names}")
            function = step if isinstance(step, ForwardStep) else step.function
            if function is not None:
                joined = isinstance(step, FusedForward) and not step.makes_input
                self.call(function, again, joined)
            if isinstance(step, FusedForward):
                self.chain(step)
            self.let_go(self.values, [s for member in members for s in member.clears])

    def chain(self, step: FusedForward) -> None:
        for slot in step.outputs:
            if step.inplace is None:
                self.values[slot] = self.make(self.spec(slot), f"value {slot}", slot)
            else:
                self.values[slot] = self.values[step.inplace]

    def call(self, step: ForwardStep, again: bool, joined: bool) -> None:
        """A function; `joined` to a chain it does not write its first result."""
        call = self.plan.calls[step.node]
        setup = call.setup
        if setup.function.alias:
            source = self.values.get(call.sources[0])
            if source is not None:  # else it is a leaf's memory, or was kept
                self.values[call.targets[0]] = source
            return
        self.scratch(setup)
        for i, spec in enumerate(setup.results):
            position = len(call.sources) + i
            if i == 0 and joined:
                continue
            if i >= len(call.targets):
                draft = self.make(spec, f"saved by {setup.function.name}")
                if again and (step.node, position) in self.plan.saved_slots:
                    self.values[self.plan.saved_slots[step.node, position]] = draft
                elif not again and position in self.plan.kept[step.node]:
                    self.saved[step.node, position] = draft
                continue
            slot = call.targets[i]
            if step.inplace is not None:
                self.values[slot] = self.values[call.sources[step.inplace]]
                continue
            draft = self.make(spec, f"value {slot}", slot)
            if not again or slot in self.plan.forgotten:
                self.values[slot] = draft

    def spec(self, slot: int) -> Spec:
        k = self.plan.producer[slot]
        call = self.plan.calls[k]
        return call.setup.results[slot - call.targets[0]]

    # -- backward -----------------------------------------------------------------------------

    def backward(self, steps: Sequence[BackwardStep]) -> None:
        plan = self.plan
        self.is_forward = False
        if not steps:
            return
        for number, step in enumerate(fused_backward(plan, steps)):
            members = (step,) if isinstance(step, BackwardStep) else step.steps
            for member in members:
                self.forward(separately(step, member), True)
            names = ", ".join(plan.calls[m.node].setup.function.name for m in members)
            self.steps.append(f"backward {names}")
            if number == 0:
                for root in plan.roots:
                    self.gradients[root] = self.make(self.spec(root), f"gradient of {root}")
            function = step if isinstance(step, BackwardStep) else step.function
            if isinstance(step, FusedBackward):
                done = [r.slot for r in step.inputs if r.slot >= 0]
                for n, place in step.outputs:
                    self.contribute(members[n].node, members[n].contributions[place], True)
            else:
                done = []
            if function is not None:
                done += [slot for slot in function.targets if slot >= 0]
                self.scratch(plan.calls[function.node].setup)
                for contribution in function.contributions:
                    self.contribute(function.node, contribution, False)
            self.let_go(self.gradients, done)
            for member in members:
                self.let_go(self.values, (*member.clears, *member.drops))
                self.release(member.node)

    def contribute(self, k: int, c: Contribution, written_in_place: bool) -> None:
        call = self.plan.calls[k]
        setup = call.setup
        reads_fast = setup.declaration.backward_reads is not None
        if c.leaf and c.first and (reads_fast or written_in_place):
            return  # straight into the leaf's gradient
        if setup.function.alias and not c.leaf and c.slot not in self.gradients:
            self.gradients[c.slot] = self.gradients[call.targets[0]]
            return
        shape = setup.input_shapes[c.source] or ()
        made = self.make(Spec(shape, setup.backend.dtype), f"gradient of {c.slot}")
        if not c.leaf and c.slot not in self.gradients:
            self.gradients[c.slot] = made

    def release(self, k: int) -> None:
        """A node lets go of what it has kept."""
        for key in [key for key in self.saved if key[0] == k]:
            self.saved.pop(key).last = len(self.steps) - 1
