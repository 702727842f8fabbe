"""Transport: what a communicator needs to move host memory between ranks. And the trivial one.

All methods block and are called by one thread at a time (fifo.py), with contiguous NumPy arrays.
`largest` and a small `all_reduce` call `check`, where it is set, while they wait; what that raises
ends the wait.
All ranks call the same methods in the same order; header.py makes sure of that beforehand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .board import Board, SilentBoard

if TYPE_CHECKING:
    from .fifo import Ticket


# What opens a collective (header.py): of one size, so that headers of any two collectives meet.
Header = tuple[int, int, int, int, int, int]


class Collectives(Protocol):
    """How ranks exchange arrays; contiguous ones, of equal shapes and dtypes on all ranks."""

    def all_reduce(self, array: np.ndarray, operation: str) -> None:
        """array = sum (or "max") over ranks, in place."""

    def reduce(self, array: np.ndarray, root: int) -> None:
        """On rank `root`: array = sum over ranks, in place."""

    def broadcast(self, array: np.ndarray, root: int) -> None:
        """array = that of rank `root`."""

    def all_gather(self, array: np.ndarray, out: np.ndarray) -> None:
        """out[r] = array of rank r; out (size, *array.shape)."""

    def reduce_scatter(self, parts: np.ndarray, out: np.ndarray) -> None:
        """out = sum over ranks of parts[rank]; parts (size, *out.shape)."""

    def all_to_all(self, parts: Sequence[np.ndarray], out: Sequence[np.ndarray]) -> None:
        """out[r] = parts[rank] of rank r; sizes may differ between pairs of ranks."""

    def scatter(self, parts: np.ndarray | None, out: np.ndarray, root: int) -> None:
        """out = parts[rank] of rank `root`; parts (size, *out.shape), None on other ranks."""


class Transport(Collectives, Protocol):
    """Ranks 0 to size - 1, and how they exchange memory."""

    rank: int
    size: int
    local_rank: int  # among the ranks of this machine
    check: Callable[[], None] | None
    polled_bytes: int  # an all_reduce of at most this size calls `check`
    ticket: Ticket | None  # what it works for; its `awaited` says that nobody else needs the core

    def largest(self, numbers: Header) -> Header:
        """The largest over ranks of each of these whole numbers."""

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """The data of every rank."""

    def barrier(self) -> None:
        """Wait until all ranks are here."""

    def subset(self, ranks: Sequence[int]) -> Transport | None:
        """A transport among these ranks, in their order; None on others. All ranks call it."""

    def board(self) -> Board:
        """A new board of all ranks; they all call it, once."""

    def abort(self, status: int) -> None:
        """End all ranks at once."""

    def give_up(self) -> None:
        """Some collective will never end: let this process end nevertheless, with a bad status."""


class SingleTransport:
    """One rank: sums are what they are."""

    rank = 0
    size = 1
    local_rank = 0
    check: Callable[[], None] | None = None
    polled_bytes = sys.maxsize  # it never waits
    ticket: Ticket | None = None

    def all_reduce(self, array: np.ndarray, operation: str) -> None:
        pass

    def reduce(self, array: np.ndarray, root: int) -> None:
        pass

    def broadcast(self, array: np.ndarray, root: int) -> None:
        pass

    def all_gather(self, array: np.ndarray, out: np.ndarray) -> None:
        out[0] = array

    def reduce_scatter(self, parts: np.ndarray, out: np.ndarray) -> None:
        out[...] = parts[0]

    def all_to_all(self, parts: Sequence[np.ndarray], out: Sequence[np.ndarray]) -> None:
        np.copyto(out[0], parts[0])

    def scatter(self, parts: np.ndarray | None, out: np.ndarray, root: int) -> None:
        assert parts is not None
        out[...] = parts[0]

    def largest(self, numbers: Header) -> Header:
        return numbers

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        return [data]

    def barrier(self) -> None:
        pass

    def subset(self, ranks: Sequence[int]) -> Transport | None:
        return SingleTransport()

    def board(self) -> Board:
        return SilentBoard()

    def abort(self, status: int) -> None:
        raise SystemExit(status)

    def give_up(self) -> None:
        pass
