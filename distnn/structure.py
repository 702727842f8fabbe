"""The structure of a graph: what its plan depends on, of its nodes and values at one moment."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from .function import Setup
from .graph import Node, needs, nodes_of
from .recompute import marked
from .value import Value


class Graph:
    """A live graph at one moment: its nodes, in order of creation, and its values by slot."""

    def __init__(
        self, roots: Sequence[Value], calls: list[Node] | None = None, upcoming: bool = False
    ) -> None:
        """Look at a graph.

        Args:
            calls: only these, in order of creation: recorded calls, whose results are computed for
                the first time. None is all that the roots depend on.
            upcoming: what its next forward will forget (recompute.py), not what its last one did.
        """
        self.recorded = calls is not None
        self.nodes: list[Node] = nodes_of(roots) if calls is None else calls
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
            forgets = marked(node) if upcoming and not node.eager else node.forgets
            if forgets:
                for i in range(setup.n_outputs):
                    flags |= (forgets >> i & 1) * FORGOTTEN << (_FLAGS * i)
            parts += (setup, tuple(sources), count, node.need, flags)
            count += setup.n_outputs
            shared = shared and setup.shared
        self._slots = slots
        # Leaves are told apart by where their gradients go, not by the Variable: a parameter used
        # twice is one leaf, whatever views of it the layers were given.
        places: dict[int, int] = {}
        self.gradients: dict[int, int] = {}  # leaf slot -> number of its gradient's storage
        for slot, value in self.leaves.items():
            if value.need_grad and not self.recorded:
                storage = value.grad._storage
                self.gradients[slot] = places.setdefault(id(storage), len(places))
        self.n_slots = count
        self.roots = tuple(slots[id(value)] for value in roots)
        self.key = (tuple(parts), tuple(self.gradients.items()), self.roots, self.recorded)
        self.shared = shared

    def held(self) -> frozenset[int]:
        """Slots of results that somebody holds besides the nodes of this graph."""
        readers = Counter(id(value) for node in self.nodes for value in node.sources)
        found = []
        for node in self.nodes:
            for i in range(node.setup.n_outputs):
                value = node.live_output(i)
                # By a local name here, and as an argument.
                if value is not None and sys.getrefcount(value) > readers[id(value)] + 2:
                    found.append(self._slots[id(value)])
        return frozenset(found)

    def slot_of(self, value: Value) -> int | None:
        """The slot of a value; None for one that is not in this graph."""
        return self._slots.get(id(value))


# Bits of an output's flags.
PERSISTENT, BLOCKED, WANTED, FORGOTTEN, MARKED = 1, 2, 4, 8, 16
_FLAGS = 5


def _flags(output: Value) -> int:
    """What the user set on a result: to keep it or not, to stop gradients at it, to start them."""
    flags = PERSISTENT if output.persistent else 0
    flags |= MARKED if output.recompute else 0
    if output.need is not None:
        flags |= WANTED if output.need else BLOCKED
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


def all_forgotten(call: Call) -> int:
    return sum(FORGOTTEN << (_FLAGS * i) for i in range(len(call.targets)))
