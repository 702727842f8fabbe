"""Value: a vertex of the graph, what all Variables that stand for it share.

In a dynamic graph a Value does not hold its data. The user's Variables do, and the Nodes whose
gradients will read them: what nobody wants any more is freed while the graph still lives.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from .context import current_backend
from .errors import ClearedError
from .ndarray import NdArray
from .storage import Storage

if TYPE_CHECKING:
    from .execution import Execution, Known
    from .graph import Node

_FREED = (
    "nobody held it and no gradient reads it, so a dynamic graph let it go; keep the Variable that "
    "the function returned"
)


class _Version:
    """Counts changes to existing graphs: a static graph sees by it that it is unchanged."""

    def __init__(self) -> None:
        self.number = 0

    def changed(self) -> None:
        self.number += 1


version = _Version()


class Value:
    """One value of a graph: its data, its gradient, its flags and the Node that computes it."""

    __slots__ = (
        "__weakref__",
        "_data",
        "_grad",
        "_weak_data",
        "execution",
        "index",
        "name",
        "need",
        "parent",
        "persistent",
        "recompute",
        "shape",
    )

    def __init__(
        self,
        shape: tuple[int, ...],
        need: bool | None = None,
        parent: Node | None = None,
        index: int = 0,
    ) -> None:
        self.shape = shape
        self.need = need  # as the user set it; None: inherited from the inputs
        self.parent = parent
        self.index = index  # which of the parent's outputs
        self.persistent = False
        self.recompute = False
        self.name = ""
        self.execution: Execution | Known | None = None  # of the graph that ends here
        self._data: NdArray | None = None
        self._weak_data: Callable[[], NdArray | None] | None = None
        self._grad: NdArray | None = None

    @property
    def data(self) -> NdArray:
        data = self._data
        if data is not None:
            return data
        if self._weak_data is not None:
            data = self._weak_data()
            if data is None:
                data = self._recovered()
            if data is None:
                raise ClearedError(f"[data] there are no data to read: {_FREED}")
            return data
        if self.parent is None:
            self._data = NdArray._of(
                Storage(self.shape, current_backend().parameter_dtype, 0.0), self.shape
            )
        else:
            dtype = self.parent.setup.results[self.index].dtype
            self._data = NdArray._of(Storage(self.shape, dtype, None), self.shape)
        return self._data

    @data.setter
    def data(self, data: NdArray) -> None:
        present = self.present_data()
        if present is not None and present._storage.record is not None:
            present._storage.record.flush()
        self._data = data
        self._weak_data = None
        version.changed()

    def present_data(self) -> NdArray | None:
        """The data if there are any; unlike `data` it makes none."""
        if self._data is None and self._weak_data is not None:
            return self._weak_data()
        return self._data

    def clear(self, reason: str) -> None:
        """Let go of the memory of the data, if there are some; see Storage.clear."""
        data = self.present_data()
        if data is not None:
            data._storage.clear(reason)

    def hold_weakly(self, data: NdArray) -> None:
        """Let others decide how long the data live."""
        self._data = None
        self._weak_data = weakref.ref(data)

    def _recovered(self) -> NdArray | None:
        """The data, if the parent kept them for its gradient."""
        data = None if self.parent is None else self.parent.kept_output(self.index)
        if data is not None:
            self._weak_data = weakref.ref(data)
        return data

    @property
    def grad(self) -> NdArray:
        if self._grad is None:
            backend = current_backend()
            dtype = backend.parameter_dtype if self.parent is None else backend.dtype
            storage = Storage(self.shape, dtype, 0.0)
            storage.zeroing = True  # nothing was written: the first gradient overwrites
            self._grad = NdArray._of(storage, self.shape)
        return self._grad

    @grad.setter
    def grad(self, grad: NdArray) -> None:
        self._grad = grad
        version.changed()

    @property
    def need_grad(self) -> bool:
        if self.need is not None:
            return self.need
        return self.parent is not None and self.parent.need_grad

    def mark_recompute(self, recompute: bool) -> None:
        """Let backward compute it again, or keep it, from its next computation on."""
        if self.parent is not None and self.parent.eager:
            data = self.present_data()
            record = None if data is None else data._storage.record
            if record is None or not record.mark_recompute(self.parent):
                return  # it is computed, and there is nothing to compute it from
        self.recompute = recompute
        version.changed()

    @property
    def forgotten(self) -> bool:
        """Whether the call that computed it forgot it, to compute it again in backward."""
        return self.parent is not None and self.parent.forgets >> self.index & 1 == 1
