"""Twin: what carries out a function on a GPU in place of its NumPy text.

A function names its twin: `cuda = "pooling.MaxPooling"` is the class MaxPooling in
`distnn/cuda/pooling.py`. A twin has `forward` and, where the function has it, `backward`, with the
signatures that the function's own have; its gradient rules stay the function's. Functions
without a twin run their own text on CuPy arrays, by the `xp` they are handed.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

from ..function import Function


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


def twin_class(function: Function | type[Function]) -> type[Twin] | None:
    """The class that a function names as its twin; None if it names none."""
    if not function.cuda:
        return None
    module, _, name = function.cuda.rpartition(".")
    return getattr(importlib.import_module(f"{__package__}.{module}"), name)


def implementation(function: Function) -> Any:
    """What carries out `function` on a GPU: its twin, or the function itself."""
    try:
        return _implementation(function)
    except TypeError:  # attributes that cannot be hashed
        return _made(function)


def _made(function: Function) -> Any:
    twin = twin_class(function)
    return function if twin is None else twin(function)


@functools.lru_cache(maxsize=4096)
def _implementation(function: Function) -> Any:
    function.key()  # raises TypeError for a function that cannot be remembered
    return _made(function)
