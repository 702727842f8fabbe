"""Functions with indices: gather, embedding, one-hot codes and the top-n error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..calling import function_api
from ..errors import ArgumentError, ShapeError
from ..function import Function, Spec
from ..ndarray import check_shape
from .shapes import axis_of, shape_of, whole_number
from .softmax import check_labels


@dataclass(frozen=True)
class Gather(Function):
    """y picks indices of an axis: x (A, n, B), indices (K) -> y (A, K, B); K is any shape."""

    axis: int

    indices = ("index",)
    cuda = "indexing.Gather"

    def setup(self, x: Spec, index: Spec) -> Spec:
        shape = (*x.shape[: self.axis], *index.shape, *x.shape[self.axis + 1 :])
        return Spec(shape, x.dtype)

    def forward(self, xp: Any, x: Any, index: Any, *, out: Any = None) -> Any:
        index = checked_indices("gather", xp, index, x.shape[self.axis])
        return xp.take(x, index, self.axis, out=out, mode="clip")

    def grad_x(self, xp: Any, dy: Any, index: Any, x_shape: Any) -> Any:
        return xp.call(ScatterAdd.of(self.axis, x_shape[self.axis]), dy, index)


@dataclass(frozen=True)
class ScatterAdd(Function):
    """The adjoint of Gather: y (A, n, B) sums the parts of x (A, K, B) that have an index."""

    axis: int
    length: int

    indices = ("index",)
    cuda = "indexing.ScatterAdd"
    cpu = "indexing.ScatterAdd"

    def setup(self, x: Spec, index: Spec) -> Spec:
        after = x.shape[self.axis + index.ndim :]
        return Spec((*x.shape[: self.axis], self.length, *after), x.dtype)

    def forward(self, xp: Any, x: Any, index: Any, *, out: Any = None) -> Any:
        before, after = x.shape[: self.axis], x.shape[self.axis + index.ndim :]
        y = xp.empty((*before, self.length, *after), x.dtype) if out is None else out
        y.fill(0)
        if index.size == 0 or y.size == 0:
            return y
        # Rows of one index become neighbours and are added in the order in which they came.
        index = xp.where(index < 0, index + self.length, index).reshape(-1)
        order = xp.argsort(index, kind="stable")
        found, starts = xp.unique(index[order], return_index=True)
        a = math.prod(before)
        rows = x.reshape(a, index.size, -1)[:, order]
        y.reshape(a, self.length, -1)[:, found] = xp.add.reduceat(rows, starts, axis=1)
        return y

    def grad_x(self, xp: Any, dy: Any, index: Any) -> Any:
        return xp.call(Gather.of(self.axis), dy, index)


@dataclass(frozen=True)
class Embed(Function):
    """y = rows of the table w that x0 names: Gather along axis 0."""

    indices = ("x0",)
    cuda = "indexing.Embed"

    def setup(self, x0: Spec, w: Spec) -> Spec:
        return Spec((*x0.shape, *w.shape[1:]), w.dtype)

    def check(self, xp: Any, indices: Any, shapes: Any) -> None:
        check_indices("embed", xp, indices, shapes[1][0])

    def forward(self, xp: Any, x0: Any, w: Any, *, out: Any = None) -> Any:
        x0 = checked_indices("embed", xp, x0, w.shape[0])
        return xp.take(w, x0, 0, out=out, mode="clip")

    def grad_w(self, xp: Any, dy: Any, x0: Any, w_shape: Any) -> Any:
        return xp.call(ScatterAdd.of(0, w_shape[0]), dy, x0)


def check_indices(function: str, xp: Any, index: Any, length: int) -> None:
    """Raise LabelError unless every index is one of an axis, from 0 on or counted from the end."""
    xp.check_range(
        index,
        -length,
        length - 1,
        f"[{function}] index {{value}} is out of range ({{wrong}} of {index.size} are); the axis "
        f"has {length} elements, so indices are {-length} to {length - 1}",
    )


def checked_indices(function: str, xp: Any, index: Any, length: int) -> Any:
    """Indices from 0 on, negative ones counted from the end; raises LabelError beyond."""
    check_indices(function, xp, index, length)
    return index % length if length else index


@function_api
def gather(x: Any, Indices: Any, axis: int | None = None, batch_dims: int | None = None) -> Any:
    """Pick indices of an axis: y[a, k, b] = x[a, Indices[k], b].

    Args:
        x: array.
        Indices: whole numbers of any shape, which takes the place of the axis in y.
        axis: of x; 0 by default.
        batch_dims: the first axes of x and of Indices number samples that are picked from one by
            one: y[s, a, k, b] = x[s, a, Indices[s, k], b]; `axis` counts from x's first.
    Raises: LabelError for an index out of range.

    >>> import distnn as nn, distnn.functions as F
    >>> F.gather(nn.Variable((5, 2)), nn.Variable((3,)), axis=0).shape
    (3, 2)
    """
    shape = shape_of("gather", "x", x)
    picked = shape_of("gather", "Indices", Indices)
    batch = 0 if batch_dims is None else whole_number("gather", "batch_dims", batch_dims)
    batch += len(picked) if batch < 0 else 0
    axis = axis_of("gather", batch if axis is None else axis, len(shape))
    if not batch:
        return Gather.of(axis)(x, Indices)
    if not 0 <= batch <= min(axis, len(picked)) or shape[:batch] != picked[:batch]:
        raise ShapeError(
            f"[gather] batch_dims is {batch_dims} and axis {axis} but x has shape {shape} and "
            f"Indices {picked}; the first batch_dims axes must be the same, and come before axis"
        )
    from .places import gather_samples

    return gather_samples(x, Indices, axis, batch)


@function_api
def embed(x0: Any, w: Any) -> Any:
    """Rows of a table by index: y[i, j] = w[x0[i], j].

    Args:
        x0: whole numbers of any shape (I, ...).
        w: table (N, J, ...).
    Returns: (I, ..., J, ...).
    Raises: LabelError for an index outside the table.

    >>> import distnn as nn, distnn.functions as F
    >>> F.embed(nn.Variable((4, 3)), nn.Variable((10, 5))).shape
    (4, 3, 5)
    """
    if not shape_of("embed", "w", w):
        raise ShapeError("[embed] w has shape (); pass a table (N, ...)")
    return Embed.of()(x0, w)


@dataclass(frozen=True)
class OneHot(Function):
    """y = 1 at the place that x names, else 0: x (..., D), D = len(shape) -> y (..., *shape)."""

    shape: tuple[int, ...]

    indices = ("x",)
    cuda = "indexing.OneHot"

    def setup(self, x: Spec, *, dtype: Any) -> Spec:
        if not x.shape or x.shape[-1] != len(self.shape):
            raise ShapeError(
                f"[one_hot] x has shape {x.shape}; its last axis needs length {len(self.shape)}, "
                f"one index for each axis of {self.shape}"
            )
        return Spec((*x.shape[:-1], *self.shape), dtype)

    def forward(self, xp: Any, x: Any, *, out: Any) -> Any:
        flat = 0
        for axis, length in enumerate(self.shape):
            flat = flat * length + checked_indices("one_hot", xp, x[..., axis], length)
        size = math.prod(self.shape)
        y = xp.equal(xp.reshape(flat, (-1, 1)), xp.arange(size))
        out[...] = y.reshape(out.shape)
        return out


@function_api
def one_hot(x: Any, shape: Sequence[int]) -> Any:
    """One-hot code: 1 at the place that the last axis of x names, 0 elsewhere; no gradient.

    Args:
        x: (..., D) whole numbers; D indices name a place in an array of `shape`.
        shape: (L_1, ..., L_D).
    Returns: (..., L_1, ..., L_D).
    Raises: LabelError for an index out of range.

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> F.one_hot(nn.NdArray.from_numpy_array(np.array([[1]])), (3,)).data
    array([[0., 1., 0.]], dtype=float32)
    """
    return OneHot.of(check_shape("one_hot", shape))(x)


@dataclass(frozen=True)
class TopNError(Function):
    """y = 1 if more than n elements of x are at least as large as x[target], else 0."""

    axis: int
    n: int

    indices = ("target",)
    cuda = "indexing.TopNError"

    def setup(self, x: Spec, target: Spec) -> Spec:
        shape = (*x.shape[: self.axis], 1, *x.shape[self.axis + 1 :])
        if target.shape != shape:
            raise ShapeError(
                f"[top_n_error] target has shape {target.shape} but x {x.shape} with axis "
                f"{self.axis} needs {shape}: class numbers, one for each row of x"
            )
        return Spec(shape, x.dtype)

    def check(self, xp: Any, indices: Any, shapes: Any) -> None:
        check_labels("top_n_error", xp, indices, shapes[0][self.axis])

    def forward(self, xp: Any, x: Any, target: Any) -> Any:
        self.check(xp, target, (x.shape,))
        score = xp.take_along_axis(x, xp.maximum(target, 0), self.axis)
        rank = (x >= score).sum(self.axis, keepdims=True)
        return (rank > self.n) & (target >= 0)


@function_api
def top_n_error(x: Any, target: Any, axis: int | None = None, n: int = 1) -> Any:
    """0 where the target's score is among the n largest, else 1; no gradient.

    Args:
        x: (..., C, ...) scores; classes along `axis` (the last by default).
        target: class numbers, x's shape with length 1 at `axis`; -1 counts as no error.
        n: how many of the largest; scores equal to the target's count as larger.
    Raises: LabelError for a label out of range.

    >>> import numpy as np, distnn as nn, distnn.functions as F
    >>> x = nn.NdArray.from_numpy_array(np.array([[0.1, 0.9], [0.8, 0.2]]))
    >>> F.top_n_error(x, nn.NdArray.from_numpy_array(np.array([[1], [1]]))).data
    array([[0.],
           [1.]], dtype=float32)
    """
    n = whole_number("top_n_error", "n", n)
    if n < 1:
        raise ArgumentError(f"[top_n_error] n is {n}; pass 1 or more")
    ndim = len(shape_of("top_n_error", "x", x))
    where = axis_of("top_n_error", -1 if axis is None else axis, ndim)
    return TopNError.of(where, n)(x, target)
