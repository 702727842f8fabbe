"""Every test begins with a World of its own. Under MPI a test passes on all ranks or on none."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from distnn.context import World, current_world, set_auto_forward, world_scope

# In the background of a shell SIGINT is ignored, also by the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def world() -> Iterator[World]:
    with world_scope(World()) as fresh:
        yield fresh
        set_auto_forward(False)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """Let the ranks agree on a test of theirs: without this the others would wait in the next."""
    if not under_mpi(pyfuncitem):
        return (yield)
    from mpi4py import MPI

    error: BaseException | None = None
    try:
        result = yield
    except BaseException as raised:
        error = raised
        if current_world().communicator is not None:
            current_world().communicator.close()  # tells who waits for this rank
    everybodys = MPI.COMM_WORLD.allgather("" if error is None else f"{type(error).__name__}")
    if error is not None:
        raise error
    failed = [f"rank {r} ({name})" for r, name in enumerate(everybodys) if name]
    if failed:
        pytest.fail(f"failed on {', '.join(failed)}", pytrace=False)
    return result


def under_mpi(item) -> bool:
    return item.get_closest_marker("mpi") is not None and item.config.getoption("--with-mpi", False)
