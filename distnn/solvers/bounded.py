"""Adam and AMSGRAD between bounds that close in on one learning rate: Adam becomes descent."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import ArgumentError
from ..formula import Assignments
from .adam import bias_correction
from .elementwise import ElementwiseSolver


class _Bounded(ElementwiseSolver):
    """What both have: numbers of the rule, of which the bounds depend on the step."""

    def __init__(self, alpha: float, gamma: float, **info: float) -> None:
        super().__init__(alpha, alpha=alpha, gamma=gamma, **info)
        if not gamma > 0:
            raise ArgumentError(f"[{self.name}] gamma is {gamma}; pass a positive number")

    def numbers(self, t: int) -> Mapping[str, float]:
        beta1, beta2, gamma = (self.info[name] for name in ("beta1", "beta2", "gamma"))
        correction = bias_correction(beta1, beta2, t) if self.info.get("bias_correction", 1) else 1
        final = self._schedule() * self.info["final_lr"]
        return {
            "rate": self._learning_rate * correction,
            "lower": final * (1 - 1 / (gamma * t + 1)),
            "upper": final * (1 + 1 / (gamma * t)),
        }


class AdaBound(_Bounded):
    """Adam, each element's learning rate clipped by bounds that meet at `final_lr`.

    mean = beta1 mean + (1 - beta1) g
    var = beta2 var + (1 - beta2) g g
    w = w - clip(alpha c / (sqrt(var) + eps), lower, upper) mean

    with c = sqrt(1 - beta2^t) / (1 - beta1^t), lower = f (1 - 1 / (gamma t + 1)) and
    upper = f (1 + 1 / (gamma t)); f is final_lr times what a schedule has made of alpha.

    Args:
        alpha: learning rate, per step.
        beta1, beta2: weights of the old averages.
        eps: keeps the quotient finite.
        final_lr: learning rate at the end, that of plain descent.
        gamma: how fast the bounds close in, positive.

    Luo, Xiong, Liu & Sun, arXiv:1902.09843 (algorithm 2).

    >>> import distnn.solvers as S
    >>> S.AdaBound(final_lr=0.05).info["final_lr"]
    0.05
    """

    states = ("mean", "var")
    rule = Assignments(
        "mean = beta1 * mean + (1 - beta1) * g\n"
        "var = beta2 * var + (1 - beta2) * g * g\n"
        "w = w - minimum(maximum(rate / (sqrt(var) + eps), lower), upper) * mean",
        ("w", "g", "mean", "var"),
        ("beta1", "beta2", "eps", "rate", "lower", "upper"),
    )

    def __init__(
        self,
        alpha: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        final_lr: float = 0.1,
        gamma: float = 0.001,
    ) -> None:
        super().__init__(alpha, gamma, beta1=beta1, beta2=beta2, eps=eps, final_lr=final_lr)


class AMSBound(_Bounded):
    """AMSGRAD, each element's learning rate clipped by bounds that meet at `final_lr`.

    m = beta1 m + (1 - beta1) g
    v = beta2 v + (1 - beta2) g g
    v_hat = max(v_hat, v)
    w = w - clip(alpha c / (sqrt(v_hat) + eps), lower, upper) m

    The bounds are AdaBound's, which are those of the paper and of NNabla's documentation; NNabla's
    CPU code has 1 + t / gamma in the upper one, by the precedence of / and *.

    Args:
        alpha: learning rate, per step.
        beta1, beta2: weights of the old averages.
        eps: keeps the quotient finite.
        final_lr: learning rate at the end, that of plain descent.
        gamma: how fast the bounds close in, positive.
        bias_correction: c is sqrt(1 - beta2^t) / (1 - beta1^t), else 1.

    Luo, Xiong, Liu & Sun, arXiv:1902.09843 (algorithm 3).

    >>> import distnn.solvers as S
    >>> S.AMSBound().states
    ('m', 'v', 'v_hat')
    """

    states = ("m", "v", "v_hat")
    rule = Assignments(
        "m = beta1 * m + (1 - beta1) * g\n"
        "v = beta2 * v + (1 - beta2) * g * g\n"
        "v_hat = maximum(v_hat, v)\n"
        "w = w - minimum(maximum(rate / (sqrt(v_hat) + eps), lower), upper) * m",
        ("w", "g", "m", "v", "v_hat"),
        ("beta1", "beta2", "eps", "rate", "lower", "upper"),
    )

    def __init__(
        self,
        alpha: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        final_lr: float = 0.1,
        gamma: float = 0.001,
        bias_correction: bool = False,
    ) -> None:
        super().__init__(
            alpha,
            gamma,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            final_lr=final_lr,
            bias_correction=bias_correction,
        )
