"""Rows for functions that find places: by coordinates, in order, the largest."""

from __future__ import annotations

from typing import Any

import numpy as np
from cases_row import Case, Input, given, whole

import distnn.functions as F


def gather_samples(x: Any, index: Any, axis: int, batch: int) -> Any:
    """y[s, a, k, b] = x[s, a, index[s, k], b]"""
    parts = [np.take(x[s], index[s], axis - batch) for s in np.ndindex(x.shape[:batch])]
    return np.stack(parts).reshape(*x.shape[:batch], *parts[0].shape)


def gather_nd(x: Any, index: Any) -> Any:
    return np.stack([x[tuple(index[(slice(None), *k)])] for k in np.ndindex(index.shape[1:])]
                    ).reshape(*index.shape[1:], *x.shape[len(index):])  # fmt: skip


def scatter_nd(data: Any, index: Any, shape: Any, out: Any = None, add: bool = False) -> Any:
    y = np.zeros(shape) if out is None else np.array(out)
    for k in np.ndindex(index.shape[1:]):
        place = tuple(index[(slice(None), *k)])
        y[place] = (y[place] if add else 0) + data[k]
    return y


def top_k(x: Any, k: int, base: int = 1, by: Any = None, keep: bool = False) -> Any:
    """The k first by the order of -by(x), by default the largest; or x with zeros for others."""
    rows = x.reshape(int(np.prod(x.shape[:base])), -1)
    order = np.argsort(-(by or (lambda v: v))(rows), 1, kind="stable")[:, :k]
    values = np.take_along_axis(rows, order, 1)
    if not keep:
        return values.reshape(*x.shape[:base], k)
    y = np.zeros(rows.shape)
    np.put_along_axis(y, order, values, 1)
    return y.reshape(x.shape)


X = Input((2, 4, 5), distinct=True)
SIGNS = Input((3, 8), -2.0, 2.1, distinct=True)  # absolute values are distinct too
TWICE = given([[1, 0, 1], [2, 3, 2]], integer=True)  # a place that comes twice

# fmt: off
CASES = [
    *(Case("gather", lambda x, i, a=axis, b=batch: F.gather(x, i, a, b),
           [Input((2, 3, 4, 5)), whole(index, -n, n)],
           lambda x, i, a=axis, b=batch: gather_samples(x, i % x.shape[a], a, b),
           f"batch_dims {batch}, axis {axis}")
      for batch, axis, index, n in [(1, 1, (2, 6), 3), (1, 2, (2, 2, 3), 4), (2, 3, (2, 3, 4), 5),
                                    (1, 3, (2,), 5)]),
    Case("gather", lambda x, i: F.gather(x, i, batch_dims=1), [Input((3, 4)), whole((3, 2), 0, 4)],
         lambda x, i: gather_samples(x, i, 1, 1), "batch_dims 1", empty=[(0, 4), (0, 2)]),
    Case("gather_nd", F.gather_nd, [Input((4, 5, 6)), whole((2, 3), 0, 4)], gather_nd,
         empty=[(4, 5, 6), (2, 0)]),
    Case("gather_nd", F.gather_nd, [Input((4, 5)), TWICE], gather_nd, "a place twice"),
    Case("gather_nd", F.gather_nd, [Input((4, 5, 2)), whole((1, 2, 3), -4, 4)], gather_nd, "axis"),
    Case("gather_nd", F.gather_nd, [Input((2, 3, 2)), whole((3, 4), -2, 2)], gather_nd, "elements"),
    Case("scatter_nd", lambda d, i: F.scatter_nd(d, i, (4, 5)),
         [Input((3,)), given([[0, 1, 3], [2, 2, -1]], integer=True)],
         lambda d, i: scatter_nd(d, i, (4, 5))),
    Case("scatter_nd", lambda d, i: F.scatter_nd(d, i, (4, 5)), [Input((3,)), TWICE],
         lambda d, i: scatter_nd(d, i, (4, 5)), "the last of equal places"),
    Case("scatter_nd", lambda d, i: F.scatter_nd(d, i, (4, 5, 2), add=True),
         [Input((3, 2)), TWICE], lambda d, i: scatter_nd(d, i, (4, 5, 2), add=True), "add"),
    Case("scatter_nd", lambda d, i, o: F.scatter_nd(d, i, out=o),
         [Input((3, 2)), TWICE, Input((4, 5, 2))],
         lambda d, i, o: scatter_nd(d, i, None, o), "into an array"),
    Case("scatter_nd", lambda d, i, o: F.scatter_nd(d, i, out=o, add=True),
         [Input((3, 2)), TWICE, Input((4, 5, 2))],
         lambda d, i, o: scatter_nd(d, i, None, o, add=True), "added to an array"),
    Case("sort", F.sort, [X], lambda x: np.sort(x), empty=[(0, 4, 5)]),
    *(Case("sort", lambda x, a=axis: F.sort(x, a, reverse=True), [X],
           lambda x, a=axis: -np.sort(-x, a), f"axis {axis}, largest first") for axis in (0, 1, 2)),
    Case("sort", lambda x: F.sort(x, 1, with_index=True), [X.constant()],
         lambda x: (np.sort(x, 1), np.argsort(x, 1)), "with_index"),
    Case("sort", lambda x: F.sort(x, only_index=True),
         [given([[1.0, 0, 1, 0], [2, 2, 2, 1]], grad=False)],
         lambda x: np.argsort(x, kind="stable"), "only_index, equal elements"),
    Case("top_k_data", lambda x: F.top_k_data(x, 3), [X], lambda x: top_k(x, 3),
         empty=[(0, 4, 5)]),
    Case("top_k_data", lambda x: F.top_k_data(x, 2, largest=False, base_axis=2), [X],
         lambda x: top_k(x, 2, 2, lambda v: -v), "smallest"),
    Case("top_k_data", lambda x: F.top_k_data(x, 3, abs=True), [SIGNS],
         lambda x: top_k(x, 3, by=np.abs), "absolute values"),
    Case("top_k_data", lambda x: F.top_k_data(x, 3, reduce=False), [X],
         lambda x: top_k(x, 3, keep=True), "others are zero"),
    Case("top_k_data", lambda x: F.top_k_data(x, 2, base_axis=0, with_index=True),
         [SIGNS.constant()],
         lambda x: (top_k(x, 2, 0), np.argsort(-x.ravel())[:2]), "with_index"),
]
# fmt: on
