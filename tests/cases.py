"""One row per function: how to call it, on which inputs, and its definition in plain NumPy.

References are written from the definition, in float64, with NumPy alone. `tests/test_functions.py`
checks every row for every property.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import distnn.functions as F


@dataclass(frozen=True)
class Input:
    """An input: its shape, and how its values are drawn."""

    shape: tuple[int, ...]
    low: float = -2.0
    high: float = 2.0
    integer: bool = False  # whole numbers in [low, high); such an input has no gradient
    grad: bool = True
    away_from: Sequence[float] = ()  # kinks: values nearer than 0.05 are moved away

    def draw(self, rng: np.random.RandomState) -> np.ndarray:
        if self.integer:
            return rng.randint(int(self.low), int(self.high), self.shape)
        values = rng.uniform(self.low, self.high, self.shape)
        for kink in self.away_from:
            near = np.abs(values - kink) < 0.05
            values = np.where(near, kink + np.where(values < kink, -0.1, 0.1), values)
        return values


@dataclass(frozen=True)
class Case:
    """A row of the table.

    call: (*inputs) -> result, or a tuple of results; works on Variables and on NdArrays.
    ref: the same on float64 arrays.
    name: of the public function that the row is for.
    rtol: of float32 results, relative to the largest value of a result.
    second: whether second derivatives are checked numerically.
    tie_free: inputs are made of distinct values (for max and the like).
    empty: shapes of the inputs of an empty batch; None where there is none.
    half: whether float16 results are near enough to be compared.
    """

    name: str
    call: Callable[..., Any]
    inputs: Sequence[Input]
    ref: Callable[..., Any]
    rtol: float = 2e-6
    second: bool = True
    tie_free: bool = False
    empty: Sequence[tuple[int, ...]] | None = None
    half: bool = True
    id: str = field(default="")

    def draw(self, seed: int = 0) -> list[np.ndarray]:
        rng = np.random.RandomState(seed)
        values = [x.draw(rng) for x in self.inputs]
        if self.tie_free:
            values = [
                v
                if x.integer
                else rng.permutation(np.linspace(x.low, x.high, v.size)).reshape(v.shape)
                for x, v in zip(self.inputs, values, strict=True)
            ]
        return values


A = Input((2, 3, 4))
POSITIVE = Input((2, 3, 4), 0.3, 3.0)

CASES: list[Case] = [
    Case(
        "relu",
        F.relu,
        [Input((2, 3, 4), away_from=[0])],
        lambda x: np.maximum(x, 0),
        empty=[(0, 3)],
    ),
    Case("tanh", F.tanh, [A], np.tanh, empty=[(0, 3)]),
    Case("exp", F.exp, [A], np.exp, empty=[(0, 3)]),
    Case("mul2", F.mul2, [A, A], lambda a, b: a * b, empty=[(0, 3), (0, 3)]),
    Case(
        "add2",
        F.add2,
        [A, Input((2, 1, 4))],
        lambda a, b: a + b,
        id="add2 broadcast",
        empty=[(0, 3, 4), (0, 1, 4)],
    ),
    Case(
        "affine",
        F.affine,
        [Input((3, 4)), Input((4, 5)), Input((5,))],
        lambda x, w, b: x @ w + b,
        empty=[(0, 4), (4, 5), (5,)],
    ),
]
