"""Evaluation: one function's forward on arrays, its results put where they belong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .errors import LabelError, ShapeError
from .function import Setup
from .memory import owns_memory
from .ndarray import NdArray, Storage


def run_forward(
    setup: Setup,
    values: Sequence[np.ndarray | None],
    results: Sequence[NdArray],
    options: dict[str, Any],
) -> tuple[np.ndarray, ...]:
    """Run a function's forward into `results`; returns new values for its `updates`."""
    declaration = setup.declaration
    backend = setup.backend
    outs: list[np.ndarray] = []
    if declaration.takes_out:
        outs = [
            data._storage.array
            if data._storage.array is not None
            else data._storage.allocate(data._storage.dtype)
            for data in results
        ]
        options = {**options, "out": outs[0] if len(outs) == 1 else tuple(outs)}
    if setup.scratch:
        options = {**options, "scratch": backend.empty((setup.scratch,), np.dtype(np.uint8))}
    returned = setup.function.forward(backend.xp, *values, **options)
    if not isinstance(returned, tuple):
        returned = (returned,)
    for i, data in enumerate(results):
        if outs and returned[i] is outs[i]:
            data._storage.written()
        else:
            _store(data._storage, returned[i], values)
    return returned[len(results) :]


def _store(storage: Storage, result: Any, inputs: Iterable[Any]) -> None:
    """Make `result`, which a function allocated itself, the content of `storage`."""
    array = storage.array
    if array is not None and storage.exported and array.dtype == storage.dtype:
        np.copyto(array, result, "same_kind")  # somebody's `.d` of a static graph stays live
        storage.written()
        return
    values = np.asarray(result, storage.dtype, order="C")
    if values.shape != storage.shape:
        raise ShapeError(
            f"a function returned shape {values.shape} but its setup promised {storage.shape}"
        )
    # A view, or an input itself, is other people's memory.
    if owns_memory(values) and not any(values is x for x in inputs):
        storage.place(values)
    else:
        np.copyto(storage.allocate(storage.dtype), values)
        storage.written()


def read_indices(data: NdArray, function: str, name: str) -> np.ndarray:
    """Labels or indices as int64; floats must be whole numbers."""
    array = data.read(data.dtype)
    if array.dtype.kind in "iub":
        return array.astype(np.int64) if array.dtype != np.int64 else array
    indices = array.astype(np.int64)
    if not np.array_equal(indices, array):
        raise LabelError(
            f"[{function}] {name} holds {float(array[indices != array].flat[0])!r}; labels and "
            "indices are whole numbers"
        )
    return indices
