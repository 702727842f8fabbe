"""Twin: what carries out a function in place of its own text, on a GPU or by compiled CPU kernels.

A function names its twins: `cuda = "pooling.MaxPooling"` is the class MaxPooling in
`distnn/cuda/pooling.py`, `cpu = ...` one in `distnn/cpu`. A twin has `forward` and, where the
function has it, `backward`, with the signatures that the function's own have; its gradient rules
stay the function's. Functions without a twin run their own text, by the `xp` they are handed.
"""

from __future__ import annotations

import importlib
from typing import Any

from .function import Function


class Twin:
    """Base of all twins; `function` is the declared function, with its attributes."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def scratch(self, *specs: Any) -> int:
        """Bytes of scratch memory that forward and backward want from the engine."""
        return 0

    @property
    def name(self) -> str:
        """The name that error messages use."""
        return self.function.name


def twin_class(function: Function | type[Function], room: str) -> type[Any] | None:
    """The class that a function names as its twin in a room, "cuda" or "cpu"; None without one."""
    path = getattr(function, room)
    if not path:
        return None
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(f"{__package__}.{room}.{module}"), name)
