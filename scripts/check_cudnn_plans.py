"""Build cuDNN's plans of many convolutions for an H200, on a machine without a GPU.

    python scripts/check_cudnn_plans.py [--all-plans]

needs the wheels nvidia-cudnn-frontend, nvidia-cudnn-cu13 (or cu12), nvidia-cublas and
nvidia-cuda-nvrtc (1 GB), and gcc: cuDNN asks for a driver's library, of which a stand-in is
compiled where there is none. Prints each configuration with the plan that would run, and fails if
one has none. Nothing is run: this says that graphs are well formed and supported, not that results
are right or fast.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

# What cuDNN asks of a device, of an H200.
_H200 = {
    "deviceName": "NVIDIA H200", "deviceVer": 900, "multiProcessorCount": 132, "warpSize": 32,
    "maxSharedMemoryPerBlockOptin": 232448, "maxSharedMemoryPerBlock": 49152,
    "reservedSharedMemoryPerBlock": 1024, "oversizedSharedMemoryPerBlock": 0,
    "l2CacheSize": 62914560, "totalGlobalMem": 150_000_000_000, "memoryBusWidth": 6144,
    "maxThreadsPerSM": 2048, "maxThreadsPerBlock": 1024, "maxCtasPerSM": 32, "regsPerBlock": 65536,
    "maxRegistersPerSM": 65536, "maxGridSize": [2147483647, 65535, 65535],
    "maxBlockSize": [1024, 1024, 64], "smCountOrigin": 0, "pciDeviceId": 0, "isTccDriver": 0,
    "supportCoopLaunch": 1, "smClockRateKHz": 1980000, "memClockRateKHz": 3201000,
    "driverVer": 13000, "cudaDeviceId": 0,
}  # fmt: skip

# Functions of the driver that cuDNN links to; those that fail say that there is no device.
_DRIVER = """
int cuGetErrorString(int e, const char** p) { *p = "no driver"; return 0; }
int cuGetErrorName(int e, const char** p) { *p = "no driver"; return 0; }
int cuInit(unsigned f) { return 100; }
int cuDriverGetVersion(int* v) { *v = 13050; return 0; }
int cuDeviceGetCount(int* c) { *c = 0; return 100; }
"""
_MISSING = """
cuDeviceGet cuStreamGetCtx cuOccupancyMaxPotentialClusterSize cuCtxGetCurrent cuCtxGetLimit
cuCtxPopCurrent cuCtxPushCurrent cuKernelGetAttribute cuKernelGetFunction cuKernelSetAttribute
cuLaunchKernel cuLaunchKernelEx cuLaunchCooperativeKernel cuLibraryGetKernel cuLibraryLoadData
cuLibraryLoadFromFile cuLibraryUnload cuModuleGetFunction cuModuleLoadData cuModuleUnload
cuLinkCreate cuLinkAddData cuLinkComplete cuLinkDestroy cuTensorMapEncodeIm2col
cuTensorMapEncodeTiled
"""

# name: x, w, pad, stride, dilation
_CONVOLUTIONS = {
    "ResNet stem": ((32, 3, 224, 224), (64, 3, 7, 7), (3, 3), (2, 2), (1, 1)),
    "ResNet 3x3": ((32, 64, 56, 56), (64, 64, 3, 3), (1, 1), (1, 1), (1, 1)),
    "ResNet 3x3, stride 2": ((32, 128, 56, 56), (128, 128, 3, 3), (1, 1), (2, 2), (1, 1)),
    "ResNet 1x1": ((32, 64, 56, 56), (256, 64, 1, 1), (0, 0), (1, 1), (1, 1)),
    "ResNet 1x1, stride 2": ((32, 256, 56, 56), (512, 256, 1, 1), (0, 0), (2, 2), (1, 1)),
    "ResNet 3x3, small map": ((32, 512, 7, 7), (512, 512, 3, 3), (1, 1), (1, 1), (1, 1)),
    "seed network 3x3": ((256, 128, 8, 8), (128, 128, 3, 3), (1, 1), (1, 1), (1, 1)),
    "one channel 5x5": ((256, 1, 28, 28), (16, 1, 5, 5), (0, 0), (1, 1), (1, 1)),
    "odd lengths": ((5, 7, 9, 11), (13, 7, 3, 2), (1, 0), (2, 1), (1, 2)),
    "one image, one filter": ((1, 1, 3, 3), (1, 1, 3, 3), (0, 0), (1, 1), (1, 1)),
    "dilation": ((2, 16, 20, 20), (16, 16, 3, 3), (2, 2), (1, 1), (2, 2)),
    "groups": ((8, 64, 14, 14), (64, 16, 3, 3), (1, 1), (1, 1), (1, 1)),
    "odd groups": ((2, 9, 6, 6), (6, 3, 3, 3), (1, 1), (1, 1), (1, 1)),
    "depthwise": ((8, 32, 14, 14), (32, 1, 3, 3), (1, 1), (2, 2), (1, 1)),
    "padding wider than the kernel": ((1, 2, 3, 3), (2, 2, 2, 2), (3, 3), (1, 1), (1, 1)),
    "kernel as large as the map": ((3, 2, 4, 5), (3, 2, 4, 5), (0, 0), (1, 1), (1, 1)),
    "1-D": ((4, 16, 50), (32, 16, 5), (2,), (1,), (1,)),
    "1-D, everything": ((2, 4, 9), (6, 2, 3), (2,), (3,), (2,)),
    "3-D": ((2, 8, 6, 7, 8), (16, 8, 3, 3, 3), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    "3-D, everything": ((2, 4, 5, 6, 5), (4, 2, 2, 3, 2), (1, 0, 1), (2, 1, 2), (1, 2, 2)),
}  # fmt: skip
# dtype, TF32, channels last: as distnn.cuda.convolution asks for.
_ARRAYS = [
    ("float32", False, False), ("float32", False, True), ("float32", True, True),
    ("float16", False, True), ("bfloat16", False, True),
    ("float64", False, False), ("float64", False, True),
]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all-plans", action="store_true", help="count the plans that can run")
    arguments = parser.parse_args()
    if importlib.util.find_spec("cudnn") is None:
        print(
            "skipped: pip install 'nvidia-cudnn-frontend<1.29' nvidia-cudnn-cu13 nvidia-cublas "
            "nvidia-cuda-nvrtc"
        )
        return 0
    _find_libraries()
    from distnn.cuda import cudnn_graph
    from distnn.cuda.problem import KINDS

    cudnn = cudnn_graph.library()
    print(f"cudnn-frontend {cudnn.__version__}, cuDNN {cudnn.backend_version()}, for an H200")
    device = cudnn.create_device_properties(json.dumps(_H200))
    built, missing = 0, 0
    for name, problem in _problems():
        for kind in KINDS:
            try:
                graph = cudnn_graph.build(kind, problem, device_property=device, sm_version=900)
                plans = cudnn_graph.plans(graph)
                _, plan, workspace = next(plans)
            except (cudnn_graph.UnsupportedError, StopIteration) as error:
                missing += 1
                print(f"NO PLAN  {name}: {kind}, {problem}: {error or 'none can be built'}")
                continue
            built += 1
            rest = f", one of {1 + sum(1 for _ in plans)}" if arguments.all_plans else ""
            order = "last" if problem.channel_last else "first"
            dtype = "TF32" if problem.tf32 else problem.dtype.name
            size = f"{workspace / 1e6:.1f} MB"
            print(f"{name:30} {kind:18} {dtype:9} {order:6} {size:>9}  {plan}{rest}")
    print(f"{built} plans built, {missing} configurations have none")
    return 1 if missing else 0


def _problems() -> Iterator[tuple[str, object]]:
    from distnn.cuda.problem import Problem
    from distnn.functions.im2col import Geometry

    names = _CONVOLUTIONS.items()
    for (name, (x, w, *window)), (dtype, tf32, last) in itertools.product(names, _ARRAYS):
        geometry = Geometry(*window, x[1] // w[1])
        yield name, Problem(x, w, geometry, _dtype(dtype), tf32, last)


def _dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def _find_libraries() -> None:
    """Start again with the wheels' libraries, and a driver's, where the loader looks for them."""
    if os.environ.get("CHECK_CUDNN_PLANS"):
        return
    folders = [str(path) for entry in sys.path for path in Path(entry).glob("nvidia/*/lib")]
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        folders.append(_stand_in())
    before = os.environ.get("LD_LIBRARY_PATH")
    path = os.pathsep.join([*folders, *([before] if before else [])])
    environment = {**os.environ, "LD_LIBRARY_PATH": path, "CHECK_CUDNN_PLANS": "1"}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def _stand_in() -> str:
    folder = Path(tempfile.mkdtemp(prefix="distnn-driver-"))
    source = folder / "driver.c"
    source.write_text(
        _DRIVER + "".join(f"int {n}(void) {{ return 999; }}\n" for n in _MISSING.split())
    )
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1",
         "-o", str(folder / "libcuda.so.1"), str(source)],
        check=True,
    )  # fmt: skip
    return str(folder)


if __name__ == "__main__":
    sys.exit(main())
