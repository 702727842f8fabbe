"""Arrays of random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calling import function_api
from ..errors import ArgumentError
from ..function import Function, Spec
from ..ndarray import check_shape
from ..random import Draw
from .shapes import number, whole_number


@dataclass(frozen=True)
class Rand(Function):
    """y uniform in [low, high)."""

    shape: tuple[int, ...]
    seed: int

    random = True

    def setup(self, *, dtype: Any) -> Spec:
        return Spec(self.shape, dtype)

    def forward(self, xp: Any, *, low: float, high: float, random: Draw) -> Any:
        return random.uniform(self.shape, np.float32) * np.float32(high - low) + np.float32(low)


@dataclass(frozen=True)
class Randn(Function):
    """y normal with mean mu and standard deviation sigma."""

    shape: tuple[int, ...]
    seed: int

    random = True

    def setup(self, *, dtype: Any) -> Spec:
        return Spec(self.shape, dtype)

    def forward(self, xp: Any, *, mu: float, sigma: float, random: Draw) -> Any:
        return random.normal(self.shape) * sigma + mu


@dataclass(frozen=True)
class Randint(Function):
    """y = whole numbers from low up to but without high."""

    shape: tuple[int, ...]
    seed: int

    random = True

    def setup(self) -> Spec:
        return Spec(self.shape, np.dtype(np.int64))

    def forward(self, xp: Any, *, low: int, high: int, random: Draw) -> Any:
        return random.integers(int(high) - int(low), self.shape) + int(low)


@function_api
def rand(low: float = 0, high: float = 1, shape: Sequence[int] = (), seed: int = -1) -> Any:
    """Uniform random numbers in [low, high), with 24 random bits; fresh ones at each forward.

    Args:
        low, high: bounds.
        shape: of the result.
        seed: start of this call's own random numbers; -1 uses those of `nn.seed`.

    >>> import distnn as nn, distnn.functions as F
    >>> F.rand(shape=(2, 3)).shape
    (2, 3)
    """
    low, high = number("rand", "low", low), number("rand", "high", high)
    if not low <= high:
        raise ArgumentError(f"[rand] low is {low} and high {high}; low must not be above high")
    function = Rand.of(check_shape("rand", shape), whole_number("rand", "seed", seed))
    return function(low=low, high=high)


@function_api
def randn(mu: float = 0, sigma: float = 1, shape: Sequence[int] = (), seed: int = -1) -> Any:
    """Normal random numbers with mean mu and standard deviation sigma; fresh at each forward.

    Box & Muller, "A Note on the Generation of Random Normal Deviates", 1958.

    Args:
        mu, sigma: mean and standard deviation.
        shape: of the result.
        seed: start of this call's own random numbers; -1 uses those of `nn.seed`.

    >>> import distnn as nn, distnn.functions as F
    >>> F.randn(shape=(2, 3)).shape
    (2, 3)
    """
    mu, sigma = number("randn", "mu", mu), number("randn", "sigma", sigma)
    if not sigma >= 0:
        raise ArgumentError(f"[randn] sigma is {sigma}; pass 0 or more")
    function = Randn.of(check_shape("randn", shape), whole_number("randn", "seed", seed))
    return function(mu=mu, sigma=sigma)


@function_api
def randint(low: int = 0, high: int = 1, shape: Sequence[int] = (), seed: int = -1) -> Any:
    """Whole random numbers from low up to but without high; fresh at each forward.

    Args:
        low, high: bounds.
        shape: of the result.
        seed: start of this call's own random numbers; -1 uses those of `nn.seed`.

    >>> import distnn as nn, distnn.functions as F
    >>> F.randint(0, 10, shape=(2, 3)).shape
    (2, 3)
    """
    low, high = whole_number("randint", "low", low), whole_number("randint", "high", high)
    if not low < high <= low + 2**32 or not low >= -(2**31) or high > 2**31:
        raise ArgumentError(
            f"[randint] low is {low} and high {high}; pass low below high, both within 32 bits"
        )
    function = Randint.of(check_shape("randint", shape), whole_number("randint", "seed", seed))
    return function(low=low, high=high)
