"""A solver's work recorded as a CUDA graph; see segment.py.

What changes from call to call are numbers of rules: learning rates, bias corrections, a loss scale.
They are found by going through the work without launching anything, and lie in device memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from .capture import NUMBERS, PLACES, Site
from .launching import launch
from .segment import record


def run_solver(
    site: Site, memory: Any, work: Callable[[], None], constants: tuple[float, ...]
) -> None:
    """Run work of a solver, or what was captured of it.

    Args:
        memory: an object that lives as long as the work's arrays lie where they are; `written` are
            the storages of what the work writes to.
        constants: numbers that the graph holds: with others the work is another.
    """
    arguments = memory, work, constants
    site.run(work, arguments, lambda: _Work(site, *arguments), lambda: None)


class _Work:
    """Captured work of a solver."""

    used = 0

    def __init__(
        self, site: Site, memory: Any, work: Callable[[], None], constants: tuple[float, ...]
    ) -> None:
        self._memory = weakref.ref(memory)
        self._constants = constants
        self._recorded = site.backend.recorded_work(work)
        self._noted = self._recorded.rules
        self.recording = site.backend.recording()
        record(self.recording, lambda: self._recorded.record(work))

    def differs(self, memory: Any, work: Callable[[], None], constants: tuple[float, ...]) -> str:
        if self._memory() is not memory or not self.recording.usable:
            return PLACES
        if self._constants != constants:
            return NUMBERS
        if self._recorded.rules:
            self._noted = self._recorded.note(work)
        return "" if self._recorded.fits(self._noted) else PLACES

    def run(self, memory: Any, work: Callable[[], None], constants: tuple[float, ...]) -> None:
        self._recorded.set(self._noted)
        launch(self.recording, 0, memory.written)
