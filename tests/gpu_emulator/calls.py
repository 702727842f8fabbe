"""How a function of CuPy runs: host arrays are refused, NumPy computes, results stay on device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import ordering
from .array import ndarray
from .ordering import Access
from .record import record
from .stream import (
    capturing,
    finish_background,
    get_current_stream,
    refuse_capture,
    submit,
    synchronized,
)


def compute(
    name: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    synchronizes: bool = False,
    library: bool = False,
) -> Any:
    """function(*args, **kwargs) on the current stream.

    synchronizes: the size of the result depends on values, so CuPy waits for them.
    library: CuPy uses cuBLAS, cuSOLVER or cuRAND, which it does not allow in a capture.
    """
    sources: list[ndarray] = []
    host_args = unwrap(args, sources, name)
    host_kwargs = unwrap(kwargs, sources, name)
    stream = get_current_stream().ptr
    capture = capturing(stream)
    if synchronizes:
        synchronized(name, stream)
    if capture is None and name in _VIEWS:
        view = function(*host_args, **host_kwargs)
        if sources and np.may_share_memory(view, sources[0]._host):
            return wrap(view, sources, [])  # nothing runs on the device
    accesses = _accesses(name, sources, kwargs.get("out"))
    if capture is None:
        ordering.begin(name, stream, accesses)
        finish_background(stream)
        with np.errstate(all="ignore"):
            result = function(*host_args, **host_kwargs)
        record.operations.append(("function", name, stream))
        created: list[ndarray] = []
        wrapped = wrap(result, sources, created)
        if created:
            ordering.begin(name, stream, [array._access(writes=True) for array in created])
        return wrapped
    if library:
        raise NotImplementedError(f"[{name}] calling cuBLAS and the like in a capture (as CuPy)")
    return _capture(name, function, host_args, host_kwargs, sources, stream, accesses)


_VIEWS = {
    *("getitem", "reshape", "ravel", "transpose", "matrix_transpose", "squeeze", "expand_dims"),
    *("swapaxes", "moveaxis", "broadcast_to", "real", "imag"),
}
_CHANGES_FIRST = {
    *("setitem", "fill", "copyto", "put", "place", "putmask", "fill_diagonal"),
    "scatter_add",
}


def _accesses(name: str, sources: list[ndarray], out: Any) -> list[Access]:
    written = [*out] if isinstance(out, tuple) else [out]
    if name in _CHANGES_FIRST:
        written += sources[:1]
    return [source._access(any(source is one for one in written)) for source in sources]


def _capture(
    name: str,
    function: Callable[..., Any],
    args: Any,
    kwargs: Any,
    sources: list[ndarray],
    stream: int,
    accesses: list[Access],
) -> Any:
    """Runs once to learn the shapes; then everything is put back, and the work is kept."""
    before = [source._host.copy() for source in sources]
    with np.errstate(all="ignore"):
        first = function(*args, **kwargs)
    created: list[ndarray] = []
    result = wrap(first, sources, created)
    for source, values in zip(sources, before, strict=True):
        if source._host.flags.writeable:  # broadcast arrays are not
            source._host[...] = values
    targets = [array._host for array in created]
    for target in targets:
        target.reshape(-1).view(np.uint8)[:] = 0xFF
    shared = [source._host for source in sources]

    def action() -> None:
        with np.errstate(all="ignore"):
            leaves = _new_arrays(function(*args, **kwargs), shared)
        for target, values in zip(targets, leaves, strict=True):
            target[...] = values

    accesses = accesses + [array._access(writes=True) for array in created]
    submit(("function", name, stream), action, stream, accesses)
    return result


def unwrap(value: Any, sources: list[ndarray], name: str) -> Any:
    """Emulated arrays become the NumPy arrays behind them; NumPy arrays are refused."""
    if isinstance(value, ndarray):
        sources.append(value)
        return value._host
    if isinstance(value, np.ndarray):
        if value.ndim > 0:
            raise TypeError(
                f"[cupy.{name}] Unsupported type <class 'numpy.ndarray'>: the argument of shape "
                f"{value.shape} is on the host; use cupy.asarray"
            )
        return value[()]
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(unwrap(item, sources, name) for item in value)
    if isinstance(value, list):
        return [unwrap(item, sources, name) for item in value]
    if isinstance(value, dict):
        return {key: unwrap(item, sources, name) for key, item in value.items()}
    return value


def _is_new(result: np.ndarray, shared: list[np.ndarray]) -> bool:
    return not any(result is host or np.may_share_memory(result, host) for host in shared)


def _new_arrays(result: Any, shared: list[np.ndarray]) -> list[Any]:
    """The arrays that `wrap` gives new memory, in its order."""
    if isinstance(result, np.ndarray):
        return [result] if _is_new(result, shared) else []
    if isinstance(result, np.generic | bool | int | float | complex):
        return [result]
    if isinstance(result, tuple | list):
        return [leaf for item in result for leaf in _new_arrays(item, shared)]
    return []


def wrap(result: Any, sources: list[ndarray], created: list[ndarray]) -> Any:
    """Results become emulated arrays: views where they are views, else with memory of their own."""
    if isinstance(result, np.ndarray):
        for source in sources:
            if result is source._host:
                return source
        for source in sources:
            if result.size and np.may_share_memory(result, source._host):
                return ndarray._view_of(source, result)
    if isinstance(result, np.ndarray | np.generic | bool | int | float | complex):
        array = ndarray._copy_of(np.asarray(result))
        created.append(array)
        return array
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        return type(result)(*(wrap(item, sources, created) for item in result))
    if isinstance(result, tuple | list):
        return type(result)(wrap(item, sources, created) for item in result)
    return result


def on_host(
    name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """A function that looks at shapes and dtypes only: its result stays a Python object."""
    sources: list[ndarray] = []
    return function(*unwrap(args, sources, name), **unwrap(kwargs, sources, name))


def download(array: ndarray, name: str) -> np.ndarray:
    """The values on the host. The host waits for them."""
    stream = get_current_stream().ptr
    refuse_capture(stream, name)
    ordering.begin(name, stream, [array._access(writes=False)])
    finish_background(stream)
    record.downloads += 1
    record.operations.append(("copy", "DtoH", array.nbytes, stream))
    synchronized(name, stream)
    return array._host.copy()
