"""Segments: a program of a forward or a backward, recorded as CUDA graphs.

While it is recorded a program works on stand-ins for nodes, arrays and storages: what it does to
them is noted, not done. So a capture that fails leaves nothing behind. At each launch, the first
included, the host then does for the live graph what was noted: results get their memory, nodes keep
what gradients will read, random functions draw, callbacks learn of complete gradients.

What a graph reads lies at its own place, if that stays (parameters, results of another graph), or
is copied to a place of the segment's before the launch (batches).
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import transfer
from .backend import Backend
from .capture import HELD, NUMBERS, PLACES, Refused, Site
from .evaluation import read_indices
from .graph import Node
from .ndarray import NdArray, Storage
from .plan import BackwardStep, Plan

_INDEX = np.dtype(np.int64)
# More than that, lying elsewhere each time, is better read where it is.
_MOST_COPIED = 64 * 1024 * 1024


class _Input:
    """An array that a graph reads; stands for it while the graph is recorded.

    Args:
        words: of a function and of its labels or indices, which are read as int64; else none.
        stays: the graph reads it where it lies. It is held weakly: who is asked whether results of
            a graph are still held is that graph. Else it is copied to `place`.
    """

    __slots__ = (
        "_arrays",
        "_backend",
        "_copied",
        "_lies",
        "_offset",
        "_words",
        "dtype",
        "place",
        "stays",
    )

    def __init__(
        self, data: NdArray, dtype: np.dtype, words: tuple[str, ...], backend: Backend, stays: bool
    ) -> None:
        self._backend = backend
        self._words = words
        self.stays = stays
        self._offset = data._offset
        self._copied: tuple[Any, int] | None = None  # a storage, weakly, and its version
        self.place: Any = None
        if stays:
            self._lies = weakref.ref(data._storage.array)
            values = data._view(data._storage.array)
        else:
            values = self.place = backend.empty(data.shape, dtype)
        self.dtype = values.dtype
        self._arrays = {values.dtype: values}

    def read(self, dtype: np.dtype, backend: Backend | None = None) -> Any:
        """As NdArray.read, while the graph is recorded: a conversion is part of the graph."""
        array = self._arrays.get(dtype)
        if array is None:
            array = self._arrays[dtype] = self._backend.convert(self._arrays[self.dtype], dtype)
        return array

    def is_recorded(self) -> None:
        """Let go of what only the recording needed."""
        self._arrays = {}

    def fits(self, data: NdArray) -> bool:
        """Whether these values can be read, or copied, where the graph expects them."""
        if not self.stays:
            return True
        storage = data._storage
        lies = self._lies()
        if lies is None or storage.array is not lies or data._offset != self._offset:
            return False
        if storage.pending is not None or storage.host is not None or storage.record is not None:
            storage.materialize()
        return storage.array is lies

    def bring(self, data: NdArray) -> None:
        """Copy the values to where the graph reads them, unless they are there."""
        if self.stays:
            return
        if self._words:
            values = read_indices(data, self._backend, *self._words)
        else:
            values = data.read(self.dtype, self._backend)
        storage, copied = data._storage, self._copied
        if copied is None or copied[0]() is not storage or copied[1] != storage.version:
            self._copied = None if storage.exported else (weakref.ref(storage), storage.version)
            transfer.copy(self.place, values)


class _Made:
    """Stands for an array that the recorded program has made."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def read(self, dtype: np.dtype, backend: Backend | None = None) -> Any:
        return self._array


def _at_home(storage: Storage) -> bool:
    """Whether it is a parameter (or its gradient) in its place, which stays while it lives."""
    return storage.home is not None and storage.array is storage.home.array


def _stays(site: Site, key: Any, storage: Storage) -> bool:
    """Whether a graph may count on a storage's memory."""
    array = storage.array
    if array is None or not site.backend.holds(array):
        return False
    if storage.pending is not None or storage.host is not None:
        storage.materialize()
    if _at_home(storage) or site.backend.is_captured(array):
        return True
    seen = site.notes.get(key)
    return seen is not None and seen() is array


def _observe(site: Site, inputs: Iterable[tuple[Any, NdArray]]) -> None:
    """Note where arrays lie in a run of the program itself."""
    for key, data in inputs:
        array = data._storage.array
        if array is not None and site.backend.holds(array):
            site.notes[key] = weakref.ref(array)


def _record(recording: Any, work: Callable[[], None]) -> None:
    """Record work; raises Refused where it does what a CUDA graph cannot hold."""
    try:
        recording.record(work)
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"{type(error).__name__}: {error}") from error


def _refuse_what_cannot(plan: Plan) -> None:
    for call in plan.calls:
        if not call.setup.function.waits:
            raise Refused(f"{call.setup.function.name} does more than to queue work of its own")


# -- forward ---------------------------------------------------------------------------------------


def run_forward(
    site: Site,
    plan: Plan,
    program: Callable[..., None],
    nodes: Sequence[Node],
    data: Sequence[NdArray | None],
    storages: Sequence[Storage | None],
    kept: Sequence[tuple[NdArray, ...]],
    lent: bool = False,
) -> None:
    """Run a program of a forward, or what was captured of it.

    Args:
        nodes, data, storages, kept: the program's arguments.
        lent: results live as long as somebody holds them, and must not be overwritten then: those
            of a dynamic graph. Else they are the graph's, which is computed anew.
    """
    arguments = nodes, data, storages, kept
    site.run(
        lambda: program(*arguments),
        arguments,
        lambda: _Forward(site, plan, program, *arguments, lent),
        lambda: _observe(site, ((slot, data[slot]) for slot in plan.leaves)),  # type: ignore[misc]
    )


class _Forward:
    """A captured forward."""

    used = 0

    def __init__(
        self,
        site: Site,
        plan: Plan,
        program: Callable[..., None],
        nodes: Sequence[Node],
        data: Sequence[Any],
        storages: Sequence[Storage | None],
        kept: Sequence[tuple[NdArray, ...]],
        lent: bool,
    ) -> None:
        _refuse_what_cannot(plan)
        self._operands = [dict(node.operands) for node in nodes]
        self._inputs: list[tuple[int, _Input]] = []
        self.aliases: list[int] = []  # calls whose output is their input's memory
        self.updates: list[int] = []  # calls that change inputs
        self._randoms = [k for k, c in enumerate(plan.calls) if c.setup.function.random]
        self._keeping = [k for k in range(len(nodes)) if plan.keeps(k)]
        self._words = site.backend.words(3 * len(self._randoms)) if self._randoms else None
        self.recording = site.backend.recording()
        self._results = self._recorded(site, plan, program, nodes, data, storages)
        for _, each in self._inputs:
            each.is_recorded()
        self._unheld = _references(self._results) if lent else None
        # What no gradient reads is copied for those who hold it: they may hold it for long.
        read = {id(array._storage) for arrays in kept for array in arrays}
        self._copied = {i for i, _ in self._results if lent and id(storages[i]) not in read}

    def _recorded(
        self,
        site: Site,
        plan: Plan,
        program: Callable[..., None],
        nodes: Sequence[Node],
        data: Sequence[Any],
        storages: Sequence[Storage | None],
    ) -> list[tuple[int, Any]]:
        """Record the program; returns the results with their numbers among the storages."""
        leaves = self._stand_in_leaves(site, plan, data)
        places: list[Storage | None] = []
        for slot, storage in enumerate(storages):
            place = None
            if storage is not None and slot not in plan.leaves:
                place = Storage(storage.shape, storage.dtype, None)
                if storage.home is not None:  # `outputs=[parameter]`
                    place.home, place.array = storage.home, storage.home.array
            places.append(place)
        stand_ins = [
            _ForwardNode(self, plan, k, node, leaves, places) for k, node in enumerate(nodes)
        ]
        for number, k in enumerate(self._randoms):
            stand_ins[k].draw = site.backend.draw_in_memory(self._words, 3 * number)
        nothing = [()] * len(nodes)
        _record(self.recording, lambda: program(stand_ins, leaves, places, nothing))
        return [
            (i, place.array)
            for i, place in enumerate(places)
            if place is not None and place.array is not None
        ]

    def _stand_in_leaves(self, site: Site, plan: Plan, data: Sequence[Any]) -> list[Any]:
        leaves: list[Any] = [None] * len(data)
        changed = {
            call.sources[call.setup.declaration.inputs.index(name)]
            for call in plan.calls
            for name in call.setup.declaration.updates
        }
        for call in plan.calls:
            for position, slot in enumerate(call.sources):
                if slot not in plan.leaves:
                    continue
                name = call.setup.index_names.get(position)
                words = () if name is None else (call.setup.function.name, name)
                if leaves[slot] is None:
                    leaves[slot] = _Leaf(data[slot], _stays(site, slot, data[slot]._storage))
                    if slot in changed and not leaves[slot].stays:
                        raise Refused(f"{call.setup.function.name} changes an array elsewhere")
                dtype = _INDEX if words else call.setup.dtypes[position]
                new = leaves[slot].add(dtype, words, site.backend)
                if new is not None:
                    self._inputs.append((slot, new))
        return leaves

    def differs(
        self,
        nodes: Sequence[Node],
        data: Sequence[Any],
        storages: Sequence[Any],
        kept: Sequence[Any],
    ) -> str:
        if [node.operands for node in nodes] != self._operands:
            return NUMBERS
        if not self.recording.usable:
            return PLACES
        for slot, each in self._inputs:
            if not each.fits(data[slot]):
                return PLACES
        if self._unheld is not None and self._unheld != _references(self._results):
            return HELD
        return ""

    def run(
        self,
        nodes: Sequence[Node],
        data: Sequence[Any],
        storages: Sequence[Any],
        kept: Sequence[Any],
    ) -> None:
        for slot, each in self._inputs:
            each.bring(data[slot])
        if self._words is not None:
            self._words.set(_words_of(nodes[k].random() for k in self._randoms))
        for k in self.updates:
            nodes[k].before_effects()
        self.recording.launch()
        for i, array in self._results:
            storages[i].place(array.copy() if i in self._copied else array)
            storages[i].exported = False  # who was given an array has another one
        for k in self.aliases:
            nodes[k].execute()
        for k in self._keeping:
            nodes[k].keep(kept[k])
        for k in self.updates:
            nodes[k].after_effects()


def _words_of(draws: Iterable[Any]) -> list[int]:
    """What a graph reads of draws."""
    return [word for draw in draws for word in (draw.seed, draw.worker, draw.draw)]


def _references(results: Sequence[tuple[int, Any]]) -> list[int]:
    """How many refer to each array."""
    return [sys.getrefcount(array) for _, array in results]


class _Leaf:
    """Stands for a leaf of a forward: one array for each dtype in which functions read it."""

    dtype = _INDEX  # so that what reads labels or indices asks for int64

    def __init__(self, data: NdArray, stays: bool) -> None:
        self.stays = stays
        self._data = data
        self._by_dtype: dict[np.dtype, _Input] = {}

    def add(self, dtype: np.dtype, words: tuple[str, ...], backend: Backend) -> _Input | None:
        """Get ready to be read as `dtype`; the new input where that takes one."""
        if dtype in self._by_dtype:
            return None
        if self.stays and not words:
            found = next((i for i in self._by_dtype.values() if i.stays), None)
            if found is not None:
                self._by_dtype[dtype] = found
                return None
        new = self._by_dtype[dtype] = _Input(
            self._data, dtype, words, backend, self.stays and not words
        )
        return new

    def read(self, dtype: np.dtype, backend: Backend | None = None) -> Any:
        return self._by_dtype[dtype].read(dtype)

    def memory(self) -> Any:
        """Its own memory, for what functions change."""
        found = next(each for each in self._by_dtype.values() if each.stays)
        return found.read(found.dtype)


class _ForwardNode:
    """Stands for a node while a forward is recorded."""

    def __init__(
        self, segment: _Forward, plan: Plan, k: int, node: Node, data: list[Any], places: list[Any]
    ) -> None:
        self._segment = segment
        self._plan = plan
        self._k = k
        self._data = data
        self._places = places
        self.operands = node.operands
        self.draw: Any = None

    def random(self) -> Any:
        return self.draw

    def keep(self, kept: Any) -> None:
        pass

    def execute(self) -> None:
        """The output is a window onto the input's memory."""
        self._segment.aliases.append(self._k)
        call = self._plan.calls[self._k]
        source = self._data[call.sources[0]]
        if source is None:
            array = self._places[call.sources[0]].array
        else:
            array = source.read(call.setup.dtypes[0])
        self._data[call.targets[0]] = _Made(array.reshape(call.setup.results[0].shape))

    def commit(self, new: Sequence[Any]) -> None:
        self._segment.updates.append(self._k)
        call = self._plan.calls[self._k]
        declaration = call.setup.declaration
        for name, update in zip(declaration.updates, new, strict=True):
            slot = call.sources[declaration.inputs.index(name)]
            if slot >= 0:
                transfer.copy(self._data[slot].memory(), update)


# -- backward --------------------------------------------------------------------------------------


def run_backward(
    site: Site,
    plan: Plan,
    steps: Sequence[BackwardStep],
    program: Callable[..., None],
    run: Callable[..., None],
    nodes: Sequence[Node],
    grads: Sequence[Any],
    seed: Any,
    tell: Callable[[Storage], None] | None,
    callbacks: Sequence[Any],
    clear: Callable[[int], None],
    memory: Any,
    add_to_leaf: Any,
) -> None:
    """Run a program of a backward, or what was captured of it.

    Args:
        run: runs the program; it takes the program's argument `ready`.
        seed: the gradient of the root, as the user gave it.
        tell: tells the callbacks of a complete gradient; None where there are none.
        nodes, grads, clear, memory, add_to_leaf: the program's arguments.
    """
    cuts: list[int] = site.notes.setdefault("cuts", [])
    watched = _Starts(tell, callbacks, cuts) if tell is not None and not cuts else tell
    site.run(
        lambda: run(watched),
        (nodes, grads, seed, tell, clear),
        lambda: _Backward(
            site, plan, steps, program, nodes, grads, tell is not None, memory, add_to_leaf
        ),
        lambda: _observe(site, ((r[:3], r.data) for r in _reads(plan, nodes, steps))),
    )


class _Starts:
    """Tells callbacks of complete gradients, and notes after which of them an exchange starts.

    There the graph of a backward is cut, so that the exchange goes on beside what comes after.
    """

    def __init__(
        self, tell: Callable[[Storage], None], callbacks: Sequence[Any], cuts: list[int]
    ) -> None:
        self._tell = tell
        self._callbacks = callbacks
        self._cuts = cuts
        self._number = 0

    def __call__(self, storage: Storage) -> None:
        # Callbacks that do not count what they start may start something each time.
        before = [getattr(callback, "started", -1) for callback in self._callbacks]
        self._tell(storage)
        after = [getattr(callback, "started", -2) for callback in self._callbacks]
        if before != after:
            self._cuts.append(self._number)
        self._number += 1


class _Read(NamedTuple):
    """An array that a backward reads: where its node has it, and as _Input is told."""

    node: int
    position: int
    again: bool  # to compute again what was forgotten, not for a gradient
    data: NdArray
    dtype: np.dtype
    words: tuple[str, ...]
    leaf: bool

    def find(self, nodes: Sequence[Node]) -> NdArray:
        return nodes[self.node].data_at(self.position, self.again)


def _reads(plan: Plan, nodes: Sequence[Node], steps: Sequence[BackwardStep]) -> Iterator[_Read]:
    if not all(nodes[step.node].is_intact() for step in steps):
        return  # the program says what is missing
    for step in steps:
        found = [(step.node, False, nodes[step.node].kept_data())]
        found += [(made.node, True, nodes[made.node].data_again()) for made in step.again]
        for k, again, arrays in found:
            call = plan.calls[k]
            slots = (*call.sources, *call.targets)
            for position, data in arrays.items():
                name = call.setup.index_names.get(position)
                words = () if name is None else (call.setup.function.name, name)
                leaf = position < len(slots) and slots[position] in plan.leaves
                yield _Read(k, position, again, data, call.setup.dtypes[position], words, leaf)


class _Backward:
    """A captured backward: several graphs where exchanges start in between."""

    used = 0

    def __init__(
        self,
        site: Site,
        plan: Plan,
        steps: Sequence[BackwardStep],
        program: Callable[..., None],
        nodes: Sequence[Node],
        grads: Sequence[Any],
        told: bool,
        memory: Any,
        add_to_leaf: Any,
    ) -> None:
        _refuse_what_cannot(plan)
        again = [made.node for step in steps for made in step.again]
        self._nodes = list(dict.fromkeys([*(step.node for step in steps), *again]))
        if not all(nodes[k].is_intact() for k in self._nodes):
            raise Refused("", for_ever=False)  # the program says why
        self._operands = [dict(nodes[k].operands) for k in self._nodes]
        self._told = told
        backend = site.backend
        self._inputs: list[tuple[_Read, _Input]] = []
        stand_ins: list[Any] = [None] * len(nodes)
        self._events: list[list[tuple[int, int]]] = [[]]
        for k in self._nodes:
            stand_ins[k] = _BackwardNode(k, nodes[k].operands, self._events)
        self._stand_in_reads(site, plan, nodes, steps, stand_ins)
        self._randoms = [k for k in dict.fromkeys(again) if plan.calls[k].setup.function.random]
        self._words = backend.words(3 * len(self._randoms)) if self._randoms else None
        for number, k in enumerate(self._randoms):
            stand_ins[k].draw = backend.draw_in_memory(self._words, 3 * number)
        self._places: dict[int, _Gradient] = {}
        windows: list[Any] = [None] * len(grads)
        slot_of: dict[int, int] = {}
        for slot, number in plan.gradients.items():
            if number not in self._places:
                self._places[number] = _Gradient(grads[slot]._storage, backend)
            place = self._places[number].place
            windows[slot] = NdArray._of(place, grads[slot].shape, grads[slot]._offset)
        self._numbers = plan.gradients
        self._offsets = [grads[slot]._offset for slot in plan.gradients]
        spec = plan.calls[plan.producer[plan.roots[0]]]
        root = spec.setup.results[plan.roots[0] - spec.targets[0]]
        self._seed = backend.empty(root.shape, root.dtype)
        self._seeded: Any = None  # the number that it was filled with
        self.recording = backend.recording()
        cuts = site.notes["cuts"] if told else ()
        slot_of = {id(self._places[n].place): slot for slot, n in plan.gradients.items()}
        count = 0

        def ready(place: Storage) -> None:
            nonlocal count
            self._events[-1].append((_READY, slot_of[id(place)]))
            if count in cuts:
                self.recording.cut()
                self._events.append([])
            count += 1

        def clear(number: int) -> None:
            self._events[-1].append((_CLEAR, number))

        _record(
            self.recording,
            lambda: program(
                stand_ins, windows, self._seed, False, ready, clear, memory, add_to_leaf
            ),
        )
        for _, each in self._inputs:
            each.is_recorded()

    def _stand_in_reads(
        self,
        site: Site,
        plan: Plan,
        nodes: Sequence[Node],
        steps: Sequence[BackwardStep],
        stand_ins: Sequence[Any],
    ) -> None:
        found: dict[Any, _Input] = {}
        copied = 0
        for read in _reads(plan, nodes, steps):
            data, words = read.data, read.words
            stays = not words and _stays(site, read[:3], data._storage)
            dtype = None if stays else read.dtype
            key = (id(data._storage), data._offset, data.shape, dtype, words)
            each = found.get(key)
            if each is None:
                each = found[key] = _Input(data, read.dtype, words, site.backend, stays)
                copied += 0 if stays or read.leaf else each.place.nbytes
                self._inputs.append((read._replace(data=None), each))  # type: ignore[arg-type]
            stand_in = stand_ins[read.node]
            (stand_in.again if read.again else stand_in.kept)[read.position] = each, read.dtype
        if copied and not site.is_patient_no_more():
            raise Refused("its forward is not captured yet", for_ever=False)
        if copied > _MOST_COPIED:
            raise Refused(
                f"forward is not captured, and keeps {copied >> 20} MiB elsewhere in each run"
            )

    def differs(
        self,
        nodes: Sequence[Node],
        grads: Sequence[Any],
        seed: Any,
        told: Any,
        clear: Any,
    ) -> str:
        for k in self._nodes:
            if not nodes[k].is_intact():
                return PLACES
        if [nodes[k].operands for k in self._nodes] != self._operands:
            return NUMBERS
        if not self.recording.usable or (told is not None) != self._told:
            return PLACES
        if [grads[slot]._offset for slot in self._numbers] != self._offsets:
            return PLACES
        for slot, number in self._numbers.items():
            if not self._places[number].fits(grads[slot]._storage):
                return PLACES
        for read, each in self._inputs:
            if not each.fits(read.find(nodes)):
                return PLACES
        return ""

    def run(
        self,
        nodes: Sequence[Node],
        grads: Sequence[Any],
        seed: Any,
        told: Callable[[Storage], None] | None,
        clear: Callable[[int], None],
    ) -> None:
        for read, each in self._inputs:
            each.bring(read.find(nodes))
        if self._words is not None:
            self._words.set(_words_of(nodes[k].same_random() for k in self._randoms))
        if not np.isscalar(seed):
            self._seeded = None
            transfer.copy(self._seed, np.asarray(seed) if not hasattr(seed, "dtype") else seed)
        elif seed != self._seeded:
            self._seeded = seed
            self._seed.fill(float(seed))  # type: ignore[arg-type]
        for number, events in enumerate(self._events):
            self.recording.launch(number)
            for kind, which in events:
                if kind == _RELEASE:
                    nodes[which].release()
                elif kind == _CLEAR:
                    clear(which)
                else:
                    storage = grads[which]._storage
                    self._places[self._numbers[which]].give(storage)
                    if told is not None:
                        told(storage)


_RELEASE, _CLEAR, _READY = range(3)


class _BackwardNode:
    """Stands for a node while a backward is recorded."""

    def __init__(
        self, k: int, operands: dict[str, Any], events: list[list[tuple[int, int]]]
    ) -> None:
        self.operands = operands
        self.kept: dict[int, tuple[_Input, np.dtype]] = {}
        self.again: dict[int, tuple[_Input, np.dtype]] = {}
        self.draw: Any = None
        self._k = k
        self._events = events

    def kept_arrays(self) -> dict[int, Any]:
        return {position: each.read(dtype) for position, (each, dtype) in self.kept.items()}

    def kept_inputs(self) -> dict[int, Any]:
        return {position: each.read(dtype) for position, (each, dtype) in self.again.items()}

    def same_random(self) -> Any:
        return self.draw

    def release(self) -> None:
        self._events[-1].append((_RELEASE, self._k))


class _Gradient:
    """Where the gradient of a leaf is written, and whether it is overwritten or added to."""

    def __init__(self, storage: Storage, backend: Backend) -> None:
        _settle(storage)
        self._array = storage.array
        if self._array is not None and not backend.holds(self._array):
            raise Refused("a gradient lies on the host")
        self._state = storage.zeroing, storage.pending
        self.place = Storage(storage.shape, storage.dtype, storage.pending)
        self.place.zeroing = storage.zeroing
        self.place.array = storage.array
        self.place.home = storage.home

    def fits(self, storage: Storage) -> bool:
        _settle(storage)
        return storage.array is self._array and (storage.zeroing, storage.pending) == self._state

    def give(self, storage: Storage) -> None:
        """The gradient is complete: whoever reads it finds it."""
        if self.place.array is self._array:
            storage.written()
        else:
            storage.place(self.place.array.copy())  # the graph will write to its own again


def _settle(storage: Storage) -> None:
    """Bring what was written to the copy on the host to the device, if gradients are added to."""
    if storage.host is not None and not storage.zeroing:
        storage.materialize()
