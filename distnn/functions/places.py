"""Functions with places in arrays: gather and scatter by coordinates, sorting, largest elements.

A place is the number of an element, or of a part, in a flat array. These functions find places, as
whole numbers without gradients; Gather and ScatterAdd bring the values and the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calling import function_api
from ..errors import ArgumentError, ShapeError
from ..function import Function, Spec
from ..ndarray import NdArray, check_shape
from .arithmetic import mul2, where
from .indexing import Gather, ScatterAdd, checked_indices
from .mathematics import abs as absolute
from .shapes import axis_of, shape_of, whole_number
from .shaping import reshape, transpose

_PLACE = np.dtype(np.int64)


@dataclass(frozen=True)
class PlaceOfCoordinates(Function):
    """y = number of the part of an array of `shape` at coordinates x (M, ...), of M axes."""

    shape: tuple[int, ...]
    function: str  # for messages

    indices = ("x",)

    def setup(self, x: Spec) -> Spec:
        return Spec(x.shape[1:], _PLACE)

    def forward(self, xp: Any, x: Any) -> Any:
        place = xp.zeros(x.shape[1:], _PLACE)
        for index, length in zip(x, self.shape, strict=False):
            place = place * length + checked_indices(self.function, xp, index, length)
        return place


@dataclass(frozen=True)
class PlaceAlongAxis(Function):
    """y = number of the element of an array of `shape` at index x along an axis, else at its own
    place: x has that shape up to the length of the axis."""

    shape: tuple[int, ...]
    axis: int
    function: str  # for messages

    indices = ("x",)

    def setup(self, x: Spec) -> Spec:
        return Spec(x.shape, _PLACE)

    def forward(self, xp: Any, x: Any) -> Any:
        place = 0
        for axis, length in enumerate(self.shape):
            if axis == self.axis:
                index = checked_indices(self.function, xp, x, length)
            else:
                along = [1] * x.ndim
                along[axis] = x.shape[axis]
                index = xp.arange(x.shape[axis]).reshape(along)
            place = place * length + index
        return place


@dataclass(frozen=True)
class LastOfEqual(Function):
    """y = 1 where no later element of x, in flat order, equals it, else 0."""

    indices = ("x",)

    def setup(self, x: Spec, *, dtype: Any) -> Spec:
        return Spec(x.shape, dtype)

    def forward(self, xp: Any, x: Any) -> Any:
        flat = x.reshape(-1)
        order = xp.argsort(flat, kind="stable")
        last = xp.ones(flat.shape, bool)
        last[order[:-1]] = flat[order[1:]] != flat[order[:-1]]
        return last.reshape(x.shape)


@dataclass(frozen=True)
class Argsort(Function):
    """y = indices that sort x along an axis, the first `count` of them, in another shape.

    Equal elements stay in their order.
    """

    axis: int
    reverse: bool
    count: int
    shape: tuple[int, ...]

    def setup(self, x: Spec) -> Spec:
        return Spec(self.shape, _PLACE)

    def forward(self, xp: Any, x: Any) -> Any:
        order = xp.argsort(-x if self.reverse else x, axis=self.axis, kind="stable")
        return order[(np.s_[:],) * self.axis + (np.s_[: self.count],)].reshape(self.shape)


def elements_at(x: Any, places: Any) -> Any:
    """The elements of x at places."""
    return Gather.of(0)(reshape(x, (-1,)), places)


@dataclass(frozen=True)
class PlaceInSample(Function):
    """y (..., K) = number of element x (..., K) of each sample in an array of all samples."""

    length: int  # of a sample
    function: str  # for messages

    indices = ("x",)

    def setup(self, x: Spec) -> Spec:
        return Spec(x.shape, _PLACE)

    def forward(self, xp: Any, x: Any) -> Any:
        index = checked_indices(self.function, xp, x, self.length)
        samples = math.prod(x.shape[:-1])
        return index + (xp.arange(samples) * self.length).reshape(*x.shape[:-1], 1)


def gather_samples(x: Any, index: Any, axis: int, batch: int) -> Any:
    """y[s, a, k, b] = x[s, a, index[s, k], b], where s are the first `batch` axes of both."""
    shape, picked = x.shape, index.shape
    samples, before, after = shape[:batch], shape[batch:axis], shape[axis + 1 :]
    count, a, length = math.prod(samples), math.prod(before), shape[axis]
    # The samples are parts of one axis: what lies between them and that axis comes after it.
    flat = reshape(x, (count, a, length, math.prod(after)))
    flat = reshape(transpose(flat, (0, 2, 1, 3)), (count * length, a, math.prod(after)))
    places = PlaceInSample.of(length, "gather")(reshape(index, (count, math.prod(picked[batch:]))))
    y = transpose(Gather.of(0)(flat, places), (0, 2, 1, 3))
    return reshape(y, (*samples, *before, *picked[batch:], *after))


@function_api
def gather_nd(data: Any, indices: Any) -> Any:
    """Parts of an array at coordinates: y[...] = data[indices[0, ...], ..., indices[M-1, ...]].

    Args:
        data: array.
        indices: (M, ...) whole numbers, coordinates along the first M axes of data.
    Returns: (..., *data.shape[M:]).
    Raises: LabelError for a coordinate out of range.

    >>> import distnn as nn, distnn.functions as F
    >>> F.gather_nd(nn.Variable((4, 5, 6)), nn.Variable((2, 3))).shape
    (3, 6)
    """
    shape, lead = shape_of("gather_nd", "data", data), shape_of("gather_nd", "indices", indices)
    _check_coordinates("gather_nd", "data", shape, lead)
    m = lead[0]
    place = PlaceOfCoordinates.of(shape[:m], "gather_nd")(indices)
    return Gather.of(0)(reshape(data, (math.prod(shape[:m]), *shape[m:])), place)


def _check_coordinates(
    function: str, name: str, shape: tuple[int, ...], lead: tuple[int, ...]
) -> None:
    if len(lead) < 2 or not 1 <= lead[0] <= len(shape):
        raise ShapeError(
            f"[{function}] indices has shape {lead} but {name} has {len(shape)} axes; pass "
            f"(M, ...): one coordinate for each of the first M axes, M from 1 to {len(shape)}"
        )


@function_api
def scatter_nd(
    data: Any,
    indices: Any,
    shape: Sequence[int] | None = None,
    out: Any = None,
    add: bool = False,
) -> Any:
    """Put parts into an array at coordinates: y[indices[0, ...], ...] = data[...], else 0 or out.

    Args:
        data: (..., *rest), parts.
        indices: (M, ...) whole numbers, coordinates along the first M axes of the result. Of equal
            ones the last counts, unless `add`.
        shape: (n_1, ..., n_M, *rest) of the result; give it or `out`.
        out: what the result is where nothing is put; an NdArray also takes the result.
        add: add parts to what is there.
    Raises: LabelError for a coordinate out of range.

    >>> import distnn as nn, distnn.functions as F
    >>> F.scatter_nd(nn.Variable((3, 6)), nn.Variable((2, 3)), shape=(4, 5, 6)).shape
    (4, 5, 6)
    """
    name = "scatter_nd"
    parts, lead = shape_of(name, "data", data), shape_of(name, "indices", indices)
    if (shape is None) == (out is None):
        raise ArgumentError(
            f"[{name}] shape is {shape} and out is {type(out).__name__}; give one of them"
        )
    result = shape_of(name, "out", out) if shape is None else check_shape(name, shape)
    _check_coordinates(name, "the result", result, lead)
    m = lead[0]
    if parts != (*lead[1:], *result[m:]):
        raise ShapeError(
            f"[{name}] data has shape {parts} but indices {lead} and a result of {result} need "
            f"{(*lead[1:], *result[m:])}"
        )
    place = PlaceOfCoordinates.of(result[:m], name)(indices)
    count = math.prod(result[:m])
    scatter = ScatterAdd.of(0, count)
    if not add:
        last = reshape(LastOfEqual.of()(place), (*lead[1:], *(1,) * len(result[m:])))
        data = mul2(data, last)
    y = reshape(scatter(data, place), result)
    if out is None:
        return y
    if add:
        y = out + y
    else:
        written = reshape(scatter(last, place), (*result[:m], *(1,) * len(result[m:])))
        y = where(written, y, out)
    return out.copy_from(y) if isinstance(out, NdArray) else y


@function_api
def sort(
    x: Any,
    axis: int = -1,
    reverse: bool = False,
    with_index: bool = False,
    only_index: bool = False,
) -> Any:
    """Sort along an axis; equal elements stay in their order.

    Args:
        x: array.
        axis: to sort along.
        reverse: largest first.
        with_index: return (values, indices): values = x[indices] along the axis.
        only_index: return the indices.

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> F.sort(nn.NdArray.from_numpy_array(np.array([2., 3., 1.]))).data
    array([1., 2., 3.], dtype=float32)
    """
    shape = shape_of("sort", "x", x)
    axis = axis_of("sort", axis, len(shape))
    index = Argsort.of(axis, bool(reverse), shape[axis], shape)(x)
    if only_index:
        return index
    values = elements_at(x, PlaceAlongAxis.of(shape, axis, "sort")(index))
    return (values, index) if with_index else values


@function_api
def top_k_data(
    x: Any,
    k: int,
    abs: bool = False,
    reduce: bool = True,
    base_axis: int = 1,
    largest: bool = True,
    with_index: bool = False,
) -> Any:
    """The k largest elements of each sample, in order; or x with all others set to 0.

    Args:
        x: array; the axes before `base_axis` number the samples.
        k: how many of each sample.
        abs: compare absolute values.
        reduce: False returns an array of x's shape, with zeros for the others.
        base_axis: first axis of a sample.
        largest: False takes the smallest.
        with_index: return (values, indices) where indices number the elements of a sample.
    Returns: (*x.shape[:base_axis], k), or x's shape.

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> F.top_k_data(nn.NdArray.from_numpy_array(np.array([[1., 3., 2.]])), 2).data
    array([[3., 2.]], dtype=float32)
    """
    shape = shape_of("top_k_data", "x", x)
    base = axis_of("top_k_data", base_axis, len(shape), "base_axis")
    k = whole_number("top_k_data", "k", k)
    size = math.prod(shape[base:])
    if not 1 <= k <= size:
        raise ArgumentError(
            f"[top_k_data] k is {k} but a sample of x {shape} from axis {base} on has {size} "
            f"elements; pass 1 to {size}"
        )
    rows = reshape(x, (math.prod(shape[:base]), size))
    result = (*shape[:base], k)
    index = Argsort.of(1, bool(largest), k, result)(absolute(rows) if abs else rows)
    places = PlaceInSample.of(size, "top_k_data")(index)
    y = elements_at(x, places)
    if not reduce:
        y = reshape(ScatterAdd.of(0, math.prod(shape))(y, places), shape)
    return (y, index) if with_index else y
