"""Running a function on several ranks, over whichever transport a test is parametrised with."""

from __future__ import annotations

import gpu_emulator
import numpy as np
import pytest
from gpu_emulator import nccl, ordering, settings

import distnn as nn
import distnn.communicators as C
from distnn.context import current_backend
from distnn.ext_utils import get_extension_context

MPI = pytest.param("mpi", marks=pytest.mark.mpi(min_size=2))
TRANSPORTS = ["single", "threads 2", "threads 3", "threads 4", MPI]


# NCCL between ranks on one device each, and arrays of ranks that share a device.
ON_GPUS = ["nccl 2", "nccl 3", "staged 2"] if gpu_emulator.installed() else []
TRANSPORTS += ON_GPUS


def connected(
    timeout: float = 30, check: bool | None = None
) -> C.MultiProcessDataParallelCommunicator:
    """A communicator of the ranks that run this."""
    comm = C.MultiProcessDataParallelCommunicator(timeout=timeout, check=check)
    comm.init()
    return comm


def on_ranks(transport: str, function):
    """Run `function` once on each rank; returns the results of the ranks in this process."""
    kind, _, number = transport.partition(" ")
    if kind == "threads":
        return C.run_threads(function, int(number))
    if kind == "nccl" or (kind == "staged" and gpu_emulator.installed()):
        devices = int(number) if kind == "nccl" else 1
        with (
            settings.using(device_count=devices),
            ordering.checked(),
            nccl.behaviour.using(delay=0.002),
        ):
            return C.run_threads(_on_gpu, int(number), function)
    if kind == "staged":
        return C.run_threads(_on_gpu, int(number), function)
    return [function()]


def _on_gpu(function):
    """Run on the GPU of this rank."""
    nn.set_default_context(get_extension_context("cudnn"))
    return function()


def on_device(values: np.ndarray) -> nn.NdArray:
    """An array where functions of the current context compute."""
    array = nn.NdArray.from_numpy_array(values)
    backend = current_backend()
    array._storage.place(backend.owned(array._storage.array, values.dtype))
    return array
