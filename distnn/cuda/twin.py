"""What carries out a function on a GPU, made once for equal functions."""

from __future__ import annotations

import functools
from typing import Any

from ..function import Function
from ..twin import twin_class


def implementation(function: Function) -> Any:
    """What carries out `function` on a GPU: its twin, or the function itself."""
    try:
        return _implementation(function)
    except TypeError:  # attributes that cannot be hashed
        return _made(function)


def _made(function: Function) -> Any:
    twin = twin_class(function, "cuda")
    return function if twin is None else twin(function)


@functools.lru_cache(maxsize=4096)
def _implementation(function: Function) -> Any:
    function.key()  # raises TypeError for a function that cannot be remembered
    return _made(function)
