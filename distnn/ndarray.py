"""NdArray: an array on a device, a window onto a Storage: a shape and an offset."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import transfer
from .context import Context, current_backend
from .dtypes import is_half
from .errors import ArgumentError, DtypeError, ShapeError
from .storage import Storage

if TYPE_CHECKING:
    from .backend import Backend


class NdArray:
    """An n-dimensional array on the device of the current context.

    Functions called on NdArrays compute at once and return NdArrays.

    Args:
        shape: the shape as one sequence or as several ints; none is a scalar.

    >>> import numpy as np, distnn as nn
    >>> a = nn.NdArray.from_numpy_array(np.array([1., 2.], np.float32))
    >>> (a + 1).data
    array([2., 3.], dtype=float32)
    """

    __slots__ = ("__weakref__", "_handed_out", "_offset", "_shape", "_storage")

    _handed_out: tuple[Any, ...]  # memory that others use, of which they hold this array alone

    def __init__(self, *shape: Any) -> None:
        if len(shape) == 1 and not isinstance(shape[0], (int, np.integer)):
            shape = tuple(shape[0])
        dimensions = check_shape("NdArray", shape)
        self._shape = dimensions
        self._offset = 0
        self._storage = Storage(dimensions, current_backend().parameter_dtype, 0.0)

    @classmethod
    def _of(cls, storage: Storage, shape: tuple[int, ...], offset: int = 0) -> NdArray:
        array = cls.__new__(cls)
        array._storage = storage
        array._shape = shape
        array._offset = offset
        return array

    @staticmethod
    def from_numpy_array(nparr: np.ndarray) -> NdArray:
        """A copy of `nparr`, of the same shape and dtype."""
        values = np.array(nparr, order="C", copy=True)
        _check_dtype("NdArray.from_numpy_array", values)
        storage = Storage(values.shape, values.dtype, None)
        storage.place(values)
        return NdArray._of(storage, values.shape)

    # -- what it is -----------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def size(self) -> int:
        return math.prod(self._shape)

    @property
    def ndim(self) -> int:
        return len(self._shape)

    @property
    def strides(self) -> tuple[int, ...]:
        """Steps between neighbours along each axis, in elements."""
        steps = [1]
        for length in reversed(self._shape[1:]):
            steps.append(steps[-1] * length)
        return tuple(reversed(steps)) if self._shape else ()

    @property
    def dtype(self) -> np.dtype:
        return self._storage.dtype

    @property
    def zeroing(self) -> bool:
        """True after `zero()` until somebody writes or asks for a writable array."""
        self._storage.settle()
        return self._storage.zeroing

    @property
    def clear_called(self) -> bool:
        """True if the memory was freed, so that there is nothing to read."""
        self._storage.settle()
        return self._storage.cleared is not None

    @property
    def modification_count(self) -> int:
        self._storage.settle()
        return self._storage.version

    def size_from_axis(self, axis: int = -1) -> int:
        """Number of elements from `axis` on; the whole size for a negative axis."""
        return math.prod(self._shape[max(axis, 0) :])

    def __repr__(self) -> str:
        return f"<NdArray{self._shape} {self.dtype} at {id(self):#x}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NdArray) and self._storage is other._storage

    def __hash__(self) -> int:
        return hash(self._storage)

    def __bool__(self) -> bool:
        raise DtypeError("[NdArray] has no truth value; read a number with `bool(a.data)`")

    # -- values -----------------------------------------------------------------------------------

    @property
    def data(self) -> np.ndarray:
        """The values as a NumPy array over the same memory; assigning copies values in.

        The assigned array keeps its dtype (int64 labels stay int64); a scalar fills the array.
        """
        return self.get_data("rw")

    @data.setter
    def data(self, values: Any) -> None:
        if type(values) is np.ndarray:
            self._assign(values)
        elif isinstance(values, NdArray):
            self.copy_from(values)
        elif np.isscalar(values):
            self.fill(values)  # type: ignore[arg-type]
        else:
            on_device = transfer.from_device(values)
            self._assign(np.asarray(values) if on_device is None else on_device)

    def get_data(self, mode: str = "rw", dtype: Any = None) -> np.ndarray:
        """The values as a NumPy array over the same memory.

        Args:
            mode: "r" (read-only array), "w" (values are about to be overwritten) or "rw". Only
                "r" leaves `zeroing` as it is.
            dtype: cast the array to this dtype first.
        """
        if mode not in ("r", "w", "rw"):
            raise ArgumentError(f"[NdArray.get_data] mode is {mode!r}; pass 'r', 'w' or 'rw'")
        if dtype is not None:
            self._cast(np.dtype(dtype))
        storage = self._storage
        storage.settle()
        host = storage.host
        if mode == "w" and self._whole():
            array = storage.writable()
            if not transfer.is_visible(array):
                dtype = transfer.host_dtype(array.dtype)
                host = np.empty(storage.shape, dtype) if host is None else host
        elif host is None:
            if storage.array is None and storage.pending is not None and storage.home is None:
                # The user looks before any function does: values begin their life on the host.
                storage.allocate(storage.dtype, transfer.host_backend())
            array = storage.materialize()
            host = None if transfer.is_visible(array) else transfer.visible(array)
        if mode == "r":
            values = self._view(array if host is None else host).view()
            values.flags.writeable = False
            return values
        storage.written()
        if host is None:
            storage.exported = True
            return self._view(array)
        storage.host = host
        return self._view(host).view()

    def read(self, dtype: np.dtype, backend: Backend | None = None) -> Any:
        """The values as a C-contiguous array of `dtype`, for functions: not to be written to.

        Args:
            backend: where the array shall lie; None is where the values lie.
        """
        storage = self._storage
        array = storage.array
        if (
            array is None
            or storage.pending is not None
            or array.dtype is not dtype
            or storage.host is not None
            or storage.record is not None
            or (backend is not None and not backend.holds(array))
        ):
            array = storage.converted(dtype, backend)
        return array if array.shape == self._shape else self._view(array)

    def cast(self, dtype: Any, ctx: Context | None = None) -> np.ndarray | None:
        """Convert the values to `dtype`; without `ctx` also return them as a NumPy array."""
        self._cast(np.dtype(dtype))
        return self.get_data("rw") if ctx is None else None

    def zero(self) -> None:
        """Fill with zeros; nothing is written before somebody reads."""
        if self._shape == self._storage.shape or self._whole():
            self._storage.zero()
        else:
            self.fill(0)

    def fill(self, value: float) -> None:
        """Fill with a number, in the present dtype; nothing is written before somebody reads."""
        storage = self._storage
        storage.settle()
        if self._whole():
            storage.written()
            storage.pending = value
        else:
            self._view(storage.materialize()).fill(value)
            storage.written()

    def copy_from(self, arr: NdArray, use_current_context: bool = True) -> NdArray:
        """Copy the values of `arr`, of the same shape, into this array; returns this array."""
        if not isinstance(arr, NdArray):
            raise DtypeError(f"[NdArray.copy_from] arr is {type(arr).__name__}; pass an NdArray")
        if arr._shape != self._shape:
            raise ShapeError(
                f"[NdArray.copy_from] arr has shape {arr._shape} but this array has {self._shape}"
            )
        self._assign(arr.read(arr.dtype))
        return self

    def clear(self) -> None:
        """Free the memory; reading before the next write raises ClearedError."""
        self._storage.clear("clear() was called on it")

    def view(self, shape: Sequence[int]) -> NdArray:
        """An array of another shape and the same size over the same memory."""
        dimensions = check_shape("NdArray.view", shape, self.size)
        return NdArray._of(self._storage, dimensions, self._offset)

    def narrow(self, dim: int, start: int, length: int) -> NdArray:
        """Rows `start` to `start + length` of axis 0, over the same memory."""
        if dim != 0 or not self._shape:
            raise ArgumentError(
                f"[NdArray.narrow] dim is {dim} and the shape {self._shape}; only axis 0 is "
                "contiguous in memory, use F.slice for others"
            )
        if start < 0 or length < 0 or start + length > self._shape[0]:
            raise ShapeError(
                f"[NdArray.narrow] start {start} + length {length} leaves axis 0 of {self._shape}"
            )
        row = math.prod(self._shape[1:])
        return NdArray._of(self._storage, (length, *self._shape[1:]), self._offset + start * row)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self.get_data("r")
        if dtype is not None and values.dtype != dtype:
            return values.astype(dtype)
        return values.copy() if copy else values

    def __dlpack__(self, **options: Any) -> Any:
        """A DLPack capsule of the memory: `torch.from_dlpack(array)` copies nothing."""
        from .interchange import exported

        return exported(self).__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        from .interchange import dlpack_device

        return dlpack_device(self)

    @property
    def __array_interface__(self) -> dict[str, Any]:
        from .interchange import array_interface

        return array_interface(self)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        from .interchange import cuda_array_interface

        return cuda_array_interface(self)

    # -- inside -----------------------------------------------------------------------------------

    def _whole(self) -> bool:
        shape, storage = self._shape, self._storage
        return shape == storage.shape or math.prod(shape) == storage.size

    def snapshot(self) -> NdArray:
        """A copy of the values, in memory of its own."""
        storage = Storage(self._shape, self.dtype, None)
        storage.place(self._view(self._storage.materialize()).copy())
        return NdArray._of(storage, self._shape)

    def _view(self, array: Any) -> Any:
        """This window onto the storage's array."""
        assert array is not None
        if array.shape == self._shape:
            return array
        return array.reshape(-1)[self._offset : self._offset + self.size].reshape(self._shape)

    def _cast(self, dtype: np.dtype) -> None:
        storage = self._storage
        storage.settle()
        if storage.dtype == dtype:
            return
        if storage.array is None and storage.pending is not None:
            storage.dtype = dtype
        else:
            values = storage.materialize().astype(dtype)
            transfer.copy(storage.allocate(dtype), values)
            storage.written()

    def _broadcast(self, values: Any) -> Any:
        try:
            return transfer.backend_of(values).xp.broadcast(values, self._shape)
        except ValueError:
            raise ShapeError(
                f"[data] the assigned array has shape {values.shape} but the array has "
                f"{self._shape}; pass an array of that shape, or one that broadcasts to it"
            ) from None

    def _assign(self, values: Any) -> None:
        """Copy values, of the host or of a device, in; they stay in the memory they come from."""
        _check_dtype("NdArray.data", values)
        if values.shape != self._shape:
            values = self._broadcast(values)
        storage = self._storage
        if storage.record is not None:
            storage.settle()
        if not self._whole():
            transfer.copy(self._view(storage.materialize()), values)
            storage.written()
        else:
            array = storage.array
            placed = storage.home is not None and array is storage.home.array
            fits = array is not None and (placed or transfer.same_memory(array, values))
            if not fits or array.dtype != values.dtype:
                array = storage.allocate(values.dtype, transfer.backend_of(values))
            transfer.copy(array if array.shape == self._shape else self._view(array), values)
            storage.written()

    # -- operators: functions on arrays, from operators.py -------------------------------------

    __array_ufunc__ = None  # `ndarray + NdArray` reaches our reflected operators

    def __iadd__(self, other: Any) -> NdArray:
        return self._in_place(self + other)

    def __isub__(self, other: Any) -> NdArray:
        return self._in_place(self - other)

    def __imul__(self, other: Any) -> NdArray:
        return self._in_place(self * other) if np.isscalar(other) else self * other

    def __itruediv__(self, other: Any) -> NdArray:
        return self._in_place(self / other) if np.isscalar(other) else self / other

    def _in_place(self, result: NdArray) -> NdArray:
        return self.copy_from(result)

    if TYPE_CHECKING:  # operators.py sets them

        def __add__(self, other: Any) -> NdArray: ...
        def __sub__(self, other: Any) -> NdArray: ...
        def __mul__(self, other: Any) -> NdArray: ...
        def __truediv__(self, other: Any) -> NdArray: ...


def check_shape(function: str, shape: Sequence[int], size: int | None = None) -> tuple[int, ...]:
    """`shape` as a tuple of ints; one -1 is inferred from `size`, which the shape must fit."""
    try:
        dimensions = tuple(operator.index(length) for length in shape)
    except TypeError:
        raise ShapeError(f"[{function}] shape is {shape!r}; pass a sequence of ints") from None
    if size is not None and dimensions.count(-1) == 1:
        known = -math.prod(dimensions)
        if known > 0 and size % known == 0:
            dimensions = tuple(size // known if n == -1 else n for n in dimensions)
    if any(length < 0 for length in dimensions):
        raise ShapeError(
            f"[{function}] shape {tuple(shape)} has a negative length; pass lengths of 0 or more"
        )
    if size is not None and math.prod(dimensions) != size:
        raise ShapeError(
            f"[{function}] shape {tuple(shape)} has {math.prod(dimensions)} elements but the array "
            f"has {size}; pass a shape of that size (one length may be -1)"
        )
    return dimensions


def _check_dtype(function: str, values: np.ndarray) -> None:
    if values.dtype.kind not in "biuf" and not is_half(values.dtype):
        raise DtypeError(
            f"[{function}] dtype {values.dtype} is not a number; pass bool, integer or float arrays"
        )
