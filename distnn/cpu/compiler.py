"""Kernels: Python functions that Numba compiles when they first run, and keeps on disk.

What is compiled lies in a folder named after the sources of this room and Numba's version, below
`NUMBA_CACHE_DIR` or the user's cache: an edited kernel is never taken from there, nor one that
calls it. Where nothing can be written, each process compiles for itself.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import event
from numba.core.caching import NullCache

config: Any = numba.config

logger = logging.getLogger("distnn")


def kernel(function: Callable[..., Any], **options: Any) -> Any:
    """`function`, compiled for the types of its arguments when they are first met.

    It runs without Python's lock, divides as NumPy does, checks no index, and rounds every
    operation unless `options` of numba.njit say otherwise (`fastmath`).
    """
    compiled = numba.njit(nogil=True, error_model="numpy", **options)(function)
    folder = cache_folder()
    if folder is not None:
        # Numba looks at this while it enables caching; there is no other way to tell it.
        before = config.CACHE_DIR
        config.CACHE_DIR = str(folder)
        try:
            compiled.enable_caching()
            if not str(compiled.stats.cache_path).startswith(str(folder)):
                compiled._cache = NullCache()  # elsewhere it may be of old sources
            compiled._cache.save_overload = _tolerant(compiled._cache.save_overload)
        except (RuntimeError, OSError) as error:
            logger.info("kernel %s is not kept on disk: %s", function.__name__, error)
        finally:
            config.CACHE_DIR = before
    return compiled


def _tolerant(save: Callable[..., None]) -> Callable[..., None]:
    """`save` for disks that are full: then training goes on with what is compiled in memory."""

    def saved(*arguments: Any) -> None:
        try:
            save(*arguments)
        except OSError as error:
            logger.info("a compiled kernel is not kept: %s", error)

    return saved


@functools.cache
def cache_folder() -> Path | None:
    """Where compiled kernels are kept; None where no place can be written."""
    base = os.environ.get("NUMBA_CACHE_DIR")
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    folder = Path(base or home).expanduser() / "distnn" / _version()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        logger.info("compiled kernels are not kept: %s; NUMBA_CACHE_DIR says where they may", error)
        return None
    return folder


def _version() -> str:
    """A name for the sources of this room and for what compiles them."""
    digest = hashlib.sha256(numba.__version__.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class _Log(event.Listener):
    """Says what is compiled: the first run of a kernel takes as long as that."""

    def __init__(self) -> None:
        self._begun: list[float] = []  # one in another: a kernel compiles those that it calls
        self._said = False

    def on_start(self, event: Any) -> None:
        if not self._said and _is_ours(event):
            self._said = True
            logger.info(
                "distnn compiles kernels for this processor, which takes some seconds; %s",
                f"later runs find them in {cache_folder()}"
                if cache_folder()
                else "nothing can be kept for later runs: let NUMBA_CACHE_DIR name a folder",
            )
        self._begun.append(time.perf_counter())

    def on_end(self, event: Any) -> None:
        seconds = time.perf_counter() - self._begun.pop()
        if not self._begun and _is_ours(event):
            name = event.data["dispatcher"].py_func.__name__
            logger.debug("compiled kernel %s in %.1f s", name, seconds)


def _is_ours(event: Any) -> bool:
    return bool(event.data["dispatcher"].py_func.__module__.startswith("distnn."))


event.register("numba:compile", _Log())
