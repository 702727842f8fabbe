"""Rows for pooling, with the definition as a loop over windows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from cases_row import Case, Input, given

import distnn.functions as F

Ints = Sequence[int]


def pooled(
    x: Any,
    reduce: Callable[[Any, int], Any],
    kernel: Ints,
    stride: Ints | None = None,
    ignore_border: bool = True,
    pad: Ints | None = None,
) -> Any:
    """y[..., o] = reduce(elements of window o inside of x, elements of window o with padding)."""
    ndim = len(kernel)
    stride, pad = stride or kernel, pad or [0] * ndim
    sizes = x.shape[-ndim:]
    lengths = [
        (n + 2 * p - k) // s + 1 if ignore_border else int(np.ceil((n + 2 * p) / s))
        for n, k, s, p in zip(sizes, kernel, stride, pad, strict=True)
    ]
    y = np.zeros((*x.shape[:-ndim], *lengths))
    for o in itertools.product(*map(range, lengths)):
        inside, count = [], 1
        for i, n, k, s, p in zip(o, sizes, kernel, stride, pad, strict=True):
            start, stop = i * s - p, min(i * s - p + k, n + p)
            count *= stop - start
            inside.append(slice(max(start, 0), min(stop, n)))
        window = x[(..., *inside)]
        y[(..., *o)] = reduce(window.reshape(*x.shape[:-ndim], -1), count)
    return y


REDUCTIONS: dict[str, Callable[[Any, int], Any]] = {
    "max_pooling": lambda window, count: window.max(-1),
    "sum_pooling": lambda window, count: window.sum(-1),
    "average_pooling": lambda window, count: window.sum(-1) / count,
}


def row(
    name: str,
    note: str,
    shape: Ints,
    kernel: Ints,
    channel_last: bool = False,
    empty: bool = True,
    **arguments: Any,
) -> Case:
    function = getattr(F, name)
    reduce = REDUCTIONS[name]
    windows = {k: v for k, v in arguments.items() if k != "including_pad"}
    if not arguments.get("including_pad", True):
        reduce = lambda window, count: window.mean(-1)  # noqa: E731
    options = {"channel_last": True} if channel_last else {}

    def ref(x: Any) -> Any:
        if channel_last:
            return np.moveaxis(pooled(np.moveaxis(x, -1, 1), reduce, kernel, **windows), 1, -1)
        return pooled(x, reduce, kernel, **windows)

    return Case(
        name,
        lambda x: function(x, kernel, **arguments, **options),
        [Input(tuple(shape), distinct=True)],
        ref,
        note,
        empty=[(0, *shape[1:])] if empty else None,
    )


# fmt: off
EACH = [
    case
    for name in REDUCTIONS
    for case in (
        row(name, "1-D", (2, 3, 9), (2,)),
        row(name, "2-D", (2, 3, 6, 4), (2, 2)),
        row(name, "2-D, leaves pixels out", (2, 3, 7, 8), (2, 3)),
        row(name, "2-D, no batch axes", (6, 4), (3, 2), empty=False),
        row(name, "3-D", (2, 2, 4, 5, 6), (2, 2, 3)),
        row(name, "windows overlap", (2, 2, 7, 8), (3, 3), stride=(1, 2)),
        row(name, "windows apart", (2, 2, 7, 8), (2, 1), stride=(3, 3)),
        row(name, "pad", (2, 2, 5, 6), (3, 2), stride=(2, 2), pad=(1, 1)),
        row(name, "3-D, pad", (1, 2, 4, 5, 3), (2, 3, 3), stride=(2, 1, 2), pad=(1, 2, 1)),
        row(name, "border", (2, 2, 7, 8), (3, 3), ignore_border=False),
        row(name, "border, windows overlap", (2, 2, 6, 6), (3, 2), stride=(2, 1),
            ignore_border=False),
        row(name, "border and pad", (2, 2, 6, 8), (3, 3), stride=(2, 2), pad=(1, 1),
            ignore_border=False),
        row(name, "channel_last", (2, 6, 4, 3), (2, 2), channel_last=True),
        row(name, "channel_last, 1-D", (2, 7, 3), (3,), stride=(2,), pad=(1,), channel_last=True),
        row(name, "channel_last, border and pad", (2, 6, 8, 3), (3, 3), stride=(2, 2), pad=(1, 1),
            ignore_border=False, channel_last=True),
        row(name, "whole map", (2, 3, 4, 5), (4, 5)),
        row(name, "kernel of one", (2, 3, 4), (1,)),
        row(name, "kernel wider than the map", (2, 1, 2), (5, 3), stride=(1, 1), pad=(2, 1)),
    )
]

CASES = [
    *EACH,
    row("average_pooling", "padding not counted", (2, 2, 5, 6), (3, 2), stride=(2, 2), pad=(1, 1),
        including_pad=False),
    row("average_pooling", "padding not counted, border", (2, 2, 6, 8), (3, 3), stride=(2, 2),
        pad=(1, 1), ignore_border=False, including_pad=False),
    row("average_pooling", "padding not counted, channel_last", (2, 5, 6, 2), (3, 2),
        stride=(2, 2), pad=(1, 1), including_pad=False, channel_last=True),
    row("average_pooling", "window in the padding", (1, 3), (2,), pad=(1,), ignore_border=False),
    row("sum_pooling", "window in the padding", (1, 3), (2,), pad=(1,), ignore_border=False),
    # The first of equal elements is the largest one.
    Case("max_pooling", lambda x: F.max_pooling(x, (2, 2)),
         [given([[1.0, 3, 5, 5], [3, 3, 5, 5], [0, 0, 1, 2], [0, 0, 2, 2]])],
         lambda x: np.array([[3.0, 5], [0, 2]]), "ties",
         slope=lambda x: x[[[0, 0], [2, 2]], [[1, 2], [0, 3]]], second=False),
    Case("max_pooling", lambda x: F.max_pooling(x, (2,), stride=(1,), pad=(1,)),
         [given([-1.0, -np.inf, -3.0, -2.0])], lambda x: x[[0, 0, 2, 3, 3]], "padding is no 0"),
    Case("max_pooling", lambda x: F.max_pooling(x, (2,)),
         [given([1.0, np.nan, np.nan, 1, np.nan, np.nan, 1, 2]).constant()],
         lambda x: np.array([np.nan, np.nan, np.nan, 2]), "not a number"),
    Case("global_average_pooling", F.global_average_pooling, [Input((2, 3, 4, 5))],
         lambda x: x.mean((2, 3), keepdims=True), empty=[(0, 3, 4, 5)]),
    Case("global_average_pooling", F.global_average_pooling, [Input((2, 3, 4))],
         lambda x: x.mean(2, keepdims=True), "1-D"),
]
# fmt: on
