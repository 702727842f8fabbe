"""GPUs that cannot be used, and arrays of another one: what is wrong, and what mends it."""

from __future__ import annotations

import numpy as np
import pytest

import distnn as nn
from distnn.errors import ContextError, MissingExtraError
from distnn.ext_utils import get_extension_context, import_extension_module


@pytest.fixture(autouse=True)
def emulated(gpu):
    import gpu_emulator

    if not gpu_emulator.installed():
        pytest.skip("says what a machine lacks: --device emulated")
    return gpu_emulator.settings


@pytest.fixture
def cupy():
    import cupy

    return cupy


def context(device=0):
    return get_extension_context("cudnn", device_id=device)


# (version of the driver, that of CuPy's CUDA, what the message says, what it does not)
DRIVERS = [
    (0, 13000, "there is no NVIDIA driver on this machine; install one .version 580", "cuda12"),
    (12040, 13000, "for CUDA 12.4 but this CuPy needs CUDA 13: .*580 .*distnn.cuda12.", "525"),
    (11040, 13000, "for CUDA 11.4 but this CuPy needs CUDA 13: .*to 580 or later$", "cuda12"),
    (11040, 12090, "for CUDA 11.4 but this CuPy needs CUDA 12: .*to 525 or later$", "580"),
]


@pytest.mark.parametrize(("driver", "runtime", "says", "says_not"), DRIVERS)
def test_a_driver_that_is_too_old(driver, runtime, says, says_not, emulated, cupy, monkeypatch):
    def count():
        raise cupy.cuda.runtime.CUDARuntimeError("cudaErrorInsufficientDriver", "too old", 35)

    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", count)
    module = import_extension_module("cudnn")
    with emulated.using(driver_version=driver, runtime_version=runtime):
        for call in (
            context, module.get_device_count, module.synchronize, module.clear_memory_cache
        ):  # fmt: skip
            with pytest.raises(ContextError, match=says) as raised:
                call()
            assert says_not not in str(raised.value)


def test_no_device(emulated):
    with (
        emulated.using(device_count=0),
        pytest.raises(ContextError, match="sees no device; check nvidia-smi and CUDA_VISIBLE_DEV"),
    ):
        context()


def test_a_device_that_others_have(emulated):
    module = import_extension_module("cudnn")
    with emulated.using(device_count=2):
        for call in (context, module.synchronize):
            with pytest.raises(ContextError, match="is 2 but this process sees 2 GPUs; pass 0 to"):
                call(2)
            with pytest.raises(ContextError, match="'-1'; pass the number of a GPU, from 0 on"):
                call(-1)


@pytest.mark.parametrize("error", [ImportError, RuntimeError, OSError])
def test_cupy_without_the_libraries_of_cuda(error, emulated, cupy, monkeypatch):
    from distnn.cuda.backend import cuda_backend

    def version():
        raise error("libnvrtc.so.13: cannot open shared object file")

    cuda_backend.cache_clear()
    monkeypatch.setattr(cupy.cuda.nvrtc, "getVersion", version)
    with (
        emulated.using(runtime_version=12090),
        pytest.raises(MissingExtraError, match=r"libnvrtc.*pip install 'distnn\[cuda12\]'"),
    ):
        context()
    cuda_backend.cache_clear()


def test_arrays_of_another_device(emulated, cupy):
    with emulated.using(device_count=2):
        with cupy.cuda.Device(1):
            there = cupy.asarray(np.array([1, 2], np.float32))
        x = nn.Variable((2,))
        for call in (lambda: setattr(x, "d", there), lambda: nn.from_dlpack(there)):
            with pytest.raises(ContextError, match="lies on device 1 but the context runs on dev"):
                call()
        with nn.context_scope(context(1)):
            y = nn.Variable.from_numpy_array(np.array([1, 2], np.float32)) * 2
            y.forward()
        with pytest.raises(ContextError, match="mul_scalar on cuda:1, add_scalar on cuda:0"):
            (y + 1).forward()
        x.data.copy_from(y.data)
        z = x + 1
        z.forward()
        np.testing.assert_array_equal(z.d, [3, 5])
        assert z.data._storage.array.device.id == 0
