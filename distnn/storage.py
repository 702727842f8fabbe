"""Storage: the memory that arrays and views of it share, and its state.

It is the one truth about an array: its memory, whether values are still pending (`zero()` and
`fill()` write nothing until somebody reads), whether it was cleared and why, and how often it was
modified.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from . import transfer
from .context import current_backend
from .errors import ClearedError

if TYPE_CHECKING:
    from .backend import Backend
    from .parameter_slab import Slot

NEVER_COMPUTED = "no function has computed it yet; call forward() on a result of the graph first"


# References to a storage's copy on the host where only the storage has it: its own, and the
# argument of sys.getrefcount. A view outside holds another.
_UNSHARED = 2
# And to its array: its own, a local name, and the argument.
_OF_STORAGE = 3


class Storage:
    """Memory of one array and the state that all its views share."""

    __slots__ = (
        "__weakref__",
        "_converted",
        "array",
        "cleared",
        "dtype",
        "effects",
        "exported",
        "home",
        "host",
        "pending",
        "record",
        "shape",
        "size",
        "version",
        "volatile",
        "zeroing",
    )

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, pending: float | None) -> None:
        self.shape = shape
        self.size = math.prod(shape)
        self.dtype = dtype
        self.array: Any = None  # C-contiguous, of `shape`; NumPy's or a device's
        # A copy on the host of a device's array, to which somebody outside may have written.
        self.host: np.ndarray | None = None
        self.pending = pending  # a value that fills the array once somebody looks
        self.zeroing = False  # zero() was called and nothing written since
        self.cleared: str | None = None  # why there is nothing to read
        self.exported = False  # somebody outside holds a writable array over the memory
        self.version = 0
        self.volatile = False  # a function may change it as an effect (running statistics, assign)
        self.effects = 0  # how often one did
        self.home: Slot | None = None  # a parameter's place in its slab
        self._converted: tuple[int, Any] | None = None
        self.record: Any = None  # record.Record of calls that wait and read or compute this

    def settle(self) -> None:
        """Let calls run that wait and read or compute this."""
        if self.record is not None:
            self.record.flush()

    def is_written_outside(self) -> bool:
        """Whether somebody outside may write to the memory: whether an array is still held."""
        if self.exported:
            array = self.array
            own = _OF_STORAGE + (self.home is not None and array is self.home.array)
            self.exported = array is not None and sys.getrefcount(array) > own
        if self.host is not None:
            self._take_from_host()
        return self.exported or self.host is not None

    def materialize(self) -> Any:
        """The array, with pending values written; raises ClearedError if there is none."""
        if self.record is not None:
            self.record.flush()
        array = self.array
        if array is None:
            if self.pending is None:
                raise ClearedError(
                    f"[data] there are no data to read: {self.cleared or NEVER_COMPUTED}"
                )
            array = self.allocate(self.dtype)
        if self.pending is not None:
            array.fill(self.pending)
            self.pending = None
        if self.host is not None:
            self._take_from_host()
        return array

    def _take_from_host(self) -> None:
        """Bring what was written to the copy on the host to the device."""
        assert self.host is not None
        transfer.copy(self.array, self.host)
        self.version += 1
        if sys.getrefcount(self.host) <= _UNSHARED:
            self.host = None  # nobody outside can write to it any more

    def writable(self) -> Any:
        """The array to be overwritten as a whole: old and pending values are gone."""
        self.settle()
        array = self.array if self.array is not None else self.allocate(self.dtype)
        self.written()
        return array

    def allocate(self, dtype: np.dtype, backend: Backend | None = None) -> Any:
        """Memory for `dtype`: a parameter's own place if it has that dtype, else new memory."""
        if self.home is not None and self.home.array.dtype == dtype:
            array = self.home.array
        else:
            array = (backend or current_backend()).empty(self.shape, dtype)
        self.array = array
        self.dtype = dtype
        return array

    def written(self) -> None:
        """Note that all of the array has new values."""
        self.pending = None
        self.zeroing = False
        self.cleared = None
        self.host = None
        self.version += 1

    def zero(self) -> None:
        """Zeros, once somebody looks: the next gradient overwrites them."""
        if self.record is not None:
            self.record.flush()
        self.written()
        self.pending = 0
        self.zeroing = True

    def place(self, array: Any) -> None:
        """Make `array` (C-contiguous) the memory of this storage."""
        self.array = array
        self.dtype = array.dtype
        self.written()

    def clear(self, reason: str) -> None:
        """Let go of the memory; reading before the next write raises with `reason`."""
        self.settle()
        self.array = None
        self.pending = None
        self.cleared = reason
        self.exported = False
        self.host = None
        self._converted = None

    def converted(self, dtype: np.dtype, backend: Backend | None) -> Any:
        """The values as `dtype` in the backend's memory, converted once per modification."""
        array = self.materialize()
        if backend is None:
            backend = transfer.backend_of(array)
        if array.dtype == dtype and backend.holds(array):
            return array
        cached = self._converted
        # A writable array outside may have been written to without our knowing.
        if (
            cached is None
            or cached[0] != self.version
            or cached[1].dtype != dtype
            or not backend.holds(cached[1])
            or self.exported
        ):
            cached = self._converted = (self.version, backend.convert(array, dtype))
        return cached[1]
