"""Dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..calling import function_api
from ..errors import ArgumentError
from ..function import Function, Spec
from ..random import Draw
from .shapes import number, whole_number


@dataclass(frozen=True)
class Dropout(Function):
    """y = x mask / (1 - p); the mask is 0 with probability p, else 1."""

    seed: int

    outputs = ("y", "mask")
    random = True
    cuda = "dropout.Dropout"

    def setup(self, x: Spec) -> tuple[Spec, Spec]:
        return Spec(x.shape, x.dtype), Spec(x.shape, np.dtype(np.bool_))

    def forward(self, xp: Any, x: Any, *, p: float, random: Draw) -> Any:
        mask = xp.asarray(~random.bernoulli(p, x.shape))
        return x * mask * x.dtype.type(1 / (1 - p)), mask

    def grad_x(self, xp: Any, dy: Any, mask: Any, p: float) -> Any:
        return dy * mask * (1 / (1 - p))

    def backward(self, xp: Any, need: Any, dy: Any, mask: Any, p: float, *, out: Any) -> None:
        dx = xp.multiply(dy, mask, out=out.x)
        xp.multiply(dx, dx.dtype.type(1 / (1 - p)), out=dx)


@function_api
def dropout(x: Any, p: float = 0.5, seed: int = -1) -> Any:
    """Set elements to 0 with probability p and scale the others by 1 / (1 - p).

    Dropout is always active: leave it out of the network that is used for evaluation.

    Args:
        x: array.
        p: probability, 0 <= p < 1.
        seed: start of this call's own random numbers; -1 uses those of `nn.seed`.

    Srivastava et al., "Dropout", JMLR 15, 2014.

    >>> import distnn as nn, distnn.functions as F
    >>> F.dropout(nn.Variable((2, 3)), 0.2).shape
    (2, 3)
    """
    p = number("dropout", "p", p)
    if not 0 <= p < 1:
        raise ArgumentError(f"[dropout] p is {p}; pass a probability from 0 up to but without 1")
    return Dropout.of(whole_number("dropout", "seed", seed))(x, p=p)[0]
