"""Which GPU a rank uses: CUDA_VISIBLE_DEVICES by local rank, before anything touches CUDA.

A process that sees one device opens no context on the others (pytorch#26385, apex#222).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from .errors import LaunchError
from .place import Place

SHARE_VARIABLE = "DISTNN_SHARE_GPU"  # 1: several ranks may use one GPU


def sharing_is_allowed(environment: Mapping[str, str]) -> bool:
    """Whether the user wants several ranks on one GPU."""
    return environment.get(SHARE_VARIABLE, "") not in ("", "0")


def visible_device(
    place: Place,
    environment: Mapping[str, str],
    per_node: int | None = None,
    shared: bool = False,
    count: Callable[[], int] | None = None,
) -> str | None:
    """The value of CUDA_VISIBLE_DEVICES for this rank; None to leave it as it is.

    Args:
        environment: a list already in CUDA_VISIBLE_DEVICES is what the ranks of a node share out.
        per_node: use that many of the node's GPUs; 0 for none.
        shared: allow more ranks than GPUs, several of them on one.
        count: number of GPUs of the node; the driver is asked by default.
    Raises: LaunchError when there are fewer GPUs than ranks, or than `per_node`.
    """
    if per_node == 0:
        return None
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        devices = [str(index) for index in range((count or count_gpus)())]
        source = "this node has"
    else:
        devices = _devices(listed)
        source = f"CUDA_VISIBLE_DEVICES={listed} lists"
    if per_node is not None:
        if per_node > len(devices):
            raise LaunchError(
                f"--gpus-per-node is {per_node}, but {source} {len(devices)} GPU(s); "
                "pass a smaller number or leave it out"
            )
        devices = devices[:per_node]
    # srun --gpus-per-task and --gpu-bind show each task its own; SLURM_GPUS_ON_NODE counts all.
    given_by_slurm = place.by_srun and environment.get("SLURM_GPUS_ON_NODE") != "1"
    if not devices or (len(devices) == 1 and given_by_slurm):
        return None
    if place.local_size > len(devices) and not shared:
        raise LaunchError(
            f"{place.local_size} ranks on this node, but {source} {len(devices)} GPU(s); start "
            f"at most {len(devices)} rank(s) per node, pass --share-gpu to let several ranks use "
            "one GPU, or --gpus-per-node 0 to use none"
        )
    return devices[place.local_rank % len(devices)]


def count_gpus() -> int:
    """NVIDIA GPUs that the driver shows to this process; 0 without a driver."""
    number = ctypes.c_uint(0)
    with _driver() as nvml:
        if nvml is not None and nvml.nvmlDeviceGetCount_v2(ctypes.byref(number)) == 0:
            return number.value
    return 0


def driver_version() -> str:
    """Version of the NVIDIA driver, such as "580.65.06"; empty without one."""
    text = ctypes.create_string_buffer(80)
    with _driver() as nvml:
        if nvml is not None and nvml.nvmlSystemGetDriverVersion(text, 80) == 0:
            return text.value.decode()
    return ""


@contextmanager
def _driver() -> Iterator[ctypes.CDLL | None]:
    """The driver's library for questions like these; None without a driver."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        nvml = None
    if nvml is None or nvml.nvmlInit_v2() != 0:
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _devices(listed: str) -> list[str]:
    # As CUDA reads it: nothing counts from the first invalid entry on. Slurm writes NoDevFiles.
    devices: list[str] = []
    for item in (item.strip() for item in listed.split(",")):
        if not item or item.startswith("-") or item == "NoDevFiles":
            break
        devices.append(item)
    return devices
