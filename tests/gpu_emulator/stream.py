"""Streams, events and captured graphs. Work runs at once, in the order of the host.

But for NCCL's: that goes on in the background of its stream. What needs it waits for it: work that
comes later on that stream, and streams and hosts that wait for an event.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from . import ordering
from .errors import CUDARuntimeError
from .memory import BaseMemory, current_device
from .ordering import Access
from .record import record

_here = threading.local()
_addresses = itertools.count(0x5EA0000010, 16)


# An entry of the record, what to do, and what it touches: weak memory, start, end, writes.
_Touch = tuple["weakref.ref[BaseMemory]", int, int, bool]
_Operation = tuple[tuple[Any, ...], Callable[[], None], list[_Touch]]


class Capture:
    """What one `begin_capture` gathers, over the streams that take part."""

    def __init__(self, origin: int) -> None:
        self.origin = origin
        self.operations: list[_Operation] = []
        self.versions: dict[int, int] = {origin: 0}  # operations on each stream that takes part
        self.joined: dict[int, int] = {}  # how many of them another stream has waited for


_captures: dict[int, Capture] = {}  # by address of a stream


def submit(
    entry: tuple[Any, ...],
    action: Callable[[], None],
    stream: int,
    accesses: Sequence[Access] = (),
) -> None:
    """Runs work on a stream, or keeps it for the graph that the stream captures."""
    capture = capturing(stream)
    if capture is None:
        ordering.begin(f"{entry[0]} {entry[1]}", stream, accesses)
        finish_background(stream)
        action()
        record.operations.append(entry)
        return
    touched = [(weakref.ref(a.memory.allocation), a.start, a.end, a.writes) for a in accesses]
    capture.operations.append((entry, action, touched))
    capture.versions[stream] += 1


def capturing(stream: int) -> Capture | None:
    """The capture that a stream takes part in; raises where the legacy stream may not be used."""
    if stream == 0:
        for address, capture in _captures.items():
            if address in ordering.blocking_streams:
                raise CUDARuntimeError(
                    "cudaErrorStreamCaptureImplicit",
                    f"the null stream depends on stream {capture.origin:#x}, which is capturing",
                    906,
                )
    return _captures.get(stream)


def refuse_capture(stream: int, what: str) -> None:
    if stream in _captures:
        raise CUDARuntimeError(
            "cudaErrorStreamCaptureUnsupported",
            f"operation not permitted when stream is capturing: {what}",
            900,
        )


def in_background(stream: int, action: Callable[[], None]) -> None:
    """Runs work after what is in the background of a stream, while the host goes on."""
    refuse_capture(stream, "work in the background")
    before, done = background(stream), threading.Event()

    def run() -> None:
        if before is not None:
            before.wait()
        try:
            action()
        finally:
            done.set()

    _background[_key(stream)] = done
    threading.Thread(target=run, name=f"stream {stream:#x}", daemon=True).start()


_background: dict[tuple[int, int], threading.Event] = {}  # the end of the last work of a stream


def _key(stream: int) -> tuple[int, int]:
    # Each device has a null stream of its own.
    return (current_device() if stream < 3 else -1, stream)


def background(stream: int) -> threading.Event | None:
    """The end of what is in the background of a stream; None if nothing is."""
    found = _background.get(_key(stream))
    return None if found is None or found.is_set() else found


def finish_background(stream: int) -> None:
    found = background(stream)
    if found is not None:
        found.wait()


def finish_all(what: str) -> None:
    """The host waits for all streams."""
    if _captures:
        refuse_capture(next(iter(_captures)), what)
    for done in list(_background.values()):
        done.wait()
    ordering.host_waits_for_all()


def synchronized(what: str, stream: int) -> None:
    """The host waits for a stream."""
    refuse_capture(stream, what)
    ordering.host_waits_for(ordering.clock_of(stream))
    finish_background(stream)
    record.synchronizations += 1
    record.operations.append(("synchronize", what, stream))


class _BaseStream:
    def __init__(self, ptr: int, device_id: int, non_blocking: bool = False) -> None:
        self.ptr = ptr
        self.device_id = device_id
        self.is_non_blocking = non_blocking
        self.priority = 0
        if ptr > 2 and not non_blocking:
            ordering.blocking_streams.add(ptr)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BaseStream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return hash(self.ptr)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.ptr} (device {self.device_id})>"

    def __enter__(self) -> _BaseStream:
        stack = _here.__dict__.setdefault("stack", [])
        stack.append(get_current_stream())
        return self.use()

    def __exit__(self, *ignored: object) -> None:
        _here.stack.pop().use()

    def use(self) -> _BaseStream:
        _here.__dict__.setdefault("current", {})[current_device()] = self
        return self

    @property
    def done(self) -> bool:
        refuse_capture(self.ptr, "stream.done")
        return background(self.ptr) is None

    def synchronize(self) -> None:
        synchronized("stream", self.ptr)

    def record(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        fork = event.capture
        if fork is not None and fork in _captures.values():
            capture, stream, version = fork, event.stream, event.version
            if self.ptr not in capture.versions:
                if self.ptr == 0:
                    raise CUDARuntimeError(
                        "cudaErrorStreamCaptureImplicit", "the null stream cannot capture", 906
                    )
                _captures[self.ptr] = capture
                capture.versions[self.ptr] = 0
            capture.joined[stream] = max(capture.joined.get(stream, 0), version)
            capture.versions[self.ptr] += 1
            capture.operations.append((("wait", event, self.ptr), lambda: None, []))
            return
        refuse_capture(self.ptr, "waiting for an event from outside of the capture")
        ordering.wait_for(self.ptr, event.clock)
        if not event.done:
            in_background(self.ptr, event.finish)
        record.operations.append(("wait", event, self.ptr))

    def add_callback(self, callback: Callable[..., None], arg: Any) -> None:
        refuse_capture(self.ptr, "add_callback")
        callback(self, 0, arg)

    def launch_host_func(self, callback: Callable[[Any], None], arg: Any) -> None:
        submit(("host function", callback, self.ptr), lambda: callback(arg), self.ptr)

    def begin_capture(self, mode: int | None = None) -> None:
        if self.ptr in (0, 1, 2):
            raise RuntimeError("cannot capture on the default (legacy) stream")
        refuse_capture(self.ptr, "begin_capture")
        _captures[self.ptr] = Capture(self.ptr)

    def end_capture(self) -> Graph:
        capture = _captures.get(self.ptr)
        if capture is None or capture.origin != self.ptr:
            raise CUDARuntimeError(
                "cudaErrorIllegalState", "this stream has not begun a capture", 401
            )
        for stream in capture.versions:
            del _captures[stream]
        for stream, version in capture.versions.items():
            if stream != self.ptr and capture.joined.get(stream, 0) < version:
                raise CUDARuntimeError(
                    "cudaErrorStreamCaptureUnjoined",
                    f"stream {stream:#x} has work that the capturing stream did not wait for",
                    904,
                )
        return Graph(capture)

    def is_capturing(self) -> bool:
        return self.ptr in _captures


class Stream(_BaseStream):
    null: Stream
    ptds: Stream

    def __init__(
        self,
        null: bool = False,
        non_blocking: bool = False,
        ptds: bool = False,
        priority: int | None = None,
    ) -> None:
        if null or ptds:
            super().__init__(0 if null else 2, -1)
        else:
            super().__init__(next(_addresses), current_device(), non_blocking)
        self.priority = priority or 0


Stream.null = Stream(null=True)
Stream.ptds = Stream(ptds=True)


class ExternalStream(_BaseStream):
    def __init__(self, ptr: int, device_id: int = -1) -> None:
        super().__init__(int(ptr), device_id, ptr not in ordering.blocking_streams)


def get_current_stream(device_id: int = -1) -> _BaseStream:
    device = current_device() if device_id < 0 else device_id
    return _here.__dict__.setdefault("current", {}).get(device, Stream.null)


def stream_address(stream: Any) -> int:
    """Of a stream, or of the current one for None."""
    if stream is None:
        return get_current_stream().ptr
    if isinstance(stream, int):
        return stream
    return int(stream.ptr)


class Event:
    def __init__(
        self, block: bool = False, disable_timing: bool = False, interprocess: bool = False
    ) -> None:
        if interprocess and not disable_timing:
            raise ValueError("Timing must be disabled for interprocess events")
        self.ptr = next(_addresses)
        self.timing = not disable_timing
        self.time: float | None = None
        self.capture: Capture | None = None
        self.stream = self.version = 0
        self.clock: ordering.Clock = {}
        self.background: threading.Event | None = None

    def record(self, stream: Any = None) -> None:
        address = stream_address(stream)
        self.capture = capturing(address)
        if self.capture is not None:
            self.stream, self.version = address, self.capture.versions[address]
            return
        self.time = time.perf_counter()
        self.clock = dict(ordering.clock_of(address))
        self.background = background(address)
        record.operations.append(("event", self, address))

    @property
    def done(self) -> bool:
        return self.background is None or self.background.is_set()

    def finish(self) -> None:
        if self.background is not None:
            self.background.wait()

    def synchronize(self) -> None:
        if self.capture is not None:
            raise CUDARuntimeError("cudaErrorCapturedEvent", "the event was captured", 907)
        ordering.host_waits_for(self.clock)
        self.finish()
        record.synchronizations += 1
        record.operations.append(("synchronize", "event", self.ptr))


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Milliseconds between two recorded events."""
    for event in (start_event, end_event):
        if not event.timing or event.time is None:
            raise CUDARuntimeError(
                "cudaErrorInvalidResourceHandle", "the event has no time or was not recorded", 400
            )
    assert start_event.time is not None
    assert end_event.time is not None
    return 1000 * (end_event.time - start_event.time)


# By address: those that live, of CuPy, and those that the driver has made, which stay (driver.py).
graphs: weakref.WeakValueDictionary[int, Graph] = weakref.WeakValueDictionary()


class Graph:
    """Captured work. Launching it after its memory was freed raises; a device reads garbage."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self.graph = self.graphExec = next(_addresses)
        graphs[self.graph] = self

    def launch(self, stream: Any = None) -> None:
        address = stream_address(stream)
        refuse_capture(address, "launching a graph")
        accesses = [self._alive(entry, touched) for entry, _, touched in self._capture.operations]
        record.operations.append(("graph", self, address))
        for (entry, action, _), access in zip(self._capture.operations, accesses, strict=True):
            ordering.begin(f"{entry[0]} {entry[1]}", address, access)
            action()
            record.operations.append(entry)

    def _alive(self, entry: tuple[Any, ...], touched: list[_Touch]) -> list[Access]:
        accesses = []
        for reference, start, end, writes in touched:
            memory = reference()
            if memory is None:
                raise CUDARuntimeError(
                    "cudaErrorIllegalAddress",
                    f"the graph uses memory that was freed after its capture (in {entry[1]})",
                    700,
                )
            accesses.append(Access(memory, start, end, writes))
        return accesses

    def upload(self, stream: Any = None) -> None:
        refuse_capture(stream_address(stream), "uploading a graph")

    def debug_dot_str(self, flags: int = 0) -> str:
        lines = [f"  n{i} [label={e[1]!r}]" for i, (e, *_) in enumerate(self._capture.operations)]
        return "\n".join(["digraph {", *lines, "}"])
