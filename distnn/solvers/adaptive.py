"""Gradient descent with a learning rate for each element, from its squared gradients so far."""

from __future__ import annotations

from ..formula import Assignments
from .elementwise import ElementwiseSolver


class Adagrad(ElementwiseSolver):
    """Adagrad: v = v + g g, w = w - lr g / (sqrt(v) + eps).

    Args:
        lr: learning rate, per step.
        eps: keeps the quotient finite.

    Duchi, Hazan & Singer, Journal of Machine Learning Research 12, 2011.

    >>> import distnn.solvers as S
    >>> S.Adagrad().info
    {'lr': 0.01, 'eps': 1e-08}
    """

    states = ("v",)
    rule = Assignments(
        "v = v + g * g\nw = w - rate * g / (sqrt(v) + eps)", ("w", "g", "v"), ("rate", "eps")
    )

    def __init__(self, lr: float = 1e-2, eps: float = 1e-8) -> None:
        super().__init__(lr, lr=lr, eps=eps)


class Adadelta(ElementwiseSolver):
    """Adadelta: steps of the size of earlier steps, so that units agree without a learning rate.

    e_sqr_grad = decay e_sqr_grad + (1 - decay) g g
    delta = sqrt((e_sqr_delta + eps) / (e_sqr_grad + eps)) g
    e_sqr_delta = decay e_sqr_delta + (1 - decay) delta delta
    w = w - lr delta

    Args:
        lr: learning rate, per step.
        decay: weight of the old averages.
        eps: keeps the quotient finite, and makes the first steps.

    Zeiler, arXiv:1212.5701 (algorithm 1).

    >>> import distnn.solvers as S
    >>> S.Adadelta().states
    ('e_sqr_grad', 'e_sqr_delta')
    """

    states = ("e_sqr_grad", "e_sqr_delta")
    rule = Assignments(
        "e_sqr_grad = decay * e_sqr_grad + (1 - decay) * g * g\n"
        "delta = sqrt((e_sqr_delta + eps) / (e_sqr_grad + eps)) * g\n"
        "e_sqr_delta = decay * e_sqr_delta + (1 - decay) * delta * delta\n"
        "w = w - rate * delta",
        ("w", "g", "e_sqr_grad", "e_sqr_delta"),
        ("rate", "decay", "eps"),
    )

    def __init__(self, lr: float = 1.0, decay: float = 0.95, eps: float = 1e-6) -> None:
        super().__init__(lr, lr=lr, decay=decay, eps=eps)


class RMSprop(ElementwiseSolver):
    """RMSprop: v = decay v + (1 - decay) g g, w = w - lr g / (sqrt(v) + eps).

    Args:
        lr: learning rate, per step.
        decay: weight of the old average.
        eps: keeps the quotient finite.

    Tieleman & Hinton, "Neural networks for machine learning", lecture 6.5, 2012.

    >>> import distnn.solvers as S
    >>> S.RMSprop(decay=0.99).info["decay"]
    0.99
    """

    states = ("v",)
    rule = Assignments(
        "v = decay * v + (1 - decay) * g * g\nw = w - rate * g / (sqrt(v) + eps)",
        ("w", "g", "v"),
        ("rate", "decay", "eps"),
    )

    def __init__(self, lr: float = 1e-3, decay: float = 0.9, eps: float = 1e-8) -> None:
        super().__init__(lr, lr=lr, decay=decay, eps=eps)


class RMSpropGraves(ElementwiseSolver):
    """RMSprop over the variance of the gradient instead of its square, with momentum.

    n = decay n + (1 - decay) grad grad
    g = decay g + (1 - decay) grad
    d = momentum d - lr grad / sqrt(n - g g + eps)
    w = w + d

    Args:
        lr: learning rate, per step.
        decay: weight of the old averages.
        momentum: weight of the old step.
        eps: keeps the quotient finite.

    Graves, arXiv:1308.0850 (equations 38 to 45).

    >>> import distnn.solvers as S
    >>> S.RMSpropGraves().states
    ('n', 'g', 'd')
    """

    states = ("n", "g", "d")
    rule = Assignments(
        "n = decay * n + (1 - decay) * grad * grad\n"
        "g = decay * g + (1 - decay) * grad\n"
        "d = momentum * d - rate * grad / sqrt(n - g * g + eps)\n"
        "w = w + d",
        ("w", "grad", "n", "g", "d"),
        ("rate", "decay", "momentum", "eps"),
    )

    def __init__(
        self, lr: float = 1e-4, decay: float = 0.95, momentum: float = 0.9, eps: float = 1e-4
    ) -> None:
        super().__init__(lr, lr=lr, decay=decay, momentum=momentum, eps=eps)
