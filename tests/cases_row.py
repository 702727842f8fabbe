"""What a row of the table says: how to call a function, on which inputs, and its definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Input:
    """An input: its shape, and how its values are drawn.

    integer: whole numbers in [low, high); such an input has no gradient.
    grad: whether it has a gradient.
    away_from: kinks; values nearer than 0.05 are moved away from them.
    distinct: no two values are equal, and none is near another.
    values: the values themselves, instead of drawn ones.
    """

    shape: tuple[int, ...]
    low: float = -2.0
    high: float = 2.0
    integer: bool = False
    grad: bool = True
    away_from: Sequence[float] = ()
    distinct: bool = False
    values: Any = None

    def draw(self, rng: np.random.RandomState) -> np.ndarray:
        if self.values is not None:
            return np.array(self.values, np.int64 if self.integer else np.float64)
        if self.integer:
            return rng.randint(int(self.low), int(self.high), self.shape)
        if self.distinct:
            size = int(np.prod(self.shape))
            return rng.permutation(np.linspace(self.low, self.high, size)).reshape(self.shape)
        values = rng.uniform(self.low, self.high, self.shape)
        for kink in self.away_from:
            near = np.abs(values - kink) < 0.05
            values = np.where(near, kink + np.where(values < kink, -0.1, 0.1), values)
        return values

    def constant(self) -> Input:
        """The same without a gradient."""
        return replace(self, grad=False)


def given(values: Any, **options: Any) -> Input:
    """An input of exactly these values."""
    return Input(np.shape(values), values=values, **options)


def whole(shape: Sequence[int], low: int, high: int) -> Input:
    """An input of whole numbers in [low, high)."""
    return Input(tuple(shape), low, high, integer=True)


@dataclass(frozen=True)
class Case:
    """A row of the table.

    name: of the public function that the row is for.
    call: (*inputs) -> result, or a tuple of results; works on Variables and on NdArrays.
    inputs: what it is called on.
    ref: the definition on float64 arrays; None for random numbers, which have none.
    note: what the row is about, where a function has several.
    slope: a function whose derivative is the gradient, where that of `ref` is not: at ties and
        kinks, and for gradients that pass through unchanged.
    updates: new values of inputs that the function updates: (*inputs) -> {number of input: array}.
    rtol: of float32 results, relative to the largest value of a result.
    second: whether second derivatives are compared with differences of first ones.
    empty: shapes of the inputs of an empty batch; None where there is none.
    half: whether float16 results are near enough to be compared.
    """

    name: str
    call: Callable[..., Any]
    inputs: Sequence[Input]
    ref: Callable[..., Any] | None
    note: str = ""
    slope: Callable[..., Any] | None = None
    updates: Callable[..., dict[int, np.ndarray]] | None = None
    rtol: float = 2e-6
    second: bool = True
    empty: Sequence[tuple[int, ...]] | None = None
    half: bool = True

    @property
    def id(self) -> str:
        return f"{self.name}: {self.note}" if self.note else self.name

    def draw(self, seed: int = 0) -> list[np.ndarray]:
        rng = np.random.RandomState(seed)
        return [x.draw(rng) for x in self.inputs]
