"""Rows for attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from cases_row import Case, Input, given

import distnn.functions as F

HEADS = 2
SEQUENCES = [(3, 2, 5), (4, 2, 3), (4, 2, 6)]  # of query, key and value
WEIGHTS = [(5, 4), (3, 4), (6, 2), (2, 3)]
BIASES = [(4,), (4,), (2,), (3,)]
MORE = [(4,), (2,)]
HIDDEN = [[0, 0, 1, 0], [0, 1, 1, 0]]


def attention(
    query: Any, key: Any, value: Any, weights: Any, biases: Any, more: Any, mask: Any, hidden: Any
) -> tuple[Any, Any]:
    """One example and one head after the other."""
    (targets, batch, _), sources = query.shape, len(key)
    bq, bk, bv, bo = (0, 0, 0, 0) if biases is None else biases
    mask = np.zeros((targets, sources)) if mask is None else mask
    hidden = np.zeros((batch, sources)) if hidden is None else hidden
    total = sources + (more is not None)
    y = np.zeros((targets, batch, weights[3].shape[1]))
    a = np.zeros((batch * HEADS, targets, total))
    for n in range(batch):
        q, k, v = (
            query[:, n] @ weights[0] + bq,
            key[:, n] @ weights[1] + bk,
            value[:, n] @ weights[2] + bv,
        )
        if more is not None:
            k, v = np.vstack([k, more[0]]), np.vstack([v, more[1]])
        heads = []
        for i in range(HEADS):
            qi, ki, vi = (np.split(m, HEADS, axis=1)[i] for m in (q, k, v))
            scores = qi @ ki.T / np.sqrt(qi.shape[1])
            scores[:, :sources] += np.where(hidden[n], -np.inf, mask)
            e = np.exp(scores - scores.max(1, keepdims=True))
            a[n * HEADS + i] = e / e.sum(1, keepdims=True)
            heads.append(a[n * HEADS + i] @ vi)
        y[:, n] = np.hstack(heads) @ weights[3] + bo
    return y, a


def row(
    note: str, biases: bool = True, more: bool = False, mask: bool = False, hidden: bool = False,
    **options: Any,
) -> Case:  # fmt: skip
    shapes = SEQUENCES + WEIGHTS + BIASES * biases + MORE * more + [(3, 4)] * mask
    inputs = [Input(s) for s in shapes] + [given(HIDDEN, integer=True)] * hidden
    if biases and not more:
        # It adds the same to all scores of a target: what is found of its gradient is rounding.
        inputs[8] = inputs[8].constant()

    def split(values: Any) -> Any:
        x, w, rest = values[:3], values[3:7], list(values[7:])
        b = [rest.pop(0) for _ in BIASES] if biases else None
        m = [rest.pop(0) for _ in MORE] if more else None
        return *x, w, b, m, rest.pop(0) if mask else None, rest.pop(0) if hidden else None

    def call(*values: Any) -> Any:
        query, key, value, w, b, m, added, padding = split(values)
        return F.multi_head_attention(
            query, key, value, HEADS, *w, *(b or [None] * 4), *(m or [None] * 2),
            additive_mask=added, key_padding_mask=padding,
        )  # fmt: skip

    return Case(
        "multi_head_attention", call, inputs, lambda *values: attention(*split(values)), note,
        **options,
    )  # fmt: skip


def empty_batch() -> list[tuple[int, ...]]:
    return [(n, 0, d) for n, _, d in SEQUENCES] + WEIGHTS + BIASES


CASES = [
    row("", empty=empty_batch(), rtol=5e-6, half=False),
    row("no biases", biases=False, second=False, rtol=5e-6, half=False),
    row("masks", mask=True, hidden=True, second=False, rtol=5e-6, half=False),
    row("one more source, masks", more=True, mask=True, hidden=True, rtol=5e-6, half=False),
]
