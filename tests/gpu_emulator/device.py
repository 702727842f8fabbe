"""`cupy.cuda.Device`: what the emulated device says of itself."""

from __future__ import annotations

import threading
from typing import Any

from .memory import current_device, device_memory_in_use, set_device
from .record import record, settings
from .stream import finish_all

_here = threading.local()


class Device:
    def __init__(self, device: Any = None) -> None:
        self.id = current_device() if device is None else int(device)

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __enter__(self) -> Device:
        _here.__dict__.setdefault("devices", []).append(current_device())
        return self.use()

    def __exit__(self, *ignored: object) -> None:
        set_device(_here.devices.pop())

    def use(self) -> Device:
        set_device(self.id)
        return self

    def synchronize(self) -> None:
        finish_all("device.synchronize")
        record.synchronizations += 1
        record.operations.append(("synchronize", "device", self.id))

    @property
    def compute_capability(self) -> str:
        return settings.compute_capability

    @property
    def mem_info(self) -> tuple[int, int]:
        return settings.device_memory - device_memory_in_use(self.id), settings.device_memory

    @property
    def pci_bus_id(self) -> str:
        return f"0000:{self.id:02X}:00.0"

    @property
    def attributes(self) -> dict[str, int]:
        return {
            "ComputeCapabilityMajor": int(settings.compute_capability[:-1]),
            "ComputeCapabilityMinor": int(settings.compute_capability[-1]),
            "MaxThreadsPerBlock": 1024,
            "MaxSharedMemoryPerBlock": 48 * 1024,
            "MaxSharedMemoryPerBlockOptin": 227 * 1024,
            "MultiProcessorCount": 132,
            "MaxThreadsPerMultiProcessor": 2048,
            "MaxBlocksPerMultiprocessor": 32,
            "MaxGridDimX": 2**31 - 1,
            "MaxGridDimY": 65535,
            "MaxGridDimZ": 65535,
            "MaxBlockDimX": 1024,
            "MaxBlockDimY": 1024,
            "MaxBlockDimZ": 64,
            "WarpSize": 32,
            "L2CacheSize": 60 << 20,
        }


def get_device_id() -> int:
    return current_device()
