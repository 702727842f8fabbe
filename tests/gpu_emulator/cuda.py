"""The emulated modules `cupy.cuda`, `cupy.cuda.runtime` and their like, made of the parts."""

from __future__ import annotations

import types
from typing import Any

from . import copies, driver, errors, kernels, memory, nccl, pinned, stream
from .device import Device, get_device_id
from .memory import current_device, set_device
from .record import settings


def _module(name: str, **names: Any) -> types.ModuleType:
    module = types.ModuleType(name, f"Emulated {name}: see gpu_emulator.")
    module.__dict__.update(names)
    return module


def _get_device_properties(device: int) -> dict[str, Any]:
    if not 0 <= device < settings.device_count:
        raise errors.CUDARuntimeError("cudaErrorInvalidDevice", "invalid device ordinal", 101)
    major, minor = settings.compute_capability[:-1], settings.compute_capability[-1]
    return {
        "name": b"Emulated GPU",
        "uuid": b"EMULATED" + device.to_bytes(8, "big"),
        "totalGlobalMem": settings.device_memory,
        "major": int(major),
        "minor": int(minor),
        "multiProcessorCount": 132,
        "sharedMemPerBlock": kernels.SHARED_MEMORY,
        "sharedMemPerBlockOptin": kernels.SHARED_MEMORY_OPT_IN,
        "maxThreadsPerBlock": 1024,
        "maxThreadsPerMultiProcessor": 2048,
        "maxGridSize": (2**31 - 1, 65535, 65535),
        "maxThreadsDim": (1024, 1024, 64),
        "warpSize": 32,
        "l2CacheSize": 60 << 20,
        "pciBusID": device,
        "pciDeviceID": 0,
        "pciDomainID": 0,
    }


def _mem_get_info() -> tuple[int, int]:
    return Device().mem_info


def _device_synchronize() -> None:
    Device().synchronize()


def _memcpy(dst: int, src: int, size: int, kind: int) -> None:
    copies.memcpy_and_wait(dst, src, size, kind)


def _memset(ptr: int, value: int, size: int) -> None:
    copies.memset(ptr, value, size, 0)


def _stream_synchronize(address: int) -> None:
    stream.synchronized("stream", address)


def _device_count() -> int:
    if settings.device_count == 0:
        raise errors.CUDARuntimeError(
            "cudaErrorNoDevice", "no CUDA-capable device is detected", 100
        )
    return settings.device_count


def is_available() -> bool:
    return settings.device_count > 0


def profile() -> Any:
    import contextlib

    return contextlib.nullcontext()


runtime = _module(
    "cupy.cuda.runtime",
    CUDARuntimeError=errors.CUDARuntimeError,
    is_hip=False,
    getDeviceCount=_device_count,
    getDevice=current_device,
    setDevice=set_device,
    getDeviceProperties=_get_device_properties,
    driverGetVersion=lambda: settings.driver_version,
    runtimeGetVersion=lambda: settings.runtime_version,
    deviceSynchronize=_device_synchronize,
    deviceGetPCIBusId=lambda device: Device(device).pci_bus_id,
    memGetInfo=_mem_get_info,
    memcpy=_memcpy,
    memcpyAsync=copies.memcpy,
    memset=_memset,
    memsetAsync=copies.memset,
    streamSynchronize=_stream_synchronize,
    graphInstantiate=driver.instantiate,
    graphLaunch=driver.launch,
    graphDestroy=driver.destroy,
    graphExecDestroy=driver.destroy_executable,
    memcpyHostToHost=0,
    memcpyHostToDevice=1,
    memcpyDeviceToHost=2,
    memcpyDeviceToDevice=3,
    memcpyDefault=4,
    streamCaptureModeGlobal=0,
    streamCaptureModeThreadLocal=1,
    streamCaptureModeRelaxed=2,
    profilerStart=lambda: None,
    profilerStop=lambda: None,
)
_nvrtc = _module("cupy.cuda.nvrtc", getVersion=lambda: (13, 0))
_memory = _module(
    "cupy.cuda.memory",
    BaseMemory=memory.BaseMemory,
    Memory=memory.Memory,
    MemoryPointer=memory.MemoryPointer,
    MemoryPool=memory.MemoryPool,
    UnownedMemory=memory.UnownedMemory,
    OutOfMemoryError=errors.OutOfMemoryError,
    alloc=memory.alloc,
    set_allocator=memory.set_allocator,
    using_allocator=memory.using_allocator,
    get_allocator=memory.get_allocator,
)
_pinned = _module(
    "cupy.cuda.pinned_memory",
    alloc_pinned_memory=pinned.alloc_pinned_memory,
    PinnedMemoryPool=pinned.PinnedMemoryPool,
)
_stream = _module(
    "cupy.cuda.stream",
    Stream=stream.Stream,
    ExternalStream=stream.ExternalStream,
    Event=stream.Event,
    get_current_stream=stream.get_current_stream,
    get_elapsed_time=stream.get_elapsed_time,
)
_graph = _module("cupy.cuda.graph", Graph=stream.Graph)
_device = _module("cupy.cuda.device", Device=Device, get_device_id=get_device_id)
_compiler = _module("cupy.cuda.compiler", CompileException=errors.CompileException)
_function = _module("cupy.cuda.function", Function=kernels.Function)

cuda = _module(
    "cupy.cuda",
    nccl=nccl,
    runtime=runtime,
    memory=_memory,
    pinned_memory=_pinned,
    stream=_stream,
    graph=_graph,
    device=_device,
    compiler=_compiler,
    nvrtc=_nvrtc,
    function=_function,
    Device=Device,
    Stream=stream.Stream,
    ExternalStream=stream.ExternalStream,
    Event=stream.Event,
    Graph=stream.Graph,
    Function=kernels.Function,
    BaseMemory=memory.BaseMemory,
    Memory=memory.Memory,
    MemoryPointer=memory.MemoryPointer,
    MemoryPool=memory.MemoryPool,
    UnownedMemory=memory.UnownedMemory,
    PinnedMemoryPool=pinned.PinnedMemoryPool,
    alloc=memory.alloc,
    alloc_pinned_memory=pinned.alloc_pinned_memory,
    set_allocator=memory.set_allocator,
    using_allocator=memory.using_allocator,
    get_allocator=memory.get_allocator,
    get_current_stream=stream.get_current_stream,
    get_elapsed_time=stream.get_elapsed_time,
    get_device_id=get_device_id,
    get_local_runtime_version=lambda: settings.runtime_version,
    is_available=is_available,
    profile=profile,
)
MODULES = {
    module.__name__: module
    for module in (
        *(cuda, runtime, _memory, _pinned, _stream),
        *(_graph, _device, _compiler, _nvrtc, _function),
    )
}
MODULES["cupy.cuda.nccl"] = nccl
