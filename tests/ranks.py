"""Running a function on several ranks, over whichever transport a test is parametrised with."""

from __future__ import annotations

import pytest

import distnn.communicators as C

MPI = pytest.param("mpi", marks=pytest.mark.mpi(min_size=2))
TRANSPORTS = ["single", "threads 2", "threads 3", "threads 4", MPI]


def connected(timeout: float = 30) -> C.MultiProcessDataParallelCommunicator:
    """A communicator of the ranks that run this."""
    comm = C.MultiProcessDataParallelCommunicator(timeout=timeout)
    comm.init()
    return comm


def on_ranks(transport: str, function):
    """Run `function` once on each rank; returns the results of the ranks in this process."""
    kind, _, number = transport.partition(" ")
    if kind == "threads":
        return C.run_threads(function, int(number))
    return [function()]
