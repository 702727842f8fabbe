"""NVRTC, NVIDIA's run-time compiler, through its C interface: it needs no GPU and no driver."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from pathlib import Path

INSTALL = "pip install nvidia-cuda-nvrtc nvidia-cuda-runtime"


def _find(pattern: str) -> Path | None:
    """A file in the packages of NVIDIA's wheels."""
    spec = importlib.util.find_spec("nvidia")
    places = [] if spec is None else spec.submodule_search_locations or []
    return next((file for place in places for file in sorted(Path(place).rglob(pattern))), None)


def missing() -> str:
    """Why sources cannot be compiled here; "" where they can."""
    if _find("libnvrtc.so.*") is None:
        return f"NVRTC is not installed; {INSTALL}"
    if _find("cuda_fp16.h") is None:
        return f"the CUDA headers are not installed; {INSTALL}"
    return ""


def compile_source(source: str, options: Sequence[str]) -> None:
    """Compile for the architecture that the options name; raises ValueError with NVRTC's log."""
    library, header = _find("libnvrtc.so.*"), _find("cuda_fp16.h")
    assert library is not None
    assert header is not None
    nvrtc = ctypes.CDLL(str(library))
    program = ctypes.c_void_p()
    _check(
        nvrtc.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), b"sources.cu", 0, None, None
        )
    )
    try:
        texts = [f"-I{header.parent}", *options]
        arguments = (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))
        if nvrtc.nvrtcCompileProgram(program, len(texts), arguments):
            raise ValueError(_log(nvrtc, program))
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _log(nvrtc: ctypes.CDLL, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    _check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
    content = ctypes.create_string_buffer(size.value)
    _check(nvrtc.nvrtcGetProgramLog(program, content))
    return content.value.decode()


def _check(result: int) -> None:
    if result:
        raise RuntimeError(f"NVRTC returned error {result}")
