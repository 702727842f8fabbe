"""Board: what each rank does now, so that who waits can say for whom.

A rank notes when it enters and leaves a collective; that costs two assignments. Others look only
when they have waited for long. One for threads is here, one for processes in tcp_board.py.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol


def describe(operation: str, number: int, group: str) -> str:
    """A collective in words."""
    where = "" if group == "world" else f" of group {group!r}"
    return f"{operation} no. {number}{where}"


class Status(NamedTuple):
    """What a rank did last."""

    positions: dict[str, int]  # group -> number of its collectives that the rank has entered
    group: str  # of the last of them
    text: str  # the last of them, in words
    running: bool  # it is still inside
    age: float  # seconds since it entered or left
    reached: Mapping[str, int] = MappingProxyType({})  # as positions, of its GPU

    def __str__(self) -> str:
        if not self.text:
            return "it has entered no collective yet"
        if self.running:
            return f"it is in {self.text} since {self.age:.1f} s"
        return f"it left {self.text} {self.age:.1f} s ago and has entered none since"


class Notes:
    """The own rank's part of a board."""

    def __init__(self) -> None:
        self._positions: dict[str, int] = {}
        self._reached: dict[str, int] = {}
        self._group = ""
        self._operation = ""
        self._running = False
        self._since = time.monotonic()

    def enter(self, group: str, position: int, operation: str) -> None:
        self._positions[group] = position
        self._group = group
        self._operation = operation
        self._since = time.monotonic()
        self._running = True

    def leave(self) -> None:
        self._since = time.monotonic()
        self._running = False

    def reach(self, group: str, position: int) -> None:
        """The GPU has computed all that this collective needs."""
        self._reached[group] = position

    def status(self) -> Status:
        age = time.monotonic() - self._since
        positions, reached = dict(self._positions), dict(self._reached)
        group, text = self._group, ""
        if self._operation:
            text = describe(self._operation, positions[group], group)
        return Status(positions, group, text, self._running, age, reached)


class Board(Protocol):
    """How a rank learns about the others, by number in the whole job."""

    notes: Notes

    def gone(self) -> dict[int, str]:
        """Ranks that have left the job, and how."""

    def statuses(self) -> dict[int, Status]:
        """What the ranks did last; who does not answer is not in it."""

    def end(self, ranks: Iterable[int], why: str) -> None:
        """Have these ranks print where they are, and end them."""

    def close(self) -> None:
        """Tell the others that this rank leaves."""


class SilentBoard:
    """Where nobody else is, or can be asked."""

    def __init__(self) -> None:
        self.notes = Notes()

    def gone(self) -> dict[int, str]:
        return {}

    def statuses(self) -> dict[int, Status]:
        return {}

    def end(self, ranks: Iterable[int], why: str) -> None:
        pass

    def close(self) -> None:
        pass


class ThreadsBoard:
    """A board of ranks that are threads of this process."""

    def __init__(
        self,
        boards: list[ThreadsBoard | None],
        rank: int,
        thread: int,
        fail: Callable[[str], None],
    ) -> None:
        """Join.

        Args:
            boards: shared by the ranks, which put themselves in.
            thread: identifier of the rank's thread.
            fail: ends the collectives of all ranks.
        """
        self.notes = Notes()
        self._boards = boards
        self._thread = thread
        self._fail = fail
        boards[rank] = self

    def gone(self) -> dict[int, str]:
        return {}

    def statuses(self) -> dict[int, Status]:
        return {r: board.notes.status() for r, board in enumerate(self._boards) if board}

    def end(self, ranks: Iterable[int], why: str) -> None:
        frames = sys._current_frames()
        for rank in ranks:
            board = self._boards[rank]
            frame = None if board is None else frames.get(board._thread)
            if frame is not None:
                stack = "".join(traceback.format_stack(frame))
                print(f"rank {rank}: {why}; it is here:\n{stack}", file=sys.stderr)
        self._fail(why)

    def close(self) -> None:
        pass
