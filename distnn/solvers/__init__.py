"""Solvers `S.*`: update rules over a network's parameters."""

from .adabelief import AdaBelief
from .adam import AMSGRAD, Adam, Adamax, AdamW
from .adaptive import Adadelta, Adagrad, RMSprop, RMSpropGraves
from .bounded import AdaBound, AMSBound
from .descent import Lion, Momentum, Nesterov, Sgd, SgdW
from .layerwise import Lamb, Lars
from .solver import Solver, SolverState

__all__ = [
    "AMSGRAD",
    "AMSBound",
    "AdaBelief",
    "AdaBound",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lamb",
    "Lars",
    "Lion",
    "Momentum",
    "Nesterov",
    "RMSprop",
    "RMSpropGraves",
    "Sgd",
    "SgdW",
    "Solver",
    "SolverState",
]
