"""Segments: a program of a forward or a backward, recorded as CUDA graphs.

While it is recorded a program works on stand-ins for nodes, arrays and storages: what it does to
them is noted, not done. So a capture that fails leaves nothing behind. At each launch, the first
included, the host then does for the live graph what was noted: results get their memory, nodes keep
what gradients will read, random functions draw, callbacks learn of complete gradients.

What a graph reads lies at its own place, if that stays (parameters, results of another graph), or
is copied to a place of the segment's before the launch (batches).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from . import launching, transfer
from .backend import Backend
from .capture import Refused, Site
from .evaluation import read_indices
from .ndarray import NdArray
from .plan import Plan
from .storage import Storage


class Input:
    """An array that a graph reads; stands for it while the graph is recorded.

    Args:
        words: of a function and of its labels or indices, which are read as int64; else none.
        stays: the graph reads it where it lies. It is held weakly: who is asked whether results of
            a graph are still held is that graph. Else it is copied to `place`.
    """

    __slots__ = (
        "_arrays",
        "_backend",
        "_copied",
        "_lies",
        "_offset",
        "_words",
        "dtype",
        "place",
        "stays",
    )

    def __init__(
        self, data: NdArray, dtype: np.dtype, words: tuple[str, ...], backend: Backend, stays: bool
    ) -> None:
        self._backend = backend
        self._words = words
        self.stays = stays
        self._offset = data._offset
        self._copied: tuple[Any, int] | None = None  # a storage, weakly, and its version
        self.place: Any = None
        if stays:
            self._lies = weakref.ref(data._storage.array)
            values = data._view(data._storage.array)
        else:
            values = self.place = backend.empty(data.shape, dtype)
        self.dtype = values.dtype
        self._arrays = {values.dtype: values}

    def read(self, dtype: np.dtype, backend: Backend | None = None) -> Any:
        """As NdArray.read, while the graph is recorded: a conversion is part of the graph."""
        array = self._arrays.get(dtype)
        if array is None:
            array = self._arrays[dtype] = self._backend.convert(self._arrays[self.dtype], dtype)
        return array

    def is_recorded(self) -> None:
        """Let go of what only the recording needed."""
        self._arrays = {}

    def fits(self, data: NdArray) -> bool:
        """Whether these values can be read, or copied, where the graph expects them."""
        if not self.stays:
            return True
        storage = data._storage
        lies = self._lies()
        if lies is None or storage.array is not lies or data._offset != self._offset:
            return False
        if storage.pending is not None or storage.host is not None or storage.record is not None:
            storage.materialize()
        return storage.array is lies

    def bring(self, data: NdArray) -> None:
        """Copy the values to where the graph reads them, unless they are there."""
        if self.stays:
            return
        launching.launch_if_written(data._storage)
        if self._words:
            values = read_indices(data, self._backend, *self._words)
        else:
            values = data.read(self.dtype, self._backend)
        storage, copied = data._storage, self._copied
        if copied is None or copied[0]() is not storage or copied[1] != storage.version:
            self._copied = None if storage.exported else (weakref.ref(storage), storage.version)
            transfer.copy(self.place, values)


class Made:
    """Stands for an array that the recorded program has made."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def read(self, dtype: np.dtype, backend: Backend | None = None) -> Any:
        return self._array


def _at_home(storage: Storage) -> bool:
    """Whether it is a parameter (or its gradient) in its place, which stays while it lives."""
    return storage.home is not None and storage.array is storage.home.array


def stays_in_place(site: Site, key: Any, storage: Storage) -> bool:
    """Whether a graph may count on a storage's memory."""
    array = storage.array
    if array is None or not site.backend.holds(array):
        return False
    if storage.pending is not None or storage.host is not None:
        storage.materialize()
    if _at_home(storage) or site.backend.is_captured(array):
        return True
    seen = site.notes.get(key)
    return seen is not None and seen() is array


def observe(site: Site, inputs: Iterable[tuple[Any, NdArray]]) -> None:
    """Note where arrays lie in a run of the program itself."""
    for key, data in inputs:
        array = data._storage.array
        if array is not None and site.backend.holds(array):
            site.notes[key] = weakref.ref(array)


def record(recording: Any, work: Callable[[], None]) -> None:
    """Record work; raises Refused where it does what a CUDA graph cannot hold."""
    try:
        recording.record(work)
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"{type(error).__name__}: {error}") from error


def refuse_what_cannot(plan: Plan) -> None:
    for call in plan.calls:
        if not call.setup.function.waits:
            raise Refused(f"{call.setup.function.name} does more than to queue work of its own")


def words_of(draws: Iterable[Any]) -> list[int]:
    """What a graph reads of draws."""
    return [word for draw in draws for word in (draw.seed, draw.worker, draw.draw)]
