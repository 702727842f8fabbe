"""A slow link for tests and benchmarks: any transport, and the time that a link would take."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import numpy as np

from ..errors import ArgumentError
from .board import Board
from .fifo import Ticket
from .transport import Header, Transport

LINK_VARIABLE = "DISTNN_LINK"


class Throttled:
    """A transport that waits latency + bytes / bandwidth before each collective.

    The bytes are those that a rank sends in the usual algorithm: 2 (n - 1) / n of the array in an
    all-reduce, the parts for others in an all-to-all, and so on; one latency per call, not per
    message. On one rank nothing is sent. An emulation: links do not disturb each other, and the
    transport's own time comes on top.

    `run_threads(..., link=(bytes_per_second, latency))` gives such a link to ranks that are
    threads, the environment variable DISTNN_LINK ("1.25e8,5e-5": 1 Gbit/s and 50 microseconds) to
    all ranks of a job.

    Args:
        transport: what does the work.
        bytes_per_second: in each direction, for each rank.
        latency: seconds per collective.

    >>> import numpy as np, time
    >>> from distnn.communicators.transport import SingleTransport
    >>> Throttled(SingleTransport(), bytes_per_second=1e9, latency=1e-4).size
    1
    """

    check: Callable[[], None] | None = None
    polled_bytes = -1  # its sleeps are for the communication thread
    ticket: Ticket | None = None

    def __init__(
        self, transport: Transport, bytes_per_second: float = float("inf"), latency: float = 0.0
    ) -> None:
        if not (bytes_per_second > 0 and latency >= 0):
            raise ArgumentError(
                f"[Throttled] bytes_per_second is {bytes_per_second} and latency {latency}; pass "
                "more than 0, and 0 seconds or more"
            )
        self._transport = transport
        self._link = (float(bytes_per_second), float(latency))
        self.rank = transport.rank
        self.size = transport.size
        self.local_rank = transport.local_rank

    def _wait(self, sent: float) -> None:
        bandwidth, latency = self._link
        if self.size > 1:
            time.sleep(latency + sent / bandwidth)

    def all_reduce(self, array: np.ndarray, operation: str) -> None:
        self._wait(2 * (self.size - 1) / self.size * array.nbytes)
        self._transport.all_reduce(array, operation)

    def reduce(self, array: np.ndarray, root: int) -> None:
        self._wait(array.nbytes)
        self._transport.reduce(array, root)

    def broadcast(self, array: np.ndarray, root: int) -> None:
        self._wait(array.nbytes)
        self._transport.broadcast(array, root)

    def all_gather(self, array: np.ndarray, out: np.ndarray) -> None:
        self._wait((self.size - 1) * array.nbytes)
        self._transport.all_gather(array, out)

    def reduce_scatter(self, parts: np.ndarray, out: np.ndarray) -> None:
        self._wait((self.size - 1) * out.nbytes)
        self._transport.reduce_scatter(parts, out)

    def all_to_all(self, parts: Sequence[np.ndarray], out: Sequence[np.ndarray]) -> None:
        self._wait(sum(part.nbytes for r, part in enumerate(parts) if r != self.rank))
        self._transport.all_to_all(parts, out)

    def scatter(self, parts: np.ndarray | None, out: np.ndarray, root: int) -> None:
        self._wait((self.size - 1) * out.nbytes)
        self._transport.scatter(parts, out, root)

    def largest(self, numbers: Header) -> Header:
        self._wait(2 * (self.size - 1) / self.size * 8 * len(numbers))
        return self._transport.largest(numbers)

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        self._wait((self.size - 1) * len(data))
        return self._transport.all_gather_bytes(data)

    def barrier(self) -> None:
        self._wait(0)
        self._transport.barrier()

    def subset(self, ranks: Sequence[int]) -> Throttled | None:
        found = self._transport.subset(ranks)
        return None if found is None else Throttled(found, *self._link)

    def board(self) -> Board:
        return self._transport.board()

    def give_up(self) -> None:
        self._transport.give_up()

    def abort(self, status: int) -> None:
        self._transport.abort(status)


def with_link_of_environment(transport: Transport) -> Transport:
    """The transport, behind the link that DISTNN_LINK describes if it is set."""
    text = os.environ.get(LINK_VARIABLE, "")
    if not text:
        return transport
    try:
        bytes_per_second, latency = map(float, text.split(","))
    except ValueError:
        raise ArgumentError(
            f"[init] {LINK_VARIABLE} is {text!r}; set it to bytes per second and seconds, for "
            "example 1.25e8,5e-5"
        ) from None
    return Throttled(transport, bytes_per_second, latency)
