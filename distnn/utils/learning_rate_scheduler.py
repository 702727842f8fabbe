"""Learning rates by iteration, under NNabla's names.

A scheduler keeps no state: it computes, and the loop hands the result to the solver.

>>> import distnn.solvers as S
>>> solver = S.Momentum(0.1)
>>> scheduler = LinearWarmupScheduler(CosineScheduler(0.1, max_iter=1000), warmup_iter=10)
>>> for i in range(5):
...     solver.set_learning_rate(scheduler.get_learning_rate(i))
>>> round(solver.learning_rate(), 4)
0.05
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..errors import ArgumentError


class BaseLearningRateScheduler:
    """Base of schedulers; one of your own overrides `get_learning_rate`.

    >>> class InverseSquareRoot(BaseLearningRateScheduler):
    ...     def get_learning_rate(self, iter):
    ...         return 0.1 / (iter + 1) ** 0.5
    >>> InverseSquareRoot().get_learning_rate(3)
    0.05
    """

    def get_learning_rate(self, iter: int) -> float:
        """The learning rate of iteration `iter`, from 0 on."""
        raise NotImplementedError

    def _check(self, name: str, value: float, least: float) -> None:
        if not value >= least:
            raise ArgumentError(f"[{type(self).__name__}] {name} is {value}; pass {least} or more")


class PolynomialScheduler(BaseLearningRateScheduler):
    """init_lr max(0, 1 - iter / max_iter)^power.

    Args:
        init_lr: the learning rate of iteration 0.
        max_iter: the iteration at which it is 0.
        power: 1 falls along a line, more falls faster at first, 0 not at all.
    Raises: ArgumentError for a negative init_lr, power or iter, or a max_iter below 1.

    >>> PolynomialScheduler(0.1, max_iter=100, power=2).get_learning_rate(50)
    0.025
    """

    def __init__(self, init_lr: float, max_iter: int, power: float) -> None:
        self._check("init_lr", init_lr, 0)
        self._check("max_iter", max_iter, 1)
        self._check("power", power, 0)
        self.init_lr = init_lr
        self.max_iter = max_iter
        self.power = power

    def get_learning_rate(self, iter: int) -> float:
        self._check("iter", iter, 0)
        return self.init_lr * max(0.0, 1 - iter / self.max_iter) ** self.power


class CosineScheduler(BaseLearningRateScheduler):
    """init_lr (1 + cos(pi iter / max_iter)) / 2; after max_iter it rises again.

    Args:
        init_lr: the learning rate of iteration 0.
        max_iter: the iteration at which it is 0.
    Raises: ArgumentError for a negative init_lr or iter, or a max_iter below 1.

    Loshchilov & Hutter, arXiv:1608.03983 (equation 5, without restarts).

    >>> CosineScheduler(0.1, max_iter=100).get_learning_rate(50)
    0.05
    """

    def __init__(self, init_lr: float, max_iter: int) -> None:
        self._check("init_lr", init_lr, 0)
        self._check("max_iter", max_iter, 1)
        self.init_lr = init_lr
        self.max_iter = max_iter

    def get_learning_rate(self, iter: int) -> float:
        self._check("iter", iter, 0)
        return self.init_lr * ((math.cos(math.pi * iter / self.max_iter) + 1) * 0.5)


class ExponentialScheduler(BaseLearningRateScheduler):
    """init_lr gamma^floor(iter / iter_interval).

    Args:
        init_lr: the learning rate of iteration 0.
        gamma: what it is multiplied by.
        iter_interval: after how many iterations, again and again.
    Raises: ArgumentError for a negative init_lr, gamma or iter, or an iter_interval below 1.

    >>> scheduler = ExponentialScheduler(0.1, gamma=0.5, iter_interval=10)
    >>> [scheduler.get_learning_rate(i) for i in (9, 10, 25)]
    [0.1, 0.05, 0.025]
    """

    def __init__(self, init_lr: float, gamma: float, iter_interval: int = 1) -> None:
        self._check("init_lr", init_lr, 0)
        self._check("gamma", gamma, 0)
        self._check("iter_interval", iter_interval, 1)
        self.init_lr = init_lr
        self.gamma = gamma
        self.iter_interval = iter_interval

    def get_learning_rate(self, iter: int) -> float:
        self._check("iter", iter, 0)
        return self.init_lr * self.gamma ** (iter // self.iter_interval)


class StepScheduler(BaseLearningRateScheduler):
    """init_lr gamma^(number of iter_steps that are not after iter).

    Args:
        init_lr: the learning rate of iteration 0.
        gamma: what it is multiplied by.
        iter_steps: at which iterations.
    Raises: ArgumentError for a negative init_lr, gamma or iter, or iter_steps that is no list.

    >>> scheduler = StepScheduler(0.5, gamma=0.5, iter_steps=[150, 300])
    >>> [scheduler.get_learning_rate(i) for i in (149, 150, 300)]
    [0.5, 0.25, 0.125]
    """

    def __init__(self, init_lr: float, gamma: float, iter_steps: Iterable[int]) -> None:
        self._check("init_lr", init_lr, 0)
        self._check("gamma", gamma, 0)
        if not isinstance(iter_steps, Iterable):
            raise ArgumentError(
                f"[StepScheduler] iter_steps is {iter_steps!r}; pass a list of iterations"
            )
        self.init_lr = init_lr
        self.gamma = gamma
        self.iter_steps = list(iter_steps)

    def get_learning_rate(self, iter: int) -> float:
        self._check("iter", iter, 0)
        return self.init_lr * self.gamma ** sum(iter >= step for step in self.iter_steps)


class LinearWarmupScheduler(BaseLearningRateScheduler):
    """The learning rate of another scheduler, times (iter + 1) / warmup_iter in the beginning.

    Args:
        scheduler: the other one; it sees the same iterations, those of the warm-up included.
        warmup_iter: how many iterations the warm-up takes; 0 for none.
    Raises: ArgumentError for a scheduler that is none, or a negative warmup_iter or iter.

    Goyal et al., arXiv:1706.02677 (section 2.2).

    >>> scheduler = LinearWarmupScheduler(StepScheduler(0.1, 0.1, [100]), warmup_iter=4)
    >>> [scheduler.get_learning_rate(i) for i in (0, 1, 3, 4)]
    [0.025, 0.05, 0.1, 0.1]
    """

    def __init__(self, scheduler: BaseLearningRateScheduler, warmup_iter: int) -> None:
        if not hasattr(scheduler, "get_learning_rate"):
            raise ArgumentError(
                f"[LinearWarmupScheduler] scheduler is {scheduler!r}; pass an object with "
                "get_learning_rate(iter), for example CosineScheduler(0.1, 1000)"
            )
        self._check("warmup_iter", warmup_iter, 0)
        self.scheduler = scheduler
        self.warmup_iter = warmup_iter

    def get_learning_rate(self, iter: int) -> float:
        self._check("iter", iter, 0)
        rate = self.scheduler.get_learning_rate(iter)
        return rate * (iter + 1) / self.warmup_iter if iter < self.warmup_iter else rate
