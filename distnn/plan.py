"""Plan: what to do for graphs of one structure, in which order. Immutable; holds no arrays.

Values are numbered by slots. A plan knows for each slot who computes it, who reads it, in forward
and for gradients, and from that when its memory can go. It is made once per structure and shared by
static graphs and by the dynamic graphs of every iteration; `execution.py` runs it on a live graph.

Values that share memory (a reshape and its input) belong to one group, which is freed as a whole.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from .function import Setup, Spec
from .graph import Node, Value, needs, nodes_of

_MOST_PLANS = 256


class Graph:
    """A live graph at one moment: its nodes, in order of creation, and its values by slot."""

    def __init__(self, roots: Sequence[Value]) -> None:
        self.nodes: list[Node] = nodes_of(roots)
        self.leaves: dict[int, Value] = {}
        slots: dict[int, int] = {}
        parts: list[object] = []
        shared = True
        count = 0
        for node in self.nodes:
            setup = node.setup
            if not node.eager:
                node.need = needs(setup, node.sources)
            sources = []
            for value in node.sources:
                if value is None:
                    sources.append(-1)
                    continue
                slot = slots.get(id(value))
                if slot is None:
                    slot = slots[id(value)] = count
                    self.leaves[slot] = value
                    count += 1
                sources.append(slot)
            flags = 0
            for i in range(setup.n_outputs):
                output = node.live_output(i)
                if output is not None:
                    slots[id(output)] = count + i
                    flags |= _flags(output) << (_FLAGS * i)
            parts += (setup, tuple(sources), count, node.need, flags)
            count += setup.n_outputs
            shared = shared and setup.shared
        self._slots = slots
        # Leaves are told apart by where their gradients go, not by the Variable: a parameter used
        # twice is one leaf, whatever views of it the layers were given.
        places: dict[int, int] = {}
        self.gradients: dict[int, int] = {}  # leaf slot -> number of its gradient's storage
        for slot, value in self.leaves.items():
            if value.need_grad:
                storage = value.grad._storage
                self.gradients[slot] = places.setdefault(id(storage), len(places))
        self.n_slots = count
        self.roots = tuple(slots[id(value)] for value in roots)
        self.key = (tuple(parts), tuple(self.gradients.items()), self.roots)
        self.shared = shared

    def slot_of(self, value: Value) -> int | None:
        """The slot of a value; None for one that is not in this graph."""
        return self._slots.get(id(value))


# Bits of an output's flags.
_PERSISTENT, _BLOCKED, _WANTED = 1, 2, 4
_FLAGS = 3


def _flags(output: Value) -> int:
    """What the user set on a result: to keep it, to stop gradients at it, to start them there."""
    flags = _PERSISTENT if output.persistent else 0
    if output.need is not None:
        flags |= _WANTED if output.need else _BLOCKED
    return flags


class Call(NamedTuple):
    """One node of the structure."""

    setup: Setup
    sources: tuple[int, ...]  # slots; -1 where an optional input is absent
    targets: range  # slots of the outputs
    need: tuple[bool, ...]
    flags: int

    def flagged(self, bit: int) -> list[int]:
        """Slots of the outputs that have the flag."""
        return [s for i, s in enumerate(self.targets) if self.flags >> (_FLAGS * i) & bit]


class ForwardStep(NamedTuple):
    node: int
    inplace: int | None  # the input whose memory takes the output
    clears: tuple[int, ...]  # slots whose data nobody reads any more


class Contribution(NamedTuple):
    """Where the gradient of one input goes."""

    source: int  # number of the input
    slot: int
    leaf: bool
    first: bool  # the first in this backward: it overwrites, later ones are added


class BackwardStep(NamedTuple):
    node: int
    need: tuple[bool, ...]
    targets: tuple[int, ...]  # slots whose gradients come in; -1 where there is none
    contributions: tuple[Contribution, ...]
    ready: tuple[int, ...]  # leaf slots whose gradient storage is complete
    clears: tuple[int, ...]  # slots whose data nobody reads any more


class Plan:
    """The calls of a structure, and programs to run them, made when first asked for."""

    def __init__(self, graph: Graph) -> None:
        parts = iter(graph.key[0])
        self.calls: tuple[Call, ...] = tuple(
            Call(setup, sources, range(first, first + setup.n_outputs), need, flags)
            for setup, sources, first, need, flags in zip(*[parts] * 5, strict=True)
        )
        self.n_slots = graph.n_slots
        self.leaves = frozenset(graph.leaves)
        self.roots = graph.roots
        self.gradients = dict(graph.gradients)  # leaf slot -> number of its gradient's storage
        self.producer = {s: k for k, call in enumerate(self.calls) for s in call.targets}
        # Results whose own gradient the user asked for; those stay after backward.
        self.wanted = frozenset(s for call in self.calls for s in call.flagged(_WANTED))
        self.persistent = frozenset(s for call in self.calls for s in call.flagged(_PERSISTENT))
        self._group = self._groups()
        self._members: dict[int, list[int]] = {}
        for slot, group in enumerate(self._group):
            self._members.setdefault(group, []).append(slot)
        # Leaves, roots and what the user wants to keep are never freed.
        inputs = (s for c in self.calls if c.setup.function.protects for s in c.sources)
        self._protected = frozenset(
            self._group[s] for s in (*self.leaves, *self.roots, *self.persistent, *inputs)
        )
        self._programs: dict[tuple, tuple] = {}
        self._texts: dict[tuple, Callable[..., None] | None] = {}
        self._used = False

    def program(
        self, key: tuple, make: Callable[[], Callable[..., None] | None]
    ) -> Callable[..., None] | None:
        """What program.py makes of this plan, made once."""
        if key not in self._texts:
            self._texts[key] = make()
        return self._texts[key]

    @property
    def has_program(self) -> bool:
        """Whether program.py has made something of it."""
        return any(self._texts.values())

    def is_used_again(self) -> bool:
        """False the first time: a structure that comes once is not worth a program."""
        used, self._used = self._used, True
        return used

    # -- structure ----------------------------------------------------------------------------

    def _groups(self) -> list[int]:
        group = list(range(self.n_slots))
        for call in self.calls:
            if call.setup.function.alias:
                group[call.targets[0]] = group[call.sources[0]]
        return group

    def _gradient_reads(self, call: Call) -> list[int]:
        """Slots that backward will read for this call; saved results have none."""
        if True not in call.need:
            return []
        slots = (*call.sources, *call.targets)
        positions = call.setup.reads(call.need).backward
        return [slots[p] for p in positions if p < len(slots)]

    # -- forward ------------------------------------------------------------------------------

    def forward(self, clear_buffer: bool, clear_no_need_grad: bool) -> tuple[ForwardStep, ...]:
        """The steps of a forward with these flags."""
        key = ("forward", clear_buffer, clear_no_need_grad)
        if key not in self._programs:
            self._programs[key] = self._forward(clear_buffer, clear_no_need_grad)
        return self._programs[key]

    def _forward(self, clear_buffer: bool, clear_no_need_grad: bool) -> tuple[ForwardStep, ...]:
        kept = set(self._protected)
        if not clear_buffer:
            if clear_no_need_grad:
                for call in self.calls:
                    kept.update(self._group[s] for s in self._gradient_reads(call))
            else:
                kept.update(self._group)
        last: dict[int, int] = {}
        for k, call in enumerate(self.calls):
            for slot in (*call.sources, *call.targets):
                if slot >= 0 and self._group[slot] not in kept:
                    last[self._group[slot]] = k
        clears: dict[int, list[int]] = {}
        for group, k in last.items():
            clears.setdefault(k, []).extend(self._members[group])
        return tuple(
            ForwardStep(k, self._inplace(call, clears.get(k, [])), tuple(clears.get(k, [])))
            for k, call in enumerate(self.calls)
        )

    def _inplace(self, call: Call, cleared: Sequence[int]) -> int | None:
        """An input that the function may overwrite with its output: nobody reads it later."""
        if len(call.targets) != 1 or call.targets[0] in cleared:
            return None
        result = call.setup.results[0]
        for i in call.setup.function.inplace:
            slot = call.sources[i] if i < len(call.sources) else -1
            if call.sources.count(slot) == 1 and self.may_become(slot, result, cleared):
                return i
        return None

    def may_become(self, slot: int, result: Spec, cleared: Collection[int]) -> bool:
        """Whether a slot's memory, which is cleared after a step, may take a result of the step."""
        if slot not in cleared or len(self._members[self._group[slot]]) > 1:
            return False
        call = self.calls[self.producer[slot]]
        return call.setup.results[slot - call.targets[0]] == result

    # -- backward -----------------------------------------------------------------------------

    def backward(self, clear_buffer: bool) -> tuple[BackwardStep, ...]:
        """The steps from the gradient of the root to those of all leaves that need one."""
        key = ("backward", clear_buffer)
        if key not in self._programs:
            wanted = {*self.gradients, *self.wanted}
            self._programs[key] = self.gradient_steps(wanted, clear_buffer)
        return self._programs[key]

    def gradient_steps(
        self, wanted: Iterable[int], clear_buffer: bool = False
    ) -> tuple[BackwardStep, ...]:
        """The steps from the gradients of the roots to those of the wanted slots.

        Contributions come in reverse order of creation, in every graph of this structure: the order
        of additions, and so the bits, are the same static and dynamic.
        """
        useful = self._useful(wanted)
        flowing = set(self.roots)
        seen = set(self.roots)  # gradient storages and slots that have a contribution
        clears: list[int] = []
        steps = []
        for k in range(len(self.calls) - 1, -1, -1):
            call = self.calls[k]
            if clear_buffer:
                # All readers of a group come after its first member's producer.
                for s in call.targets:
                    if self._group[s] == s and s not in self._protected:
                        clears += self._members[s]
            need = tuple(
                needed and slot in useful
                for needed, slot in zip(call.need, call.sources, strict=True)
            )
            blocked = call.flagged(_BLOCKED)
            targets = tuple(s if s in flowing and s not in blocked else -1 for s in call.targets)
            if True not in need or max(targets) < 0:
                continue
            contributions = []
            for i, slot in enumerate(call.sources):
                if need[i]:
                    leaf = slot in self.gradients
                    place = ("leaf", self.gradients[slot]) if leaf else slot
                    contributions.append(Contribution(i, slot, leaf, place not in seen))
                    seen.add(place)  # type: ignore[arg-type]
                    flowing.add(slot)
            steps.append(BackwardStep(k, need, targets, tuple(contributions), (), tuple(clears)))
            clears = []
        if steps:
            steps[-1] = steps[-1]._replace(clears=(*steps[-1].clears, *clears))
        return self._with_ready(steps)

    def _useful(self, wanted: Iterable[int]) -> set[int]:
        """Slots whose gradient leads to a wanted one."""
        useful = set(wanted)
        for call in self.calls:
            if any(n and s in useful for n, s in zip(call.need, call.sources, strict=True)):
                useful.update(call.targets)
        return useful

    def _with_ready(self, steps: list[BackwardStep]) -> tuple[BackwardStep, ...]:
        """Note at each step which leaf gradients have got their last contribution."""
        done: set[int] = set()
        for k in range(len(steps) - 1, -1, -1):
            ready = []
            for contribution in steps[k].contributions:
                if contribution.leaf and self.gradients[contribution.slot] not in done:
                    done.add(self.gradients[contribution.slot])
                    ready.append(contribution.slot)
            if ready:
                steps[k] = steps[k]._replace(ready=tuple(ready))
        return tuple(steps)

    # -- listing ------------------------------------------------------------------------------

    def __str__(self) -> str:
        """One line a call: slots read, function, slots written; `*` allocates its own output."""
        lines = []
        for k, call in enumerate(self.calls):
            own = " " if call.setup.declaration.takes_out or call.setup.function.alias else "*"
            shapes = ", ".join(str(spec.shape) for spec in call.setup.results)
            sources = " ".join("-" if s < 0 else str(s) for s in call.sources)
            targets = " ".join(str(s) for s in call.targets)
            kept = " ".join(str(s) for s in self._gradient_reads(call))
            lines.append(
                f"{k:4d}{own} {sources} -> {targets}  {call.setup.function.name} {shapes}"
                + (f"  keeps {kept}" if kept else "")
            )
        return "\n".join(lines)


class _Cache:
    """The plans made so far, the least recently used ones dropped."""

    def __init__(self) -> None:
        self._plans: OrderedDict[tuple, Plan] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    def stats(self) -> dict[str, int]:
        """See profiler.plan_stats."""
        with self._lock:
            programs = sum(plan.has_program for plan in self._plans.values())
            return {
                "plans": len(self._plans),
                "hits": self.hits,
                "misses": self.misses,
                "programs": programs,
            }

    def plan(self, graph: Graph) -> Plan:
        if not graph.shared:
            return Plan(graph)
        with self._lock:
            plan = self._plans.get(graph.key)
            if plan is not None:
                self._plans.move_to_end(graph.key)
                self.hits += 1
                return plan
            self.misses += 1
            plan = self._plans[graph.key] = Plan(graph)
            if len(self._plans) > _MOST_PLANS:
                self._plans.popitem(last=False)
            return plan


plans = _Cache()
