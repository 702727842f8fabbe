"""The one queue of a process's collectives, run in order by a thread of its own.

The thread holds the interpreter lock only between blocking calls, so communication goes on while
the main thread computes. The main thread waits on events, never inside the transport: it can raise
when a deadline passes.
"""

from __future__ import annotations

import contextvars
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

from ..errors import DeadCommunicatorError


class Ticket:
    """A collective that was put into the queue."""

    def __init__(self, description: str) -> None:
        self.description = description
        self._done = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None

    def run(self, job: Callable[[], Any]) -> None:
        try:
            self._result = job()
        except BaseException as error:
            self._error = error
        self._done.set()

    def done(self) -> bool:
        return self._done.is_set()

    def wait(self, timeout: float) -> bool:
        """Wait until it is done, at most `timeout` seconds; whether it is."""
        return self._done.wait(timeout)

    def result(self) -> Any:
        """What the job returned; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._result


class Fifo:
    """Runs jobs one after the other on a thread that ends with the queue."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        # The thread knows the queue of jobs only, so that it does not keep the communicator alive.
        thread = threading.Thread(
            target=contextvars.copy_context().run,
            args=(_work, self._jobs),
            name=name,
            daemon=True,
        )
        thread.start()
        self._finalizer = weakref.finalize(self, self._jobs.put, None)
        self.dead: str | None = None

    def submit(self, ticket: Ticket, job: Callable[[], Any]) -> None:
        """Put a job at the end of the queue."""
        if self.dead is not None:
            raise DeadCommunicatorError(
                f"[{ticket.description}] the communicator is dead: {self.dead}"
            )
        self._jobs.put((ticket, job))

    def close(self) -> None:
        """Let the thread end after the jobs that are queued."""
        self._finalizer()


def _work(jobs: queue.SimpleQueue) -> None:
    while (item := jobs.get()) is not None:
        ticket, job = item
        ticket.run(job)
        del item, ticket, job
