"""Recorded calls: functions called in `auto_forward` that wait until somebody looks.

A call on Variables leaves a node and results without values. They are computed, in the order of the
calls, when somebody reads a result, reads or writes an array that a waiting function reads, calls
backward, updates parameters, or meets other ranks (recorded_calls.py).

Inside of `nn.step()` (step.py) forward, backward and solvers wait behind these calls, and run when
any of what they touch is looked at.

What depends on values at once does not wait: functions that users write in Python, labels that have
to be checked but are not there yet, and all where hooks watch, or where somebody outside can write
to an input unseen.

Calls are known by those before them: a tree has a branch for each call that followed. Who walks
along it has to find out nothing about a call that was made before.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .backend import Backend
from .context import World, current_world, world_scope
from .errors import ClearedError
from .evaluation import read_indices
from .function import Function, Setup, prepare
from .graph import Node, needs, shapes_of
from .launching import split, together
from .ndarray import NdArray
from .recompute import is_recomputing
from .recorded_calls import Calls, Step, compute, settle
from .storage import Storage
from .value import Value, version
from .variable import Variable

# Calls that wait at most: what nobody ever looks at must not pile up.
_MOST_CALLS = 2048
_MOST_STEPS = 32768


class _Tree:
    """All sequences of calls that were recorded, until they are too many."""

    def __init__(self) -> None:
        self.root = Step()
        self._count = 0

    def grow(self, after: Step, key: tuple, step: Step) -> None:
        self._count += 1
        if self._count > _MOST_STEPS:
            self.root, self._count = Step(), 0
        after.next[key] = step


_tree = _Tree()


class Record:
    """What waits in a World."""

    def __init__(self, world: World) -> None:
        self._world = weakref.ref(world)
        self._calls: Calls | None = None
        self._later: list[Callable[[], None]] = []  # what waits behind the calls
        self._touched: list[Storage] = []  # by that
        self._touched_lists: list[Sequence[Storage]] = []  # the same
        self._lock = threading.RLock()

    def add(
        self,
        function: Function,
        backend: Backend,
        sources: tuple[Value | None, ...],
        operands: dict[str, Any],
        recording: bool,
    ) -> list[Variable] | None:
        """Let a call wait; returns its results, which have no values yet. None if it cannot."""
        if not function.waits:
            return None
        with self._lock:
            if self._later or (self._calls is not None and len(self._calls.nodes) >= _MOST_CALLS):
                self.flush()
            calls = self._calls
            if calls is None:
                calls = Calls(self._world(), version.number, _tree.root)
            slots = calls.slots
            fresh: dict[Value, NdArray] = {}
            key: list[Any] = [id(function), backend, recording]
            for value in sources:
                if value is None:
                    key.append(None)
                    continue
                slot: Any = slots.get(id(value))
                if slot is None:
                    if value in fresh:
                        slot = -1 - [*fresh].index(value)
                    else:
                        data = _steady(value)
                        if data is None:
                            return None
                        fresh[value] = data
                        slot = value.shape, value.parent is not None and value.need_grad
                key += (slot, value.need)
            after, known = calls.step, tuple(key)
            step = None if after is None else after.next.get(known)
            if step is None:
                step = _step(function, backend, sources, recording, calls, fresh)
                if after is not None and step.setup.shared:
                    _tree.grow(after, known, step)
            setup = step.setup
            if setup.index_names and not _are_checked(setup, sources):
                return None
            if function.alias and not _can_share(setup, sources[0]):
                return None
            self._calls = calls
            for value, data in fresh.items():
                calls.leaf(value, data)
                storage = data._storage
                if storage.record is None:
                    storage.record = self
                    calls.marked.append(storage)
            node = Node(setup, sources, operands, True, step.need)
            calls.nodes.append(node)
            calls.sources.append(step.sources)
            calls.step = step if setup.shared and after is not None else None
            return self._results(calls, node, step, recording)

    def _results(self, calls: Calls, node: Node, step: Step, recording: bool) -> list[Variable]:
        setup, targets = step.setup, node.targets
        alias = setup.function.alias
        outputs = []
        recomputing = recording and is_recomputing()
        for i, spec in enumerate(setup.outputs):
            shape = spec.shape
            value = Value(shape, None, node if recording else None, i)
            if alias:
                window = calls.data[step.sources[0]]
                data = NdArray._of(window._storage, shape, window._offset)
            else:
                storage = Storage(shape, spec.dtype, None)
                storage.record = self
                calls.marked.append(storage)
                data = NdArray._of(storage, shape)
            if recording:
                if recomputing:
                    value.recompute = calls.recomputes = True
                value._weak_data = weakref.ref(data)
                outputs.append(Variable._of(value, data))
            else:
                calls.is_graph = False
                value._data = data
                outputs.append(Variable._of(value))
            targets[i] = weakref.ref(value)
            calls.put(value, data)
        if alias and True in node.need:
            node.keep_alias(data)
        if setup.function.random:
            node.draw_ahead()
        return outputs

    def mark_recompute(self, node: Node) -> bool:
        """Look for marked results when calls are computed; False if `node` does not wait."""
        with self._lock:
            if self._calls is None or node not in self._calls.nodes:
                return False
            self._calls.recomputes = True
            return True

    def settle(self) -> None:
        """Settle what the waiting calls will forget."""
        with self._lock:
            if self._calls is not None:
                settle(self._calls)

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
            if calls is None or calls.nodes[-1] is not root.parent or not calls.is_graph:
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
            calls, self._calls = self._calls, None
            if calls is None:
                return
            for storage in calls.marked:
                storage.record = None
            calls.marked.clear()
            if calls.world is current_world():
                _run(calls)
            else:
                with world_scope(calls.world):
                    _run(calls)


def _run(calls: Calls) -> None:
    with np.errstate(all="ignore"):
        try:
            compute(calls)
        except BaseException:
            for data in calls.data:
                storage = data._storage
                if storage.array is None and storage.pending is None:
                    storage.clear("a function that was called before it has failed")
            raise


def _steady(value: Value) -> NdArray | None:
    """The data of a value that a call may read later: nobody outside can write to them."""
    data = value._data
    if data is None:
        try:
            data = value.data
        except ClearedError:
            return None  # and who computes it says for which function
    storage = data._storage
    if (storage.exported or storage.host is not None) and storage.is_written_outside():
        return None
    return data


def _step(
    function: Function,
    backend: Backend,
    sources: Sequence[Value | None],
    recording: bool,
    calls: Calls,
    fresh: Iterable[Value],
) -> Step:
    """What is to be known of a call, whose inputs `fresh` are new."""
    setup = prepare(function, shapes_of(sources), backend)
    need = needs(setup, sources) if recording else (False,) * len(sources)
    places = {id(value): len(calls.data) + i for i, value in enumerate(fresh)} | calls.slots
    slots = tuple(-1 if value is None else places[id(value)] for value in sources)
    return Step(function, setup, need, slots)


def _can_share(setup: Setup, source: Value | None) -> bool:
    """Whether a result may be its input's memory."""
    assert source is not None
    storage = source.data._storage
    return storage.dtype == setup.dtypes[0] and not storage.volatile


def _are_checked(setup: Setup, sources: Sequence[Value | None]) -> bool:
    """Check labels or indices, which a call reports at once; False where that cannot be done."""
    function = setup.function
    for position, name in setup.index_names.items():
        value = sources[position]
        if value is None:
            continue
        data = value.data
        storage = data._storage
        if function.check is None or storage.record is not None or storage.array is None:
            return False
        indices = read_indices(data, setup.backend, function.name, name)
        function.check(setup.backend.xp, indices, setup.input_shapes)
    return True


def current_record() -> Record:
    """The record of this World."""
    world = current_world()
    if world.record is None:
        world.record = Record(world)
    return world.record
