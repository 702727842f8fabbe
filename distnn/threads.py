"""Threads for large NumPy work: ranges in parallel over a single-threaded BLAS.

Work is cut into parts that depend on its size only, so the bits of a result do not depend on the
number of threads. While a part runs, the BLAS library is held to one thread: several ranks or
processes on one machine would otherwise fight for the cores.
"""

from __future__ import annotations

import itertools
import math
import os
import queue
import threading
from collections.abc import Callable

import numpy as np
from threadpoolctl import ThreadpoolController

from .errors import ArgumentError
from .memory import pool

_state = threading.local()
_helpers: _Helpers | None = None
_num_threads: int | None = None


def get_num_threads() -> int:
    """Number of threads that large functions use on the CPU.

    `DISTNN_NUM_THREADS`, else `OMP_NUM_THREADS`, else the cores that this process may run on.
    """
    global _num_threads
    if _num_threads is None:
        for name in ("DISTNN_NUM_THREADS", "OMP_NUM_THREADS"):
            text = os.environ.get(name, "")
            if text.isdigit() and int(text) > 0:
                _num_threads = int(text)
                break
        else:
            _num_threads = available_cores()
    return _num_threads


def set_num_threads(number: int) -> None:
    """Set the number of threads that large functions use on the CPU; bits do not depend on it.

    >>> import distnn as nn
    >>> nn.set_num_threads(nn.get_num_threads())
    """
    global _num_threads, _helpers
    if not isinstance(number, int) or number < 1:
        raise ArgumentError(f"[set_num_threads] number is {number!r}; pass an int of 1 or more")
    _num_threads = number
    if _helpers is not None:
        _helpers.stop()
        _helpers = None


def available_cores() -> int:
    """Cores that this process may run on; fewer than the machine's where a launcher binds it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parallel_for(body: Callable[[int, int], object], length: int, grain: int) -> None:
    """Call `body(start, stop)` for each part of `grain` of `range(length)`, on several threads.

    The parts are the same for every number of threads. Called from inside a part it runs in line.
    """
    parts = -(-length // grain)
    helpers = min(get_num_threads(), parts) - 1
    if helpers < 1 or getattr(_state, "inside", False):
        for start in range(0, length, grain):
            body(start, min(start + grain, length))
        return
    job = _Job(body, length, grain)
    _the_helpers().offer(job, helpers)
    _state.inside = True
    try:
        job.run()
    finally:
        _state.inside = False
    job.wait()


class _Job:
    """The parts of a range, each taken by the thread that comes first."""

    def __init__(self, body: Callable[[int, int], object], length: int, grain: int) -> None:
        self._body: Callable[[int, int], object] | None = body
        self._length, self._grain = length, grain
        self._parts = -(-length // grain)
        # next() on a counter is atomic.
        self._taken = itertools.count()
        self._finished = itertools.count(1)
        self._error: BaseException | None = None
        self._unfinished = threading.Lock()
        self._unfinished.acquire()

    def run(self) -> None:
        """Run parts until none is left."""
        while (part := next(self._taken)) < self._parts:
            start = part * self._grain
            try:
                assert self._body is not None
                self._body(start, min(start + self._grain, self._length))
            except BaseException as error:
                self._error = error
            if next(self._finished) == self._parts:
                # No thread holds on to arrays that the caller believes to be free: not even one
                # that looks at this job later.
                self._body = None
                self._unfinished.release()

    def wait(self) -> None:
        """Until all parts have run; raises what one has raised."""
        self._unfinished.acquire()
        if self._error is not None:
            raise self._error


class _Helpers:
    """Threads that run jobs beside those who ask for them."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        for i in range(number):
            threading.Thread(target=self._work, name=f"distnn_{i}", daemon=True).start()

    def offer(self, job: _Job, helpers: int) -> None:
        for _ in range(helpers):
            self._jobs.put(job)

    def stop(self) -> None:
        for _ in range(self._number):
            self._jobs.put(None)

    def _work(self) -> None:
        np.seterr(all="ignore")
        _state.inside = True
        while (job := self._jobs.get()) is not None:
            job.run()


def _the_helpers() -> _Helpers:
    global _helpers
    if _helpers is None:
        _helpers = _Helpers(max(1, get_num_threads() - 1))
    return _helpers


def _after_fork() -> None:
    global _helpers
    _helpers = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class _SingleThreadedBlas:
    """Holds every BLAS library of the process to one thread while anybody is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._libraries: list | None = None
        self._before: list[int] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                if self._libraries is None:
                    self._libraries = ThreadpoolController().select(user_api="blas").lib_controllers
                self._before = [library.get_num_threads() for library in self._libraries]
                for library, threads in zip(self._libraries, self._before, strict=True):
                    if threads != 1:
                        library.set_num_threads(1)
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._libraries is not None:
                for library, threads in zip(self._libraries, self._before, strict=True):
                    if threads != 1:
                        library.set_num_threads(threads)


single_threaded_blas = _SingleThreadedBlas()

# OpenBLAS itself uses one thread up to this many multiplications.
_SMALL_PRODUCT = 262_144
# A part below this is not worth a thread: about 50 microseconds of arithmetic.
_PART = 4_194_304
# Each part of a product packs the whole of one factor anew, for this many rows or columns of the
# other if there are as many: with 64 of them that takes a third of the time, with 256 a tenth.
_LENGTH = 256
# Parts of a product, and of one with so many multiplications that it is worth more cores.
_PARTS = 8
_MORE_PARTS = 16
_LARGE_PRODUCT = 2**30


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """out = a @ b for arrays of two or more axes, in parts of fixed size on several threads.

    a (..., M, K), b (..., K, N), out (..., M, N), a new array by default; leading axes broadcast.
    """
    if out is None:
        leading = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        out = pool.empty((*leading, a.shape[-2], b.shape[-1]), a.dtype)
    work = out.size * a.shape[-1]
    if work <= _SMALL_PRODUCT:
        # The same product of BLAS; `dot` takes less time to begin it.
        dot = a.ndim == b.ndim == 2 and a.dtype is b.dtype is out.dtype and out.flags.c_contiguous
        return np.dot(a, b, out) if dot else np.matmul(a, b, out)
    batch = math.prod(out.shape[:-2])
    with single_threaded_blas:
        if work < 2 * _PART:
            np.matmul(a, b, out=out)
        elif out.ndim == 3 and batch >= 8 and a.ndim == b.ndim == 3 and len(a) == len(b):
            grain = max(1, batch // 32)
            parallel_for(lambda i, j: np.matmul(a[i:j], b[i:j], out=out[i:j]), batch, grain)
        else:
            _matmul_parts(a, b, out, work)
    return out


def _matmul_parts(a: np.ndarray, b: np.ndarray, out: np.ndarray, work: int) -> None:
    """The parts of each matrix in parallel, all matrices of a batch in each."""
    rows, columns = out.shape[-2:]
    most = min(_PARTS if work < _LARGE_PRODUCT else _MORE_PARTS, work // _PART)
    longer = _cut(max(rows, columns), most)
    shorter = _cut(min(rows, columns), most // longer)
    row_parts, column_parts = (longer, shorter) if rows >= columns else (shorter, longer)
    height, width = _grain(rows, row_parts), _grain(columns, column_parts)
    column_parts = -(-columns // width)

    def part(first: int, _: int) -> None:
        i, j = divmod(first, column_parts)
        i, j = i * height, j * width
        place = np.s_[..., i : i + height, j : j + width]
        np.matmul(a[..., i : i + height, :], b[..., j : j + width], out=out[place])

    parallel_for(part, -(-rows // height) * column_parts, 1)


def _cut(length: int, most: int) -> int:
    """Into how many parts, at most, rows or columns are cut; few ones are worth two short parts."""
    return max(1, min(most, max(length // _LENGTH, 2 if length > _LENGTH // 2 else 1)))


def _grain(length: int, parts: int) -> int:
    """Rows or columns of a part, a multiple of 16."""
    return max(16, -(-length // (16 * parts)) * 16)
