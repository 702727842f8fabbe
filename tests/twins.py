"""What tests of single twins share: arrays of the device, strictness, and launches counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import distnn as nn

# Of results of order one, by dtype: half rounds them, float32 and float64 add up errors.
RTOL = {"e": 4e-3, "f": 2e-6, "d": 1e-13}
_CONFIG = {"e": "half", "f": "float", "d": "double"}


def namespace(dtype: str) -> Any:
    """The `xp` of functions on the device."""
    from distnn.backend import Backend
    from distnn.context import current_backend

    with nn.context_scope(nn.Context([f"cudnn:{_CONFIG[dtype]}"])):
        backend: Backend = current_backend()
    return backend.xp


def twin(function: Any) -> Any:
    from distnn.cuda.twin import implementation

    return implementation(function)


def up(values: np.ndarray) -> Any:
    """A copy on the device."""
    import cupy

    return cupy.asarray(np.asarray(values, order="C"))


def moved(values: np.ndarray) -> Any:
    """A copy on the device that no access of more than one element is aligned to."""
    import cupy

    memory = cupy.empty(values.size + 1, values.dtype)
    memory[1:] = cupy.asarray(values.reshape(-1))
    return memory[1:].reshape(values.shape)


def launches(call: Callable[[], Any], expected: int) -> None:
    """Check how many kernels a call launches; where the device is real nobody counts them."""
    import gpu_emulator

    if gpu_emulator.installed():
        gpu_emulator.record.clear()
        call()
        assert len(gpu_emulator.record.kernels()) == expected, gpu_emulator.record.kernels()


@contextmanager
def strict() -> Iterator[None]:
    """On the emulator: threads in two orders, and no byte behind an array can be touched."""
    import gpu_emulator

    if gpu_emulator.installed():
        with gpu_emulator.settings.using(check_races=True, guard_pages=True):
            yield
    else:
        yield


def close(actual: Any, expected: Any, dtype: str, times: float = 1, scale: float = 0) -> None:
    """Of the expected shape and of `dtype`; errors relative to the largest value, or `scale`."""
    values = actual.get()
    expected = np.asarray(expected, np.float64)
    assert values.shape == expected.shape
    assert values.dtype.char == dtype
    rtol = times * RTOL[dtype]
    scale = np.abs(expected[np.isfinite(expected)]).max(initial=max(scale, 1e-3))
    np.testing.assert_allclose(values.astype(np.float64), expected, rtol=rtol, atol=rtol * scale)


def same_bits(a: Any, b: Any) -> None:
    np.testing.assert_array_equal(a.get(), b.get())
