"""The cpu extension as a module, as `import_extension_module('cpu')` returns it."""

from __future__ import annotations

from .context import Context
from .memory import pool


def context(device_id: str | int = "auto", type_config: str = "float") -> Context:
    """The context of the CPU; see ext_utils.get_extension_context."""
    from .ext_utils import get_extension_context

    return get_extension_context("cpu", device_id=device_id, type_config=type_config)


def array_classes() -> list[str]:
    """Names of array classes; there is one."""
    return ["CpuArray"]


def get_device_count() -> int:
    """1: all cores are one device."""
    return 1


def get_devices() -> list[str]:
    """Ids of the devices."""
    return ["0"]


def device_synchronize(device_id: str | int = "0") -> None:
    """Wait until the device is idle; functions on the CPU have finished when they return."""


def synchronize(device_id: str | int = "0") -> None:
    """As device_synchronize."""


def clear_memory_cache() -> None:
    """Return the memory that is kept for later arrays to the system."""
    pool.release()
