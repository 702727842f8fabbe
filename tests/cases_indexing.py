"""Rows for functions with indices."""

from __future__ import annotations

from typing import Any

import numpy as np
from cases_row import Case, Input, given, whole

import distnn.functions as F


def gather(x: Any, index: Any, axis: int = 0) -> Any:
    """y[a, k, b] = x[a, index[k], b]"""
    axis %= x.ndim
    y = np.zeros((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))
    for k in np.ndindex(index.shape):
        y[(slice(None),) * axis + k] = x[(slice(None),) * axis + (index[k],)]
    return y


def one_hot(x: Any, shape: tuple[int, ...]) -> Any:
    y = np.zeros((*x.shape[:-1], *shape))
    for i in np.ndindex(x.shape[:-1]):
        y[(*i, *x[i])] = 1
    return y


def top_n_error(x: Any, t: Any, axis: int = -1, n: int = 1) -> Any:
    """1 where more than n scores are at least that of the target."""
    scores, labels = np.moveaxis(x, axis, -1), np.moveaxis(t, axis, -1)
    y = np.zeros(labels.shape)
    for i in np.ndindex(labels.shape[:-1]):
        label = labels[(*i, 0)]
        y[(*i, 0)] = label != -1 and (scores[i] >= scores[i][label]).sum() > n
    return np.moveaxis(y, -1, axis)


def indices(values: Any) -> Input:
    return given(values, integer=True)


def gather_row(note: str, x: tuple[int, ...], index: Input, axis: int, **options: Any) -> Case:
    return Case(
        "gather",
        lambda x, i: F.gather(x, i, axis=axis),
        [Input(x), index],
        lambda x, i: gather(x, i, axis),
        note,
        **options,
    )


TIES = given([[3.0, 1, 3, 2], [1, 1, 1, 1], [0, 5, 5, 5]])

# fmt: off
CASES = [
    Case("embed", F.embed, [whole((4, 3), 0, 10), Input((10, 5))], lambda i, w: gather(w, i),
         empty=[(0, 3), (10, 5)]),
    Case("embed", F.embed, [indices([1, 1, 4, 1, 0]), Input((5, 2))], lambda i, w: gather(w, i),
         "repeated"),
    Case("embed", F.embed, [indices([[-1, 0], [-5, 4]]), Input((5, 2))], lambda i, w: gather(w, i),
         "negative"),
    Case("embed", F.embed, [indices(3), Input((5, 2))], lambda i, w: gather(w, i), "one index"),
    Case("embed", F.embed, [whole((6,), 0, 4), Input((4,))], lambda i, w: gather(w, i),
         "table of numbers"),
    Case("embed", F.embed, [whole((2, 3), 0, 4), Input((4, 2, 3))], lambda i, w: gather(w, i),
         "table of matrices"),
    Case("embed", F.embed, [whole((70, 30), 0, 40), Input((40, 50))], lambda i, w: gather(w, i),
         "many", second=False),
    Case("gather", F.gather, [Input((5, 3)), whole((4,), 0, 5)], gather, empty=[(5, 3), (0,)]),
    gather_row("axis 1", (2, 5, 3), whole((4,), 0, 5), 1, empty=[(0, 5, 3), (4,)]),
    gather_row("last axis", (2, 3, 5), whole((4,), 0, 5), -1),
    gather_row("indices of two axes", (2, 5, 3), whole((2, 3), 0, 5), 1),
    gather_row("one index", (2, 5, 3), indices(2), 1),
    gather_row("repeated", (2, 4), indices([3, 3, 0, 3]), 1),
    gather_row("negative", (2, 4), indices([-1, 0, -4, 3]), 1),
    gather_row("repeated by negative ones", (4, 2), indices([[-1, 3], [3, -4]]), 0),
    Case("one_hot", lambda x: F.one_hot(x, (5,)), [whole((4, 1), 0, 5)],
         lambda x: one_hot(x, (5,)), empty=[(0, 1)]),
    Case("one_hot", lambda x: F.one_hot(x, (3, 4)), [whole((2, 5, 2), 0, 3)],
         lambda x: one_hot(x, (3, 4)), "two axes", empty=[(0, 5, 2)]),
    Case("one_hot", lambda x: F.one_hot(x, (2, 3, 2)), [indices([[1, 2, 0], [0, 0, 1]])],
         lambda x: one_hot(x, (2, 3, 2)), "three axes"),
    Case("one_hot", lambda x: F.one_hot(x, (3,)), [indices([2])],
         lambda x: one_hot(x, (3,)), "one index"),
    Case("one_hot", lambda x: F.one_hot(x, (3,)), [indices([[-1], [-3], [2]])],
         lambda x: one_hot(x, (3,)), "negative"),
    Case("top_n_error", F.top_n_error, [Input((6, 4)).constant(), whole((6, 1), 0, 4)], top_n_error,
         empty=[(0, 4), (0, 1)]),
    Case("top_n_error", lambda x, t: F.top_n_error(x, t, n=2),
         [Input((8, 4)).constant(), whole((8, 1), 0, 4)], lambda x, t: top_n_error(x, t, n=2),
         "of two"),
    Case("top_n_error", lambda x, t: F.top_n_error(x, t, axis=1),
         [Input((2, 5, 3)).constant(), whole((2, 1, 3), 0, 5)],
         lambda x, t: top_n_error(x, t, 1), "axis 1"),
    *(Case("top_n_error", lambda x, t, n=n: F.top_n_error(x, t, n=n),
           [TIES.constant(), indices([[0], [2], [1]])], lambda x, t, n=n: top_n_error(x, t, n=n),
           f"ties, n = {n}")
      for n in (1, 2, 3, 4)),
    Case("top_n_error", F.top_n_error, [TIES.constant(), indices([[-1], [0], [-1]])], top_n_error,
         "ignored labels"),
]
# fmt: on
