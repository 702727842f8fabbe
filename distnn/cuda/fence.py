"""Fences: order between the stream that computes and the one that communicates.

A collective is queued by the thread that computes and carried out by another one, on a stream of
its own: gradients travel while others are computed. CUDA events keep the two in order, and no
thread waits for the device. CuPy's pool knows nothing of this: memory goes back to the stream on
which it was taken. So arrays that are exchanged belong to the stream that computes, which waits
for the exchange before it can free them; scratch memory of the exchange is taken and freed inside
`work`, on the stream that communicates.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cupy


class Fence:
    """One collective between the two streams of a device; made by the thread that computes.

    Args:
        streams: of the communicator, by device; the first fence of a device makes its stream.
    """

    def __init__(self, streams: dict[int, Any]) -> None:
        self._device = cupy.cuda.runtime.getDevice()
        if self._device not in streams:
            streams[self._device] = cupy.cuda.Stream(non_blocking=True)
        self._stream = streams[self._device]
        self._ready = mark()
        self._begun: Any = None
        self._done: Any = None

    @contextmanager
    def work(self) -> Iterator[None]:
        """Around the collective: what is queued inside comes after all that was computed before."""
        # For good: to go back to device 0 would open a context, with its memory, on that one.
        cupy.cuda.Device(self._device).use()
        with self._stream:
            self._stream.wait_event(self._ready)
            self._begun = mark()
            try:
                yield
            finally:
                self._done = mark()

    def join(self) -> None:
        """Let all that is computed from now on come after the collective."""
        if self._done is not None:
            cupy.cuda.get_current_stream().wait_event(self._done)

    @property
    def reached(self) -> bool:
        """Whether the device has computed all that the collective needs."""
        return self._ready.done

    @property
    def done(self) -> bool:
        """Whether the device has carried it out."""
        return self._done is not None and self._done.done

    def times(self, start: Any) -> tuple[float, float, float]:
        """When the device was ready for it, began it and ended it: seconds after a mark."""
        return (
            seconds(start, self._ready),
            seconds(start, self._begun),
            seconds(start, self._done),
        )


def mark() -> Any:
    """A point in the work of the current stream."""
    return cupy.cuda.get_current_stream().record()


def seconds(start: Any, end: Any) -> float:
    """Between two marks; waits for the device to come to the second."""
    end.synchronize()
    return cupy.cuda.get_elapsed_time(start, end) * 1e-3
