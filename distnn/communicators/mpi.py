"""MPI transport: blocking collectives of mpi4py on host memory, in chunks. The only importer of it.

Measured on Open MPI 5 from pip, 2 ranks on one machine, 40 MB, on an AMD and an Intel processor:
one Allreduce 18 and 13 ms, four of 10 MB 6 and 6.8, eight of 5 MB 4.6 and 6.5, twenty of 2 MB 4.5
and 7.8. Non-blocking ones are slower still, and MPI makes no progress outside its calls. So
blocking calls in chunks, on a thread of their own (fifo.py).
"""

from __future__ import annotations

import atexit
import os
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from ..dtypes import is_half
from ..errors import CommunicatorError, MissingExtraError
from ..launcher.place import SIZE_OF_RANKS
from . import tcp_board
from .board import Board, SilentBoard
from .fifo import Ticket
from .transport import Header

_HEADER = struct.Struct("6q")
_CHUNK_BYTES = 5 * 1000 * 1000
_SPIN = _NAP = 5e-5  # seconds
_SPIN_AWAITED = 5e-4


def started_ranks() -> tuple[int, str]:
    """How many ranks the environment says were started, and the variable that says so."""
    for name in SIZE_OF_RANKS:
        text = os.environ.get(name, "")
        if text.isdigit() and int(text) > 0:
            return int(text), name
    return 1, ""


def import_mpi() -> Any:
    """mpi4py.MPI, started with threads; raises the error that says what is missing."""
    try:
        import mpi4py
    except ImportError:
        size, name = started_ranks()
        raise MissingExtraError(
            f"[MultiProcessDataParallelCommunicator] {size} ranks were started ({name}={size}) but "
            "mpi4py is not installed: pip install distnn[mpi] on a machine with no MPI of its own, "
            "or pip install mpi4py for the MPI that is there"
        ) from None
    if "mpi4py.MPI" not in sys.modules:
        mpi4py.rc.thread_level = "multiple"
    from mpi4py import MPI

    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise CommunicatorError(
            "[MultiProcessDataParallelCommunicator] MPI was started without thread support (level "
            f"{MPI.Query_thread()}, needed {MPI.THREAD_SERIALIZED}); import distnn.communicators "
            "before mpi4py.MPI, or set mpi4py.rc.thread_level = 'multiple' before that import"
        )
    return MPI


def connect() -> MpiTransport:
    """The transport over all ranks that were started."""
    mpi = import_mpi()
    size, name = started_ranks()
    if size > 1 and mpi.COMM_WORLD.size == 1:
        vendor, version = mpi.get_vendor()
        library = f"{vendor} {'.'.join(map(str, version))}"
        raise CommunicatorError(
            f"[MultiProcessDataParallelCommunicator] {size} ranks were started ({name}={size}) but "
            f"mpi4py, which uses {library}, sees one: the mpirun or srun is not that MPI's. Use "
            "distnn-launch, which finds the right one, or the mpirun of that MPI"
        )
    transport = MpiTransport(mpi, mpi.COMM_WORLD.Dup())
    if transport.size > 1:
        _abort_on_exceptions(mpi)
    return transport


class MpiTransport:
    """A rank that is a process of an MPI job."""

    # The main thread does these itself where the queue is empty: handing them to the communication
    # thread and back would take ten times as long as MPI.
    polled_bytes = 16 * 1024

    def __init__(self, mpi: Any, comm: Any) -> None:
        self._mpi = mpi
        self._comm = comm
        self.check: Callable[[], None] | None = None
        self.ticket: Ticket | None = None
        self.rank = comm.rank
        self.size = comm.size
        local = comm.Split_type(mpi.COMM_TYPE_SHARED)
        self.local_rank = local.rank
        local.Free()
        self._numbers = bytearray(_HEADER.size)
        self._largest = bytearray(_HEADER.size)
        # All headers are one request: to make and match a new one takes longer than the exchange.
        self._header: Any = None

    def largest(self, numbers: Header) -> Header:
        _HEADER.pack_into(self._numbers, 0, *numbers)
        if self._header is None:
            self._header = self._request_of_headers()
        self._header.Start()
        self._poll(self._header)
        return _HEADER.unpack_from(self._largest)

    def _request_of_headers(self) -> Any:
        mpi = self._mpi
        buffers = [self._numbers, mpi.INT64_T], [self._largest, mpi.INT64_T]
        try:
            return self._comm.Allreduce_init(*buffers, mpi.MAX)
        except NotImplementedError:  # before MPI 4
            return _Request(lambda: self._comm.Iallreduce(*buffers, mpi.MAX))

    def all_reduce(self, array: np.ndarray, operation: str) -> None:
        op = self._mpi.SUM if operation == "sum" else self._mpi.MAX
        if array.nbytes <= self.polled_bytes:
            self._all_reduce_small(array, op)
            return
        for chunk in _chunks(array):
            self._comm.Allreduce(self._mpi.IN_PLACE, chunk, op)

    def _all_reduce_small(self, array: np.ndarray, op: Any) -> None:
        # Non-blocking on all ranks, whoever waits how: it would not match a blocking one.
        self._poll(self._comm.Iallreduce(self._mpi.IN_PLACE, array, op))

    def _poll(self, request: Any) -> None:
        check = self.check
        if check is None:
            self._doze(request)
            return
        while not request.Test():
            check()

    def _doze(self, request: Any) -> None:
        """Wait for other ranks, on the communication thread, and leave the core to the main one.

        Unless that waits for this. Every exchange begins with a small one (header.py). MPI would
        spin there until the last rank has come; what follows has all ranks and is short.
        """
        begin = time.perf_counter()
        while not request.Test():
            awaited = self.ticket is not None and self.ticket.awaited
            if time.perf_counter() - begin > (_SPIN_AWAITED if awaited else _SPIN):
                time.sleep(_NAP)

    def reduce(self, array: np.ndarray, root: int) -> None:
        for chunk in _chunks(array):
            if self.rank == root:
                self._comm.Reduce(self._mpi.IN_PLACE, chunk, self._mpi.SUM, root)
            else:
                self._comm.Reduce(chunk, None, self._mpi.SUM, root)

    def broadcast(self, array: np.ndarray, root: int) -> None:
        for chunk in _chunks(_words(array)):
            self._comm.Bcast(chunk, root)

    def all_gather(self, array: np.ndarray, out: np.ndarray) -> None:
        self._comm.Allgather(_words(array), _words(out))

    def reduce_scatter(self, parts: np.ndarray, out: np.ndarray) -> None:
        # Pairwise: the library's own is five times slower. The order of additions differs between
        # ranks, but each sum is taken on one rank only.
        out[...] = parts[self.rank]
        incoming = np.empty_like(out)
        for distance in range(1, self.size):
            to, source = (self.rank + distance) % self.size, (self.rank - distance) % self.size
            self._comm.Sendrecv(parts[to], dest=to, recvbuf=incoming, source=source)
            np.add(out, incoming, out=out)

    def all_to_all(self, parts: Sequence[np.ndarray], out: Sequence[np.ndarray]) -> None:
        np.copyto(out[self.rank], parts[self.rank])
        for distance in range(1, self.size):
            to, source = (self.rank + distance) % self.size, (self.rank - distance) % self.size
            self._comm.Sendrecv(
                _bytes(parts[to]), dest=to, recvbuf=_bytes(out[source]), source=source
            )

    def scatter(self, parts: np.ndarray | None, out: np.ndarray, root: int) -> None:
        self._comm.Scatter(parts, out, root)

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        lengths = np.empty(self.size, np.int64)
        self._comm.Allgather(np.array([len(data)], np.int64), lengths)
        buffer = bytearray(int(lengths.sum()))
        starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
        self._comm.Allgatherv(data, [buffer, lengths, starts, self._mpi.BYTE])
        return [
            bytes(buffer[s : s + n]) for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)
        ]

    def barrier(self) -> None:
        self._comm.Barrier()

    def subset(self, ranks: Sequence[int]) -> MpiTransport | None:
        color = 0 if self.rank in ranks else self._mpi.UNDEFINED
        key = list(ranks).index(self.rank) if self.rank in ranks else 0
        comm = self._comm.Split(color, key)
        return None if comm == self._mpi.COMM_NULL else MpiTransport(self._mpi, comm)

    def board(self) -> Board:
        return SilentBoard() if self.size == 1 else tcp_board.connect(self)

    def abort(self, status: int) -> None:
        self._mpi.COMM_WORLD.Abort(status)

    def give_up(self) -> None:
        # A thread of this process is inside of MPI for good: MPI_Finalize would wait for it.
        atexit.register(self._mpi.COMM_WORLD.Abort, 1)


class _Request:
    """A request that can be started again and again, where MPI has none."""

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start

    def Start(self) -> None:  # as mpi4py's
        self._request = self._start()

    def Test(self) -> bool:
        return self._request.Test()


def _chunks(array: np.ndarray) -> list[np.ndarray]:
    flat = array.reshape(-1)
    step = max(1, _CHUNK_BYTES // max(flat.itemsize, 1))
    return [flat[i : i + step] for i in range(0, flat.size, step)]


def _words(array: np.ndarray) -> np.ndarray:
    """The same memory as words where it has half precision, which MPI does not know."""
    return array.view(np.uint16) if is_half(array.dtype) else array


def _bytes(array: np.ndarray) -> np.ndarray:
    """The same memory as bytes."""
    return array.reshape(-1).view(np.uint8)


def _abort_on_exceptions(mpi: Any) -> None:
    """Let an uncaught exception end all ranks: the others would wait for this one forever."""
    rank = mpi.COMM_WORLD.rank
    previous = sys.excepthook

    def excepthook(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if previous is sys.__excepthook__:
            lines = traceback.format_exception(kind, error, trace)
            sys.stderr.write(
                f"rank {rank}: uncaught exception, ending all ranks\n" + "".join(lines)
            )
        else:
            previous(kind, error, trace)
        sys.stdout.flush()
        sys.stderr.flush()
        mpi.COMM_WORLD.Abort(1)

    sys.excepthook = excepthook
    threads_hook = threading.excepthook

    def thread_excepthook(args: Any) -> None:
        threads_hook(args)
        if args.exc_type is not SystemExit:
            sys.stderr.flush()
            mpi.COMM_WORLD.Abort(1)

    threading.excepthook = thread_excepthook
