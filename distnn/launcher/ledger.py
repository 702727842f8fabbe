"""Ledger: how each rank has fared, and which of them failed; acts on nothing."""

from __future__ import annotations

import time
from typing import Any

from .report import Failure, ranks_text
from .server import Connection

# Seconds for the others to follow a rank that ends by os._exit(0): MPI programs that end so meet
# before. Where one rank has left too early, the others wait for it in MPI for ever.
_FOLLOW = 2.0
# For mpirun to tell why supervisors are gone: Hydra kills them all when a program calls MPI_Abort.
_LOST = 0.25


class Ledger:
    """What the supervisors of a job have said."""

    def __init__(self, size: int) -> None:
        self.unfinished = set(range(size))
        self.failures: dict[int, Failure] = {}
        self._left: tuple[float, Connection] | None = None  # when who first ended by os._exit(0)
        self._lost: tuple[float, Connection] | None = None  # when whose supervisor was first gone

    def failed(self, connection: Connection, account: dict[str, Any]) -> None:
        """A program has ended itself because of an exception, or could not be started."""
        self.failures[connection.rank] = Failure(connection.rank, connection.host, **account)

    def ended(self, connection: Connection, account: dict[str, Any]) -> None:
        """A program is gone."""
        connection.ended = True
        finished = account.pop("finished")
        if connection.rank in self.failures:
            self.failures[connection.rank].tail = account["tail"]
        elif account["status"] != 0:
            self.failed(connection, account)
        else:
            self.unfinished.discard(connection.rank)
            if not finished and self._left is None:
                self._left = time.monotonic(), connection

    def lost(self, connection: Connection) -> None:
        """A connection has broken."""
        if not connection.ended and self._lost is None:
            self._lost = time.monotonic(), connection

    def patience(self) -> float:
        """Seconds after which `look` may find something without a word from anybody."""
        return _LOST if self._lost is not None else _FOLLOW

    def look(self, now: float) -> None:
        """Find the ranks that take no part any more, although nobody has said that they failed."""
        if self._left is not None and self.unfinished and now - self._left[0] >= _FOLLOW:
            self._give_up(
                self._left[1],
                "it ended by os._exit(0) before the end of its program, and "
                f"{ranks_text(self.unfinished)} had not ended {_FOLLOW:g} s later; "
                "end the program by returning, so that MPI_Finalize is called",
            )
        elif self._lost is not None and now - self._lost[0] >= _LOST:
            self._give_up(
                self._lost[1],
                "its supervisor is gone: killed from outside, or the node or the network failed",
            )

    def _give_up(self, connection: Connection, why: str) -> None:
        self.failed(connection, {"time": time.time(), "status": 1, "traceback": why})
