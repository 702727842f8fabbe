"""AdaBelief: Adam over how far gradients are from what their average predicted."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..formula import Assignments
from .elementwise import ElementwiseSolver

# `plain`: without the quotient, where it is not to be trusted yet (rectify).
_RULE = Assignments(
    "mean = beta1 * mean + (1 - beta1) * g\n"
    "surprise = g - mean\n"
    "var = beta2 * var + (1 - beta2) * surprise * surprise + eps\n"
    "w = w - shrink * w - rate * where(plain, mean, mean / (sqrt(var) / correction + eps))",
    ("w", "g", "mean", "var"),
    ("beta1", "beta2", "eps", "shrink", "rate", "plain", "correction"),
)
_AMSGRAD_RULE = Assignments(
    "mean = beta1 * mean + (1 - beta1) * g\n"
    "surprise = g - mean\n"
    "var = beta2 * var + (1 - beta2) * surprise * surprise\n"
    "s_max = maximum(s_max, var) + eps\n"
    "w = w - shrink * w - rate * where(plain, mean, mean / (sqrt(s_max) / correction + eps))",
    ("w", "g", "mean", "var", "s_max"),
    ("beta1", "beta2", "eps", "shrink", "rate", "plain", "correction"),
)


class AdaBelief(ElementwiseSolver):
    """AdaBelief: long steps where the gradient is what was expected, short ones where it is not.

    mean = beta1 mean + (1 - beta1) g
    var = beta2 var + (1 - beta2) (g - mean)^2 + eps
    w = w - alpha / (1 - beta1^t) mean / (sqrt(var / (1 - beta2^t)) + eps)

    Args:
        alpha: learning rate, per step.
        beta1, beta2: weights of the old averages.
        eps: keeps the quotient finite.
        wd: weight decay, per step; without weight_decouple it is not used, as in NNabla: call
            `weight_decay`.
        amsgrad: over the largest var so far, `s_max = max(s_max, var) + eps`; eps then goes into
            that instead of var.
        weight_decouple: w = w - alpha wd w before the step; `weight_decay(rate)` takes the place
            of wd in the next update.
        fixed_decay: w = w - wd w instead, whatever the learning rate.
        rectify: as RAdam (arXiv:1908.03265), multiply the step by sqrt(((rho - 4) (rho - 2) R) /
            ((R - 4) (R - 2) rho)), R = 2 / (1 - beta2) - 1, rho = R - 2 t beta2^t / (1 - beta2^t);
            while rho is 4 or less, w = w - alpha mean.

    Zhuang et al., arXiv:2010.07468.

    >>> import distnn.solvers as S
    >>> S.AdaBelief(amsgrad=True).states
    ('mean', 'var', 's_max')
    """

    states: tuple[str, ...] = ("mean", "var")
    rule = _RULE

    def __init__(
        self,
        alpha: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        wd: float = 0.0,
        amsgrad: bool = False,
        weight_decouple: bool = False,
        fixed_decay: bool = False,
        rectify: bool = False,
    ) -> None:
        super().__init__(
            alpha,
            fused_decay=wd if weight_decouple else None,
            alpha=alpha,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            wd=wd,
            amsgrad=amsgrad,
            weight_decouple=weight_decouple,
            fixed_decay=fixed_decay,
            rectify=rectify,
        )
        if amsgrad:
            self.states = ("mean", "var", "s_max")
            self.rule = _AMSGRAD_RULE

    def numbers(self, t: int) -> Mapping[str, float]:
        beta1, beta2 = self.info["beta1"], self.info["beta2"]
        factor = _rectification(beta2, t) if self.info["rectify"] else 1.0
        step = 1.0 if factor is None else factor / (1 - beta1**t)
        return {
            "shrink": self._decay * (1 if self.info["fixed_decay"] else self._learning_rate),
            "rate": self._learning_rate * step,
            "plain": factor is None,
            "correction": math.sqrt(1 - beta2**t),
        }


def _rectification(beta2: float, t: int) -> float | None:
    """RAdam's factor of the step; None where var is of too few gradients."""
    limit = 2 / (1 - beta2) - 1
    rho = limit - 2 * t * beta2**t / (1 - beta2**t)
    if rho <= 4:
        return None
    return math.sqrt((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho))
