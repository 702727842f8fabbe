"""Memory budget: which results to compute again in backward, so that an iteration fits.

Candidates are tried on paper (liveness.py), and the cheapest that fits is taken. The graph is cut
into segments, at places where few bytes cross; what crosses is kept. Of the rest either cheap calls
are forgotten (those that move bytes rather than multiply: elementwise, normalization, pooling), or
all calls; in all segments, or from the first on as many as it takes.

Of a static graph that is settled before it runs; of a dynamic one when the calls that wait are
computed, for these: what was computed before stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from .arena import aligned, live_bytes
from .errors import ArgumentError, MemoryBudgetError
from .function import Setup
from .graph import Node
from .liveness import iteration
from .plan import Plan, plans
from .rematerialization import sparing
from .structure import Call, Graph
from .value import Value

_budget: ContextVar[int | None] = ContextVar("distnn_memory_budget", default=None)
# Arithmetic operations of a product of matrices that take as long as to move a byte.
_OPERATIONS_PER_BYTE = 10
_MOST_SEGMENTS = 64
_MOST_REFINED = 3  # candidates of which only a part is tried, too

current_budget = _budget.get


@contextmanager
def memory_budget(bytes: int | None) -> Iterator[None]:
    """Graphs forget in forward, and compute again in backward, what it takes to fit.

    What counts is the most that lives at once of the results and gradients that forward and
    backward make (`nn.profiler.memory`): not parameters, their gradients and solver states, and not
    what a function allocates for itself. Values and gradients are the same to the bit. Marks by
    `nn.recompute` stay. In a static graph it is looked at by `forward` and `nn.forward_all` with
    `clear_no_need_grad=True`, the first time for each graph; in a dynamic one when calls that were
    made inside the block are computed, all at once as a rule (docs/memory.md).

    Args:
        bytes: the budget; None is none.
    Raises: MemoryBudgetError, by forward, or what computes dynamic calls, where nothing fits; it
        says what would.

    >>> import distnn as nn, distnn.functions as F
    >>> x = nn.Variable((64, 64), need_grad=True)
    >>> x.d = 1
    >>> h = x
    >>> for _ in range(8):
    ...     h = F.tanh(F.affine(h, x))
    >>> y = F.sum(h)
    >>> with nn.memory_budget(nn.profiler.memory(y).lower_bound * 3 // 4):
    ...     y.forward(clear_no_need_grad=True)
    ...     y.backward(clear_buffer=True)
    """
    token = _budget.set(_checked("memory_budget", bytes))
    try:
        yield
    finally:
        _budget.reset(token)


def set_memory_budget(bytes: int | None) -> None:
    """Set the budget of `memory_budget` for this thread until it is set again; None is none."""
    _budget.set(_checked("set_memory_budget", bytes))


def _checked(function: str, budget: int | None) -> int | None:
    if budget is None or (isinstance(budget, int) and not isinstance(budget, bool) and budget > 0):
        return budget
    raise ArgumentError(f"[{function}] bytes is {budget!r}; pass a positive int, or None")


class _Candidate(NamedTuple):
    plan: Plan
    peak: int
    cost: float  # of what is computed again

    @property
    def order(self) -> tuple[float, int]:
        return self.cost, self.peak


def fitting(
    plan: Plan, budget: int, held: Collection[int], computed: Collection[int] | None = None
) -> Plan:
    """The plan, or one that forgets more, whose peak is within the budget.

    Args:
        held: slots of results that somebody holds; in a dynamic graph they stay.
        computed: of a dynamic graph, the calls that were computed before; None if it is static.
    """
    key = (budget, frozenset(held), None if computed is None else frozenset(computed))
    if key not in plan.fits:
        asked = sparing(plan, held) if computed is None else plan.as_recorded(held)
        plan.fits[key] = _fitting(asked, budget, computed or ())
    return plan.fits[key]


def settle(
    roots: Sequence[Value], waiting: Sequence[Node], held: Sequence[Value], budget: int
) -> bool:
    """Settle what recorded calls forget; returns whether they forget something.

    Args:
        roots: of the graph.
        waiting: the calls.
        held: results that somebody holds.
    """
    graph = Graph(roots, upcoming=True)
    if not graph.shared:
        return False  # to look for what fits in each iteration takes too long
    own = {*waiting}
    computed = [k for k, node in enumerate(graph.nodes) if node not in own]
    slots = [slot for slot in map(graph.slot_of, held) if slot is not None]
    plan = fitting(plans.plan(graph), budget, slots, computed)
    for k in {*range(len(graph.nodes))}.difference(computed):
        graph.nodes[k].forgets = plan.forgets(k)
    return bool(plan.forgotten)


def _fitting(plan: Plan, budget: int, computed: Collection[int]) -> Plan:
    asked = _candidate(plan, frozenset())
    if asked.peak <= budget:
        return plan
    can = frozenset(k for k in range(len(plan.calls)) if k not in computed and _can_forget(plan, k))
    cheap = _cheap(plan, can)
    choices = [cheap]
    segments = 2
    while segments <= min(_MOST_SEGMENTS, len(plan.calls)):
        found = _segmented(plan, segments, can)
        choices += [found & cheap, found]
        segments = math.ceil(segments * 1.4)
    tried = [(_candidate(plan, calls), calls) for calls in dict.fromkeys(choices)]
    fits = sorted((pair for pair in tried if pair[0].peak <= budget), key=lambda p: p[0].order)
    if not fits:
        least = min((asked, *(candidate for candidate, _ in tried)), key=lambda c: c.peak)
        raise MemoryBudgetError(_explained(least, budget))
    refined = [_least(plan, calls, budget) for _, calls in fits[:_MOST_REFINED]]
    return min((*refined, fits[0][0]), key=lambda c: c.order).plan


def _candidate(plan: Plan, calls: frozenset[int]) -> _Candidate:
    variant = plan.forgetting(calls) if calls else plan
    found = iteration(variant)
    cost = sum(
        cost_of(variant.calls[made.node]) for step in variant.backward(True) for made in step.again
    )
    return _Candidate(variant, int(live_bytes(found.spans, len(found.steps)).max()), cost)


def _least(plan: Plan, calls: frozenset[int], budget: int) -> _Candidate:
    """As few of the calls, from the first on, as fit."""
    order = sorted(calls)
    low, high = 0, len(order)
    best = _candidate(plan, calls)
    while high - low > 1:
        middle = (low + high) // 2
        tried = _candidate(plan, frozenset(order[:middle]))
        if tried.peak <= budget:
            high, best = middle, min(best, tried, key=lambda c: c.order)
        else:
            low = middle
    return best


def _explained(least: _Candidate, budget: int) -> str:
    found = iteration(least.plan)
    live = live_bytes(found.spans, len(found.steps))
    peak = int(live.argmax())
    holders = [b for b in found.buffers if b.span.first <= peak <= b.span.last]
    holders.sort(key=lambda buffer: -buffer.span.nbytes)
    named = ", ".join(f"{b.what} ({aligned(b.span.nbytes):,})" for b in holders[:5])
    return (
        f"[memory_budget] {budget:,} bytes are too few: the least found is "
        f"{least.peak:,}, in the step `{found.steps[peak]}`, which holds {named}; raise the "
        "budget, or make the batch smaller"
    )


# -- what to forget --------------------------------------------------------------------------------


def _can_forget(plan: Plan, k: int) -> bool:
    call = plan.calls[k]
    spared = {*plan.roots, *plan.persistent}
    return call.setup.function.can_recompute() and spared.isdisjoint(call.targets)


def _cheap(plan: Plan, can: frozenset[int]) -> frozenset[int]:
    """Calls that move bytes rather than multiply."""
    return frozenset(k for k in can if plan.calls[k].setup.function.name not in _OPERATIONS)


def _segmented(plan: Plan, segments: int, can: frozenset[int]) -> frozenset[int]:
    """All calls but those whose results cross from one segment to the next."""
    n = len(plan.calls)
    last: dict[int, int] = {}  # slot -> its last reader in forward
    for k, call in enumerate(plan.calls):
        for slot in call.sources:
            if slot >= 0 and slot not in plan.leaves:
                last[slot] = k
    sizes = [sum(spec.size * spec.dtype.itemsize for spec in c.setup.results) for c in plan.calls]
    crossing: list[set[int]] = [set() for _ in range(n)]  # calls whose results are read after k
    for slot, reader in last.items():
        for k in range(plan.producer[slot], reader):
            crossing[k].add(plan.producer[slot])
    weight = [sum(sizes[j] for j in calls) for calls in crossing]
    done, before = [], 0
    for size in sizes:
        before += size
        done.append(before)
    kept: set[int] = set()
    for number in range(1, segments):
        near = [
            k for k in range(n - 1)
            if abs(done[k] / before * segments - number) <= 0.5
        ]  # fmt: skip
        goal = before * number / segments
        if near:
            kept |= crossing[min(near, key=lambda k: (weight[k], abs(done[k] - goal)))]
    return can - kept


# -- what it costs ---------------------------------------------------------------------------------


def cost_of(call: Call) -> float:
    """What computing a call costs, in bytes that could be moved meanwhile.

    Of products of matrices and convolutions the arithmetic counts, of others the bytes that are
    read and written. On CPUs and GPUs alike about ten operations take as long as a byte.
    """
    setup = call.setup
    if setup.function.alias:
        return 0.0
    itemsize = setup.results[0].dtype.itemsize
    moved = sum(math.prod(shape) for shape in setup.input_shapes if shape is not None) * itemsize
    moved += sum(spec.size * spec.dtype.itemsize for spec in setup.results)
    operations = _OPERATIONS.get(setup.function.name)
    return moved if operations is None else moved + operations(setup) / _OPERATIONS_PER_BYTE


def _of_convolution(setup: Setup) -> float:
    _, w, *_ = setup.input_shapes
    assert w is not None
    return 2.0 * setup.results[0].size * math.prod(w[1:])


def _of_deconvolution(setup: Setup) -> float:
    x, w, *_ = setup.input_shapes
    assert x is not None
    assert w is not None
    return 2.0 * math.prod(x) * math.prod(w[1:])


def _of_affine(setup: Setup) -> float:
    x, w, *_ = setup.input_shapes
    assert x is not None
    assert w is not None
    return 2.0 * math.prod(x) * w[-1]


def _of_batch_matmul(setup: Setup) -> float:
    a, b, *_ = setup.input_shapes
    assert a is not None
    assert b is not None
    y = setup.results[0]
    inner = math.sqrt(math.prod(a) * math.prod(b) / max(y.size * math.prod(y.shape[:-2]), 1))
    return 2.0 * y.size * inner


_OPERATIONS: dict[str, Callable[[Setup], float]] = {
    "convolution": _of_convolution,
    "deconvolution": _of_deconvolution,
    "affine": _of_affine,
    "batch_matmul": _of_batch_matmul,
}
