"""Watch: sees that what was queued on a GPU comes to its end.

NCCL returns at once, and its kernels wait for those of other ranks, for ever if need be: whoever
reads from the device then waits with them. So a thread looks at what is under way. When a GPU fails
or a deadline passes it notes who is late, and ends NCCL's kernels.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from ..errors import DeadCommunicatorError
from .board import Board
from .waiting import GRACE, late_ranks, left_text, too_late

_LOOK = 0.05  # seconds


class Queued(Protocol):
    """Work on a device; cuda.fence.Fence."""

    @property
    def reached(self) -> bool: ...
    @property
    def done(self) -> bool: ...


class Operation(NamedTuple):
    """A collective that was queued on a device."""

    work: Queued
    failure: Callable[[], str | None]  # what NCCL says has failed
    group: str
    ranks: Sequence[int]
    position: int
    description: str


class Watch:
    """Looks after the operations of one communicator; its thread begins with the first.

    Args:
        board: of all ranks.
        rank: this one.
        timeout: seconds that an operation may wait for other ranks.
        lose: called, once, with the error that ends the communicator.
    """

    def __init__(
        self,
        board: Board,
        rank: int,
        timeout: float,
        lose: Callable[[DeadCommunicatorError], None],
    ) -> None:
        self._board = board
        self._rank = rank
        self._timeout = timeout
        self._lose = lose
        self._under_way: deque[Operation] = deque()
        self._more = threading.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, operation: Operation) -> None:
        """Watch an operation; they end in the order in which they are added."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=contextvars.copy_context().run,
                args=(self._run,),
                name=f"distnn watch {self._rank}",
                daemon=True,
            )
            self._thread.start()
        self._under_way.append(operation)
        self._more.set()

    def close(self) -> None:
        """Wait for what is under way: other ranks need this one's part; then look no more."""
        while self._under_way and self._thread is not None and self._thread.is_alive():
            time.sleep(_LOOK)
        self._closed.set()
        self._more.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            self._more.wait()
            self._more.clear()
            while self._under_way:
                operation = self._under_way[0]
                error = self._wait(operation)
                if error is not None:
                    self._lose(error)
                    return
                self._board.notes.reach(operation.group, operation.position)
                self._under_way.popleft()

    def _wait(self, operation: Operation) -> DeadCommunicatorError | None:
        """Wait until an operation has ended; the error if it never will."""
        began = gone_since = None
        while not operation.work.done:
            failure = self._failure(operation)
            if failure is not None:
                return failure
            # As long as this GPU still computes what comes before, it waits for nobody.
            if operation.work.reached:
                now = time.monotonic()
                if began is None:
                    began = now
                    self._board.notes.reach(operation.group, operation.position)
                gone = {r: how for r, how in self._board.gone().items() if r in operation.ranks}
                gone_since = (gone_since or now) if gone else None
                if gone_since is not None and now - gone_since >= GRACE:
                    return DeadCommunicatorError(left_text(operation.description, gone))
                if now - began >= self._timeout:
                    return self._too_late(operation)
            time.sleep(_LOOK)
        return self._failure(operation)

    def _failure(self, operation: Operation) -> DeadCommunicatorError | None:
        text = operation.failure()
        if text is None:
            return None
        return DeadCommunicatorError(
            f"[{operation.description}] NCCL has failed: {text}; NCCL_DEBUG=INFO says more"
        )

    def _too_late(self, operation: Operation) -> DeadCommunicatorError:
        late = late_ranks(
            self._board.statuses(),
            operation.group,
            operation.position,
            operation.ranks,
            self._rank,
            on_gpu=True,
        )
        return too_late(operation.description, late, self._board, self._rank, self._timeout)
