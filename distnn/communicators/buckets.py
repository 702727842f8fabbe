"""Buckets: gradients are summed over ranks while backward still computes others.

Buckets are cut from the end of the list of gradients, which is near the order in which backward
completes them, and started in this fixed order on all ranks: readiness only decides when. A header
opens the step, and tells for each gradient whether any rank will have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..ndarray import NdArray, Storage
from .exchange import Arrays, Reducer, present_anywhere, ranges, reduce_ranges
from .fifo import Ticket
from .header import Schedule
from .transport import Transport

# The first bucket is small, so that communication begins early.
_FIRST_SHARE = 8


class AllReduceCallback:
    """Told by backward of complete gradients; see `all_reduce_callback` of a communicator."""

    def __init__(
        self,
        arrays: Arrays,
        pack_size: int,
        scale: float,
        start: Callable[..., Ticket],
        wait: Callable[[Ticket], Any],
        reducer: Reducer | None = None,
    ) -> None:
        self._arrays = arrays
        self._reducer = reducer
        self._scale = scale
        self._start = start
        self._wait = wait
        settings = [f"pack_size {pack_size}", *([reducer.describe()] if reducer else [])]
        self._schedule = Schedule("all_reduce_callback", [*arrays.entries, *settings])
        self.buckets = cut(arrays.items, pack_size)
        self._bucket_of = {
            id(item._storage): k for k, bucket in enumerate(self.buckets) for item in bucket
        }
        self._opening: Ticket | None = None
        self._tickets: list[Ticket] = []
        self._next = 0  # the bucket to be started next
        self._missing: list[set[int]] = []  # storages that each bucket still waits for
        self._written: set[int] | None = None  # storages that some rank has

    def begin(self, coming: Sequence[Storage]) -> None:
        """Backward begins; `coming` are the gradients that it will complete."""
        will = {id(storage) for storage in coming}
        # Gradients of an earlier backward that were not reduced yet count as well.
        present = [
            id(item._storage) in will or not item._storage.zeroing for item in self._arrays.items
        ]

        def open_step(transport: Transport, incomplete: bool) -> list[bool]:
            return present_anywhere(transport, incomplete, present)

        self._opening = self._start(self._schedule, open_step, not all(present))
        self._tickets = []
        self._next = 0
        self._written = None
        self._missing = [
            {id(item._storage) for item in bucket if id(item._storage) in will}
            for bucket in self.buckets
        ]

    def ready(self, storage: Storage) -> None:
        """This gradient is complete."""
        k = self._bucket_of.get(id(storage))
        if k is None:
            return
        self._missing[k].discard(id(storage))
        if k == self._next:
            self._start_complete_buckets()

    def finish(self) -> None:
        """Backward is over: start what is left and wait for all sums."""
        for missing in self._missing:
            missing.clear()
        self._start_complete_buckets()
        for ticket in self._tickets:
            self._wait(ticket)
        assert self._written is not None
        for item in self._arrays.items:
            if id(item._storage) in self._written:
                item._storage.written()
        self._tickets = []

    def _start_complete_buckets(self) -> None:
        while self._next < len(self.buckets) and not self._missing[self._next]:
            if self._written is None:
                assert self._opening is not None
                flags = self._wait(self._opening)
                self._written = {
                    id(item._storage)
                    for item, flag in zip(self._arrays.items, flags, strict=True)
                    if flag
                }
            bucket = [i for i in self.buckets[self._next] if id(i._storage) in self._written]
            self._next += 1
            if bucket:
                self._tickets.append(self._start(None, self._reduction(bucket)))

    def _reduction(self, bucket: list[NdArray]) -> Callable[[Transport, bool], None]:
        scale, reducer = self._scale, self._reducer
        memory = ranges(bucket)
        if reducer is not None:
            return lambda transport, _: reducer.reduce(bucket, transport, scale)
        return lambda transport, _: reduce_ranges(memory, transport, scale)


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
