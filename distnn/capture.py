"""Capture: where a program runs again and again on a GPU, it becomes CUDA graphs that are launched.

A launch costs the host as much as one kernel, whatever the graph does. A Site is one such place: a
forward or a backward of one live static graph, or of all dynamic graphs of a structure. It lets
the program run a few times, since kernels are compiled and algorithms chosen then, records it
(segment.py), and from then on launches what was recorded wherever it fits. Where it does not, the
program runs as ever: the values are the same to the bit.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from . import launching
from .backend import Backend
from .context import World, current_world

logger = logging.getLogger("distnn")

_WARM_UP = 2  # runs of a program before it is captured
_MOST_SEGMENTS = 4  # of a site: for other addresses, and for results that are still held
_MOST_CAPTURES = 12  # of a site; then what it works on is taken to change for ever
_MOST_NUMBERS = 3  # captures of a site, after which numbers that change again are never constant
_SHARE_OF_MEMORY = 0.5  # of a device, that graphs may hold; then the least recently used go

_on = os.environ.get("DISTNN_CAPTURE", "") != "0"
_clock = itertools.count(1)


class Refused(Exception):
    """What runs cannot be captured; the message says why."""

    def __init__(self, reason: str, for_ever: bool = True) -> None:
        super().__init__(reason)
        self.for_ever = for_ever


# Why a segment cannot stand for this run of its program.
NUMBERS = "a number that a function computes with changes from run to run"
HELD = "results of earlier runs are still held"
PLACES = "what it reads or writes lies elsewhere in each run"


class Segment(Protocol):
    """What was recorded of a program: CUDA graphs, and what the host does around them."""

    recording: Any
    used: int

    def differs(self, *arguments: Any) -> str:
        """Why the graphs cannot stand for the program with these arguments; "" if they can."""

    def run(self, *arguments: Any) -> None:
        """Launch the graphs, and do what the program would do besides."""


class Site:
    """A place where a program runs again and again."""

    def __init__(self, what: str, backend: Backend) -> None:
        self.what = what
        self.backend = backend
        self.segments: list[Segment] = []
        self.reason = ""  # why there was no graph for the last run
        self.notes: dict[Any, Any] = {}  # of segment.py, on earlier runs
        self._runs = 0  # of the program itself
        self._captures = 0
        self._refused = False
        self._lock = threading.Lock()
        _sites.add(self)

    def run(
        self,
        program: Callable[[], None],
        arguments: tuple[Any, ...],
        capture: Callable[[], Segment],
        observe: Callable[[], None],
    ) -> None:
        """Run a program, or what was captured of it.

        Args:
            arguments: of the segments' methods.
            capture: records the program; raises Refused where it cannot.
            observe: called before the program runs itself, to see where its arrays lie.
        """
        # Where two threads run one program at once, the second has no graph.
        if _on and self._lock.acquire(blocking=False):
            try:
                segment = self._segment(arguments, capture, observe)
                if segment is not None:
                    segment.used = next(_clock)
                    segment.run(*arguments)
                    return
            finally:
                self._lock.release()
        launching.launch_waiting()
        program()

    def _segment(
        self,
        arguments: tuple[Any, ...],
        capture: Callable[[], Segment],
        observe: Callable[[], None],
    ) -> Segment | None:
        """The segment for this run, captured if it is time; None where the program has to run."""
        launching.launch_if_waiting([segment.recording for segment in self.segments])
        reasons = set()
        for segment in self.segments:
            reason = segment.differs(*arguments)
            if not reason:
                return segment
            reasons.add(reason)
        launching.launch_waiting()
        if self._refused:
            return None
        self._runs += 1
        if self._runs <= _WARM_UP:
            observe()
            return None
        if HELD in reasons and len(self.segments) == _MOST_SEGMENTS:
            self.reason = HELD
            return None
        if NUMBERS in reasons and self._captures >= _MOST_NUMBERS:
            self._refuse(NUMBERS)
            return None
        if self._captures >= _MOST_CAPTURES:
            self._refuse(PLACES)
            return None
        self._captures += 1
        try:
            segment = capture()
        except Refused as refusal:
            self.reason = str(refusal)
            if refusal.for_ever:
                self._refuse(self.reason)
            else:
                self._captures -= 1
            return None
        if len(self.segments) == _MOST_SEGMENTS:
            self.segments.remove(min(self.segments, key=lambda each: each.used))
        self.reason = ""
        self.segments.append(segment)
        segment.used = next(_clock)
        _make_room(self.backend)
        return segment

    def is_patient_no_more(self) -> bool:
        """Whether it was long enough that something else might have been captured first."""
        return self._runs > 2 * _WARM_UP

    def _refuse(self, reason: str) -> None:
        self._refused = True
        self.reason = reason
        self.segments.clear()
        logger.info("%s runs without a CUDA graph: %s", self.what, reason)

    def drop(self) -> None:
        """Let go of what was captured."""
        self.segments.clear()

    def describe(self) -> str:
        """A line for people."""
        if self._refused:
            return f"{self.what}: not captured: {self.reason}"
        if not self.segments:
            return f"{self.what}: not captured in {self._runs} runs" + (
                f": {self.reason}" if self.reason else ""
            )
        graphs = sum(len(segment.recording.graphs) for segment in self.segments)
        nbytes = sum(segment.recording.nbytes for segment in self.segments)
        line = f"{self.what}: {graphs} graph{'s' * (graphs > 1)}, {nbytes / 2**20:.1f} MiB"
        return line + (f"; not always: {self.reason}" if self.reason else "")


_sites: weakref.WeakSet[Site] = weakref.WeakSet()
_shared: weakref.WeakKeyDictionary[Any, weakref.WeakKeyDictionary[World, Site]] = (
    weakref.WeakKeyDictionary()
)


def shared_site(structure: Any, what: Callable[[], str], backend: Backend) -> Site | None:
    """The site of all dynamic graphs of a structure in this World; None without graphs."""
    if not backend.captures:
        return None
    sites = _shared.setdefault(structure, weakref.WeakKeyDictionary())
    world = current_world()
    site = sites.get(world)
    if site is None:
        site = sites[world] = Site(what(), backend)
    return site


def _make_room(backend: Backend) -> None:
    """Let go of the segments that were not used for the longest time, if all hold too much."""
    found = [
        (segment.used, segment.recording.nbytes, site, segment)
        for site in list(_sites)
        if site.backend.name == backend.name
        for segment in site.segments
    ]
    found.sort(key=lambda entry: entry[0])
    held = sum(nbytes for _, nbytes, *_ in found)
    most = _SHARE_OF_MEMORY * backend.total_memory()
    for _, nbytes, site, segment in found[:-1]:
        if held <= most:
            break
        site.segments.remove(segment)
        held -= nbytes


def drop_all() -> bool:
    """Let go of all that was captured; whether there was anything."""
    dropped = False
    for site in list(_sites):
        dropped = dropped or bool(site.segments)
        site.drop()
    launching.forget()
    return dropped


# -- what users see --------------------------------------------------------------------------------


def set_capture(on: bool) -> None:
    """Capture CUDA graphs on GPUs, or do not; off lets go of those that there are.

    On is the default, unless the environment has DISTNN_CAPTURE=0. On the CPU it changes nothing,
    and nowhere does it change values.

    >>> import distnn as nn
    >>> nn.set_capture(True)
    """
    global _on
    _on = bool(on)
    if not _on:
        drop_all()


def get_capture() -> bool:
    """True if CUDA graphs are captured.

    >>> import distnn as nn
    >>> nn.set_capture(True); nn.get_capture()
    True
    """
    return _on


def stats() -> dict[str, int]:
    """See profiler.plan_stats."""
    recordings = [segment.recording for site in list(_sites) for segment in site.segments]
    return {
        "captured_graphs": sum(len(recording.graphs) for recording in recordings),
        "captured_bytes": sum(recording.nbytes for recording in recordings),
    }


def report() -> str:
    """See profiler.capture_report."""
    if not _on:
        return "nothing is captured: nn.set_capture(False) or DISTNN_CAPTURE=0"
    lines = sorted(site.describe() for site in list(_sites))
    return "\n".join(lines + launching.describe())
