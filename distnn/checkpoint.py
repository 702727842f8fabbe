"""Checkpoints: all that training depends on, in one file, so that it goes on with the same bits.

In it are all parameters of the World, buffers included; states, step counts and learning rates of
solvers; the random numbers' seed and counters; the data iterator's position; what compressions of
gradients keep (error feedback); and what else keeps a state (`others`). Of several ranks, rank 0
writes and reads the file. What a rank has that differs from rank 0 (its position in the data,
running statistics of its part of the batch) is in it too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from .checkpoint_file import pack, replace, unpack
from .communicators.header import Agreement, Schedule
from .communicators.state import State, checksum
from .context import current_world
from .data import DataIterator
from .errors import CheckpointError, DistnnError
from .logger import logger
from .parameter import get_parameters
from .random import get_state, set_state

if TYPE_CHECKING:
    from .communicators.communicator import MultiProcessDataParallelCommunicator
    from .communicators.transport import Transport

T = TypeVar("T")


def save(
    path: str | os.PathLike[str],
    solver: Any = None,
    iterator: Any = None,
    comm: MultiProcessDataParallelCommunicator | None = None,
    *,
    others: Mapping[str, Any] | None = None,
    keep: int = 1,
    **extra: Any,
) -> None:
    """Write a checkpoint; all ranks call it, rank 0 writes.

    The file is written beside `path`, brought to the disk and then moved there: a crash leaves the
    old one. Call it between iterations, after `solver.update()`.

    Args:
        path: of the file; its layout is that of .safetensors.
        solver: a solver, or a list of solvers.
        iterator: a data iterator; each rank its own.
        comm: a communicator; None saves this rank alone. The others wait while rank 0 writes, at
            most for the communicator's timeout.
        others: name -> object with get_states() and set_states(...), of plain values and arrays.
        keep: how many checkpoints to keep: `path` is the newest, `name.1.ending` the one before.
        extra: values of your own, that `resume` returns: `iteration=i`. Of rank 0.
    Raises: CheckpointError, on all ranks, where the file cannot be written.

    >>> import os, tempfile, distnn as nn, distnn.parametric_functions as PF, distnn.solvers as S
    >>> y = PF.affine(nn.Variable((2, 3)), 4)
    >>> solver = S.Momentum(0.1)
    >>> solver.set_parameters(nn.get_parameters())
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "last.safetensors")
    ...     save(path, solver, iteration=7)
    ...     resume(path, solver)
    {'iteration': 7}
    """
    if not isinstance(keep, int) or keep < 1:
        raise CheckpointError(f"[save] keep is {keep!r}; pass an int of 1 or more")
    path = os.fspath(path)
    state = State("save", solver)
    memory = dict(zip(state.paths, state.values(), strict=True))
    own = {
        "random": get_state(),
        "iterator": None if iterator is None else iterator.get_state(),
        "compressions": [{"kind": c.describe(), **c.get_states()} for c in _compressions()],
        "others": {name: item.get_states() for name, item in (others or {}).items()},
    }
    digests = [checksum(array) for array in memory.values()]

    def job(transport: Transport, _: Agreement) -> list[bytes] | None:
        first = transport.all_gather_bytes(b"".join(digests))[0]
        size = len(digests[0]) if digests else 1
        differing = {
            name: array
            for i, (name, array) in enumerate(memory.items())
            if digests[i] != first[i * size : (i + 1) * size]
        }
        return _gathered(transport, pack("save", differing, own))

    if comm is None:
        parts: list[bytes] | None = [pack("save", {}, own)]
    else:
        parts = comm._run(Schedule("checkpoint.save", state.entries), job)

    def write() -> None:
        if parts is None:
            return
        arrays = dict(memory)
        values = []
        for rank, part in enumerate(parts):
            found, plain = unpack("save", f"the state of rank {rank}", part)
            values.append(plain)
            arrays.update({f"rank{rank}/{name}": array for name, array in found.items()})
        solvers = [
            {"name": s.name, "info": s.info, "learning_rate": s.learning_rate()}
            for s in state.solvers
        ]
        need_grad = {name: bool(p.need_grad) for name, p in _parameters().items()}
        content = {"ranks": values, "solvers": solvers, "need_grad": need_grad, "extra": extra}
        try:
            replace(path, pack("save", arrays, content), keep)
        except OSError as reason:
            raise CheckpointError(f"[save] {path!r} cannot be written: {reason}") from reason

    _on_all("checkpoint.save wrote", comm, write)


def resume(
    path: str | os.PathLike[str],
    solver: Any = None,
    iterator: Any = None,
    comm: MultiProcessDataParallelCommunicator | None = None,
    *,
    others: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Take over the state of a checkpoint; build the network and the solvers as before first.

    And compressions of gradients. All ranks call it. Rank 0 reads the file and broadcasts it.
    Everything is checked before anything is changed. On another number of ranks pass iterator=None
    and others=None, since those belong to single ranks; buffers that differed are then those of
    rank 0, and compressions begin anew.

    Args:
        path, solver, iterator, comm, others: as of `save`; what was saved with None, or is of no
            interest, may be left out.
    Returns: the values that `save` was given as `extra`.
    Raises: CheckpointError, on all ranks, where the file is missing or damaged, or where a
        parameter, a solver's setting or the number of ranks is another.
    """
    path = os.fspath(path)
    content = _on_all("checkpoint.resume read", comm, lambda: _read(path, comm))
    if comm is not None:
        content = comm._run(
            Schedule("checkpoint.resume", []), lambda transport, _: _spread(transport, content)
        )
    rank, size = (0, 1) if comm is None else (comm.rank, comm.size)
    state = State("resume", solver)

    def fit() -> tuple[dict[str, np.ndarray], dict[str, Any], dict[str, Any]]:
        arrays, values = unpack("resume", repr(path), content)
        same_size = len(values["ranks"]) == size
        if same_size:
            own = {k: arrays.get(f"rank{rank}/{k}", arrays[k]) for k in arrays if k[:4] != "rank"}
        else:
            own = {k: a for k, a in arrays.items() if k[:4] != "rank"}
        if not same_size and (iterator is not None or others):
            raise CheckpointError(
                f"[resume] {path!r} is of {len(values['ranks'])} ranks but here are {size}: pass "
                "iterator=None and no others, whose states belong to single ranks"
            )
        mine = values["ranks"][rank if same_size else 0]
        _check(path, state, own, values)
        if same_size:
            _check_compressions(path, mine["compressions"])
        if iterator is not None and mine["iterator"] is None:
            raise CheckpointError(f"[resume] {path!r} was saved without iterator; pass None")
        missing = sorted(set(others or {}) - set(mine["others"]))
        if missing:
            raise CheckpointError(
                f"[resume] {path!r} has no states of {missing} but of {sorted(mine['others'])}"
            )
        if isinstance(iterator, DataIterator):
            iterator._batches.check_state(mine["iterator"])
        return own, values, mine

    own, values, mine = _on_all("checkpoint.resume fits", comm, fit)
    state.take(own[name] for name in state.paths)
    for name, parameter in _parameters().items():
        parameter.need_grad = values["need_grad"][name]
    for item, saved in zip(state.solvers, values["solvers"], strict=False):
        item.set_learning_rate(saved["learning_rate"])
    if iterator is not None:
        iterator.set_state(mine["iterator"])
    for name, other in (others or {}).items():
        other.set_states(mine["others"][name])
    if len(values["ranks"]) == size:
        for compression, saved in zip(_compressions(), mine["compressions"], strict=False):
            compression.set_states(saved)
    set_state(mine["random"])
    return values["extra"]


def _parameters() -> dict[str, Any]:
    return get_parameters(current_world().parameters, grad_only=False)


def _compressions() -> list[Any]:
    return list(current_world().compressions.values())


def _check_compressions(path: str, saved: Sequence[Mapping[str, Any]]) -> None:
    here, there = [c.describe() for c in _compressions()], [states["kind"] for states in saved]
    if here == there:
        return
    if here and there:
        raise CheckpointError(
            f"[resume] here are the compressions {here} but in {path!r} {there}; make the same "
            "ones, in the same order, before resume"
        )
    if any(states["residuals"] for states in saved):
        logger.warning(
            "%r has error feedback of %s but no compression was made before resume: what was not "
            "sent yet is lost",
            path,
            there,
        )


def _check(path: str, state: State, saved: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Raise where the checkpoint is of another network or other solvers."""
    here = [path for path in state.paths if path.startswith("parameters/")]
    there = [path for path in saved if path.startswith("parameters/")]
    for name in there:
        if name not in here:
            raise CheckpointError(
                f"[resume] parameter {name[11:]!r} is in {path!r} but not here; build the network "
                "before resume, and the same one"
            )
    if state.solvers and len(state.solvers) != len(values["solvers"]):
        raise CheckpointError(
            f"[resume] got {len(state.solvers)} solvers but {path!r} has {len(values['solvers'])}; "
            "pass all of them, in the same order, or None"
        )
    for number, (solver, old) in enumerate(zip(state.solvers, values["solvers"], strict=False)):
        if (solver.name, solver.info) != (old["name"], old["info"]):
            raise CheckpointError(
                f"[resume] solver {number} is {solver.name} with {solver.info} but that of "
                f"{path!r} is {old['name']} with {old['info']}; make it with the same settings "
                "(its learning rate is restored, and can be set afterwards)"
            )
    for name, array in zip(state.paths, state.arrays.values(), strict=True):
        said = f"parameter {name[11:]!r}" if name.startswith("parameters/") else repr(name)
        found = saved.get(name)
        if found is None:
            raise CheckpointError(
                f"[resume] {said} is here but not in {path!r}; build the same network, and register"
                " the same parameters at the solver"
            )
        if found.shape != array.shape or found.dtype != array.dtype:
            raise CheckpointError(
                f"[resume] {said} is {array.shape} {array.dtype} but in {path!r} {found.shape} "
                f"{found.dtype}; resume with the network that was saved"
            )


# -- ranks ----------------------------------------------------------------------------------------


def _read(path: str, comm: MultiProcessDataParallelCommunicator | None) -> bytes:
    if comm is not None and comm.rank:
        return b""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as reason:
        raise CheckpointError(f"[resume] {path!r} cannot be read: {reason}") from reason
    unpack("resume", repr(path), content)  # notices damage before it is sent
    return content


def _gathered(transport: Transport, part: bytes) -> list[bytes] | None:
    """The parts of all ranks, on rank 0; one after the other, since they may be large."""
    found = []
    for rank, length in enumerate(_lengths(transport, part)):
        buffer = np.empty(length, np.uint8)
        if transport.rank == rank:
            buffer[...] = np.frombuffer(part, np.uint8)
        transport.broadcast(buffer, rank)
        if transport.rank == 0:
            found.append(buffer.tobytes())
    return found if transport.rank == 0 else None


def _spread(transport: Transport, content: bytes) -> bytes:
    """The content of rank 0, on all ranks."""
    buffer = np.empty(_lengths(transport, content)[0], np.uint8)
    if transport.rank == 0:
        buffer[...] = np.frombuffer(content, np.uint8)
    transport.broadcast(buffer, 0)
    return buffer.tobytes()


def _lengths(transport: Transport, data: bytes) -> list[int]:
    return [int(text) for text in transport.all_gather_bytes(str(len(data)).encode())]


def _on_all(
    operation: str, comm: MultiProcessDataParallelCommunicator | None, work: Callable[[], T]
) -> T:
    """Do work on this rank; where it fails on any rank, raise on all of them."""
    if comm is None:
        return work()
    error: DistnnError | None = None
    try:
        result = work()
    except DistnnError as found:
        error = found
    text = b"" if error is None else str(error).encode()
    texts = comm._run(
        Schedule(operation, []), lambda transport, _: transport.all_gather_bytes(text)
    )
    if error is not None:
        raise error
    for other in texts:
        if other:
            raise CheckpointError(f"[{operation}] another rank failed: {other.decode()}")
    return result
