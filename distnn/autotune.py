"""Autotuning: choosing among a library's algorithms by timing them, and keeping the choices.

A choice is made once per configuration and process. Algorithms round differently, so runs with
other choices give other bits: choices can be handed to another process, or to another run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from .errors import ArgumentError

_on = os.environ.get("DISTNN_AUTOTUNE", "") not in ("", "0")
choices: dict[str, str] = {}  # configuration -> name of the algorithm


def set_autotune(on: bool) -> None:
    """Time the algorithms of cuDNN for each new configuration of a convolution, or do not.

    Off (the default, unless the environment has DISTNN_AUTOTUNE=1) takes what the library
    recommends. Configurations that have been chosen for stay as they are.

    >>> import distnn as nn
    >>> nn.set_autotune(False)
    """
    global _on
    _on = bool(on)


def get_autotune() -> bool:
    """True if algorithms are chosen by timing.

    >>> import distnn as nn
    >>> nn.get_autotune()
    False
    """
    return _on


def get_autotune_choices() -> dict[str, str]:
    """What was chosen by timing so far in this process, by configuration.

    >>> import distnn as nn
    >>> nn.get_autotune_choices()
    {}
    """
    return dict(choices)


def set_autotune_choices(made: Mapping[str, str]) -> None:
    """Use choices of another process or run for configurations that were not met yet.

    Args:
        made: what `get_autotune_choices` returned there. Names that this machine's library does
            not know are passed over.

    >>> import distnn as nn
    >>> nn.set_autotune_choices(nn.get_autotune_choices())
    """
    if not isinstance(made, Mapping):
        raise ArgumentError(
            f"[set_autotune_choices] made is {type(made).__name__}; pass what "
            "get_autotune_choices returned"
        )
    choices.update(made)
