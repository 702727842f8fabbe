"""The cudnn extension as a module, as `import_extension_module('cudnn')` returns it."""

from __future__ import annotations

import cupy

from ..context import Context


def context(device_id: str | int = "auto", type_config: str = "float") -> Context:
    """The context of a GPU; see ext_utils.get_extension_context."""
    from ..ext_utils import get_extension_context

    return get_extension_context("cudnn", device_id=device_id, type_config=type_config)


def array_classes() -> list[str]:
    """Names of array classes; there is one."""
    return ["CudaCachedArray"]


def get_device_count() -> int:
    """Number of GPUs that this process sees."""
    return cupy.cuda.runtime.getDeviceCount()


def get_devices() -> list[str]:
    """Ids of the GPUs that this process sees."""
    return [str(i) for i in range(get_device_count())]


def device_synchronize(device_id: str | int = "0") -> None:
    """Wait until all work of the device is done."""
    cupy.cuda.Device(int(device_id)).synchronize()


def synchronize(device_id: str | int = "0") -> None:
    """As device_synchronize."""
    device_synchronize(device_id)


def clear_memory_cache() -> None:
    """Return the memory that is kept for later arrays to the device."""
    cupy.get_default_memory_pool().free_all_blocks()
    cupy.get_default_pinned_memory_pool().free_all_blocks()
