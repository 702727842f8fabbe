"""Buckets: gradients are summed over ranks while backward still computes others.

Buckets are cut from the end of the list of gradients, which is near the order in which backward
completes them, and started in this fixed order on all ranks: readiness only decides when. A header
opens the step, and tells for each gradient whether any rank will have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from .. import transfer
from ..errors import CommunicatorError
from ..ndarray import NdArray
from ..storage import Storage
from .exchange import Arrays, Ranges, Reducer, present_anywhere, reduce_ranges
from .fifo import Ticket
from .header import Agreement, Count, Joined, Schedule, exchange
from .report import BucketTimes, OverlapReport, of_gpu
from .transport import Transport

if TYPE_CHECKING:
    from ..plan import Plan

# The first bucket is small, so that communication begins early.
_FIRST_SHARE = 8


class _Opened(NamedTuple):
    """What the header of a step told."""

    written: set[int]  # storages that some rank has
    scale: float  # what sums are multiplied by


class AllReduceCallback:
    """Told by backward of complete gradients; see `all_reduce_callback` of a communicator."""

    def __init__(
        self,
        arrays: Arrays,
        pack_size: int,
        scale: Callable[[int], float],
        start: Callable[..., Ticket],
        wait: Callable[[Ticket], Any],
        enabled: Callable[[], bool],
        reducer: Reducer | None = None,
        same_graph: bool = False,
    ) -> None:
        self._arrays = arrays
        self._same_graph = same_graph
        self._structures: WeakKeyDictionary[Plan, Schedule] = WeakKeyDictionary()
        self._reducer = reducer
        self._scale = scale
        self._start = start
        self._wait = wait
        self._enabled = enabled
        settings = [f"pack_size {pack_size}", *([reducer.describe()] if reducer else [])]
        self.schedule = arrays.schedule("all_reduce_callback", *settings)
        self.buckets = cut(arrays.items, pack_size)
        # Each has a header of its own: where graphs differ, a rank may meet a collective inside the
        # backward of another (synchronized batch normalization) before the bucket, or after it.
        self._bucket_schedules = [
            Schedule(f"bucket {k} of all_reduce_callback", [], only_compared=True)
            for k in range(len(self.buckets))
        ]
        self._bytes = [sum(item.size * item.dtype.itemsize for item in b) for b in self.buckets]
        self._ranges = [Ranges() for _ in self.buckets]
        self._bucket_of = {
            id(item._storage): k for k, bucket in enumerate(self.buckets) for item in bucket
        }
        self._opening: Ticket | None = None  # None: this backward reduces nothing
        self._tickets: list[Ticket] = []
        self._ready: list[float] = []  # when each bucket was complete
        self._missing: list[set[int]] = []  # storages that each bucket still waits for
        self._began = 0.0
        self._began_on_gpu: Any = None
        self._report: Callable[[], OverlapReport] | None = None

    def begin(self, coming: Sequence[Storage], plan: Plan) -> None:
        """Backward begins; `coming` are the gradients that it will complete."""
        self._opening = None
        if self._enabled():
            present, job = self._prepare(coming, self._structure(plan))
            self._opening = self._start(self.schedule, job, not all(present), sum(self._bytes))

    def _structure(self, plan: Plan) -> Schedule | None:
        """The functions of the graph and what they read, for comparison between ranks.

        Without shapes: ranks may have batches of different size.
        """
        if not self._same_graph:
            return None
        schedule = self._structures.get(plan)
        if schedule is None:
            lines = [
                f"{call.setup.function.name} {list(call.sources)} -> {list(call.targets)}"
                for call in plan.calls
            ]
            schedule = self._structures[plan] = Schedule("graph of backward", lines, "function")
        return schedule

    def take_part(self, agreement: Agreement) -> None:
        """Exchange without a backward of one's own: this rank adds zeros to the others' sums."""
        for item in self._arrays.items:
            item.zero()
        _, job = self._prepare([], Joined(None) if self._same_graph else None)
        self._opening = self._start(None, lambda transport, _: job(transport, agreement))
        self.finish()

    def _prepare(
        self, coming: Sequence[Storage], structure: Schedule | None
    ) -> tuple[list[bool], Callable[[Transport, Agreement], _Opened]]:
        """Which gradients will be here, and the job that learns which are anywhere."""
        self._began = perf_counter()
        self._began_on_gpu = None if self._arrays.description.on_host else transfer.mark()
        will = {id(storage) for storage in coming}
        # Gradients of an earlier backward that were not reduced yet count as well.
        present = [
            id(item._storage) in will or not item._storage.zeroing for item in self._arrays.items
        ]
        self._tickets = []
        self._ready = []
        self._missing = [
            {id(item._storage) for item in bucket if id(item._storage) in will}
            for bucket in self.buckets
        ]

        def job(transport: Transport, agreed: Agreement) -> _Opened:
            if structure is not None:
                exchange(transport, Count(), structure)
            flags = present_anywhere(transport, agreed.incomplete, present)
            written = {
                id(item._storage)
                for item, flag in zip(self._arrays.items, flags, strict=True)
                if flag
            }
            return _Opened(written, self._scale(agreed.active))

        return present, job

    def ready(self, storage: Storage) -> None:
        """This gradient is complete."""
        k = self._bucket_of.get(id(storage))
        if k is None or self._opening is None:
            return
        self._missing[k].discard(id(storage))
        if k == len(self._tickets):
            self._start_complete_buckets()

    @property
    def started(self) -> int:
        """How many buckets of this backward were started."""
        return len(self._tickets)

    def finish(self) -> None:
        """Backward is over: start what is left and wait for all sums."""
        opening = self._opening
        if opening is None:
            return
        computed = perf_counter()
        on_gpu = None if self._began_on_gpu is None else transfer.mark()
        for missing in self._missing:
            missing.clear()
        self._start_complete_buckets()
        written = self._wait(opening).written
        for ticket in self._tickets:
            self._wait(ticket)
        for item in self._arrays.items:
            if id(item._storage) in written:
                item._storage.written()
        if on_gpu is None:
            report = self._times(opening, computed, perf_counter())
            self._report = lambda: report
        else:
            fences = [ticket.fence for ticket in self._tickets]
            self._report = partial(of_gpu, self._began_on_gpu, on_gpu, fences)
        self._opening = None

    def report(self) -> OverlapReport:
        """What the exchange of the last backward cost on this rank, and how much was hidden.

        Raises: CommunicatorError before the first backward that reduced something.
        """
        if self._report is None:
            raise CommunicatorError(
                "[report] nothing was reduced yet; call it after "
                "backward(communicator_callbacks=callback)"
            )
        return self._report()

    def _start_complete_buckets(self) -> None:
        opening = self._opening
        assert opening is not None
        while (k := len(self._tickets)) < len(self.buckets) and not self._missing[k]:
            self._ready.append(perf_counter())
            reduction = self._reduction(self.buckets[k], self._ranges[k], opening)
            schedule, nbytes = self._bucket_schedules[k], self._bytes[k]
            self._tickets.append(self._start(schedule, reduction, nbytes=nbytes))

    def _reduction(
        self, bucket: list[NdArray], ranges: Ranges, opening: Ticket
    ) -> Callable[[Transport, Agreement], bool]:
        """The job of a bucket: on the communication thread, after the header's; False if empty."""

        def job(transport: Transport, _: Agreement) -> bool:
            # Where the header has failed the queue does not come here.
            written, scale = opening.result()
            items = [item for item in bucket if id(item._storage) in written]
            if self._reducer is not None and items:
                self._reducer.reduce(items, transport, scale)
            else:
                reduce_ranges(ranges.of(items), transport, scale)
            return bool(items)

        return job

    def _times(self, opening: Ticket, computed: float, end: float) -> OverlapReport:
        """The times of this backward on the host."""
        began = self._began
        jobs = [opening, *self._tickets]
        return OverlapReport(
            backward=end - began,
            communication=sum(job.ended - job.began for job in jobs),
            exposed=end - computed,
            buckets=tuple(
                BucketTimes(ready - began, ticket.began - began, ticket.ended - began)
                for ready, ticket in zip(self._ready, self._tickets, strict=True)
                if ticket.wait(0)
            ),
        )


def cut(items: Sequence[NdArray], pack_size: int) -> list[list[NdArray]]:
    """Cut a list, from its end, into buckets of about `pack_size` elements, the first smaller."""
    buckets: list[list[NdArray]] = []
    bucket: list[NdArray] = []
    size, limit = 0, max(1, pack_size // _FIRST_SHARE)
    for item in dict.fromkeys(reversed(list(items))):
        bucket.insert(0, item)
        size += item.size
        if size >= limit:
            buckets.append(bucket)
            bucket, size, limit = [], 0, pack_size
    return [*buckets, bucket] if bucket else buckets
