"""Evaluation: one function's forward on arrays, its results put where they belong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from . import transfer
from .backend import Backend
from .errors import ShapeError
from .function import Setup
from .memory import owns_memory
from .ndarray import NdArray, Storage

_INDEX = np.dtype(np.int64)


def run_forward(
    setup: Setup,
    values: Sequence[np.ndarray | None],
    results: Sequence[NdArray],
    options: dict[str, Any],
) -> tuple[np.ndarray, ...]:
    """Run a function's forward into `results`; returns new values for its `updates`."""
    backend = setup.backend
    outs: list[np.ndarray] = []
    if setup.declaration.takes_out:
        for data in results:
            storage = data._storage
            array = storage.array
            if array is None or not backend.holds(array):
                array = storage.allocate(storage.dtype, backend)
            outs.append(array)
        options = {**options, "out": outs[0] if len(outs) == 1 else tuple(outs)}
    if setup.scratch:
        options = {**options, "scratch": backend.empty((setup.scratch,), np.dtype(np.uint8))}
    returned = setup.implementation.forward(backend.xp, *values, **options)
    if not isinstance(returned, tuple):
        returned = (returned,)
    for i, data in enumerate(results):
        if outs and returned[i] is outs[i]:
            data._storage.written()
        else:
            store(data._storage, returned[i], values, backend)
    return returned[len(results) :]


def store(storage: Storage, result: Any, inputs: Iterable[Any], backend: Backend) -> None:
    """Make `result`, which a function allocated itself, the content of `storage`."""
    array = storage.array
    values = backend.xp.asarray(result, storage.dtype)
    if array is not None and storage.exported and array.dtype == storage.dtype:
        transfer.copy(array, values)  # somebody's `.d` of a static graph stays live
        storage.written()
        return
    if not values.flags.c_contiguous:
        values = values.copy(order="C")
    if values.shape != storage.shape:
        raise ShapeError(
            f"a function returned shape {values.shape} but its setup promised {storage.shape}"
        )
    # A view, or an input itself, is other people's memory.
    if owns_memory(values) and not any(values is x for x in inputs):
        storage.place(values)
    else:
        transfer.copy(storage.allocate(storage.dtype, backend), values)
        storage.written()


def read_indices(data: NdArray, backend: Backend, function: str, name: str) -> Any:
    """Labels or indices as int64; floats must be whole numbers."""
    if data.dtype.kind in "iub":
        return data.read(_INDEX, backend)
    array = data.read(data.dtype)
    holder = backend if backend.holds(array) else transfer.backend_of(array)
    message = f"[{function}] {name} holds {{value}}; labels and indices are whole numbers"
    return backend.owned(holder.whole_numbers(array, message), _INDEX)
