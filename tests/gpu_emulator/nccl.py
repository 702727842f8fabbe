"""Emulated cupy.cuda.nccl: ranks are threads of this process, each with its device.

As NCCL does, a call returns at once and the work goes on in the background of its stream: results
are there when an event says so, and not before. What NCCL would answer with garbage or would wait
for without end (ranks that call different things) is an NcclError here. `behaviour` makes ranks
late or lets them fail.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from . import ordering
from .memory import BaseMemory, current_device, find_memory
from .ordering import Access
from .record import record
from .stream import in_background

available = True

_NAMES = (
    ("int8", "INT8 CHAR"),
    ("uint8", "UINT8"),
    ("int32", "INT32 INT"),
    ("uint32", "UINT32"),
    ("int64", "INT64"),
    ("uint64", "UINT64"),
    ("float16", "FLOAT16 HALF"),
    ("float32", "FLOAT32 FLOAT"),
    ("float64", "FLOAT64 DOUBLE"),
    ("bfloat16", "BFLOAT16"),
)
_DTYPES = [dtype for dtype, _ in _NAMES]
globals().update(
    {f"NCCL_{name}": i for i, (_, names) in enumerate(_NAMES) for name in names.split()}
)
NCCL_SUM, NCCL_PROD, NCCL_MAX, NCCL_MIN, NCCL_AVG = range(5)
_DUPLICATE = "Duplicate GPU detected"


class NcclError(RuntimeError):
    def __init__(self, status: int, text: str = "") -> None:
        self.status = status
        super().__init__(f"NCCL_ERROR_{status}: {text}")


@dataclass
class Behaviour:
    """What ranks do to each other; `using(...)` changes it for a while."""

    delay: float = 0.0  # seconds that each collective takes
    # Rank -> an event: its collectives do not begin before it is set, as if its GPU still computed.
    held: dict[int, threading.Event] = field(default_factory=dict)
    broken: dict[int, str] = field(default_factory=dict)  # rank -> what check_async_error raises
    refused: dict[int, str] = field(default_factory=dict)  # rank -> why it cannot connect
    version: int = 22809

    @contextmanager
    def using(self, **changes: Any) -> Iterator[Behaviour]:
        before = replace(self)
        try:
            for name, value in changes.items():
                if not hasattr(self, name):
                    raise AttributeError(f"[Behaviour] has no {name!r}")
                setattr(self, name, value)
            yield self
        finally:
            for entry in fields(self):
                setattr(self, entry.name, getattr(before, entry.name))


behaviour = Behaviour()
_identifiers = itertools.count(1)
_groups: dict[bytes, _Group] = {}
_lock = threading.Lock()
_here = threading.local()


class _Group:
    """Where the ranks of one identifier meet."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.items: list[Any] = [None] * size
        self.barrier = threading.Barrier(size)
        self.boxes: dict[tuple[int, int], queue.SimpleQueue] = {}

    def meet(self, rank: int, item: Any) -> list[Any]:
        """What each rank brings; nobody goes on before all have come."""
        try:
            self.items[rank] = item
            self.barrier.wait()
            found = list(self.items)
            self.barrier.wait()
        except threading.BrokenBarrierError:
            raise NcclError(6, "aborted") from None
        return found

    def box(self, source: int, target: int) -> queue.SimpleQueue:
        with _lock:
            return self.boxes.setdefault((source, target), queue.SimpleQueue())


def get_version() -> int:
    return behaviour.version


def get_build_version() -> int:
    return 22707


def get_unique_id() -> bytes:
    return next(_identifiers).to_bytes(128, "big")


def groupStart() -> None:
    _here.depth = getattr(_here, "depth", 0) + 1


def groupEnd() -> None:
    _here.depth -= 1
    if _here.depth:
        return
    waiting, _here.waiting = getattr(_here, "waiting", []), []
    by_comm: dict[Any, list[Any]] = {}
    for comm, stream, work, source, target in waiting:
        by_comm.setdefault((comm, stream), []).append((work, source, target))
    for (comm, stream), works in by_comm.items():
        # Sends before receives: inside a group they do not wait for each other.
        works.sort(key=lambda work: work[1] is None)
        touched = [place for _, *places in works for place in places]
        comm._enqueue("group", stream, lambda works=works: [run() for run, *_ in works], *touched)


class NcclConfig:
    def __init__(self, splitShare: int = 0) -> None:
        self.splitShare = splitShare


class NcclCommunicator:
    def __init__(self, ndev: int, commId: bytes, rank: int, config: Any = None) -> None:
        if not isinstance(commId, bytes) or len(commId) != 128:
            raise TypeError("commId needs the 128 bytes of get_unique_id")
        self._rank = rank
        self._device = current_device()
        self._aborted = False
        self._ended = threading.Event()
        self._failed: str | None = None
        with _lock:
            self._group = _groups.setdefault(commId, _Group(ndev))
        devices = self._group.meet(rank, (self._device, behaviour.refused.get(rank)))
        if behaviour.refused.get(rank):
            raise NcclError(2, behaviour.refused[rank])
        if any(why for _, why in devices):
            raise NcclError(6, "remote process exited or there was a network error")
        if len({device for device, _ in devices}) < ndev:
            raise NcclError(5, f"{_DUPLICATE}: ranks have devices {[d for d, _ in devices]}")

    # -- collectives ------------------------------------------------------------------------------

    def allReduce(
        self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, stream: int
    ) -> None:
        source, target = _Place(sendbuf, count, datatype), _Place(recvbuf, count, datatype)

        def work() -> None:
            everybodys = self._bring("allReduce", (count, datatype, op), source.values().copy())
            target.values()[...] = _reduced(everybodys, op)

        self._enqueue("allReduce", stream, work, source, target)

    def reduce(
        self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, root: int, stream: int
    ) -> None:
        source, target = _Place(sendbuf, count, datatype), _Place(recvbuf, count, datatype)

        def work() -> None:
            everybodys = self._bring("reduce", (count, datatype, op, root), source.values().copy())
            if self._rank == root:
                target.values()[...] = _reduced(everybodys, op)

        self._enqueue("reduce", stream, work, source, target)

    def broadcast(
        self, sendbuff: int, recvbuff: int, count: int, datatype: int, root: int, stream: int
    ) -> None:
        source, target = _Place(sendbuff, count, datatype), _Place(recvbuff, count, datatype)

        def work() -> None:
            everybodys = self._bring("broadcast", (count, datatype, root), source.values().copy())
            target.values()[...] = everybodys[root]

        self._enqueue("broadcast", stream, work, source, target)

    def allGather(self, sendbuf: int, recvbuf: int, count: int, datatype: int, stream: int) -> None:
        size = self._group.size
        source, target = _Place(sendbuf, count, datatype), _Place(recvbuf, size * count, datatype)

        def work() -> None:
            everybodys = self._bring("allGather", (count, datatype), source.values().copy())
            target.values()[...] = np.concatenate(everybodys)

        self._enqueue("allGather", stream, work, source, target)

    def reduceScatter(
        self, sendbuf: int, recvbuf: int, recvcount: int, datatype: int, op: int, stream: int
    ) -> None:
        size = self._group.size
        source = _Place(sendbuf, size * recvcount, datatype)
        target = _Place(recvbuf, recvcount, datatype)

        def work() -> None:
            everybodys = self._bring(
                "reduceScatter", (recvcount, datatype, op), source.values().copy()
            )
            start = self._rank * recvcount
            target.values()[...] = _reduced([a[start : start + recvcount] for a in everybodys], op)

        self._enqueue("reduceScatter", stream, work, source, target)

    def send(self, sendbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        source = _Place(sendbuf, count, datatype)
        box = self._group.box(self._rank, peer)
        self._between("send", stream, lambda: box.put(source.values().copy()), source, None)

    def recv(self, recvbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        target = _Place(recvbuf, count, datatype)
        box = self._group.box(peer, self._rank)

        def work() -> None:
            while not self._aborted:
                try:
                    values = box.get(timeout=0.01)
                except queue.Empty:
                    continue
                if len(values) != count:
                    raise NcclError(5, f"rank {peer} sent {len(values)} values, not {count}")
                target.values()[...] = values
                return
            raise NcclError(6, "aborted")

        self._between("recv", stream, work, None, target)

    # -- what has become of it --------------------------------------------------------------------

    def check_async_error(self) -> None:
        text = behaviour.broken.get(self._rank) or self._failed
        if text:
            raise NcclError(6, text)

    def abort(self) -> None:
        self._aborted = True
        self._ended.set()
        self._group.barrier.abort()

    def destroy(self) -> None:
        pass

    def rank_id(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._group.size

    def device_id(self) -> int:
        return self._device

    # -- inside -----------------------------------------------------------------------------------

    def _between(
        self,
        name: str,
        stream: int,
        run: Callable[[], Any],
        source: _Place | None,
        target: _Place | None,
    ) -> None:
        if getattr(_here, "depth", 0):
            _here.__dict__.setdefault("waiting", []).append((self, stream, run, source, target))
        else:
            self._enqueue(name, stream, run, source, target)

    def _enqueue(
        self, name: str, stream: int, work: Callable[[], Any], *places: _Place | None
    ) -> None:
        """Give work to a stream that reads and writes places, by turns."""
        if self._aborted:
            raise NcclError(4, "the communicator was aborted")
        if current_device() != self._device:
            raise NcclError(5, f"device {current_device()} is current, not {self._device}")
        accesses = [p.access(i % 2 == 1) for i, p in enumerate(places) if p is not None]
        ordering.begin(name, stream, accesses)
        record.operations.append(("nccl", name, stream))

        def run() -> None:
            held = behaviour.held.get(self._rank)
            while held is not None and not held.wait(0.01) and not self._aborted:
                pass
            time.sleep(behaviour.delay)
            try:
                work()
            except NcclError as error:
                # As NCCL's kernels: it does not end before somebody sees that and aborts it.
                self._failed = self._failed or str(error)
                self._group.barrier.abort()
                self._ended.wait()

        in_background(stream, run)

    def _bring(self, name: str, what: tuple[Any, ...], values: np.ndarray) -> list[np.ndarray]:
        found = self._group.meet(self._rank, (name, what, values))
        calls = {(other, facts) for other, facts, _ in found}
        if len(calls) > 1:
            raise NcclError(5, f"ranks call different collectives: {sorted(calls)}")
        return [array for _, _, array in found]


class _Place:
    """Values of a dtype at an address of a device; keeps its memory, as a pool by streams does."""

    def __init__(self, address: int, count: int, datatype: int) -> None:
        name = _DTYPES[datatype]
        if name == "bfloat16":
            import ml_dtypes

            self._dtype = np.dtype(ml_dtypes.bfloat16)
        else:
            self._dtype = np.dtype(name)
        memory: BaseMemory | None = find_memory(address)
        if memory is None:
            raise NcclError(4, f"{address:#x} is no address of a device")
        if memory.device_id != current_device():
            raise NcclError(4, f"memory of device {memory.device_id}, not of {current_device()}")
        self._start = address - memory.ptr
        self._stop = self._start + count * self._dtype.itemsize
        if self._stop > memory.size:
            raise NcclError(4, f"{count} x {self._dtype} pass the end of {memory.size} bytes")
        self._memory = memory

    def values(self) -> np.ndarray:
        return self._memory.bytes[self._start : self._stop].view(self._dtype)

    def access(self, writes: bool) -> Access:
        base = self._memory.ptr
        return Access(self._memory, base + self._start, base + self._stop, writes)


def _reduced(arrays: list[np.ndarray], op: int) -> np.ndarray:
    """The reduction in the order of the ranks; sums of halves are rounded once."""
    if op == NCCL_MAX:
        return np.maximum.reduce(arrays)
    if op not in (NCCL_SUM, NCCL_AVG):
        raise NotImplementedError(f"operation {op}")
    dtype = arrays[0].dtype
    wide = np.dtype(np.float32) if dtype.itemsize == 2 else dtype
    with np.errstate(all="ignore"):
        total = arrays[0].astype(wide)
        for array in arrays[1:]:
            total += array
        if op == NCCL_AVG:
            total = total / len(arrays)
        return total.astype(dtype)
