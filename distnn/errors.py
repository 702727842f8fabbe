"""Errors: each says which function and argument, both values, and what mends it.

Messages begin with the function in brackets, `[affine] w expects ...`; where several ranks run,
with the rank before that, so that a log of a thousand processes can be read.
"""

from __future__ import annotations

import sys


def calling_line() -> tuple[str, int] | None:
    """Where the user called, file and line: the first on the stack that is not in this package."""
    package = __name__.partition(".")[0] + "."
    frame = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(package):
        frame = frame.f_back  # type: ignore[assignment]
    return None if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def rank_prefix() -> str:
    """What messages begin with: the rank where there are several, else nothing."""
    from .context import current_world

    communicator = current_world().communicator
    if communicator is None or communicator.size == 1:
        return ""
    return f"rank {communicator.rank}: "


class DistnnError(Exception):
    """Base of all errors that distnn raises on purpose."""

    def __init__(self, message: str) -> None:
        super().__init__(rank_prefix() + message)


class ArgumentError(DistnnError, ValueError):
    """An argument has a value that the function cannot take."""


class ShapeError(ArgumentError):
    """The shapes of the arguments do not fit each other."""


class DtypeError(DistnnError, TypeError):
    """An argument has a type, or an array a dtype, that the function cannot take."""


class LabelError(DistnnError, IndexError):
    """A label or an index lies outside its range."""


class GraphError(DistnnError, RuntimeError):
    """The graph cannot do what was asked of it in its present state."""


class ClearedError(GraphError):
    """The data were freed before somebody wanted to read them."""


class ParameterError(DistnnError, ValueError):
    """A parameter, a scope or a parameter file does not fit."""


class SolverError(DistnnError, ValueError):
    """A solver's parameters or states do not fit."""


class CheckpointError(DistnnError, RuntimeError):
    """A checkpoint cannot be written, is damaged, or is of another network."""


class ContextError(DistnnError, RuntimeError):
    """The execution context cannot be used here."""


class CommunicatorError(DistnnError, RuntimeError):
    """Ranks disagree, are late or gone, or the communicator was set up wrongly."""


class DeadCommunicatorError(CommunicatorError):
    """A collective will never end: the communicator is of no use any more."""


class MissingExtraError(DistnnError, ImportError):
    """An optional package is missing; the message says which `pip install` brings it."""


class MemoryBudgetError(DistnnError, MemoryError):
    """A graph cannot be made to fit the memory budget; the message says what it needs."""


class DeviceMemoryError(DistnnError, MemoryError):
    """A device has too little free memory; the message says what takes it."""
