"""Joining: ranks whose data end earlier follow the others until all are done.

Such a rank sends a header that says only that it has no data. The header tells it what the others
exchange; it takes part with zeros, gets the same sums, and makes the same update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ArgumentError
from .buckets import AllReduceCallback
from .header import Schedule

if TYPE_CHECKING:
    from .communicator import MultiProcessDataParallelCommunicator

Batch = TypeVar("Batch")


def join(
    comm: MultiProcessDataParallelCommunicator,
    batches: Iterable[Batch],
    updates: Mapping[AllReduceCallback, Callable[[], Any]],
    divide_by: str,
) -> Iterator[Batch]:
    """See `MultiProcessDataParallelCommunicator.join`."""
    if divide_by not in ("active", "initial"):
        raise ArgumentError(f'[join] divide_by is {divide_by!r}; pass "active" or "initial"')
    return _batches(comm, batches, updates, divide_by)


def _batches(
    comm: MultiProcessDataParallelCommunicator,
    batches: Iterable[Batch],
    updates: Mapping[AllReduceCallback, Callable[[], Any]],
    divide_by: str,
) -> Iterator[Batch]:
    known = {callback.schedule.hash: callback for callback in updates}
    entries = [f"divide_by {divide_by}", *(entry for c in updates for entry in c.schedule.entries)]
    comm._run(Schedule("begin of join", entries), lambda transport, agreed: None)
    comm._divide_by_active = divide_by == "active"
    try:
        yield from batches
        while (agreed := comm._follow(known)).hash is not None:
            callback = known[agreed.hash]
            callback.take_part(agreed)
            updates[callback]()
    finally:
        comm._divide_by_active = False
