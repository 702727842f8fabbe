"""Gradients while a backward runs: their memory, and how they reach leaves and users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from . import transfer
from .backend import Backend
from .ndarray import NdArray
from .storage import Storage
from .value import Value

if TYPE_CHECKING:
    from .plan import Plan


class ReadyCallback(Protocol):
    """What backward tells of gradients that are complete (a communicator's callback)."""

    def begin(self, coming: Sequence[Storage], plan: Plan) -> None:
        """A backward of this structure begins that will complete these storages."""

    def ready(self, storage: Storage) -> None:
        """This storage has got its last gradient of the running backward."""

    def finish(self) -> None:
        """The backward is over."""


class Gradient:
    """The gradient of an intermediate value while backward runs."""

    __slots__ = ("array", "own")

    def __init__(self, array: Any, own: bool) -> None:
        self.array = array
        self.own = own  # we may write to it


def seed_gradient(root: Value, seed: Any) -> Gradient:
    """What backward begins with: `seed`, a number or an array, as the gradient of its root."""
    assert root.parent is not None
    setup = root.parent.setup
    dtype = setup.results[root.index].dtype
    if isinstance(seed, int | float) or np.isscalar(seed):
        return Gradient(setup.backend.full(root.shape, float(seed), dtype), True)  # type: ignore[arg-type]
    array = seed if hasattr(seed, "dtype") else np.asarray(seed)
    return Gradient(setup.backend.owned(array, dtype), False)


def gradient_memory(grad: NdArray, shape: Any, backend: Backend) -> Any:
    """Where a leaf's first gradient is written: straight into place, if that is overwritten."""
    storage = grad._storage
    if storage.zeroing and grad._whole() and backend.takes_gradient(storage.dtype):
        array = storage.array
        if array is None:
            array = storage.allocate(storage.dtype, backend)
        if backend.holds(array):
            return grad._view(array)
    return backend.empty(shape, backend.dtype)


def add_to_leaf(grad: NdArray, array: Any, first: bool, backend: Backend) -> None:
    """Add `array` to a leaf's gradient; the first of a backward overwrites what is zero."""
    storage = grad._storage
    if first and storage.zeroing and grad._whole():
        target = storage.array
        if target is None:
            target = storage.allocate(storage.dtype, backend)
        target = grad._view(target)
        if array is not target and transfer.address(array) != transfer.address(target):
            transfer.copy(target, array)
    else:
        target = storage.materialize()
        if not backend.holds(target) and storage.home is None and not storage.exported:
            storage.place(backend.convert(target, storage.dtype))
            target = storage.array
        target = grad._view(target)
        holder = backend if backend.holds(target) else transfer.backend_of(target)
        holder.add(target, array, target)
    storage.written()


def give(value: Value, gradient: Gradient) -> None:
    """Make a gradient visible as `g`; the memory is shared while backward still reads it."""
    grad = value.grad
    if gradient.own and not grad._storage.exported:
        grad._storage.place(gradient.array)
        gradient.own = False
    else:
        transfer.copy(grad._storage.writable(), gradient.array)
