"""Initializers: the first values of parameters, from the World's generator RandomState(313).

Values are float32 whatever the context, drawn in the order in which parameters are created: weights
start equal to NNabla's, and equal on every rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .context import current_world
from .errors import ArgumentError


class BaseInitializer:
    """Base: `__call__(shape)` returns an array of that shape."""

    def __call__(self, shape: Sequence[int]) -> np.ndarray:
        raise NotImplementedError


class _RandomInitializer(BaseInitializer):
    """Base of those that draw; the generator is taken when the initializer is made."""

    def __init__(self, rng: Any = None) -> None:
        self.rng = current_world().parameter_generator if rng is None else rng


class NormalInitializer(_RandomInitializer):
    """Normal numbers of mean 0 and standard deviation sigma.

    >>> NormalInitializer(0.1)((2, 3)).shape
    (2, 3)
    """

    def __init__(self, sigma: float = 1.0, rng: Any = None) -> None:
        super().__init__(rng)
        self.sigma = sigma

    def __call__(self, shape: Sequence[int]) -> np.ndarray:
        return (self.rng.randn(*shape) * self.sigma).astype(np.float32)

    def __repr__(self) -> str:
        return f"NormalInitializer({self.sigma})"


class UniformInitializer(_RandomInitializer):
    """Uniform numbers in [lim[0], lim[1]).

    >>> UniformInitializer((-1, 1))((2, 3)).shape
    (2, 3)
    """

    def __init__(self, lim: Sequence[float] = (-1, 1), rng: Any = None) -> None:
        super().__init__(rng)
        if len(lim) != 2:
            raise ArgumentError(f"[UniformInitializer] lim is {lim}; pass (low, high)")
        self.lim = tuple(lim)

    def __call__(self, shape: Sequence[int]) -> np.ndarray:
        return self.rng.uniform(self.lim[0], self.lim[1], size=shape).astype(np.float32)

    def __repr__(self) -> str:
        return f"UniformInitializer({self.lim})"


class UniformIntInitializer(_RandomInitializer):
    """Uniform whole numbers from lim[0] up to but without lim[1].

    >>> UniformIntInitializer((0, 2))((2, 3)).shape
    (2, 3)
    """

    def __init__(self, lim: Sequence[int] = (0, 10), rng: Any = None) -> None:
        super().__init__(rng)
        self.lim = tuple(lim)

    def __call__(self, shape: Sequence[int]) -> np.ndarray:
        return self.rng.randint(self.lim[0], self.lim[1], size=shape).astype(np.float32)

    def __repr__(self) -> str:
        return f"UniformIntInitializer({self.lim})"


class RangeInitializer(BaseInitializer):
    """start, start + step, ... along the last axis, the same for each index of the others.

    >>> RangeInitializer(0, 2)((3,))
    array([0., 2., 4.], dtype=float32)
    """

    def __init__(self, start: float = 0, step: float = 1) -> None:
        self.start = start
        self.step = step

    def __call__(self, shape: Sequence[int]) -> np.ndarray:
        values = self.start + self.step * np.arange(shape[-1], dtype=np.float32)
        return np.broadcast_to(values, shape).astype(np.float32)

    def __repr__(self) -> str:
        return f"RangeInitializer({self.start}, {self.step})"


class ConstantInitializer(BaseInitializer):
    """One number everywhere.

    >>> ConstantInitializer(2)((2,))
    array([2., 2.], dtype=float32)
    """

    def __init__(self, value: float = 0) -> None:
        self.value = value

    def __call__(self, shape: Sequence[int]) -> np.ndarray:
        return np.full(shape, self.value, np.float32)

    def __repr__(self) -> str:
        return f"ConstantInitializer({self.value})"


class OrthogonalInitializer(_RandomInitializer):
    """A random matrix with orthonormal rows or columns, times gain (arXiv:1312.6120).

    The first axis is the rows, the others together the columns.

    >>> w = OrthogonalInitializer()((2, 2))
    >>> bool(abs(w @ w.T - np.eye(2)).max() < 1e-6)
    True
    """

    def __init__(self, gain: float = 1.0, rng: Any = None) -> None:
        super().__init__(rng)
        self.gain = gain

    def __call__(self, shape: Sequence[int]) -> np.ndarray:
        rows, columns = shape[0], int(np.prod(shape[1:]))
        u, _, v = np.linalg.svd(self.rng.normal(0.0, 1.0, (rows, columns)), full_matrices=False)
        matrix = u if u.shape == (rows, columns) else v
        return (self.gain * matrix.reshape(shape)).astype(np.float32)

    def __repr__(self) -> str:
        return f"OrthogonalInitializer({self.gain})"


class WeightNormalizationScaleInitializer:
    """The 2-norm of weights for each index of an axis: the lengths of PF.weight_normalization.

    >>> import distnn as nn
    >>> w = nn.Variable.from_numpy_array(np.array([[3., 4.], [0., 2.]]))
    >>> WeightNormalizationScaleInitializer(w)((2,))
    array([5., 2.], dtype=float32)
    """

    def __init__(self, w: Any, dim: int = 0, eps: float = 1e-12) -> None:
        self.w, self.dim, self.eps = w, dim, eps

    def __call__(self, shape: Sequence[int]) -> np.ndarray:
        w = np.asarray(self.w.d, np.float64)
        others = tuple(i for i in range(w.ndim) if i != self.dim % w.ndim)
        return np.sqrt(np.sum(w * w, others) + self.eps).astype(np.float32).reshape(shape)

    def __repr__(self) -> str:
        return f"WeightNormalizationScaleInitializer({self.w.shape}, {self.dim}, {self.eps})"


def calc_normal_std_he_forward(inmaps: int, outmaps: int, kernel: Sequence[int] = (1, 1)) -> float:
    """Standard deviation sqrt(2 / (K inmaps)), K elements a kernel (arXiv:1502.01852)."""
    return math.sqrt(2.0 / (math.prod(kernel) * inmaps))


def calc_normal_std_he_backward(inmaps: int, outmaps: int, kernel: Sequence[int] = (1, 1)) -> float:
    """Standard deviation sqrt(2 / (K outmaps)), K elements a kernel (arXiv:1502.01852)."""
    return math.sqrt(2.0 / (math.prod(kernel) * outmaps))


def calc_normal_std_glorot(inmaps: int, outmaps: int, kernel: Sequence[int] = (1, 1)) -> float:
    """Standard deviation sqrt(2 / (K (inmaps + outmaps))) (Glorot & Bengio, AISTATS 2010)."""
    return math.sqrt(2.0 / (math.prod(kernel) * (inmaps + outmaps)))


def calc_uniform_lim_glorot(
    inmaps: int, outmaps: int, kernel: Sequence[int] = (1, 1)
) -> tuple[float, float]:
    """Limits -+ sqrt(6 / (K (inmaps + outmaps))) (Glorot & Bengio, AISTATS 2010).

    >>> calc_uniform_lim_glorot(3, 3)
    (-1.0, 1.0)
    """
    limit = math.sqrt(6.0 / (math.prod(kernel) * (inmaps + outmaps)))
    return -limit, limit
