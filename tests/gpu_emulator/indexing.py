"""Items of emulated arrays. Index arrays out of range wrap around silently, as CuPy's do."""

from __future__ import annotations

from typing import Any

import numpy as np

from .array import ndarray
from .calls import compute

_ERROR = (
    "only integers, slices (`:`), ellipsis (`...`), numpy.newaxis (`None`) and integer or boolean "
    "arrays are valid indices"
)
_INDICES = (ndarray, slice, int, np.integer, np.bool_, type(None))


def _prepare(shape: tuple[int, ...], index: Any) -> tuple[Any, ...]:
    """A tuple with an ellipsis, so that NumPy answers with an array, never with a scalar."""
    items = list(index) if isinstance(index, tuple) else [index]
    for i, item in enumerate(items):
        if isinstance(item, list):
            from .transfers import array

            items[i] = array(item, np.intp) if item == [] else array(item)
        elif isinstance(item, np.ndarray):
            if item.ndim > 0:
                raise TypeError("[cupy.ndarray] the index is a NumPy array; use cupy.asarray")
            items[i] = item[()]
        elif item is not Ellipsis and not isinstance(item, _INDICES):
            raise IndexError(f"{_ERROR}, got {type(item).__name__}")
        if isinstance(items[i], ndarray) and items[i].dtype.kind not in "biu":
            raise IndexError(
                f"arrays used as indices must be of integer or boolean type, got {items[i].dtype}"
            )
    if not any(item is Ellipsis for item in items):
        items.append(Ellipsis)
    return tuple(items)


def _axes_of(item: Any) -> int:
    if item is None or isinstance(item, bool | np.bool_):
        return 0
    if isinstance(item, np.ndarray) and item.dtype.kind == "b":
        return item.ndim
    return 1


def _wrapped(shape: tuple[int, ...], items: tuple[Any, ...]) -> tuple[Any, ...]:
    """Integer arrays modulo the length of their axis. `items` holds NumPy arrays."""
    consumed = sum(_axes_of(item) for item in items if item is not Ellipsis)
    axis, result = 0, []
    for item in items:
        if item is Ellipsis:
            axis += len(shape) - consumed
        elif isinstance(item, np.ndarray | np.integer) and np.asarray(item).dtype.kind in "iu":
            if isinstance(item, np.ndarray) and axis < len(shape) and shape[axis] > 0:
                item = np.asarray(item).astype(np.int64) % shape[axis]
            axis += 1
        else:
            axis += _axes_of(item)
        result.append(item)
    return tuple(result)


def _has_mask(items: tuple[Any, ...]) -> bool:
    return any(isinstance(item, ndarray) and item.dtype.kind == "b" for item in items)


def get_item(array: ndarray, index: Any) -> Any:
    items = _prepare(array.shape, index)
    if not any(isinstance(item, ndarray) for item in items):
        return ndarray._view_of(array, array._host[items])
    return compute(
        "getitem",
        lambda x, i: x[_wrapped(x.shape, i)],
        (array, items),
        {},
        synchronizes=_has_mask(items),
    )


def _check_value(value: Any) -> None:
    if isinstance(value, list | tuple):
        raise TypeError("[cupy.ndarray] a list cannot be assigned; use cupy.asarray")


def set_item(array: ndarray, index: Any, value: Any) -> None:
    _check_value(value)
    items = _prepare(array.shape, index)

    if not any(isinstance(item, ndarray) for item in items):
        array, items = ndarray._view_of(array, array._host[items]), (Ellipsis,)

    def assign(x: np.ndarray, i: tuple[Any, ...], v: Any) -> None:
        x[_wrapped(x.shape, i)] = v

    compute("setitem", assign, (array, items, value), {})


def scatter(ufunc: np.ufunc, array: ndarray, index: Any, value: Any) -> None:
    _check_value(value)
    items = _prepare(array.shape, index)
    compute(
        f"scatter_{ufunc.__name__}",
        lambda x, i, v: ufunc.at(x, _wrapped(x.shape, i), v),
        (array, items, value),
        {},
    )
