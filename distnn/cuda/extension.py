"""The cudnn extension as a module, as `import_extension_module('cudnn')` returns it."""

from __future__ import annotations

import cupy

from ..context import Context
from .device import count_devices, device_number


def context(device_id: str | int = "auto", type_config: str = "float") -> Context:
    """The context of a GPU; see ext_utils.get_extension_context."""
    from ..ext_utils import get_extension_context

    return get_extension_context("cudnn", device_id=device_id, type_config=type_config)


def array_classes() -> list[str]:
    """Names of array classes; there is one."""
    return ["CudaCachedArray"]


def get_device_count() -> int:
    """Number of GPUs that this process sees; raises ContextError where there is none."""
    return count_devices()


def get_devices() -> list[str]:
    """Ids of the GPUs that this process sees."""
    return [str(i) for i in range(get_device_count())]


def device_synchronize(device_id: str | int = "0") -> None:
    """Wait until all work of the device is done."""
    cupy.cuda.Device(device_number(str(device_id), 0)).synchronize()


def synchronize(device_id: str | int = "0") -> None:
    """As device_synchronize."""
    device_synchronize(device_id)


def clear_memory_cache() -> None:
    """Return the memory that is kept for later arrays to the device."""
    count_devices()
    cupy.get_default_memory_pool().free_all_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()
