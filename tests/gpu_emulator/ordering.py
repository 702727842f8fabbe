"""Does anything order what two streams do to the same memory? The emulator runs it in order anyway.

Each stream counts its work. A clock says, for each stream, up to which number its work is done;
streams, events and the host have one. Work may touch memory if the clock of its stream covers all
that other streams did to the same bytes. Ranks are threads that share all this, hence the lock.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from .errors import StreamError
from .memory import BaseMemory
from .record import settings

Clock = dict[int, int]


@dataclass
class Access:
    """Bytes `start` up to `end`, as addresses, of a memory."""

    memory: BaseMemory
    start: int
    end: int
    writes: bool | None  # None: it may be read or written, nobody knows where
    reach: int | None = None  # how far it may go, where only the start is known


@dataclass
class _Done:
    start: int
    end: int
    writes: bool
    stream: int
    number: int
    name: str


@dataclass
class _History:
    """What was done to an allocation, by the work that may still run."""

    stream: int  # the current one when the memory was given
    done: list[_Done] = field(default_factory=list)


_clocks: dict[int, Clock] = {}
_host: Clock = {}
_histories: weakref.WeakKeyDictionary[BaseMemory, _History] = weakref.WeakKeyDictionary()
_early_frees: list[str] = []
blocking_streams: set[int] = set()  # those that the null stream waits for, and that wait for it


_lock = threading.RLock()  # garbage that is collected in here may be memory: _freed
P, R = ParamSpec("P"), TypeVar("R")


def _one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(function)
    def locked(*args: P.args, **kwargs: P.kwargs) -> R:
        with _lock:
            return function(*args, **kwargs)

    return locked


def _merge(clock: Clock, other: Clock) -> None:
    for stream, number in other.items():
        clock[stream] = max(clock.get(stream, 0), number)


@_one_at_a_time
def clock_of(stream: int) -> Clock:
    """What is done before the next work on a stream begins; nothing while nobody asks."""
    if not settings.check_streams:
        return {}
    clock = _clocks.setdefault(stream, {})
    _merge(clock, _host)
    if stream == 0:
        for other in blocking_streams:
            _merge(clock, _clocks.get(other, {}))
    elif stream in blocking_streams:
        _merge(clock, _clocks.get(0, {}))
    return clock


@_one_at_a_time
def wait_for(stream: int, clock: Clock) -> None:
    _merge(_clocks.setdefault(stream, {}), clock)


@_one_at_a_time
def host_waits_for(clock: Clock) -> None:
    _merge(_host, clock)


@_one_at_a_time
def host_waits_for_all() -> None:
    for clock in _clocks.values():
        _merge(_host, clock)


@_one_at_a_time
def begin(name: str, stream: int, accesses: Sequence[Access]) -> None:
    """Work is given to a stream: raises StreamError if other streams may be at its memory."""
    if not settings.check_streams:
        return
    _raise_early_frees()
    accesses = [access for access in accesses if access.writes is not None]
    clock = clock_of(stream)
    clock[stream] = number = clock.get(stream, 0) + 1
    for access in accesses:
        history = _history(access.memory)
        for done in history.done:
            apart = done.end <= access.start or access.end <= done.start
            if apart or not (done.writes or access.writes):
                continue
            if clock.get(done.stream, 0) < done.number:
                now, then = (
                    "writes" if writes else "reads" for writes in (access.writes, done.writes)
                )
                raise StreamError(
                    f"[{name}] on stream {stream:#x} {now} memory that {done.name} on stream "
                    f"{done.stream:#x} {then}; let it wait for an event"
                )
    for access in accesses:
        history = _history(access.memory)
        # Covered by what comes now: whoever is ordered after this is ordered after those.
        history.done = [
            done
            for done in history.done
            if not (access.start <= done.start and done.end <= access.end)
            or (not access.writes and (done.writes or done.stream != stream))
        ]
        history.done.append(_Done(access.start, access.end, access.writes, stream, number, name))


@contextmanager
def checked() -> Iterator[None]:
    """Check from here on, and that no memory was freed too early. What was done before is done."""
    forget()
    with settings.using(check_streams=True):
        yield
        _raise_early_frees()


@_one_at_a_time
def _raise_early_frees() -> None:
    if _early_frees:
        message = "; ".join(_early_frees)
        _early_frees.clear()
        raise StreamError(message)


def _history(memory: BaseMemory) -> _History:
    memory = memory.allocation  # parts of it that others hand out have its history
    history = _histories.get(memory)
    if history is None:
        history = _histories[memory] = _History(getattr(memory, "stream", 0))
        weakref.finalize(memory, _freed, history, memory.size).atexit = False
    return history


@_one_at_a_time
def _freed(history: _History, size: int) -> None:
    """The pool gives freed memory to the stream it came from, which does not wait for others."""
    if not settings.check_streams:
        return
    clock = clock_of(history.stream)
    for done in history.done:
        if done.stream != history.stream and clock.get(done.stream, 0) < done.number:
            _early_frees.append(
                f"{size} bytes of stream {history.stream:#x} were freed while {done.name} on "
                f"stream {done.stream:#x} may still use them"
            )
            return


@_one_at_a_time
def forget() -> None:
    """All is done: for a new test. Work that nobody checked is not known here."""
    _clocks.clear()
    _host.clear()
    for history in list(_histories.values()):
        history.done.clear()  # their memory may be freed at any time from now on
    _early_frees.clear()
