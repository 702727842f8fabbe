"""Every CUDA source that the package can generate, as JSON: lists of [name, text], and options.

A program of its own, because it may have to put the emulator in CuPy's place. Under "kernels" are
the sources that modules of distnn.cuda list, and those of every elementwise function and solver;
under "gradients" those of first and second gradients, which are made of the same operations.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

DTYPES = [np.dtype(char) for char in "efd"]


def from_modules() -> Iterator[tuple[str, str]]:
    import distnn.cuda

    for found in pkgutil.iter_modules(distnn.cuda.__path__):
        # Modules without kernels may need libraries that are not here (cuDNN, NCCL).
        text = (Path(distnn.cuda.__path__[0]) / f"{found.name}.py").read_text()
        if "def sources()" in text:
            module = importlib.import_module(f"distnn.cuda.{found.name}")
            for name, source in module.sources():
                yield f"{found.name}: {name}", source


def elementwise_functions() -> dict[str, Any]:
    """All declared elementwise functions, by name."""
    import distnn.functions
    from distnn.functions.elementwise import Elementwise

    found = {}
    for module in modules_of(distnn.functions):
        for public in vars(module).values():
            function = getattr(public, "__globals__", {}).get("_function")
            if isinstance(function, Elementwise):
                found[function.name] = function
    return found


def modules_of(package: ModuleType) -> list[ModuleType]:
    names = [found.name for found in pkgutil.iter_modules(package.__path__)]
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names]


def gradients(function: Any) -> list[Any]:
    """The elementwise functions that are the gradients of one."""

    class Recorder:
        def call(self, gradient: Any, *arrays: Any, **numbers: Any) -> Any:
            return gradient

    found = [
        rule.compute(function, Recorder(), **dict.fromkeys(rule.names))
        for rule in function.declaration.rules.values()
    ]
    return [made for made in found if made is not None]  # others are dy itself


def sources_of(function: Any) -> Iterator[tuple[str, str]]:
    from distnn.cuda.elementwise import contiguous_source

    formula = function._formula
    for dtype in DTYPES:
        source = contiguous_source(formula, [dtype] * len(formula.arrays), dtype)
        yield f"{function.name}, {dtype}", source


def from_rules() -> Iterator[tuple[str, str]]:
    import distnn.solvers
    from distnn.cuda.multi_tensor import update_source
    from distnn.formula import Assignments

    for module in modules_of(distnn.solvers):
        for owner in (module, *vars(module).values()):
            for rule in vars(owner).values() if hasattr(owner, "__dict__") else ():
                if isinstance(rule, Assignments):
                    for dtype in DTYPES:
                        name = f"{getattr(owner, '__name__', '')} {rule.arrays}, {dtype}"
                        yield name, update_source(rule, (dtype,) * len(rule.arrays))


def main() -> None:
    if importlib.util.find_spec("cupy") is None:
        import gpu_emulator

        gpu_emulator.install()
    from distnn.cuda.kernels import OPTIONS

    functions = elementwise_functions().values()
    first = [gradient for function in functions for gradient in gradients(function)]
    second = [gradient for function in first for gradient in gradients(function)]
    found = {
        "kernels": [*from_modules(), *from_rules(), *each(functions)],
        "gradients": each([*first, *second]),
    }
    listed = {kind: distinct(sources) for kind, sources in found.items()}
    json.dump({"options": OPTIONS, **listed}, sys.stdout)


def each(functions: Iterable[Any]) -> list[tuple[str, str]]:
    return [source for function in functions for source in sources_of(function)]


def distinct(sources: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Without sources that differ in the kernel's name only."""
    found: dict[str, tuple[str, str]] = {}
    for name, text in sources:
        found.setdefault(re.sub(r"\bformula_\w+", "formula", text), (name, text))
    return list(found.values())


if __name__ == "__main__":
    main()
