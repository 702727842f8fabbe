"""Tables of jobs: what one launch over many arrays reads of them, in device memory.

Sizes and addresses are kept as long as the same arrays come again. The numbers of a rule (learning
rates) change from call to call and are written where they have changed. Work that is in a CUDA
graph reads numbers from memory of its own: they are set before the graph is launched.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cupy
import numpy as np

from .words import Words

CHUNK = 8192  # elements of a block; a multiple of THREADS times any pack's length
_MOST_SET = 192  # numbers that kernels write as they are given them; more are copied up

# What a kernel over chunks begins with: its job, and the elements begin to end of it.
JOB = """
  long long job = 0;
  for (long long last = jobs - 1; job < last;) {{
    const long long middle = (job + last + 1) / 2;
    if (words[middle] <= blockIdx.x) job = middle; else last = middle - 1;
  }}
  const long long* own = words + jobs + 1 + job * {width};
  const long long begin = (blockIdx.x - words[job]) * {chunk};
  const long long end = begin + {chunk} < own[0] ? begin + {chunk} : own[0];
"""


class Numbers:
    """Numbers of each job, at a place in device memory that stays; none where rules take none."""

    def __init__(self, table: Table, values: list[list]) -> None:
        count = len(values) * len(values[0])
        self._words = Words(count) if count else None
        self._values: list[list] | None = None
        self.array = self._words.array.view(np.float64) if self._words else table.words

    def set(self, values: list[list]) -> None:
        """Write them, if they have changed."""
        if self._words is not None and values != self._values:
            numbers = np.array(values, np.float64)
            if numbers.size <= _MOST_SET:
                self._words.set(numbers.reshape(-1).view(np.uint64).tolist())
            else:
                self.array.set(numbers.reshape(-1))
            self._values = values


class Table:
    """Jobs in device memory: for each its first block, and what the kernel reads of it."""

    def __init__(self, jobs: Sequence[tuple[int, ...]]) -> None:
        first = np.cumsum([0, *(-(-size // CHUNK) for size, *_ in jobs)])
        words = np.concatenate([first, np.array(jobs, np.int64).reshape(-1)])
        self.jobs = len(jobs)
        self.blocks = int(first[-1])
        self.words = cupy.asarray(words)
        self._numbers: Numbers | None = None

    def numbers(self, values: list[list]) -> Any:
        """These numbers of each job in device memory; None where nothing is to be launched."""
        work = _here.work
        if work is not None:
            return work.numbers(self, values)
        if self._numbers is None:
            self._numbers = Numbers(self, values)
        self._numbers.set(values)
        return self._numbers.array


@functools.lru_cache(maxsize=256)
def _table_on(device: int, user: object, jobs: tuple[tuple[int, ...], ...]) -> Table:
    return Table(jobs)


def table(user: object, jobs: tuple[tuple[int, ...], ...]) -> Table:
    """The table of `user` with these jobs on the current device."""
    found = _table_on(cupy.cuda.runtime.getDevice(), user, jobs)
    if _here.work is not None:
        _here.work.tables.add(found)
    return found


Noted = list[tuple[Table, list[list]]]


class RecordedWork:
    """Work over tables that becomes a CUDA graph, and the numbers that the graph reads.

    To learn the numbers of a launch the work is gone through and launches nothing.

    Args:
        work: runs rules, clips, and looks at arrays (multi_tensor.py); the same each time, but for
            the numbers of rules.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self.tables: set[Table] = set()  # which the graph reads
        self._noted: Noted | None = None  # while the work is gone through
        self._recorded: Iterator[Numbers] = iter(())
        self.rules = self.note(work)
        self._numbers = [Numbers(table, values) for table, values in self.rules]

    def note(self, work: Callable[[], None]) -> Noted:
        """The tables of the rules that `work` runs now, and their numbers."""
        self._noted, here = [], _here.work
        _here.work = self
        try:
            work()
            return self._noted
        finally:
            self._noted, _here.work = None, here

    def fits(self, noted: Noted) -> bool:
        """Whether that is what was recorded, but for the numbers."""
        return [table for table, _ in noted] == [table for table, _ in self.rules]

    def set(self, noted: Noted) -> None:
        """Write the numbers that the next launch reads."""
        for numbers, (_, values) in zip(self._numbers, noted, strict=True):
            numbers.set(values)

    def record(self, work: Callable[[], None]) -> None:
        """Run `work`, which is being captured."""
        self._recorded, here = iter(self._numbers), _here.work
        _here.work = self
        try:
            work()
        finally:
            _here.work = here

    def numbers(self, table: Table, values: list[list]) -> Any:
        if self._noted is not None:
            self._noted.append((table, values))
            return None
        return next(self._recorded).array


class _Here(threading.local):
    work: RecordedWork | None = None


_here = _Here()


def is_noting() -> bool:
    """Whether work is gone through that launches nothing."""
    return _here.work is not None and _here.work._noted is not None
