"""Which kernels the CPU uses: NumPy's, or those of distnn/cpu that Numba compiles. Imports neither.

Both are backends of the same memory, so graphs and parameters of one are of use to the other; a
function keeps the kernels with which it was called, and nothing that is cached is shared by both.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
import os
from typing import Any

from .errors import ArgumentError, MissingExtraError

logger = logging.getLogger("distnn")

_LEAST = (0, 60)  # version of Numba: the first for NumPy 2
_INSTALL = "pip install 'distnn[cpu]' (Numba 0.60 or later), or use 'numpy'"

_chosen: str | None = None  # None: nobody has wanted to know yet
_asked_for = False  # else taken because it is there
backends: list[Any] = []  # of the CPU that were made; those of the kernels in use are `current`


def get_cpu_kernels() -> str:
    """The kernels of functions that are called now on the CPU: "numba" or "numpy".

    `DISTNN_CPU_KERNELS`, else Numba's where it is installed.

    >>> import distnn as nn
    >>> nn.get_cpu_kernels() in ("numba", "numpy")
    True
    """
    global _chosen, _asked_for
    if _chosen is None:
        wanted = os.environ.get("DISTNN_CPU_KERNELS", "")
        if wanted:
            _check("DISTNN_CPU_KERNELS", wanted)
            _asked_for = True
        _chosen = wanted or ("numba" if numba_problem() is None else "numpy")
    return _chosen


def set_cpu_kernels(kernels: str) -> None:
    """Choose the kernels of functions that are called from now on, on the CPU and in all threads.

    Args:
        kernels: "numba" (`pip install 'distnn[cpu]'`) or "numpy". Results differ in their last
            digits; each of the two gives the same bits in every mode and on any number of threads.
    Raises: MissingExtraError where "numba" is asked for and cannot be used.

    A graph that is there keeps the kernels it was built with.

    >>> import distnn as nn
    >>> nn.set_cpu_kernels(nn.get_cpu_kernels())
    """
    global _chosen, _asked_for
    _check("set_cpu_kernels", kernels)
    _chosen, _asked_for = kernels, True
    for backend in backends:
        backend.current = backend.kernels == kernels


def _check(where: str, kernels: object) -> None:
    if kernels not in ("numba", "numpy"):
        raise ArgumentError(f"[{where}] kernels is {kernels!r}; use 'numba' or 'numpy'")
    problem = numba_problem() if kernels == "numba" else None
    if problem is not None:
        raise MissingExtraError(f"[{where}] kernels 'numba' cannot be used: {problem}; {_INSTALL}")


def numba_problem() -> str | None:
    """Why Numba is of no use, as far as that can be told without importing it; None if it is."""
    version = numba_version()
    if version is None:
        return "Numba is not installed"
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    return None if numbers >= _LEAST else f"Numba {version} is too old"


def numba_version() -> str | None:
    """The installed version, without importing it."""
    try:
        return importlib.metadata.version("numba")
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def compiler_loads() -> bool:
    """Import Numba. Where that fails NumPy's kernels do the work, unless Numba's were asked for."""
    try:
        importlib.import_module("distnn.cpu.compiler")
    except Exception as error:  # it raises several kinds for versions that do not fit each other
        problem = f"[distnn.cpu] Numba cannot be imported: {error}; {_INSTALL}"
        if _asked_for:
            raise MissingExtraError(problem) from error
        logger.warning("%s. NumPy's kernels are used instead.", problem)
        return False
    return True
