"""Backend: what a context resolves to. An array module, a float dtype and memory.

Functions never ask which backend they run on; they use the `xp` it hands them.
"""

from __future__ import annotations

import numpy as np

from .errors import ContextError
from .formula import run_chunks
from .memory import pool
from .namespace import NumpyNamespace

_DTYPES = {"float": np.float32, "half": np.float16, "double": np.float64}


class Backend:
    """Abstract: the arrays, their float dtype and where their memory comes from."""

    name: str
    dtype: np.dtype  # of function outputs
    parameter_dtype: np.dtype  # of parameters and their gradients
    xp: NumpyNamespace

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """An uninitialised C-contiguous array."""
        raise NotImplementedError

    def zeros(self, size: int, dtype: np.dtype) -> np.ndarray:
        """A flat array of zeros whose memory is not touched before it is written."""
        raise NotImplementedError

    def add(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        """out = a + b, rounded to the dtype of out."""
        raise NotImplementedError


class CpuBackend(Backend):
    """NumPy on the host."""

    name = "cpu"
    xp = NumpyNamespace()

    def __init__(self, type_config: str) -> None:
        if type_config not in _DTYPES:
            raise ContextError(
                f"[Context] type_config is {type_config!r}; the cpu backend knows "
                f"{', '.join(sorted(_DTYPES))}"
            )
        self.type_config = type_config
        self.dtype = np.dtype(_DTYPES[type_config])
        # Half precision is for activations; an optimizer needs float32 weights.
        self.parameter_dtype = np.dtype(np.float64 if type_config == "double" else np.float32)

    def __repr__(self) -> str:
        return f"cpu:{self.type_config}"

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        return pool.empty(shape, dtype)

    def zeros(self, size: int, dtype: np.dtype) -> np.ndarray:
        return np.zeros(size, dtype)

    def add(self, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        run_chunks(_add, out, (a, b))


def _add(out: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    np.add(a, b, out=out, casting="same_kind")
