"""State across ranks: give all ranks the state of one, and check that all have the same.

State is all parameters of the World, buffers (running statistics) included, and states and step
counts of solvers. Names, shapes and dtypes are checked by the header of the collective.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..context import current_world
from ..errors import ArgumentError, CommunicatorError
from ..ndarray import NdArray
from ..parameter import get_parameters
from ..transfer import copy, to_host
from .header import Agreement, Schedule, by_rank
from .transport import Transport

if TYPE_CHECKING:
    from .communicator import MultiProcessDataParallelCommunicator

# Arrays below this travel together.
_PACKED_BYTES = 64 * 1024


class State:
    """The arrays of a training state by name, and the step counts of solvers."""

    def __init__(self, function: str, solvers: Any = None) -> None:
        self.arrays: dict[str, NdArray] = {}  # by name, as errors say it
        self.paths: list[str] = []  # the same arrays' names in files
        self.solvers = as_solvers(function, solvers)
        settings = []
        for name, parameter in get_parameters(current_world().parameters, grad_only=False).items():
            self.arrays[name] = parameter.data
            self.paths.append(f"parameters/{name}")
            settings.append("" if parameter.need_grad else " (need_grad=False)")
        counts: list[int] = []
        self._states = [solver.get_states() for solver in self.solvers]
        for number, (solver, states) in enumerate(zip(self.solvers, self._states, strict=True)):
            where = f"solver {number} ({solver.name})" if number else f"solver ({solver.name})"
            for key, state in states.items():
                counts.append(state.t)
                for name, variable in state.pstate.items():
                    self.arrays[f"state {name} of {key} in {where}"] = variable.data
                    self.paths.append(f"solver{number}/{key}/{name}")
                    settings.append("")
        # Step counts, and what a solver computes with.
        self.counts = NdArray.from_numpy_array(np.array(counts, np.int64))
        if self.solvers:
            self.arrays["step counts of solvers"] = self.counts
            self.paths.append("step counts")
            settings.append(f" of {[len(states) for states in self._states]} parameters")
        self.entries = [
            f"{name} {array.shape} {array.dtype}{setting}"
            for (name, array), setting in zip(self.arrays.items(), settings, strict=True)
        ]

    def values(self) -> list[np.ndarray]:
        """The arrays' values on the host, in order: the memory itself where it is there."""
        return [to_host(memory) for memory in self._memory()]

    def take(self, values: Iterable[np.ndarray]) -> None:
        """Copy values in, in order; those of `values` may have been written to."""
        for memory, value in zip(self._memory(), values, strict=True):
            if memory is not value:
                copy(memory, value)
        for array in self.arrays.values():
            array._storage.written()
        counts = iter(self.counts.get_data("r").tolist())
        for solver, states in zip(self.solvers, self._states, strict=True):
            for state in states.values():
                state.t = next(counts)
            solver.set_states(states)

    def _memory(self) -> list[Any]:
        return [a._view(a._storage.materialize()) for a in self.arrays.values()]


def as_solvers(function: str, solvers: Any) -> list[Any]:
    """None, a solver or several, as a list."""
    if solvers is None:
        return []
    found = list(solvers) if isinstance(solvers, list | tuple) else [solvers]
    for solver in found:
        if not hasattr(solver, "get_states"):
            raise ArgumentError(
                f"[{function}] solver is {type(solver).__name__}; pass a solver or a list of them"
            )
    return found


def bcast_parameters(
    comm: MultiProcessDataParallelCommunicator, src: int, solver: Any, group: str
) -> None:
    """Copy parameters, and states of solvers, of rank `src` to all ranks of the group."""
    root, _ = comm._root("bcast_parameters", "src", src, group)
    state = State("bcast_parameters", solver)

    values = state.values()

    def job(transport: Transport, _: Agreement) -> None:
        broadcast(transport, values, root)

    comm._run(Schedule(f"bcast_parameters from rank {src}", state.entries), job, group)
    state.take(values)


def broadcast(transport: Transport, arrays: Iterable[np.ndarray], root: int) -> None:
    """Copy arrays of rank `root`, small ones together; they have equal shapes on all ranks."""
    small = []
    for array in arrays:
        if array.nbytes < _PACKED_BYTES or not array.flags.c_contiguous:
            small.append(array)
        else:
            transport.broadcast(array, root)
    if not small:
        return
    packed = np.frombuffer(b"".join(array.tobytes() for array in small), np.uint8).copy()
    transport.broadcast(packed, root)
    if transport.rank != root:
        start = 0
        for array in small:
            stop = start + array.nbytes
            array[...] = packed[start:stop].view(array.dtype).reshape(array.shape)
            start = stop


def check_consistency(comm: MultiProcessDataParallelCommunicator, solver: Any, group: str) -> None:
    """Compare checksums of parameters and states of solvers; raise on all ranks if any differs."""
    state = State("check_consistency", solver)
    settings = [
        f"{s.name} with learning_rate={s.learning_rate()!r}, {s.info}" for s in state.solvers
    ]
    digests = b"".join(checksum(array) for array in state.values())

    def job(transport: Transport, _: Agreement) -> list[bytes]:
        return transport.all_gather_bytes(digests)

    schedule = Schedule("check_consistency", [*state.entries, *settings])
    everybodys = comm._run(schedule, job, group)
    if all(found == digests for found in everybodys):
        return
    by_array = [
        [found[i : i + _DIGEST].hex() for found in everybodys]
        for i in range(0, len(digests), _DIGEST)
    ]
    names = list(state.arrays)
    different = [names[i] for i, found in enumerate(by_array) if len(set(found)) > 1]
    checksums = by_array[names.index(different[0])]
    who = by_rank(dict(zip(comm.find_group(group), checksums, strict=True)))
    others = f" (and {len(different) - 1} more of {len(names)} arrays)" if different[1:] else ""
    raise CommunicatorError(
        f"[check_consistency] ranks disagree in the values of {different[0]}{others}: checksum "
        f"{who}; comm.bcast_parameters(src) gives all ranks those of one"
    )


_DIGEST = 8  # bytes


def checksum(array: np.ndarray) -> bytes:
    """BLAKE2b of the array's bytes."""
    contiguous = np.ascontiguousarray(array).reshape(-1)
    return hashlib.blake2b(contiguous.view(np.uint8).data, digest_size=_DIGEST).digest()
