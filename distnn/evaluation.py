"""Evaluation: one function's forward on arrays, its results put where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import transfer
from .backend import Backend
from .errors import ShapeError
from .function import Setup, Spec
from .memory import owns_memory
from .ndarray import NdArray
from .storage import Storage

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


def store(storage: Storage, result: Any, inputs: Sequence[Any], backend: Backend) -> None:
    """Make `result`, which a function allocated itself, the content of `storage`."""
    values = _values(result, storage.shape, storage.dtype, backend)
    array = storage.array
    if array is not None and storage.exported and array.dtype == storage.dtype:
        transfer.copy(array, values)  # somebody's `.d` of a static graph stays live
        storage.written()
    elif _is_new(values, inputs):
        storage.place(values)
    else:
        transfer.copy(storage.allocate(storage.dtype, backend), values)
        storage.written()


def taken(result: Any, spec: Spec, inputs: Sequence[Any], backend: Backend) -> Any:
    """`result`, which a function allocated itself, as an array that nobody else has."""
    values = _values(result, spec.shape, spec.dtype, backend)
    if not _is_new(values, inputs):
        array = backend.empty(spec.shape, spec.dtype)
        transfer.copy(array, values)
        return array
    return values


def _values(result: Any, shape: tuple[int, ...], dtype: np.dtype, backend: Backend) -> Any:
    values = backend.xp.asarray(result, dtype)
    if not values.flags.c_contiguous:
        values = values.copy(order="C")
    if values.shape != shape:
        raise ShapeError(f"a function returned shape {values.shape} but its setup promised {shape}")
    return values


def _is_new(values: Any, inputs: Sequence[Any]) -> bool:
    """False for a view, or an input itself: they are other people's memory."""
    return owns_memory(values) and id(values) not in map(id, inputs)


def read_indices(data: NdArray, backend: Backend, function: str, name: str) -> Any:
    """Labels or indices as int64; floats must be whole numbers."""
    if data.dtype.kind in "iub":
        return data.read(_INDEX, backend)
    array = data.read(data.dtype)
    holder = backend if backend.holds(array) else transfer.backend_of(array)
    message = f"[{function}] {name} holds {{value}}; labels and indices are whole numbers"
    return backend.owned(holder.whole_numbers(array, message), _INDEX)
