"""Rows for softmax, its logarithm and its cross entropy."""

from __future__ import annotations

from typing import Any

import numpy as np
from cases_row import Case, Input, given, whole

import distnn.functions as F

A = Input((3, 4, 5))
# Scores whose exponentials overflow, in float32 and in float64.
LARGE = given(
    [[1000.0, 1001.0, 999.0], [-1000.0, -1001.5, -1000.0], [90.0, -90.0, 0.0], [0, 800, 0]]
)
MASKED = given([[-np.inf, 1.0, 2.0], [0.5, -np.inf, -np.inf]])


def log_softmax(x: Any, axis: int) -> Any:
    largest = x.max(axis, keepdims=True)
    return x - largest - np.log(np.exp(x - largest).sum(axis, keepdims=True))


def softmax(x: Any, axis: int) -> Any:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def cross_entropy(x: Any, t: Any, axis: int = -1) -> Any:
    """-log softmax(x)[t], sample by sample; 0 where the label is -1."""
    scores, labels = np.moveaxis(log_softmax(x, axis), axis, -1), np.moveaxis(t, axis, -1)
    y = np.zeros(labels.shape)
    for i in np.ndindex(labels.shape[:-1]):
        label = labels[(*i, 0)]
        y[(*i, 0)] = 0 if label == -1 else -scores[i][label]
    return np.moveaxis(y, -1, axis)


def cross_entropy_row(
    note: str, x: Input, t: Input, axis: int | None = None, **options: Any
) -> Case:
    arguments = {} if axis is None else {"axis": axis}
    return Case(
        "softmax_cross_entropy",
        lambda x, t: F.softmax_cross_entropy(x, t, **arguments),
        [x, t],
        lambda x, t: cross_entropy(x, t, -1 if axis is None else axis),
        note,
        **options,
    )


def labels(values: Any) -> Input:
    return given(values, integer=True)


BOTH = (("softmax", F.softmax, softmax), ("log_softmax", F.log_softmax, log_softmax))

# fmt: off
CASES = [
    *(Case(name, function, [A], lambda x, ref=ref: ref(x, -1), empty=[(0, 4)])
      for name, function, ref in BOTH),
    *(Case(name, lambda x, f=function, a=axis: f(x, axis=a), [A],
           lambda x, ref=ref, a=axis: ref(x, a), f"axis {axis}",
           empty=[(0, 4, 5)] if axis else None)
      for name, function, ref in BOTH for axis in (0, 1, 2, -2)),
    *(Case(name, function, [LARGE], lambda x, ref=ref: ref(x, -1), "large scores")
      for name, function, ref in BOTH),
    *(Case(name, function, [Input((3, 1))], lambda x, ref=ref: ref(x, -1), "one class")
      for name, function, ref in BOTH),
    *(Case(name, function, [Input((50, 3000))], lambda x, ref=ref: ref(x, -1), "many",
           second=False)
      for name, function, ref in BOTH),
    Case("softmax", F.softmax, [MASKED], lambda x: softmax(x, -1), "masked scores"),
    cross_entropy_row("", Input((4, 5)), whole((4, 1), 0, 5), empty=[(0, 5), (0, 1)]),
    cross_entropy_row("images", Input((2, 5, 3, 4)), whole((2, 1, 3, 4), 0, 5), axis=1,
                      empty=[(0, 5, 3, 4), (0, 1, 3, 4)]),
    cross_entropy_row("axis 0", Input((5, 4)), whole((1, 4), 0, 5), axis=0),
    cross_entropy_row("axis -2", Input((2, 5, 4)), whole((2, 1, 4), 0, 5), axis=-2),
    cross_entropy_row("one sample without batch", Input((5,)), labels([2])),
    cross_entropy_row("ignored labels", Input((4, 5)), labels([[2], [-1], [0], [-1]])),
    cross_entropy_row("ignored labels, axis 1", Input((2, 5, 3)),
                      labels([[[2, -1, 4]], [[-1, 0, 1]]]), axis=1),
    cross_entropy_row("all labels ignored", Input((2, 5)), labels([[-1], [-1]])),
    cross_entropy_row("large scores", LARGE, labels([[0], [1], [1], [2]])),
    cross_entropy_row("masked scores", MASKED, labels([[1], [0]])),
    cross_entropy_row("one class", Input((3, 1)), labels([[0], [0], [-1]])),
]
# fmt: on
