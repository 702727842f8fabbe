"""RawModule, RawKernel and Function: kernels as CuPy launches them, run on the CPU."""

from __future__ import annotations

import ctypes
import re
import weakref
from typing import Any

import numpy as np

from .arguments import Checker
from .compiler import Compiled, Parameter, Range, compile_text, kernel_names, runtime
from .errors import CUDARuntimeError, KernelError, RaceError
from .memory import BaseMemory, MemoryPointer, UnownedMemory
from .ordering import Access
from .record import settings
from .stream import stream_address, submit

SHARED_MEMORY = 48 * 1024  # what a block has without asking
SHARED_MEMORY_OPT_IN = 227 * 1024


class Function:
    """A kernel of a module: `function(grid, block, args, shared_mem=0, stream=None)`."""

    def __init__(self, compiled: Compiled, expression: str, bound: int | None) -> None:
        self.name = expression
        number = compiled.kernels[expression]
        self._compiled = compiled
        self._call = getattr(compiled.library, f"emulator_call_{number}")
        describe = getattr(compiled.library, f"emulator_describe_{number}")
        describe.restype = ctypes.POINTER(Parameter)
        count = ctypes.c_int()
        parameters = describe(ctypes.byref(count))
        self._checkers = [Checker(expression, i, parameters[i]) for i in range(count.value)]
        ranges = [(address, size) for _, address, size in compiled.shared]
        self._shared = (Range * len(ranges))(*ranges)
        self.shared_size_bytes = self._static_shared_size()
        self.max_threads_per_block = bound or 1024
        self._dynamic_limit = SHARED_MEMORY - self.shared_size_bytes
        if self._dynamic_limit < 0:
            raise CUDARuntimeError(
                "CUDA_ERROR_INVALID_PTX",
                f"[{expression}] uses {self.shared_size_bytes} bytes of static shared memory, the "
                f"most is {SHARED_MEMORY}",
            )

    def _static_shared_size(self) -> int:
        """Shared arrays of the kernel and of functions that are no kernel of this library."""

        def base(text: str) -> str:
            return re.sub(r"<.*", "", re.sub(r"\(.*", "", text)).split()[-1].split("::")[-1]

        kernels = {base(expression) for expression in self._compiled.kernels}
        sizes: dict[str, int] = {}
        for owner, _, size in self._compiled.shared:
            sizes[owner] = sizes.get(owner, 0) + size
        own = [size for owner, size in sizes.items() if base(owner) == base(self.name)]
        others = [size for owner, size in sizes.items() if base(owner) not in kernels]
        return max(own, default=0) + sum(others)

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._dynamic_limit

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        if size + self.shared_size_bytes > SHARED_MEMORY_OPT_IN:
            raise CUDARuntimeError(
                "CUDA_ERROR_INVALID_VALUE",
                f"[{self.name}] {size} bytes of shared memory, the most is {SHARED_MEMORY_OPT_IN}",
            )
        self._dynamic_limit = size

    def __call__(
        self, grid: Any, block: Any, args: Any, shared_mem: int = 0, stream: Any = None
    ) -> None:
        shape = self._check_shape(grid, block, shared_mem)
        if len(args) != len(self._checkers):
            raise TypeError(f"[{self.name}] takes {len(self._checkers)} arguments, got {len(args)}")
        accesses: list[Access] = []
        packed = [
            checker.pack(value, accesses)
            for checker, value in zip(self._checkers, args, strict=True)
        ]
        # Weak, since a captured launch does not keep memory alive.
        reached = [
            weakref.ref(memory) for memory in {id(a.memory): a.memory for a in accesses}.values()
        ]
        written = [_writable_bytes(a) for a in accesses if a.writes is not False]
        address = stream_address(stream)

        def run() -> None:
            alive = [memory for reference in reached if (memory := reference()) is not None]
            self._run(shape, packed, shared_mem, written)
            self._check_guards(alive)

        submit(("kernel", self.name, address), run, address, accesses)

    def linear_launch(
        self,
        size: int,
        args: Any,
        shared_mem: int = 0,
        block_max_size: int = 128,
        stream: Any = None,
    ) -> None:
        blocks = -(-size // block_max_size)
        self((blocks,), (min(size, block_max_size),), args, shared_mem, stream)

    def _check_shape(self, grid: Any, block: Any, shared_mem: int) -> list[int]:
        for name, value in (("grid", grid), ("block", block)):
            if not isinstance(value, tuple):
                raise TypeError(
                    f"Argument {name!r} has incorrect type (expected tuple, got "
                    f"{type(value).__name__})"
                )
        # As CuPy: missing lengths are 1, and so are zeros.
        shape = [
            max(1, length.__index__()) for three in (grid, block) for length in (*three, 1, 1)[:3]
        ]
        limits = [2**31 - 1, 65535, 65535, 1024, 1024, 64]
        threads = shape[3] * shape[4] * shape[5]
        if any(n > most for n, most in zip(shape, limits, strict=True)) or threads > 1024:
            raise CUDARuntimeError(
                "CUDA_ERROR_INVALID_VALUE",
                f"[{self.name}] grid {grid} or block {block} is too large",
            )
        if threads > self.max_threads_per_block:
            raise CUDARuntimeError(
                "CUDA_ERROR_INVALID_VALUE",
                f"[{self.name}] {threads} threads pass its __launch_bounds__ of "
                f"{self.max_threads_per_block}",
            )
        if shared_mem > self._dynamic_limit:
            raise CUDARuntimeError(
                "CUDA_ERROR_INVALID_VALUE",
                f"[{self.name}] {shared_mem} bytes of dynamic shared memory pass its limit of "
                f"{self._dynamic_limit}; set max_dynamic_shared_size_bytes",
            )
        return shape

    def _run(
        self, shape: list[int], packed: list[bytes], shared_mem: int, written: list[np.ndarray]
    ) -> None:
        if not settings.check_races:
            self._launch(shape, packed, shared_mem, settings.reverse_order)
            return
        before = [part.copy() for part in written]
        self._launch(shape, packed, shared_mem, reverse=True)
        reverse = [part.copy() for part in written]
        for part, values in zip(written, before, strict=True):
            part[:] = values
        self._launch(shape, packed, shared_mem, reverse=False)
        for part, values in zip(written, reverse, strict=True):
            if not (part == values).all():
                raise RaceError(
                    f"[{self.name}] the result depends on the order of threads and blocks"
                )

    def _check_guards(self, memories: list[BaseMemory]) -> None:
        damages = [
            f"wrote {damage} an allocation of {memory.size} bytes"
            for memory in memories
            if (damage := memory.damage())
        ]
        if damages:
            raise KernelError(self.name, "; ".join(damages))

    def _launch(
        self, shape: list[int], packed: list[bytes], shared_mem: int, reverse: bool
    ) -> None:
        buffers = [ctypes.create_string_buffer(value, len(value)) for value in packed]
        pointers = (ctypes.c_void_p * max(len(buffers), 1))(*map(ctypes.addressof, buffers))
        message = ctypes.create_string_buffer(500)
        failed = runtime().emulator_launch(
            self._call,
            pointers,
            (ctypes.c_uint * 6)(*shape),
            ctypes.c_uint(shared_mem),
            int(reverse),
            self._shared,
            len(self._shared),
            message,
            ctypes.c_size_t(len(message)),
        )
        if failed:
            raise KernelError(self.name, message.value.decode(errors="replace"))


def _writable_bytes(access: Access) -> np.ndarray:
    """What a kernel may write: no more, since other work may go on beside it."""
    memory = access.memory
    if access.writes is None:
        return memory.bytes
    return memory.bytes[access.start - memory.ptr : (access.reach or access.end) - memory.ptr]


class RawModule:
    """cupy.RawModule(code=..., options=(), name_expressions=None)"""

    def __init__(
        self,
        code: str | None = None,
        *,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        enable_cooperative_groups: bool = False,
        name_expressions: Any = None,
        jitify: Any = None,
    ) -> None:
        if (code is None) == (path is None):
            raise TypeError("Exactly one of `code` and `path` keyword arguments must be given.")
        if code is None:
            raise NotImplementedError("[RawModule] the emulator compiles texts only; give code")
        if backend != "nvrtc" and name_expressions:
            raise ValueError("only nvrtc supports retrieving the mangled names")
        if not isinstance(options, tuple):
            raise TypeError("compiler options must be a tuple")
        self.code = code
        self.options = options
        self.backend = backend
        self.name_expressions = name_expressions
        self.enable_cooperative_groups = enable_cooperative_groups
        self._plain = kernel_names(code)
        self._expressions = list(self._plain) + [
            e for e in name_expressions or () if e not in self._plain
        ]
        self._compiled: Compiled | None = None
        self._functions: dict[str, RawKernel] = {}

    def compile(self, log_stream: Any = None) -> None:
        if self._compiled is None:
            self._compiled = compile_text(self.code, self.options, tuple(self._expressions))

    def get_function(self, name: str) -> RawKernel:
        if name not in self._functions:
            if name not in self._expressions:
                self._expressions.append(name)  # made by a macro, perhaps
                self._compiled = None
            self.compile()
            assert self._compiled is not None
            named = self.name_expressions is not None and name in self.name_expressions
            if not named and name not in self._compiled.exported:
                raise CUDARuntimeError(
                    "CUDA_ERROR_NOT_FOUND",
                    f'named symbol not found: {name!r} needs extern "C" or name_expressions',
                )
            function = Function(self._compiled, name, self._plain.get(name))
            self._functions[name] = RawKernel._of(self, name, function)
        return self._functions[name]

    def get_global(self, name: str) -> MemoryPointer:
        """A `__device__` or `__constant__` variable."""
        self.compile()
        assert self._compiled is not None
        if name not in self._compiled.exported:
            raise CUDARuntimeError("CUDA_ERROR_NOT_FOUND", f"named symbol not found: {name!r}")
        address = ctypes.addressof(ctypes.c_char.in_dll(self._compiled.library, name))
        return MemoryPointer(UnownedMemory(address, self._compiled.exported[name], self), 0)


class RawKernel:
    """cupy.RawKernel(code, name, options=())"""

    def __init__(
        self,
        code: str,
        name: str,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        translate_cucomplex: bool = False,
        *,
        enable_cooperative_groups: bool = False,
        jitify: Any = None,
    ) -> None:
        self._module = RawModule(code, options=options, backend=backend)
        self.name = name
        self._function: Function | None = None

    @classmethod
    def _of(cls, module: RawModule, name: str, function: Function) -> RawKernel:
        kernel = object.__new__(cls)
        kernel._module, kernel.name, kernel._function = module, name, function
        return kernel

    @property
    def kernel(self) -> Function:
        if self._function is None:
            self._function = self._module.get_function(self.name)._function
        assert self._function is not None
        return self._function

    def compile(self, log_stream: Any = None) -> None:
        assert self.kernel

    def __call__(self, grid: Any, block: Any, args: Any, **kwargs: Any) -> None:
        self.kernel(grid, block, args, **kwargs)

    code = property(lambda self: self._module.code)
    options = property(lambda self: self._module.options)
    backend = property(lambda self: self._module.backend)
    max_threads_per_block = property(lambda self: self.kernel.max_threads_per_block)
    shared_size_bytes = property(lambda self: self.kernel.shared_size_bytes)
    num_regs = property(lambda self: 32)
    local_size_bytes = property(lambda self: 0)
    const_size_bytes = property(lambda self: 0)

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self.kernel.max_dynamic_shared_size_bytes

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        self.kernel.max_dynamic_shared_size_bytes = size

    @property
    def attributes(self) -> dict[str, int]:
        return {
            "max_threads_per_block": self.max_threads_per_block,
            "shared_size_bytes": self.shared_size_bytes,
            "max_dynamic_shared_size_bytes": self.max_dynamic_shared_size_bytes,
            "num_regs": self.num_regs,
            "local_size_bytes": 0,
            "const_size_bytes": 0,
        }
