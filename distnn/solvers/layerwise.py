"""Steps in proportion to the norm of the parameter that they change, for large batches.

Norms are of whole parameters, so these work parameter by parameter; on a device the host waits for
the norms once in an update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..errors import ArgumentError
from ..formula import Assignments
from ..transfer import backend_of
from .jobs import run, sums_of_squares
from .solver import Piece, Solver


def _norms(one: Sequence[Any], other: Sequence[Any]) -> list[tuple[float, float]]:
    """The norms of pairs of arrays; all of them are found at once."""
    found = [math.sqrt(square) for square in sums_of_squares([*one, *other])]
    return list(zip(found[: len(one)], found[len(one) :], strict=True))


class Lars(Solver):
    """LARS: gradient descent with momentum, at a learning rate for each parameter.

    rate = lr coefficient |w| / (|g| + wd |w|)
    v = momentum v + rate (g + wd w)
    w = w - v

    wd is what `weight_decay(wd)` was given since the last update, else 0. rate is lr alone where
    |w| is below eps, and eps is added to a denominator below eps.

    Args:
        lr: learning rate, per step.
        momentum: weight of the old momentum.
        coefficient: trust in a parameter's norm: length of a step relative to it.
        eps: what is too small a norm.

    You, Gitman & Ginsburg, arXiv:1708.03888 (algorithm 1).

    >>> import distnn as nn, distnn.solvers as S
    >>> w = nn.Variable.from_numpy_array([30.0, 40.0], need_grad=True)
    >>> solver = S.Lars(lr=1, coefficient=0.1)
    >>> solver.set_parameters({"w": w})
    >>> w.g = [0, 0.001]
    >>> solver.update()
    >>> w.d.tolist()
    [30.0, 35.0]
    """

    states = ("v",)
    by_parameter = True
    rule = Assignments(
        "v = momentum * v + rate * (g + decay * w)\nw = w - v",
        ("w", "g", "v"),
        ("momentum", "rate", "decay"),
    )

    def __init__(
        self,
        lr: float = 1e-3,
        momentum: float = 0.9,
        coefficient: float = 0.001,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(
            lr, fused_decay=0.0, lr=lr, momentum=momentum, coefficient=coefficient, eps=eps
        )

    def step(self, pieces: Sequence[Piece]) -> None:
        found = _norms([p.arrays[0] for p in pieces], [p.arrays[1] for p in pieces])
        momentum = self.info["momentum"]
        run(
            self.rule,
            [
                (piece.arrays, (momentum, self._rate(*norms), self._decay))
                for piece, norms in zip(pieces, found, strict=True)
            ],
        )

    def _rate(self, w_norm: float, g_norm: float) -> float:
        eps = self.info["eps"]
        if w_norm < eps:
            return self._learning_rate
        denominator = g_norm + self._decay * w_norm
        if denominator < eps:
            denominator += eps
        return self._learning_rate * self.info["coefficient"] * w_norm / denominator


class Lamb(Solver):
    """LAMB: steps in Adam's direction, of a length in proportion to the parameter's norm.

    mean = beta1 mean + (1 - beta1) g
    var = beta2 var + (1 - beta2) g g
    r = (mean / c1) / (sqrt(var / c2) + eps) + wd w
    w = w - eta clip(|w|, gamma_l, gamma_u) / |r| r

    wd is what `weight_decay(wd)` was given since the last update, else 0. Where |r| is eps or less,
    w = w - eta r. With gamma_l = 0 a parameter of zeros stays so: pass more for biases that begin
    at zero, or give them to a solver of their own.

    Args:
        eta: learning rate, per step.
        beta1, beta2: weights of the old averages.
        gamma_l, gamma_u: between them the parameter's norm counts.
        eps: keeps the quotients finite.
        bias_correction: c1 is 1 - beta1^t and c2 is 1 - beta2^t, else both are 1.

    You et al., arXiv:1904.00962 (algorithm 2).

    >>> import distnn as nn, distnn.solvers as S
    >>> w = nn.Variable.from_numpy_array([3.0, 4.0], need_grad=True)
    >>> solver = S.Lamb(eta=0.2)
    >>> solver.set_parameters({"w": w})
    >>> w.g = [0, 0.001]
    >>> solver.update()
    >>> w.d.tolist()
    [3.0, 3.0]
    """

    states = ("mean", "var")
    by_parameter = True
    direction = Assignments(
        "mean = beta1 * mean + (1 - beta1) * g\n"
        "var = beta2 * var + (1 - beta2) * g * g\n"
        "r = (mean / correction1) / (sqrt(var / correction2) + eps) + decay * w",
        ("w", "g", "mean", "var", "r"),
        ("beta1", "beta2", "correction1", "correction2", "eps", "decay"),
    )
    rule = Assignments("w = w - rate * r", ("w", "r"), ("rate",))

    def __init__(
        self,
        eta: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        gamma_l: float = 0.0,
        gamma_u: float = 10.0,
        eps: float = 1e-6,
        bias_correction: bool = False,
    ) -> None:
        super().__init__(
            eta,
            fused_decay=0.0,
            eta=eta,
            beta1=beta1,
            beta2=beta2,
            gamma_l=gamma_l,
            gamma_u=gamma_u,
            eps=eps,
            bias_correction=bias_correction,
        )
        if not 0 <= gamma_l <= gamma_u:
            raise ArgumentError(
                f"[Lamb] gamma_l is {gamma_l} and gamma_u {gamma_u}; pass 0 <= gamma_l <= gamma_u"
            )

    def step(self, pieces: Sequence[Piece]) -> None:
        parameters = [piece.arrays[0] for piece in pieces]
        directions = [backend_of(w).empty(w.shape, w.dtype) for w in parameters]
        run(
            self.direction,
            [
                ([*piece.arrays, r], self._numbers(piece.t))
                for piece, r in zip(pieces, directions, strict=True)
            ],
        )
        found = _norms(parameters, directions)
        run(
            self.rule,
            [
                ((w, r), (self._rate(*norms),))
                for w, r, norms in zip(parameters, directions, found, strict=True)
            ],
        )

    def _numbers(self, t: int) -> list[float]:
        beta1, beta2 = self.info["beta1"], self.info["beta2"]
        corrections = [1 - beta1**t, 1 - beta2**t] if self.info["bias_correction"] else [1.0, 1.0]
        return [beta1, beta2, *corrections, self.info["eps"], self._decay]

    def _rate(self, w_norm: float, r_norm: float) -> float:
        if r_norm <= self.info["eps"]:
            return self._learning_rate
        length = min(max(w_norm, self.info["gamma_l"]), self.info["gamma_u"])
        return self._learning_rate * length / r_norm
