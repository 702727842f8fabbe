"""Gradient descent, plain and with momentum. w is the parameter, g its gradient."""

from __future__ import annotations

from collections.abc import Mapping

from ..formula import Assignments
from .elementwise import ElementwiseSolver


class Sgd(ElementwiseSolver):
    """Stochastic gradient descent: w = w - lr g.

    Args:
        lr: learning rate, per step.

    >>> import distnn.solvers as S
    >>> S.Sgd(0.1).learning_rate()
    0.1
    """

    rule = Assignments("w = w - rate * g", ("w", "g"), ("rate",))

    def __init__(self, lr: float = 1e-3) -> None:
        super().__init__(lr, lr=lr)


class Momentum(ElementwiseSolver):
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
    rule = Assignments(
        "m = momentum * m + rate * g\nw = w - m", ("w", "g", "m"), ("rate", "momentum")
    )

    def __init__(self, lr: float = 1e-3, momentum: float = 0.9) -> None:
        super().__init__(lr, lr=lr, momentum=momentum)


class Nesterov(ElementwiseSolver):
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
        "new = momentum * m - rate * g\nw = w - momentum * m + (1 + momentum) * new\nm = new",
        ("w", "g", "m"),
        ("rate", "momentum"),
    )

    def __init__(self, lr: float = 1e-3, momentum: float = 0.9) -> None:
        super().__init__(lr, lr=lr, momentum=momentum)


class SgdW(ElementwiseSolver):
    """Gradient descent with momentum and decoupled weight decay.

    m = momentum m + lr g,  w = w - m - (lr / lr_0) wd w, where w on the right is that before the
    step and lr_0 the learning rate given here: the decay follows the schedule, not the learning
    rate itself. `weight_decay(rate)` takes the place of wd in the next update.

    Args:
        lr: learning rate, per step.
        momentum: weight of the old momentum.
        wd: weight decay, per step.

    Loshchilov & Hutter, arXiv:1711.05101 (algorithm 1).

    >>> import distnn.solvers as S
    >>> S.SgdW(0.1).weight_decay_is_fused()
    True
    """

    states = ("m",)
    rule = Assignments(
        "m = momentum * m + rate * g\nw = w - m - shrink * w",
        ("w", "g", "m"),
        ("rate", "momentum", "shrink"),
    )

    def __init__(self, lr: float = 1e-3, momentum: float = 0.9, wd: float = 1e-4) -> None:
        super().__init__(lr, fused_decay=wd, lr=lr, momentum=momentum, wd=wd)

    def numbers(self, t: int) -> Mapping[str, float]:
        return {"rate": self._learning_rate, "shrink": self._schedule() * self._decay}


class Lion(ElementwiseSolver):
    """Lion: every element moves by the learning rate, in the direction of the momentum's sign.

    u = sign(beta1 m + (1 - beta1) g)
    m = beta2 m + (1 - beta2) g
    w = w - lr (u + wd w)

    wd is what `weight_decay(wd)` was given since the last update, else 0; w on the right is that
    before the step.

    Args:
        lr: learning rate, per step; a third to a tenth of Adam's.
        beta1: weight of the momentum in the direction.
        beta2: weight of the old momentum.

    Chen et al., arXiv:2302.06675 (algorithm 2).

    >>> import distnn as nn, distnn.solvers as S
    >>> w = nn.Variable.from_numpy_array([1.0, 2.0], need_grad=True)
    >>> solver = S.Lion(0.5)
    >>> solver.set_parameters({"w": w})
    >>> w.g = [0.001, -1000]
    >>> solver.update()
    >>> w.d.tolist()
    [0.5, 2.5]
    """

    states = ("m",)
    rule = Assignments(
        "u = sign(beta1 * m + (1 - beta1) * g)\n"
        "m = beta2 * m + (1 - beta2) * g\n"
        "w = w - rate * (u + decay * w)",
        ("w", "g", "m"),
        ("beta1", "beta2", "rate", "decay"),
    )

    def __init__(self, lr: float = 1e-4, beta1: float = 0.9, beta2: float = 0.99) -> None:
        super().__init__(lr, fused_decay=0.0, lr=lr, beta1=beta1, beta2=beta2)

    def numbers(self, t: int) -> Mapping[str, float]:
        return {"rate": self._learning_rate, "decay": self._decay}
