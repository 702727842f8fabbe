"""Waiting for a collective: to its end, to its deadline, or until a rank has left for good."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from ..errors import DeadCommunicatorError
from .board import Board, Status
from .fifo import Ticket

TIMEOUT_VARIABLE = "DISTNN_TIMEOUT"
_LOOK = 0.2  # seconds between looks at who is gone
_SPIN = 0.005  # seconds in which who polls does nothing else
_NAP = 0.0005
# Seconds that a collective may go on after a rank has left: it may have left with its part done.
_GRACE = 2.0
# Seconds for late ranks to print where they are: an error that nobody catches ends all ranks.
_PRINT = 0.5


class Patience:
    """Watches over one wait."""

    def __init__(
        self,
        description: str,
        board: Board,
        ranks_of: Callable[[str], Sequence[int]],
        rank: int,
        timeout: float,
    ) -> None:
        """Begin to wait.

        Args:
            description: the collective waited for, in words.
            ranks_of: gives the ranks of a group by its name.
            rank: this one.
            timeout: seconds.
        """
        self._description = description
        self._board = board
        self._ranks_of = ranks_of
        self._rank = rank
        self._timeout = timeout
        self._begin = self._looked = time.monotonic()
        self._gone_since: float | None = None

    def wait(self, ticket: Ticket) -> None:
        """Wait until `ticket` is done; raises as `check`."""
        while not ticket.wait(min(_LOOK, self._timeout)):
            self.check()

    def check(self) -> None:
        """To be called again and again while waiting.

        Raises: DeadCommunicatorError when it will be in vain, with the missing ranks and what they
            do.
        """
        now = time.monotonic()
        if now - self._begin < _SPIN:
            return
        if now - self._looked < _LOOK and now - self._begin < self._timeout:
            time.sleep(_NAP)  # who polls leaves the core to others
            return
        self._looked = now
        mine = self._board.notes.status()
        ranks = self._ranks_of(mine.group)
        gone = {r: how for r, how in self._board.gone().items() if r in ranks}
        if gone and mine.running:
            self._gone_since = self._gone_since or now
            if now - self._gone_since >= _GRACE:
                raise DeadCommunicatorError(_left(mine, gone))
        if now - self._begin >= self._timeout:
            text = mine.text if mine.running else self._description
            late = _late(mine, self._board.statuses(), ranks, self._rank)
            if late:
                missing = ", ".join(map(str, late))
                why = f"rank {self._rank} has waited {self._timeout:g} seconds in {text} for rank "
                self._board.end(late, why + missing)
                time.sleep(_PRINT)
            raise DeadCommunicatorError(_explanation(text, self._timeout, late))


def _left(mine: Status, gone: Mapping[int, str]) -> str:
    who = "; ".join(f"rank {r}: {how}" for r, how in sorted(gone.items()))
    return (
        f"[{mine.text}] waits for ranks that have left the job ({who}); all ranks must take part "
        "in all collectives"
    )


def _late(
    mine: Status, statuses: Mapping[int, Status], ranks: Sequence[int], rank: int
) -> dict[int, str] | None:
    """Ranks that have not come where this one waits, and why; None if nobody can be asked."""
    if not statuses:
        return None
    position = mine.positions.get(mine.group, 0)
    late: dict[int, str] = {}
    for r in ranks:
        status = statuses.get(r)
        if r == rank:
            continue
        if status is None:
            late[r] = "it does not answer: gone, frozen, or its interpreter is held"
        elif status.positions.get(mine.group, 0) < position:
            late[r] = str(status)
    return late


def _explanation(text: str, timeout: float, late: Mapping[int, str] | None) -> str:
    if late:
        who = "; ".join(f"rank {r} is late: {what}" for r, what in sorted(late.items()))
        who += ". Late ranks print where they are, and are ended"
    elif late is None:
        who = "a rank left it out, is slow or gone"
    else:
        who = "all ranks are in it, so the network is slow or stuck"
    return (
        f"[{text}] did not end within {timeout:g} seconds: {who}; timeout= or {TIMEOUT_VARIABLE} "
        "sets the limit"
    )
