"""Extensions: contexts by name, as NNabla's scripts ask for them."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

from .context import Context
from .errors import ArgumentError, MissingExtraError

_EXTENSIONS = ("cpu", "cuda", "cudnn")


def list_extensions() -> list[str]:
    """Names that `get_extension_context` takes.

    >>> list_extensions()
    ['cpu', 'cuda', 'cudnn']
    """
    return list(_EXTENSIONS)


def get_extension_context(
    ext_name: str,
    device_id: str | int = "auto",
    type_config: str = "float",
    precision: str = "highest",
    **kw: Any,
) -> Context:
    """The context of an extension.

    Args:
        ext_name: "cpu"; "cudnn" and "cuda" are the GPU.
        device_id: number of the device, as text or int; "auto" is this rank's, see Context.
        type_config: "float" (float32), "half" (float16) or "double" (float64).
        precision: of products and convolutions, and of results; see Context.
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
            f"[get_extension_context] got {sorted(kw)}; it takes device_id, type_config and "
            "precision"
        )
    ctx = Context([f"{name}:{type_config}"], device_id=device_id, precision=precision)
    device = ctx.resolve().device
    if ctx.device_id == "auto":
        ctx.device_id = str(device)
    return ctx


def import_extension_module(ext_name: str) -> ModuleType:
    """The module of an extension: `context`, `synchronize`, `get_devices`, ..."""
    if ext_name == "cpu":
        from . import cpu_extension

        return cpu_extension
    require_cupy(ext_name)
    from .cuda import extension

    return extension


def require_cupy(name: str) -> None:
    """Raise the error that says what to install for a GPU."""
    if "cupy" not in sys.modules and importlib.util.find_spec("cupy") is None:
        raise MissingExtraError(
            f"[get_extension_context] {name!r} needs an NVIDIA GPU and CuPy, which is not "
            "installed; pip install 'distnn[cuda13]' (or cuda12 for a driver of CUDA 12), or use "
            "'cpu'"
        )
