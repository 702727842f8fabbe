"""Learning-rate schedulers against values worked out by hand."""

from __future__ import annotations

import inspect

import pytest

from distnn.errors import ArgumentError
from distnn.utils import learning_rate_scheduler as L

STEP = L.StepScheduler(1.0, 0.1, [3, 5])


class Constant(L.BaseLearningRateScheduler):
    def get_learning_rate(self, iter):
        return 6.0


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (L.PolynomialScheduler(8.0, 4, 1), {0: 8, 1: 6, 3: 2, 4: 0, 5: 0}),
        (L.PolynomialScheduler(16.0, 4, 2), {0: 16, 1: 9, 2: 4, 3: 1, 4: 0, 9: 0}),
        (L.PolynomialScheduler(6.0, 4, 0.5), {0: 6, 3: 3, 4: 0, 5: 0}),
        (L.PolynomialScheduler(6.0, 4, 0), {0: 6, 3: 6, 4: 6}),
        (L.CosineScheduler(4.0, 6), {0: 4, 2: 3, 3: 2, 4: 1, 6: 0, 9: 2, 12: 4}),
        (L.ExponentialScheduler(8.0, 0.5), {0: 8, 1: 4, 2: 2, 3: 1}),
        (L.ExponentialScheduler(8.0, 0.5, 3), {0: 8, 2: 8, 3: 4, 5: 4, 6: 2}),
        (STEP, {0: 1, 2: 1, 3: 0.1, 4: 0.1, 5: 0.01, 100: 0.01}),
        (L.StepScheduler(1.0, 0.1, []), {0: 1, 100: 1}),
        (L.LinearWarmupScheduler(STEP, 4), {0: 0.25, 2: 0.75, 3: 0.1, 4: 0.1, 5: 0.01}),
        (L.LinearWarmupScheduler(Constant(), 3), {0: 2, 1: 4, 2: 6, 3: 6}),
        (L.LinearWarmupScheduler(Constant(), 0), {0: 6}),
        (
            L.LinearWarmupScheduler(L.LinearWarmupScheduler(Constant(), 2), 3),
            {0: 1, 1: 4, 2: 6},
        ),
    ],
)
def test_learning_rates_are_those_worked_out_by_hand(scheduler, expected):
    found = {i: scheduler.get_learning_rate(i) for i in expected}
    assert found == pytest.approx(expected, abs=1e-12)
    assert all(isinstance(rate, float) for rate in found.values())


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: L.PolynomialScheduler(-1, 10, 1), r"\[PolynomialScheduler\] init_lr is -1; pass"),
        (lambda: L.PolynomialScheduler(1, 0, 1), "max_iter is 0; pass 1 or more"),
        (lambda: L.PolynomialScheduler(1, 10, -1), "power is -1; pass 0 or more"),
        (lambda: L.CosineScheduler(float("nan"), 10), r"\[CosineScheduler\] init_lr is nan"),
        (lambda: L.CosineScheduler(1, 0), "max_iter is 0"),
        (lambda: L.ExponentialScheduler(1, -0.1), "gamma is -0.1"),
        (lambda: L.ExponentialScheduler(-1, 0.1), "init_lr is -1"),
        (lambda: L.ExponentialScheduler(1, 0.1, 0), "iter_interval is 0; pass 1 or more"),
        (lambda: L.StepScheduler(1, 0.1, 100), "iter_steps is 100; pass a list of iterations"),
        (lambda: L.StepScheduler(1, -1, [1]), "gamma is -1"),
        (lambda: L.StepScheduler(-1, 1, [1]), "init_lr is -1"),
        (lambda: L.LinearWarmupScheduler(0.1, 10), "scheduler is 0.1; pass an object with"),
        (lambda: L.LinearWarmupScheduler(STEP, -1), "warmup_iter is -1; pass 0 or more"),
        (lambda: L.PolynomialScheduler(1, 10, 1).get_learning_rate(-1), "iter is -1"),
        (lambda: L.CosineScheduler(1, 10).get_learning_rate(-1), "iter is -1"),
        (lambda: L.ExponentialScheduler(1, 1).get_learning_rate(-1), "iter is -1"),
        (lambda: STEP.get_learning_rate(-1), r"\[StepScheduler\] iter is -1; pass 0 or more"),
        (lambda: L.LinearWarmupScheduler(STEP, 2).get_learning_rate(-1), "iter is -1"),
    ],
)
def test_bad_arguments_are_named(make, match):
    with pytest.raises(ArgumentError, match=match):
        make()


def test_the_base_asks_for_an_implementation():
    with pytest.raises(NotImplementedError):
        L.BaseLearningRateScheduler().get_learning_rate(0)


@pytest.mark.parametrize(
    ("scheduler", "wanted"),
    [
        (L.PolynomialScheduler, "init_lr, max_iter, power"),
        (L.CosineScheduler, "init_lr, max_iter"),
        (L.ExponentialScheduler, "init_lr, gamma, iter_interval=1"),
        (L.StepScheduler, "init_lr, gamma, iter_steps"),
        (L.LinearWarmupScheduler, "scheduler, warmup_iter"),
    ],
)
def test_arguments_are_those_of_nnabla(scheduler, wanted):
    parameters = inspect.signature(scheduler).parameters.values()
    found = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
    assert ", ".join(found) == wanted
