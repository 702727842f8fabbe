"""Launching: CUDA graphs that wait for the next ones, to be launched together as one.

Inside of `together()` a graph is not launched at once, and what the host does for it besides goes
on: results get their memory, gradients their places. All other work for the device has to come
after `launch_waiting()`. Graphs that were launched together twice become one graph.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from . import transfer
from .errors import calling_line

if TYPE_CHECKING:
    from .backend import Backend
    from .storage import Storage

logger = logging.getLogger("distnn")

_MOST_SEQUENCES = 16  # of graphs that are launched together


class _Waiting:
    """Graphs that wait, and what is to be done once they are launched."""

    def __init__(self) -> None:
        self.graphs: list[tuple[Any, int]] = []  # recordings, and which of their graphs
        self.afterwards: list[Callable[[], None]] = []
        self.written: list[Sequence[Storage | None]] = []

    def launch(self) -> None:
        graphs, afterwards = self.graphs, self.afterwards
        self.graphs, self.afterwards, self.written = [], [], []
        merged = _merged(graphs) if len(graphs) > 1 else None
        if merged is not None:
            merged.launch()
        else:
            for recording, number in graphs:
                recording.launch(number)
        for action in afterwards:
            action()


class _Here(threading.local):
    waiting: _Waiting | None = None


_here = _Here()


@contextmanager
def together() -> Iterator[None]:
    """Launch the graphs inside of the block as one, as far as nothing comes between them."""
    outer = _here.waiting
    waiting = _here.waiting = _Waiting()
    try:
        yield
    finally:
        _here.waiting = outer
        waiting.launch()


def launch(recording: Any, number: int = 0, written: Sequence[Storage | None] = ()) -> None:
    """Launch a graph, or let it wait.

    Args:
        written: what it may write to.
    """
    waiting = _here.waiting
    if waiting is None:
        recording.launch(number)
    else:
        waiting.graphs.append((recording, number))
        waiting.written.append(written)


def launch_waiting() -> None:
    """Launch what waits: other work for the device comes now."""
    waiting = _here.waiting
    if waiting is not None and waiting.graphs:
        waiting.launch()


def launch_if_waiting(recordings: Sequence[Any]) -> None:
    """Launch what waits if one of these is among it: the host is going to prepare its next run."""
    waiting = _here.waiting
    if waiting is not None and any(each in recordings for each, _ in waiting.graphs):
        waiting.launch()


def launch_if_written(storage: Storage) -> None:
    """Launch what waits if it may write to `storage`, which is going to be read."""
    waiting = _here.waiting
    if waiting is not None and any(
        storage is each for written in waiting.written for each in written
    ):
        waiting.launch()


def afterwards(action: Callable[[], None]) -> None:
    """Do something that comes after all graphs until now: at once, if none waits."""
    waiting = _here.waiting
    if waiting is None or not waiting.graphs:
        action()
    else:
        waiting.afterwards.append(action)


def launch_if_due(action: Callable[[], None]) -> None:
    """Launch what waits if `action` comes after it, and has to be done now."""
    waiting = _here.waiting
    if waiting is not None and action in waiting.afterwards:
        waiting.launch()


def copy_afterwards(array: Any, backend: Backend) -> Any:
    """A copy of an array, with the values that graphs until now give it."""
    copy = backend.empty(array.shape, array.dtype)
    afterwards(lambda: transfer.copy(copy, array))
    return copy


# -- graphs as one ---------------------------------------------------------------------------------


class _Sequence:
    """Graphs that were launched together, and the one that they became."""

    def __init__(self, graphs: Sequence[tuple[Any, int]]) -> None:
        self.recordings = [weakref.ref(recording) for recording, _ in graphs]
        self.merged: Any = None

    def is_over(self) -> bool:
        return any(reference() is None for reference in self.recordings)

    def is_of(self, graphs: Sequence[tuple[Any, int]]) -> bool:
        return all(
            reference() is recording
            for reference, (recording, _) in zip(self.recordings, graphs, strict=True)
        )


_sequences: OrderedDict[tuple[tuple[int, int], ...], _Sequence] = OrderedDict()
_refused = ""  # why graphs cannot become one here
_lock = threading.Lock()


def _merged(graphs: Sequence[tuple[Any, int]]) -> Any:
    """What these graphs became; None the first time, and where that cannot be."""
    global _refused
    if _refused:
        return None
    key = tuple([(id(recording), number) for recording, number in graphs])
    with _lock:
        found = _sequences.get(key)
        if found is None or not found.is_of(graphs):
            for old in [k for k, each in _sequences.items() if each.is_over()]:
                del _sequences[old]
            _sequences[key] = _Sequence(graphs)
            if len(_sequences) > _MOST_SEQUENCES:
                _sequences.popitem(last=False)
            return None
        _sequences.move_to_end(key)
        if found.merged is None:
            try:
                found.merged = graphs[0][0].merged(graphs)
            except (OSError, RuntimeError, AttributeError) as error:
                _refused = f"{type(error).__name__}: {error}"
                logger.info("graphs of a step are launched one after the other: %s", _refused)
        return found.merged


def forget() -> None:
    """Let go of the graphs that others became."""
    global _refused
    with _lock:
        _sequences.clear()
        _splits.clear()
        _refused = ""


_splits: dict[tuple[str, int], int] = {}  # where a step was split, and how often


def split() -> None:
    """Note that what waits in a step is launched before its end, since somebody looks."""
    line = calling_line() or ("", 0)
    if line not in _splits:
        logger.info("a step is launched in parts, since something looks at it in %s:%d", *line)
    _splits[line] = _splits.get(line, 0) + 1


def describe() -> list[str]:
    """Lines for people."""
    if _refused:
        return [f"steps: their graphs are launched one after the other: {_refused}"]
    merged = [len(each.recordings) for each in _sequences.values() if each.merged is not None]
    lines = [f"step: {count} graphs are 1 launch" for count in merged]
    return lines + [
        f"step: split {count} times in {file}:{line}" for (file, line), count in _splits.items()
    ]
