"""How recorded calls are computed: as one program where they were seen before, else in turn."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from . import memory_budget
from .capture import shared_site
from .context import World
from .execution import Known
from .forward_program import forward_program
from .forward_segment import run_forward
from .function import Function, Setup, Spec
from .graph import Node
from .memory_budget import current_budget
from .ndarray import NdArray
from .plan import Plan
from .recompute import marked
from .rematerialization import spared
from .storage import Storage
from .structure import Graph
from .value import Value

_MOST_STRUCTURES = 256
# References to a result's NdArray where only the record has it: in `Calls.data`, in a local name,
# and as the argument of sys.getrefcount.
_UNSHARED = 3


class Step:
    """A call after others: what is known of it, and the calls that came next, by their keys."""

    __slots__ = ("function", "need", "next", "setup", "sources")

    function: Function  # kept alive: its id is in keys
    setup: Setup
    need: tuple[bool, ...]
    sources: tuple[int, ...]  # slots; -1 where an optional input is absent

    def __init__(self, *known: Any) -> None:
        self.next: dict[tuple, Step] = {}
        if known:
            self.function, self.setup, self.need, self.sources = known


class Calls:
    """Waiting calls: their nodes, and all values by slot, numbered as they come."""

    def __init__(self, world: World | None, version: int, root: Step) -> None:
        assert world is not None
        self.world = world  # kept alive by what waits, which is computed in it
        self.version = version  # of all graphs, when the first call came
        self.budget = current_budget()  # of memory, then
        self.step: Step | None = root  # where the calls led; None where one cannot be known again
        self.nodes: list[Node] = []
        self.sources: list[tuple[int, ...]] = []  # slots that each call reads
        self.slots: dict[int, int] = {}  # id of a Value -> slot
        self.values: list[Value] = []  # by slot
        self.data: list[NdArray] = []  # by slot; here results live until they are not read any more
        self.leaves: list[int] = []  # slots that no waiting call computes
        self.marked: list[Storage] = []
        self.recomputes = False  # a result is marked, or was forgotten (recompute.py)
        self.is_graph = True  # the calls are a whole graph, for which gradients may be wanted

    def leaf(self, value: Value, data: NdArray) -> None:
        self.leaves.append(len(self.data))
        if value.parent is not None:
            self.recomputes = self.recomputes or value.forgotten
            self.is_graph = False
        self.put(value, data)

    def put(self, value: Value, data: NdArray) -> None:
        self.slots[id(value)] = len(self.data)
        self.values.append(value)
        self.data.append(data)


def settle(calls: Calls) -> None:
    """Settle what calls forget: what is marked, and what they have to for a memory budget."""
    if calls.recomputes:
        for node in calls.nodes:
            node.forgets = marked(node)
    if calls.budget is None:
        return
    read = {slot for sources in calls.sources for slot in sources}
    held = [slot for slot in _held(calls) if calls.values[slot].parent is not None]
    values = [calls.values[slot] for slot in held]
    roots = [calls.values[slot] for slot in held if slot not in read]
    roots = [value for value in roots if value.need_grad]
    if roots and memory_budget.settle(roots, calls.nodes, values, calls.budget):
        calls.recomputes = True


def compute(calls: Calls) -> None:
    """Compute all calls, and keep what gradients will read."""
    settle(calls)
    if not _run_program(calls):
        _walk(calls)


def _held(calls: Calls) -> list[int]:
    """Slots of the data that somebody else holds, too."""
    held = []
    for slot in range(len(calls.data)):
        each = calls.data[slot]
        if sys.getrefcount(each) > _UNSHARED:
            held.append(slot)
    return held


def _walk(calls: Calls) -> None:
    """Run calls one after the other; lets go of arrays with their last reader."""
    last: dict[int, int] = {}
    slots = [[s for s in sources if s >= 0] for sources in calls.sources]
    for k, (node, mine) in enumerate(zip(calls.nodes, slots, strict=True)):
        mine += [calls.slots[id(value)] for value in node.live_outputs()]
        for slot in mine:
            last[slot] = k
    nothing = calls.data[0]
    for k, node in enumerate(calls.nodes):
        if not node.setup.function.alias:
            node.execute()
        elif calls.recomputes:
            node.keep_alias(node.output(0).data)
        for slot in slots[k]:
            if last[slot] == k:
                calls.data[slot] = nothing
    calls.nodes.clear()


class _Kept(NamedTuple):
    """What a node keeps: positions; slots, and the saved results after them."""

    positions: tuple[int, ...]
    slots: tuple[int, ...]
    saved: tuple[Spec, ...]


class _Structure:
    """A sequence of calls that was seen, and the program of it, made the second time."""

    def __init__(self) -> None:
        self.plan: Plan | None = None
        self.program: Callable[..., None] | None = None
        self.kept: list[_Kept] = []
        self.kept_leaves: frozenset[int] = frozenset()
        self.is_whole = False  # all calls lead to the result of the last one
        self.spared: frozenset[int] = frozenset()  # calls that forget, see rematerialization.py
        self.backward: dict[tuple[int, ...], Plan] = {}  # plans, see execution.Known

    def make(self, plan: Plan) -> None:
        self.plan = plan
        self.program = forward_program(plan, False, True)
        for call, positions in zip(plan.calls, plan.kept, strict=True):
            slots, saved = [], []
            own = (*call.sources, *call.targets)
            for position in positions:
                if position < len(own):
                    slots.append(own[position])
                else:
                    saved.append(call.setup.results[position - len(call.sources)])
            self.kept.append(_Kept(positions, tuple(slots), tuple(saved)))
        self.kept_leaves = plan.leaves & {slot for kept in self.kept for slot in kept.slots}
        read = {slot for call in plan.calls for slot in call.sources}
        *before, last = plan.calls
        self.is_whole = len(last.targets) == 1 and all(
            not read.isdisjoint(call.targets) for call in before
        )


_structures: OrderedDict[tuple, _Structure] = OrderedDict()
_structures_lock = threading.Lock()


def _spared(calls: Calls, held: Sequence[int]) -> frozenset[int]:
    """Calls whose results the gradients of a whole graph compute again."""
    end = calls.nodes[-1].live_output(0)
    if calls.recomputes or not calls.is_graph or end is None:
        return frozenset()
    graph = Graph([end], upcoming=True)
    if graph.nodes != calls.nodes:
        return frozenset()
    return spared(Plan(graph).as_recorded(held), held)


def _forget(calls: Calls, chosen: Collection[int]) -> None:
    for k in chosen:
        calls.nodes[k].forgets = 1


def _run_program(calls: Calls) -> bool:
    """Run calls as a program; False where there is none yet, or it would not do."""
    if calls.step is None:
        return False
    held = _held(calls)
    key: tuple = (calls.step, *held)
    if calls.recomputes:
        key += tuple((node.forgets, node.positions()) for node in calls.nodes)
    with _structures_lock:
        structure = _structures.get(key)
        if structure is None:
            _structures[key] = _Structure()
            if len(_structures) > _MOST_STRUCTURES:
                _structures.popitem(last=False)
            return False
        _structures.move_to_end(key)
        if not structure.kept:
            structure.spared = _spared(calls, held)
            _forget(calls, structure.spared)
            leaves = {*calls.leaves}
            roots = [calls.values[slot] for slot in held if slot not in leaves]
            graph = Graph(roots, calls.nodes)
            if not graph.shared:
                return False
            structure.make(Plan(graph))
    if structure.program is None:
        return False
    _forget(calls, structure.spared)
    data, nodes = calls.data, calls.nodes
    storages = [found._storage for found in data]
    for slot in calls.leaves:
        storage = storages[slot]
        if storage.array is None and storage.pending is None:
            return False  # the walk says for which function
        if storage.volatile and slot in structure.kept_leaves:
            return False  # the walk keeps copies of what a function changes as an effect
    kept: list[tuple[NdArray, ...]] = []
    for node, (positions, slots, saved) in zip(nodes, structure.kept, strict=True):
        arrays = [data[slot] for slot in slots]
        for spec in saved:
            storages.append(Storage(spec.shape, spec.dtype, None))
            arrays.append(NdArray._of(storages[-1], spec.shape))
        kept.append(tuple(arrays))
        if arrays:
            node.prepare(positions)
    plan = structure.plan
    assert plan is not None
    site = shared_site(structure, lambda: f"calls up to {plan.name()}", nodes[0].setup.backend)
    if site is None:
        structure.program(nodes, data, storages, kept)
    else:
        run_forward(site, plan, structure.program, nodes, data, storages, kept, lent=True)
    if structure.is_whole and calls.is_graph and not calls.recomputes:
        end = nodes[-1].live_output(0)
        if end is not None:
            inputs = {slot: calls.values[slot] for slot in calls.leaves}
            end.execution = Known(calls.version, nodes, inputs, structure.backward)
    return True
