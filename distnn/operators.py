"""Operators of Variable and NdArray: `+ - * / ** @`, unary minus and indexing, as functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import functions as F
from .errors import ArgumentError, DtypeError, ShapeError
from .functions.shaping import SetSlice, Slice
from .ndarray import NdArray
from .variable import Variable


def _operator(
    symbol: str,
    with_array: Callable[..., Any],
    with_number: Callable[..., Any],
    reflected: bool = False,
) -> Callable[[Any, Any], Any]:
    def operator(self: Any, other: Any) -> Any:
        if isinstance(other, Variable | NdArray):
            return with_array(other, self) if reflected else with_array(self, other)
        if isinstance(other, int | float | np.number | np.bool_):
            return with_number(self, float(other))
        if isinstance(other, np.ndarray) and other.ndim == 0:
            return with_number(self, float(other))
        raise DtypeError(
            f"[{symbol}] operand is {type(other).__name__}; pass a Variable, an NdArray or a "
            "number (Variable.from_numpy_array makes a Variable of an array)"
        )

    return operator


def _subtract_number(x: Any, number: float) -> Any:
    return F.add_scalar(x, -number)


def _divide_by_number(x: Any, number: float) -> Any:
    if number == 0:
        raise ZeroDivisionError("[/] division of a Variable or NdArray by the number 0")
    return F.mul_scalar(x, 1 / number)


def _matmul(a: Any, b: Any) -> Any:
    """Matrix product as NumPy's: one axis is a vector, more are batches of matrices."""
    if not a.shape or not b.shape:
        raise ShapeError(f"[@] shapes {a.shape} and {b.shape}: a scalar has no matrix product")
    a2 = F.reshape(a, (1, *a.shape)) if len(a.shape) == 1 else a
    b2 = F.reshape(b, (*b.shape, 1)) if len(b.shape) == 1 else b
    ndim = max(len(a2.shape), len(b2.shape))
    a2, b2 = (
        x if len(x.shape) == ndim else F.reshape(x, (*(1,) * (ndim - len(x.shape)), *x.shape))
        for x in (a2, b2)
    )
    y = F.batch_matmul(a2, b2)
    shape = list(y.shape)
    if len(b.shape) == 1:
        shape.pop()
    if len(a.shape) == 1:
        shape.pop(-2 if len(b.shape) > 1 else -1)
    return y if len(shape) == len(y.shape) else F.reshape(y, shape)


def _no_number(x: Any, number: float) -> Any:
    raise DtypeError("[@] operand is a number; use * for products with numbers")


def _getitem(x: Any, key: Any) -> Any:
    """Part of x by ints, slices, None and Ellipsis, as NumPy's; int arrays pick along axis 0."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if any(isinstance(k, list | np.ndarray | Variable | NdArray) for k in keys):
        if len(keys) > 1:
            raise ArgumentError("[getitem] an index array cannot be combined with other indices")
        indices = keys[0]
        if not isinstance(indices, Variable | NdArray):
            array = np.asarray(indices)
            if array.dtype.kind not in "iu":
                raise DtypeError(f"[getitem] an index array has dtype {array.dtype}; use ints")
            make = Variable if isinstance(x, Variable) else NdArray
            indices = make.from_numpy_array(array)
        return F.gather(x, indices, axis=0)
    ranges, shape = _ranges(x, keys)
    y = Slice.of(*_slices(ranges))(x)
    return y if shape == tuple(y.shape) else F.reshape(y, shape)


def _setitem(x: Variable, key: Any, values: Any) -> None:
    """x[key] = values: this Variable stands for the result from now on; graphs stay as they are."""
    keys = list(key) if isinstance(key, tuple) else [key]
    ranges, shape = _ranges(x, keys)
    if not isinstance(values, Variable):
        values = Variable.from_numpy_array(np.broadcast_to(np.asarray(values, np.float32), shape))
    if tuple(values.shape) != shape:
        raise ShapeError(f"[setitem] the part has shape {shape} but the values {values.shape}")
    part = F.reshape(values, [len(r) for r in ranges])
    y = SetSlice.of(*_slices(ranges))(x, part)
    x._value, x._data = y._value, y._data


def _set_part(a: NdArray, key: Any, values: Any) -> None:
    """a[key] = values, in place."""
    if isinstance(values, NdArray):
        values = values.get_data("r")
    a.data[key] = values


def _slices(ranges: list[range]) -> list[tuple[int, ...]]:
    """Start, stop and step of ranges."""
    return [tuple(getattr(r, name) for r in ranges) for name in ("start", "stop", "step")]


def _ranges(x: Any, keys: list[Any]) -> tuple[list[range], tuple[int, ...]]:
    """What keys select along each axis, and the shape of the result."""
    if Ellipsis in keys:
        free = len(x.shape) - sum(k is not None and k is not Ellipsis for k in keys)
        at = keys.index(Ellipsis)
        keys[at : at + 1] = [slice(None)] * free
    used = sum(k is not None for k in keys)
    if used > len(x.shape):
        raise ShapeError(f"[getitem] {used} indices for an array of shape {x.shape}")
    keys += [slice(None)] * (len(x.shape) - used)
    ranges: list[range] = []
    shape: list[int] = []
    for k in keys:
        if k is None:
            shape.append(1)
            continue
        length = x.shape[len(ranges)]
        if isinstance(k, slice):
            ranges.append(range(*k.indices(length)))
            shape.append(len(ranges[-1]))
        elif isinstance(k, int | np.integer) and not isinstance(k, bool):
            if not -length <= k < length:
                raise IndexError(
                    f"[getitem] index {k} is out of range for axis {len(ranges)} of {x.shape}"
                )
            ranges.append(range(int(k) % length, int(k) % length + 1))
        else:
            raise DtypeError(
                f"[getitem] index {k!r} is {type(k).__name__}; use ints, slices, None, Ellipsis or "
                "an int array"
            )
    return ranges, tuple(shape)


def _iter(x: Any) -> Any:
    """Along axis 0; without it Python would try indices until an IndexError."""
    return iter([x[i] for i in range(len(x))])


def _len(x: Any) -> int:
    if not x.shape:
        raise DtypeError("[len] a scalar has no length")
    return x.shape[0]


_OPERATORS: dict[str, Callable[..., Any]] = {
    "__add__": _operator("+", F.add2, F.add_scalar),
    "__radd__": _operator("+", F.add2, F.add_scalar, reflected=True),
    "__sub__": _operator("-", F.sub2, _subtract_number),
    "__rsub__": _operator("-", F.sub2, F.r_sub_scalar, reflected=True),
    "__mul__": _operator("*", F.mul2, F.mul_scalar),
    "__rmul__": _operator("*", F.mul2, F.mul_scalar, reflected=True),
    "__truediv__": _operator("/", F.div2, _divide_by_number),
    "__rtruediv__": _operator("/", F.div2, F.r_div_scalar, reflected=True),
    "__pow__": _operator("**", F.pow2, F.pow_scalar),
    "__rpow__": _operator("**", F.pow2, F.r_pow_scalar, reflected=True),
    "__matmul__": _operator("@", _matmul, _no_number),
    "__neg__": lambda self: F.mul_scalar(self, -1),
    "__pos__": lambda self: self,
    "__getitem__": _getitem,
    "__iter__": _iter,
    "__len__": _len,
}

for _name, _function in _OPERATORS.items():
    setattr(Variable, _name, _function)
    setattr(NdArray, _name, _function)
setattr(Variable, "__setitem__", _setitem)  # noqa: B010
setattr(NdArray, "__setitem__", _set_part)  # noqa: B010
