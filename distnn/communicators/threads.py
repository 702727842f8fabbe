"""Ranks as threads of one process: for tests, debugging and fault injection.

Each rank runs in a World of its own. Sums are taken in the order of the ranks.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..context import World, current_world, world_scope
from ..errors import CommunicatorError, DeadCommunicatorError
from .board import ThreadsBoard
from .fifo import Ticket
from .throttled import Throttled
from .transport import Header


class InjectedFailure(RuntimeError):
    """Raised by `run_threads(..., fail=(rank, n))` in the n-th collective of a rank."""


class _Meeting:
    """Where a set of ranks meets: a barrier, and a place for what each brings."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.items: list[Any] = [None] * size
        self.arrived = [0] * size  # collectives entered, by rank
        self.boards: list[ThreadsBoard | None] = [None] * size
        self.failure: str | None = None
        self._barrier = threading.Barrier(size)
        self._subsets: dict[tuple, _Meeting] = {}
        self._lock = threading.Lock()

    def meet(self, timeout: float | None = None) -> None:
        try:
            self._barrier.wait(timeout)
        except threading.BrokenBarrierError:
            reason = self.failure or "another rank left the collective"
            raise DeadCommunicatorError(reason) from None

    def fail(self, reason: str) -> None:
        """Free all ranks that wait here or will."""
        with self._lock:
            if self.failure is None:
                self.failure = reason
            subsets = list(self._subsets.values())
        self._barrier.abort()
        for subset in subsets:
            subset.fail(reason)

    def subset(self, ranks: tuple[int, ...], number: int) -> _Meeting:
        """The meeting of a group; the same object for all its ranks."""
        with self._lock:
            return self._subsets.setdefault((ranks, number), _Meeting(len(ranks)))


class ThreadsTransport:
    """A rank that is a thread."""

    check: Callable[[], None] | None = None
    polled_bytes = -1  # threads wait at barriers
    ticket: Ticket | None = None

    def __init__(self, meeting: _Meeting, rank: int, fail_at: int | None = None) -> None:
        self.rank = self.local_rank = rank
        self.size = meeting.size
        self._meeting = meeting
        self._groups = 0
        self._fail_at = fail_at

    def _bring(self, item: Any) -> list[Any]:
        """What every rank brings to this collective."""
        meeting = self._meeting
        meeting.arrived[self.rank] += 1
        if meeting.arrived[self.rank] == self._fail_at:
            raise InjectedFailure(f"rank {self.rank} fails in its collective no. {self._fail_at}")
        meeting.items[self.rank] = item
        meeting.meet()
        return list(meeting.items)

    def all_reduce(self, array: np.ndarray, operation: str) -> None:
        arrays = self._bring(array)
        add = np.add if operation == "sum" else np.maximum
        total = arrays[0].copy()
        for other in arrays[1:]:
            add(total, other, out=total)
        self._meeting.meet()  # everybody has read before anybody writes
        array[...] = total
        self._meeting.meet()

    def reduce(self, array: np.ndarray, root: int) -> None:
        arrays = self._bring(array)
        total = None
        if self.rank == root:
            total = arrays[0].copy()
            for other in arrays[1:]:
                np.add(total, other, out=total)
        self._meeting.meet()
        if total is not None:
            array[...] = total
        self._meeting.meet()

    def broadcast(self, array: np.ndarray, root: int) -> None:
        arrays = self._bring(array)
        if self.rank != root:
            array[...] = arrays[root]
        self._meeting.meet()

    def all_gather(self, array: np.ndarray, out: np.ndarray) -> None:
        for r, part in enumerate(self._bring(array)):
            out[r] = part
        self._meeting.meet()

    def reduce_scatter(self, parts: np.ndarray, out: np.ndarray) -> None:
        everybodys = self._bring(parts)
        total = everybodys[0][self.rank].copy()
        for other in everybodys[1:]:
            np.add(total, other[self.rank], out=total)
        out[...] = total
        self._meeting.meet()

    def all_to_all(self, parts: Sequence[np.ndarray], out: Sequence[np.ndarray]) -> None:
        for r, others in enumerate(self._bring(parts)):
            np.copyto(out[r], others[self.rank])
        self._meeting.meet()

    def scatter(self, parts: np.ndarray | None, out: np.ndarray, root: int) -> None:
        out[...] = self._bring(parts)[root][self.rank]
        self._meeting.meet()

    def largest(self, numbers: Header) -> Header:
        found = np.array(numbers, np.int64)
        self.all_reduce(found, "max")
        return tuple(found.tolist())

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        found = self._bring(data)
        self._meeting.meet()
        return found

    def barrier(self) -> None:
        self._bring(None)
        self._meeting.meet()

    def subset(self, ranks: Sequence[int]) -> ThreadsTransport | None:
        self._groups += 1
        meeting = self._meeting.subset(tuple(ranks), self._groups)
        return (
            ThreadsTransport(meeting, list(ranks).index(self.rank)) if self.rank in ranks else None
        )

    def board(self) -> ThreadsBoard:
        meeting = self._meeting
        return ThreadsBoard(meeting.boards, self.rank, threading.get_ident(), meeting.fail)

    def give_up(self) -> None:
        pass

    def abort(self, status: int) -> None:
        reason = f"rank {self.rank} aborted with status {status}"
        self._meeting.fail(reason)
        raise SystemExit(status)


def run_threads(
    function: Callable[..., Any],
    ranks: int,
    *args: Any,
    fail: tuple[int, int] | None = None,
    timeout: float = 60,
    link: tuple[float, float] | None = None,
) -> list[Any]:
    """Run `function(*args)` once on each of `ranks` threads; returns their results, by rank.

    Inside, `C.MultiProcessDataParallelCommunicator` connects the threads as ranks. Each has its own
    World: its own parameters, random numbers and default context, which is the caller's at first.

    Args:
        fail: (rank, n): this rank raises InjectedFailure in its n-th exchange of memory.
        timeout: in seconds; ranks that have not ended by then raise.
        link: (bytes per second, latency in seconds) of an emulated slow link; see `C.Throttled`.
    Raises: the exception of the rank that failed first, with the others' as notes.

    >>> import distnn.communicators as C
    >>> def work():
    ...     comm = C.MultiProcessDataParallelCommunicator()
    ...     comm.init()
    ...     return comm.rank
    >>> run_threads(work, 3)
    [0, 1, 2]
    """
    meeting = _Meeting(ranks)
    results: list[Any] = [None] * ranks
    failures: list[tuple[float, int, BaseException]] = []

    def run(rank: int) -> None:
        world = World()
        world.context = default
        default.resolve().select()
        transport = ThreadsTransport(meeting, rank, fail[1] if fail and fail[0] == rank else None)
        world.transport = transport if link is None else Throttled(transport, *link)
        with world_scope(world):
            try:
                results[rank] = function(*args)
            except BaseException as error:
                failures.append((time.monotonic(), rank, error))
                meeting.fail(f"rank {rank} failed with {type(error).__name__}: {error}")
            finally:
                if world.communicator is not None:
                    world.communicator.close()

    context = contextvars.copy_context()
    default = current_world().context
    threads = [
        threading.Thread(
            target=context.copy().run, args=(run, rank), name=f"rank {rank}", daemon=True
        )
        for rank in range(ranks)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    alive = [r for r, thread in enumerate(threads) if thread.is_alive()]
    if alive:
        meeting.fail(f"ranks {alive} had not ended after {timeout} seconds")
        for thread in threads:
            thread.join(5)
        if not failures:
            raise CommunicatorError(
                f"[run_threads] ranks {alive} had not ended after {timeout} seconds; pass a longer "
                "timeout if they only needed time"
            )
    if failures:
        failures.sort(key=lambda item: item[0])
        first = failures[0][2]
        for _, rank, error in failures[1:]:
            first.add_note(f"then rank {rank}: {type(error).__name__}: {error}")
        first.add_note(f"raised on rank {failures[0][1]}")
        raise first
    return results
