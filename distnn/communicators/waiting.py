"""Waiting for a collective: to its end, to its deadline, or until a rank has left for good."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from ..errors import DeadCommunicatorError
from .board import Board, Status
from .fifo import Ticket

TIMEOUT_VARIABLE = "DISTNN_TIMEOUT"
_LOOK = 0.2  # seconds between looks at who is gone
# Seconds that a collective may go on after a rank has left: it may have left with its part done.
_GRACE = 2.0
# Seconds for late ranks to print where they are: an error that nobody catches ends all ranks.
_PRINT = 0.5


def wait_for(
    ticket: Ticket,
    board: Board,
    ranks_of: Callable[[str], Sequence[int]],
    rank: int,
    timeout: float,
) -> None:
    """Wait until `ticket` is done.

    Args:
        ranks_of: gives the ranks of a group by its name.
        rank: this one.
        timeout: seconds.
    Raises: DeadCommunicatorError when it will not be, with the missing ranks and what they do.
    """
    deadline = time.monotonic() + timeout
    gone_since: float | None = None
    while not ticket.wait(min(_LOOK, max(0.0, deadline - time.monotonic()))):
        now = time.monotonic()
        mine = board.notes.status()
        ranks = ranks_of(mine.group)
        gone = {r: how for r, how in board.gone().items() if r in ranks}
        if gone and mine.running:
            gone_since = gone_since or now
            if now - gone_since >= _GRACE:
                raise DeadCommunicatorError(_left(mine, gone))
        if now >= deadline:
            raise DeadCommunicatorError(_late(ticket, mine, board, ranks, rank, timeout))


def _left(mine: Status, gone: Mapping[int, str]) -> str:
    who = "; ".join(f"rank {r}: {how}" for r, how in sorted(gone.items()))
    return (
        f"[{mine.text}] waits for ranks that have left the job ({who}); all ranks must take part "
        "in all collectives"
    )


def _late(
    ticket: Ticket, mine: Status, board: Board, ranks: Sequence[int], rank: int, timeout: float
) -> str:
    text = mine.text if mine.running else ticket.description
    statuses = board.statuses()
    position = mine.positions.get(mine.group, 0)
    late: dict[int, str] = {}
    for r in ranks if statuses else ():
        status = statuses.get(r)
        if r == rank:
            continue
        if status is None:
            late[r] = "it does not answer: gone, frozen, or its interpreter is held"
        elif status.positions.get(mine.group, 0) < position:
            late[r] = str(status)
    limit = f"timeout= or {TIMEOUT_VARIABLE} sets the limit"
    if not late:
        who = "all ranks are in it" if statuses else "a rank left it out, is slow or gone"
        return f"[{text}] did not end within {timeout:g} seconds: {who}; {limit}"
    why = f"rank {rank} has waited {timeout:g} seconds for this rank in {text}"
    board.end(late, why)
    time.sleep(_PRINT)
    who = "; ".join(f"rank {r} is late: {what}" for r, what in sorted(late.items()))
    return (
        f"[{text}] did not end within {timeout:g} seconds: {who}. Late ranks print where they are, "
        f"and are ended; {limit}"
    )
