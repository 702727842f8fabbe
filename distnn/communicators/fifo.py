"""The one queue of a process's collectives, run in order by a thread of its own.

The thread holds the interpreter lock only between blocking calls, so communication goes on while
the main thread computes. The main thread waits on events or polls, and never blocks inside the
transport: it can raise when a deadline passes.
"""

from __future__ import annotations

import contextvars
import queue
import sys
import threading
import weakref
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from ..errors import DeadCommunicatorError

# Where more than these bytes are exchanged, a thread that computes in Python lets the communication
# thread go on after these seconds. Python's own 5 ms, several times in each exchange, would hold up
# what the computation could hide. Each turn costs the computation some 0.1 ms.
_LARGE = 1 << 20
_TURN = 1e-4


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

    def raise_untold(self) -> None:
        """Raise what has failed since anybody was told of a failure."""
        if self.told <= self.failed:
            self.told = self.failed + 1
            assert self.error is not None
            raise self.error


class Ticket:
    """A collective that was put into the queue."""

    def __init__(self, description: str, failures: _Failures) -> None:
        self.description = description
        self.awaited = False  # somebody does nothing but wait for it
        self._done = False
        self._running = threading.Lock()  # a tenth of the cost of an Event
        self._running.acquire()
        self._result: Any = None
        self._error: BaseException | None = None
        self.began = self.ended = 0.0  # perf_counter, on the thread that ran it
        self.fence: Any = None  # cuda.fence.Fence, where a GPU is used
        self._failures = failures
        self._told = failures.told

    def run(self, job: Callable[[], Any]) -> None:
        failures = self._failures
        self.began = perf_counter()
        if self._told <= failures.failed:
            self._error = failures.error
        else:
            try:
                self._result = job()
            except BaseException as error:
                self._error = failures.error = error
                failures.failed = self._told
        self.ended = perf_counter()
        self._done = True
        self._running.release()

    def done(self) -> bool:
        return self._done

    def wait(self, timeout: float) -> bool:
        """Wait until it is done, at most `timeout` seconds; whether it is."""
        self.awaited = True
        if not self._done and self._running.acquire(timeout=timeout):
            self._running.release()  # for others who wait
        return self._done

    def result(self) -> Any:
        """What the job returned; raises what it raised."""
        if self._error is not None:
            self._failures.told = max(self._failures.told, self._told + 1)
            raise self._error
        return self._result


class Fifo:
    """Runs jobs one after the other on a thread that ends with the queue."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._submitted = 0
        self._progress = _Progress()
        # The thread knows the queue of jobs only, so that it does not keep the communicator alive.
        thread = threading.Thread(
            target=contextvars.copy_context().run,
            args=(_work, self._jobs, self._progress),
            name=name,
            daemon=True,
        )
        thread.start()
        self._finalizer = weakref.finalize(self, self._jobs.put, None)
        self.dead: str | None = None
        self._failures = _Failures()

    def ticket(self, description: str) -> Ticket:
        """A ticket for a job of this queue."""
        return Ticket(description, self._failures)

    def submit(self, ticket: Ticket, job: Callable[[], Any], nbytes: int) -> None:
        """Put a job that exchanges about `nbytes` at the end of the queue."""
        self._check_alive(ticket.description)
        self._submitted += 1
        if nbytes >= _LARGE:
            _take_turns()
        self._jobs.put((ticket, job))

    @property
    def idle(self) -> bool:
        """Nothing is queued or under way."""
        return self._progress.done == self._submitted

    def here(self, operation: str) -> threading.Lock:
        """To be held while the calling thread does a collective itself; the queue must be idle."""
        self._check_alive(operation)
        self._failures.raise_untold()
        return self._progress.lock

    def _check_alive(self, description: str) -> None:
        if self.dead is not None:
            raise DeadCommunicatorError(f"[{description}] the communicator is dead: {self.dead}")

    def close(self) -> None:
        """Let the thread end after the jobs that are queued."""
        self._finalizer()


class _Progress:
    """What the thread has done so far."""

    def __init__(self) -> None:
        self.done = 0
        self.lock = threading.Lock()  # held while a job runs


def _work(jobs: queue.SimpleQueue, progress: _Progress) -> None:
    with np.errstate(all="ignore"):  # sums of gradients overflow without warning, as functions do
        while (item := jobs.get()) is not None:
            ticket, job = item
            with progress.lock:
                ticket.run(job)
            progress.done += 1
            del item, ticket, job
            if jobs.empty():
                _end_turns()


_usual_turn = sys.getswitchinterval()


def _take_turns() -> None:
    """Let threads of Python take turns more often."""
    global _usual_turn
    found = sys.getswitchinterval()
    if found > _TURN:
        _usual_turn = found
        sys.setswitchinterval(_TURN)


def _end_turns() -> None:
    if sys.getswitchinterval() <= _TURN:
        sys.setswitchinterval(_usual_turn)
