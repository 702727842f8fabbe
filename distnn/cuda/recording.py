"""Recording: work that is recorded as CUDA graphs instead of running, and launched from then on.

The only file that knows how CuPy captures. Recorded are addresses, and numbers as they are then.
What may change from launch to launch has to lie in device memory (words.py).
"""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import cupy

from .arena import Arena
from .merging import Merged

_lock = threading.RLock()  # one capture at a time, whichever thread it is of


class Recording:
    """CUDA graphs, recorded one after the other, and the memory in which they work."""

    def __init__(self) -> None:
        self.arena = Arena()
        self.graphs: list[Any] = []
        self._stream = _stream(cupy.cuda.runtime.getDevice())
        self._launches_on = cupy.cuda.get_current_stream().ptr

    @property
    def nbytes(self) -> int:
        return self.arena.nbytes

    def record(self, work: Callable[[], None]) -> None:
        """Run `work`, whose launches are recorded. Raises what it raises; then nothing is left."""
        allocator = cupy.cuda.using_allocator(self.arena.malloc)
        with _lock, _no_garbage_collection(), self._stream, allocator:
            self._stream.begin_capture()
            try:
                work()
            except BaseException:
                self._abandon()
                raise
            self.graphs.append(self._stream.end_capture())

    def cut(self) -> None:
        """What comes next in `work` is recorded as another graph."""
        self.graphs.append(self._stream.end_capture())
        self._stream.begin_capture()

    def _abandon(self) -> None:
        self.graphs.clear()
        # The work may have made the capture invalid; it is over all the same.
        with suppress(RuntimeError, cupy.cuda.runtime.CUDARuntimeError):
            self._stream.end_capture()

    @property
    def usable(self) -> bool:
        """Whether the current stream is the one in whose order the arrays are used."""
        return cupy.cuda.get_current_stream().ptr == self._launches_on

    def launch(self, number: int = 0) -> None:
        """Queue the work of a graph on the current stream."""
        self.graphs[number].launch()

    @staticmethod
    def merged(graphs: Sequence[tuple[Recording, int]]) -> Merged:
        """Some graphs of recordings as one. Raises what the driver or CuPy refuses."""
        return Merged([recording.graphs[number] for recording, number in graphs])


def in_progress() -> bool:
    """Whether what this thread queues now is recorded."""
    stream = cupy.cuda.get_current_stream()
    return stream.ptr == _stream(cupy.cuda.runtime.getDevice()).ptr


@functools.cache
def _stream(device: int) -> Any:
    """The stream on which work of a device is recorded; nothing ever runs on it."""
    return cupy.cuda.Stream(non_blocking=True)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """What is destroyed during a capture may be a library's or the driver's, and spoils it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
