"""Autotuning: choosing among algorithms by timing them, once, and keeping the choices.

A choice is made once per configuration, kept on disk, and holds from then on: algorithms round
differently, so runs with other choices give other bits. A configuration names all that a choice
depends on, the processor or GPU and the versions of what computes among it. Where there are several
ranks those of rank 0 hold, and nothing is timed any more: ranks would choose differently.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from .context import current_world
from .errors import ArgumentError

logger = logging.getLogger("distnn")

_on = os.environ.get("DISTNN_AUTOTUNE", "") not in ("", "0")
choices: dict[str, str] = {}  # configuration -> name of the algorithm
generation = 0  # counts how often choices came from elsewhere: what was built for old ones is stale

_lock = threading.RLock()
_loaded = False  # what is on disk
_ROUNDS = 3


def set_autotune(on: bool) -> None:
    """Time the algorithms for each new configuration of a convolution, or do not.

    On a GPU these are cuDNN's, on the CPU the ways of docs/cpu.md. Off (the default, unless the
    environment has DISTNN_AUTOTUNE=1) takes what the library recommends, or a model of costs.
    Configurations that have been chosen for in this process stay as they are. Choices are kept in
    `autotune.json` beside compiled kernels (`~/.cache/distnn`), and used by all later runs that
    autotune. With several ranks those of rank 0 hold, and new configurations are not timed.

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
    """What was chosen by timing so far, in this process and those before, by configuration.

    >>> import distnn as nn
    >>> nn.get_autotune_choices()
    {}
    """
    _load()
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


def in_use() -> bool:
    """Whether anything may be chosen in another way than usual."""
    return _on or bool(choices)


def chosen(configuration: str, fastest: Callable[[], str]) -> str | None:
    """The name that was chosen for a configuration, now or before; None: take the usual.

    Args:
        fastest: times the candidates and returns the name of one.
    """
    _load()
    with _lock:
        if configuration not in choices and _on and not _several_ranks():
            choices[configuration] = fastest()
            _keep()
        return choices.get(configuration)


def least_time(candidates: Mapping[str, Callable[[], object]]) -> str:
    """The name of the candidate that takes the least time on the CPU.

    Each runs once to get ready, then in turns. One that lacks memory is passed over.
    """
    times = dict.fromkeys(candidates, float("inf"))
    left = dict(candidates)
    for turn in range(_ROUNDS + 1):
        for name, run in [*left.items()]:
            begin = time.perf_counter()
            try:
                run()
            except MemoryError:
                times[name] = float("inf")
                del left[name]
            else:
                if turn:
                    times[name] = min(times[name], time.perf_counter() - begin)
    return min(times, key=times.__getitem__)


def replace(made: Mapping[str, str]) -> None:
    """Forget what was chosen here: these hold, those of rank 0."""
    global generation, _loaded
    with _lock:
        _loaded = True
        if made != choices:
            choices.clear()
            choices.update(made)
            generation += 1


def _several_ranks() -> bool:
    communicator = current_world().communicator
    return communicator is not None and communicator.size > 1


# -- on disk --------------------------------------------------------------------------------------


def file() -> Path:
    """Where choices are kept."""
    base = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "distnn" / "autotune.json"


def _load() -> None:
    """Take what is on disk, once, if anybody autotunes."""
    global _loaded
    with _lock:
        if _on and not _loaded:
            _loaded = True
            for configuration, name in _on_disk().items():
                choices.setdefault(configuration, name)


def _on_disk() -> dict[str, str]:
    try:
        found = json.loads(file().read_text())
        return {str(configuration): str(name) for configuration, name in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        logger.warning("[autotune] %s is passed over: %s", file(), error)
        return {}


def _keep() -> None:
    """Write all choices; those of processes that ran meanwhile stay."""
    path = file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_on_disk() | choices, indent=1, sort_keys=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as whole:
            whole.write(text)
        os.replace(whole.name, path)
    except OSError as error:
        logger.info("[autotune] choices are not kept: %s", error)
