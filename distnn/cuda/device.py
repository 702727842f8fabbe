"""Devices: which there are, and what to do where there are none."""

from __future__ import annotations

import importlib
import os

import cupy

from ..errors import ContextError, MissingExtraError
from ..launcher.gpus import SHARE_VARIABLE, sharing_is_allowed

# The oldest driver that runs CuPy's CUDA major version: NVIDIA, "CUDA compatibility".
_DRIVERS = {12: "525", 13: "580"}


def device_number(device_id: str, local_rank: int) -> int:
    """The device that a context means.

    Args:
        device_id: a number, or "auto": that of this rank.
        local_rank: of this rank among those of its machine.
    Raises: ContextError where there is no such device.
    """
    count = count_devices()
    if device_id == "auto":
        if local_rank < count:
            return local_rank
        # One GPU may be that of this rank, hidden from the others; communicators find out.
        if count == 1 or sharing_is_allowed(os.environ):
            return local_rank % count
        raise ContextError(
            f"[Context] device_id is 'auto' and this is rank {local_rank} of its machine, from 0 "
            f"on, but it sees {count} GPUs; start at most {count} ranks on a machine, or set "
            f"{SHARE_VARIABLE}=1 (distnn-launch --share-gpu) to let several use one GPU"
        )
    if not device_id.isdigit():
        raise ContextError(
            f"[Context] device_id is {device_id!r}; pass the number of a GPU, from 0 on, or 'auto'"
        )
    number = int(device_id)
    # Scripts ask for the GPU of their local rank; where each sees only its own it is number 0.
    if number == local_rank and (count == 1 or sharing_is_allowed(os.environ)):
        return number % count
    check_device(number)
    return number


def check_device(device: int) -> None:
    """Raise the ContextError that says why `device` cannot be used, and what to do."""
    count = count_devices()
    if not 0 <= device < count:
        raise ContextError(
            f"[Context] device_id is {device} but this process sees {count} GPU"
            f"{'s' if count != 1 else ''}; pass 0{'' if count <= 1 else f' to {count - 1}'} "
            "(CUDA_VISIBLE_DEVICES chooses which ones a process sees)"
        )


def count_devices() -> int:
    """How many devices this process sees; raises the ContextError that says why there is none."""
    runtime = cupy.cuda.runtime
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        raise ContextError(f"[Context] no GPU can be used: {_advice(str(error))}") from None
    except ImportError as error:
        raise _missing(error) from None
    return count


def check_libraries() -> None:
    """Raise the error that says which of CUDA's libraries is missing that kernels need."""
    try:
        cupy.cuda.nvrtc.getVersion()
        importlib.import_module("cupy.cuda.cublas")
    except (ImportError, RuntimeError, OSError) as error:
        raise _missing(error) from None


def _missing(error: Exception) -> MissingExtraError:
    major = cupy.cuda.runtime.runtimeGetVersion() // 1000
    return MissingExtraError(
        f"[Context] CuPy cannot load a library of CUDA ({str(error).strip()}); install it with "
        f"its libraries: pip install 'distnn[cuda{major}]'"
    )


def _advice(error: str) -> str:
    major = cupy.cuda.runtime.runtimeGetVersion() // 1000
    driver = _DRIVERS.get(major, "newest")
    if "InsufficientDriver" in error:
        installed = cupy.cuda.runtime.driverGetVersion()
        if installed == 0:
            return (
                "there is no NVIDIA driver on this machine; install one (version "
                f"{driver} or later for this CuPy of CUDA {major}), or use 'cpu'"
            )
        older = [extra for extra in _DRIVERS if extra <= installed // 1000]
        return (
            f"the NVIDIA driver is for CUDA {installed // 1000}.{installed % 1000 // 10} but this "
            f"CuPy needs CUDA {major}: update the driver to {driver} or later"
            + (f", or pip install 'distnn[cuda{max(older)}]'" if older else "")
        )
    if "NoDevice" in error:
        return "the driver sees no device; check nvidia-smi and CUDA_VISIBLE_DEVICES, or use 'cpu'"
    return f"{error}; python -m distnn.doctor says more"
