"""Every test begins with a World of its own. Under MPI a test passes on all ranks or on none.

`--device` says on what functions run where a test does not say it: "cpu", "numba" (the CPU with
compiled kernels), "gpu", or "emulated", which is the GPU backend on the emulator of
`gpu_emulator/`, for machines without a GPU.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest

from distnn import parameter_slab, set_cpu_kernels
from distnn.context import Context, World, current_world, set_auto_forward, world_scope
from distnn.cpu import twin

# In the background of a shell SIGINT is ignored, also by the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Ranks compare their graphs too, unless a test says that they differ.
os.environ.setdefault("DISTNN_CHECK", "1")


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        choices=("cpu", "numba", "gpu", "emulated"),
        default="cpu",
        help="on what functions run by default; cpu: NumPy's kernels; numba: the CPU with compiled "
        "kernels, for arrays of any size; emulated: the GPU backend on the emulator",
    )


@pytest.hookimpl(tryfirst=True)  # before pytest asks for it
def pytest_configure(config):
    if config.getoption("--with-mpi", False) and not config.option.basetemp:
        # Ranks clean up pytest's usual folder at one time, and find in it what others remove.
        folder = tempfile.mkdtemp(prefix="distnn-tests-")
        config.option.basetemp = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    # Programs that tests start take the same.
    kernels = "numba" if config.getoption("--device") == "numba" else "numpy"
    os.environ["DISTNN_CPU_KERNELS"] = kernels
    set_cpu_kernels(kernels)
    if kernels == "numba":
        twin.SMALLEST = 1
    if config.getoption("--device") == "emulated":
        import gpu_emulator

        gpu_emulator.install()
        parameter_slab._BLOCK_BYTES = 1 << 20  # the emulator fills memory as it gives it
    elif config.getoption("--device") == "gpu":
        import ranks

        for transports in (ranks.TRANSPORTS, ranks.ON_GPUS):
            transports.append("staged 2")


@pytest.fixture
def extension(request) -> str:
    """Name of the backend that `--device` asks for: "cpu" or "cudnn"."""
    return "cpu" if request.config.getoption("--device") in ("cpu", "numba") else "cudnn"


@pytest.fixture(autouse=True)
def world(extension) -> Iterator[World]:
    with world_scope(World()) as fresh:
        fresh.context = Context([f"{extension}:float"])
        yield fresh
        set_auto_forward(False)
        if fresh.communicator is not None:
            fresh.communicator.close()  # its thread keeps the World, with all its memory


@pytest.fixture
def on_cpu(extension) -> None:
    """For tests of what only holds where `.d` is the memory itself, not a device's copy."""
    if extension != "cpu":
        pytest.skip("on a device .d is a copy")


@pytest.fixture
def gpu(extension) -> None:
    """For tests of the GPU backend."""
    if extension == "cpu":
        pytest.skip("needs --device gpu, or --device emulated")


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
