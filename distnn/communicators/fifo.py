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

from ..errors import CommunicatorError


class _Failures:
    """What keeps jobs from running that were queued before anybody was told of a failure.

    Ranks that disagreed in one collective have left their common order: what one of them had queued
    behind it would meet something else on the others. Jobs queued after the failure was raised in
    the main thread run again.
    """

    def __init__(self) -> None:
        self.told = 0  # failures that were raised in the main thread, for those who queue jobs
        self.failed = -1  # jobs queued when `told` was this or less do not run
        self.error: BaseException | None = None


class Ticket:
    """A collective that was put into the queue."""

    def __init__(self, description: str, failures: _Failures) -> None:
        self.description = description
        self._done = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None
        self._failures = failures
        self._told = failures.told

    def run(self, job: Callable[[], Any]) -> None:
        failures = self._failures
        if self._told <= failures.failed:
            self._error = failures.error
        else:
            try:
                self._result = job()
            except BaseException as error:
                self._error = failures.error = error
                failures.failed = self._told
        self._done.set()

    def done(self) -> bool:
        return self._done.is_set()

    def wait(self, timeout: float) -> Any:
        """The result; raises the job's error, or TimeoutError."""
        if not self._done.wait(timeout):
            raise TimeoutError
        if self._error is not None:
            self._failures.told = max(self._failures.told, self._told + 1)
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
        self._failures = _Failures()

    def submit(self, description: str, job: Callable[[], Any]) -> Ticket:
        """Put a job at the end of the queue."""
        if self.dead is not None:
            raise CommunicatorError(f"[{description}] the communicator is dead: {self.dead}")
        ticket = Ticket(description, self._failures)
        self._jobs.put((ticket, job))
        return ticket

    def close(self) -> None:
        """Let the thread end after the jobs that are queued."""
        self._finalizer()


def _work(jobs: queue.SimpleQueue) -> None:
    while (item := jobs.get()) is not None:
        ticket, job = item
        ticket.run(job)
        del item, ticket, job
