"""Recorded calls: functions called in `auto_forward` that wait until somebody looks.

A call on Variables leaves a node and results without values. They are computed, in the order of the
calls, when somebody reads a result, reads or writes an array that a waiting function reads, calls
backward, updates parameters, or meets other ranks. A sequence of calls that was seen before then
runs as one program (forward_program.py).

Inside of `nn.step()` (step.py) forward, backward and solvers wait behind these calls, and run when
any of what they touch is looked at.

What depends on values at once does not wait: functions that users write in Python, labels that have
to be checked but are not there yet, and all where hooks watch, or where somebody outside can write
to an input unseen.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .capture import shared_site
from .context import World, current_world, world_scope
from .errors import ClearedError
from .evaluation import read_indices
from .execution import Known
from .forward_program import forward_program
from .forward_segment import run_forward
from .function import Setup, Spec
from .graph import Node, Value, version
from .launching import split, together
from .memory_budget import current_budget, settle
from .ndarray import NdArray
from .plan import Graph, Plan
from .recompute import is_recomputing, marked
from .storage import Storage
from .variable import Variable

# Calls that wait at most: what nobody ever looks at must not pile up.
_MOST_CALLS = 2048
_MOST_STRUCTURES = 256
# References to a result's NdArray where only the record has it: in `_Calls.data`, in a local name,
# and as the argument of sys.getrefcount.
_UNSHARED = 3


class _Calls:
    """Waiting calls: their nodes, and all values by slot, numbered as they come."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.key: list[Any] = []  # of the structure
        self.slots: dict[int, int] = {}  # id of a Value -> slot
        self.values: list[Value] = []  # by slot
        self.data: list[NdArray] = []  # by slot; here results live until they are not read any more
        self.leaves: list[int] = []  # slots that no waiting call computes
        self.marked: list[Storage] = []
        self.recomputes = False  # a result is marked, or was forgotten (recompute.py)
        self.is_graph = True  # the calls are a whole graph, for which gradients may be wanted
        self.version = 0  # of all graphs, when the first call came
        self.budget: int | None = None  # of memory, when the first call came
        self.world: World | None = None  # kept alive by what waits, which is computed in it

    def leaf(self, value: Value) -> int:
        slot = self.put(value, value.data)
        self.leaves.append(slot)
        self.recomputes = self.recomputes or value.forgotten
        self.is_graph = self.is_graph and value.parent is None
        return slot

    def put(self, value: Value, data: NdArray) -> int:
        slot = self.slots[id(value)] = len(self.data)
        self.values.append(value)
        self.data.append(data)
        return slot


class Record:
    """What waits in a World."""

    def __init__(self, world: World) -> None:
        self._world = weakref.ref(world)
        self._calls = _Calls()
        self._later: list[Callable[[], None]] = []  # what waits behind the calls
        self._touched: list[Storage] = []  # by that
        self._touched_lists: list[Sequence[Storage]] = []  # the same
        self._lock = threading.RLock()

    def takes(self, setup: Setup, sources: Sequence[Value | None]) -> bool:
        """Whether a call can wait."""
        function = setup.function
        if not function.waits:
            return False
        for position, value in enumerate(sources):
            if value is None:
                continue
            try:
                storage = value.data._storage
            except ClearedError:
                return False  # and who computes it says for which function
            if (storage.exported or storage.host is not None) and storage.is_written_outside():
                return False
            if function.alias and (storage.dtype != setup.dtypes[0] or storage.volatile):
                return False
            if position in setup.index_names and not _checked(setup, position, value.data):
                return False
        return True

    def add(self, node: Node, recording: bool) -> list[Variable]:
        """Let a call wait; returns its results, which have no values yet."""
        with self._lock:
            if len(self._calls.nodes) >= _MOST_CALLS or self._later:
                self.flush()
            setup, calls = node.setup, self._calls
            if calls.world is None:
                calls.world = self._world()
                calls.version = version.number
                calls.budget = current_budget()
            slots = calls.slots
            sources = []
            for source in node.sources:
                if source is None:
                    sources.append(-1)
                    continue
                slot = slots.get(id(source))
                if slot is None:
                    slot = calls.leaf(source)
                    storage = calls.data[slot]._storage
                    if storage.record is None:
                        storage.record = self
                        calls.marked.append(storage)
                sources.append(slot)
            calls.nodes.append(node)
            calls.key += (setup, tuple(sources), node.need)
            alias = setup.function.alias
            outputs = []
            for i, spec in enumerate(setup.outputs):
                value = Value(spec.shape, None, node if recording else None, i)
                if alias:
                    window = calls.data[sources[0]]
                    data = NdArray._of(window._storage, spec.shape, window._offset)
                else:
                    storage = Storage(spec.shape, spec.dtype, None)
                    storage.record = self
                    calls.marked.append(storage)
                    data = NdArray._of(storage, spec.shape)
                if recording:
                    if is_recomputing():
                        value.recompute = calls.recomputes = True
                    value.hold_weakly(data)
                    outputs.append(Variable._of(value, data))
                else:
                    calls.is_graph = False
                    value._data = data
                    outputs.append(Variable._of(value))
                node.targets[i] = weakref.ref(value)
                calls.put(value, data)
            if alias and True in node.need:
                node.keep_alias(data)
            if setup.function.random:
                node.draw_ahead()
            return outputs

    def mark_recompute(self, node: Node) -> bool:
        """Look for marked results when calls are computed; False if `node` does not wait."""
        with self._lock:
            if node not in self._calls.nodes:
                return False
            self._calls.recomputes = True
            return True

    def settle(self) -> None:
        """Settle what the waiting calls will forget."""
        with self._lock:
            if self._calls.nodes:
                _settle(self._calls)

    def wait(
        self, work: Callable[[], None], touched: Sequence[Storage], read: Sequence[Storage] = ()
    ) -> bool:
        """Let work wait behind all that waits.

        Args:
            touched: what it reads or writes.
            read: what it reads of that, and is not the only one to write to.
        Returns: False where it cannot wait, since somebody outside may write to what it reads.
        """
        with self._lock:
            for storage in read:
                if (storage.exported or storage.host is not None) and storage.is_written_outside():
                    return False
            if not any(touched is each for each in self._touched_lists):
                for storage in touched:
                    if storage.record is not self:
                        if storage.record is not None:
                            storage.record.flush()  # of another World
                        storage.record = self
                        self._touched.append(storage)
                self._touched_lists.append(touched)
            self._later.append(work)
            return True

    def read_by_backward(self, root: Value) -> list[Storage] | None:
        """Of the calls that wait, what a backward from the last of them touches besides results.

        None where the graph of `root` is not these calls.
        """
        with self._lock:
            calls = self._calls
            if not calls.nodes or calls.nodes[-1] is not root.parent or not calls.is_graph:
                return None
            return [
                value.grad._storage
                for value in calls.values
                if value._grad is not None or (value.parent is None and value.need)
            ]

    def launch(self) -> None:
        """Run what waits behind the calls, and before it the calls."""
        with self._lock:
            later, touched = self._later, self._touched
            if not later:
                return
            self._later, self._touched, self._touched_lists = [], [], []
            for storage in touched:
                if storage.record is self:
                    storage.record = None
            world = self._world()
            assert world is not None
            with world_scope(world), together():
                self._compute()
                for work in later:
                    work()

    def flush(self) -> None:
        """Compute all that waits."""
        with self._lock:
            if self._later:
                split()
                self.launch()
            self._compute()

    def _compute(self) -> None:
        with self._lock:
            calls = self._calls
            if not calls.nodes:
                return
            self._calls = _Calls()
            for storage in calls.marked:
                storage.record = None
            calls.marked.clear()
            assert calls.world is not None
            with world_scope(calls.world), np.errstate(all="ignore"):
                try:
                    _settle(calls)
                    if not _run_program(calls):
                        _walk(calls)
                except BaseException:
                    for data in calls.data:
                        storage = data._storage
                        if storage.array is None and storage.pending is None:
                            storage.clear("a function that was called before it has failed")
                    raise


def _checked(setup: Setup, position: int, data: NdArray) -> bool:
    """Check labels or indices, which a call reports at once; False where that cannot be done."""
    storage, function = data._storage, setup.function
    if function.check is None or storage.record is not None or storage.array is None:
        return False
    indices = read_indices(data, setup.backend, function.name, setup.index_names[position])
    function.check(setup.backend.xp, indices, setup.input_shapes)
    return True


def _settle(calls: _Calls) -> None:
    """Settle what calls forget: what is marked, and what they have to for a memory budget."""
    if calls.recomputes:
        for node in calls.nodes:
            node.forgets = marked(node)
    if calls.budget is None:
        return
    read = {slot for sources in calls.key[1::3] for slot in sources}
    held = [slot for slot in _held(calls) if calls.values[slot].parent is not None]
    values = [calls.values[slot] for slot in held]
    roots = [calls.values[slot] for slot in held if slot not in read]
    roots = [value for value in roots if value.need_grad]
    if roots and settle(roots, calls.nodes, values, calls.budget):
        calls.recomputes = True


def _held(calls: _Calls) -> list[int]:
    """Slots of the data that somebody else holds, too."""
    held = []
    for slot in range(len(calls.data)):
        each = calls.data[slot]
        if sys.getrefcount(each) > _UNSHARED:
            held.append(slot)
    return held


def _walk(calls: _Calls) -> None:
    """Run calls one after the other; lets go of arrays with their last reader."""
    last: dict[int, int] = {}
    readers = zip(calls.key[1::3], calls.nodes, strict=True)
    slots = [[s for s in sources if s >= 0] for sources, _ in readers]
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


# -- programs --------------------------------------------------------------------------------------


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


def _run_program(calls: _Calls) -> bool:
    """Run calls as a program; False where there is none yet, or it would not do."""
    held = _held(calls)
    key = (*calls.key, *held)
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
            leaves = {*calls.leaves}
            roots = [calls.values[slot] for slot in held if slot not in leaves]
            graph = Graph(roots, calls.nodes)
            if not graph.shared:
                return False
            structure.make(Plan(graph))
    if structure.program is None:
        return False
    data, nodes = calls.data, calls.nodes
    storages = [found._storage for found in data]
    for slot in calls.leaves:
        storage = storages[slot]
        if storage.array is None and storage.pending is None:
            return False  # the walk says for which function
        if storage.volatile and slot in structure.kept_leaves:
            return False  # the walk keeps copies of what a function changes as an effect
    kept = []
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


def current_record() -> Record:
    """The record of this World."""
    world = current_world()
    if world.record is None:
        world.record = Record(world)
    return world.record
