"""Adam and its relatives: averages of the gradient and of its size, and a quotient of the two.

The averages' bias is corrected in the learning rate, as NNabla does it, so that eps is not
bias-corrected, unlike PyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..formula import Assignments
from .elementwise import ElementwiseSolver


def bias_correction(beta1: float, beta2: float, t: int) -> float:
    """The factor of the learning rate for averages that began at zero t steps ago."""
    return math.sqrt(1 - beta2**t) / (1 - beta1**t)


class Adam(ElementwiseSolver):
    """Adam, as NNabla computes it: eps is not bias-corrected, unlike PyTorch's.

    mean = beta1 mean + (1 - beta1) g
    var = beta2 var + (1 - beta2) g g
    w = w - alpha sqrt(1 - beta2^t) / (1 - beta1^t) mean / (sqrt(var) + eps)

    Args:
        alpha: learning rate, per step.
        beta1, beta2: weights of the old averages.
        eps: keeps the quotient finite.

    Kingma & Ba, arXiv:1412.6980 (section 2, last paragraph, for this order of operations).

    >>> import distnn.solvers as S
    >>> S.Adam().learning_rate()
    0.001
    """

    states = ("mean", "var")
    rule = Assignments(
        "mean = beta1 * mean + (1 - beta1) * g\n"
        "var = beta2 * var + (1 - beta2) * g * g\n"
        "w = w - rate * mean / (sqrt(var) + eps)",
        ("w", "g", "mean", "var"),
        ("beta1", "beta2", "eps", "rate"),
    )

    def __init__(
        self, alpha: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        super().__init__(alpha, alpha=alpha, beta1=beta1, beta2=beta2, eps=eps)

    def numbers(self, t: int) -> Mapping[str, float]:
        correction = bias_correction(self.info["beta1"], self.info["beta2"], t)
        return {"rate": self._learning_rate * correction}


class AdamW(ElementwiseSolver):
    """Adam with decoupled weight decay, as NNabla computes it.

    As Adam, and w = w - (alpha / alpha_0) wd w with w before the step, where alpha_0 is the
    learning rate given here: the decay follows the schedule, not the learning rate itself.
    `weight_decay(rate)` takes the place of wd in the next update.

    Args:
        alpha: learning rate, per step.
        beta1, beta2: weights of the old averages.
        eps: keeps the quotient finite.
        wd: weight decay, per step.

    Loshchilov & Hutter, arXiv:1711.05101.

    >>> import distnn.solvers as S
    >>> S.AdamW().weight_decay_is_fused()
    True
    """

    states = ("mean", "var")
    rule = Assignments(
        "mean = beta1 * mean + (1 - beta1) * g\n"
        "var = beta2 * var + (1 - beta2) * g * g\n"
        "w = w - rate * mean / (sqrt(var) + eps) - shrink * w",
        ("w", "g", "mean", "var"),
        ("beta1", "beta2", "eps", "rate", "shrink"),
    )

    def __init__(
        self,
        alpha: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        wd: float = 1e-4,
    ) -> None:
        super().__init__(
            alpha, fused_decay=wd, alpha=alpha, beta1=beta1, beta2=beta2, eps=eps, wd=wd
        )

    def numbers(self, t: int) -> Mapping[str, float]:
        correction = bias_correction(self.info["beta1"], self.info["beta2"], t)
        return {
            "rate": self._learning_rate * correction,
            "shrink": self._schedule() * self._decay,
        }


class Adamax(ElementwiseSolver):
    """Adam over the largest gradient so far, slowly forgotten, in place of squares.

    m = beta1 m + (1 - beta1) g
    u = max(beta2 u, |g|)
    w = w - alpha / (1 - beta1^t) m / (u + eps)

    Args:
        alpha: learning rate, per step.
        beta1, beta2: weights of the old average and of the old maximum.
        eps: keeps the quotient finite.

    Kingma & Ba, arXiv:1412.6980 (section 7.1).

    >>> import distnn.solvers as S
    >>> S.Adamax().states
    ('m', 'u')
    """

    states = ("m", "u")
    rule = Assignments(
        "m = beta1 * m + (1 - beta1) * g\n"
        "u = maximum(beta2 * u, abs(g))\n"
        "w = w - rate * m / (u + eps)",
        ("w", "g", "m", "u"),
        ("beta1", "beta2", "eps", "rate"),
    )

    def __init__(
        self, alpha: float = 2e-3, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
    ) -> None:
        super().__init__(alpha, alpha=alpha, beta1=beta1, beta2=beta2, eps=eps)

    def numbers(self, t: int) -> Mapping[str, float]:
        return {"rate": self._learning_rate / (1 - self.info["beta1"] ** t)}


class AMSGRAD(ElementwiseSolver):
    """Adam over the largest average of squares so far, so that its steps only get shorter.

    m = beta1 m + (1 - beta1) g
    v = beta2 v + (1 - beta2) g g
    v_hat = max(v_hat, v)
    w = w - alpha c m / (sqrt(v_hat) + eps)

    Args:
        alpha: learning rate, per step.
        beta1, beta2: weights of the old averages.
        eps: keeps the quotient finite; not in the paper.
        bias_correction: c is sqrt(1 - beta2^t) / (1 - beta1^t), else 1 as in the paper.

    Reddi, Kale & Kumar, "On the convergence of Adam and beyond", ICLR 2018.

    >>> import distnn.solvers as S
    >>> S.AMSGRAD().states
    ('m', 'v', 'v_hat')
    """

    states = ("m", "v", "v_hat")
    rule = Assignments(
        "m = beta1 * m + (1 - beta1) * g\n"
        "v = beta2 * v + (1 - beta2) * g * g\n"
        "v_hat = maximum(v_hat, v)\n"
        "w = w - rate * m / (sqrt(v_hat) + eps)",
        ("w", "g", "m", "v", "v_hat"),
        ("beta1", "beta2", "eps", "rate"),
    )

    def __init__(
        self,
        alpha: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        bias_correction: bool = False,
    ) -> None:
        super().__init__(
            alpha, alpha=alpha, beta1=beta1, beta2=beta2, eps=eps, bias_correction=bias_correction
        )

    def numbers(self, t: int) -> Mapping[str, float]:
        correct = self.info["bias_correction"]
        correction = bias_correction(self.info["beta1"], self.info["beta2"], t) if correct else 1
        return {"rate": self._learning_rate * correction}
