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
GRACE = 2.0
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
            if now - self._gone_since >= GRACE:
                raise DeadCommunicatorError(left_text(mine.text, gone))
        if now - self._begin >= self._timeout:
            text = mine.text if mine.running else self._description
            position = mine.positions.get(mine.group, 0)
            late = late_ranks(self._board.statuses(), mine.group, position, ranks, self._rank)
            raise too_late(text, late, self._board, self._rank, self._timeout)


def too_late(
    text: str, late: Mapping[int, str] | None, board: Board, rank: int, timeout: float
) -> DeadCommunicatorError:
    """Have late ranks end, and return the error that says who they are.

    Args:
        text: the collective waited for, in words.
        late: ranks and what keeps them; None if nobody can be asked.
        rank: this one.
        timeout: how long it has waited, in seconds.
    """
    if late:
        missing = ", ".join(map(str, late))
        why = f"rank {rank} has waited {timeout:g} seconds in {text} for rank {missing}"
        board.end(late, why)
        time.sleep(_PRINT)
    return DeadCommunicatorError(_explanation(text, timeout, late))


def left_text(text: str, gone: Mapping[int, str]) -> str:
    """The message about a collective that waits for ranks that have left."""
    who = "; ".join(f"rank {r}: {how}" for r, how in sorted(gone.items()))
    return (
        f"[{text}] waits for ranks that have left the job ({who}); all ranks must take part "
        "in all collectives"
    )


def late_ranks(
    statuses: Mapping[int, Status],
    group: str,
    position: int,
    ranks: Sequence[int],
    rank: int,
    on_gpu: bool = False,
) -> dict[int, str] | None:
    """Ranks that have not come to a collective, and why; None if nobody can be asked.

    Args:
        position: of the collective in its group.
        ranks: of the group.
        rank: this one.
        on_gpu: their GPUs have to come to it as well.
    """
    if not statuses:
        return None
    late: dict[int, str] = {}
    for r in ranks:
        status = statuses.get(r)
        if r == rank:
            continue
        if status is None:
            late[r] = "it does not answer: gone, frozen, or its interpreter is held"
        elif status.positions.get(group, 0) < position:
            late[r] = str(status)
        elif on_gpu and status.reached.get(group, 0) < position:
            late[r] = f"its GPU has not computed what comes before; {status}"
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
