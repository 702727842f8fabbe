"""Profiler: what the engine has made of a program's graphs."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from . import capture
from .arena import aligned, live_bytes, offsets
from .errors import GraphError
from .fusion import (
    FusedBackward,
    FusedForward,
    fused_backward,
    fused_forward,
    separately,
)
from .liveness import iteration
from .memory import pool
from .memory_budget import current_budget, fitting
from .plan import BackwardStep, ForwardStep, Plan, plans
from .record import current_record
from .rematerialization import sparing
from .structure import Graph
from .variable import Variable


def plan_stats() -> dict[str, int]:
    """How often the structure of a graph was known, and what is kept of structures.

    Returns:
        plans: structures whose plan is kept (the least recently used are dropped).
        hits, misses: graphs whose structure had a plan, and that needed a new one. A training loop
            whose graphs are alike makes no misses after its first iterations.
        programs: plans that became straight-line programs (docs/static_and_dynamic.md).
        planned_bytes: of these programs, what the iteration that needs most holds at once
            (see `memory`).
        captured_graphs, captured_bytes: CUDA graphs that programs became, and the memory they hold.

    >>> import distnn as nn, distnn.functions as F
    >>> y = F.tanh(nn.Variable((2, 3)))
    >>> before = nn.profiler.plan_stats()
    >>> y.forward()
    >>> after = nn.profiler.plan_stats()
    >>> after["hits"] + after["misses"] - before["hits"] - before["misses"]
    1
    """
    most = max((_planned_bytes(plan) for plan in plans.with_programs()), default=0)
    return plans.stats() | {"planned_bytes": most} | capture.stats()


_planned: weakref.WeakKeyDictionary[Plan, int] = weakref.WeakKeyDictionary()


def _planned_bytes(plan: Plan) -> int:
    """What lives at once in an iteration of a plan."""
    if plan not in _planned:
        found = iteration(plan)
        _planned[plan] = int(live_bytes(found.spans, len(found.steps)).max())
    return _planned[plan]


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
    (`nn.recompute`), for the line that follows; values that a pass `recomputes` are never written.

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
    plan = _plan_of("listing", variable)
    forward = _forward(plan, clear_buffer, clear_no_need_grad)
    backward = () if clear_buffer else _backward(plan)
    return "\n".join(["forward", *forward, *(["backward", *backward] if backward else [])])


def _plan_of(function: str, *variables: Variable) -> Plan:
    """The plan of the next forward of one result, or of several in one pass."""
    is_dynamic = False
    for variable in variables:
        if variable.parent is None:
            raise GraphError(
                f"[{function}] this Variable is a leaf: no function computes it; pass a result"
            )
        is_dynamic = is_dynamic or variable.parent.eager
    if is_dynamic:
        current_record().settle()
    graph = Graph([variable._value for variable in variables], upcoming=True)
    plan = plans.plan(graph)
    if is_dynamic:
        return plan.as_recorded()
    budget = current_budget()
    held = graph.held()
    return sparing(plan, held) if budget is None else fitting(plan, budget, held)


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
            replaced = sources if step.makes_input else targets
            del replaced[:1]
            sources += [plan.calls[node].sources[i] for node, i in step.inputs]
            targets = [*step.outputs, *targets]
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
        for member in members:
            lines = _computed(plan, separately(step, member))
            yield from (f"again{line}" for line in lines)
        what = _names(plan, members)
        within = step.again if isinstance(step, FusedBackward) else ()
        numbers = _numbers([plan.calls[made.node].targets[0] for made in within])
        what += f"  recomputes {numbers}" if within else ""
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


@dataclass(frozen=True)
class Memory:
    """Memory of an iteration, in bytes; see `memory`."""

    planned: int
    sum_without_reuse: int
    lower_bound: int
    kept: int
    peak_step: str
    at_peak: tuple[tuple[str, int], ...]
    computed_again: int

    def __str__(self) -> str:
        lines = [
            f"planned            {self.planned:>15,}  bytes in one arena",
            f"lower bound        {self.lower_bound:>15,}  live at once, in: {self.peak_step}",
            f"sum without reuse  {self.sum_without_reuse:>15,}",
            f"kept for backward  {self.kept:>15,}",
            f"computed again     {self.computed_again:>15,}  function calls",
            "largest at the peak",
        ]
        return "\n".join([*lines, *(f"{size:>34,}  {what}" for what, size in self.at_peak)])


def memory(
    variable: Variable | Sequence[Variable],
    clear_buffer: bool = False,
    clear_no_need_grad: bool = True,
) -> Memory:
    """Memory that forward and backward(clear_buffer=True) of a result need, beside leaves.

    Of several, as `nn.forward_all` takes them, the gradients are counted as if one backward came to
    all leaves. Of a dynamic graph it is what it will come to, or has come to, if nobody holds
    other results.

    Parameters, their gradients and solver states are not counted, nor what a function allocates for
    itself while it runs.

    Args:
        variable: a result, or several.
        clear_buffer, clear_no_need_grad: the flags of forward.
    Returns: in bytes
        planned: one arena with offsets by liveness;
        sum_without_reuse: all arrays, each in memory of its own;
        lower_bound: the most that lives at once, in the step `peak_step`: the predicted peak;
        kept: what forward leaves for backward;
        at_peak: the largest arrays that live then, with their bytes;
        computed_again: number of calls that backward computes again (`nn.recompute`).
    Raises: GraphError for a leaf.

    >>> import distnn as nn, distnn.functions as F
    >>> x = nn.Variable((64, 64), need_grad=True)
    >>> report = nn.profiler.memory(F.sum(F.tanh(F.affine(x, nn.Variable((64, 64), True)))))
    >>> report.lower_bound <= report.planned <= report.sum_without_reuse
    True
    """
    plan = _plan_of("memory", *([variable] if isinstance(variable, Variable) else variable))
    found = iteration(plan, clear_buffer, clear_no_need_grad)
    spans = found.spans
    live = live_bytes(spans, len(found.steps))
    peak = int(live.argmax())
    at_peak = [b for b in found.buffers if b.span.first <= peak <= b.span.last]
    at_peak.sort(key=lambda buffer: -buffer.span.nbytes)
    starts = offsets(spans)
    ends = (start + aligned(span.nbytes) for start, span in zip(starts, spans, strict=True))
    n_forward = sum(step.startswith("forward") for step in found.steps)
    return Memory(
        planned=max(ends),
        sum_without_reuse=sum(aligned(span.nbytes) for span in spans),
        lower_bound=int(live[peak]),
        kept=sum(aligned(s.nbytes) for s in spans if s.first < n_forward <= s.last),
        peak_step=found.steps[peak],
        at_peak=tuple((buffer.what, buffer.span.nbytes) for buffer in at_peak[:10]),
        computed_again=sum(len(step.again) for step in plan.backward(True)),
    )


class Peak:
    """What `peak_memory` has measured."""

    bytes = 0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure how much memory the host's pool of large arrays (64 KiB and more) has given out.

    `bytes` of what it yields is the most at once inside the block, less what was there before. Of
    GPUs nothing is measured.

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> x = nn.Variable.from_numpy_array(np.ones((256, 256), np.float32))
    >>> with nn.profiler.peak_memory() as peak:
    ...     F.tanh(x).forward()
    >>> peak.bytes
    262144
    """
    peak = Peak()
    before = pool.restart_peak()
    try:
        yield peak
    finally:
        peak.bytes = pool.peak_bytes - before
