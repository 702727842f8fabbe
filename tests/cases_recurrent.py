"""Rows for recurrent layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from cases_row import Case, Input

import distnn.functions as F


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


# A step: (input (B, I), states (B, H) each, weight (G, H, I + H), bias) -> new states.


def elman_step(x: Any, h: Any, w: Any, b: Any) -> tuple[Any, ...]:
    return (np.tanh(np.concatenate([x, h], 1) @ w.T + b),)


def relu_step(x: Any, h: Any, w: Any, b: Any) -> tuple[Any, ...]:
    return (np.maximum(np.concatenate([x, h], 1) @ w.T + b, 0),)


def lstm_step(x: Any, h: Any, c: Any, w: Any, b: Any) -> tuple[Any, ...]:
    i, f, g, o = (np.concatenate([x, h], 1) @ w[k].T + b[k] for k in range(4))
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru_step(x: Any, h: Any, w: Any, b: Any) -> tuple[Any, ...]:
    n_x = x.shape[1]
    r, z = (sigmoid(np.concatenate([x, h], 1) @ w[k].T + b[k]) for k in range(2))
    n = np.tanh(x @ w[2, :, :n_x].T + b[2] + r * (h @ w[2, :, n_x:].T + b[3]))
    return ((1 - z) * n + z * h,)


STEPS = {"rnn": elman_step, "relu": relu_step, "lstm": lstm_step, "gru": gru_step}
GATES: dict[str, tuple[int, ...]] = {"rnn": (), "relu": (), "lstm": (4,), "gru": (3,)}
BIASES: dict[str, tuple[int, ...]] = {**GATES, "gru": (4,)}


def unrolled(kind: str, x: Any, states: Any, weights: Any, bias: Any) -> tuple[Any, ...]:
    """y, and the last states, (L, D, B, H) each; `weights` are those of each layer."""
    step = STEPS[kind]
    layers, directions, _, hidden = states[0].shape
    last = [np.array(s) for s in states]
    for layer in range(layers):
        outputs = []
        for d in range(directions):
            now = tuple(s[layer, d] for s in states)
            y = [np.empty(0)] * len(x)
            b = np.zeros((*BIASES[kind], hidden)) if bias is None else bias[layer, d]
            for t in range(len(x))[:: -1 if d else 1]:
                now = step(x[t], *now, weights[layer][d], b)
                y[t] = now[0]
            for found, state in zip(last, now, strict=True):
                found[layer, d] = state
            outputs.append(np.stack(y))
        x = np.concatenate(outputs, 2)
    return x, *last


def row(
    kind: str,
    note: str,
    steps: int = 3,
    batch: int = 2,
    inputs: int = 3,
    hidden: int = 4,
    layers: int = 1,
    directions: int = 1,
    bias: bool = True,
    empty: bool = False,
    scale: float = 1.0,
    **options: Any,
) -> Case:
    name = "rnn" if kind == "relu" else kind
    count = 2 if kind == "lstm" else 1
    state = (layers, directions, batch, hidden)
    above = (layers - 1, directions, *GATES[kind], hidden, (directions + 1) * hidden)
    shapes = [(steps, batch, inputs)] + [state] * count
    shapes.append((directions, *GATES[kind], hidden, inputs + hidden))
    shapes += [above] * (layers > 1) + [(layers, directions, *BIASES[kind], hidden)] * bias

    def split(values: Any) -> Any:
        """x, states, weight_l0, weight, bias"""
        x, *rest = values
        states, (first, *rest) = rest[:count], rest[count:]
        weight = rest.pop(0) if layers > 1 else None
        return x, states, first, weight, rest.pop(0) if bias else None

    def call(*values: Any) -> Any:
        x, states, first, weight, b = split(values)
        more = {"nonlinearity": "relu"} if kind == "relu" else {}
        return getattr(F, name)(
            x, *states, first, weight, b, num_layers=layers, bidirectional=directions == 2, **more
        )

    def ref(*values: Any) -> Any:
        x, states, first, weight, b = split(values)
        weights = [first, *(() if weight is None else weight)]
        return unrolled(kind, x, states, weights, b)

    without = [(steps, 0, inputs)] + [(layers, directions, 0, hidden)] * count + shapes[1 + count :]
    drawn = [Input(s, -scale, scale) for s in shapes]
    return Case(name, call, drawn, ref, note, empty=without if empty else None, **options)


# fmt: off
CASES = [
    row("rnn", "", empty=True),
    row("rnn", "no bias", bias=False, second=False),
    row("rnn", "two layers, both directions", layers=2, directions=2, second=False),
    row("relu", "relu", steps=2),
    row("lstm", "", empty=True),
    row("lstm", "one step, no bias", steps=1, bias=False),
    row("lstm", "both directions", steps=2, hidden=2, directions=2),
    row("lstm", "three layers", layers=3, second=False),
    row("lstm", "two layers, both directions, no bias", layers=2, directions=2, bias=False,
        second=False),
    row("lstm", "far from 0", steps=2, scale=9.0, second=False, rtol=2e-5, half=False),
    row("gru", "", empty=True),
    row("gru", "one step, no bias", steps=1, bias=False),
    row("gru", "both directions", steps=2, hidden=2, directions=2),
    row("gru", "two layers, both directions", layers=2, directions=2, second=False),
    *(row(kind, "whole blocks", 5, 9, 7, 32, 2, 2, second=False, rtol=5e-6, scale=0.5)
      for kind in ("rnn", "lstm", "gru")),
]
# fmt: on
