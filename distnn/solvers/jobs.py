"""Rules and sums over arrays: each where its array lies, all of one memory at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .. import transfer
from ..formula import Assignments

if TYPE_CHECKING:
    from ..backend import Backend

T = TypeVar("T")


def run(rule: Assignments, jobs: Sequence[tuple[Sequence[Any], Sequence[float]]]) -> None:
    """Run a rule on jobs of (arrays, numbers)."""
    for backend, mine in by_backend(jobs, lambda job: job[0][0]):
        backend.run(rule, mine)


def sums_of_squares(arrays: Sequence[Any]) -> list[float]:
    """The sum of squares of each array, in float64. Of a device's arrays the host waits for it."""
    found = [0.0] * len(arrays)
    for backend, mine in by_backend(range(len(arrays)), lambda i: arrays[i]):
        for i, square in zip(mine, backend.sums_of_squares([arrays[i] for i in mine]), strict=True):
            found[i] = square
    return found


def by_backend(items: Iterable[T], array: Callable[[T], Any]) -> list[tuple[Backend, list[T]]]:
    """Items grouped by the backend that computes where their array lies."""
    items = list(items)
    if len(items) == 1:
        return [(transfer.backend_of(array(items[0])), items)]
    groups: dict[Backend, list[T]] = {}
    for item in items:
        groups.setdefault(transfer.backend_of(array(item)), []).append(item)
    return list(groups.items())
