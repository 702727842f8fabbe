"""Prefetcher: calls a function one call ahead, on a thread of its own.

The thread knows the function and the prefetcher, not who uses them: an iterator that nobody else
refers to is collected, and its finalizer stops the thread.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from queue import SimpleQueue
from typing import Generic, TypeVar

from ..errors import ContextError

logger = logging.getLogger("distnn")

T = TypeVar("T")

PATIENCE = 5.0  # seconds that `stop` waits for a call in progress


class Prefetcher(Generic[T]):
    """Results of `make`, in order, each computed while the one before is in use.

    Args:
        make: called on the thread, in a copy of the context in which the prefetcher is made.
        cancel: makes a call of `make` in progress raise soon; may be called on any thread.

    >>> numbers = iter(range(3))
    >>> prefetcher = Prefetcher(lambda: next(numbers), lambda: None)
    >>> prefetcher.get(), prefetcher.get()
    (0, 1)
    >>> prefetcher.stop()
    """

    def __init__(self, make: Callable[[], T], cancel: Callable[[], object]) -> None:
        self._make = make
        self._cancel = cancel
        self._context = copy_context()
        self._requests: SimpleQueue[Future[T] | None] = SimpleQueue()
        self._future: Future[T] | None = None
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def request(self) -> None:
        """Have the next result made, unless it is in the making; the first call starts the thread.

        Raises: ContextError in a child process that was forked after the prefetcher was made.
        """
        if os.getpid() != self._process:  # threads do not survive a fork: waiting would be forever
            raise ContextError(
                f"[DataIterator] was made in process {self._process} but is used in {os.getpid()}, "
                "forked from it without its prefetch thread; make the iterator in the process that "
                "uses it, or pass use_thread=False"
            )
        if self._thread is None:
            # A daemon: when the main program ends, Python would wait forever for an idle thread.
            self._thread = threading.Thread(
                target=self._context.run, args=(self._work,), name="distnn-prefetch", daemon=True
            )
            self._thread.start()
        if self._future is None:
            self._future = Future()
            self._requests.put(self._future)

    def get(self) -> T:
        """The next result, or the exception that `make` raised instead; waits for it."""
        self.request()
        future = self._future
        assert future is not None
        future.exception()  # waits; a KeyboardInterrupt here loses no result
        self._future = None
        try:
            return future.result()
        finally:
            del future  # its exception's traceback refers to this frame: no cycle

    def discard(self) -> None:
        """Wait for the result in the making, if there is one, and forget it."""
        if self._future is not None:
            self._future.exception()
            self._future = None

    def stop(self) -> None:
        """End the thread; waits some seconds for a call in progress."""
        self._cancel()
        self._requests.put(None)
        thread = self._thread
        # The garbage collector may call this on any thread, that of the prefetcher included.
        if thread is None or thread is threading.current_thread() or os.getpid() != self._process:
            return
        thread.join(PATIENCE)
        if thread.is_alive():
            logger.warning(
                "[DataIterator] loading a sample takes longer than %g s: the iterator is closed "
                "without waiting for it",
                PATIENCE,
            )

    def _work(self) -> None:
        while (future := self._requests.get()) is not None:
            try:
                future.set_result(self._make())
            except BaseException as error:
                future.set_exception(error)
            del future  # while idle, keep no batch alive
