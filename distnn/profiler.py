"""Profiler: what the engine has made of a program's graphs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from . import capture
from .errors import GraphError
from .fusion import (
    FusedBackward,
    FusedForward,
    fused_backward,
    fused_forward,
)
from .plan import BackwardStep, ForwardStep, Graph, Plan, plans
from .variable import Variable


def plan_stats() -> dict[str, int]:
    """How often the structure of a graph was known, and what is kept of structures.

    Returns:
        plans: structures whose plan is kept (the least recently used are dropped).
        hits, misses: graphs whose structure had a plan, and that needed a new one. A training loop
            whose graphs are alike makes no misses after its first iterations.
        programs: plans that became straight-line programs (docs/static_and_dynamic.md).
        captured_graphs, captured_bytes: CUDA graphs that programs became, and the memory they hold.

    >>> import distnn as nn, distnn.functions as F
    >>> y = F.tanh(nn.Variable((2, 3)))
    >>> before = nn.profiler.plan_stats()
    >>> y.forward()
    >>> after = nn.profiler.plan_stats()
    >>> after["hits"] + after["misses"] - before["hits"] - before["misses"]
    1
    """
    return plans.stats() | capture.stats()


def capture_report() -> str:
    """What became CUDA graphs, and of the rest why it did not, one line each; for GPUs.

    >>> import distnn as nn
    >>> print(nn.profiler.capture_report())
    <BLANKLINE>
    """
    return capture.report()


def listing(variable: Variable, clear_buffer: bool = False, clear_no_need_grad: bool = True) -> str:
    """What forward and backward of a result do, one line a step, as a person can read it.

    Values are numbered in the order of their creation, leaves when they are first read. A line has
    the numbers of the functions, the values read and written, and what is done. `frees` are values
    whose memory goes after the step, `adds` gradients to which the step adds. Several functions
    in one line are one pass over memory. Lines with `again` compute what was not kept
    (`nn.recompute`), for the line that follows.

    Args:
        clear_buffer, clear_no_need_grad: the flags of forward.
    Raises: GraphError for a leaf.

    >>> import distnn as nn, distnn.functions as F
    >>> x = nn.Variable((2, 3), need_grad=True)
    >>> print(nn.profiler.listing(F.sum(F.tanh(x * 2))))
    forward
       0-1  0 -> 2  mul_scalar, tanh (2, 3)
         2  2 -> 3  sum ()
    backward
         2  d3 -> d2  sum
       1-0  d2, 2 -> d0  tanh, mul_scalar
    """
    if variable.parent is None:
        raise GraphError(
            "[listing] this Variable is a leaf: no function computes it; pass a result"
        )
    plan = plans.plan(Graph([variable._value], upcoming=True))
    forward = _forward(plan, clear_buffer, clear_no_need_grad)
    backward = () if clear_buffer else _backward(plan)
    return "\n".join(["forward", *forward, *(["backward", *backward] if backward else [])])


def _forward(plan: Plan, clear_buffer: bool, clear_no_need_grad: bool) -> Iterator[str]:
    steps = plan.forward(clear_buffer, clear_no_need_grad)
    return _computed(plan, steps)


def _computed(plan: Plan, steps: Sequence[ForwardStep]) -> Iterator[str]:
    gone = {slot for step in steps for slot in step.clears}
    for step in fused_forward(plan, steps, gone):
        members = (step,) if isinstance(step, ForwardStep) else step.steps
        function = step if isinstance(step, ForwardStep) else step.function
        sources, targets = [], []
        if function is not None:
            call = plan.calls[function.node]
            sources, targets = list(call.sources), list(call.targets)
        if isinstance(step, FusedForward):
            sources += [plan.calls[node].sources[i] for node, i in step.inputs]
            targets[:1] = step.outputs
        shape = plan.calls[members[-1].node].setup.results[0].shape
        # What a fused step does not write need not be freed.
        written = {*targets, *sources}
        freed = [s for m in members for s in m.clears if s in written]
        what = f"{_names(plan, members)} {shape}" + (f"  frees {_numbers(freed)}" if freed else "")
        yield _line(members, _numbers(sources), _numbers(targets), what)


def _backward(plan: Plan) -> Iterator[str]:
    seen = {*plan.roots}
    for step in fused_backward(plan, plan.backward(True)):
        members = (step,) if isinstance(step, BackwardStep) else step.steps
        if isinstance(step, FusedBackward):
            reads = [
                f"d{r.slot}" if r.slot >= 0 else str(_kept(plan, r.node, r.position))
                for r in step.inputs
            ]
            found = [members[number].contributions[place] for number, place in step.outputs]
            found += [] if step.function is None else step.function.contributions
        else:
            reads = [f"d{slot}" for slot in step.targets if slot >= 0]
            found = list(step.contributions)
        added = []
        for c in found:
            place = c.slot if not c.leaf else ("leaf", plan.gradients[c.slot])
            added += [c.slot] if place in seen else []
            seen.add(place)  # type: ignore[arg-type]
        yield from (f"again{line}" for m in members for line in _computed(plan, m.again))
        what = _names(plan, members)
        what += f"  adds {', '.join(f'd{slot}' for slot in added)}" if added else ""
        targets = ", ".join(f"d{c.slot}" for c in found)
        yield _line(members, ", ".join(reads), targets, what)


def _kept(plan: Plan, node: int, position: int) -> int | str:
    """The slot at a position of a call; a saved result has none."""
    call = plan.calls[node]
    slots = (*call.sources, *call.targets)
    return slots[position] if position < len(slots) else "saved"


def _names(plan: Plan, members: Sequence[ForwardStep] | Sequence[BackwardStep]) -> str:
    return ", ".join(plan.calls[member.node].setup.function.name for member in members)


def _numbers(slots: Sequence[int]) -> str:
    return ", ".join("-" if slot < 0 else str(slot) for slot in slots)


def _line(
    members: Sequence[ForwardStep] | Sequence[BackwardStep], reads: str, writes: str, what: str
) -> str:
    first, last = members[0].node, members[-1].node
    nodes = str(first) if first == last else f"{first}-{last}"
    return f"{nodes:>6}  {reads} -> {writes}  {what}"
