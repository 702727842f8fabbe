"""Plan: what to do for graphs of one structure, in which order. Immutable; holds no arrays.

Values are numbered by slots. A plan knows for each slot who computes it, who reads it, in forward
and for gradients, and from that when its memory can go. It is made once per structure and shared by
static graphs and by the dynamic graphs of every iteration; `execution.py` runs it on a live graph.

Values that share memory (a reshape and its input) belong to one group, which is freed as a whole.
"""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple

from . import transfer
from .errors import ContextError
from .function import Spec
from .recompute import all_of, kept_positions
from .structure import BLOCKED, FORGOTTEN, MARKED, PERSISTENT, WANTED, Call, Graph, all_forgotten

_MOST_PLANS = 256


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
    """A call's gradients. Before it, what was forgotten and is read next is computed again."""

    node: int
    need: tuple[bool, ...]
    targets: tuple[int, ...]  # slots whose gradients come in; -1 where there is none
    contributions: tuple[Contribution, ...]
    ready: tuple[int, ...]  # leaf slots whose gradient storage is complete
    clears: tuple[int, ...]  # slots whose data nobody reads any more
    again: tuple[ForwardStep, ...] = ()
    drops: tuple[int, ...] = ()  # slots computed again that nobody reads any more


def _check_devices(calls: Sequence[Call]) -> None:
    """Kernels of one GPU are given addresses of that GPU."""
    found: dict[str, str] = {}  # name of a device -> a function on it
    for call in calls:
        found.setdefault(call.setup.backend.name, call.setup.function.name)
    found.pop(transfer.host_backend().name, None)
    if len(found) > 1:
        places = ", ".join(f"{function} on {device}" for device, function in found.items())
        raise ContextError(
            f"[forward] a graph has functions on several devices: {places}; compute them in one "
            "context, and bring values of another device as a leaf: x.data.copy_from(y.data)"
        )


class Plan:
    """The calls of a structure, and programs to run them, made when first asked for."""

    def __init__(self, graph: Graph) -> None:
        parts = iter(graph.key[0])
        self.calls: tuple[Call, ...] = tuple(
            Call(setup, sources, range(first, first + setup.n_outputs), need, flags)
            for setup, sources, first, need, flags in zip(*[parts] * 5, strict=True)
        )
        _check_devices(self.calls)
        self.n_slots = graph.n_slots
        self._recorded = self._keeps_for_rules = graph.recorded
        self.leaves = frozenset(graph.leaves)
        self.roots = graph.roots
        self.gradients = dict(graph.gradients)  # leaf slot -> number of its gradient's storage
        self.producer = {s: k for k, call in enumerate(self.calls) for s in call.targets}
        # Results whose own gradient the user asked for; those stay after backward.
        self.wanted = frozenset(s for call in self.calls for s in call.flagged(WANTED))
        self.persistent = frozenset(s for call in self.calls for s in call.flagged(PERSISTENT))
        self.dead = self._dead() if self._recorded else frozenset()
        # Leaves of recorded calls may be results that others forgot.
        self._settle_forgotten(s for s, value in graph.leaves.items() if value.forgotten)
        self._group = self._groups()
        self._members: dict[int, list[int]] = {}
        for slot, group in enumerate(self._group):
            self._members.setdefault(group, []).append(slot)
        self._protected = self._never_freed()
        self._start_over()

    def _start_over(self) -> None:
        """Forget steps and programs."""
        self._programs: dict[tuple, tuple] = {}
        self._texts: dict[tuple, Callable[..., None] | None] = {}
        self._used = False
        # Those that forget more: memory_budget.py, rematerialization.py.
        self.fits: dict[tuple, Plan] = {}

    def _settle_forgotten(self, leaves: Iterable[int]) -> None:
        """What backward computes again, and what calls keep therefore."""
        found = (s for call in self.calls for s in call.flagged(FORGOTTEN))
        self.forgotten = frozenset((*found, *leaves))
        self.kept = tuple(
            () if k in self.dead else self._kept_positions(call)
            for k, call in enumerate(self.calls)
        )
        # Saved results that backward computes again have slots, too: (call, position) -> slot.
        self.saved_slots: dict[tuple[int, int], int] = {}
        for k, call in enumerate(self.calls):
            if self._forgets(call) == all_of(call.setup):
                first = len(call.sources) + len(call.targets)
                for i in range(len(call.setup.declaration.saved)):
                    self.saved_slots[k, first + i] = self.n_slots + len(self.saved_slots)

    def forgetting(self, calls: Collection[int]) -> Plan:
        """A plan of the same calls of which these forget their results, too."""
        plan = copy.copy(self)
        plan.calls = tuple(
            call._replace(flags=call.flags | all_forgotten(call)) if k in calls else call
            for k, call in enumerate(self.calls)
        )
        plan._settle_forgotten(())
        plan._start_over()
        return plan

    def as_recorded(self, held: Collection[int] = ()) -> Plan:
        """The plan of a dynamic graph as it runs: it keeps for `nn.grad`, too.

        Args:
            held: results that stay, since somebody holds them.
        """
        plan = copy.copy(self)
        plan._keeps_for_rules = True
        plan.persistent = self.persistent.union(held)
        plan._protected = plan._never_freed()
        plan._settle_forgotten(())
        plan._start_over()
        return plan

    def forgets(self, k: int) -> int:
        """The mask of results that a call forgets (Node.forgets)."""
        return self._forgets(self.calls[k])

    def program(
        self, key: tuple, make: Callable[[], Callable[..., None] | None]
    ) -> Callable[..., None] | None:
        """What forward_program.py or backward_program.py makes of this plan, made once."""
        if key not in self._texts:
            self._texts[key] = make()
        return self._texts[key]

    @property
    def has_program(self) -> bool:
        """Whether there is such a program."""
        return any(self._texts.values())

    def is_used_again(self) -> bool:
        """False the first time: a structure that comes once is not worth a program."""
        used, self._used = self._used, True
        return used

    def name(self) -> str:
        """What people know it by: its last function."""
        last = self.calls[-1].setup
        count = len(self.calls)
        return f"{last.function.name} {last.results[0].shape} after {count - 1} functions"

    # -- structure ----------------------------------------------------------------------------

    def _groups(self) -> list[int]:
        group = list(range(self.n_slots))
        for call in self.calls:
            if call.setup.function.alias:
                group[call.targets[0]] = group[call.sources[0]]
        return group

    def _never_freed(self) -> frozenset[int]:
        """Groups of leaves, of roots and of what the user wants to keep."""
        inputs = (s for c in self.calls if c.setup.function.protects for s in c.sources)
        slots = (*self.leaves, *self.roots, *self.persistent, *inputs)
        return frozenset(self._group[s] for s in slots)

    def _forgets(self, call: Call) -> int:
        """The mask of results that a call forgets (Node.forgets)."""
        return sum(1 << i for i, slot in enumerate(call.targets) if slot in self.forgotten)

    def _dead(self) -> frozenset[int]:
        """Recorded calls whose results nobody holds and nobody reads, and that have no effect."""
        wanted = set(self.roots)
        dead = []
        for k in range(len(self.calls) - 1, -1, -1):
            call = self.calls[k]
            if call.setup.declaration.updates or not wanted.isdisjoint(call.targets):
                wanted.update(call.sources)
            else:
                dead.append(k)
        return frozenset(dead)

    def _kept_positions(self, call: Call) -> tuple[int, ...]:
        """What a call keeps: positions."""
        positions: tuple[int, ...] = ()
        if True in call.need:
            reads = call.setup.reads(call.need)
            positions = reads.either if self._keeps_for_rules else reads.backward
        hidden = [slot in self.forgotten for slot in call.sources]
        forgets = self._forgets(call)
        if forgets or True in hidden:
            return kept_positions(call.setup, positions, hidden, forgets)
        return positions

    def keeps(self, k: int) -> bool:
        """Whether a call's node keeps arrays for backward."""
        return True in self.calls[k].need or self._forgets(self.calls[k]) > 0

    def kept_slots(self, k: int) -> list[int]:
        """Slots that a call keeps; saved results have none."""
        call = self.calls[k]
        slots = (*call.sources, *call.targets)
        return [slots[p] for p in self.kept[k] if p < len(slots)]

    def forgotten_positions(self, k: int) -> dict[int, int]:
        """What of a call was not kept: position -> slot."""
        call = self.calls[k]
        slots = (*call.sources, *call.targets)
        found = {p: slot for p, slot in enumerate(slots) if slot in self.forgotten}
        saved = range(len(slots), len(slots) + len(call.setup.declaration.saved))
        return found | {p: self.saved_slots[k, p] for p in saved if (k, p) in self.saved_slots}

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
                for k in range(len(self.calls)):
                    kept.update(self._group[s] for s in self.kept_slots(k))
            else:
                marked = {s for call in self.calls for s in call.flagged(MARKED)}
                freed = marked & self.forgotten
                kept.update(g for s, g in enumerate(self._group) if s not in freed)
        last: dict[int, int] = {}
        alive = [(k, call) for k, call in enumerate(self.calls) if k not in self.dead]
        for k, call in alive:
            for slot in (*call.sources, *call.targets):
                if slot >= 0 and self._group[slot] not in kept:
                    last[self._group[slot]] = k
        clears: dict[int, list[int]] = {}
        for group, k in last.items():
            clears.setdefault(k, []).extend(self._members[group])
        return tuple(
            ForwardStep(k, self._inplace(call, clears.get(k, [])), tuple(clears.get(k, [])))
            for k, call in alive
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

    def outlives(self, slot: int) -> bool:
        """Whether a result stays after its last reader, is other results' memory, or is wanted."""
        group = self._group[slot]
        alone = len(self._members[group]) == 1
        return group in self._protected or not alone or slot in self.wanted

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
        self, wanted: Iterable[int], clear_buffer: bool = False, by_rules: bool = False
    ) -> tuple[BackwardStep, ...]:
        """The steps from the gradients of the roots to those of the wanted slots.

        Args:
            by_rules: functions with a fast backward use their rules, too.

        Contributions come in reverse order of creation, in every graph of this structure: the order
        of additions, and so the bits, are the same static and dynamic.
        """
        useful = self._useful(wanted)
        flowing = set(self.roots)
        seen = set(self.roots)  # gradient storages and slots that have a contribution
        steps = []
        for k in range(len(self.calls) - 1, -1, -1):
            call = self.calls[k]
            need = tuple(
                needed and slot in useful
                for needed, slot in zip(call.need, call.sources, strict=True)
            )
            blocked = call.flagged(BLOCKED)
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
            steps.append(BackwardStep(k, need, targets, tuple(contributions), (), ()))
        if self.forgotten:
            self._add_again(steps, by_rules)
        if clear_buffer and steps:
            self._add_clears(steps)
        return self._with_ready(steps)

    def _add_clears(self, steps: list[BackwardStep]) -> None:
        """Note at each step what nobody reads after it."""
        last: dict[int, int] = {}  # group -> number of a step
        for number, step in enumerate(steps):
            for k in (step.node, *(made.node for made in step.again)):
                call = self.calls[k]
                slots = (*call.sources, *call.targets)
                # Nodes of dynamic graphs keep for either sort of gradient, and read all they keep.
                reads = {*self.kept[k], *call.setup.reads(call.need).either}
                last.update((self._group[slots[p]], number) for p in reads if p < len(slots))
        clears: list[list[int]] = [[] for _ in steps]
        number = 0
        for k in range(len(self.calls) - 1, -1, -1):
            while number + 1 < len(steps) and steps[number].node > k:
                number += 1
            for s in self.calls[k].targets:
                if self._group[s] == s and s not in self._protected:
                    # What no gradient reads goes when its own function's turn has come.
                    clears[last.get(s, number)] += self._members[s]
        for number, slots_cleared in enumerate(clears):
            steps[number] = steps[number]._replace(clears=tuple(slots_cleared))

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

    def _add_again(self, steps: list[BackwardStep], by_rules: bool) -> None:
        """Note at each step what has to be computed again before it, and let go after it."""
        made: set[int] = set()
        reads: list[set[int]] = []  # of each step
        calls: list[list[int]] = []
        for step in steps:
            found_reads = self.calls[step.node].setup.reads(step.need)
            positions = found_reads.rules if by_rules else found_reads.backward
            forgotten = self.forgotten_positions(step.node)
            wanted = {forgotten[p] for p in positions if p in forgotten}
            reads.append(wanted)
            found: set[int] = set()
            missing = wanted - made
            while missing:
                slot = missing.pop()
                k = self._maker(slot)
                if k not in found:
                    found.add(k)
                    missing |= {s for s in self.calls[k].sources if s in self.forgotten} - made
            calls.append(sorted(found))
            for k in found:
                made |= self._made(k)
        held: set[int] = set()  # what later steps read
        for number in range(len(steps) - 1, -1, -1):
            drops = reads[number] - held
            held |= reads[number]
            again = []
            inside = set(held)
            for k in reversed(calls[number]):
                call = self.calls[k]
                sources = {s for s in call.sources if s in self.forgotten}
                clears = tuple(sorted((sources | self._made(k)) - inside))
                inside |= sources
                again.append(ForwardStep(k, self._inplace(call, clears), clears))
            held = inside.difference(*map(self._made, calls[number]))
            steps[number] = steps[number]._replace(
                again=tuple(reversed(again)), drops=tuple(sorted(drops))
            )

    def _maker(self, slot: int) -> int:
        """The call that computes a slot, of a saved result too."""
        if slot < self.n_slots:
            return self.producer[slot]
        return next(k for (k, _), found in self.saved_slots.items() if found == slot)

    def _made(self, k: int) -> set[int]:
        """Slots that computing a call again gives."""
        call = self.calls[k]
        saved = {s for (node, _), s in self.saved_slots.items() if node == k}
        return saved | {s for s in call.targets if s in self.forgotten}

    # -- listing ------------------------------------------------------------------------------

    def __str__(self) -> str:
        """One line a call: slots read, function, slots written; `*` allocates its own output."""
        lines = []
        for k, call in enumerate(self.calls):
            own = " " if call.setup.declaration.takes_out or call.setup.function.alias else "*"
            shapes = ", ".join(str(spec.shape) for spec in call.setup.results)
            sources = " ".join("-" if s < 0 else str(s) for s in call.sources)
            targets = " ".join(str(s) for s in call.targets)
            kept = " ".join(str(s) for s in self.kept_slots(k))
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

    def with_programs(self) -> list[Plan]:
        """The plans that became programs."""
        with self._lock:
            return [plan for plan in self._plans.values() if plan.has_program]

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
