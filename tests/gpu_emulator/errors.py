"""Errors under CuPy's names, and those that only an emulator can raise."""

from __future__ import annotations


class CUDARuntimeError(RuntimeError):
    """As cupy.cuda.runtime.CUDARuntimeError: what the CUDA runtime answers."""

    def __init__(self, name: str, text: str, status: int = 1) -> None:
        super().__init__(f"{name}: {text}")
        self.status = status


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        text = f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes"
        super().__init__(text + (f", limit set to: {limit:,} bytes)." if limit else ")."))


class CompileException(Exception):
    """As cupy.cuda.compiler.CompileException: what the compiler said, and the text."""

    def __init__(self, message: str, source: str, name: str, options: tuple[str, ...]) -> None:
        super().__init__(message)
        self.source = source
        self.name = name
        self.options = options

    def get_message(self) -> str:
        return str(self)


class KernelError(CUDARuntimeError):
    """A kernel did what a device would answer with an illegal address, or with wrong numbers."""

    def __init__(self, kernel: str, text: str) -> None:
        super().__init__("cudaErrorIllegalAddress", f"[{kernel}] {text}", 700)


class RaceError(AssertionError):
    """The result of a kernel depends on the order in which its threads run."""


class StreamError(AssertionError):
    """Nothing orders what two streams do to the same memory."""
