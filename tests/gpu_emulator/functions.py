"""The functions of the emulated `cupy`: NumPy's, under the names and parameters of CuPy's list.

`names.txt`, written by make_names.py, holds the names that CuPy has. Other names raise
AttributeError; a keyword that CuPy's function lacks raises TypeError.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from . import dlpack, memory, pinned, transfers
from .array import check_dtype, ndarray
from .calls import compute, on_host
from .record import settings


def _read_names() -> dict[str, tuple[str, list[str]]]:
    lines = (Path(__file__).parent / "names.txt").read_text().splitlines()
    parts = [line.split() for line in lines if not line.startswith("#")]
    return {name: (kind, parameters) for name, kind, *parameters in parts}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


NAMES = _read_names()

# These look at shapes and dtypes only.
_ON_HOST = _words(
    "ndim size shape result_type can_cast common_type may_share_memory shares_memory isscalar "
    "iscomplexobj isrealobj isfortran broadcast_shapes min_scalar_type array_repr array_str "
    "array2string base_repr binary_repr format_float_positional format_float_scientific "
    "show_config get_printoptions who iterable"
)
# The size of the result depends on values: CuPy waits for them.
_SYNCHRONIZE = _words(
    "nonzero argwhere flatnonzero unique unique_all unique_counts unique_inverse unique_values "
    "union1d setdiff1d setxor1d intersect1d bincount extract compress delete trim_zeros histogram "
    "histogram2d histogramdd roots array_repr array_str save savez savetxt"
)
_LIBRARY = {"matmul", "dot", "vdot", "inner", "tensordot", "einsum", "kron"}
# CuPy adds half precision in float32.
_ADDS = {"sum", "mean", "prod", "var", "std", "trace", "average", "cumsum", "cumprod"} | _LIBRARY
_SMALL = ("float16", "bfloat16")
# Their first argument may be a list of numbers.
_TAKE_LISTS = _ON_HOST | _words(
    "eye tri arange linspace logspace identity indices meshgrid mgrid fromfunction frombuffer "
    "fromiter fromstring fromfile loadtxt genfromtxt load tril_indices triu_indices "
    "tril_indices_from diag_indices mask_indices unravel_index ix_"
)


def _in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function on half precision, computed in float32 and rounded once."""

    @functools.wraps(function)
    def run(*args: Any, out: Any = None, **kwargs: Any) -> Any:
        operands = [a for a in args if isinstance(a, np.ndarray | np.generic)]
        if "dtype" in kwargs or not operands or any(a.dtype.name not in _SMALL for a in operands):
            return function(*args, **kwargs) if out is None else function(*args, out=out, **kwargs)
        wide = [a.astype(np.float32) if isinstance(a, np.ndarray | np.generic) else a for a in args]
        result = np.asarray(function(*wide, **kwargs)).astype(np.result_type(*operands))
        if out is None:
            return result
        out[...] = result
        return out

    return run


class ufunc:
    """cupy.ufunc: takes out, casting and dtype, nothing else."""

    def __init__(self, name: str, function: Any) -> None:
        self.name = self.__name__ = name
        self._function = function
        for attribute in ("nin", "nout", "nargs", "types"):
            setattr(self, attribute, getattr(function, attribute, None))
        self._run = _in_float32(function) if name in _LIBRARY else function

    def __repr__(self) -> str:
        return f"<ufunc 'cupy_{self.name}'>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        wrong = {k: v for k, v in kwargs.items() if k not in ("out", "dtype", "casting")}
        if wrong:
            raise TypeError(f"Wrong arguments {wrong}")
        for value in args:
            if not isinstance(value, ndarray | np.ndarray | np.generic | int | float | complex):
                raise TypeError(f"[cupy.{self.name}] Unsupported type {type(value)}")
        _check_out(self.name, kwargs)
        return compute(self.name, self._run, args, kwargs, library=self.name in _LIBRARY)

    def _method(self, method: str, args: Any, kwargs: Any) -> Any:
        function = getattr(self._function, method)
        return compute(f"{self.name}.{method}", function, args, kwargs)

    def reduce(self, *args: Any, **kwargs: Any) -> Any:
        return self._method("reduce", args, kwargs)

    def accumulate(self, *args: Any, **kwargs: Any) -> Any:
        return self._method("accumulate", args, kwargs)

    def reduceat(self, *args: Any, **kwargs: Any) -> Any:
        return self._method("reduceat", args, kwargs)

    def outer(self, *args: Any, **kwargs: Any) -> Any:
        return self._method("outer", args, kwargs)

    def at(self, *args: Any, **kwargs: Any) -> Any:
        return self._method("at", args, kwargs)


def _check_out(name: str, kwargs: dict[str, Any]) -> None:
    out = kwargs.get("out")
    for array in out if isinstance(out, tuple) else (out,):
        if array is not None and not isinstance(array, ndarray):
            raise TypeError(f"[cupy.{name}] out must be a cupy.ndarray, got {type(array).__name__}")


@functools.cache
def _numpy_parameters(function: Any) -> set[str]:
    try:
        listed = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return set()
    return {p.name for p in listed if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _bind(
    name: str, function: Any, listed: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments in CuPy's order become NumPy's, by name where both have the name."""
    if not any(p.startswith("**") for p in listed):
        for keyword in kwargs:
            if keyword not in listed:
                raise TypeError(f"[cupy.{name}] got an unexpected keyword argument {keyword!r}")
    if any(p.startswith("*") and not p.startswith("**") for p in listed):
        return args, kwargs
    if len(args) > len(listed):
        raise TypeError(f"[cupy.{name}] takes {len(listed)} arguments, got {len(args)}")
    known = _numpy_parameters(function)
    positional, named = list(args), dict(kwargs)
    while len(positional) > 1 and listed[len(positional) - 1] in known:
        last = positional.pop()
        named[listed[len(positional)]] = last
    return tuple(positional), named


def _wrapping(name: str, function: Any, listed: list[str], short: str) -> Any:
    """NumPy's function as CuPy's."""
    run = _in_float32(function) if short in _ADDS else function
    library = short in _LIBRARY or name.startswith(("linalg.", "random."))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = _bind(name, function, listed, args, kwargs)
        if short in _ON_HOST:
            return on_host(name, function, args, kwargs)
        first = args[0] if args else None
        listed_first = isinstance(first, list | tuple) and name == short
        if listed_first and short not in _TAKE_LISTS and not _has_array(first):
            raise TypeError(f"[cupy.{name}] expected cupy.ndarray, got {type(first).__name__}")
        _check_out(name, kwargs)
        waits = short in _SYNCHRONIZE or (short == "where" and len(args) + len(kwargs) == 1)
        return compute(name, run, args, kwargs, synchronizes=waits, library=library)

    return call


def _has_array(items: Any) -> bool:
    return any(
        isinstance(i, ndarray) or (isinstance(i, list | tuple) and _has_array(i)) for i in items
    )


def _resolve(name: str) -> Any:
    """What `cupy.<name>` is; name may be `linalg.norm`."""
    if name not in NAMES:
        raise AttributeError(f"module 'cupy' has no attribute {name!r}")
    kind, listed = NAMES[name]
    try:
        numpys = functools.reduce(getattr, name.split("."), np)
    except AttributeError:
        raise NotImplementedError(f"the emulator does not have cupy.{name}") from None
    if kind == "same":
        return numpys
    if kind == "ufunc" and not isinstance(numpys, types.ModuleType | type):
        return ufunc(name, numpys)
    if kind == "function":
        return _wrapping(name, numpys, listed, name.rsplit(".")[-1])
    raise NotImplementedError(f"the emulator does not have cupy.{name}")


class Namespace(types.ModuleType):
    """A module whose names are made when they are asked for."""

    def __init__(self, name: str, prefix: str = "") -> None:
        super().__init__(name, f"Emulated {name}: see gpu_emulator.")
        self._prefix = prefix

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _resolve(self._prefix + name)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        names = [n.removeprefix(self._prefix) for n in NAMES if n.startswith(self._prefix)]
        return sorted({*self.__dict__, *(n for n in names if "." not in n)})


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return ndarray(shape, dtype, order=order)


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return _filled(ndarray(shape, dtype, order=order), 0)


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    return _filled(ndarray(shape, dtype, order=order), 1)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    if dtype is None:
        dtype = fill_value.dtype if isinstance(fill_value, ndarray) else np.array(fill_value).dtype
    return _filled(ndarray(shape, dtype, order=order), fill_value)


def _filled(array: ndarray, value: Any) -> ndarray:
    array.fill(value)
    return array


def _like(a: Any, dtype: Any, order: str, shape: Any) -> ndarray:
    if not isinstance(a, ndarray):
        raise TypeError(f"[cupy] expected cupy.ndarray, got {type(a).__name__}")
    dtype = a.dtype if dtype is None else check_dtype(dtype)
    if shape is not None and shape != a.shape:
        return ndarray(shape, dtype, order="C" if order in "KA" else order)
    model = np.empty_like(a._host, dtype, order)  # type: ignore[call-overload]
    pointer = memory.alloc(model.nbytes)
    return ndarray(a.shape, dtype, pointer, model.strides)


def empty_like(
    prototype: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    return _like(prototype, dtype, order, shape)


def zeros_like(
    a: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    return _filled(_like(a, dtype, order, shape), 0)


def ones_like(
    a: Any, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    return _filled(_like(a, dtype, order, shape), 1)


def full_like(
    a: Any,
    fill_value: Any,
    dtype: Any = None,
    order: str = "K",
    subok: Any = None,
    shape: Any = None,
) -> ndarray:
    return _filled(_like(a, dtype, order, shape), fill_value)


def take(a: Any, indices: Any, axis: Any = None, out: Any = None) -> ndarray:
    """Out of range indices wrap around, as CuPy's do."""
    _check_out("take", {"out": out})
    function = functools.partial(np.take, axis=axis, mode="wrap")
    return compute("take", function, (a, indices), {} if out is None else {"out": out})


def take_along_axis(a: Any, indices: Any, axis: Any) -> ndarray:
    def run(x: np.ndarray, i: np.ndarray) -> np.ndarray:
        length = x.size if axis is None else x.shape[axis]
        return np.take_along_axis(x, i % max(length, 1), axis)

    return compute("take_along_axis", run, (a, indices), {})


def sort(a: Any, axis: Any = -1, kind: Any = None) -> ndarray:
    _check_kind(kind)
    return compute("sort", lambda x: np.sort(x, axis, "stable"), (a,), {})


def argsort(a: Any, axis: Any = -1, kind: Any = None) -> ndarray:
    _check_kind(kind)
    return compute("argsort", lambda x: np.argsort(x, axis, "stable"), (a,), {})


def _check_kind(kind: Any) -> None:
    if kind not in (None, "stable"):
        raise ValueError(f"kind can only be None or 'stable', got {kind!r}")


def divmod_(a: Any, b: Any) -> Any:
    return compute("divmod", np.divmod, (a, b), {})


def get_array_module(*args: Any) -> Any:
    return cupy if any(isinstance(a, ndarray) for a in args) else np


def is_available() -> bool:
    return settings.device_count > 0


def memoize(for_each_device: bool = False) -> Callable[[Any], Any]:
    return functools.cache


def fuse(*args: Any, **kwargs: Any) -> Any:
    """Runs the function unfused."""
    return args[0] if args and callable(args[0]) else lambda function: function


cupy = Namespace("cupy")
cupy.__dict__.update(
    __version__=(Path(__file__).parent / "names.txt").read_text().split("\n")[0].split()[-1],
    ndarray=ndarray,
    ufunc=ufunc,
    divmod=divmod_,
    array=transfers.array,
    asarray=transfers.asarray,
    asanyarray=transfers.asarray,
    ascontiguousarray=transfers.ascontiguousarray,
    asfortranarray=transfers.asfortranarray,
    asnumpy=transfers.asnumpy,
    from_dlpack=dlpack.from_dlpack,
    fromDlpack=dlpack.from_dlpack,
    get_default_memory_pool=memory.get_default_memory_pool,
    get_default_pinned_memory_pool=pinned.get_default_pinned_memory_pool,
    linalg=Namespace("cupy.linalg", "linalg."),
    fft=Namespace("cupy.fft", "fft."),
    random=Namespace("cupy.random", "random."),
)
for _function in (
    *(empty, zeros, ones, full, empty_like, zeros_like, ones_like, full_like),
    *(take, take_along_axis, sort, argsort, get_array_module, is_available, memoize, fuse),
):
    setattr(cupy, _function.__name__, _function)
cupy.linalg.LinAlgError = np.linalg.LinAlgError
