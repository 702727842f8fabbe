"""The emulated `cupy.ndarray`: a NumPy array in device memory, with CuPy's manners."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from . import memory
from .memory import BaseMemory, MemoryPointer
from .ordering import Access


class Flags:
    """c_contiguous, f_contiguous, owndata; also by NumPy's names in brackets."""

    def __init__(self, flags: Any, owndata: bool) -> None:
        self.c_contiguous = bool(flags.c_contiguous)
        self.f_contiguous = bool(flags.f_contiguous)
        self.owndata = owndata
        self.forc = self.c_contiguous or self.f_contiguous
        self.fnc = self.f_contiguous and not self.c_contiguous

    def __getitem__(self, name: str) -> bool:
        return bool(getattr(self, name.lower()))


def check_dtype(dtype: Any) -> np.dtype:
    dtype = np.dtype(dtype)
    if dtype.kind in "OSUMm":
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


class ndarray:
    """cupy.ndarray(shape, dtype=float, memptr=None, strides=None, order="C")"""

    __slots__ = ("__weakref__", "_base", "_host", "_memory")
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]
    _host: np.ndarray
    _memory: BaseMemory
    _base: ndarray | None

    def __init__(
        self,
        shape: Any,
        dtype: Any = float,
        memptr: MemoryPointer | None = None,
        strides: Any = None,
        order: str = "C",
    ) -> None:
        dtype = check_dtype(dtype)
        shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
        for length in shape:
            if not isinstance(length, int | np.integer):
                raise TypeError(f"shape needs integers, got {type(length).__name__}")
        if memptr is None:
            if strides is not None:
                raise ValueError("strides need a memptr")
            nbytes = functools.reduce(lambda a, b: a * int(b), shape, dtype.itemsize)
            memptr = memory.alloc(nbytes)
        self._memory = memptr.mem
        self._base = None
        # NumPy refuses what passes the end of the memory.
        self._host = np.ndarray(
            shape,
            dtype,
            memptr.mem.bytes,
            memptr.ptr - memptr.mem.ptr,
            strides,
            order or "C",  # type: ignore[arg-type]
        )

    @classmethod
    def _view_of(cls, source: ndarray, host: np.ndarray) -> ndarray:
        array = object.__new__(cls)
        array._host = host
        array._memory = source._memory
        array._base = source if source._base is None else source._base
        return array

    @classmethod
    def _copy_of(cls, values: np.ndarray) -> ndarray:
        dtype = check_dtype(values.dtype)
        strides = np.empty_like(values).strides  # the order of the axes is kept
        pointer = memory.alloc(values.size * dtype.itemsize)
        array = cls(values.shape, dtype, pointer, strides)
        array._host[...] = values
        return array

    # What it is.
    @property
    def shape(self) -> tuple[int, ...]:
        return self._host.shape

    @shape.setter
    def shape(self, shape: Any) -> None:
        self._host = self._host.reshape(shape, copy=False)

    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: Flags(self._host.flags, self._base is None))
    base = property(lambda self: self._base)
    device = property(lambda self: self._memory.device)
    T = property(lambda self: self.transpose())

    @property
    def mT(self) -> ndarray:
        return _call("matrix_transpose", self)

    @property
    def data(self) -> MemoryPointer:
        return MemoryPointer(
            self._memory, self._host.ctypes.data - self._memory.ptr if self.size else 0
        )

    def _access(self, writes: bool) -> Access:
        """The bytes from its first to its last element."""
        start, end = byte_bounds(self._host) if self.size else (0, 0)
        return Access(self._memory, start, end, writes)

    @property
    def real(self) -> ndarray:
        return _call("real", self)

    @property
    def imag(self) -> ndarray:
        return _call("imag", self)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        host = self._host
        return {
            "shape": host.shape,
            "typestr": host.dtype.str,
            "descr": host.dtype.descr,
            "data": (self.data.ptr, False),
            "strides": None if host.flags.c_contiguous else host.strides,
            "version": 3,
            "stream": 1,
        }

    def __dlpack__(self, *, stream: Any = None, max_version: Any = None, **options: Any) -> Any:
        from .dlpack import export

        return export(self, max_version)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._memory.device_id

    # What NumPy may do with it.
    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        from . import functions

        out = kwargs.get("out")
        if out is not None:
            kwargs["out"] = out[0] if len(out) == 1 else out
        ours = getattr(functions.cupy, ufunc.__name__, None)
        if ours is None:
            return NotImplemented
        return ours(*inputs, **kwargs) if method == "__call__" else NotImplemented

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        from . import functions

        names = [*func.__module__.split(".")[1:], func.__name__]
        if names[0] == "_core":
            names = names[-1:]
        try:
            ours = functools.reduce(getattr, names, functions.cupy)
        except (AttributeError, NotImplementedError):
            return NotImplemented
        if not all(issubclass(kind, ndarray) for kind in types):
            return NotImplemented
        return ours(*args, **kwargs)

    # Values on the host.
    def get(
        self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True
    ) -> np.ndarray:
        from .transfers import get

        return get(self, stream, order, out, blocking)

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        from .transfers import set_values

        set_values(self, arr, stream)

    def item(self, *args: Any) -> Any:
        return _download(self, "item").item(*args)

    def tolist(self) -> Any:
        return _download(self, "tolist").tolist()

    def tobytes(self, order: str = "C") -> bytes:
        return _download(self, "tobytes").tobytes(order)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return bool(_download(self, "bool"))

    def __int__(self) -> int:
        return int(_download(self, "int"))

    def __float__(self) -> float:
        return float(_download(self, "float"))

    def __complex__(self) -> complex:
        return complex(_download(self, "complex"))

    def __repr__(self) -> str:
        return repr(self._host)

    def __str__(self) -> str:
        return str(self._host)

    def __format__(self, specification: str) -> str:
        return format(_download(self, "format")[()], specification)

    def __reduce__(self) -> Any:
        from .transfers import array

        return array, (self.get(),)

    # Parts of it.
    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of unsized object")
        return len(self._host)

    def __iter__(self) -> Any:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        from .indexing import get_item

        return get_item(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        from .indexing import set_item

        set_item(self, index, value)

    # The same values in another form.
    def reshape(self, *shape: Any, order: str = "C") -> ndarray:
        if len(shape) == 1 and isinstance(shape[0], tuple | list):
            shape = tuple(shape[0])
        return _call("reshape", self, shape, order=order)

    def transpose(self, *axes: Any) -> ndarray:
        if len(axes) == 1 and (axes[0] is None or isinstance(axes[0], tuple | list)):
            axes = axes[0]
        return _call("transpose", self, axes or None)

    def flatten(self, order: str = "C") -> ndarray:
        return _compute("flatten", lambda x: x.flatten(order), self)

    def view(self, dtype: Any = None, *, type: Any = None) -> ndarray:
        host = self._host.view() if dtype is None else self._host.view(check_dtype(dtype))
        return ndarray._view_of(self, host)

    def copy(self, order: str = "C") -> ndarray:
        return _compute("copy", lambda x: x.copy(order), self)

    def __copy__(self) -> ndarray:
        return self.copy("K")

    def __deepcopy__(self, memo: Any) -> ndarray:
        return self.copy("K")

    def astype(
        self,
        dtype: Any,
        order: str = "K",
        casting: str | None = None,
        subok: Any = None,
        copy: bool = True,
    ) -> ndarray:
        dtype = check_dtype(dtype)
        if not copy and dtype == self.dtype:
            return self
        casting = casting or "unsafe"
        return _compute("astype", lambda x: x.astype(dtype, order, casting), self)

    def fill(self, value: Any) -> None:
        if isinstance(value, ndarray) and value.ndim > 0:
            raise ValueError("non-scalar cupy.ndarray cannot be used for fill")
        _compute("fill", lambda x, v: np.copyto(x, v, casting="unsafe"), self, value)

    def sort(self, axis: int = -1, *, kind: Any = None) -> None:
        _call("copyto", self, _call("sort", self, axis, kind))

    def clip(self, min: Any = None, max: Any = None, out: Any = None) -> ndarray:
        return _call("clip", self, min, max, out=out)

    def scatter_add(self, slices: Any, value: Any) -> None:
        from .indexing import scatter

        scatter(np.add, self, slices, value)

    def __abs__(self) -> ndarray:
        return _call("absolute", self)

    def __neg__(self) -> ndarray:
        return _call("negative", self)

    def __pos__(self) -> ndarray:
        return _call("positive", self)

    def __invert__(self) -> ndarray:
        return _call("invert", self)


def _call(name: str, *args: Any, **kwargs: Any) -> Any:
    from . import functions

    return getattr(functions.cupy, name)(*args, **kwargs)


def _compute(name: str, function: Any, *args: Any) -> Any:
    from .calls import compute

    return compute(name, function, args, {})


def _download(array: ndarray, name: str) -> np.ndarray:
    from .calls import download

    if array.size != 1 and name not in ("tolist", "tobytes", "item"):
        raise TypeError(f"[{name}] only an array of one element can be converted to a scalar")
    return download(array, name)


def _operator(name: str, reflected: bool = False, in_place: bool = False) -> Any:
    def method(self: ndarray, other: Any) -> Any:
        if not isinstance(other, ndarray) and hasattr(other, "__array_ufunc__"):
            # As CuPy: an array of another kind that wants the operation gets it.
            if other.__array_ufunc__ is None:
                return NotImplemented
        elif not isinstance(other, ndarray | int | float | complex | np.generic | np.ndarray):
            return NotImplemented
        if in_place:
            return _call(name, self, other, out=self)
        return _call(name, other, self) if reflected else _call(name, self, other)

    return method


_OPERATORS = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "true_divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "power",
    "matmul": "matmul",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "lshift": "left_shift",
    "rshift": "right_shift",
    "divmod": "divmod",
}
for _name, _ufunc in _OPERATORS.items():
    setattr(ndarray, f"__{_name}__", _operator(_ufunc))
    setattr(ndarray, f"__r{_name}__", _operator(_ufunc, reflected=True))
    if _name not in ("matmul", "divmod"):
        setattr(ndarray, f"__i{_name}__", _operator(_ufunc, in_place=True))
for _name, _ufunc in {
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
    "eq": "equal",
    "ne": "not_equal",
}.items():
    setattr(ndarray, f"__{_name}__", _operator(_ufunc))


def _method(name: str) -> Any:
    def method(self: ndarray, *args: Any, **kwargs: Any) -> Any:
        return _call(name, self, *args, **kwargs)

    method.__name__ = name
    return method


_METHODS = """
    all any argmax argmin argpartition argsort choose compress conj conjugate cumprod cumsum
    diagonal dot max mean min nonzero prod ptp put ravel repeat round searchsorted squeeze std sum
    swapaxes take trace var
"""
for _name in _METHODS.split():
    setattr(ndarray, _name, _method(_name))
