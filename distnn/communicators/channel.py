"""Channel: the ranks of a job, their groups, and the one queue that all their collectives pass.

A collective is a schedule, on which all ranks agree first (header.py), and a job for a transport.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn

from .. import transfer
from ..context import Context, compute_recorded, current_world
from ..errors import ArgumentError, CommunicatorError, DeadCommunicatorError
from .arithmetic import compare_arithmetic, share_choices
from .board import Board, Notes, SilentBoard, describe
from .checking import agree_on_check
from .fifo import Fifo, Ticket
from .header import Agreement, Count, Joined, Schedule, exchange
from .nccl import DeviceTransport
from .transport import SingleTransport, Transport
from .waiting import Patience
from .watch import Operation, Watch

_CALLBACK = "all_reduce_callback"  # what goes on without a schedule of its own


class _Group:
    """Some ranks that have collectives of their own."""

    def __init__(self, name: str, ranks: list[int], transport: Transport | None) -> None:
        self.name = name
        self.ranks = ranks
        self.transport = transport
        self.count = Count()


class Channel:
    """Connected ranks; the base of communicators."""

    def __init__(self, timeout: float, check: bool | None) -> None:
        self.timeout = timeout
        self._check = check  # see checking.py
        self.differences = ""  # between the ranks' arithmetic, see arithmetic.py
        self._groups: dict[str, _Group] = {}
        self._fifo: Fifo | None = None
        self._board: Board = SilentBoard()
        self._streams: dict[int, Any] = {}  # of devices, on which collectives run
        self._polling: Patience | None = None  # of the main thread, where it polls a transport
        self._lost: DeadCommunicatorError | None = None  # a collective that was queued on a GPU

    def _open(self, transport: Transport, context: Context | None) -> None:
        world = current_world()
        self._check = agree_on_check(transport, self._check)
        self.differences = compare_arithmetic(transport, context)
        share_choices(transport)
        self._groups["world"] = _Group("world", list(range(transport.size)), transport)
        self._fifo = Fifo(f"distnn communication {transport.rank}")
        self._board = transport.board()
        lose = weakref.WeakMethod(self._lose)
        self._watch = Watch(
            self._board, transport.rank, self.timeout, lambda e: (lose() or _ignore)(e)
        )
        # Also at the end of the program: the others must not wait for a rank that has left.
        self._leave = weakref.finalize(self, _leave, self._watch, self._board)
        world.communicator = self

    def close(self) -> None:
        """Leave: the communication thread ends, and ranks that still wait for this one are told."""
        if self._fifo is not None:
            self._fifo.close()
            self._fifo.dead = "close() was called"
            self._leave()

    def check_alive(self) -> None:
        """Raise the error of a collective on the GPU that has failed since it was queued."""
        if self._lost is not None:
            raise self._lost

    # -- who is there -----------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def rank(self) -> int:
        """Number of this rank, 0 to size - 1."""
        return self._transport("rank").rank

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self._transport("size").size

    @property
    def local_rank(self) -> int:
        """Number of this rank among those of its machine."""
        return self._transport("local_rank").local_rank

    def new_group(self, name_ranks_pair: tuple[str, Sequence[int]]) -> str:
        """Make a group of ranks that can be named in collectives; all ranks call it.

        Args:
            name_ranks_pair: (name, ranks).
        Returns: the name.
        """
        name, ranks = name_ranks_pair
        numbers = [int(r) for r in ranks]
        if name in self._groups:
            raise ArgumentError(f"[new_group] {name!r} exists, with ranks {self.find_group(name)}")
        if not numbers or len(set(numbers)) != len(numbers):
            raise ArgumentError(
                f"[new_group] ranks {numbers} of {name!r} must be one or more, once"
            )
        if min(numbers) < 0 or max(numbers) >= self.size:
            raise ArgumentError(
                f"[new_group] ranks {numbers} of {name!r}: this job has ranks 0 to {self.size - 1}"
            )
        transport = self._run(
            Schedule("new_group", [f"{name} {numbers}"]),
            lambda transport, _: transport.subset(numbers),
        )
        self._groups[name] = _Group(name, numbers, transport)
        return name

    def list_groups(self) -> list[str]:
        """Names of all groups."""
        return list(self._groups)

    def find_group(self, group: str) -> list[int]:
        """Ranks of a group; empty if there is none of that name."""
        return list(self._groups[group].ranks) if group in self._groups else []

    # -- collectives ------------------------------------------------------------------------------

    def _transport(self, what: str) -> Transport:
        if not self._groups:
            raise CommunicatorError(
                f"[{what}] the communicator is not connected; call init() first"
            )
        transport = self._groups["world"].transport
        assert transport is not None
        return transport

    def _group(self, operation: str, name: str) -> _Group:
        group = self._groups.get(name)
        if group is not None and group.transport is not None:
            return group
        self._transport(operation)
        if group is None:
            raise ArgumentError(
                f"[{operation}] group is {name!r}; there are {self.list_groups()} (new_group "
                "makes one)"
            )
        raise ArgumentError(
            f"[{operation}] rank {self.rank} is not in group {name!r}, which has ranks "
            f"{group.ranks}; call it on those only"
        )

    def _root(self, operation: str, argument: str, rank: int, group: str) -> tuple[int, int]:
        """Place of a world rank in a group, and the group's size."""
        ranks = self._group(operation, group).ranks
        if rank not in ranks:
            raise ArgumentError(
                f"[{operation}] {argument} is {rank}; group {group!r} has ranks {ranks}"
            )
        return ranks.index(rank), len(ranks)

    def _starter(self, group: str) -> Callable[..., Ticket]:
        """A function that queues a collective; it does not keep the communicator alive."""
        reference = weakref.ref(self)

        def start(
            schedule: Schedule | None,
            job: Callable[[Transport, Agreement], Any],
            incomplete: bool = False,
            nbytes: int = 0,
        ) -> Ticket:
            self = reference()
            if self is None:
                raise CommunicatorError("[all_reduce_callback] its communicator is gone; keep it")
            return self._start(schedule, job, group, incomplete, nbytes)

        return start

    def _start(
        self,
        schedule: Schedule | None,
        job: Callable[[Transport, Agreement], Any],
        group: str = "world",
        incomplete: bool = False,
        nbytes: int = 0,
    ) -> Ticket:
        """Queue a collective, of about `nbytes`, which go on while this thread computes.

        Without a schedule it belongs to the one queued before.
        """
        compute_recorded()
        operation = _CALLBACK if schedule is None else schedule.operation
        ticket, run = self._prepared(schedule, job, self._group(operation, group), incomplete)
        assert self._fifo is not None
        self._fifo.submit(ticket, run, nbytes)
        return ticket

    def _prepared(
        self,
        schedule: Schedule | None,
        job: Callable[[Transport, Agreement], Any],
        group: _Group,
        incomplete: bool,
    ) -> tuple[Ticket, Callable[[], Any]]:
        """A ticket of a collective, and what it is to run."""
        transport, count, fifo, notes = group.transport, group.count, self._fifo, self._board.notes
        assert transport is not None
        assert fifo is not None
        operation = _CALLBACK if schedule is None else schedule.operation
        ticket = fifo.ticket(operation)
        ticket.fence = fence = transfer.fence(self._streams)
        watch = self._watch
        headed = self._has_header(schedule)

        def run() -> Any:
            # Counted here: what was queued behind a failure does not run, and does not count.
            if schedule is not None:
                count.number += 1
            transport.ticket = ticket
            ticket.description = describe(operation, count.number, group.name)
            return _perform(group, notes, schedule, headed, incomplete, job)

        def run_fenced() -> Any:
            with fence.work():
                result = run()
            if isinstance(transport, DeviceTransport) and transport.queues:
                watch.add(
                    Operation(
                        fence,
                        transport.failure,
                        group.name,
                        group.ranks,
                        count.number,
                        ticket.description,
                    )
                )
            return result

        return ticket, run if fence is None else run_fenced

    def _has_header(self, schedule: Schedule | None) -> bool:
        return schedule is not None and not (schedule.only_compared and self._check is False)

    def _wait(self, ticket: Ticket) -> Any:
        try:
            if not ticket.done():
                self._patience(ticket.description).wait(ticket)
            self.check_alive()
            return ticket.result()
        except Exception as error:
            self._raise(error, ticket.description)
        finally:
            if ticket.fence is not None:
                ticket.fence.join()

    def _raise(self, error: Exception, description: str) -> NoReturn:
        """Raise what ended a collective; unless all ranks raise it there can be no other after."""
        if isinstance(error, DeadCommunicatorError):
            self._die(str(error))
            self._transport("wait").give_up()
        elif not isinstance(error, CommunicatorError):
            self._die(f"{description} failed: {error}")
            raise CommunicatorError(f"[{description}] failed: {error}") from error
        raise error

    def _patience(self, description: str) -> Patience:
        return Patience(description, self._board, self.find_group, self.rank, self.timeout)

    def _die(self, why: str) -> None:
        """Refuse all that comes: a collective has ended half-way."""
        assert self._fifo is not None
        self._fifo.dead = why

    def _lose(self, error: DeadCommunicatorError) -> None:
        """A collective on the GPU will never end: free all who wait for it."""
        self._lost = error  # before anybody goes on
        self._die(str(error))
        self._transport("wait").give_up()

    def _follow(self, known: Collection[int]) -> Agreement:
        """What the ranks that have data exchange next."""
        return self._run(Joined(known), lambda _, agreed: agreed)

    def _run(
        self,
        schedule: Schedule,
        job: Callable[[Transport, Agreement], Any],
        group: str = "world",
        incomplete: bool = False,
        nbytes: int = sys.maxsize,
    ) -> Any:
        """Do a collective; small all_reduces without the queue where that is idle."""
        compute_recorded()
        found, fifo = self._group(schedule.operation, group), self._fifo
        transport = found.transport
        assert transport is not None
        assert fifo is not None
        if nbytes > transport.polled_bytes or not fifo.idle:
            ticket, run = self._prepared(schedule, job, found, incomplete)
            fifo.submit(ticket, run, 0)  # nobody computes meanwhile
            return self._wait(ticket)
        try:
            self.check_alive()
            with fifo.here(schedule.operation):
                found.count.number += 1
                transport.check = self._check_polled
                headed = self._has_header(schedule)
                return _perform(found, self._board.notes, schedule, headed, incomplete, job)
        except Exception as error:
            self._raise(error, describe(schedule.operation, found.count.number, group))
        finally:
            transport.check = self._polling = None

    def _check_polled(self) -> None:
        """Called by a transport while the main thread waits in it."""
        if self._polling is None:
            self._polling = self._patience("all_reduce")
        self._polling.check()


def _perform(
    group: _Group,
    notes: Notes,
    schedule: Schedule | None,
    headed: bool,
    incomplete: bool,
    job: Callable[[Transport, Agreement], Any],
) -> Any:
    """A collective from its header, where it has one, to its end."""
    transport, count = group.transport, group.count
    assert transport is not None
    operation = _CALLBACK if schedule is None else schedule.operation
    notes.enter(group.name, count.number, operation)
    try:
        agreed = None
        if schedule is not None:
            if headed:
                agreed = exchange(transport, count, schedule, incomplete)
            if schedule.problem:
                raise CommunicatorError(f"[{operation}] {schedule.problem}")
        return job(transport, agreed or Agreement(False, transport.size))
    finally:
        notes.leave()


def _leave(watch: Watch, board: Board) -> None:
    watch.close()
    board.close()


def _ignore(error: DeadCommunicatorError) -> None:
    """Of a communicator that is gone."""


def connect() -> Transport:
    """The transport that this process was started for."""
    world = current_world()
    if world.transport is not None:
        return world.transport
    from . import mpi

    size, _ = mpi.started_ranks()
    mpi_runs = "mpi4py.MPI" in sys.modules
    return mpi.connect() if size > 1 or mpi_runs else SingleTransport()
