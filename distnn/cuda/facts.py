"""What can be found out about GPUs and their libraries; `distnn.doctor` runs it as a program.

As a program of its own it may be ended by a broken library without harm: it prints one line of
JSON, in which what failed is told as text.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any


def facts() -> dict[str, Any]:
    """By name what was found: text, a list for devices, or {"error": why not}."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "cupy": _try(_cupy),
            "runtime": _try(_runtime),
            "driver": _try(_driver),
            "compiler": _try(_compiler),
            "devices": _try(_devices),
            "cublas": _try(_cublas),
            "nccl": _try(_nccl),
            "cudnn": _try(_cudnn),
        }


def _try(find: Callable[[], Any]) -> Any:
    try:
        return find()
    except Exception as error:  # whatever a library does when it is not well
        return {"error": f"{type(error).__name__}: {error}".split("\n")[0]}


def _cupy() -> str:
    import cupy

    return cupy.__version__


def _runtime() -> str:
    from cupy.cuda import runtime

    return _cuda_version(runtime.runtimeGetVersion())


def _driver() -> str:
    """The newest CUDA that the driver runs; empty without a driver."""
    from cupy.cuda import runtime

    version = runtime.driverGetVersion()
    return _cuda_version(version) if version else ""


def _compiler() -> str:
    from cupy.cuda import nvrtc

    return ".".join(map(str, nvrtc.getVersion()))


def _devices() -> list[dict[str, Any]]:
    from cupy.cuda import Device, runtime

    from .device import count_devices

    found = []
    for number in range(count_devices()):
        properties = runtime.getDeviceProperties(number)
        name = properties["name"]
        with Device(number):
            free, total = runtime.memGetInfo()
        found.append(
            {
                "name": name.decode() if isinstance(name, bytes) else name,
                "capability": f"{properties['major']}.{properties['minor']}",
                "free": free,
                "total": total,
            }
        )
    return found


def _cublas() -> str:
    from cupy.cuda import cublas

    return str(cublas.getVersion(cublas.create()))


def _nccl() -> str:
    from . import nccl

    version = nccl.version()
    if not version:
        raise ImportError("libnccl.so.2 cannot be loaded")
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


def _cudnn() -> str:
    import cudnn

    version = cudnn.backend_version()
    return f"{version // 10000}.{version // 100 % 100}.{version % 100}"


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


if __name__ == "__main__":
    print(json.dumps(facts()))
