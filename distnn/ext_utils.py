"""Extensions: contexts by name, as NNabla's scripts ask for them."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

from .context import Context
from .errors import ArgumentError, ContextError, MissingExtraError

_EXTENSIONS = ("cpu", "cuda", "cudnn")


def list_extensions() -> list[str]:
    """Names that `get_extension_context` takes.

    >>> list_extensions()
    ['cpu', 'cuda', 'cudnn']
    """
    return list(_EXTENSIONS)


def get_extension_context(
    ext_name: str, device_id: str | int = "0", type_config: str = "float", **kw: Any
) -> Context:
    """The context of an extension.

    Args:
        ext_name: "cpu"; "cudnn" and "cuda" are the GPU.
        device_id: number of the device, as text or int.
        type_config: "float" (float32), "half" (float16) or "double" (float64).
    Raises: MissingExtraError or ContextError, with what to install or do, where the extension
        cannot be used; never a context of another device.

    >>> get_extension_context("cpu", device_id=0).backend
    ['cpu:float']
    """
    name = ext_name.split(".")[-1]  # NNabla's old "cuda.cudnn"
    if name not in _EXTENSIONS:
        raise ArgumentError(
            f"[get_extension_context] ext_name is {ext_name!r}; use one of {list(_EXTENSIONS)}"
        )
    if kw:
        raise ArgumentError(
            f"[get_extension_context] got {sorted(kw)}; it takes device_id and type_config"
        )
    if name != "cpu":
        require_gpu(ext_name)
    ctx = Context([f"{name}:{type_config}"], device_id=device_id)
    ctx.resolve()
    return ctx


def import_extension_module(ext_name: str) -> ModuleType:
    """The module of an extension: `context`, `synchronize`, `get_devices`, ..."""
    from . import cpu_extension

    if ext_name != "cpu":
        require_gpu(ext_name)
    return cpu_extension


def require_gpu(name: str) -> None:
    """Raise the error that says what is missing for a GPU."""
    if importlib.util.find_spec("cupy") is None:
        raise MissingExtraError(
            f"[get_extension_context] {name!r} needs an NVIDIA GPU and CuPy, which is not "
            "installed (pip install cupy-cuda13x, or cupy-cuda12x for a CUDA 12 driver); this "
            "version of distnn has no GPU kernels yet: use 'cpu'"
        )
    raise ContextError(
        f"[get_extension_context] {name!r}: this version of distnn has no GPU kernels yet, "
        "although CuPy is installed; use 'cpu'"
    )
