"""Solvers `S.*`: update rules over a network's parameters."""

from .rules import Adam, AdamW, Momentum, Nesterov, Sgd
from .solver import Solver, SolverState

__all__ = ["Adam", "AdamW", "Momentum", "Nesterov", "Sgd", "Solver", "SolverState"]
