"""A forward recorded as CUDA graphs; see segment.py."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import launching, transfer
from .backend import Backend
from .capture import HELD, NUMBERS, PLACES, Refused, Site
from .graph import Node
from .ndarray import NdArray
from .plan import Plan
from .segment import Input, Made, observe, record, refuse_what_cannot, stays_in_place, words_of
from .storage import Storage

_INDEX = np.dtype(np.int64)


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
        lambda: observe(site, ((slot, data[slot]) for slot in plan.leaves)),  # type: ignore[misc]
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
        refuse_what_cannot(plan)
        self._backend = site.backend
        self._operands = {k: dict(n.operands) for k, n in enumerate(nodes) if n.operands}
        self._inputs: list[tuple[int, Input]] = []
        self.aliases: list[int] = []  # calls whose output is their input's memory
        self.updates: list[int] = []  # calls that change inputs
        self._randoms = [k for k, c in enumerate(plan.calls) if c.setup.function.random]
        self._keeping = [k for k in range(len(nodes)) if plan.keeps(k)]
        self._words = site.backend.words(3 * len(self._randoms)) if self._randoms else None
        self.recording = site.backend.recording()
        self._results = self._recorded(site, plan, program, nodes, data, storages)
        for _, each in self._inputs:
            each.is_recorded()
        self._brought = [entry for entry in self._inputs if not entry[1].stays]
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
        record(self.recording, lambda: program(stand_ins, leaves, places, nothing))
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
                    leaves[slot] = _Leaf(
                        data[slot], stays_in_place(site, slot, data[slot]._storage)
                    )
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
        for k, operands in self._operands.items():
            if nodes[k].operands != operands:
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
        for slot, each in self._brought:
            each.bring(data[slot])
        if self._words is not None:
            self._words.set(words_of(nodes[k].random() for k in self._randoms))
        for k in self.updates:
            nodes[k].before_effects()
        launching.launch(self.recording, 0, [storages[i] for i, _ in self._results])
        for i, array in self._results:
            if i in self._copied:
                array = launching.copy_afterwards(array, self._backend)
            storages[i].place(array)
            storages[i].exported = False  # who was given an array has another one
        for k in self.aliases:
            nodes[k].execute()
        for k in self._keeping:
            nodes[k].keep(kept[k])
        for k in self.updates:
            nodes[k].after_effects()


def _references(results: Sequence[tuple[int, Any]]) -> list[int]:
    """How many refer to each array."""
    return [sys.getrefcount(array) for _, array in results]


class _Leaf:
    """Stands for a leaf of a forward: one array for each dtype in which functions read it."""

    dtype = _INDEX  # so that what reads labels or indices asks for int64

    def __init__(self, data: NdArray, stays: bool) -> None:
        self.stays = stays
        self._data = data
        self._by_dtype: dict[np.dtype, Input] = {}

    def add(self, dtype: np.dtype, words: tuple[str, ...], backend: Backend) -> Input | None:
        """Get ready to be read as `dtype`; the new input where that takes one."""
        if dtype in self._by_dtype:
            return None
        if self.stays and not words:
            found = next((i for i in self._by_dtype.values() if i.stays), None)
            if found is not None:
                self._by_dtype[dtype] = found
                return None
        new = self._by_dtype[dtype] = Input(
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
        self._data[call.targets[0]] = Made(array.reshape(call.setup.results[0].shape))

    def commit(self, new: Sequence[Any]) -> None:
        self._segment.updates.append(self._k)
        call = self._plan.calls[self._k]
        declaration = call.setup.declaration
        for name, update in zip(declaration.updates, new, strict=True):
            slot = call.sources[declaration.inputs.index(name)]
            if slot >= 0:
                transfer.copy(self._data[slot].memory(), update)
