"""Active parameters, those that got a gradient, as runs of memory; kept while that memory stays."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .. import transfer
from ..parameter_slab import Block, Run, runs
from ..storage import Storage
from ..value import version
from ..variable import Variable

if TYPE_CHECKING:
    from ..backend import Backend

_ARRAY, _PENDING, _HOST = map(operator.attrgetter, ("array", "pending", "host"))


class Parameter:
    """A registered parameter with its states; `states` are flat arrays."""

    __slots__ = ("block", "key", "start", "states", "t", "variable")

    def __init__(self, key: str, variable: Variable) -> None:
        self.key = key
        self.variable = variable
        self.t = 0
        self.states: dict[str, Any] = {}
        self.block: Block | None = None
        self.start = 0


class ActiveRuns:
    """Groups of parameters as few flat ranges; the arrays of each are listed once.

    Args:
        groups: of parameters whose memory may be one run.
        states: makes the arrays of a run's states, of the run and its first parameter.
    """

    def __init__(
        self,
        groups: Iterable[Sequence[Parameter]],
        states: Callable[[Run, Parameter], list[Any]],
    ) -> None:
        self.parameters: list[Parameter] = []
        self.runs: list[Run] = []
        self.arrays: list[list[Any]] = []  # of each run: parameters, gradients, then the states
        self.first: list[Parameter] = []  # of each run: all of its members have equal step counts
        for group in groups:
            self.parameters += group
            found = runs((i, p.variable.data, p.variable.grad) for i, p in enumerate(group))
            self.runs += found
            self.first += [group[run.members[0]] for run in found]
        for run, first in zip(self.runs, self.first, strict=True):
            self.arrays.append([run.data, run.grad, *states(run, first)])
        backends = {transfer.backend_of(run.grad) for run in self.runs}
        # Where all of the memory is; None if it is not in one place.
        self.backend: Backend | None = backends.pop() if len(backends) == 1 else None
        self._version = version.number
        self._storages = self.written = self._present_storages()
        self._memory = [*map(_ARRAY, self._storages)]
        self._nothing = [None] * len(self._storages)

    def are_current(self) -> bool:
        """Whether all memory is where it was, and holds its values."""
        if self._version != version.number:
            if not all(map(operator.is_, self._present_storages(), self._storages)):
                return False
            self._version = version.number
        storages = self._storages
        return (
            all(map(operator.is_, map(_ARRAY, storages), self._memory))
            and [*map(_PENDING, storages)] == self._nothing
            and all(map(operator.is_, map(_HOST, storages), self._nothing))
        )

    def updated(self) -> None:
        """Count an update."""
        for parameter in self.parameters:
            parameter.t += 1
        for storage in self._storages[::2]:
            storage.version += 1

    def _present_storages(self) -> list[Storage]:
        """Of data and gradient of each parameter."""
        pairs = ((p.variable.data, p.variable.grad) for p in self.parameters)
        return [array._storage for pair in pairs for array in pair]
