"""Solvers whose update of an element depends on that element alone: one formula, run over runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..formula import Assignments
from .jobs import run
from .solver import Piece, Solver


class ElementwiseSolver(Solver):
    """Base of solvers that are a rule over w (parameter), g (gradient) and the states, in order.

    Numbers of the rule are the settings in `info` and what `numbers(t)` adds to them.
    """

    rule: Assignments

    def numbers(self, t: int) -> Mapping[str, float]:
        """Numbers of the rule at step t, from 1 on, by name."""
        return {"rate": self._learning_rate}

    def step(self, pieces: Sequence[Piece]) -> None:
        jobs = []
        for arrays, t in pieces:
            numbers = {**self.info, **self.numbers(t)}
            jobs.append((arrays, [numbers[name] for name in self.rule.numbers]))
        run(self.rule, jobs)
