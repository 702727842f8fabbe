"""Device memory: CuPy's pool, with an error that says who holds what."""

from __future__ import annotations

import functools
import gc
from collections import Counter
from typing import Any

import cupy

from ..capture import drop_all
from ..errors import DeviceMemoryError
from ..graph import Node
from ..ndarray import NdArray
from .transfer import let_go_of_landings

_LARGEST = 5  # functions that an error names


@functools.cache
def install() -> None:
    """Let every allocation of CuPy that fails raise DeviceMemoryError."""
    allocate = cupy.cuda.get_allocator()

    def malloc(size: int) -> Any:
        try:
            return allocate(size)  # the pool frees what it caches and tries again before it raises
        except cupy.cuda.memory.OutOfMemoryError:
            if let_go_of_landings() or drop_all():  # what they hold is not in use now
                return malloc(size)
            raise DeviceMemoryError(_report(size)) from None

    cupy.cuda.set_allocator(malloc)


def _report(size: int) -> str:
    device = cupy.cuda.Device()
    free, total = device.mem_info
    pool = cupy.get_default_memory_pool()
    text = (
        f"[device {device.id}] {_readable(size)} were asked for; {_readable(free)} of "
        f"{_readable(total)} are free, this process uses {_readable(pool.used_bytes())}"
    )
    limit = pool.get_limit()
    if limit:
        text += f" of its limit of {_readable(limit)}"
    holders = _holders()
    if holders:
        text += ". Results of functions, and what they keep for gradients, take: "
        text += ", ".join(f"{name} {_readable(n)}" for name, n in holders.most_common(_LARGEST))
    return (
        text + ". Use a smaller batch; forward(clear_no_need_grad=True) and "
        "backward(clear_buffer=True) free what nobody reads any more"
    )


def _holders() -> Counter[str]:
    """Bytes on devices by name of the function that computed or keeps them."""
    found: Counter[str] = Counter()
    seen: set[int] = set()
    for node in gc.get_objects():
        if type(node) is not Node:
            continue
        outputs = (node.live_output(i) for i in range(node.setup.n_outputs))
        arrays = [value.present_data() for value in outputs if value is not None]
        for data in (*arrays, *(node.kept_data().values())):
            nbytes = 0 if data is None else _device_bytes(data, seen)
            if nbytes:
                found[node.name] += nbytes
    return found


def _device_bytes(data: NdArray, seen: set[int]) -> int:
    """Bytes of an array on a device that no one before has counted."""
    array = data._storage.array
    if not isinstance(array, cupy.ndarray) or array.data.ptr in seen:
        return 0
    seen.add(array.data.ptr)
    return array.nbytes


def _readable(nbytes: int) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024  # type: ignore[assignment]
    return f"{nbytes:.4g} GiB"
