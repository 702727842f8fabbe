"""A backward recorded as CUDA graphs; see segment.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import launching, transfer
from .backend import Backend
from .capture import NUMBERS, PLACES, Refused, Site
from .graph import Node
from .ndarray import NdArray
from .plan import BackwardStep, Plan
from .segment import Input, observe, record, refuse_what_cannot, stays_in_place, words_of
from .storage import Storage

# More than that, lying elsewhere each time, is better read where it is.
_MOST_COPIED = 64 * 1024 * 1024


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
        lambda: observe(site, ((r[:3], r.data) for r in _reads(plan, nodes, steps))),
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
    """An array that a backward reads: where its node has it, and as Input is told."""

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
        refuse_what_cannot(plan)
        again = [made.node for step in steps for made in step.again]
        self._nodes = list(dict.fromkeys([*(step.node for step in steps), *again]))
        if not all(nodes[k].is_intact() for k in self._nodes):
            raise Refused("", for_ever=False)  # the program says why
        self._operands = {k: dict(nodes[k].operands) for k in self._nodes if nodes[k].operands}
        self._told = told
        backend = site.backend
        self._inputs: list[tuple[_Read, Input]] = []
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

        record(
            self.recording,
            lambda: program(
                stand_ins, windows, self._seed, False, ready, clear, memory, add_to_leaf
            ),
        )
        for _, each in self._inputs:
            each.is_recorded()
        self._brought = [entry for entry in self._inputs if not entry[1].stays]

    def _stand_in_reads(
        self,
        site: Site,
        plan: Plan,
        nodes: Sequence[Node],
        steps: Sequence[BackwardStep],
        stand_ins: Sequence[Any],
    ) -> None:
        found: dict[Any, Input] = {}
        copied = 0
        self._lasting = True  # what the graph reads is there after the backward
        for read in _reads(plan, nodes, steps):
            data, words = read.data, read.words
            stays = not words and stays_in_place(site, read[:3], data._storage)
            dtype = None if stays else read.dtype
            key = (id(data._storage), data._offset, data.shape, dtype, words)
            each = found.get(key)
            if each is None:
                each = found[key] = Input(data, read.dtype, words, site.backend, stays)
                copied += 0 if stays or read.leaf else each.place.nbytes
                if stays and not read.leaf and not site.backend.is_captured(data._storage.array):
                    self._lasting = False
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
        for k, operands in self._operands.items():
            if nodes[k].operands != operands:
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
        for read, each in self._brought:
            each.bring(read.find(nodes))
        if self._words is not None:
            self._words.set(words_of(nodes[k].same_random() for k in self._randoms))
        if not np.isscalar(seed):
            self._seeded = None
            transfer.copy(self._seed, np.asarray(seed) if not hasattr(seed, "dtype") else seed)
        elif seed != self._seeded:
            self._seeded = seed
            self._seed.fill(float(seed))  # type: ignore[arg-type]
        for number, events in enumerate(self._events):
            launching.launch(self.recording, number, self._written(grads))
            if not self._lasting:
                launching.launch_waiting()
            for kind, which in events:
                if kind == _RELEASE:
                    nodes[which].release()
                elif kind == _CLEAR:
                    clear(which)
                else:
                    storage = grads[which]._storage
                    self._places[self._numbers[which]].give(storage)
                    if told is not None:
                        launching.launch_waiting()
                        told(storage)

    def _written(self, grads: Sequence[Any]) -> list[Storage]:
        return [grads[slot]._storage for slot in self._numbers]


_RELEASE, _CLEAR, _READY = range(3)


class _BackwardNode:
    """Stands for a node while a backward is recorded."""

    def __init__(
        self, k: int, operands: dict[str, Any], events: list[list[tuple[int, int]]]
    ) -> None:
        self.operands = operands
        self.kept: dict[int, tuple[Input, np.dtype]] = {}
        self.again: dict[int, tuple[Input, np.dtype]] = {}
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
            launching.launch_waiting()
            storage.place(self.place.array.copy())  # the graph will write to its own again


def _settle(storage: Storage) -> None:
    """Bring what was written to the copy on the host to the device, if gradients are added to."""
    if storage.host is not None and not storage.zeroing:
        storage.materialize()
