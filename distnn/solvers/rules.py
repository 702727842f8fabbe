"""The update rules. In a rule w is the parameter, g its gradient; names of states are NNabla's."""

from __future__ import annotations

import math

from ..formula import Assignments
from .solver import Solver, SolverHook


class Sgd(Solver):
    """Stochastic gradient descent: w = w - lr g.

    Args:
        lr: learning rate, per step.

    >>> import distnn.solvers as S
    >>> S.Sgd(0.1).learning_rate()
    0.1
    """

    rule = Assignments("w = w - lr * g", ("w", "g"), ("lr",))

    def __init__(self, lr: float = 1e-3) -> None:
        super().__init__(lr, lr=lr)

    def numbers(self, t: int) -> tuple[float, ...]:
        return (self._learning_rate,)


class Momentum(Solver):
    """Gradient descent with momentum: m = momentum m + lr g, w = w - m.

    Args:
        lr: learning rate, per step; a change affects new gradients only.
        momentum: weight of the old momentum.

    Qian, "On the momentum term in gradient descent learning algorithms", 1999.

    >>> import distnn.solvers as S
    >>> S.Momentum(0.1, 0.9).states
    ('m',)
    """

    states = ("m",)
    rule = Assignments("m = momentum * m + lr * g\nw = w - m", ("w", "g", "m"), ("lr", "momentum"))

    def __init__(self, lr: float = 1e-3, momentum: float = 0.9) -> None:
        super().__init__(lr, lr=lr, momentum=momentum)
        self._momentum = float(momentum)

    def numbers(self, t: int) -> tuple[float, ...]:
        return (self._learning_rate, self._momentum)


class Nesterov(Solver):
    """Nesterov's accelerated gradient.

    m' = momentum m - lr g,  w = w - momentum m + (1 + momentum) m'

    Args:
        lr: learning rate, per step.
        momentum: weight of the old momentum.

    Nesterov, Soviet Mathematics Doklady 27, 1983.

    >>> import distnn.solvers as S
    >>> S.Nesterov(0.1).info
    {'lr': 0.1, 'momentum': 0.9}
    """

    states = ("m",)
    rule = Assignments(
        "new = momentum * m - lr * g\nw = w - momentum * m + (1 + momentum) * new\nm = new",
        ("w", "g", "m"),
        ("lr", "momentum"),
    )

    def __init__(self, lr: float = 1e-3, momentum: float = 0.9) -> None:
        super().__init__(lr, lr=lr, momentum=momentum)
        self._momentum = float(momentum)

    def numbers(self, t: int) -> tuple[float, ...]:
        return (self._learning_rate, self._momentum)


class Adam(Solver):
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
        self._betas = (float(beta1), float(beta2), float(eps))

    def numbers(self, t: int) -> tuple[float, ...]:
        beta1, beta2, _ = self._betas
        correction = math.sqrt(1 - beta2**t) / (1 - beta1**t)
        return (*self._betas, self._learning_rate * correction)


class AdamW(Solver):
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
    fused_weight_decay = True
    rule = Assignments(
        "mean = beta1 * mean + (1 - beta1) * g\n"
        "var = beta2 * var + (1 - beta2) * g * g\n"
        "w = w - rate * mean / (sqrt(var) + eps) - decay * w",
        ("w", "g", "mean", "var"),
        ("beta1", "beta2", "eps", "rate", "decay"),
    )

    def __init__(
        self,
        alpha: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        wd: float = 1e-4,
    ) -> None:
        super().__init__(alpha, alpha=alpha, beta1=beta1, beta2=beta2, eps=eps, wd=wd)
        self._betas = (float(beta1), float(beta2), float(eps))
        self._first_rate = float(alpha)
        self._wd = float(wd)
        self._wd_once: float | None = None

    def _decay_once(self, rate: float) -> None:
        self._wd_once = rate

    def update(
        self, update_pre_hook: SolverHook = None, update_post_hook: SolverHook = None
    ) -> None:
        """As Solver.update; a rate given to `weight_decay` is used once."""
        super().update(update_pre_hook, update_post_hook)
        self._wd_once = None

    def numbers(self, t: int) -> tuple[float, ...]:
        beta1, beta2, _ = self._betas
        correction = math.sqrt(1 - beta2**t) / (1 - beta1**t)
        wd = self._wd if self._wd_once is None else self._wd_once
        relative = self._learning_rate / self._first_rate if self._first_rate else 1.0
        return (*self._betas, self._learning_rate * correction, relative * wd)
